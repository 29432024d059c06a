//! Garbage collection: removes, or only counts, the files of the store that are not in the live
//! set.
//!
//! References are removed first, then the files that they lead to, top down. A kill therefore
//! leaves only files that nothing refers to; the next garbage collection removes them.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use libmsb::digest::Digest;
use libmsb::state::images::Store;
use libmsb::state::lock::{Lock, is_held};
use libmsb::state::{layout, write};

use crate::store::live::LiveSet;

/// Bytes of a block in `st_blocks` of stat(2).
const STAT_BLOCK_BYTES: u64 = 512;

/// Age after which an unused boot state is garbage.
const BOOT_STATE_UNUSED_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Action on garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CollectMode {
    Count,
    Remove,
}

/// Numbers of files of each kind that were removed, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GarbageCounts {
    pub(crate) references: u64,
    pub(crate) manifests: u64,
    pub(crate) configs: u64,
    pub(crate) layers: u64,
    pub(crate) blobs: u64,
    pub(crate) erofs: u64,
    pub(crate) vmdk: u64,
    pub(crate) downloads: u64,
    /// Saved VM states that later guests start from.
    pub(crate) boot_states: u64,
    /// Temporary files of killed processes.
    pub(crate) leftovers: u64,
    /// Bytes of disk space, as the file system counts them: holes take none.
    pub(crate) bytes: u64,
}

impl GarbageCounts {
    pub(crate) fn is_zero(&self) -> bool {
        *self == GarbageCounts::default()
    }
}

/// A garbage collection of one store.
pub(crate) struct GarbageCollector<'a> {
    store: &'a Store,
    mode: CollectMode,
    pub(crate) counts: GarbageCounts,
}

impl<'a> GarbageCollector<'a> {
    /// Starts a garbage collection. To remove files, the caller holds the store's lock exclusively.
    pub(crate) fn new(store: &'a Store, mode: CollectMode) -> GarbageCollector<'a> {
        GarbageCollector { store, mode, counts: GarbageCounts::default() }
    }

    /// Collects references. Their removal is durable before anything that they lead to is removed.
    pub(crate) fn collect_references(
        &mut self,
        paths: impl IntoIterator<Item = PathBuf>,
    ) -> Result<()> {
        for path in paths {
            self.counts.references += self.collect_file(&path)?;
        }
        self.flush(&self.store.refs())
    }

    /// Collects every file that is not in the live set.
    pub(crate) fn collect_orphans(&mut self, live: &LiveSet) -> Result<()> {
        let store = self.store;
        let (disks, layers) = (store.disks(), store.layers());
        self.counts.vmdk += self.collect_unlisted(&disks, layout::DISK_VMDK, &live.manifests)?;
        self.counts.erofs += self.collect_unlisted(&disks, layout::DISK_EROFS, &live.manifests)?;
        self.flush(&disks)?;
        self.counts.manifests += self.collect_unlisted(&store.manifests(), "", &live.manifests)?;
        self.flush(&store.manifests())?;
        self.counts.configs += self.collect_unlisted(&store.configs(), "", &live.configs)?;
        self.flush(&store.configs())?;
        self.counts.blobs += self.collect_unlisted(&store.blobs(), "", &live.blobs)?;
        // A layer exists as long as its index does.
        self.counts.layers += self.collect_unlisted(&layers, layout::LAYER_INDEX, &live.layers)?;
        self.flush(&layers)?;
        self.collect_unlisted(&layers, layout::LAYER_DATA, &live.layers)?;
        self.collect_leftovers()
    }

    /// Collects the temporary files of killed processes in the store's directories.
    pub(crate) fn collect_leftovers(&mut self) -> Result<()> {
        let store = self.store;
        for directory in [
            store.layers(),
            store.blobs(),
            store.disks(),
            store.configs(),
            store.manifests(),
            store.refs(),
        ] {
            for name in names(&directory)? {
                if name.starts_with(layout::NEW_PREFIX) {
                    self.counts.leftovers += self.collect_file(&directory.join(name))?;
                }
            }
        }
        Ok(())
    }

    /// Collects boot states in this directory that no guest has started from for a day. The next
    /// cold boot saves a new one.
    pub(crate) fn collect_boot_states(&mut self, directory: &Path) -> Result<()> {
        for name in names(directory)? {
            let path = directory.join(&name);
            // A start from a boot state updates its modification time.
            let used = std::fs::metadata(&path).and_then(|meta| meta.modified());
            let is_old =
                used.is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= BOOT_STATE_UNUSED_AGE));
            if !is_old {
                continue;
            }
            if name.ends_with(layout::BOOT_STATE) {
                self.counts.boot_states += self.collect_file(&path)?;
            } else if name.ends_with(layout::BOOT_STATE_FAILED) {
                self.collect_file(&path)?;
            }
        }
        Ok(())
    }

    /// Collects partial and complete downloads that no process is writing. A writer holds a lock on
    /// its file.
    pub(crate) fn collect_downloads(&mut self) -> Result<()> {
        let directory = self.store.downloads();
        for name in names(&directory)? {
            let path = directory.join(name);
            if !path.is_file() || is_held(&path)? {
                continue;
            }
            // A process that opens the file from now on finds it locked, and then removed.
            let lock = match self.mode {
                CollectMode::Count => None,
                CollectMode::Remove => match Lock::try_exclusive(&path)? {
                    Some(lock) => Some(lock),
                    None => continue,
                },
            };
            self.counts.downloads += self.collect_file(&path)?;
            drop(lock);
        }
        Ok(())
    }

    /// Collects the files of a directory whose names are digests outside the given set. Other names
    /// are left alone.
    fn collect_unlisted(
        &mut self,
        directory: &Path,
        suffix: &str,
        digests: &HashSet<Digest>,
    ) -> Result<u64> {
        let mut count = 0;
        for name in names(directory)? {
            let digest = digest_of_name(&name, suffix);
            if digest.is_some_and(|digest| !digests.contains(&digest)) {
                count += self.collect_file(&directory.join(name))?;
            }
        }
        Ok(count)
    }

    /// Removes or counts a file. Returns 1 if it existed.
    fn collect_file(&mut self, path: &Path) -> Result<u64> {
        let Ok(metadata) = std::fs::symlink_metadata(path) else {
            return Ok(0);
        };
        if self.mode == CollectMode::Remove {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
                removed => {
                    removed.with_context(|| format!("cannot remove '{}'", path.display()))?;
                }
            }
        }
        // With another hard link the file keeps its disk space.
        if metadata.nlink() == 1 {
            self.counts.bytes += metadata.blocks() * STAT_BLOCK_BYTES;
        }
        Ok(1)
    }

    fn flush(&self, directory: &Path) -> Result<()> {
        // A process killed while it created the store may have left it without this directory.
        if self.mode == CollectMode::Count || !directory.is_dir() {
            return Ok(());
        }
        write::sync_dir(directory)
    }
}

/// Parses the digest in the name of a file of the store.
pub(crate) fn digest_of_name(name: &str, suffix: &str) -> Option<Digest> {
    let hex = name.strip_suffix(suffix)?;
    format!("sha256:{hex}").parse().ok()
}

/// Returns the names in a directory, sorted; none if the directory is missing.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>> {
    let cannot = || format!("cannot list '{}'", directory.display());
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(cannot),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.with_context(cannot)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Returns the disk space that a file takes; 0 if it is missing.
pub(crate) fn bytes_on_disk(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * STAT_BLOCK_BYTES)
}
