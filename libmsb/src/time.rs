//! Times in JSON and in stored files: RFC 3339 in UTC with the offset `+00:00`, and 0, 3 or 6
//! digits of the second. Texts in this form sort by time, and Python 3.7 and later parse them.
//!
//! jiff's own form (`Z`, up to 9 digits) is not compiled in, so a field of a time needs
//! `#[serde(with = "libmsb::time")]`, or [`optional`] with a default. Both forms are read: earlier
//! versions wrote jiff's.

use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::Serializer;

/// 0000-01-01T00:00:00Z, in seconds since 1970.
const FIRST_SECOND: i64 = -62_167_219_200;

/// Returns the time as text.
pub fn text(time: Timestamp) -> String {
    let micros = time.subsec_nanosecond().unsigned_abs() / 1000;
    // Texts of times before 1970 use the same digits: strftime works on the calendar's fields.
    let form = match micros {
        0 => "%Y-%m-%dT%H:%M:%S+00:00",
        _ if micros.is_multiple_of(1000) => "%Y-%m-%dT%H:%M:%S%.3f+00:00",
        _ => "%Y-%m-%dT%H:%M:%S%.6f+00:00",
    };
    time.strftime(form).to_string()
}

/// Serializes the time as [`text`].
pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text(*time))
}

/// Deserializes a time in RFC 3339, with any offset.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    parse(&text).map_err(D::Error::custom)
}

/// Parses a time in RFC 3339. In UTC its year must have four digits (section 5.6), or [`text`]
/// would write what is no such time.
fn parse(text: &str) -> Result<Timestamp, String> {
    let time: Timestamp = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    // The largest timestamp is in the year 9999.
    if time.as_second() < FIRST_SECOND {
        return Err(format!("the time '{text}' is before the year 0"));
    }
    Ok(time)
}

/// The same for a time that may be missing.
pub mod optional {
    use super::{Deserialize, Deserializer, Error, Serializer, Timestamp};

    /// Serializes the time, or null.
    pub fn serialize<S: Serializer>(
        time: &Option<Timestamp>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => serializer.serialize_some(&super::text(*time)),
            None => serializer.serialize_none(),
        }
    }

    /// Deserializes a time or null.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| super::parse(&text).map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Times {
        #[serde(with = "crate::time")]
        at: Timestamp,
        #[serde(with = "crate::time::optional", default)]
        end: Option<Timestamp>,
    }

    #[test]
    fn a_time_has_a_numeric_offset_and_at_most_6_digits() {
        for (nanosecond, shown) in [
            (0, "2026-11-23T14:05:09+00:00"),
            (999, "2026-11-23T14:05:09+00:00"),
            (500_000_000, "2026-11-23T14:05:09.500+00:00"),
            (123_456_789, "2026-11-23T14:05:09.123456+00:00"),
            (1_000, "2026-11-23T14:05:09.000001+00:00"),
        ] {
            let second: Timestamp = "2026-11-23T14:05:09Z".parse().unwrap();
            let time = Timestamp::new(second.as_second(), nanosecond).unwrap();
            assert_eq!(text(time), shown);
        }
        assert_eq!(
            text(Timestamp::new(-1, -500_000_000).unwrap()),
            "1969-12-31T23:59:58.500+00:00"
        );
    }

    #[test]
    fn both_forms_are_read_and_one_is_written() {
        let read = |json: &str| serde_json::from_str::<Times>(json).unwrap();
        let old = read(r#"{"at":"2026-11-23T14:05:09.25Z","end":null}"#);
        assert_eq!(old, read(r#"{"at":"2026-11-23T15:05:09.250+01:00"}"#));
        assert_eq!(
            serde_json::to_string(&old).unwrap(),
            r#"{"at":"2026-11-23T14:05:09.250+00:00","end":null}"#
        );
        for text in ["yesterday", "-9999-01-02T01:59:59Z", "0000-01-01T00:00:00+01:00"] {
            let json = format!(r#"{{"at":"{text}"}}"#);
            assert!(serde_json::from_str::<Times>(&json).is_err(), "{text}");
        }
    }
}
