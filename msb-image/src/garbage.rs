//! What nobody needs any more goes, or is only counted.
//!
//! References go first and what they lead to after them, top down: what is left after a kill is waste that leads to
//! nothing, and goes next time.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use libmsb::digest::Digest;
use libmsb::state::images::Store;
use libmsb::state::lock::{Lock, is_held};
use libmsb::state::{layout, write};

use crate::uses::Live;

/// Bytes of a block as stat(2) counts them.
const STAT_BLOCK_BYTES: u64 = 512;

/// Time after which a state from which no guest has started is waste.
const BOOT_STATE_UNUSED: Duration = Duration::from_secs(24 * 60 * 60);

/// Whether files go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Count,
    Remove,
}

/// How many files of each kind have gone, or would go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(crate) references: u64,
    pub(crate) manifests: u64,
    pub(crate) configs: u64,
    pub(crate) layers: u64,
    pub(crate) blobs: u64,
    pub(crate) erofs: u64,
    pub(crate) vmdk: u64,
    pub(crate) downloads: u64,
    /// States of guests that later guests start from.
    pub(crate) boot_states: u64,
    /// What killed processes left.
    pub(crate) leftovers: u64,
    /// Room on the disk, as the file system counts it: holes take none.
    pub(crate) bytes: u64,
}

impl Gone {
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Gone::default()
    }
}

/// Removes or counts.
pub(crate) struct Garbage<'a> {
    store: &'a Store,
    mode: Mode,
    pub(crate) gone: Gone,
}

impl<'a> Garbage<'a> {
    /// To remove, the caller holds the store's lock alone.
    pub(crate) fn new(store: &'a Store, mode: Mode) -> Garbage<'a> {
        Garbage {
            store,
            mode,
            gone: Gone::default(),
        }
    }

    /// Takes references away, for good before anything that they lead to.
    pub(crate) fn references(&mut self, paths: impl IntoIterator<Item = PathBuf>) -> Result<()> {
        for path in paths {
            self.gone.references += self.file(&path)?;
        }
        self.flush(&self.store.refs())
    }

    /// Takes away everything that is not live.
    pub(crate) fn orphans(&mut self, live: &Live) -> Result<()> {
        let store = self.store;
        let (disks, layers) = (store.disks(), store.layers());
        self.gone.vmdk += self.others(&disks, layout::DISK_VMDK, &live.manifests)?;
        self.gone.erofs += self.others(&disks, layout::DISK_EROFS, &live.manifests)?;
        self.flush(&disks)?;
        self.gone.manifests += self.others(&store.manifests(), "", &live.manifests)?;
        self.flush(&store.manifests())?;
        self.gone.configs += self.others(&store.configs(), "", &live.configs)?;
        self.flush(&store.configs())?;
        self.gone.blobs += self.others(&store.blobs(), "", &live.blobs)?;
        // A layer is there as long as its index is.
        self.gone.layers += self.others(&layers, layout::LAYER_INDEX, &live.layers)?;
        self.flush(&layers)?;
        self.others(&layers, layout::LAYER_DATA, &live.layers)?;
        self.leftovers()
    }

    /// Takes away what killed processes left in the store's folders.
    pub(crate) fn leftovers(&mut self) -> Result<()> {
        let store = self.store;
        for folder in [
            store.layers(),
            store.blobs(),
            store.disks(),
            store.configs(),
            store.manifests(),
            store.refs(),
        ] {
            for name in names(&folder)? {
                if name.starts_with(layout::NEW_PREFIX) {
                    self.gone.leftovers += self.file(&folder.join(name))?;
                }
            }
        }
        Ok(())
    }

    /// Takes away the states of guests in this directory from which no guest has started for a day. A start makes a new one.
    pub(crate) fn boot_states(&mut self, directory: &Path) -> Result<()> {
        for name in names(directory)? {
            let path = directory.join(&name);
            // A start that uses one notes it so.
            let used = std::fs::metadata(&path).and_then(|meta| meta.modified());
            let is_old =
                used.is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= BOOT_STATE_UNUSED));
            if !is_old {
                continue;
            }
            if name.ends_with(layout::BOOT_STATE) {
                self.gone.boot_states += self.file(&path)?;
            } else if name.ends_with(layout::BOOT_STATE_FAILED) {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    /// Takes away downloads, half or whole, that nobody works on: their writers hold a lock on them.
    pub(crate) fn downloads(&mut self) -> Result<()> {
        let folder = self.store.downloads();
        for name in names(&folder)? {
            let path = folder.join(name);
            if !path.is_file() || is_held(&path)? {
                continue;
            }
            // Whoever comes now finds it locked, and then gone.
            let lock = match self.mode {
                Mode::Count => None,
                Mode::Remove => match Lock::try_exclusive(&path)? {
                    Some(lock) => Some(lock),
                    None => continue,
                },
            };
            self.gone.downloads += self.file(&path)?;
            drop(lock);
        }
        Ok(())
    }

    /// Files of a folder that are named by a digest that is not among those. Foreign names are left alone.
    fn others(&mut self, folder: &Path, suffix: &str, digests: &HashSet<Digest>) -> Result<u64> {
        let mut count = 0;
        for name in names(folder)? {
            let digest = digest_of_name(&name, suffix);
            if digest.is_some_and(|digest| !digests.contains(&digest)) {
                count += self.file(&folder.join(name))?;
            }
        }
        Ok(count)
    }

    /// Gives 1 if the file was there.
    fn file(&mut self, path: &Path) -> Result<u64> {
        let Ok(metadata) = std::fs::symlink_metadata(path) else {
            return Ok(0);
        };
        if self.mode == Mode::Remove {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
                removed => {
                    removed.with_context(|| format!("cannot remove '{}'", path.display()))?;
                }
            }
        }
        // Under another name the file stays on the disk.
        if metadata.nlink() == 1 {
            self.gone.bytes += metadata.blocks() * STAT_BLOCK_BYTES;
        }
        Ok(1)
    }

    fn flush(&self, folder: &Path) -> Result<()> {
        // Whoever made the store may have been killed before this folder was there.
        if self.mode == Mode::Count || !folder.is_dir() {
            return Ok(());
        }
        write::sync_dir(folder)
    }
}

/// The digest that a name of the store says.
pub(crate) fn digest_of_name(name: &str, suffix: &str) -> Option<Digest> {
    let hex = name.strip_suffix(suffix)?;
    format!("sha256:{hex}").parse().ok()
}

/// Names in a folder, sorted; none when it is not there.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let cannot = || format!("cannot list '{}'", folder.display());
    let entries = match std::fs::read_dir(folder) {
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

/// Room that a file has on the disk; none when it is not there.
pub(crate) fn bytes_on_disk(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * STAT_BLOCK_BYTES)
}
