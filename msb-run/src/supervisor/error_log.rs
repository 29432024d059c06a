//! `supervisor.log`: what this process and those of the machine write to their standard error.
//!
//! A guest can make its machine write without end. So the other processes write into a pipe, which the supervisor copies
//! into a log of bounded size; when it is slow, they wait. Its own standard error is the log itself: it must not wait for
//! itself, and what it writes does not depend on the guest.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::pipe::{PipeFlags, pipe_with};

use super::rotate::{Bounds, RotatedFile};

/// What is kept.
const BOUNDS: Bounds = Bounds {
    file_bytes: 1024 * 1024,
    kept: 1,
};
/// Bytes of one read: what a pipe holds.
const READ_BYTES: usize = 64 * 1024;
/// Reads before others have their turn.
const READS: usize = 16;
/// Bytes of a log in which its last line is looked for.
const TAIL_BYTES: u64 = 64 * 1024;

/// That of this process, once there is one.
static ERROR_LOG: OnceLock<ErrorLog> = OnceLock::new();

#[derive(Debug)]
struct ErrorLog {
    /// Does not block.
    reader: File,
    writer: OwnedFd,
    log: Mutex<RotatedFile>,
}

impl ErrorLog {
    fn open(path: &Path) -> io::Result<ErrorLog> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        Ok(ErrorLog {
            reader: reader.into(),
            writer,
            log: Mutex::new(RotatedFile::open(path, BOUNDS)?),
        })
    }

    /// Copies what has been written by now, or much of it. `renewed` is given each new file.
    fn copy(&self, mut renewed: impl FnMut(BorrowedFd<'_>)) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = vec![0; READ_BYTES];
        for _ in 0..READS {
            // There is always a writer: the pipe has no end, and is empty when it would block.
            let Ok(count @ 1..) = (&self.reader).read(&mut buffer) else {
                return;
            };
            let before = log.as_fd().as_raw_fd();
            // What a full disk does not take is lost.
            let _ = log.append(&buffer[..count]);
            if log.as_fd().as_raw_fd() != before {
                renewed(log.as_fd());
            }
        }
    }
}

/// Opens the log, and makes it this process's standard error.
pub(super) fn open(path: &Path) -> io::Result<()> {
    let log = ErrorLog::open(path)?;
    let file = log.log.lock().unwrap_or_else(PoisonError::into_inner);
    rustix::stdio::dup2_stderr(file.as_fd())?;
    drop(file);
    // A second one would be that of a second supervisor.
    let _ = ERROR_LOG.set(log);
    Ok(())
}

/// The standard error of a process of the sandbox.
pub(super) fn stderr() -> Stdio {
    let writer = ERROR_LOG.get().map(|log| log.writer.try_clone());
    match writer {
        Some(Ok(writer)) => writer.into(),
        _ => Stdio::inherit(),
    }
}

/// Ready for reading when there is something to copy.
pub(super) fn reader() -> Option<BorrowedFd<'static>> {
    ERROR_LOG.get().map(|log| log.reader.as_fd())
}

/// Copies what the processes of the sandbox have written by now.
pub(super) fn copy() {
    if let Some(log) = ERROR_LOG.get() {
        log.copy(|file| {
            // The old file is still there, and full: what it is given is at least kept.
            let _ = rustix::stdio::dup2_stderr(file);
        });
    }
}

/// The last line of a log that says something. Of a long log only the end is read.
pub(super) fn last_line(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))
        .ok()?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail).ok()?;
    let text = String::from_utf8_lossy(&tail);
    let mut lines = text.lines().rev().map(str::trim);
    let line = lines.find(|line| !line.is_empty())?;
    Some(line.chars().take(400).collect())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_processes_write_without_end_is_kept_within_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("supervisor.log");
        let log = ErrorLog::open(&path).unwrap();
        let mut child = Command::new("sh")
            .args([
                "-c",
                "yes 'a line of many' | head -c 20000000 >&2; printf '\\nthe last\\n' >&2",
            ])
            .stderr(log.writer.try_clone().unwrap())
            .spawn()
            .unwrap();
        let mut files = 0;
        while child.try_wait().unwrap().is_none() {
            log.copy(|_| files += 1);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        log.copy(|_| files += 1);
        assert!(files >= 18, "{files}");
        let sizes = std::fs::read_dir(folder.path()).unwrap();
        let total: u64 = sizes
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert!(total <= 2 * BOUNDS.file_bytes, "{total}");
        assert_eq!(last_line(&path).as_deref(), Some("the last"));
    }

    #[test]
    fn only_the_end_of_a_long_log_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        assert_eq!(last_line(&path), None);
        std::fs::write(&path, "first\n \n").unwrap();
        assert_eq!(last_line(&path).as_deref(), Some("first"));
        // A line before the tail is not found, and a terabyte of zeros is not read.
        let file = File::options().append(true).open(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        let zeros = last_line(&path).unwrap();
        assert!(zeros.bytes().all(|byte| byte == 0), "{zeros}");
        std::fs::write(&path, format!("{}\nlast \n", "x".repeat(200_000))).unwrap();
        assert_eq!(last_line(&path).as_deref(), Some("last"));
    }
}
