//! Log rotation: a log file of bounded size. A full file is renamed to `.1`, `.1` to `.2`, and so
//! on; the oldest is removed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Limits of a rotated log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RotationLimits {
    /// Size of a full file, in bytes.
    pub(crate) file_bytes: u64,
    /// Number of full files that are kept.
    pub(crate) kept: u32,
}

/// A log file that is rotated when it is full.
#[derive(Debug)]
pub(crate) struct RotatedLog {
    path: PathBuf,
    file: File,
    written: u64,
    limits: RotationLimits,
}

impl RotatedLog {
    /// Opens the log for appending; creates it with mode 0600.
    pub(crate) fn open(path: &Path, limits: RotationLimits) -> io::Result<RotatedLog> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let written = file.metadata()?.len();
        Ok(RotatedLog { path: path.to_owned(), file, written, limits })
    }

    /// Appends bytes that belong together: they are never split over two files.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written > 0 && self.written + bytes.len() as u64 > self.limits.file_bytes {
            self.rotate()?;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Returns the descriptor of the current file.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (0..self.limits.kept).rev() {
            match std::fs::rename(self.numbered(number), self.numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        *self = RotatedLog::open(&self.path, self.limits)?;
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        if number == 0 {
            return self.path.clone();
        }
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_rotated_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let mut log = RotatedLog::open(&path, RotationLimits { file_bytes: 10, kept: 2 }).unwrap();
        for number in 0..5 {
            log.append(format!("line {number}\n").as_bytes()).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(
            (read("x.log"), read("x.log.1"), read("x.log.2")),
            ("line 4\n".into(), "line 3\n".into(), "line 2\n".into())
        );
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
    }
}
