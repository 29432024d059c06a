//! What untrusted bytes meet, one function a door: any bytes are good, a panic is a bug.
//!
//! Every input of `tests/corpus` goes through its door with `cargo test`; `tests/fuzz` looks for new ones with libFuzzer.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;

use anyhow::{Result, ensure};
use libmsb::digest::Digest;
use libmsb::state::images::Store;
use tempfile::TempDir;

use crate::archive::{self, Archive};
use crate::disk::erofs::Plan;
use crate::disk::image;
use crate::disk::merge::{Merged, merge};
use crate::document::{Config, Document, digest_in_path};
use crate::input::Input;
use crate::layer::BLOCK_BYTES;
use crate::layer::convert::convert;
use crate::layer::index::{IndexWriter, Summary, rebuild};
use crate::layer::tar::{Kind, TarReader};
use crate::load;
use crate::store::NewLayer;
use crate::stream::{Packing, digest_of};
use crate::testing::TarBuilder;

/// A door, by the name of its folder in `tests/corpus`.
pub(crate) type Door = fn(&[u8]);

/// All of them.
pub(crate) const DOORS: [(&str, Door); 6] = [
    ("tar", tar),
    ("layer", layer),
    ("index", index),
    ("disk", disk),
    ("document", document),
    ("archive", archive),
];

/// A store in memory, as far as there is such a place.
fn store() -> (TempDir, Store) {
    let folder = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let store = Store::at(folder.path().join("images"));
    store.prepare().unwrap();
    (folder, store)
}

/// The entries of a tar.
fn tar(bytes: &[u8]) {
    let mut tar = TarReader::new(bytes);
    while let Ok(Some(entry)) = tar.next() {
        let pieces = entry.pieces.iter().flatten();
        let held: u64 = pieces.map(|piece| piece.length).sum();
        assert!(
            entry.stored
                == if entry.pieces.is_some() {
                    held
                } else {
                    entry.size
                }
        );
        assert!(entry.kind == Kind::File || entry.size == 0);
        assert!(!entry.path.is_empty() && !entry.path.contains(&0));
        let Some(rest) = usize::try_from(entry.stored)
            .ok()
            .and_then(|stored| tar.source.get(stored..))
        else {
            return;
        };
        tar.source = rest;
    }
}

/// A layer, packed or not: if it is taken, its tar can be rebuilt, and it gives a disk or is refused.
fn layer(bytes: &[u8]) {
    let (_folder, store) = store();
    let files = NewLayer::create(&store).unwrap();
    let Ok(converted) = convert(bytes, files) else {
        assert_eq!(std::fs::read_dir(store.layers()).unwrap().count(), 0);
        return;
    };
    let id = converted.summary.diff_id;
    converted.files.commit(&store, &id).unwrap();
    assert_eq!(converted.unpacked.blob.digest, digest_of(bytes));
    if converted.summary.data_bytes < 16 << 20 {
        let tar = rebuild(
            &store.layer_index_path(&id),
            &store.layer_data_path(&id),
            &id,
        )
        .unwrap();
        assert_eq!(digest_of(&tar), id);
        assert!(Packing::of(bytes) != Some(Packing::Plain) || tar == bytes);
    }
    if let Ok(merged) = merge(&[id], |id| store.layer_index_path(id)) {
        check_disk(&merged);
    }
}

/// An index of a layer: as it is, and with these bytes as the body of a right one.
fn index(bytes: &[u8]) {
    let (folder, _store) = store();
    let path = folder.path().join("index");
    let id = Digest::of_bytes([7; 32]);
    let read = |path: &Path| {
        if let Ok(merged) = merge(&[id], |_| path.to_owned()) {
            check_disk(&merged);
        }
    };
    std::fs::write(&path, bytes).unwrap();
    read(&path);
    let summary = Summary {
        diff_id: id,
        tar_bytes: 0,
        data_bytes: 1 << 30,
    };
    let mut writer = IndexWriter::new(File::create(&path).unwrap()).unwrap();
    writer.put_body(bytes).unwrap();
    writer.finish(summary).unwrap();
    read(&path);
}

/// Layers over layers. The bytes are read as a list of entries, so that most of them are good ones.
fn disk(bytes: &[u8]) {
    let (_folder, store) = store();
    let mut ids = Vec::new();
    for layer in bytes.split(|byte| *byte == 0xff).take(8) {
        let tar = layer.chunks(4).fold(TarBuilder::new(), put_entry).finish();
        let files = NewLayer::create(&store).unwrap();
        let Ok(converted) = convert(&tar[..], files) else {
            return;
        };
        converted
            .files
            .commit(&store, &converted.summary.diff_id)
            .unwrap();
        ids.push(converted.summary.diff_id);
    }
    if let Ok(merged) = merge(&ids, |id| store.layer_index_path(id)) {
        check_disk(&merged);
    }
}

/// An entry from four bytes: kind, two for the path, one for what belongs to the kind.
fn put_entry(tar: TarBuilder, bytes: &[u8]) -> TarBuilder {
    let at = |n: usize| bytes.get(n).copied().unwrap_or_default();
    let path = path_of(at(1), at(2));
    let tar = if at(0) & 0x40 == 0 {
        tar
    } else {
        tar.pax(&[("SCHILY.xattr.user.x", &vec![at(3); usize::from(at(1)) * 16])])
    };
    match at(0) & 7 {
        0 => tar.folder(&path, u32::from(at(3))),
        1 => tar.symlink(&path, &path_of(at(3), at(2))),
        2 => tar.hard_link(&path, &path_of(at(3), at(2))),
        3 => tar.fifo(&path),
        4 => tar.device(&path, b'3', at(3).into(), at(2).into()),
        5 => tar
            .long_name(&path.repeat(1 + usize::from(at(3) >> 4)))
            .folder("x", 0o755),
        _ => tar.file(&path, &vec![at(3); usize::from(at(3)) * 40]),
    }
}

/// A path of up to four parts, of few names, so that they meet each other.
fn path_of(first: u8, second: u8) -> String {
    const PARTS: [&str; 8] = ["a", "b", "..", ".wh.a", ".wh..wh..opq", "", ".", "cc"];
    [first & 7, first >> 3 & 7, second & 7, second >> 3 & 7]
        .map(|part| PARTS[usize::from(part)])
        .join("/")
}

/// Manifests, indexes, configurations, names of layers and images.
fn document(bytes: &[u8]) {
    let _ = Config::parse(bytes).map(|config| config.check_platform());
    let _ = archive::docker::parse(bytes);
    if let Ok(document) = Document::parse(bytes) {
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

/// A whole archive, as a file and as a stream. What is refused leaves nothing behind.
fn archive(bytes: &[u8]) {
    for streamed in [false, true] {
        let (folder, store) = store();
        let outcome = load_archive(bytes, streamed, &store);
        let count = |path| std::fs::read_dir(path).unwrap().count();
        let (names, layers) = (count(store.refs()), count(store.layers()));
        assert!(outcome.is_ok() || names + layers == 0, "{outcome:?}");
        // The store is the only folder that was made.
        assert_eq!(count(folder.path().to_owned()), 1);
    }
}

fn load_archive(bytes: &[u8], streamed: bool, store: &Store) -> Result<()> {
    let mut file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile())?;
    file.write_all(bytes)?;
    file.rewind()?;
    let length = (!streamed).then_some(bytes.len() as u64);
    let mut archive = Archive::open(Input::of(file, length), store, false)?;
    let images = archive::images(&mut archive)?;
    ensure!(images.len() == 1, "several images may come in part");
    images
        .iter()
        .try_for_each(|image| load::add(store, &mut archive, image).map(drop))
}

/// The file system says what the tree says.
fn check_disk(merged: &Merged) {
    let blocks: Vec<u64> = merged
        .layers
        .iter()
        .map(|layer| layer.data_bytes / BLOCK_BYTES)
        .collect();
    let Ok(plan) = Plan::new(&merged.tree, &blocks) else {
        return;
    };
    let mut bytes = Vec::new();
    plan.write(&merged.tree, [1; 16], &mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, plan.metadata_blocks() * BLOCK_BYTES);
    image::check(&bytes, &merged.tree);
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static DOOR: std::sync::LazyLock<Door> = std::sync::LazyLock::new(|| {
        let name = std::env::var("MSB_FUZZ").expect("MSB_FUZZ names a door");
        let found = DOORS.iter().find(|(door, _)| *door == name);
        found.expect("MSB_FUZZ names none of the doors").1
    });
    DOOR(bytes);
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_of_the_corpus_goes_through_its_door() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
        for (name, door) in DOORS {
            let inputs = std::fs::read_dir(corpus.join(name)).unwrap();
            let mut count = 0;
            for input in inputs {
                door(&std::fs::read(input.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count >= 10, "{name}: {count} inputs");
        }
    }
}
