//! Writing the image store.
//!
//! Order is everything: layers, configuration, manifest, disk, reference; each flushed before the next appears, so a
//! kill at any moment leaves nothing that points to what is not there. New files have names beginning with `.new-`; a
//! process that is killed leaves them, and [`sweep`] removes them when nobody else uses the store.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use libmsb::digest::Digest;
use libmsb::state::Home;
use libmsb::state::images::Store;
use libmsb::state::lock::Lock;
use libmsb::state::{layout, write};

use crate::error::StoreWrite;
use crate::layer::index::Summary;

/// Makes the store ready for writing and gives its lock, shared. Left-overs go first, if nobody else uses the store.
pub(crate) fn open_for_adding(home: &Home) -> Result<(Store, Lock)> {
    home.prepare()?;
    let store = home.images();
    store.prepare()?;
    if let Some(lock) = Lock::try_exclusive(&store.lock())? {
        sweep(&store);
        drop(lock);
    }
    let lock = Lock::shared(&store.lock())?;
    Ok((store, lock))
}

/// Removes what killed processes left. The caller holds the lock alone. Failures leave things as they are: a
/// left-over is inert.
pub(crate) fn sweep(store: &Store) {
    for folder in [
        store.layers(),
        store.disks(),
        store.configs(),
        store.manifests(),
        store.refs(),
    ] {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(layout::NEW_PREFIX.as_bytes())
            {
                drop(std::fs::remove_file(entry.path()));
            }
        }
    }
}

/// The two files of a layer that has no name yet. They go away with this value unless it was committed.
#[derive(Debug)]
pub(crate) struct NewLayer {
    index: PathBuf,
    data: PathBuf,
}

impl NewLayer {
    /// Makes both files, empty.
    pub(crate) fn create(store: &Store) -> Result<NewLayer> {
        let name = format!("{}{}", layout::NEW_PREFIX, write::random_hex()?);
        let path = |suffix: &str| store.layers().join(name.clone() + suffix);
        let new = NewLayer {
            index: path(layout::LAYER_INDEX),
            data: path(layout::LAYER_DATA),
        };
        for path in [&new.index, &new.data] {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .map_err(StoreWrite)?;
        }
        Ok(new)
    }

    /// Where the index is until it has a name.
    pub(crate) fn index(&self) -> &Path {
        &self.index
    }

    /// Opens the index and the data for writing.
    pub(crate) fn files(&self) -> Result<(File, File)> {
        let open = |path: &Path| {
            OpenOptions::new()
                .write(true)
                .open(path)
                .map_err(StoreWrite)
        };
        Ok((open(&self.index)?, open(&self.data)?))
    }

    /// Flushes both and gives them their names, the data first: a layer is there when its index is.
    pub(crate) fn commit(&self, store: &Store, diff_id: &Digest) -> Result<()> {
        for path in [&self.data, &self.index] {
            File::open(path)
                .and_then(|file| file.sync_data())
                .map_err(StoreWrite)?;
        }
        std::fs::rename(&self.data, store.layer_data_path(diff_id)).map_err(StoreWrite)?;
        std::fs::rename(&self.index, store.layer_index_path(diff_id)).map_err(StoreWrite)?;
        write::sync_dir(&store.layers())
    }
}

impl Drop for NewLayer {
    fn drop(&mut self) {
        // After a commit they have other names.
        drop(std::fs::remove_file(&self.index));
        drop(std::fs::remove_file(&self.data));
    }
}

/// Layers that an image needs and the store does not have yet. They enter it together, when the whole image is known to
/// be good.
#[derive(Debug, Default)]
pub(crate) struct NewLayers(Vec<(Digest, NewLayer)>);

impl NewLayers {
    /// Keeps a layer for the store, unless it is there or among these already.
    pub(crate) fn add(&mut self, store: &Store, diff_id: &Digest, files: NewLayer) {
        let known = self.0.iter().any(|(digest, _)| digest == diff_id);
        if !known && layer(store, diff_id).is_none() {
            self.0.push((*diff_id, files));
        }
    }

    /// Keeps a layer for the store, to take the place of one that may be there.
    pub(crate) fn replace(&mut self, diff_id: &Digest, files: NewLayer) {
        self.0.push((*diff_id, files));
    }

    /// Where the index of a layer is: in the store, or on its way there.
    pub(crate) fn index_path(&self, store: &Store, diff_id: &Digest) -> PathBuf {
        let new = self.0.iter().find(|(digest, _)| digest == diff_id);
        new.map_or_else(
            || store.layer_index_path(diff_id),
            |(_, layer)| layer.index().to_owned(),
        )
    }

    /// Puts all of them into the store.
    pub(crate) fn commit(&mut self, store: &Store) -> Result<()> {
        for (diff_id, layer) in self.0.drain(..) {
            layer.commit(store, &diff_id)?;
        }
        Ok(())
    }
}

/// The summary of a layer that the store has, whole as far as its sizes tell.
pub(crate) fn layer(store: &Store, diff_id: &Digest) -> Option<Summary> {
    let (summary, _) =
        Summary::read(&mut File::open(store.layer_index_path(diff_id)).ok()?).ok()?;
    let data = std::fs::metadata(store.layer_data_path(diff_id)).ok()?;
    (summary.diff_id == *diff_id && data.len() == summary.data_bytes).then_some(summary)
}

/// Stores a document under its digest, unless it is there.
pub(crate) fn put_document(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    write::replace(path, bytes)
}

/// Reads a document of the store and checks that it is what its name says.
pub(crate) fn read_document(path: &Path, digest: &Digest) -> Result<Vec<u8>> {
    let bytes = write::read_bounded(path, libmsb::state::images::DOCUMENT_BYTES_MAX)?;
    let bytes = bytes.with_context(|| format!("'{}' is missing", path.display()))?;
    ensure!(
        crate::stream::digest_of(&bytes) == *digest,
        "'{}' is damaged",
        path.display()
    );
    Ok(bytes)
}
