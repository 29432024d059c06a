//! The event log of all sandboxes: JSON lines in one file of the state directory; man page
//! msb-events(5).
//!
//! There is no daemon, so each process writes its own events. A writer locks the file while it
//! appends one line. So lines do not mix, only one writer rotates a full file, and a line that a
//! full disk cut is removed. The log is for information, and no state depends on it: an event that
//! cannot be written is no error.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::jsonl;
use crate::state::lock::Lock;
use crate::state::status::Reason;

/// Size at which the file is rotated, in bytes. One older file is kept.
pub const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// An event of a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Time of the event.
    #[serde(with = "crate::time")]
    pub t: jiff::Timestamp,
    /// Kind of the event.
    #[serde(rename = "type")]
    pub what: EventKind,
    /// Name of the sandbox.
    pub sandbox: String,
    /// Reference of the image, for `created`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Digest of the snapshot, for `snapshotted` and `restored`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Reason of the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// More about the reason, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Exit code of the main command; 128 + signal if a signal killed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// True if the guest's file systems were flushed and clean at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean: Option<bool>,
}

/// Kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The sandbox was created.
    Created,
    /// Its specification was changed.
    Modified,
    /// Its virtual machine is starting.
    Starting,
    /// Its guest accepts commands.
    Running,
    /// Its guest's processors were paused.
    Paused,
    /// Its guest's processors were resumed.
    Resumed,
    /// Its guest is shutting down.
    Stopping,
    /// It ended in order, or was killed on request.
    Stopped,
    /// It ended unexpectedly.
    Crashed,
    /// A snapshot of its disk was taken.
    Snapshotted,
    /// Its disk was set back to a snapshot.
    Restored,
    /// It was removed, with its disk.
    Removed,
    /// A kind of a later version.
    #[serde(other)]
    Other,
}

impl EventKind {
    /// Returns the name of the kind, as in the file.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Created => "created",
            EventKind::Modified => "modified",
            EventKind::Starting => "starting",
            EventKind::Running => "running",
            EventKind::Paused => "paused",
            EventKind::Resumed => "resumed",
            EventKind::Stopping => "stopping",
            EventKind::Stopped => "stopped",
            EventKind::Crashed => "crashed",
            EventKind::Snapshotted => "snapshotted",
            EventKind::Restored => "restored",
            EventKind::Removed => "removed",
            EventKind::Other => "other",
        }
    }
}

impl Event {
    /// Returns an event of the current time.
    pub fn now(what: EventKind, sandbox: &str) -> Event {
        Event {
            t: jiff::Timestamp::now(),
            what,
            sandbox: sandbox.to_owned(),
            image: None,
            snapshot: None,
            reason: None,
            message: None,
            exit_code: None,
            clean: None,
        }
    }

    /// Appends the event to the log. Errors are ignored.
    pub fn record(&self, log: &Path) {
        let _ = self.append(log);
    }

    fn append(&self, log: &Path) -> anyhow::Result<()> {
        let mut line = Vec::new();
        jsonl::write(&mut line, self)?;
        loop {
            let lock = Lock::exclusive(log)?;
            let mut file = File::options().write(true).mode(0o600).open(log)?;
            let end = file.seek(SeekFrom::End(0))?;
            if end > 0 && end + line.len() as u64 > FILE_BYTES_MAX {
                // The supervisor of a running sandbox may lack the permission: then the next one
                // that starts rotates the file.
                if std::fs::rename(log, rotated_path(log)).is_ok() {
                    drop(lock);
                    continue;
                }
            }
            return Ok(write_whole(&mut file, end, &line)?);
        }
    }
}

/// Returns the path of the rotated file.
pub fn rotated_path(log: &Path) -> std::path::PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Appends a line completely or not at all.
fn write_whole(file: &mut File, end: u64, line: &[u8]) -> io::Result<()> {
    file.write_all(line).inspect_err(|_| {
        // If this fails too, readers find a cut line and ignore it.
        let _ = file.set_len(end);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;

    fn lines(path: &Path) -> Vec<Event> {
        let file = io::BufReader::new(File::open(path).unwrap());
        file.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
    }

    #[test]
    fn writers_at_once_lose_no_line_and_mix_none_when_the_file_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("events.log");
        let event =
            Event { message: Some("x".repeat(20_000)), ..Event::now(EventKind::Crashed, "web") };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..75).for_each(|_| event.append(&log).unwrap()));
            }
        });
        // 300 lines of 20 KB: one file was filled and rotated.
        let (old, new) = (lines(&rotated_path(&log)), lines(&log));
        assert_eq!(old.len() + new.len(), 300);
        assert!(
            !new.is_empty() && old.iter().chain(&new).all(|line| line.message == event.message)
        );
        assert!(std::fs::metadata(rotated_path(&log)).unwrap().len() <= FILE_BYTES_MAX);
    }

    #[test]
    fn an_event_of_a_later_version_can_be_read() {
        let line = r#"{"t":"2026-11-23T14:05:09Z","type":"frozen","sandbox":"web","depth":3}"#;
        let event: Event = serde_json::from_str(line).unwrap();
        assert_eq!(event.what, EventKind::Other);
    }
}
