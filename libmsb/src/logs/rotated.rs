//! Reading across log rotation: `x.log` becomes `x.log.1`, that becomes `x.log.2`, and so on.
//!
//! Files are opened from the newest to the oldest. So a file that is renamed meanwhile is opened
//! twice, which is detected, and none is missed. An open file is read to its end under any name, so
//! a reader that keeps up misses nothing.
//!
//! A [`Cursor`] must survive rotations, restarts and copies of the directory. Inode numbers do not
//! (a new file may get the number of a deleted one), so a file is identified by a hash of its first
//! line, which holds a time.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::OpenError;
use crate::jsonl::LINE_BYTES_MAX;

/// A whole line, its newline included.
pub(super) type Line = Vec<u8>;

/// Limit of rotated files, above that of any log of msb.
const FILES_MAX: u32 = 64;

/// A position in a log, after a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Hash of the first line of the file.
    file: u64,
    /// Offset in the file, in bytes.
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
            Some(Cursor { file: u64::from_str_radix(file, 16).ok()?, offset: offset.parse().ok()? })
        });
        cursor.ok_or_else(|| "not a cursor as printed by --show-cursor".to_owned())
    }
}

/// An error: the file of a cursor was rotated away, or belongs to another sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissedRotation;

impl fmt::Display for MissedRotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the log entries after the cursor were rotated away (MissedRotation)")
    }
}

impl std::error::Error for MissedRotation {}

/// An open file of a log.
#[derive(Debug)]
struct LogFile {
    input: BufReader<File>,
    identity: (u64, u64),
    /// Hash of its first line, once it is known.
    hash: Option<u64>,
    offset: u64,
    /// Start of a line whose newline has not been written yet.
    partial: Vec<u8>,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Option<LogFile>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        Ok(Some(LogFile {
            input: BufReader::with_capacity(64 * 1024, file),
            identity: (metadata.dev(), metadata.ino()),
            hash: None,
            offset: 0,
            partial: Vec::new(),
        }))
    }

    /// Returns the next whole line. A line that is too long is returned in pieces.
    fn next_line(&mut self) -> io::Result<Option<Line>> {
        use std::io::Read;
        let room = LINE_BYTES_MAX.saturating_sub(self.partial.len() as u64);
        self.input.by_ref().take(room).read_until(b'\n', &mut self.partial)?;
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

    /// Seeks to a cursor. `false` if it is in another file.
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

/// FNV-1a: sufficient to distinguish a few files, and the same in every build.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A reader of the lines of a log, over all its files.
#[derive(Debug)]
pub(super) struct RotatedReader {
    path: PathBuf,
    /// Open files, oldest first. The first one is being read.
    parts: VecDeque<LogFile>,
}

impl RotatedReader {
    /// Opens the files of a log, from a cursor on if there is one.
    pub(super) fn open(path: PathBuf, after: Option<&Cursor>) -> Result<RotatedReader, OpenError> {
        let mut reader = RotatedReader { parts: parts(&path, None)?, path };
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

    /// Returns the next line; `None` if there is none yet.
    pub(super) fn next_line(&mut self) -> io::Result<Option<Line>> {
        loop {
            if let Some(line) =
                self.parts.front_mut().map(LogFile::next_line).transpose()?.flatten()
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
            // The file may have grown between the last read and its renaming.
            if let Some(line) =
                self.parts.front_mut().map(LogFile::next_line).transpose()?.flatten()
            {
                return Ok(Some(line));
            }
        }
    }

    /// Returns the position after the last returned line; `None` before the first.
    pub(super) fn cursor(&self) -> Option<Cursor> {
        let part = self.parts.front()?;
        Some(Cursor { file: part.hash?, offset: part.offset })
    }
}

/// Opens the files of a log, oldest first. If one is known already, only the newer ones.
fn parts(path: &Path, known: Option<(u64, u64)>) -> io::Result<VecDeque<LogFile>> {
    let mut parts: VecDeque<LogFile> = VecDeque::new();
    let mut missing = 0;
    for number in 0..FILES_MAX {
        let Some(part) = LogFile::open(&numbered(path, number))? else {
            // Between two renames of a rotation one name is missing, never two.
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

    /// A log like the supervisor's: two rotated files are kept.
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
                let _ =
                    fs::rename(numbered(&self.path(), number), numbered(&self.path(), number + 1));
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
        assert_eq!(rest(&mut log.reader(None).unwrap()), "1\n2\n3\n4\n5\nhalf\n");
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
        assert!(matches!(missed, OpenError::Missed(MissedRotation)), "{missed}");
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
