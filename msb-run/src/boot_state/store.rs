//! Boot state files: `boot/KIND.state` in the state directory; man page msb-state(5).
//!
//! A file is a page with the offset of its header, then the pages of the guest's memory that are
//! not zero, then the state of the devices, then the header as JSON up to the end of the file. The
//! size therefore reveals a truncated file. There is no checksum: over 90 MiB it would take 15 to
//! 30 ms at each start, a tenth of the start. The file is flushed before it is renamed to its final
//! name.

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

use super::saved::SavedGuest;
use crate::engine::kind::{TscRate, VmKind};

/// Magic bytes at the start of a file.
const MAGIC: &[u8; 16] = b"msb boot state1\n";
/// Size of a page of the guest, and of the first page of a file, in bytes.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// Maximum size of the header, in bytes.
const HEADER_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Maximum size of the device state, in bytes. That of a small VM takes some hundred kilobytes.
pub(crate) const DEVICES_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Maximum number of files, and of their total bytes. The least recently used file is removed
/// first.
const FILES_MAX: usize = 16;
const BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// Time after a failure before recording is tried again.
const RETRY_FAILED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The header of a boot state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StateHeader {
    /// The kind of the VM.
    pub(crate) kind: VmKind,
    /// The TSC rate that the guest was given.
    pub(crate) tsc_khz: TscRate,
    /// The hello of the guest's agent.
    pub(crate) hello: Hello,
    /// Size of the guest's memory, in bytes.
    pub(crate) memory_bytes: u64,
    /// The device state in the file.
    pub(crate) devices: FileExtent,
    /// The memory ranges that are not zero; `to` is the offset in the guest's memory.
    pub(crate) memory: Vec<MemoryCopy>,
    /// The guest, if its memory was saved while it was running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) guest: Option<Box<SavedGuest>>,
}

/// A range of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileExtent {
    pub(crate) at: u64,
    pub(crate) bytes: u64,
}

/// A range of the file that is a range of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryCopy {
    pub(crate) to: u64,
    #[serde(flatten)]
    pub(crate) from: FileExtent,
    /// CRC-32 of the bytes, in the memory of a running guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) crc: Option<u32>,
}

/// An open boot state.
#[derive(Debug)]
pub(crate) struct BootState {
    pub(crate) file: File,
    pub(crate) header: StateHeader,
}

/// The directory of the boot state files.
#[derive(Clone, Debug)]
pub(crate) struct BootStateStore {
    directory: PathBuf,
}

/// A boot state that is being recorded. It holds the lock, so that only one process records at a
/// time.
#[derive(Debug)]
pub(crate) struct StateRecording {
    pub(crate) new: NewFile,
    store: BootStateStore,
    _lock: Lock,
}

impl BootStateStore {
    pub(crate) fn of(home: &Home) -> BootStateStore {
        BootStateStore { directory: home.boot_dir() }
    }

    fn path(&self, kind: &VmKind) -> PathBuf {
        self.directory.join(format!("{}{}", kind.as_str(), layout::BOOT_STATE))
    }

    /// Opens the state of a kind. Returns an error when the file is damaged, and `None` when there
    /// is no file or the guest in it would keep wrong time on this host.
    pub(crate) fn open(&self, kind: &VmKind, tsc: TscRate) -> anyhow::Result<Option<BootState>> {
        let path = self.path(kind);
        let cannot = || format!("cannot read '{}'", path.display());
        let file = match File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.with_context(cannot)?,
        };
        let header = read_header(&file).with_context(cannot)?;
        ensure!(
            header.kind == *kind,
            "'{}' contains a state of another kind than its name",
            path.display()
        );
        if !header.tsc_khz.agrees(tsc) {
            return Ok(None);
        }
        // The modification time orders the files by their last use. It need not be exact.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(BootState { file, header }))
    }

    /// Records that no state of a kind can be made on this host, and why. Recording is not tried
    /// again for a day.
    pub(crate) fn mark_failed(&self, kind: &VmKind, why: &str) {
        let _ = write::create_dir(&self.directory);
        // Without this file each start tries again.
        let _ = write::replace(&self.failed_path(kind), format!("{why}\n").as_bytes());
    }

    /// Returns whether recording failed within the last day.
    pub(crate) fn has_failed(&self, kind: &VmKind) -> bool {
        let noted = std::fs::metadata(self.failed_path(kind)).and_then(|meta| meta.modified());
        noted.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < RETRY_FAILED_AFTER))
    }

    fn failed_path(&self, kind: &VmKind) -> PathBuf {
        let name = format!("{}{}", kind.as_str(), layout::BOOT_STATE_FAILED);
        self.directory.join(name)
    }

    /// Creates a file, unless another process is recording.
    pub(crate) fn start_recording(&self, kind: &VmKind) -> anyhow::Result<Option<StateRecording>> {
        write::create_dir(&self.directory)?;
        let lock = Lock::try_exclusive(&self.directory.join(layout::BOOT_STATE_LOCK))?;
        let Some(lock) = lock else { return Ok(None) };
        self.remove_unfinished();
        Ok(Some(StateRecording {
            new: NewFile::create(&self.path(kind))?,
            store: self.clone(),
            _lock: lock,
        }))
    }

    /// Removes the unusable state of a kind.
    pub(crate) fn remove(&self, kind: &VmKind) {
        let _ = std::fs::remove_file(self.path(kind));
    }

    /// Removes the files of processes that were killed while recording. The caller holds the lock.
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

    /// Removes the least recently used files until number and total size are within the limits.
    fn evict_oldest(&self, newest: &Path) {
        let mut states: Vec<(SystemTime, u64, PathBuf)> = self
            .files()
            .filter(|path| {
                path.extension().is_some_and(|ending| ending == &layout::BOOT_STATE[1..])
            })
            .filter(|path| path != newest)
            .filter_map(|path| {
                let meta = std::fs::metadata(&path).ok()?;
                Some((meta.modified().ok()?, meta.blocks() * 512, path))
            })
            .collect();
        states.sort_by(|one, other| other.cmp(one));
        let mut bytes = std::fs::metadata(newest).map_or(0, |meta| meta.blocks() * 512);
        for (number, (_, size, path)) in states.into_iter().enumerate() {
            bytes += size;
            if number + 1 >= FILES_MAX || bytes > BYTES_MAX {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl StateRecording {
    /// Flushes the file and renames it to its final name.
    pub(crate) fn publish(self, kind: &VmKind) -> anyhow::Result<()> {
        let path = self.store.path(kind);
        self.new.commit()?;
        let _ = std::fs::remove_file(self.store.failed_path(kind));
        self.store.evict_oldest(&path);
        Ok(())
    }
}

/// Writes the header behind all other data; `end` is the current end of the file.
pub(super) fn write_header(file: &File, header: &StateHeader, end: u64) -> anyhow::Result<()> {
    let json = serde_json::to_vec(header)?;
    ensure!(json.len() as u64 <= HEADER_BYTES_MAX, "the memory is in too many pieces");
    file.write_all_at(&json, end)?;
    let mut first = MAGIC.to_vec();
    first.extend_from_slice(&end.to_le_bytes());
    first.extend_from_slice(&(json.len() as u64).to_le_bytes());
    file.write_all_at(&first, 0)?;
    Ok(())
}

/// Reads the header, and checks that it refers to data of the file alone.
pub(super) fn read_header(file: &File) -> anyhow::Result<StateHeader> {
    let size = file.metadata()?.len();
    let mut first = [0; 32];
    file.read_exact_at(&mut first, 0).context("its first page is missing")?;
    ensure!(first.starts_with(MAGIC), "it is not a saved state");
    let number = |at: usize| {
        let bytes = first[at..at + 8].try_into().unwrap_or_default();
        u64::from_le_bytes(bytes)
    };
    let (at, bytes) = (number(16), number(24));
    ensure!(
        bytes <= HEADER_BYTES_MAX && at.checked_add(bytes) == Some(size),
        "its size does not match its header"
    );
    let mut json = vec![0; bytes as usize];
    file.read_exact_at(&mut json, at)?;
    let header: StateHeader = serde_json::from_slice(&json).context("its header is damaged")?;
    let inside = |extent: &FileExtent| {
        extent.at.checked_add(extent.bytes).is_some_and(|end| extent.at >= PAGE_BYTES && end <= at)
    };
    let is_part = |copy: &MemoryCopy| {
        copy.to.checked_add(copy.from.bytes).is_some_and(|end| end <= header.memory_bytes)
            && inside(&copy.from)
    };
    ensure!(
        header.devices.bytes <= DEVICES_BYTES_MAX
            && inside(&header.devices)
            && header.memory.iter().all(is_part),
        "its header refers to data outside the file"
    );
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: TscRate = TscRate(3_000_000);

    fn store(directory: &Path) -> BootStateStore {
        BootStateStore { directory: directory.join("boot") }
    }

    fn header(kind: &VmKind) -> StateHeader {
        StateHeader {
            kind: kind.clone(),
            tsc_khz: RATE,
            hello: Hello::of("agent", &[]),
            memory_bytes: 3 * PAGE_BYTES,
            devices: FileExtent { at: 2 * PAGE_BYTES, bytes: 5 },
            memory: vec![MemoryCopy {
                to: PAGE_BYTES,
                from: FileExtent { at: PAGE_BYTES, bytes: PAGE_BYTES },
                crc: None,
            }],
            guest: None,
        }
    }

    /// Starts a recording when no other one runs. A process that a test beside this one starts
    /// inherits the lock until its exec, so a free lock may be held for a moment.
    fn start(store: &BootStateStore, kind: &VmKind) -> StateRecording {
        loop {
            match store.start_recording(kind).unwrap() {
                Some(recording) => return recording,
                None => std::thread::yield_now(),
            }
        }
    }

    fn make(store: &BootStateStore, kind: &VmKind) {
        let recording = start(store, kind);
        write_header(&recording.new.file, &header(kind), 2 * PAGE_BYTES + 5).unwrap();
        recording.publish(kind).unwrap();
    }

    #[test]
    fn a_state_is_found_by_its_kind_on_a_host_with_its_rate_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let kind = VmKind::named("a");
        assert!(store.open(&kind, RATE).unwrap().is_none());
        make(&store, &kind);
        assert!(store.open(&kind, RATE).unwrap().is_some());
        assert!(store.open(&VmKind::named("b"), RATE).unwrap().is_none());
        assert!(store.open(&kind, TscRate(2_000_000)).unwrap().is_none());
        let other = VmKind::named("b");
        std::fs::rename(store.path(&kind), store.path(&other)).unwrap();
        assert!(store.open(&other, RATE).is_err());
    }

    #[test]
    fn a_file_that_was_cut_has_grown_or_is_something_else_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let kind = VmKind::named("a");
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
        let kind = VmKind::named("a");
        let changes: [fn(&mut StateHeader); 5] = [
            |h| h.devices.bytes = 6,
            |h| h.devices.at = 0,
            |h| h.memory[0].to = 3 * PAGE_BYTES,
            |h| h.memory[0].to = u64::MAX,
            |h| h.memory[0].from.at = u64::MAX,
        ];
        for change in changes {
            let mut changed = header(&kind);
            change(&mut changed);
            let recording = start(&store, &kind);
            write_header(&recording.new.file, &changed, 2 * PAGE_BYTES + 5).unwrap();
            recording.publish(&kind).unwrap();
            assert!(store.open(&kind, RATE).is_err(), "{changed:?}");
        }
    }

    #[test]
    fn one_process_makes_a_state_and_removes_what_a_killed_one_has_left() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let kind = VmKind::named("a");
        let recording = start(&store, &kind);
        assert!(store.start_recording(&kind).unwrap().is_none());
        drop(recording);
        let left = store.directory.join(".new-a.state-0123");
        std::fs::write(&left, "half").unwrap();
        make(&store, &kind);
        assert!(!left.exists());
    }

    /// Whoever opens the state while it is published two hundred times finds none or a whole one.
    #[test]
    fn two_hundred_races_to_publish_leave_one_whole_state_each() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        for number in 0..200 {
            let kind = VmKind::named(&format!("kind{}", number % 20));
            store.remove(&kind);
            let published = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..4)
                    .map(|_| {
                        scope.spawn(|| {
                            while store.open(&kind, RATE).unwrap().is_none() {
                                let Some(recording) = store.start_recording(&kind).unwrap() else {
                                    continue;
                                };
                                write_header(
                                    &recording.new.file,
                                    &header(&kind),
                                    2 * PAGE_BYTES + 5,
                                )
                                .unwrap();
                                recording.publish(&kind).unwrap();
                                return 1;
                            }
                            0
                        })
                    })
                    .collect();
                let reader = scope.spawn(|| {
                    for _ in 0..20 {
                        store.open(&kind, RATE).unwrap();
                    }
                });
                reader.join().unwrap();
                racers.into_iter().map(|racer| racer.join().unwrap()).sum::<u32>()
            });
            assert!(published >= 1);
            assert!(store.open(&kind, RATE).unwrap().is_some());
        }
        assert!(!store.files().any(|path| path.to_string_lossy().contains(".new-")));
    }

    #[test]
    fn what_failed_is_not_tried_again_for_a_day() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let kind = VmKind::named("a");
        assert!(!store.has_failed(&kind));
        store.mark_failed(&kind, "no reason");
        assert!(store.has_failed(&kind) && !store.has_failed(&VmKind::named("b")));
        let file = File::options().write(true).open(store.failed_path(&kind)).unwrap();
        file.set_modified(SystemTime::now() - RETRY_FAILED_AFTER).unwrap();
        assert!(!store.has_failed(&kind));
        store.mark_failed(&kind, "no reason");
        make(&store, &kind);
        assert!(!store.has_failed(&kind));
    }

    #[test]
    fn what_was_used_the_longest_time_ago_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        for number in 0..FILES_MAX + 2 {
            let kind = VmKind::named(&format!("k{number:02}"));
            make(&store, &kind);
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            let file = File::options().write(true).open(store.path(&kind)).unwrap();
            file.set_modified(at).unwrap();
        }
        // The first was the oldest until it was used.
        assert!(!store.path(&VmKind::named("k00")).exists());
        store.open(&VmKind::named("k02"), RATE).unwrap().unwrap();
        make(&store, &VmKind::named("new"));
        assert!(store.path(&VmKind::named("k02")).exists());
        assert!(!store.path(&VmKind::named("k03")).exists());
    }
}
