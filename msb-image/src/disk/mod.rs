//! Disks: the layers of an image merged into one read-only EROFS file system.

/// EROFS metadata.
pub(crate) mod erofs;
/// Merging of layers: whiteouts, opaque directories and hard links.
pub(crate) mod merge;
/// Reading of a file system in tests.
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]
pub(crate) mod readback;
/// Merged file tree in memory.
pub(crate) mod tree;
/// VMDK descriptor of the whole disk.
pub(crate) mod vmdk;
/// Extended attributes in EROFS format.
mod xattr;

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use anyhow::{Context, Result, ensure};
use libmsb::digest::Digest;
use libmsb::state::images::Store;
use libmsb::state::write::NewFile;

use crate::error::StoreWriteError;
use crate::layer::BLOCK_BYTES;
use crate::layer::index::LayerSummary;
use crate::limits::{DISK_BLOCKS_MAX, EXTENT_BYTES_MAX};
use merge::MergedImage;
use tree::FileTree;

/// Returns whether the store has the disk of a manifest.
pub(crate) fn exists(store: &Store, manifest: &Digest) -> bool {
    store.disk_vmdk_path(manifest).exists() && store.disk_erofs_path(manifest).exists()
}

/// Plans the disk of a tree, and rejects one that is too large.
fn plan(tree: &FileTree, layers: &[LayerSummary]) -> Result<erofs::DiskPlan> {
    let data_blocks: Vec<u64> = layers.iter().map(|layer| layer.data_bytes / BLOCK_BYTES).collect();
    let plan = erofs::DiskPlan::new(tree, &data_blocks)?;
    ensure!(
        plan.blocks() <= DISK_BLOCKS_MAX,
        "the image is too large: its disk would have {} blocks",
        plan.blocks()
    );
    let largest = layers.iter().map(|layer| layer.data_bytes).max().unwrap_or_default();
    ensure!(
        largest <= EXTENT_BYTES_MAX,
        "the image is too large: one of its layers has {largest} bytes of files"
    );
    Ok(plan)
}

/// Writes both files of a disk, the descriptor last.
pub(crate) fn write(store: &Store, manifest: &Digest, merged: &MergedImage) -> Result<()> {
    let plan = &merged.plan;
    let erofs = NewFile::create(&store.disk_erofs_path(manifest))?;
    let mut writer = BufWriter::with_capacity(1 << 20, &erofs.file);
    plan.write(&merged.tree, uuid_of(merged), &mut writer).map_err(StoreWriteError)?;
    writer.into_inner().map_err(|error| StoreWriteError(error.into_error()))?;
    erofs.commit()?;
    let text = descriptor(manifest, merged);
    libmsb::state::write::replace(&store.disk_vmdk_path(manifest), text.as_bytes())
}

/// Compares both files of a disk with the output of [`write`].
pub(crate) fn compare(store: &Store, manifest: &Digest, merged: &MergedImage) -> Result<()> {
    let plan = &merged.plan;
    let path = store.disk_erofs_path(manifest);
    let cannot = || format!("cannot read '{}'", path.display());
    let file = File::open(&path).with_context(cannot)?;
    let bytes = file.metadata().with_context(cannot)?.len();
    let mut existing = CompareWriter { file: BufReader::with_capacity(1 << 20, file), compared: 0 };
    let mut writer = BufWriter::with_capacity(1 << 20, &mut existing);
    plan.write(&merged.tree, uuid_of(merged), &mut writer)
        .and_then(|()| writer.flush())
        .with_context(|| format!("'{}' does not match the layers", path.display()))?;
    drop(writer);
    ensure!(
        existing.compared == bytes,
        "'{}' is longer than the disk of the layers",
        path.display()
    );
    let path = store.disk_vmdk_path(manifest);
    let found =
        std::fs::read(&path).with_context(|| format!("cannot read '{}'", path.display()))?;
    ensure!(
        found == descriptor(manifest, merged).as_bytes(),
        "'{}' does not match the layers",
        path.display()
    );
    Ok(())
}

fn descriptor(manifest: &Digest, merged: &MergedImage) -> String {
    vmdk::descriptor(manifest, merged.plan.metadata_blocks() * BLOCK_BYTES, &merged.layers)
}

/// A writer that compares its input with a file.
struct CompareWriter {
    file: BufReader<File>,
    compared: u64,
}

impl Write for CompareWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut existing = vec![0; bytes.len()];
        self.file.read_exact(&mut existing)?;
        if existing != bytes {
            return Err(io::Error::other(format!(
                "it differs within {} bytes after {}",
                bytes.len(),
                self.compared
            )));
        }
        self.compared += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Derives the UUID from the layers, so that the same layers give the same bytes.
fn uuid_of(merged: &MergedImage) -> [u8; 16] {
    let text: String = merged.layers.iter().map(|layer| layer.diff_id.hex()).collect();
    let hex = crate::stream::digest_of(text.as_bytes()).hex();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hex.as_bytes()[..16]);
    uuid
}
