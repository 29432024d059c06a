//! An image to save: its documents, unchanged if possible, and the source of each layer.

use std::collections::BTreeMap;
use std::fs::File;

use anyhow::{Context, Result, ensure};
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use libmsb::state::images::Store;

use crate::archive::oci::{IMAGE_NAME, REF_NAME};
use crate::document::{Descriptor, ImageConfig, LAYER_TYPE, ManifestDocument, manifest_of};
use crate::layer::index::LayerSummary;
use crate::store::find::{self, read_document};
use crate::stream::{HashingReader, digest_of};

use super::manifest_type;
use super::pack::copy;

/// An image and its description in the archive.
pub(super) struct SavedImage {
    pub(super) references: Vec<Reference>,
    /// Digest of the manifest in the store.
    pub(super) stored: Digest,
    /// Digest of the manifest in the archive. It differs if the compression of the layers does.
    pub(super) digest: Digest,
    pub(super) manifest: Vec<u8>,
    pub(super) media_type: Option<String>,
    pub(super) config_digest: Digest,
    pub(super) config: Vec<u8>,
    pub(super) layers: Vec<SavedLayer>,
}

/// A layer in the archive.
pub(super) struct SavedLayer {
    pub(super) diff_id: Digest,
    pub(super) tar_bytes: u64,
    pub(super) blob: Descriptor,
    pub(super) source: BlobSource,
}

/// Source of a layer's blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlobSource {
    /// The tar, rebuilt.
    Tar,
    /// The blob, kept as it was received.
    Kept,
}

impl SavedImage {
    /// Reads the documents and checks that the layers exist.
    pub(super) fn read(store: &Store, reference: Reference, stored: &Digest) -> Result<SavedImage> {
        let broken = || format!("image '{}' is broken", reference.familiar());
        let manifest = read_document(&store.manifest_path(stored), stored).with_context(broken)?;
        let document = ManifestDocument::parse(&manifest).with_context(broken)?;
        let config_digest = document
            .config
            .as_ref()
            .context("the manifest has no configuration")
            .with_context(broken)?
            .digest;
        let config = read_document(&store.config_path(&config_digest), &config_digest)
            .with_context(broken)?;
        let diff_ids = ImageConfig::parse(&config).with_context(broken)?.rootfs.diff_ids;
        let blobs = document.layers.unwrap_or_default();
        let summaries: Vec<LayerSummary> = diff_ids
            .iter()
            .map(|diff_id| complete_layer(store, diff_id))
            .collect::<Result<_>>()
            .with_context(broken)?;
        let mut image = SavedImage {
            references: vec![reference.clone()],
            stored: *stored,
            digest: *stored,
            manifest,
            media_type: document.media_type,
            config_digest,
            config,
            layers: Vec::new(),
        };
        image.choose_sources(store, blobs, &summaries)?;
        Ok(image)
    }

    /// Keeps the manifest if each of its blobs is available; otherwise all layers are written as
    /// tars.
    fn choose_sources(
        &mut self,
        store: &Store,
        blobs: Vec<Descriptor>,
        summaries: &[LayerSummary],
    ) -> Result<()> {
        let source = |(blob, summary): (&Descriptor, &LayerSummary)| {
            if blob.digest == summary.diff_id {
                Some(BlobSource::Tar)
            } else {
                let kept = std::fs::metadata(store.blob_path(&blob.digest)).ok()?;
                (kept.len() == blob.size).then_some(BlobSource::Kept)
            }
        };
        let sources: Option<Vec<BlobSource>> = (blobs.len() == summaries.len())
            .then(|| blobs.iter().zip(summaries).map(source).collect())
            .flatten();
        let as_tar = |summary: &LayerSummary| {
            Descriptor::new(LAYER_TYPE, summary.diff_id, summary.tar_bytes)
        };
        let Some(sources) = sources else {
            self.layers = summaries
                .iter()
                .map(|summary| SavedLayer::new(summary, as_tar(summary), BlobSource::Tar))
                .collect();
            return self.rebuild_manifest();
        };
        self.layers = blobs
            .into_iter()
            .zip(summaries)
            .zip(sources)
            .map(|((mut blob, summary), source)| {
                if source == BlobSource::Tar {
                    blob.size = summary.tar_bytes;
                }
                SavedLayer::new(summary, blob, source)
            })
            .collect();
        Ok(())
    }

    /// Builds a manifest for the current blobs of the layers.
    pub(super) fn rebuild_manifest(&mut self) -> Result<()> {
        let blobs = self.layers.iter().map(|layer| layer.blob.clone());
        self.manifest =
            manifest_of(&self.config_digest, self.config.len() as u64, blobs.collect())?;
        self.media_type = None;
        self.digest = digest_of(&self.manifest);
        Ok(())
    }

    /// Returns the names for the archive, without those that pin another manifest.
    pub(super) fn names(&self) -> Vec<String> {
        let fitting = self.references.iter().filter(|reference| self.fits(reference));
        fitting.map(Reference::to_string).collect()
    }

    /// Returns the names that the archive leaves out.
    pub(super) fn dropped_names(&self) -> impl Iterator<Item = &Reference> {
        self.references.iter().filter(|reference| !self.fits(reference))
    }

    fn fits(&self, reference: &Reference) -> bool {
        reference.digest().is_none_or(|digest| *digest == self.digest)
    }

    /// Returns the names without a digest.
    pub(super) fn tags(&self) -> Vec<String> {
        let tags = self.references.iter().filter(|reference| reference.digest().is_none());
        tags.map(Reference::to_string).collect()
    }

    /// Returns the descriptor of the image in `index.json`. The name is in the annotations that
    /// containerd and podman read.
    pub(super) fn descriptor(&self, name: Option<String>) -> Descriptor {
        let mut descriptor =
            Descriptor::new(&manifest_type(self), self.digest, self.manifest.len() as u64);
        descriptor.annotations = name.map(|name| {
            BTreeMap::from([IMAGE_NAME, REF_NAME].map(|key| (key.to_owned(), name.clone())))
        });
        descriptor
    }
}

impl SavedLayer {
    fn new(summary: &LayerSummary, blob: Descriptor, source: BlobSource) -> SavedLayer {
        SavedLayer { diff_id: summary.diff_id, tar_bytes: summary.tar_bytes, blob, source }
    }
}

/// Returns the summary of a layer whose files have the right sizes. A missing layer is an error
/// before any of the archive is written.
fn complete_layer(store: &Store, diff_id: &Digest) -> Result<LayerSummary> {
    let path = store.layer_index_path(diff_id);
    let damaged = || format!("'{}' or its data is missing or damaged", path.display());
    find::layer(store, diff_id).with_context(damaged)
}

/// Copies a kept blob to `write` and checks its digest.
pub(super) fn read_kept(
    store: &Store,
    blob: &Descriptor,
    write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let path = store.blob_path(&blob.digest);
    let file = File::open(&path).with_context(|| format!("cannot open '{}'", path.display()))?;
    let mut hashing = HashingReader::new(file);
    copy(&mut hashing, write).with_context(|| format!("cannot read '{}'", path.display()))?;
    let found = hashing.facts();
    ensure!(
        found.digest == blob.digest && found.bytes == blob.size,
        "'{}' is damaged: it has the digest {}",
        path.display(),
        found.digest
    );
    Ok(())
}
