//! Signal numbers of the guest: `TERM`, `SIGQUIT`, `SIGRTMIN+3` or `15`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cli::error::Failure;
use crate::cli::escape::escape;

/// Names and numbers of signals on Linux, as in signal(7) for x86 and ARM, then their other names.
const SIGNALS: [(&str, i32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("IOT", 6),
    ("CLD", 17),
    ("POLL", 29),
];

/// Names of the signals that people send, for completion.
pub const COMMON: &[&str] =
    &["CONT", "HUP", "INT", "KILL", "QUIT", "STOP", "TERM", "USR1", "USR2", "WINCH"];

/// First and last real-time signal, as the C library numbers them.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of a signal on Linux, from 1 to 64. Its text is the name, where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SignalNumber(i32);

impl SignalNumber {
    /// Returns the number.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl FromStr for SignalNumber {
    type Err = Failure;

    fn from_str(text: &str) -> Result<SignalNumber, Failure> {
        parse(text).map(SignalNumber).ok_or_else(|| {
            Failure::usage(format!("'{}' is not a signal", escape(text)))
                .hint("give a name or a Linux signal number, such as QUIT, SIGRTMIN+3 or 15")
        })
    }
}

impl fmt::Display for SignalNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0;
        match SIGNALS.iter().find(|(_, known)| *known == number) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None if number == RTMIN => f.write_str("SIGRTMIN"),
            None if number > RTMIN => write!(f, "SIGRTMIN+{}", number - RTMIN),
            None => write!(f, "{number}"),
        }
    }
}

impl TryFrom<String> for SignalNumber {
    type Error = Failure;

    fn try_from(text: String) -> Result<SignalNumber, Failure> {
        text.parse()
    }
}

impl From<SignalNumber> for String {
    fn from(signal: SignalNumber) -> String {
        signal.to_string()
    }
}

/// Parses a name, with or without `SIG`, in any case, or a number.
fn parse(text: &str) -> Option<i32> {
    let number = |text: &str| {
        let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_digits.then(|| text.parse::<i32>().ok()).flatten()
    };
    let text = text.trim();
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let found = named.or_else(|| number(text)).or_else(|| match name {
        "RTMIN" => Some(RTMIN),
        "RTMAX" => Some(RTMAX),
        _ => {
            let after = name.strip_prefix("RTMIN+").and_then(number);
            let before = name.strip_prefix("RTMAX-").and_then(number);
            after
                .and_then(|count| RTMIN.checked_add(count))
                .or(before.and_then(|count| RTMAX.checked_sub(count)))
                .filter(|found| *found >= RTMIN)
        }
    });
    found.filter(|found| (1..=RTMAX).contains(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Option<i32> {
        text.parse::<SignalNumber>().ok().map(SignalNumber::number)
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "SIGTERM", "sigterm", "15", " 15", "015"] {
            assert_eq!(number(text), Some(15), "{text}");
        }
        for text in ["37", "SIGRTMIN+3", "RTMIN+3", "rtmin+3", "sigrtmax-27", "RTMAX-27"] {
            assert_eq!(number(text), Some(37), "{text}");
        }
        assert_eq!((number("SIGRTMIN"), number("RTMAX")), (Some(34), Some(64)));
        assert_eq!(
            (number("IOT"), number("SIGCLD"), number("POLL")),
            (Some(6), Some(17), Some(29))
        );
        for text in [
            "0",
            "65",
            "-1",
            "+9",
            "TERMS",
            "",
            "SIG",
            "SIG15",
            "RTMIN-1",
            "RTMIN+31",
            "RTMAX-31",
            "RTMAX+1",
            "RTMIN+",
            "RTMIN+99999999999",
            "99999999999",
            "TERM\0",
        ] {
            assert_eq!(number(text), None, "{text}");
        }
        // The standard numbers are the table's indexes.
        assert!(SIGNALS[..31].iter().map(|(_, number)| *number).eq(1..=31));
    }

    #[test]
    fn every_number_is_read_from_its_own_text() {
        for known in 1..=64 {
            assert_eq!(number(&SignalNumber(known).to_string()), Some(known));
        }
        assert_eq!(serde_json::to_string(&SignalNumber(37)).unwrap(), "\"SIGRTMIN+3\"");
        assert!(serde_json::from_str::<SignalNumber>("\"SIGNOPE\"").is_err());
    }
}
