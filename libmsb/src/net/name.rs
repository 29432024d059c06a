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

/// A pattern of host names: a name, or `*.NAME` for a name and all names below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern {
    name: HostName,
    /// True if names below it match too.
    below: bool,
}

text_in_json!(NamePattern);

impl NamePattern {
    /// Returns whether a name matches.
    pub fn matches(&self, name: &HostName) -> bool {
        if self.below { name.is_within(&self.name) } else { *name == self.name }
    }

    /// Returns whether every name that matches `other` matches this pattern.
    pub fn includes(&self, other: &NamePattern) -> bool {
        self.matches(&other.name) && (self.below || !other.below)
    }
}

impl FromStr for NamePattern {
    type Err = Failure;

    fn from_str(text: &str) -> Result<NamePattern, Failure> {
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name: HostName = name.parse()?;
        if name.as_str().parse::<std::net::IpAddr>().is_ok() {
            return Err(Failure::usage(format!("'{}' is an address", name.as_str()))
                .hint("name the host by its DNS name: TLS verifies names"));
        }
        Ok(NamePattern { name, below })
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> NamePattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_pattern_matches_a_name_and_with_a_star_the_names_below_it() {
        let name = |text: &str| text.parse::<HostName>().unwrap();
        assert!(pattern("a.test").matches(&name("A.test.")));
        assert!(!pattern("a.test").matches(&name("b.a.test")));
        for below in ["a.test", "b.a.test", "c.b.a.test"] {
            assert!(pattern("*.a.test").matches(&name(below)), "{below}");
        }
        assert!(!pattern("*.a.test").matches(&name("ba.test")));
        assert!(pattern("*.a.test").includes(&pattern("b.a.test")));
        assert!(pattern("*.a.test").includes(&pattern("*.a.test")));
        assert!(!pattern("a.test").includes(&pattern("*.a.test")));
        for wrong in ["*", "*.", "*a.test", "1.2.3.4", "a b", ""] {
            assert!(wrong.parse::<NamePattern>().is_err(), "{wrong}");
        }
        assert_eq!(pattern("*.A.test").to_string(), "*.a.test");
    }

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
