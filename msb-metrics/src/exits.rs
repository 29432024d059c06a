//! How sandboxes ended: what the file of events says, and the counters that are made of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use libmsb::cli::args::SandboxName;
use libmsb::events::{Event, What};
use libmsb::jsonl::LINE_BYTES_MAX;
use serde::{Deserialize, Serialize};

/// Sandboxes and reasons that have a counter of their own; beyond it, reasons only.
const COUNTERS_MAX: usize = 4096;

/// A sandbox ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// When.
    pub(crate) timestamp: Timestamp,
    /// Its name.
    pub(crate) name: String,
    /// `Stopped` or `Crashed`.
    pub(crate) state: String,
    /// Why, as in `status.json`: `completed`, `out_of_memory`, ….
    pub(crate) reason: String,
    /// Exit code of the main command.
    pub(crate) exit_code: Option<i32>,
}

impl Exit {
    fn of(event: Event) -> Option<Exit> {
        let state = match event.what {
            What::Stopped => "Stopped",
            What::Crashed => "Crashed",
            _ => return None,
        };
        Some(Exit {
            timestamp: event.t,
            name: event.sandbox,
            state: state.to_owned(),
            reason: event
                .reason
                .map_or_else(|| "other".to_owned(), |reason| reason.word()),
            exit_code: event.exit_code,
        })
    }
}

/// Reads what comes to the file of events from now on. It may not be there yet, and may be set aside when it is full.
#[derive(Debug)]
pub(crate) struct Follower {
    path: PathBuf,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    reader: BufReader<File>,
    inode: u64,
    /// A line whose end is not there yet.
    begun: Vec<u8>,
}

impl Follower {
    /// From the end of the file.
    pub(crate) fn at_end(path: PathBuf) -> Follower {
        let open = Open::new(&path, SeekFrom::End(0));
        Follower { path, open }
    }

    /// What ended since the last call.
    pub(crate) fn next(&mut self) -> Vec<Exit> {
        let mut exits = Vec::new();
        if let Some(open) = &mut self.open {
            open.read(&mut exits);
        }
        let named = std::fs::metadata(&self.path).ok().map(|named| named.ino());
        let ours = self.open.as_ref().map(|open| open.inode);
        if named.is_some() && named != ours {
            // What was written between our last look and its being set aside was read above, since we hold it open.
            self.open = Open::new(&self.path, SeekFrom::Start(0));
            if let Some(open) = &mut self.open {
                open.read(&mut exits);
            }
        }
        exits
    }
}

impl Open {
    fn new(path: &Path, from: SeekFrom) -> Option<Open> {
        let mut file = File::open(path).ok()?;
        let inode = file.metadata().ok().filter(|file| file.is_file())?.ino();
        file.seek(from).ok()?;
        Some(Open {
            reader: BufReader::new(file),
            inode,
            begun: Vec::new(),
        })
    }

    fn read(&mut self, exits: &mut Vec<Exit>) {
        loop {
            let room = LINE_BYTES_MAX.saturating_sub(self.begun.len() as u64);
            let read = (&mut self.reader)
                .take(room)
                .read_until(b'\n', &mut self.begun);
            if !matches!(read, Ok(count) if count > 0) {
                return;
            }
            if self.begun.ends_with(b"\n") || self.begun.len() as u64 >= LINE_BYTES_MAX {
                // A line of a later version, or one that was cut off, is passed over.
                let event = serde_json::from_slice(&std::mem::take(&mut self.begun));
                exits.extend(event.ok().and_then(Exit::of));
            }
        }
    }
}

/// Who ended how often, and why.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    counts: BTreeMap<(Option<String>, String), u64>,
}

impl Counters {
    /// Counts. Sandboxes whose names nobody chose have no counter of their own: there is a new one with each run.
    pub(crate) fn add(&mut self, exits: &[Exit]) {
        for exit in exits {
            let mut key = (Some(exit.name.clone()), exit.reason.clone());
            // One that has a counter keeps it, however many there are.
            let has_room = self.counts.len() < COUNTERS_MAX || self.counts.contains_key(&key);
            if SandboxName::is_generated(&exit.name) || !has_room {
                key.0 = None;
            }
            *self.counts.entry(key).or_default() += 1;
        }
    }

    /// The name if it has one, the reason, and how often.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Option<&str>, &str, u64)> {
        self.counts
            .iter()
            .map(|((name, reason), count)| (name.as_deref(), reason.as_str(), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libmsb::events::set_aside;
    use libmsb::state::status::Reason;

    fn ended(name: &str) -> Event {
        Event {
            reason: Some(Reason::OutOfMemory),
            ..Event::now(What::Crashed, name)
        }
    }

    #[test]
    fn what_ends_after_the_begin_is_told_once_also_when_the_file_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.log");
        ended("before").record(&path);
        let mut follower = Follower::at_end(path.clone());
        assert_eq!(follower.next(), []);
        ended("one").record(&path);
        std::fs::rename(&path, set_aside(&path)).unwrap();
        ended("two").record(&path);
        let names: Vec<String> = follower.next().into_iter().map(|exit| exit.name).collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(follower.next(), []);
    }

    #[test]
    fn a_file_that_comes_later_is_read_from_its_begin() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.log");
        let mut follower = Follower::at_end(path.clone());
        assert_eq!(follower.next(), []);
        ended("one").record(&path);
        assert_eq!(follower.next()[0].reason, "out_of_memory");
    }

    #[test]
    fn a_counter_goes_on_when_there_is_no_room_for_new_ones() {
        let exit = |name: &str| Exit::of(ended(name)).unwrap();
        let mut counters = Counters::default();
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
    fn names_that_nobody_chose_share_a_counter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.log");
        let mut follower = Follower::at_end(path.clone());
        for name in ["web", "msb-01234567", "msb-89abcdef", "web"] {
            ended(name).record(&path);
        }
        let mut counters = Counters::default();
        counters.add(&follower.next());
        let all: Vec<_> = counters.iter().collect();
        assert_eq!(
            all,
            [
                (None, "out_of_memory", 2),
                (Some("web"), "out_of_memory", 2)
            ]
        );
    }
}
