//! Filters of listings, with the keys of docker.

use std::str::FromStr;

use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::selector::Selector;
use libmsb::state::Home;
use libmsb::state::image_name::ImageName;
use libmsb::state::sandboxes::{SandboxEntry, SandboxSnapshot};
use libmsb::state::status::State;

/// State names of a filter: those of msb in lower case, and docker's `exited`.
const STATES: [(&str, &[State]); 8] = [
    ("created", &[State::Created]),
    ("starting", &[State::Starting]),
    ("running", &[State::Running]),
    ("paused", &[State::Paused]),
    ("stopping", &[State::Stopping]),
    ("stopped", &[State::Stopped]),
    ("crashed", &[State::Crashed]),
    ("exited", &[State::Stopped, State::Crashed]),
];

/// A condition on sandboxes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// `ancestor=IMAGE`: the sandbox was created from this image.
    Ancestor(ImageName),
    /// `label=KEY[=VALUE]`: the sandbox has the label.
    Label(Selector),
    /// `name=TEXT`: the name contains the text.
    Name(String),
    /// `status=STATE`: the sandbox is in one of these states.
    Status(&'static [State]),
}

impl Filter {
    /// Returns whether a sandbox meets the filters: every label, and one of the images, one of the
    /// names and one of the states if there are any.
    pub(super) fn all_match(
        home: &Home,
        filters: &[Filter],
        entry: &SandboxEntry,
    ) -> anyhow::Result<bool> {
        let seen = entry.seen.as_ref().ok();
        let is_labelled =
            |selector: &Selector| seen.is_some_and(|seen| selector.matches(&seen.spec.labels));
        let (mut image, mut name, mut status) = (None, None, None);
        for filter in filters {
            match filter {
                Filter::Label(selector) if !is_labelled(selector) => return Ok(false),
                Filter::Label(_) => {}
                Filter::Ancestor(name) => {
                    let is_from = seen.map_or(Ok(false), |seen| is_from(home, name, seen))?;
                    image = Some(image.unwrap_or(false) || is_from);
                }
                Filter::Name(text) => {
                    name = Some(name.unwrap_or(false) || entry.name.contains(text));
                }
                Filter::Status(states) => {
                    let has_state = seen.is_some_and(|seen| states.contains(&seen.state));
                    status = Some(status.unwrap_or(false) || has_state);
                }
            }
        }
        Ok(image.unwrap_or(true) && name.unwrap_or(true) && status.unwrap_or(true))
    }

    /// Returns whether the filter selects states.
    pub(super) fn is_status(&self) -> bool {
        matches!(self, Filter::Status(_))
    }
}

/// Returns whether a sandbox was created from an image, by its name, digest or ID.
fn is_from(home: &Home, name: &ImageName, seen: &SandboxSnapshot) -> anyhow::Result<bool> {
    let Some(image) = seen.spec.root.image() else { return Ok(false) };
    let is_digest = name.reference().digest() == Some(&image.manifest_digest);
    let is_same = || name.matches(&home.images(), &image.reference, &image.manifest_digest);
    Ok(is_digest || is_same()?)
}

impl FromStr for Filter {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Filter, Failure> {
        let wrong = || {
            Failure::usage(format!(
                "'{}' is not one of ancestor=IMAGE, label=KEY[=VALUE], name=TEXT and status=STATE",
                escape(text)
            ))
        };
        match text.split_once('=').ok_or_else(wrong)? {
            ("ancestor", image) => image.parse().map(Filter::Ancestor),
            ("label", selector) => selector.parse().map(Filter::Label),
            ("name", name) if !name.is_empty() => Ok(Filter::Name(name.to_owned())),
            ("status", status) => {
                let status = status.to_ascii_lowercase();
                let known = STATES.iter().find(|(name, _)| *name == status);
                let names: Vec<&str> = STATES.iter().map(|(name, _)| *name).collect();
                known.map(|(_, states)| Filter::Status(states)).ok_or_else(|| {
                    Failure::usage(format!(
                        "'{}' is not a status: {}",
                        escape(&status),
                        names.join(", ")
                    ))
                })
            }
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(name: &str) -> SandboxEntry {
        SandboxEntry { name: name.to_owned(), seen: Err(anyhow::anyhow!("unreadable")) }
    }

    fn matches(filters: &[&str], name: &str) -> bool {
        let filters: Vec<Filter> = filters.iter().map(|filter| filter.parse().unwrap()).collect();
        let home = Home::at(std::path::Path::new("/nonexistent"));
        Filter::all_match(&home, &filters, &broken(name)).unwrap()
    }

    #[test]
    fn a_filter_has_a_key_of_docker() {
        assert_eq!("status=Running".parse(), Ok(Filter::Status(&[State::Running])));
        assert!(matches!("label=a=b".parse(), Ok(Filter::Label(_))));
        for text in ["", "x", "name=", "label=", "status=", "status=dead", "ancestor=A"] {
            assert!(text.parse::<Filter>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_alternatives() {
        assert!(matches(&["name=a", "name=b"], "xby") && !matches(&["name=a", "name=b"], "x"));
        assert!(matches(&[], "x"));
        assert!(!matches(&["ancestor=a"], "x"));
        assert!(!matches(&["status=running"], "x") && !matches(&["label=a"], "x"));
    }
}
