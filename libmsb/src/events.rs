//! What happened to all sandboxes, as JSON lines in one file of the state directory; man page msb-events(5).
//!
//! There is no daemon to ask, so everybody who does something writes it down. A writer locks the file for the moment of
//! one line: lines do not mix, a full file is set aside by one writer only, and what a full disk cut off is taken back.
//! The file informs; it is not what the state is made of, so a line that cannot be written stops nobody.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::jsonl;
use crate::state::lock::Lock;
use crate::state::status::Reason;

/// Size at which the file is set aside, in bytes. One file before it is kept.
pub const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Something that happened to a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub t: jiff::Timestamp,
    /// What.
    #[serde(rename = "type")]
    pub what: What,
    /// The sandbox's name.
    pub sandbox: String,
    /// The image, of a sandbox that was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// More about the reason, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Exit code of the main command, 128 + signal when a signal killed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether the guest's file systems were flushed and clean at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean: Option<bool>,
}

/// What may happen to a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// It was made.
    Created,
    /// What it should be was changed.
    Modified,
    /// Its machine is being started.
    Starting,
    /// Its guest takes commands.
    Running,
    /// Its guest's processors were stopped.
    Paused,
    /// Its guest's processors run again.
    Resumed,
    /// Its guest is shutting down.
    Stopping,
    /// It ended in order, or was killed on demand.
    Stopped,
    /// It ended without anybody having asked for it.
    Crashed,
    /// It was removed, with its disk.
    Removed,
    /// Something of a later version.
    #[serde(other)]
    Other,
}

impl What {
    /// The word for it, as in the file.
    pub fn word(self) -> &'static str {
        match self {
            What::Created => "created",
            What::Modified => "modified",
            What::Starting => "starting",
            What::Running => "running",
            What::Paused => "paused",
            What::Resumed => "resumed",
            What::Stopping => "stopping",
            What::Stopped => "stopped",
            What::Crashed => "crashed",
            What::Removed => "removed",
            What::Other => "other",
        }
    }
}

impl Event {
    /// It happened now.
    pub fn now(what: What, sandbox: &str) -> Event {
        Event {
            t: jiff::Timestamp::now(),
            what,
            sandbox: sandbox.to_owned(),
            image: None,
            reason: None,
            message: None,
            exit_code: None,
            clean: None,
        }
    }

    /// Writes the event down. What cannot be written is lost.
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
                // A supervisor of a running sandbox may not: then the next one that starts does.
                if std::fs::rename(log, set_aside(log)).is_ok() {
                    drop(lock);
                    continue;
                }
            }
            return Ok(write_whole(&mut file, end, &line)?);
        }
    }
}

/// Where a full file goes.
pub fn set_aside(log: &Path) -> std::path::PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// A line is there whole or not at all.
fn write_whole(file: &mut File, end: u64, line: &[u8]) -> io::Result<()> {
    file.write_all(line).inspect_err(|_| {
        // If this fails too, the next reader finds a line that is cut off, and passes it over.
        let _ = file.set_len(end);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;

    fn lines(path: &Path) -> Vec<Event> {
        let file = io::BufReader::new(File::open(path).unwrap());
        file.lines()
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
            .collect()
    }

    #[test]
    fn writers_at_once_lose_no_line_and_mix_none_when_the_file_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("events.log");
        let event = Event {
            message: Some("x".repeat(20_000)),
            ..Event::now(What::Crashed, "web")
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..75).for_each(|_| event.append(&log).unwrap()));
            }
        });
        // 300 lines of 20 KB: one file was filled and set aside.
        let (old, new) = (lines(&set_aside(&log)), lines(&log));
        assert_eq!(old.len() + new.len(), 300);
        assert!(
            !new.is_empty()
                && old
                    .iter()
                    .chain(&new)
                    .all(|line| line.message == event.message)
        );
        assert!(std::fs::metadata(set_aside(&log)).unwrap().len() <= FILE_BYTES_MAX);
    }

    #[test]
    fn an_event_of_a_later_version_can_be_read() {
        let line = r#"{"t":"2026-11-23T14:05:09Z","type":"frozen","sandbox":"web","depth":3}"#;
        let event: Event = serde_json::from_str(line).unwrap();
        assert_eq!(event.what, What::Other);
    }
}
