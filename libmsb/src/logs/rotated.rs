//! Files that are renamed when they are full: `x.log` becomes `x.log.1`, that becomes `x.log.2`, and so on.
//!
//! They are opened from the newest to the oldest: one that is renamed meanwhile is met twice, which shows, and none is
//! passed over. A file that is open goes on to be read under whatever name, so a reader that keeps up misses nothing.
//!
//! A [`Cursor`] must survive rotations, restarts and copies of the folder. Numbers of inodes do not (a deleted file's
//! number is given to the next one), so a file is known by a hash of its first line, which holds a time.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::OpenError;
use crate::jsonl::LINE_BYTES_MAX;

/// A whole line, its end included.
pub(super) type Line = Vec<u8>;

/// More files than any log of ours keeps.
const FILES_MAX: u32 = 64;

/// A place in a log, behind a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Hash of the first line of the file.
    file: u64,
    /// Bytes of the file that were read.
    offset: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.file, self.offset)
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Cursor, String> {
        let parts = text.split_once('-').filter(|(file, _)| file.len() == 16);
        let cursor = parts.and_then(|(file, offset)| {
            Some(Cursor {
                file: u64::from_str_radix(file, 16).ok()?,
                offset: offset.parse().ok()?,
            })
        });
        cursor.ok_or_else(|| "not a cursor, as --show-cursor prints them".to_owned())
    }
}

/// The log that a cursor stands in was rotated away, or belongs to another sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissedRotation;

impl fmt::Display for MissedRotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the place of the cursor is gone from the log (MissedRotation)")
    }
}

impl std::error::Error for MissedRotation {}

/// An open file of a log.
#[derive(Debug)]
struct Part {
    input: BufReader<File>,
    identity: (u64, u64),
    /// Hash of its first line, once that is known.
    hash: Option<u64>,
    offset: u64,
    /// The begin of a line whose end has not been written.
    partial: Vec<u8>,
}

impl Part {
    fn open(path: &Path) -> io::Result<Option<Part>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        Ok(Some(Part {
            input: BufReader::with_capacity(64 * 1024, file),
            identity: (metadata.dev(), metadata.ino()),
            hash: None,
            offset: 0,
            partial: Vec::new(),
        }))
    }

    /// The next whole line. One that is too long comes in pieces.
    fn next_line(&mut self) -> io::Result<Option<Line>> {
        use std::io::Read;
        let room = LINE_BYTES_MAX.saturating_sub(self.partial.len() as u64);
        self.input
            .by_ref()
            .take(room)
            .read_until(b'\n', &mut self.partial)?;
        let whole =
            self.partial.last() == Some(&b'\n') || self.partial.len() as u64 >= LINE_BYTES_MAX;
        if !whole {
            return Ok(None);
        }
        let line = std::mem::take(&mut self.partial);
        if self.offset == 0 {
            self.hash = Some(hash(&line));
        }
        self.offset += line.len() as u64;
        Ok(Some(line))
    }

    /// Goes to the place of a cursor. `false` when it is not in this file.
    fn seek(&mut self, cursor: &Cursor) -> io::Result<bool> {
        let length = self.input.get_ref().metadata()?.len();
        if self.next_line()?.is_none() || self.hash != Some(cursor.file) || cursor.offset > length {
            return Ok(false);
        }
        self.input.seek(SeekFrom::Start(cursor.offset))?;
        self.offset = cursor.offset;
        Ok(true)
    }
}

/// FNV-1a: good enough to tell some files apart, and the same in every build.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Reads the lines of a log over all its files.
#[derive(Debug)]
pub(super) struct RotatedReader {
    path: PathBuf,
    /// Oldest first. The first is being read.
    parts: VecDeque<Part>,
}

impl RotatedReader {
    /// Opens what is there, behind a cursor if there is one.
    pub(super) fn open(path: PathBuf, after: Option<&Cursor>) -> Result<RotatedReader, OpenError> {
        let mut reader = RotatedReader {
            parts: parts(&path, None)?,
            path,
        };
        let Some(cursor) = after else {
            return Ok(reader);
        };
        while let Some(part) = reader.parts.front_mut() {
            if part.seek(cursor)? {
                return Ok(reader);
            }
            reader.parts.pop_front();
        }
        Err(OpenError::Missed(MissedRotation))
    }

    /// The next line; `None` when there is none for now.
    pub(super) fn next_line(&mut self) -> io::Result<Option<Line>> {
        loop {
            if let Some(line) = self
                .parts
                .front_mut()
                .map(Part::next_line)
                .transpose()?
                .flatten()
            {
                return Ok(Some(line));
            }
            if self.parts.len() > 1 {
                self.parts.pop_front();
                continue;
            }
            let newer = parts(&self.path, self.parts.front().map(|part| part.identity))?;
            if newer.is_empty() {
                return Ok(None);
            }
            self.parts.extend(newer);
            if self.parts.len() == 1 {
                continue;
            }
            // It may have grown between the last look and its renaming.
            if let Some(line) = self
                .parts
                .front_mut()
                .map(Part::next_line)
                .transpose()?
                .flatten()
            {
                return Ok(Some(line));
            }
        }
    }

    /// Behind the last line that was given; `None` before the first.
    pub(super) fn cursor(&self) -> Option<Cursor> {
        let part = self.parts.front()?;
        Some(Cursor {
            file: part.hash?,
            offset: part.offset,
        })
    }
}

/// The files of a log, oldest first; if one is known already, only those that are newer.
fn parts(path: &Path, known: Option<(u64, u64)>) -> io::Result<VecDeque<Part>> {
    let mut parts: VecDeque<Part> = VecDeque::new();
    let mut missing = 0;
    for number in 0..FILES_MAX {
        let Some(part) = Part::open(&numbered(path, number))? else {
            // Between two renames of a rotation one name is missing, and no two.
            missing += 1;
            if missing == 2 {
                break;
            }
            continue;
        };
        if known == Some(part.identity) {
            break;
        }
        if !parts.iter().any(|other| other.identity == part.identity) {
            parts.push_front(part);
        }
    }
    Ok(parts)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    /// A log as the supervisor writes it: two files are kept beside the current one.
    struct Log(tempfile::TempDir);

    impl Log {
        fn new() -> Log {
            Log(tempfile::tempdir().unwrap())
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("x.log")
        }

        fn write(&self, text: &str) {
            let file = File::options().append(true).create(true).open(self.path());
            file.unwrap().write_all(text.as_bytes()).unwrap();
        }

        fn rotate(&self) {
            for number in [1, 0] {
                let _ = fs::rename(
                    numbered(&self.path(), number),
                    numbered(&self.path(), number + 1),
                );
            }
        }

        fn reader(&self, after: Option<&Cursor>) -> Result<RotatedReader, OpenError> {
            RotatedReader::open(self.path(), after)
        }
    }

    fn rest(reader: &mut RotatedReader) -> String {
        let mut text = Vec::new();
        while let Some(line) = reader.next_line().unwrap() {
            text.extend(line);
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_reader_goes_on_over_rotations_and_waits_for_the_end_of_a_line() {
        let log = Log::new();
        let mut reader = log.reader(None).unwrap();
        assert_eq!(rest(&mut reader), "");
        log.write("1\n2\n");
        assert_eq!(rest(&mut reader), "1\n2\n");
        log.write("3\n");
        log.rotate();
        log.write("4\n");
        log.rotate();
        log.write("5\nhal");
        assert_eq!(rest(&mut reader), "3\n4\n5\n");
        log.write("f\n");
        assert_eq!(rest(&mut reader), "half\n");
        assert_eq!(
            rest(&mut log.reader(None).unwrap()),
            "1\n2\n3\n4\n5\nhalf\n"
        );
    }

    #[test]
    fn a_cursor_survives_rotation_and_says_when_its_place_is_gone() {
        let log = Log::new();
        log.write("first\nsecond\n");
        let mut reader = log.reader(None).unwrap();
        reader.next_line().unwrap();
        let cursor: Cursor = reader.cursor().unwrap().to_string().parse().unwrap();
        for expected in ["second\n", "second\nnew 1\n", "second\nnew 1\nnew 2\n"] {
            assert_eq!(rest(&mut log.reader(Some(&cursor)).unwrap()), expected);
            log.rotate();
            log.write(&format!("new {}\n", expected.lines().count()));
        }
        let missed = log.reader(Some(&cursor)).unwrap_err();
        assert!(
            matches!(missed, OpenError::Missed(MissedRotation)),
            "{missed}"
        );
        assert!("x".parse::<Cursor>().is_err());
        let beyond = Cursor {
            offset: 1000,
            ..log
                .reader(None)
                .map(|mut reader| {
                    reader.next_line().unwrap();
                    reader.cursor().unwrap()
                })
                .unwrap()
        };
        assert!(log.reader(Some(&beyond)).is_err());
    }

    #[test]
    fn a_cursor_at_the_end_of_a_full_file_goes_on_in_the_next() {
        let log = Log::new();
        log.write("a\n");
        let mut reader = log.reader(None).unwrap();
        rest(&mut reader);
        let cursor = reader.cursor().unwrap();
        log.rotate();
        log.write("b\n");
        assert_eq!(rest(&mut log.reader(Some(&cursor)).unwrap()), "b\n");
    }
}
