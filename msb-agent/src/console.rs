//! Messages of the agent on the guest's console, and the words for errors.

use std::io::{self, Write};

/// Writes one line to the console. A console that is gone is no reason to stop.
pub(crate) fn log(message: &str) {
    let line = format!("msb-agent: {message}\n");
    let _ = io::stderr().write_all(line.as_bytes());
}

/// The kernel's own priorities below this one reach the console: from its emergencies to its notices.
const PRIORITY_INFO: libc::c_int = 6;
/// Of syslog(2): sets which messages reach the console.
const SYSLOG_ACTION_CONSOLE_LEVEL: libc::c_int = 8;

/// Has the kernel's notices on the console. The boot is quiet, since each line costs time; but libkrunfw's kernel says that
/// it restarts in a notice alone, and the supervisor reads there how a guest ended.
pub(crate) fn show_notices() {
    // SAFETY: this action takes no buffer. If it is refused, there are no notices.
    unsafe {
        libc::klogctl(
            SYSLOG_ACTION_CONSOLE_LEVEL,
            std::ptr::null_mut(),
            PRIORITY_INFO,
        )
    };
}

/// The words for an error of the system, without its number.
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
    fn reasons_are_lower_case_and_carry_no_number() {
        assert_eq!(
            reason(rustix::io::Errno::NOENT),
            "no such file or directory"
        );
    }
}
