//! Writing the image store.
//!
//! Order is everything: layers, configuration, manifest, disk, reference; each flushed before the next appears, so a
//! kill at any moment leaves nothing that points to what is not there. New files have names beginning with `.new-`; a
//! process that is killed leaves them, and the next one that adds something removes them when nobody else uses the store.

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
use crate::garbage::{Garbage, Mode};
use crate::layer::index::Summary;

/// Makes the store ready for writing and gives its lock, shared. Left-overs go first, if nobody else uses the store.
pub(crate) fn open_for_adding(home: &Home) -> Result<(Store, Lock)> {
    home.prepare()?;
    let store = home.images();
    store.prepare()?;
    if let Some(lock) = Lock::try_exclusive(&store.lock())? {
        // Whatever stays is inert.
        drop(Garbage::new(&store, Mode::Remove).leftovers());
        drop(lock);
    }
    let lock = Lock::shared(&store.lock())?;
    Ok((store, lock))
}

/// The two files of a layer that has no name yet, and perhaps the blob as it came. They go away with this value unless it
/// was committed.
#[derive(Debug)]
pub(crate) struct NewLayer {
    index: PathBuf,
    data: PathBuf,
    blob: Option<NewBlob>,
    /// Whether the store has the layer, and only the blob is new.
    is_known: bool,
}

/// A layer as it came, compressed.
#[derive(Debug)]
struct NewBlob {
    path: PathBuf,
    /// Not known before all of it is there.
    digest: Option<Digest>,
}

impl NewLayer {
    /// Makes both files, empty.
    pub(crate) fn create(store: &Store) -> Result<NewLayer> {
        let name = format!("{}{}", layout::NEW_PREFIX, write::random_hex()?);
        let path = |suffix: &str| store.layers().join(name.clone() + suffix);
        let new = NewLayer {
            index: path(layout::LAYER_INDEX),
            data: path(layout::LAYER_DATA),
            blob: None,
            is_known: false,
        };
        for path in [&new.index, &new.data] {
            create(path)?;
        }
        Ok(new)
    }

    /// Makes them, and a third one for the blob if that is to be kept.
    pub(crate) fn create_keeping(store: &Store, keep_blobs: bool) -> Result<NewLayer> {
        let mut new = NewLayer::create(store)?;
        if keep_blobs {
            let name = format!("{}{}", layout::NEW_PREFIX, write::random_hex()?);
            let path = store.blobs().join(name);
            create(&path)?;
            new.blob = Some(NewBlob { path, digest: None });
        }
        Ok(new)
    }

    /// Where the index is until it has a name.
    pub(crate) fn index(&self) -> &Path {
        &self.index
    }

    /// Opens the index and the data for writing.
    pub(crate) fn files(&self) -> Result<(File, File)> {
        Ok((open(&self.index)?, open(&self.data)?))
    }

    /// Opens the file for the blob, if that is to be kept.
    pub(crate) fn blob_file(&self) -> Result<Option<File>> {
        self.blob.as_ref().map(|blob| open(&blob.path)).transpose()
    }

    /// The blob is whole. One that is the tar itself need not be kept.
    pub(crate) fn blob_is(&mut self, digest: &Digest, diff_id: &Digest) {
        if digest == diff_id {
            self.forget_blob();
        } else if let Some(blob) = &mut self.blob {
            blob.digest = Some(*digest);
        }
    }

    /// The blob is not to be kept.
    pub(crate) fn forget_blob(&mut self) {
        if let Some(blob) = self.blob.take() {
            drop(std::fs::remove_file(blob.path));
        }
    }

    /// Flushes both and gives them their names, the data first: a layer is there when its index is.
    pub(crate) fn commit(&self, store: &Store, diff_id: &Digest) -> Result<()> {
        if let Some((blob, digest)) = self.whole_blob() {
            name(blob, &store.blob_path(&digest))?;
            write::sync_dir(&store.blobs())?;
        }
        if self.is_known {
            return Ok(());
        }
        flush(&self.index)?;
        name(&self.data, &store.layer_data_path(diff_id))?;
        std::fs::rename(&self.index, store.layer_index_path(diff_id)).map_err(StoreWrite)?;
        write::sync_dir(&store.layers())
    }

    fn whole_blob(&self) -> Option<(&Path, Digest)> {
        let blob = self.blob.as_ref()?;
        Some((&blob.path, blob.digest?))
    }
}

impl Drop for NewLayer {
    fn drop(&mut self) {
        // After a commit they have other names.
        drop(std::fs::remove_file(&self.index));
        drop(std::fs::remove_file(&self.data));
        self.forget_blob();
    }
}

fn create(path: &Path) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(StoreWrite)?;
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    Ok(OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(StoreWrite)?)
}

fn flush(path: &Path) -> Result<()> {
    Ok(File::open(path)
        .and_then(|file| file.sync_data())
        .map_err(StoreWrite)?)
}

fn name(new: &Path, path: &Path) -> Result<()> {
    flush(new)?;
    Ok(std::fs::rename(new, path).map_err(StoreWrite)?)
}

/// Layers that an image needs and the store does not have yet. They enter it together, when the whole image is known to
/// be good.
#[derive(Debug, Default)]
pub(crate) struct NewLayers(Vec<(Digest, NewLayer)>);

impl NewLayers {
    /// Keeps a layer for the store, unless it is there or among these already; and its blob, if that is kept.
    pub(crate) fn add(&mut self, store: &Store, diff_id: &Digest, mut files: NewLayer) {
        files.is_known = self.find(diff_id).is_some() || layer(store, diff_id).is_some();
        if !files.is_known || files.whole_blob().is_some() {
            self.0.push((*diff_id, files));
        }
    }

    fn find(&self, diff_id: &Digest) -> Option<&NewLayer> {
        let mut new = self.0.iter();
        let (_, files) = new.find(|(digest, files)| digest == diff_id && !files.is_known)?;
        Some(files)
    }

    /// Keeps a layer for the store, to take the place of one that may be there.
    pub(crate) fn replace(&mut self, diff_id: &Digest, files: NewLayer) {
        self.0.push((*diff_id, files));
    }

    /// Where the index of a layer is: in the store, or on its way there.
    pub(crate) fn index_path(&self, store: &Store, diff_id: &Digest) -> PathBuf {
        self.find(diff_id).map_or_else(
            || store.layer_index_path(diff_id),
            |layer| layer.index().to_owned(),
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
