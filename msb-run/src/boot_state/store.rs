//! The files of boot states: `boot/KIND.state` of the state directory; man page msb-state(5).
//!
//! A file is a page with the place of its header, then the pages of the guest's memory that are not zero, then the state of
//! the devices, then the header as JSON, to its end. So a file that was cut is found out by its size. There is no
//! checksum: 90 MiB would take 15 to 30 ms at each start, a tenth of it; the file is flushed before it has its name.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use libmsb::state::lock::Lock;
use libmsb::state::write::{self, NewFile};
use libmsb::state::{Home, layout};
use msb_wire::handshake::Hello;
use serde::{Deserialize, Serialize};

use crate::engine::kind::{Kind, TscRate};

/// Begins a file.
const MAGIC: &[u8; 16] = b"msb boot state1\n";
/// Bytes of a page of the guest, and of the first page of a file.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// Longest header, in bytes.
const HEADER_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Longest state of devices, in bytes; that of a small machine has some hundred kilobytes.
pub(crate) const DEVICES_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Most files that are kept, and most bytes of them together. The one that was used the longest time ago goes first.
const FILES_MAX: usize = 16;
const BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// Time after which a state is tried to be made again where that failed.
const GIVEN_UP_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// What is known of a state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    /// The kind of machine.
    pub(crate) kind: Kind,
    /// The rate of the time stamp counter that the guest was told.
    pub(crate) tsc_khz: TscRate,
    /// What its agent said.
    pub(crate) hello: Hello,
    /// Size of the guest's memory.
    pub(crate) memory_bytes: u64,
    /// Where the state of the devices is, in the file.
    pub(crate) devices: Extent,
    /// The parts of the memory that are not zero: `to` is their place in the guest's memory.
    pub(crate) memory: Vec<Copy>,
}

/// A part of the file.
#[derive(Clone, std::marker::Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    pub(crate) at: u64,
    pub(crate) bytes: u64,
}

/// A part of the file that is one of the memory.
#[derive(Clone, std::marker::Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Copy {
    pub(crate) to: u64,
    #[serde(flatten)]
    pub(crate) from: Extent,
}

/// A state that is kept, and open.
#[derive(Debug)]
pub(crate) struct BootState {
    pub(crate) file: File,
    pub(crate) header: Header,
}

/// The directory of the files.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    directory: PathBuf,
}

/// A file that is being made. While there is one, nobody else makes one.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) new: NewFile,
    store: Store,
    _lock: Lock,
}

impl Store {
    pub(crate) fn of(home: &Home) -> Store {
        Store {
            directory: home.boot_dir(),
        }
    }

    fn path(&self, kind: &Kind) -> PathBuf {
        self.directory
            .join(format!("{}{}", kind.as_str(), layout::BOOT_STATE))
    }

    /// Opens the state of a kind. An error says what is wrong with the file; `None`: there is none, or the guest in it would
    /// keep wrong time on this host.
    pub(crate) fn open(&self, kind: &Kind, tsc: TscRate) -> anyhow::Result<Option<BootState>> {
        let path = self.path(kind);
        let cannot = || format!("cannot read '{}'", path.display());
        let file = match File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
        {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.with_context(cannot)?,
        };
        let header = read_header(&file).with_context(cannot)?;
        ensure!(
            header.kind == *kind,
            "'{}' is of another kind than its name",
            path.display()
        );
        if !header.tsc_khz.agrees(tsc) {
            return Ok(None);
        }
        // By this the one that was used the longest time ago is known. It need not be exact.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(BootState { file, header }))
    }

    /// Notes that no state of a kind can be made here, and why. It is not tried again for a day.
    pub(crate) fn give_up(&self, kind: &Kind, why: &str) {
        let _ = write::create_dir(&self.directory);
        // Without it each start tries again.
        let _ = write::replace(&self.failed_path(kind), format!("{why}\n").as_bytes());
    }

    /// Returns whether that was noted within a day.
    pub(crate) fn has_given_up(&self, kind: &Kind) -> bool {
        let noted = std::fs::metadata(self.failed_path(kind)).and_then(|meta| meta.modified());
        noted.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < GIVEN_UP_TIME))
    }

    fn failed_path(&self, kind: &Kind) -> PathBuf {
        let name = format!("{}{}", kind.as_str(), layout::BOOT_STATE_FAILED);
        self.directory.join(name)
    }

    /// Begins a file, unless another process makes one.
    pub(crate) fn begin(&self, kind: &Kind) -> anyhow::Result<Option<Recording>> {
        write::create_dir(&self.directory)?;
        let lock = Lock::try_exclusive(&self.directory.join(layout::BOOT_STATE_LOCK))?;
        let Some(lock) = lock else { return Ok(None) };
        self.remove_unfinished();
        Ok(Some(Recording {
            new: NewFile::create(&self.path(kind))?,
            store: self.clone(),
            _lock: lock,
        }))
    }

    /// Removes the state of a kind, which is of no use.
    pub(crate) fn remove(&self, kind: &Kind) {
        let _ = std::fs::remove_file(self.path(kind));
    }

    /// What a process has left that was killed while it made one. For who holds the lock.
    fn remove_unfinished(&self) {
        for path in self.files() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(layout::NEW_PREFIX) && name.contains(layout::BOOT_STATE) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten();
        entries.flatten().map(|entry| entry.path())
    }

    /// Removes those that are too many, or too large, together.
    fn keep_bounds(&self, just_made: &Path) {
        let mut states: Vec<(SystemTime, u64, PathBuf)> = self
            .files()
            .filter(|path| {
                path.extension()
                    .is_some_and(|ending| ending == &layout::BOOT_STATE[1..])
            })
            .filter(|path| path != just_made)
            .filter_map(|path| {
                let meta = std::fs::metadata(&path).ok()?;
                Some((meta.modified().ok()?, meta.blocks() * 512, path))
            })
            .collect();
        states.sort_by(|one, other| other.cmp(one));
        let mut bytes = std::fs::metadata(just_made).map_or(0, |meta| meta.blocks() * 512);
        for (number, (_, size, path)) in states.into_iter().enumerate() {
            bytes += size;
            if number + 1 >= FILES_MAX || bytes > BYTES_MAX {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Recording {
    /// Writes the header, behind all else; `end`: where the file ends so far.
    pub(crate) fn write_header(&self, header: &Header, end: u64) -> anyhow::Result<()> {
        let json = serde_json::to_vec(header)?;
        let file = &self.new.file;
        file.write_all_at(&json, end)?;
        let mut first = MAGIC.to_vec();
        first.extend_from_slice(&end.to_le_bytes());
        first.extend_from_slice(&(json.len() as u64).to_le_bytes());
        file.write_all_at(&first, 0)?;
        Ok(())
    }

    /// Flushes the file, and gives it its name.
    pub(crate) fn publish(self, kind: &Kind) -> anyhow::Result<()> {
        let path = self.store.path(kind);
        self.new.commit()?;
        let _ = std::fs::remove_file(self.store.failed_path(kind));
        self.store.keep_bounds(&path);
        Ok(())
    }
}

fn read_header(file: &File) -> anyhow::Result<Header> {
    let size = file.metadata()?.len();
    let mut first = [0; 32];
    file.read_exact_at(&mut first, 0)
        .context("it has no first page")?;
    ensure!(first.starts_with(MAGIC), "it is no boot state");
    let number = |at: usize| {
        let bytes = first[at..at + 8].try_into().unwrap_or_default();
        u64::from_le_bytes(bytes)
    };
    let (at, bytes) = (number(16), number(24));
    ensure!(
        bytes <= HEADER_BYTES_MAX && at.checked_add(bytes) == Some(size),
        "it was cut, or has grown"
    );
    let mut json = vec![0; bytes as usize];
    file.read_exact_at(&mut json, at)?;
    let header: Header = serde_json::from_slice(&json).context("its header is damaged")?;
    let inside = |extent: &Extent| {
        extent
            .at
            .checked_add(extent.bytes)
            .is_some_and(|end| extent.at >= PAGE_BYTES && end <= at)
    };
    let is_part = |copy: &Copy| {
        copy.to
            .checked_add(copy.from.bytes)
            .is_some_and(|end| end <= header.memory_bytes)
            && inside(&copy.from)
    };
    ensure!(
        header.devices.bytes <= DEVICES_BYTES_MAX
            && inside(&header.devices)
            && header.memory.iter().all(is_part),
        "its header names what is not in it"
    );
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: TscRate = TscRate(3_000_000);

    fn store(directory: &Path) -> Store {
        Store {
            directory: directory.join("boot"),
        }
    }

    fn header(kind: &Kind) -> Header {
        Header {
            kind: kind.clone(),
            tsc_khz: RATE,
            hello: Hello::of("agent", &[]),
            memory_bytes: 3 * PAGE_BYTES,
            devices: Extent {
                at: 2 * PAGE_BYTES,
                bytes: 5,
            },
            memory: vec![Copy {
                to: PAGE_BYTES,
                from: Extent {
                    at: PAGE_BYTES,
                    bytes: PAGE_BYTES,
                },
            }],
        }
    }

    fn make(store: &Store, kind: &Kind) {
        let recording = store.begin(kind).unwrap().unwrap();
        recording
            .write_header(&header(kind), 2 * PAGE_BYTES + 5)
            .unwrap();
        recording.publish(kind).unwrap();
    }

    #[test]
    fn a_state_is_found_by_its_kind_on_a_host_with_its_rate_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let kind = Kind::named("a");
        assert!(store.open(&kind, RATE).unwrap().is_none());
        make(&store, &kind);
        assert!(store.open(&kind, RATE).unwrap().is_some());
        assert!(store.open(&Kind::named("b"), RATE).unwrap().is_none());
        assert!(store.open(&kind, TscRate(2_000_000)).unwrap().is_none());
        let other = Kind::named("b");
        std::fs::rename(store.path(&kind), store.path(&other)).unwrap();
        assert!(store.open(&other, RATE).is_err());
    }

    #[test]
    fn a_file_that_was_cut_has_grown_or_is_something_else_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let kind = Kind::named("a");
        make(&store, &kind);
        let path = store.path(&kind);
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 20, 31, 4096, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(store.open(&kind, RATE).is_err(), "{length}");
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(store.open(&kind, RATE).is_err());
        let mut other = whole.clone();
        other[0] ^= 1;
        std::fs::write(&path, other).unwrap();
        assert!(store.open(&kind, RATE).is_err());
        std::fs::write(&path, whole).unwrap();
        assert!(store.open(&kind, RATE).unwrap().is_some());
    }

    #[test]
    fn a_header_that_names_what_is_not_in_the_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let kind = Kind::named("a");
        let changes: [fn(&mut Header); 5] = [
            |h| h.devices.bytes = 6,
            |h| h.devices.at = 0,
            |h| h.memory[0].to = 3 * PAGE_BYTES,
            |h| h.memory[0].to = u64::MAX,
            |h| h.memory[0].from.at = u64::MAX,
        ];
        for change in changes {
            let mut changed = header(&kind);
            change(&mut changed);
            let recording = store.begin(&kind).unwrap().unwrap();
            recording
                .write_header(&changed, 2 * PAGE_BYTES + 5)
                .unwrap();
            recording.publish(&kind).unwrap();
            assert!(store.open(&kind, RATE).is_err(), "{changed:?}");
        }
    }

    #[test]
    fn one_process_makes_a_state_and_removes_what_a_killed_one_has_left() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let kind = Kind::named("a");
        let recording = store.begin(&kind).unwrap().unwrap();
        assert!(store.begin(&kind).unwrap().is_none());
        drop(recording);
        let left = store.directory.join(".new-a.state-0123");
        std::fs::write(&left, "half").unwrap();
        make(&store, &kind);
        assert!(!left.exists());
    }

    #[test]
    fn what_failed_is_not_tried_again_for_a_day() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let kind = Kind::named("a");
        assert!(!store.has_given_up(&kind));
        store.give_up(&kind, "no reason");
        assert!(store.has_given_up(&kind) && !store.has_given_up(&Kind::named("b")));
        let file = File::options()
            .write(true)
            .open(store.failed_path(&kind))
            .unwrap();
        file.set_modified(SystemTime::now() - GIVEN_UP_TIME)
            .unwrap();
        assert!(!store.has_given_up(&kind));
        store.give_up(&kind, "no reason");
        make(&store, &kind);
        assert!(!store.has_given_up(&kind));
    }

    #[test]
    fn what_was_used_the_longest_time_ago_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        for number in 0..FILES_MAX + 2 {
            let kind = Kind::named(&format!("k{number:02}"));
            make(&store, &kind);
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            let file = File::options().write(true).open(store.path(&kind)).unwrap();
            file.set_modified(at).unwrap();
        }
        // The first was the oldest until it was used.
        assert!(!store.path(&Kind::named("k00")).exists());
        store.open(&Kind::named("k02"), RATE).unwrap().unwrap();
        make(&store, &Kind::named("new"));
        assert!(store.path(&Kind::named("k02")).exists());
        assert!(!store.path(&Kind::named("k03")).exists());
    }
}
