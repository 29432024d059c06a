//! Fuzz targets of archives and manifests.

use std::io::Read;

use libmsb::state::snapshot_manifest::SnapshotManifest;

use super::archive::tar::{ArchiveEntry, write_sparse};
use super::archive::tar::{EntryReader, RECORD_BYTES, repair_sums, write_end, write_padding};

/// Parses a manifest. A valid one is written as it was read.
pub(crate) fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = SnapshotManifest::parse(bytes) {
        assert_eq!(manifest.to_bytes().unwrap(), bytes);
    }
}

/// Reads the entries of an archive. Each one that is written again is read as the same.
pub(crate) fn archive(bytes: &[u8]) {
    let repaired = repair_sums(bytes);
    let mut reader = EntryReader::new(&repaired[..]);
    while let Ok(Some(entry)) = reader.next() {
        let mut contents = Vec::new();
        let whole = (&mut reader).take(1 << 20).read_to_end(&mut contents).is_ok();
        assert!(entry.pieces.iter().all(|piece| piece.offset + piece.bytes <= entry.size));
        if whole && contents.len() as u64 == entry.stored() && entry.path.len() <= 100 {
            write_and_read(&entry, &contents);
        }
    }
}

fn write_and_read(entry: &ArchiveEntry, contents: &[u8]) {
    let mut out = Vec::new();
    write_sparse(&mut out, entry, 0).unwrap();
    out.extend(contents);
    write_padding(&mut out, contents.len() as u64).unwrap();
    write_end(&mut out).unwrap();
    assert_eq!(out.len() % RECORD_BYTES, 0);
    let mut reader = EntryReader::new(&out[..]);
    let mut again = reader.next().unwrap().unwrap();
    // A plain file has one piece, which may be empty.
    again.pieces.retain(|piece| piece.bytes > 0);
    let mut expected = entry.clone();
    expected.pieces.retain(|piece| piece.bytes > 0);
    assert_eq!(again, expected);
    let mut read = Vec::new();
    reader.read_to_end(&mut read).unwrap();
    assert_eq!(read, contents);
    assert!(reader.next().unwrap().is_none());
}
