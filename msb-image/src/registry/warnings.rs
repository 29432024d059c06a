//! Warnings of a registry: the `Warning` headers of its responses.
//!
//! The distribution specification takes them from RFC 7234: code 299, agent `-` and a quoted text.
//! They are printed once each. Nothing else depends on them.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use libmsb::cli::error::warn;
use libmsb::cli::escape::escape;
use ureq::Body;
use ureq::http::Response;

/// Maximum of different warnings that are printed, and of characters of each.
const WARNINGS_MAX: usize = 8;
const CHARACTERS_MAX: usize = 200;

/// Warnings that were printed.
#[derive(Debug, Default)]
pub(super) struct RegistryWarnings {
    printed: Mutex<BTreeSet<String>>,
}

impl RegistryWarnings {
    /// Prints the new warnings of a response.
    pub(super) fn report(&self, registry: &str, response: &Response<Body>) {
        for value in response.headers().get_all("warning") {
            let Some(text) = parse(&String::from_utf8_lossy(value.as_bytes())) else { continue };
            let mut printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
            if printed.len() < WARNINGS_MAX && printed.insert(text.clone()) {
                warn(&format!("registry '{registry}' says: {}", escape(&text)));
            }
        }
    }
}

/// Returns the text of `299 - "TEXT"`. A backslash quotes the character after it.
fn parse(value: &str) -> Option<String> {
    let quoted = value.trim().strip_prefix("299 - \"")?;
    let mut text = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => break,
            '\\' => text.push(characters.next()?),
            character => text.push(character),
        }
    }
    let text: String = text.chars().take(CHARACTERS_MAX).collect();
    (!text.trim().is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_has_the_code_299_and_a_quoted_text() {
        assert_eq!(parse(r#"299 - "Your \"account\" ends""#).unwrap(), r#"Your "account" ends"#);
        for other in [r#"199 - "x""#, "299 - x", r#"299 - "x"#, r#"299 - "x\"#, r#"299 - " ""#, ""]
        {
            assert_eq!(parse(other), None, "{other}");
        }
        let long = format!(r#"299 - "{}""#, "x".repeat(1000));
        assert_eq!(parse(&long).unwrap().len(), CHARACTERS_MAX);
    }
}
