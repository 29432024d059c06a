//! One JSON object a line, with a limit on the line's length.

use std::io::{self, BufRead, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest line, in bytes, its end included.
pub const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// Writes a value as one line, in one write: lines of several processes that append to a file do not mix.
pub fn write<T: Serialize>(out: &mut impl Write, value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    out.write_all(&line)
}

/// Reads the next line; `None` at the end. A line that has no end, or is too long, or is not such a value, is an
/// error that says which line it is.
pub fn read<T: DeserializeOwned>(input: &mut impl BufRead, number: u64) -> io::Result<Option<T>> {
    use std::io::Read;
    let wrong =
        |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("line {number}: {what}"));
    let mut line = Vec::new();
    if input
        .by_ref()
        .take(LINE_BYTES_MAX)
        .read_until(b'\n', &mut line)?
        == 0
    {
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
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|error| wrong(error.to_string()))
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

    #[test]
    fn a_bad_line_is_an_error_with_its_number() {
        let error = |mut text: &[u8]| read::<u32>(&mut text, 7).unwrap_err().to_string();
        assert_eq!(error(b"1"), "line 7: is cut off");
        assert!(error(b"x\n").starts_with("line 7: "));
        assert!(error(&vec![b'1'; LINE_BYTES_MAX as usize + 1]).contains("longer than"));
    }
}
