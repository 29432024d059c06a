//! Images, documents and layers in the store.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libmsb::digest::Digest;
use libmsb::state::images::{DOCUMENT_BYTES_MAX, Store};
use libmsb::state::write;

use crate::document::{ImageConfig, ManifestDocument};
use crate::layer::index::LayerSummary;
use crate::stream::digest_of;

/// Returns the manifests that references name.
pub(crate) fn named(store: &Store) -> Result<HashSet<Digest>> {
    let records = store.records()?;
    Ok(records.iter().map(|record| record.manifest_digest).collect())
}

/// The documents of an image.
#[derive(Debug)]
pub(crate) struct ImageDocuments {
    pub(crate) manifest: ManifestDocument,
    pub(crate) config_digest: Digest,
    pub(crate) config: ImageConfig,
}

impl ImageDocuments {
    pub(crate) fn read(store: &Store, manifest: &Digest) -> Result<ImageDocuments> {
        let document =
            ManifestDocument::parse(&read_document(&store.manifest_path(manifest), manifest)?)?;
        let config_digest =
            document.config.as_ref().context("the manifest has no configuration")?.digest;
        let config = ImageConfig::parse(&read_document(
            &store.config_path(&config_digest),
            &config_digest,
        )?)?;
        Ok(ImageDocuments { manifest: document, config_digest, config })
    }
}

/// Returns the summary of a layer in the store whose files have the right sizes.
pub(crate) fn layer(store: &Store, diff_id: &Digest) -> Option<LayerSummary> {
    let (summary, _) =
        LayerSummary::read(&mut File::open(store.layer_index_path(diff_id)).ok()?).ok()?;
    let data = std::fs::metadata(store.layer_data_path(diff_id)).ok()?;
    (summary.diff_id == *diff_id && data.len() == summary.data_bytes).then_some(summary)
}

/// Reads a document of the store and checks it against its digest.
pub(crate) fn read_document(path: &Path, digest: &Digest) -> Result<Vec<u8>> {
    let bytes = write::read_bounded(path, DOCUMENT_BYTES_MAX)?;
    let bytes = bytes.with_context(|| format!("'{}' is missing", path.display()))?;
    ensure!(digest_of(&bytes) == *digest, "'{}' is damaged", path.display());
    Ok(bytes)
}
