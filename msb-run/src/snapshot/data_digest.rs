//! Digests of disks.
//!
//! [`DATA_ALGORITHM`] covers the contents of a disk, not the layout of its file: blocks of zeros and
//! holes are the same, so the digest survives every copy, and holes cost nothing. It is the SHA-256
//! of the algorithm's name, a zero byte, the size of the disk, and for each block of 4096 bytes that
//! is not zero its number and its bytes. Numbers have 8 bytes, little-endian.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::Context;
use libmsb::cli::error::{Code, Failure};
use libmsb::digest::Digest;
use libmsb::state::snapshot_manifest::{DiskIntegrity, LABEL_DATA, SnapshotManifest};
use sha2::{Digest as _, Sha256};

use super::disk_copy::DataRanges;

/// Name of the algorithm.
pub(crate) const DATA_ALGORITHM: &str = "msb-data-sha256-v1";
/// Algorithm of the whole file, which microsandbox also supports.
const FILE_ALGORITHM: &str = "sha256";
const BLOCK_BYTES: usize = 4096;
/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 20;

/// The result of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verification {
    /// The manifest has no digest of the disk.
    NotRecorded,
    /// The digest has an algorithm that depends on the file's layout, which this program does not
    /// reproduce.
    Unsupported(DiskIntegrity),
    /// The disk has the recorded digest.
    Verified(DiskIntegrity),
}

/// A digest of a disk that is computed from its blocks in order.
#[derive(Debug)]
pub(crate) struct DataHasher {
    hasher: Sha256,
}

impl DataHasher {
    /// Starts the digest of a disk.
    pub(crate) fn new(size_bytes: u64) -> DataHasher {
        let mut hasher = Sha256::new();
        hasher.update(DATA_ALGORITHM);
        hasher.update([0]);
        hasher.update(size_bytes.to_le_bytes());
        DataHasher { hasher }
    }

    /// Adds bytes that start at a block and end at a block or at the end of the disk.
    pub(crate) fn update(&mut self, offset: u64, bytes: &[u8]) {
        for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                let number = offset / BLOCK_BYTES as u64 + index as u64;
                self.hasher.update(number.to_le_bytes());
                self.hasher.update(block);
            }
        }
    }

    /// Returns the digest.
    pub(crate) fn finish(self) -> Digest {
        Digest::of_bytes(self.hasher.finalize().into())
    }
}

/// Returns the digest of a disk's data.
pub(crate) fn data_digest(file: &File) -> anyhow::Result<Digest> {
    let size = file.metadata().context("cannot read the disk")?.len();
    let mut digest = DataHasher::new(size);
    let mut buffer = vec![0; READ_BYTES];
    let mut done = 0;
    for range in DataRanges::of(file) {
        let (start, end) = range?;
        // Whole blocks, each once: a range of a file system with small blocks may end within one.
        let mut at = (start - start % BLOCK_BYTES as u64).max(done);
        let end = end.next_multiple_of(BLOCK_BYTES as u64).min(size);
        while at < end {
            let count = ((end - at) as usize).min(READ_BYTES);
            file.read_exact_at(&mut buffer[..count], at).context("cannot read the disk")?;
            digest.update(at, &buffer[..count]);
            at += count as u64;
        }
        done = at;
    }
    Ok(digest.finish())
}

/// Returns the digest of a disk that a manifest records.
pub(crate) fn recorded(manifest: &SnapshotManifest) -> Option<DiskIntegrity> {
    if let Some(integrity) = &manifest.upper.integrity {
        return Some(integrity.clone());
    }
    let digest = manifest.labels.get(LABEL_DATA)?.parse().ok()?;
    Some(DiskIntegrity { algorithm: DATA_ALGORITHM.to_owned(), digest })
}

/// Compares a disk with the digest that its manifest records.
pub(crate) fn verify(manifest: &SnapshotManifest, disk: &File) -> anyhow::Result<Verification> {
    let Some(integrity) = recorded(manifest) else {
        return Ok(Verification::NotRecorded);
    };
    let found = match integrity.algorithm.as_str() {
        DATA_ALGORITHM => data_digest(disk)?,
        FILE_ALGORITHM => file_digest(disk)?,
        _ => return Ok(Verification::Unsupported(integrity)),
    };
    if found == integrity.digest {
        return Ok(Verification::Verified(integrity));
    }
    let message =
        format!("the disk has the digest {found}, and the manifest says {}", integrity.digest);
    Err(Failure::failed(message).code(Code::SnapshotIntegrity).into())
}

fn file_digest(file: &File) -> anyhow::Result<Digest> {
    let size = file.metadata().context("cannot read the disk")?.len();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    while at < size {
        let count = ((size - at) as usize).min(READ_BYTES);
        file.read_exact_at(&mut buffer[..count], at).context("cannot read the disk")?;
        hasher.update(&buffer[..count]);
        at += count as u64;
    }
    Ok(Digest::of_bytes(hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(blocks: &[(u64, u8)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 24).unwrap();
        for (number, byte) in blocks {
            file.write_all_at(&[*byte; BLOCK_BYTES], number * BLOCK_BYTES as u64).unwrap();
        }
        file
    }

    #[test]
    fn the_digest_depends_on_contents_and_not_on_holes() {
        let one = data_digest(&disk(&[(3, 7), (900, 8)])).unwrap();
        assert_eq!(one, data_digest(&disk(&[(3, 7), (4, 0), (5, 0), (900, 8)])).unwrap());
        for other in [&[(3, 7)][..], &[(3, 7), (901, 8)], &[(3, 7), (900, 9)]] {
            assert_ne!(one, data_digest(&disk(other)).unwrap());
        }
        let longer = disk(&[(3, 7), (900, 8)]);
        longer.set_len((1 << 24) + 512).unwrap();
        assert_ne!(one, data_digest(&longer).unwrap());
    }

    #[test]
    fn one_pass_and_many_parts_give_one_digest() {
        let file = disk(&[(0, 1), (1, 2), (255, 3), (256, 4), (4095, 5)]);
        let mut whole = vec![0; 1 << 24];
        file.read_exact_at(&mut whole, 0).unwrap();
        let mut digest = DataHasher::new(1 << 24);
        digest.update(0, &whole);
        assert_eq!(digest.finish(), data_digest(&file).unwrap());
    }
}
