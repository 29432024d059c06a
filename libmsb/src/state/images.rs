//! The image store: the records that msb-image writes and others read.
//!
//! A reference names a manifest, the manifest names a configuration and layers, and each manifest has a disk: EROFS
//! metadata, and a descriptor that strings it together with the layers' data. They are written in the order
//! layers, configuration, manifest, disk, reference; so a reference that is there has all that it needs.

use std::path::{Path, PathBuf};

use anyhow::Context;
/// What an image says of its commands.
pub use oci_spec::image::Config;
use oci_spec::image::{Arch, ImageConfiguration, ImageManifest, Os};
use serde::{Deserialize, Serialize};

use super::{layout, write};
use crate::cli::error::{Code, Failure};
use crate::cli::escape::escape;
use crate::digest::Digest;
use crate::reference::Reference;

/// Longest manifest or configuration, in bytes.
pub const DOCUMENT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest record of a reference, in bytes.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// The store of images in a state directory.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// What a file in `refs` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefRecord {
    /// The reference in its full form.
    pub reference: String,
    /// The manifest that it names.
    pub manifest_digest: Digest,
    /// When it was stored.
    pub created_at: jiff::Timestamp,
    /// Fields of later versions, kept.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// An image that can be run.
#[derive(Clone, Debug)]
pub struct Image {
    /// The reference by which it was found.
    pub reference: Reference,
    /// Digest of its manifest.
    pub manifest_digest: Digest,
    /// Digest of its configuration: the image ID.
    pub config_digest: Digest,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// Its read-only disk: a VMDK descriptor.
    pub disk: PathBuf,
}

impl Store {
    /// A store at a place. Creates nothing.
    pub fn at(root: PathBuf) -> Store {
        Store { root }
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of the references.
    pub fn refs(&self) -> PathBuf {
        self.root.join(layout::REFS)
    }

    /// Folder of the manifests.
    pub fn manifests(&self) -> PathBuf {
        self.root.join(layout::MANIFESTS)
    }

    /// Folder of the configurations.
    pub fn configs(&self) -> PathBuf {
        self.root.join(layout::CONFIGS)
    }

    /// Folder of the layers.
    pub fn layers(&self) -> PathBuf {
        self.root.join(layout::LAYERS)
    }

    /// Folder of layers that were kept as they came.
    pub fn blobs(&self) -> PathBuf {
        self.root.join(layout::BLOBS)
    }

    /// Folder of blobs on their way here, whole or not. Who writes one holds a lock on it.
    pub fn downloads(&self) -> PathBuf {
        self.root.join(layout::DOWNLOADS)
    }

    /// Folder of the disks.
    pub fn disks(&self) -> PathBuf {
        self.root.join(layout::DISKS)
    }

    /// A blob on its way.
    pub fn download_path(&self, blob: &Digest) -> PathBuf {
        self.downloads().join(blob.hex())
    }

    /// The lock: shared by load, import and run, exclusive for removal.
    pub fn lock(&self) -> PathBuf {
        self.root.join(layout::LOCK)
    }

    /// The record of a reference.
    pub fn ref_path(&self, reference: &Reference) -> PathBuf {
        self.refs().join(reference.file_name())
    }

    /// The raw manifest.
    pub fn manifest_path(&self, manifest: &Digest) -> PathBuf {
        self.manifests().join(manifest.hex())
    }

    /// The raw configuration.
    pub fn config_path(&self, config: &Digest) -> PathBuf {
        self.configs().join(config.hex())
    }

    /// File contents of a layer.
    pub fn layer_data_path(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(diff_id.hex() + layout::LAYER_DATA)
    }

    /// Everything else of a layer's tar.
    pub fn layer_index_path(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(diff_id.hex() + layout::LAYER_INDEX)
    }

    /// A layer as it came.
    pub fn blob_path(&self, blob: &Digest) -> PathBuf {
        self.blobs().join(blob.hex())
    }

    /// EROFS metadata of a manifest's disk.
    pub fn disk_erofs_path(&self, manifest: &Digest) -> PathBuf {
        self.disks().join(manifest.hex() + layout::DISK_EROFS)
    }

    /// Descriptor of a manifest's disk.
    pub fn disk_vmdk_path(&self, manifest: &Digest) -> PathBuf {
        self.disks().join(manifest.hex() + layout::DISK_VMDK)
    }

    /// Makes the folders of the store.
    pub fn prepare(&self) -> anyhow::Result<()> {
        for folder in [
            self.refs(),
            self.manifests(),
            self.configs(),
            self.layers(),
            self.blobs(),
            self.disks(),
            self.downloads(),
        ] {
            write::create_dir(&folder)?;
        }
        Ok(())
    }

    /// The record of a reference, or `None`.
    pub fn record(&self, reference: &Reference) -> anyhow::Result<Option<RefRecord>> {
        self.record_at(&self.ref_path(reference))
    }

    /// The record in a file, or `None`.
    pub fn record_at(&self, path: &Path) -> anyhow::Result<Option<RefRecord>> {
        write::read_json(path, RECORD_BYTES_MAX)
    }

    /// Every record, sorted by reference. A record that cannot be read is an error that names it.
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
            let path = entry
                .with_context(|| format!("cannot list '{}'", self.refs().display()))?
                .path();
            if path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
            {
                continue;
            }
            // It may have been removed since the folder was listed.
            records.extend(self.record_at(&path)?);
        }
        records.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(records)
    }

    /// Reads a manifest, which must be there.
    pub fn manifest(&self, digest: &Digest) -> anyhow::Result<ImageManifest> {
        read_document(&self.manifest_path(digest))
    }

    /// Reads a configuration, which must be there.
    pub fn config(&self, digest: &Digest) -> anyhow::Result<ImageConfiguration> {
        read_document(&self.config_path(digest))
    }

    /// Finds an image and checks that it can run here and its disk is there. Hold the store's lock, shared, as long as it is used.
    pub fn find(&self, reference: &Reference) -> anyhow::Result<Image> {
        let Some(record) = self.record(reference)? else {
            return Err(Failure::not_found(format!("there is no image '{}'", reference.familiar()))
                .code(Code::ImageNotFound)
                .hint("`msb images` lists what is there; `msb pull`, `msb load` and `msb image import` bring more")
                .into());
        };
        let image = self.open(reference, &record.manifest_digest)?;
        check_platform(&image)?;
        Ok(image)
    }

    /// Opens an image by its manifest's digest: what a sandbox has pinned.
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
            .hint("load the image once more")
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

/// An image for another machine may be in the store, to be saved again.
fn check_platform(image: &Image) -> Result<(), Failure> {
    let (os, architecture) = (image.config.os(), image.config.architecture());
    if *os == Os::default() && *architecture == Arch::default() {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "image '{}' is for {}/{}, and this machine needs {}/{}",
        image.reference.familiar(),
        escape(&os.to_string()),
        escape(&architecture.to_string()),
        Os::default(),
        Arch::default()
    )))
}

fn read_document<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    write::read_json(path, DOCUMENT_BYTES_MAX)?
        .with_context(|| format!("'{}' is missing", path.display()))
}
