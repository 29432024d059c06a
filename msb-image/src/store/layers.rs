//! New layers: written under temporary names, and named when the whole image is valid.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use libmsb::digest::Digest;
use libmsb::state::images::Store;
use libmsb::state::{layout, write};

use crate::error::StoreWriteError;
use crate::store::find::layer;

/// The two files of a new layer that has no name yet, and optionally its blob. They are removed
/// when this value is dropped without a commit.
#[derive(Debug)]
pub(crate) struct NewLayer {
    index: PathBuf,
    data: PathBuf,
    blob: Option<NewBlob>,
    /// Set if the store has the layer, and only the blob is new.
    is_known: bool,
}

/// A layer as it was received, compressed.
#[derive(Debug)]
struct NewBlob {
    path: PathBuf,
    /// Digest of the blob, set when all of it was read.
    digest: Option<Digest>,
}

impl NewLayer {
    /// Creates both files, empty.
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

    /// Creates both files, and a third one for the blob with `keep_blobs`.
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

    /// Returns the temporary path of the index.
    pub(crate) fn index(&self) -> &Path {
        &self.index
    }

    /// Opens the index and the data for writing.
    pub(crate) fn files(&self) -> Result<(File, File)> {
        Ok((open(&self.index)?, open(&self.data)?))
    }

    /// Opens the file of the blob, if the blob is kept.
    pub(crate) fn blob_file(&self) -> Result<Option<File>> {
        self.blob.as_ref().map(|blob| open(&blob.path)).transpose()
    }

    /// Sets the digest of the complete blob. A blob that is the tar itself is not kept.
    pub(crate) fn set_blob_digest(&mut self, digest: &Digest, diff_id: &Digest) {
        if digest == diff_id {
            self.discard_blob();
        } else if let Some(blob) = &mut self.blob {
            blob.digest = Some(*digest);
        }
    }

    /// Removes the file of the blob.
    pub(crate) fn discard_blob(&mut self) {
        if let Some(blob) = self.blob.take() {
            drop(std::fs::remove_file(blob.path));
        }
    }

    /// Syncs the files and renames them to their final names, the data first: a layer exists once
    /// its index does.
    pub(crate) fn commit(&self, store: &Store, diff_id: &Digest) -> Result<()> {
        if let Some((blob, digest)) = self.complete_blob() {
            name(blob, &store.blob_path(&digest))?;
            write::sync_dir(&store.blobs())?;
        }
        if self.is_known {
            return Ok(());
        }
        flush(&self.index)?;
        name(&self.data, &store.layer_data_path(diff_id))?;
        std::fs::rename(&self.index, store.layer_index_path(diff_id)).map_err(StoreWriteError)?;
        write::sync_dir(&store.layers())
    }

    fn complete_blob(&self) -> Option<(&Path, Digest)> {
        let blob = self.blob.as_ref()?;
        Some((&blob.path, blob.digest?))
    }
}

impl Drop for NewLayer {
    fn drop(&mut self) {
        // After a commit the temporary names no longer exist.
        drop(std::fs::remove_file(&self.index));
        drop(std::fs::remove_file(&self.data));
        self.discard_blob();
    }
}

fn create(path: &Path) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(StoreWriteError)?;
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().write(true).open(path).map_err(StoreWriteError)?)
}

fn flush(path: &Path) -> Result<()> {
    Ok(File::open(path).and_then(|file| file.sync_data()).map_err(StoreWriteError)?)
}

fn name(new: &Path, path: &Path) -> Result<()> {
    flush(new)?;
    Ok(std::fs::rename(new, path).map_err(StoreWriteError)?)
}

/// Layers that an image needs and the store does not have yet. They are committed together, once
/// the whole image has been validated.
#[derive(Debug, Default)]
pub(crate) struct NewLayers(Vec<(Digest, NewLayer)>);

impl NewLayers {
    /// Adds a layer, unless the store or this list has it. Adds its blob if that is kept.
    pub(crate) fn add(&mut self, store: &Store, diff_id: &Digest, mut files: NewLayer) {
        files.is_known = self.find(diff_id).is_some() || layer(store, diff_id).is_some();
        if !files.is_known || files.complete_blob().is_some() {
            self.0.push((*diff_id, files));
        }
    }

    fn find(&self, diff_id: &Digest) -> Option<&NewLayer> {
        let mut new = self.0.iter();
        let (_, files) = new.find(|(digest, files)| digest == diff_id && !files.is_known)?;
        Some(files)
    }

    /// Adds a layer that replaces the one in the store.
    pub(crate) fn replace(&mut self, diff_id: &Digest, files: NewLayer) {
        self.0.push((*diff_id, files));
    }

    /// Returns the path of a layer's index: in the store, or its temporary path.
    pub(crate) fn index_path(&self, store: &Store, diff_id: &Digest) -> PathBuf {
        self.find(diff_id)
            .map_or_else(|| store.layer_index_path(diff_id), |layer| layer.index().to_owned())
    }

    /// Commits all layers to the store.
    pub(crate) fn commit(&mut self, store: &Store) -> Result<()> {
        for (diff_id, layer) in self.0.drain(..) {
            layer.commit(store, &diff_id)?;
        }
        Ok(())
    }
}
