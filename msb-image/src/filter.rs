//! Conditions that select images: `until=24h`, `label=team=ml`, `label!=keep`.

use std::collections::BTreeMap;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use libmsb::cli::args::{parse_duration, parse_label};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;

/// A condition on an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ImageFilter {
    /// The image was stored before this time.
    Until(Timestamp),
    /// The image has, or does not have, the label with any value or with this one.
    Label { key: String, value: Option<String>, wanted: bool },
}

impl ImageFilter {
    pub(crate) fn matches(&self, stored: Timestamp, labels: &BTreeMap<String, String>) -> bool {
        match self {
            ImageFilter::Until(time) => stored < *time,
            ImageFilter::Label { key, value, wanted } => {
                let found = labels.get(key);
                let has =
                    found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found));
                has == *wanted
            }
        }
    }
}

impl FromStr for ImageFilter {
    type Err = Failure;

    fn from_str(text: &str) -> Result<ImageFilter, Failure> {
        if let Some(time) = text.strip_prefix("until=") {
            return until(time, Timestamp::now()).map(ImageFilter::Until);
        }
        if let Some(label) = text.strip_prefix("label=") {
            return with_label(label, true);
        }
        if let Some(label) = text.strip_prefix("label!=") {
            return with_label(label, false);
        }
        Err(Failure::usage(format!("invalid filter '{}'", escape(text)))
            .hint("use until=24h, until=2026-01-31, label=KEY, label=KEY=VALUE or label!=KEY"))
    }
}

fn with_label(text: &str, wanted: bool) -> Result<ImageFilter, Failure> {
    let (key, value) = parse_label(text)?;
    let value = text.contains('=').then_some(value);
    Ok(ImageFilter::Label { key, value, wanted })
}

/// Parses a time, the start of a day in the local time zone, or an age.
fn until(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    if let Ok(day) = text.parse::<Date>()
        && let Ok(day) = day.to_zoned(TimeZone::system())
    {
        return Ok(day.timestamp());
    }
    let wrong = || {
        Failure::usage(format!("invalid time '{}'", escape(text)))
            .hint("use a duration such as 24h, a date such as 2026-01-31, or an RFC 3339 time")
    };
    let ago = parse_duration(text).map_err(|_| wrong())?;
    now.checked_sub(ago).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filter: &str, labels: &[(&str, &str)]) -> bool {
        let labels =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        filter.parse::<ImageFilter>().unwrap().matches(Timestamp::UNIX_EPOCH, &labels)
    }

    #[test]
    fn a_label_is_there_or_has_a_value_or_neither() {
        let labels = [("team", "ml"), ("empty", "")];
        assert!(matches("label=team", &labels));
        assert!(matches("label=team=ml", &labels));
        assert!(!matches("label=team=ops", &labels));
        assert!(matches("label=empty=", &labels));
        assert!(!matches("label=other", &labels));
        assert!(matches("label!=other", &labels));
        assert!(!matches("label!=team=ml", &labels));
        assert!(matches("label!=team=ops", &labels));
    }

    #[test]
    fn a_time_has_three_formats() {
        let now: Timestamp = "2026-03-02T00:00:00Z".parse().unwrap();
        let time = |text: &str| until(text, now).unwrap().to_string();
        assert_eq!(time("24h"), "2026-03-01T00:00:00Z");
        assert_eq!(time("2026-01-01T00:00:00+01:00"), "2025-12-31T23:00:00Z");
        assert!(time("2026-01-31").starts_with("2026-01-3"));
        assert!(until("soon", now).is_err());
        assert!("size=1".parse::<ImageFilter>().is_err());
        assert!(matches("until=1h", &[]));
    }
}
