//! Selection of sandboxes by labels.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::cli::args::parse_label;
use crate::cli::error::Failure;

/// A condition: `key=value` requires that value, `key` alone any value of the key. The rule of
/// docker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    key: String,
    value: Option<String>,
}

impl Selector {
    /// Returns whether the labels meet the condition.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        match (&self.value, labels.get(&self.key)) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(wanted), Some(value)) => wanted == value,
        }
    }

    /// Returns whether the labels meet every condition. Without conditions every sandbox is
    /// selected.
    pub fn all_match(selectors: &[Selector], labels: &BTreeMap<String, String>) -> bool {
        selectors.iter().all(|selector| selector.matches(labels))
    }
}

impl FromStr for Selector {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Selector, Failure> {
        let (key, value) = parse_label(text)?;
        Ok(Selector { key, value: text.contains('=').then_some(value) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        selector.parse::<Selector>().unwrap().matches(&labels)
    }

    #[test]
    fn a_key_alone_asks_for_the_key_and_with_a_value_for_both() {
        assert!(selects("team", &[("team", "ml")]) && selects("team", &[("team", "")]));
        assert!(selects("team=ml", &[("a", "b"), ("team", "ml")]));
        assert!(selects("team=", &[("team", "")]) && !selects("team=", &[("team", "ml")]));
        assert!(!selects("team", &[("teams", "ml")]) && !selects("team=ml", &[("team", "m")]));
    }

    #[test]
    fn several_conditions_must_all_be_met() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let both = ["a=1".parse().unwrap(), "b".parse().unwrap()];
        assert!(Selector::all_match(&[], &labels));
        assert!(Selector::all_match(&both[..1], &labels) && !Selector::all_match(&both, &labels));
    }
}
