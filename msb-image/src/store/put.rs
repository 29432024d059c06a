//! Additions to the store.

use std::path::Path;

use anyhow::{Result, ensure};
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use libmsb::state::images::{RefRecord, Store};
use libmsb::state::write;

use crate::archive::ArchiveImage;
use crate::disk::{self, merge};
use crate::document::manifest_for;
use crate::layer::index::LayerSummary;
use crate::report::StoredImage;
use crate::store::layers::NewLayers;
use crate::stream::digest_of;

/// Adds an image with converted layers to the store, layers first and references last.
pub(crate) fn put_image(
    store: &Store,
    image: &ArchiveImage,
    layers: &[LayerSummary],
    new_layers: &mut NewLayers,
) -> Result<Vec<StoredImage>> {
    let config_digest = digest_of(&image.config);
    let manifest = match &image.manifest {
        Some(manifest) => manifest.clone(),
        None => manifest_for(&config_digest, image.config.len() as u64, layers)?,
    };
    let digest = digest_of(&manifest);
    check_pins(&image.names.references, &digest)?;
    let merged = if disk::exists(store, &digest) {
        None
    } else {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        Some(merge::merge(&diff_ids, |diff_id| new_layers.index_path(store, diff_id))?)
    };
    // The disk is planned, so the image is valid from here on.
    new_layers.commit(store)?;
    put_documents(store, &image.config, &manifest)?;
    if let Some(merged) = merged {
        disk::write(store, &digest, &merged)?;
    }
    put_references(store, &image.names.references, &digest, &config_digest, layers)
}

/// Writes the configuration, then the manifest.
pub(crate) fn put_documents(store: &Store, config: &[u8], manifest: &[u8]) -> Result<()> {
    put_document(&store.config_path(&digest_of(config)), config)?;
    put_document(&store.manifest_path(&digest_of(manifest)), manifest)
}

/// Points references at a manifest whose disk exists.
pub(crate) fn put_references(
    store: &Store,
    references: &[Reference],
    digest: &Digest,
    image_id: &Digest,
    layers: &[LayerSummary],
) -> Result<Vec<StoredImage>> {
    let mut loaded = Vec::new();
    for reference in references {
        put_reference(store, reference, digest)?;
        loaded.push(StoredImage {
            reference: reference.to_string(),
            digest: *digest,
            image_id: *image_id,
            layers: layers.len(),
            size_bytes: layers.iter().map(|layer| layer.tar_bytes).sum(),
        });
    }
    Ok(loaded)
}

/// Points a reference at a manifest. An unchanged reference keeps its creation time.
pub(crate) fn put_reference(store: &Store, reference: &Reference, digest: &Digest) -> Result<()> {
    let existing = store.record(reference).ok().flatten();
    if existing.is_some_and(|record| record.manifest_digest == *digest) {
        return Ok(());
    }
    let record = RefRecord {
        reference: reference.to_string(),
        manifest_digest: *digest,
        created_at: jiff::Timestamp::now(),
        other: serde_json::Map::new(),
    };
    store.put_record(&store.ref_path(reference), &record)
}

/// Checks that references with a digest name this manifest.
pub(crate) fn check_pins(references: &[Reference], digest: &Digest) -> Result<()> {
    for reference in references {
        let fits = reference.digest().is_none_or(|pinned| pinned == digest);
        ensure!(fits, "'{reference}' does not match the digest of the manifest, {digest}");
    }
    Ok(())
}

/// Writes a document under its digest, unless it exists.
fn put_document(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    write::replace(path, bytes)
}
