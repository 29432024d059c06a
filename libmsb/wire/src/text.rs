//! Byte strings of Unix (arguments, environment variables, paths) in JSON.
//!
//! They may hold any byte but NUL. UTF-8 is encoded as a JSON string, anything else as `{"hex":
//! "…"}`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A string that need not be UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text(pub Vec<u8>);

impl Text {
    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the string as an [`OsStr`].
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// Returns the string with bytes that are not UTF-8 replaced, for people.
    pub fn to_lossy(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        Text(text.as_bytes().to_vec())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Text {
        Text(text.into_bytes())
    }
}

impl From<OsString> for Text {
    fn from(text: OsString) -> Text {
        Text(text.into_vec())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum TextForm {
    Utf8(String),
    Raw { hex: String },
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => TextForm::Raw { hex: to_hex(&self.0) }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        let bytes = match TextForm::deserialize(deserializer)? {
            TextForm::Utf8(text) => text.into_bytes(),
            TextForm::Raw { hex } => from_hex(&hex)
                .ok_or_else(|| D::Error::custom("not a string of hexadecimal digits"))?,
        };
        if bytes.contains(&0) {
            return Err(D::Error::custom("a string holds a NUL byte"));
        }
        Ok(Text(bytes))
    }
}

/// Returns lowercase hexadecimal digits, two for each byte.
pub fn to_hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

/// Parses hexadecimal digits; `None` if the text is invalid.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let value = |byte: u8| char::from(byte).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some((value(*pair.first()?)? * 16 + value(*pair.get(1)?)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_but_nul_survive_json() {
        for bytes in [&b""[..], b"plain", "gr\u{fc}n".as_bytes(), b"\xff\xfe/x", b"quote\"\\\n"] {
            let text = Text(bytes.to_vec());
            let json = serde_json::to_string(&text).unwrap();
            assert_eq!(serde_json::from_str::<Text>(&json).unwrap(), text, "{json}");
        }
        assert_eq!(serde_json::to_string(&Text(vec![0xff])).unwrap(), r#"{"hex":"ff"}"#);
    }

    #[test]
    fn what_cannot_be_an_argument_is_refused() {
        for json in [r#""a\u0000b""#, r#"{"hex":"f"}"#, r#"{"hex":"zz"}"#, r#"{"hex":"00"}"#, "1"] {
            assert!(serde_json::from_str::<Text>(json).is_err(), "{json}");
        }
    }
}
