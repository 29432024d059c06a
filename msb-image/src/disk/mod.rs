//! Disks: the layers of an image merged into one read-only file system.

/// Writing the file system's metadata.
pub(crate) mod erofs;
/// Reading a file system back.
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]
pub(crate) mod image;
/// Applying layers, one over the other.
pub(crate) mod merge;
/// The merged tree in memory.
pub(crate) mod tree;
/// The descriptor of the whole disk.
pub(crate) mod vmdk;
/// Extended attributes in the form of EROFS.
mod xattr;

use std::io::BufWriter;

use anyhow::{Result, ensure};
use libmsb::digest::Digest;
use libmsb::state::images::Store;
use libmsb::state::write::NewFile;

use crate::error::StoreWrite;
use crate::layer::BLOCK_BYTES;
use crate::layer::index::Summary;
use crate::limits::{DISK_BLOCKS_MAX, EXTENT_BYTES_MAX};
use merge::Merged;
use tree::Tree;

/// Whether the disk of a manifest is there.
pub(crate) fn is_there(store: &Store, manifest: &Digest) -> bool {
    store.disk_vmdk_path(manifest).exists() && store.disk_erofs_path(manifest).exists()
}

/// Plans the disk of a tree: what does not fit on one is refused here.
fn plan(tree: &Tree, layers: &[Summary]) -> Result<erofs::Plan> {
    let data_blocks: Vec<u64> = layers
        .iter()
        .map(|layer| layer.data_bytes / BLOCK_BYTES)
        .collect();
    let plan = erofs::Plan::new(tree, &data_blocks)?;
    ensure!(
        plan.blocks() <= DISK_BLOCKS_MAX,
        "the image is too large: its disk would have {} blocks",
        plan.blocks()
    );
    let largest = layers
        .iter()
        .map(|layer| layer.data_bytes)
        .max()
        .unwrap_or_default();
    ensure!(
        largest <= EXTENT_BYTES_MAX,
        "the image is too large: one of its layers has {largest} bytes of files"
    );
    Ok(plan)
}

/// Writes both files of a disk, the descriptor last.
pub(crate) fn write(store: &Store, manifest: &Digest, merged: &Merged) -> Result<()> {
    let plan = &merged.plan;
    let erofs = NewFile::create(&store.disk_erofs_path(manifest))?;
    let mut writer = BufWriter::with_capacity(1 << 20, &erofs.file);
    plan.write(&merged.tree, uuid_of(merged), &mut writer)
        .map_err(StoreWrite)?;
    writer
        .into_inner()
        .map_err(|error| StoreWrite(error.into_error()))?;
    erofs.commit()?;

    let text = vmdk::descriptor(
        manifest,
        plan.metadata_blocks() * BLOCK_BYTES,
        &merged.layers,
    );
    libmsb::state::write::replace(&store.disk_vmdk_path(manifest), text.as_bytes())
}

/// Made of the layers, so that the same layers give the same bytes.
fn uuid_of(merged: &Merged) -> [u8; 16] {
    let text: String = merged
        .layers
        .iter()
        .map(|layer| layer.diff_id.hex())
        .collect();
    let hex = crate::stream::digest_of(text.as_bytes()).hex();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hex.as_bytes()[..16]);
    uuid
}
