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

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use anyhow::{Context, Result, ensure};
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
    let text = descriptor(manifest, merged);
    libmsb::state::write::replace(&store.disk_vmdk_path(manifest), text.as_bytes())
}

/// Compares both files of a disk with what [`write`] would write.
pub(crate) fn compare(store: &Store, manifest: &Digest, merged: &Merged) -> Result<()> {
    let plan = &merged.plan;
    let path = store.disk_erofs_path(manifest);
    let cannot = || format!("cannot read '{}'", path.display());
    let file = File::open(&path).with_context(cannot)?;
    let bytes = file.metadata().with_context(cannot)?.len();
    let mut there = Comparing {
        file: BufReader::with_capacity(1 << 20, file),
        compared: 0,
    };
    let mut writer = BufWriter::with_capacity(1 << 20, &mut there);
    plan.write(&merged.tree, uuid_of(merged), &mut writer)
        .and_then(|()| writer.flush())
        .with_context(|| format!("'{}' is not what the layers give", path.display()))?;
    drop(writer);
    ensure!(
        there.compared == bytes,
        "'{}' is longer than what the layers give",
        path.display()
    );
    let path = store.disk_vmdk_path(manifest);
    let found =
        std::fs::read(&path).with_context(|| format!("cannot read '{}'", path.display()))?;
    ensure!(
        found == descriptor(manifest, merged).as_bytes(),
        "'{}' is not what the layers give",
        path.display()
    );
    Ok(())
}

fn descriptor(manifest: &Digest, merged: &Merged) -> String {
    vmdk::descriptor(
        manifest,
        merged.plan.metadata_blocks() * BLOCK_BYTES,
        &merged.layers,
    )
}

/// Takes what is written only if the file has the same there.
struct Comparing {
    file: BufReader<File>,
    compared: u64,
}

impl Write for Comparing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut there = vec![0; bytes.len()];
        self.file.read_exact(&mut there)?;
        if there != bytes {
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
