//! Host names in rules, DNS and TLS: compared without case and without a trailing dot.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cli::error::Failure;
use crate::cli::escape::escape;

/// Longest name, in bytes as text (RFC 1035, 2.3.4).
pub const NAME_BYTES_MAX: usize = 253;
/// Longest label, in bytes (RFC 1035, 2.3.4).
const LABEL_BYTES_MAX: usize = 63;

/// A host name in canonical form: lower case, no trailing dot. Labels consist of letters, digits,
/// `-` and `_`, so a printed name is safe. Internationalized names have their `xn--` form (RFC
/// 5891).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

text_in_json!(HostName);

impl HostName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the number of labels.
    pub fn labels(&self) -> usize {
        self.0.split('.').count()
    }

    /// Returns whether the name is `suffix` or below it.
    pub fn is_within(&self, suffix: &HostName) -> bool {
        let Some(rest) = self.0.strip_suffix(&suffix.0) else {
            return false;
        };
        rest.is_empty() || rest.ends_with('.')
    }
}

impl FromStr for HostName {
    type Err = Failure;

    fn from_str(text: &str) -> Result<HostName, Failure> {
        let wrong = || Failure::usage(format!("'{}' is not a host name", escape(text)));
        if !text.is_ascii() {
            return Err(wrong().hint("write internationalized names in their xn-- form"));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let label =
            |label: &str| (1..=LABEL_BYTES_MAX).contains(&label.len()) && label.bytes().all(letter);
        if name.len() > NAME_BYTES_MAX || !name.split('.').all(label) {
            return Err(wrong());
        }
        Ok(HostName(name))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    #[test]
    fn case_and_a_last_dot_make_no_other_name() {
        assert_eq!(name("WWW.Example.COM."), name("www.example.com"));
        let long = "a".repeat(64);
        for text in
            ["", ".", "..", "a..b", ".a", "a b", "a/b", "bücher.example", &long, &"a.".repeat(127)]
        {
            assert_eq!(text.parse::<HostName>().is_ok(), text.len() == 254, "{text}");
        }
        assert!(format!("{}a", "a.".repeat(127)).parse::<HostName>().is_err());
    }

    #[test]
    fn a_name_is_within_itself_and_its_parents_and_not_within_its_neighbours() {
        assert!(name("a.example.com").is_within(&name("example.com")));
        assert!(name("example.com").is_within(&name("example.com")));
        assert!(!name("badexample.com").is_within(&name("example.com")));
        assert!(!name("example.com.evil.net").is_within(&name("example.com")));
        assert!(!name("com").is_within(&name("example.com")));
    }
}
