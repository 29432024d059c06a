//! What the layers of one image, or of one archive, may take on the disk, all together.
//!
//! A few kilobytes can expand to terabytes. So what comes out is compared with what went in, over all layers: each layer
//! for itself would have its own allowance. And before the file system is full, conversion stops: other programs need
//! room, too.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use libmsb::cli::error::Failure;
use libmsb::state::images::Store;
use rustix::fs::statvfs;

use crate::error::StoreWrite;
use crate::limits::{
    EXPANSION_FREE_BYTES, EXPANSION_RATIO_MAX, LAYER_TAR_BYTES_MAX, RESERVE_BYTES_MAX,
    RESERVE_SHARE, STORED_RATIO_MAX,
};

/// Bytes that are stored between two looks at the free space, at most.
const LOOK_BYTES_MAX: u64 = 16 << 20;

/// Counts of one image or archive. Layers that are converted side by side share it.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// Bytes that were read, as they came.
    packed: AtomicU64,
    /// Bytes of tar, uncompressed.
    unpacked: AtomicU64,
    /// Bytes that take room on the disk.
    stored: AtomicU64,
    /// Those of them at the last look at the free space.
    looked: AtomicU64,
    /// Where they are stored; none in tests.
    place: Option<PathBuf>,
}

impl Budget {
    /// The budget of an image that goes into a store.
    pub(crate) fn of(store: &Store) -> Budget {
        Budget {
            place: Some(store.root().to_owned()),
            ..Budget::default()
        }
    }

    /// Counts what is read from here on as packed bytes.
    pub(crate) fn reader<R>(&self, inner: R) -> PackedReader<'_, R> {
        PackedReader {
            inner,
            budget: self,
        }
    }

    /// Counts bytes of a layer's tar. An error when they are too many for what was read.
    pub(crate) fn unpack(&self, bytes: u64) -> Result<()> {
        let unpacked = self.unpacked.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let packed = self.packed.load(Ordering::Relaxed);
        check_expansion(unpacked, packed, EXPANSION_RATIO_MAX)
    }

    /// Counts bytes that are about to take room on the disk. An error when they are too many, or the reserve is reached.
    pub(crate) fn store(&self, bytes: u64) -> Result<()> {
        let stored = self.stored.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let packed = self.packed.load(Ordering::Relaxed);
        check_expansion(stored, packed, STORED_RATIO_MAX)?;
        let Some(place) = &self.place else {
            return Ok(());
        };
        let looked = self.looked.load(Ordering::Relaxed);
        if looked > 0 && stored.saturating_sub(looked) < LOOK_BYTES_MAX {
            return Ok(());
        }
        // A small reserve could be used up between two looks.
        if check_disk(place)? > 2 * LOOK_BYTES_MAX {
            self.looked.store(stored, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Returns the reserve of the file system that a path is on; an error when it is reached. What cannot be asked has none.
pub(crate) fn check_disk(place: &Path) -> Result<u64> {
    let Ok(disk) = statvfs(place) else {
        return Ok(0);
    };
    let size = disk.f_blocks.saturating_mul(disk.f_frsize);
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    check_room(free, size)?;
    Ok(reserve(size))
}

/// Bytes of a file system that stay free.
fn reserve(size: u64) -> u64 {
    (size / RESERVE_SHARE).min(RESERVE_BYTES_MAX)
}

fn check_room(free: u64, size: u64) -> Result<()> {
    let reserve = reserve(size);
    if free >= reserve {
        return Ok(());
    }
    let why = format!(
        "no space left on device but for the reserve: {} KiB are free, and {} KiB stay free",
        free >> 10,
        reserve >> 10
    );
    let error = StoreWrite(io::Error::new(io::ErrorKind::StorageFull, why));
    let failure = Failure::failed("the disk of the image store is almost full")
        .hint("remove images that are not needed: msb image prune");
    Err(anyhow::Error::new(error).context(failure))
}

fn check_expansion(bytes: u64, packed: u64, ratio_max: u64) -> Result<()> {
    ensure!(
        bytes <= EXPANSION_FREE_BYTES || (bytes - EXPANSION_FREE_BYTES) / ratio_max <= packed,
        "the layers expand to more than {ratio_max} times their size"
    );
    Ok(())
}

/// An error when a layer's tar has more bytes than any may have.
pub(crate) fn check_tar_bytes(bytes: u64) -> Result<()> {
    ensure!(
        bytes <= LAYER_TAR_BYTES_MAX,
        "it has more than {LAYER_TAR_BYTES_MAX} bytes"
    );
    Ok(())
}

/// Counts what is read through it.
pub(crate) struct PackedReader<'a, R> {
    inner: R,
    budget: &'a Budget,
}

impl<R: Read> Read for PackedReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.budget
            .packed
            .fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::convert::convert_within;
    use crate::store::NewLayer;
    use crate::testing::{TarBuilder, store, zstd};

    #[test]
    fn what_expands_without_measure_is_refused() {
        let check = |bytes, packed| check_expansion(bytes, packed, EXPANSION_RATIO_MAX);
        assert!(check(EXPANSION_FREE_BYTES, 0).is_ok());
        assert!(check(EXPANSION_FREE_BYTES + EXPANSION_RATIO_MAX, 0).is_err());
        // What gzip can do at most is no bomb.
        assert!(check(10 << 30, (10 << 30) / 1032).is_ok());
        assert!(check_tar_bytes(LAYER_TAR_BYTES_MAX + 1).is_err());
    }

    #[test]
    fn many_layers_have_one_allowance() {
        let budget = Budget::default();
        let third = EXPANSION_FREE_BYTES / 3;
        for layer in 0..4 {
            let fits = budget.unpack(third).is_ok() && budget.store(third).is_ok();
            assert_eq!(fits, layer < 3, "{layer}");
        }
    }

    #[test]
    fn what_takes_room_must_be_worth_it_and_holes_need_not() {
        let budget = Budget::default();
        io::copy(&mut budget.reader(&[0; 1 << 20][..]), &mut io::sink()).unwrap();
        let most = EXPANSION_FREE_BYTES + (STORED_RATIO_MAX << 20);
        assert!(budget.store(most).is_ok());
        assert!(budget.store(STORED_RATIO_MAX).is_err());
        assert!(budget.unpack(most + (1 << 20)).is_ok());
    }

    #[test]
    fn a_disk_keeps_a_reserve() {
        assert!(check_room(1 << 30, 100 << 30).is_ok());
        let error = check_room((1 << 30) - 1, 100 << 30).unwrap_err();
        assert!(crate::error::is_fatal(&error));
        assert_eq!(
            libmsb::cli::error::message(&error),
            "the disk of the image store is almost full: cannot write to the image store: \
             no space left on device but for the reserve: 1048575 KiB are free, and 1048576 KiB stay free"
        );
        assert!(check_room(205 << 10, 4 << 20).is_ok() && check_room(204 << 10, 4 << 20).is_err());
    }

    #[test]
    fn holes_of_a_layer_are_not_stored_and_contents_are() {
        let (_folder, store) = store();
        let tar = TarBuilder::new()
            .file("zeros", &vec![0; 4 << 20])
            .file("ones", &vec![1; 1 << 20]);
        let blob = zstd(&tar.finish());
        let budget = Budget::of(&store);
        convert_within(
            budget.reader(&blob[..]),
            NewLayer::create(&store).unwrap(),
            &budget,
        )
        .unwrap();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!(count(&budget.packed), blob.len() as u64);
        assert!(count(&budget.unpacked) > 5 << 20);
        let stored = count(&budget.stored);
        assert!((1 << 20..2 << 20).contains(&stored), "{stored}");
    }
}
