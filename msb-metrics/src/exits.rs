//! Exits of sandboxes: a follower of the event log, and exit counters.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use libmsb::cli::args::SandboxName;
use libmsb::events::{Event, EventKind};
use libmsb::jsonl::LINE_BYTES_MAX;
use serde::{Deserialize, Serialize};

/// Maximum number of counters by sandbox and reason; further ones are by reason only.
const COUNTERS_MAX: usize = 4096;

/// Exit of a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SandboxExit {
    /// Time of the exit.
    #[serde(with = "libmsb::time")]
    pub(crate) timestamp: Timestamp,
    /// Name of the sandbox.
    pub(crate) name: String,
    /// `Stopped` or `Crashed`.
    pub(crate) state: String,
    /// Reason, as in `status.json`: `completed`, `out_of_memory`, ….
    pub(crate) reason: String,
    /// Exit code of the main command.
    pub(crate) exit_code: Option<i32>,
}

impl SandboxExit {
    fn of(event: Event) -> Option<SandboxExit> {
        let state = match event.what {
            EventKind::Stopped => "Stopped",
            EventKind::Crashed => "Crashed",
            _ => return None,
        };
        Some(SandboxExit {
            timestamp: event.t,
            name: event.sandbox,
            state: state.to_owned(),
            reason: event.reason.map_or_else(|| "other".to_owned(), |reason| reason.name()),
            exit_code: event.exit_code,
        })
    }
}

/// Follows the event log. The file need not exist yet, and may be rotated when it is full.
#[derive(Debug)]
pub(crate) struct EventFollower {
    path: PathBuf,
    open: Option<EventFile>,
}

#[derive(Debug)]
struct EventFile {
    reader: BufReader<File>,
    inode: u64,
    /// Start of a line whose end has not been written yet.
    partial: Vec<u8>,
}

impl EventFollower {
    /// Returns a follower that starts at the end of the file.
    pub(crate) fn at_end(path: PathBuf) -> EventFollower {
        let open = EventFile::new(&path, SeekFrom::End(0));
        EventFollower { path, open }
    }

    /// Returns the exits since the last call.
    pub(crate) fn next(&mut self) -> Vec<SandboxExit> {
        let mut exits = Vec::new();
        if let Some(open) = &mut self.open {
            open.read(&mut exits);
        }
        let named = std::fs::metadata(&self.path).ok().map(|named| named.ino());
        let ours = self.open.as_ref().map(|open| open.inode);
        if named.is_some() && named != ours {
            // Lines that were written before the rotation were read above, from the file that is
            // still open.
            self.open = EventFile::new(&self.path, SeekFrom::Start(0));
            if let Some(open) = &mut self.open {
                open.read(&mut exits);
            }
        }
        exits
    }
}

impl EventFile {
    fn new(path: &Path, from: SeekFrom) -> Option<EventFile> {
        let mut file = File::open(path).ok()?;
        let inode = file.metadata().ok().filter(|file| file.is_file())?.ino();
        file.seek(from).ok()?;
        Some(EventFile { reader: BufReader::new(file), inode, partial: Vec::new() })
    }

    fn read(&mut self, exits: &mut Vec<SandboxExit>) {
        loop {
            let room = LINE_BYTES_MAX.saturating_sub(self.partial.len() as u64);
            let read = (&mut self.reader).take(room).read_until(b'\n', &mut self.partial);
            if !matches!(read, Ok(count) if count > 0) {
                return;
            }
            if self.partial.ends_with(b"\n") || self.partial.len() as u64 >= LINE_BYTES_MAX {
                // A line of a later version, or a truncated one, is skipped.
                let event = serde_json::from_slice(&std::mem::take(&mut self.partial));
                exits.extend(event.ok().and_then(SandboxExit::of));
            }
        }
    }
}

/// Exit counters by sandbox and reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExitCounters {
    counts: BTreeMap<(Option<String>, String), u64>,
}

impl ExitCounters {
    /// Counts exits. Sandboxes with generated names have no counter of their own, because each run
    /// has a new name.
    pub(crate) fn add(&mut self, exits: &[SandboxExit]) {
        for exit in exits {
            let mut key = (Some(exit.name.clone()), exit.reason.clone());
            // An existing counter is kept when the limit is reached.
            let has_room = self.counts.len() < COUNTERS_MAX || self.counts.contains_key(&key);
            if SandboxName::is_generated(&exit.name) || !has_room {
                key.0 = None;
            }
            *self.counts.entry(key).or_default() += 1;
        }
    }

    /// Returns the name if there is one, the reason, and the count.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Option<&str>, &str, u64)> {
        self.counts.iter().map(|((name, reason), count)| (name.as_deref(), reason.as_str(), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libmsb::events::rotated_path;
    use libmsb::state::status::Reason;

    fn ended(name: &str) -> Event {
        Event { reason: Some(Reason::OutOfMemory), ..Event::now(EventKind::Crashed, name) }
    }

    #[test]
    fn exits_are_reported_once_also_across_a_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.log");
        ended("before").record(&path);
        let mut follower = EventFollower::at_end(path.clone());
        assert_eq!(follower.next(), []);
        ended("one").record(&path);
        std::fs::rename(&path, rotated_path(&path)).unwrap();
        ended("two").record(&path);
        let names: Vec<String> = follower.next().into_iter().map(|exit| exit.name).collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(follower.next(), []);
    }

    #[test]
    fn a_file_that_is_created_later_is_read_from_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.log");
        let mut follower = EventFollower::at_end(path.clone());
        assert_eq!(follower.next(), []);
        ended("one").record(&path);
        assert_eq!(follower.next()[0].reason, "out_of_memory");
    }

    #[test]
    fn an_existing_counter_counts_on_at_the_limit() {
        let exit = |name: &str| SandboxExit::of(ended(name)).unwrap();
        let mut counters = ExitCounters::default();
        for number in 0..COUNTERS_MAX {
            counters.add(&[exit(&format!("sandbox-{number}"))]);
        }
        counters.add(&[exit("sandbox-7"), exit("late"), exit("late")]);
        let count = |name: Option<&str>| {
            let mut all = counters.iter();
            all.find_map(|(of, _, count)| (of == name).then_some(count))
        };
        assert_eq!(count(Some("sandbox-7")), Some(2));
        assert_eq!((count(Some("late")), count(None)), (None, Some(2)));
        assert_eq!(counters.iter().count(), COUNTERS_MAX + 1);
    }

    #[test]
    fn generated_names_share_a_counter() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.log");
        let mut follower = EventFollower::at_end(path.clone());
        for name in ["web", "msb-01234567", "msb-89abcdef", "web"] {
            ended(name).record(&path);
        }
        let mut counters = ExitCounters::default();
        counters.add(&follower.next());
        let all: Vec<_> = counters.iter().collect();
        assert_eq!(all, [(None, "out_of_memory", 2), (Some("web"), "out_of_memory", 2)]);
    }
}
