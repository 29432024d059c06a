//! JSON Lines: output and input of one object per line, with a limit on the line's length.
//!
//! Strings may come from a guest, an image or a registry, and the output may go to a terminal. JSON
//! itself escapes only the C0 control characters. So the C1 control characters, DEL, and characters
//! that change the direction of text or are invisible are written as `\u` escapes here: the same
//! data to a parser, and harmless on a screen.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, BufRead, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

use crate::cli::escape::is_safe;

/// Longest line, in bytes, the newline included.
pub const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// Writes a value as one line, in one write. So lines of several processes that append to a file do
/// not mix.
pub fn write<T: Serialize>(out: &mut impl Write, value: &T) -> io::Result<()> {
    let mut line = Vec::with_capacity(128);
    stream(&mut line, value)?;
    line.push(b'\n');
    out.write_all(&line)
}

/// Writes a value without a newline, piece by piece, without buffering it in memory.
pub fn stream<T: Serialize + ?Sized>(out: &mut impl Write, value: &T) -> io::Result<()> {
    Ok(value.serialize(&mut Serializer::with_formatter(out, SafeFormatter(CompactFormatter)))?)
}

/// Returns a value as text without newlines.
pub fn to_string<T: Serialize + ?Sized>(value: &T) -> io::Result<String> {
    let mut text = Vec::with_capacity(128);
    stream(&mut text, value)?;
    String::from_utf8(text).map_err(io::Error::other)
}

/// Returns a value as indented text.
pub fn to_string_pretty<T: Serialize + ?Sized>(value: &T) -> io::Result<String> {
    let mut text = Vec::with_capacity(128);
    value.serialize(&mut Serializer::with_formatter(
        &mut text,
        SafeFormatter(PrettyFormatter::new()),
    ))?;
    String::from_utf8(text).map_err(io::Error::other)
}

/// Returns JSON text of another program with terminal-unsafe characters escaped. Outside of strings
/// JSON has none of them.
pub fn escape_text(json: &str) -> Cow<'_, str> {
    // Whitespace between tokens is kept.
    let passes = |character: char| is_safe(character) || matches!(character, '\n' | '\r' | '\t');
    if json.chars().all(passes) {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len() + 32);
    for character in json.chars() {
        if passes(character) {
            safe.push(character);
        } else {
            escape_char(&mut safe, character);
        }
    }
    Cow::Owned(safe)
}

/// Appends `\uXXXX`, or two of them for a character outside the Basic Multilingual Plane.
fn escape_char(safe: &mut String, character: char) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        // Writing to a string cannot fail.
        let _ = write!(safe, "\\u{unit:04x}");
    }
}

/// A formatter of serde_json whose strings are safe for a terminal.
struct SafeFormatter<F>(F);

/// Forwards calls to the inner formatter.
macro_rules! pass_on {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        $(fn $name<W: ?Sized + Write>(&mut self, writer: &mut W $(, $argument: $kind)*) -> io::Result<()> {
            self.0.$name(writer $(, $argument)*)
        })*
    };
}

impl<F: Formatter> Formatter for SafeFormatter<F> {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        writer.write_all(escape_text(fragment).as_bytes())
    }

    pass_on! {
        begin_array();
        end_array();
        begin_array_value(first: bool);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first: bool);
        end_object_key();
        begin_object_value();
        end_object_value();
    }
}

/// Reads the next line; `None` at the end. A line that has no newline, is too long, or is not such
/// a value is an error with the line's number.
pub fn read<T: DeserializeOwned>(input: &mut impl BufRead, number: u64) -> io::Result<Option<T>> {
    use std::io::Read;
    let wrong =
        |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("line {number}: {what}"));
    let mut line = Vec::new();
    if input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        let long = line.len() as u64 == LINE_BYTES_MAX;
        return Err(wrong(if long {
            format!("longer than {LINE_BYTES_MAX} bytes")
        } else {
            "is cut off".to_owned()
        }));
    }
    serde_json::from_slice(&line).map(Some).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_as_they_were_written() {
        let mut text = Vec::new();
        write(&mut text, &("a\nb", 1)).unwrap();
        write(&mut text, &("c", 2)).unwrap();
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 2);
        let mut input = &text[..];
        assert_eq!(read(&mut input, 1).unwrap(), Some(("a\nb".to_owned(), 1)));
        assert_eq!(read(&mut input, 2).unwrap(), Some(("c".to_owned(), 2)));
        assert_eq!(read::<(String, i32)>(&mut input, 3).unwrap(), None);
    }

    /// Characters that a terminal interprets and JSON does not escape: CSI of C1, DEL, direction
    /// marks, a tag.
    const HOSTILE: &str = "a\u{9b}31m\u{7f}\u{80}\u{9f}\u{61c}\u{200e}\u{200f}\u{202a}\u{202e}\u{2066}\u{2069}\u{e0041}\u{1b}";

    #[test]
    fn what_a_terminal_acts_upon_is_escaped_and_stays_the_same_data() {
        let value =
            serde_json::json!({ HOSTILE: [HOSTILE, "gr\u{fc}n \u{65e5}\u{1f600}\n"], "n": 1.5 });
        let mut line = Vec::new();
        write(&mut line, &value).unwrap();
        let raw = escape_text(&serde_json::to_string_pretty(&value).unwrap()).into_owned();
        let pretty = to_string_pretty(&value).unwrap();
        assert_eq!(raw, pretty);
        for text in [String::from_utf8(line).unwrap(), pretty, to_string(&value).unwrap()] {
            let unsafe_left =
                text.chars().find(|character| !is_safe(*character) && *character != '\n');
            assert_eq!(unsafe_left, None, "{text}");
            assert!(text.contains("\\u009b31m") && text.contains("\\u202e"), "{text}");
            assert!(text.contains("gr\u{fc}n \u{65e5}\u{1f600}\\n"), "{text}");
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(read, value);
        }
    }

    #[test]
    fn the_layout_is_that_of_serde_json() {
        let value = serde_json::json!({ "a": [1, {"b": null}, []], "c": {}, "d": "x\"y" });
        assert_eq!(to_string(&value).unwrap(), value.to_string());
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        assert_eq!(to_string_pretty(&value).unwrap(), pretty);
    }

    #[test]
    fn a_bad_line_is_an_error_with_its_number() {
        let error = |mut text: &[u8]| read::<u32>(&mut text, 7).unwrap_err().to_string();
        assert_eq!(error(b"1"), "line 7: is cut off");
        assert!(error(b"x\n").starts_with("line 7: "));
        assert!(error(&vec![b'1'; LINE_BYTES_MAX as usize + 1]).contains("longer than"));
    }
}
