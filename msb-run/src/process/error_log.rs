//! `supervisor.log`: the standard error of the supervisor and of its child processes.
//!
//! A guest can make its VMM write without end. The child processes therefore write into a pipe,
//! which the supervisor copies into a log of bounded size; they block while it is slow. The
//! supervisor's own standard error is the log itself: it must not wait for itself, and its output
//! does not depend on the guest.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::pipe::{PipeFlags, pipe_with};

use super::log_rotation::{RotatedLog, RotationLimits};

/// Rotation of the log.
const ROTATION: RotationLimits = RotationLimits { file_bytes: 1024 * 1024, kept: 1 };
/// Bytes of one read: the capacity of a pipe.
const READ_BYTES: usize = 64 * 1024;
/// Reads before other sources are served.
const READS: usize = 16;
/// Bytes at the end of a log in which the last line is searched.
const TAIL_BYTES: u64 = 64 * 1024;

/// The log of this process, once it is open.
static ERROR_LOG: OnceLock<ErrorLog> = OnceLock::new();

#[derive(Debug)]
struct ErrorLog {
    /// Non-blocking read end of the pipe.
    reader: File,
    writer: OwnedFd,
    log: Mutex<RotatedLog>,
}

impl ErrorLog {
    fn open(path: &Path) -> io::Result<ErrorLog> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        Ok(ErrorLog {
            reader: reader.into(),
            writer,
            log: Mutex::new(RotatedLog::open(path, ROTATION)?),
        })
    }

    /// Copies the pipe's contents, up to [`READS`] reads. Calls `renewed` with each new file after
    /// a rotation.
    fn copy(&self, mut renewed: impl FnMut(BorrowedFd<'_>)) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = vec![0; READ_BYTES];
        for _ in 0..READS {
            // The pipe always has a writer: it never reads as ended, and is empty when it would
            // block.
            let Ok(count @ 1..) = (&self.reader).read(&mut buffer) else {
                return;
            };
            let before = log.as_fd().as_raw_fd();
            // On a full disk the output is lost.
            let _ = log.append(&buffer[..count]);
            if log.as_fd().as_raw_fd() != before {
                renewed(log.as_fd());
            }
        }
    }
}

/// Opens the log and makes it the standard error of this process.
pub(crate) fn open(path: &Path) -> io::Result<()> {
    let log = ErrorLog::open(path)?;
    let file = log.log.lock().unwrap_or_else(PoisonError::into_inner);
    rustix::stdio::dup2_stderr(file.as_fd())?;
    drop(file);
    // It is set once: a process is one supervisor.
    let _ = ERROR_LOG.set(log);
    Ok(())
}

/// Returns the standard error for a child process.
pub(crate) fn stderr() -> Stdio {
    let writer = ERROR_LOG.get().map(|log| log.writer.try_clone());
    match writer {
        Some(Ok(writer)) => writer.into(),
        _ => Stdio::inherit(),
    }
}

/// Returns the descriptor that is readable when there is something to copy.
pub(crate) fn reader() -> Option<BorrowedFd<'static>> {
    ERROR_LOG.get().map(|log| log.reader.as_fd())
}

/// Copies what the child processes have written so far.
pub(crate) fn copy() {
    if let Some(log) = ERROR_LOG.get() {
        log.copy(|file| {
            // The old file still exists and is full: what is written to it is at least kept.
            let _ = rustix::stdio::dup2_stderr(file);
        });
    }
}

/// Returns the last line of a log that is not blank. Reads only the end of a long log.
pub(crate) fn last_line(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
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
    fn endless_output_of_processes_is_kept_within_limits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("supervisor.log");
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
        let sizes = std::fs::read_dir(directory.path()).unwrap();
        let total: u64 = sizes.map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert!(total <= 2 * ROTATION.file_bytes, "{total}");
        assert_eq!(last_line(&path).as_deref(), Some("the last"));
    }

    #[test]
    fn only_the_end_of_a_long_log_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
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
