//! Messages of the agent on the guest's console, and error texts.

use std::io::{self, Write};

/// Writes a line to the console. Errors are ignored: the agent works without a console.
pub(crate) fn log(message: &str) {
    let line = format!("msb-agent: {message}\n");
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Console log level: kernel messages with a priority above this one (emergency to notice) are
/// shown.
const PRIORITY_INFO: libc::c_int = 6;
/// Action of syslog(2) that sets the console log level.
const SYSLOG_ACTION_CONSOLE_LEVEL: libc::c_int = 8;

/// Shows the kernel's notices on the console. The boot is quiet because each line costs time; but
/// libkrunfw's kernel reports its restart only in a notice, from which the supervisor learns how
/// the guest ended.
pub(crate) fn show_notices() {
    // SAFETY: this action takes no buffer. If it fails, there are no notices.
    unsafe { libc::klogctl(SYSLOG_ACTION_CONSOLE_LEVEL, std::ptr::null_mut(), PRIORITY_INFO) };
}

/// Returns the text of a system error without its number.
pub(crate) fn reason(error: impl Into<io::Error>) -> String {
    let text = error.into().to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = words.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_lower_case_without_number() {
        assert_eq!(reason(rustix::io::Errno::NOENT), "no such file or directory");
    }
}
