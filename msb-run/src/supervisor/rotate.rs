//! A log file of bounded size: when it is full it becomes `.1`, `.1` becomes `.2`, and so on; the oldest goes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// How large a log may grow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Size at which a file is full, in bytes.
    pub(crate) file_bytes: u64,
    /// How many full files are kept.
    pub(crate) kept: u32,
}

/// A log that is written to.
#[derive(Debug)]
pub(crate) struct RotatedFile {
    path: PathBuf,
    file: File,
    written: u64,
    bounds: Bounds,
}

impl RotatedFile {
    /// Opens the log at its end; creates it, mode 0600.
    pub(crate) fn open(path: &Path, bounds: Bounds) -> io::Result<RotatedFile> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let written = file.metadata()?.len();
        Ok(RotatedFile {
            path: path.to_owned(),
            file,
            written,
            bounds,
        })
    }

    /// Appends bytes that belong together: they are never spread over two files.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written > 0 && self.written + bytes.len() as u64 > self.bounds.file_bytes {
            self.rotate()?;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// The file that is written to now.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (0..self.bounds.kept).rev() {
            match std::fs::rename(self.numbered(number), self.numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        *self = RotatedFile::open(&self.path, self.bounds)?;
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let mut log = RotatedFile::open(
            &path,
            Bounds {
                file_bytes: 10,
                kept: 2,
            },
        )
        .unwrap();
        for number in 0..5 {
            log.append(format!("line {number}\n").as_bytes()).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(
            (read("x.log"), read("x.log.1"), read("x.log.2")),
            ("line 4\n".into(), "line 3\n".into(), "line 2\n".into())
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    }
}
