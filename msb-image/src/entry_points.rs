//! Entry points of fuzz targets, which take any bytes and must not panic, and of benchmarks.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;

use anyhow::{Result, ensure};
use libmsb::digest::Digest;
use libmsb::state::images::Store;
use tempfile::TempDir;

use crate::archive::{self, ImageArchive};
use crate::disk::erofs::DiskPlan;
use crate::disk::merge::{MergedImage, merge};
use crate::disk::readback;
use crate::document::{ImageConfig, ManifestDocument, digest_in_path};
use crate::input::ArchiveInput;
use crate::layer::BLOCK_BYTES;
use crate::layer::convert::convert;
use crate::layer::index::{IndexWriter, LayerSummary, rebuild};
use crate::layer::tar::{EntryKind, TarReader};
use crate::store::layers::NewLayer;
use crate::store::put::put_image;
use crate::stream::{BlobCompression, digest_of};
use crate::testing::TarBuilder;

/// Creates a store in memory if possible.
pub fn store() -> (TempDir, Store) {
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let store = Store::at(directory.path().join("images"));
    store.prepare().unwrap();
    (directory, store)
}

/// Reads the entries of a tar.
pub fn fuzz_tar(bytes: &[u8]) {
    let mut tar = TarReader::new(bytes);
    while let Ok(Some(entry)) = tar.next() {
        let pieces = entry.pieces.iter().flatten();
        let held: u64 = pieces.map(|piece| piece.length).sum();
        assert!(entry.stored == if entry.pieces.is_some() { held } else { entry.size });
        assert!(entry.kind == EntryKind::File || entry.size == 0);
        assert!(!entry.path.is_empty() && !entry.path.contains(&0));
        let Some(rest) =
            usize::try_from(entry.stored).ok().and_then(|stored| tar.source.get(stored..))
        else {
            return;
        };
        tar.source = rest;
    }
}

/// Converts a layer, compressed or not. The tar of an accepted layer can be rebuilt, and its disk
/// is correct or rejected.
pub fn fuzz_layer(bytes: &[u8]) {
    let (_directory, store) = store();
    let files = NewLayer::create(&store).unwrap();
    let Ok(converted) = convert(bytes, files) else {
        assert_eq!(std::fs::read_dir(store.layers()).unwrap().count(), 0);
        return;
    };
    let id = converted.summary.diff_id;
    converted.files.commit(&store, &id).unwrap();
    assert_eq!(converted.unpacked.blob.digest, digest_of(bytes));
    if converted.summary.data_bytes < 16 << 20 {
        let tar = rebuild(&store.layer_index_path(&id), &store.layer_data_path(&id), &id).unwrap();
        assert_eq!(digest_of(&tar), id);
        assert!(BlobCompression::of(bytes) != Some(BlobCompression::Uncompressed) || tar == bytes);
    }
    if let Ok(merged) = merge(&[id], |id| store.layer_index_path(id)) {
        check_disk(&merged);
    }
}

/// Reads a layer index: the bytes as they are, and as the body of a valid index.
pub fn fuzz_index(bytes: &[u8]) {
    let (directory, _store) = store();
    let path = directory.path().join("index");
    let id = Digest::of_bytes([7; 32]);
    let read = |path: &Path| {
        if let Ok(merged) = merge(&[id], |_| path.to_owned()) {
            check_disk(&merged);
        }
    };
    std::fs::write(&path, bytes).unwrap();
    read(&path);
    let summary = LayerSummary { diff_id: id, tar_bytes: 0, data_bytes: 1 << 30 };
    let mut writer = IndexWriter::new(File::create(&path).unwrap()).unwrap();
    writer.put_body(bytes).unwrap();
    writer.finish(summary).unwrap();
    read(&path);
}

/// Merges layers. The bytes are read as a list of entries, so that most of them are valid.
pub fn fuzz_disk(bytes: &[u8]) {
    let (_directory, store) = store();
    let mut ids = Vec::new();
    for layer in bytes.split(|byte| *byte == 0xff).take(8) {
        let tar = layer.chunks(4).fold(TarBuilder::new(), put_entry).finish();
        let files = NewLayer::create(&store).unwrap();
        let Ok(converted) = convert(&tar[..], files) else {
            return;
        };
        converted.files.commit(&store, &converted.summary.diff_id).unwrap();
        ids.push(converted.summary.diff_id);
    }
    if let Ok(merged) = merge(&ids, |id| store.layer_index_path(id)) {
        check_disk(&merged);
    }
}

/// Builds an entry from four bytes: its kind, two for the path, one for the rest.
fn put_entry(tar: TarBuilder, bytes: &[u8]) -> TarBuilder {
    let at = |n: usize| bytes.get(n).copied().unwrap_or_default();
    let path = path_of(at(1), at(2));
    let tar = if at(0) & 0x40 == 0 {
        tar
    } else {
        tar.pax(&[("SCHILY.xattr.user.x", &vec![at(3); usize::from(at(1)) * 16])])
    };
    match at(0) & 7 {
        0 => tar.directory(&path, u32::from(at(3))),
        1 => tar.symlink(&path, &path_of(at(3), at(2))),
        2 => tar.hard_link(&path, &path_of(at(3), at(2))),
        3 => tar.fifo(&path),
        4 => tar.device(&path, b'3', at(3).into(), at(2).into()),
        5 => tar.long_name(&path.repeat(1 + usize::from(at(3) >> 4))).directory("x", 0o755),
        _ => tar.file(&path, &vec![at(3); usize::from(at(3)) * 40]),
    }
}

/// Builds a path of four components from a few names, so that paths collide.
fn path_of(first: u8, second: u8) -> String {
    const PARTS: [&str; 8] = ["a", "b", "..", ".wh.a", ".wh..wh..opq", "", ".", "cc"];
    [first & 7, first >> 3 & 7, second & 7, second >> 3 & 7]
        .map(|part| PARTS[usize::from(part)])
        .join("/")
}

/// Parses manifests, indexes, configurations and the names of layers and images.
pub fn fuzz_document(bytes: &[u8]) {
    let _ = ImageConfig::parse(bytes).map(|config| config.check_platform());
    let _ = archive::docker::parse(bytes);
    if let Ok(document) = ManifestDocument::parse(bytes) {
        let both = document.manifests.is_some() && document.layers.is_some();
        assert!(!both);
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Some(digest) = digest_in_path(text) {
        assert!(text.contains(&digest.hex()));
    }
    if let Ok(reference) = text.parse::<libmsb::reference::Reference>() {
        let again: libmsb::reference::Reference = reference.to_string().parse().unwrap();
        assert_eq!(again, reference);
    }
}

/// Loads a whole archive, as a file and as a stream. A rejected archive leaves nothing behind.
pub fn fuzz_archive(bytes: &[u8]) {
    for streamed in [false, true] {
        let (directory, store) = store();
        let outcome = load_archive(bytes, streamed, &store);
        let count = |path| std::fs::read_dir(path).unwrap().count();
        let (names, layers) = (count(store.refs()), count(store.layers()));
        assert!(outcome.is_ok() || names + layers == 0, "{outcome:?}");
        // The store is the only directory that was created.
        assert_eq!(count(directory.path().to_owned()), 1);
    }
}

fn load_archive(bytes: &[u8], streamed: bool, store: &Store) -> Result<()> {
    let mut file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile())?;
    file.write_all(bytes)?;
    file.rewind()?;
    let length = (!streamed).then_some(bytes.len() as u64);
    let mut archive = ImageArchive::open(ArchiveInput::of(file, length), store, false)?;
    let images = archive::images(&mut archive)?;
    ensure!(images.len() == 1, "several images may come in part");
    images.iter().try_for_each(|image| {
        let layers = archive.layers(&image.layers)?;
        put_image(store, image, &layers, &mut archive.new_layers).map(drop)
    })
}

/// Converts a layer and puts it into a store. Returns its ID.
///
/// # Panics
///
/// Panics if the layer is invalid or the store cannot be written.
pub fn put_layer(store: &Store, bytes: &[u8]) -> Digest {
    let converted = convert(bytes, NewLayer::create(store).unwrap()).unwrap();
    converted.files.commit(store, &converted.summary.diff_id).unwrap();
    converted.summary.diff_id
}

/// Merges layers of a store. Returns the metadata of the disk.
///
/// # Panics
///
/// Panics if the store has no such layers.
pub fn disk_of(store: &Store, layers: &[Digest]) -> Vec<u8> {
    let merged = merge(layers, |id| store.layer_index_path(id)).unwrap();
    let mut metadata = Vec::new();
    plan_of(&merged).unwrap().write(&merged.tree, [1; 16], &mut metadata).unwrap();
    metadata
}

fn plan_of(merged: &MergedImage) -> Result<DiskPlan> {
    let blocks: Vec<u64> =
        merged.layers.iter().map(|layer| layer.data_bytes / BLOCK_BYTES).collect();
    DiskPlan::new(&merged.tree, &blocks)
}

/// Checks that the file system equals the tree.
fn check_disk(merged: &MergedImage) {
    let Ok(plan) = plan_of(merged) else {
        return;
    };
    let mut bytes = Vec::new();
    plan.write(&merged.tree, [1; 16], &mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, plan.metadata_blocks() * BLOCK_BYTES);
    readback::check(&bytes, &merged.tree);
}
