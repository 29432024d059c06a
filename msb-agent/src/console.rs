//! Messages of the agent on the guest's console, and the words for errors.

use std::io::{self, Write};

/// Writes one line to the console. A console that is gone is no reason to stop.
pub(crate) fn log(message: &str) {
    let line = format!("msb-agent: {message}\n");
    let _ = io::stderr().write_all(line.as_bytes());
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
