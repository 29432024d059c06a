//! The image store: records that msb-image writes and other tools read.
//!
//! A reference names a manifest, the manifest names a configuration and layers, and each manifest
//! has a disk: EROFS metadata, and a descriptor that joins it with the layers' data. They are
//! written in the order layers, configuration, manifest, disk, reference. So all that an existing
//! reference needs is present.

use std::path::{Path, PathBuf};

use anyhow::Context;
/// Defaults of an image for its commands.
pub use oci_spec::image::Config;
use oci_spec::image::{ImageConfiguration, ImageManifest};
use serde::{Deserialize, Serialize};

use super::image_json::{self, DocumentKind};
use super::{layout, write};
use crate::cli::error::Failure;
use crate::digest::Digest;
use crate::reference::Reference;

/// Longest manifest or configuration, in bytes.
pub const DOCUMENT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest record of a reference, in bytes.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// The image store of a state directory.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// A record of a reference: a file in `refs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefRecord {
    /// Canonical reference.
    pub reference: String,
    /// Digest of its manifest.
    pub manifest_digest: Digest,
    /// Time when it was stored.
    #[serde(with = "crate::time")]
    pub created_at: jiff::Timestamp,
    /// Fields of later versions, which are preserved.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// An image that can be run.
#[derive(Clone, Debug)]
pub struct Image {
    /// Reference by which it was found.
    pub reference: Reference,
    /// Digest of its manifest.
    pub manifest_digest: Digest,
    /// Digest of its configuration: the image ID.
    pub config_digest: Digest,
    /// The configuration.
    pub config: ImageConfiguration,
    /// Path of its read-only disk: a VMDK descriptor.
    pub disk: PathBuf,
}

/// Checks that a manifest can be read from the store.
pub fn check_manifest(bytes: &[u8]) -> anyhow::Result<()> {
    let parsed = image_json::parse::<ImageManifest>(bytes, DocumentKind::Manifest);
    parsed.map(drop).context("cannot parse the manifest")
}

/// Checks that a configuration can be read from the store.
pub fn check_config(bytes: &[u8]) -> anyhow::Result<()> {
    let parsed = image_json::parse::<ImageConfiguration>(bytes, DocumentKind::Config);
    parsed.map(drop).context("cannot parse the configuration")
}

impl Store {
    /// Returns the store at a path. Creates nothing.
    pub fn at(root: PathBuf) -> Store {
        Store { root }
    }

    /// Returns the store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the directory of references.
    pub fn refs(&self) -> PathBuf {
        self.root.join(layout::REFS)
    }

    /// Returns the directory of manifests.
    pub fn manifests(&self) -> PathBuf {
        self.root.join(layout::MANIFESTS)
    }

    /// Returns the directory of configurations.
    pub fn configs(&self) -> PathBuf {
        self.root.join(layout::CONFIGS)
    }

    /// Returns the directory of layers.
    pub fn layers(&self) -> PathBuf {
        self.root.join(layout::LAYERS)
    }

    /// Returns the directory of compressed layers, kept as downloaded.
    pub fn blobs(&self) -> PathBuf {
        self.root.join(layout::BLOBS)
    }

    /// Returns the directory of blobs that are being downloaded, complete or not. The writer of a
    /// blob holds a lock on it.
    pub fn downloads(&self) -> PathBuf {
        self.root.join(layout::DOWNLOADS)
    }

    /// Returns the directory of disks.
    pub fn disks(&self) -> PathBuf {
        self.root.join(layout::DISKS)
    }

    /// Returns the path of a blob's download.
    pub fn download_path(&self, blob: &Digest) -> PathBuf {
        self.downloads().join(blob.hex())
    }

    /// Returns the path of the lock: shared for load, import and run, exclusive for removal.
    pub fn lock(&self) -> PathBuf {
        self.root.join(layout::LOCK)
    }

    /// Returns the path of a reference's record.
    pub fn ref_path(&self, reference: &Reference) -> PathBuf {
        self.refs().join(reference.file_name())
    }

    /// Returns the path of a raw manifest.
    pub fn manifest_path(&self, manifest: &Digest) -> PathBuf {
        self.manifests().join(manifest.hex())
    }

    /// Returns the path of a raw configuration.
    pub fn config_path(&self, config: &Digest) -> PathBuf {
        self.configs().join(config.hex())
    }

    /// Returns the path of a layer's file contents.
    pub fn layer_data_path(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(diff_id.hex() + layout::LAYER_DATA)
    }

    /// Returns the path of a layer's index: all of its tar but the file contents.
    pub fn layer_index_path(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(diff_id.hex() + layout::LAYER_INDEX)
    }

    /// Returns the path of a compressed layer.
    pub fn blob_path(&self, blob: &Digest) -> PathBuf {
        self.blobs().join(blob.hex())
    }

    /// Returns the path of the EROFS metadata of a manifest's disk.
    pub fn disk_erofs_path(&self, manifest: &Digest) -> PathBuf {
        self.disks().join(manifest.hex() + layout::DISK_EROFS)
    }

    /// Returns the path of the descriptor of a manifest's disk.
    pub fn disk_vmdk_path(&self, manifest: &Digest) -> PathBuf {
        self.disks().join(manifest.hex() + layout::DISK_VMDK)
    }

    /// Creates the directories of the store.
    pub fn prepare(&self) -> anyhow::Result<()> {
        for directory in [
            self.refs(),
            self.manifests(),
            self.configs(),
            self.layers(),
            self.blobs(),
            self.disks(),
            self.downloads(),
        ] {
            write::create_dir(&directory)?;
        }
        Ok(())
    }

    /// Returns the record of a reference, if it exists.
    pub fn record(&self, reference: &Reference) -> anyhow::Result<Option<RefRecord>> {
        self.record_at(&self.ref_path(reference))
    }

    /// Returns the record in a file, if it exists.
    pub fn record_at(&self, path: &Path) -> anyhow::Result<Option<RefRecord>> {
        write::read_json(path, RECORD_BYTES_MAX)
    }

    /// Writes the record of a reference. Its file gets the time of the record, see
    /// [`Store::last_used`].
    pub fn put_record(&self, path: &Path, record: &RefRecord) -> anyhow::Result<()> {
        write::replace_json(path, record)?;
        set_modified(path, record.created_at)
            .with_context(|| format!("cannot write '{}'", path.display()))
    }

    /// Records that a sandbox is created from an image. The record's file keeps the time, so that no
    /// file is written; an error only means that the time is not known.
    pub fn mark_used(&self, reference: &Reference) {
        let _ = set_modified(&self.ref_path(reference), jiff::Timestamp::now());
    }

    /// Returns the time when a sandbox was last created from an image of this name.
    pub fn last_used(&self, record: &RefRecord) -> Option<jiff::Timestamp> {
        let reference: Reference = record.reference.parse().ok()?;
        let modified =
            self.ref_path(&reference).metadata().and_then(|file| file.modified()).ok()?;
        let used_at = jiff::Timestamp::try_from(modified).ok()?;
        // A record has microseconds.
        (used_at.as_microsecond() > record.created_at.as_microsecond()).then_some(used_at)
    }

    /// Returns all records, sorted by reference. An unreadable record is an error with its path.
    pub fn records(&self) -> anyhow::Result<Vec<RefRecord>> {
        let mut records = Vec::new();
        let entries = match std::fs::read_dir(self.refs()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(records),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot list '{}'", self.refs().display()));
            }
        };
        for entry in entries {
            let path =
                entry.with_context(|| format!("cannot list '{}'", self.refs().display()))?.path();
            if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
                continue;
            }
            // The file may have been removed since the directory was listed.
            records.extend(self.record_at(&path)?);
        }
        records.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(records)
    }

    /// Reads a manifest, which must exist.
    pub fn manifest(&self, digest: &Digest) -> anyhow::Result<ImageManifest> {
        read_document(&self.manifest_path(digest), DocumentKind::Manifest)
    }

    /// Reads a configuration, which must exist.
    pub fn config(&self, digest: &Digest) -> anyhow::Result<ImageConfiguration> {
        read_document(&self.config_path(digest), DocumentKind::Config)
    }

    /// Opens an image by its manifest's digest, which a sandbox has pinned.
    pub fn open(&self, reference: &Reference, manifest_digest: &Digest) -> anyhow::Result<Image> {
        let manifest = self.manifest(manifest_digest)?;
        let config_digest: Digest = manifest.config().digest().to_string().parse()?;
        let config = self.config(&config_digest)?;
        let disk = self.disk_vmdk_path(manifest_digest);
        if !disk.exists() {
            return Err(Failure::failed(format!(
                "the disk '{}' of image '{reference}' is missing",
                disk.display()
            ))
            .hint("load the image again")
            .into());
        }
        Ok(Image {
            reference: reference.clone(),
            manifest_digest: *manifest_digest,
            config_digest,
            config,
            disk,
        })
    }
}

/// Sets the time of the last modification of a file, in microseconds.
fn set_modified(path: &Path, time: jiff::Timestamp) -> std::io::Result<()> {
    let time = jiff::Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time);
    std::fs::File::open(path)?.set_modified(time.into())
}

fn read_document<T: serde::de::DeserializeOwned>(
    path: &Path,
    kind: DocumentKind,
) -> anyhow::Result<T> {
    let bytes = write::read_bounded(path, DOCUMENT_BYTES_MAX)?
        .with_context(|| format!("'{}' is missing", path.display()))?;
    image_json::parse(&bytes, kind)
        .with_context(|| format!("cannot understand '{}'", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_used_when_a_sandbox_is_created_from_it_and_not_when_it_is_stored() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().to_owned());
        store.prepare().unwrap();
        let reference: Reference = "a:1".parse().unwrap();
        let path = store.ref_path(&reference);
        let record = RefRecord {
            reference: reference.to_string(),
            manifest_digest: format!("sha256:{}", "1".repeat(64)).parse().unwrap(),
            created_at: jiff::Timestamp::now(),
            other: serde_json::Map::new(),
        };
        store.put_record(&path, &record).unwrap();
        let record = store.record(&reference).unwrap().unwrap();
        assert_eq!(store.last_used(&record), None);
        store.mark_used(&reference);
        assert!(store.last_used(&record).unwrap() > record.created_at);
        store.mark_used(&"missing:1".parse().unwrap());
    }
}
