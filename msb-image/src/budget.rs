//! Budget of disk space for the layers of one image or archive, against decompression bombs.
//!
//! A few kilobytes can expand to terabytes. The budget therefore compares the output with the
//! input, over all layers together: separate budgets would add up. Conversion also stops before the
//! file system is full, because other programs need space too.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use libmsb::cli::error::Failure;
use libmsb::state::images::Store;
use rustix::fs::statvfs;

use crate::error::StoreWriteError;
use crate::limits::{
    EXPANSION_FREE_BYTES, EXPANSION_RATIO_MAX, LAYER_TAR_BYTES_MAX, RESERVE_BYTES_MAX,
    RESERVE_SHARE, STORED_RATIO_MAX,
};

/// Most bytes stored between two checks of the free space.
const FREE_SPACE_CHECK_BYTES_MAX: u64 = 16 << 20;

/// Byte counts of one image or archive. Layers that are converted at the same time share it.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// Compressed bytes read.
    packed: AtomicU64,
    /// Uncompressed bytes of tar.
    unpacked: AtomicU64,
    /// Bytes that take disk space.
    stored: AtomicU64,
    /// Value of `stored` at the last check of the free space.
    checked_at: AtomicU64,
    /// Path on the file system of the store; `None` in tests.
    path: Option<PathBuf>,
}

impl Budget {
    /// Creates the budget of an image for this store.
    pub(crate) fn of(store: &Store) -> Budget {
        Budget { path: Some(store.root().to_owned()), ..Budget::default() }
    }

    /// Wraps a reader so that its bytes count as compressed input.
    pub(crate) fn reader<R>(&self, inner: R) -> PackedReader<'_, R> {
        PackedReader { inner, budget: self }
    }

    /// Counts bytes of a layer's tar. Fails if they exceed the ratio to the input.
    pub(crate) fn count_unpacked(&self, bytes: u64) -> Result<()> {
        let unpacked = self.unpacked.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let packed = self.packed.load(Ordering::Relaxed);
        check_expansion(unpacked, packed, EXPANSION_RATIO_MAX)
    }

    /// Counts bytes that are about to take disk space. Fails if they exceed the ratio to the input,
    /// or if the reserve is reached.
    pub(crate) fn count_stored(&self, bytes: u64) -> Result<()> {
        let stored = self.stored.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let packed = self.packed.load(Ordering::Relaxed);
        check_expansion(stored, packed, STORED_RATIO_MAX)?;
        let Some(path) = &self.path else {
            return Ok(());
        };
        let checked_at = self.checked_at.load(Ordering::Relaxed);
        if checked_at > 0 && stored.saturating_sub(checked_at) < FREE_SPACE_CHECK_BYTES_MAX {
            return Ok(());
        }
        // A small reserve could be used up between two checks.
        if check_disk(path)? > 2 * FREE_SPACE_CHECK_BYTES_MAX {
            self.checked_at.store(stored, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Returns the reserve of a path's file system. Fails if the free space is below it. A file system
/// that does not report its size has no reserve.
pub(crate) fn check_disk(path: &Path) -> Result<u64> {
    let Ok(disk) = statvfs(path) else {
        return Ok(0);
    };
    let size = disk.f_blocks.saturating_mul(disk.f_frsize);
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    check_free_space(free, size)?;
    Ok(reserve(size))
}

/// Returns the bytes of a file system that must stay free.
fn reserve(size: u64) -> u64 {
    (size / RESERVE_SHARE).min(RESERVE_BYTES_MAX)
}

fn check_free_space(free: u64, size: u64) -> Result<()> {
    let reserve = reserve(size);
    if free >= reserve {
        return Ok(());
    }
    let why = format!(
        "no space left on device except the reserve: {} KiB free, {} KiB reserved",
        free >> 10,
        reserve >> 10
    );
    let error = StoreWriteError(io::Error::new(io::ErrorKind::StorageFull, why));
    let failure = Failure::failed("the file system of the image store is almost full")
        .hint("remove unused images: msb image prune");
    Err(anyhow::Error::new(error).context(failure))
}

fn check_expansion(bytes: u64, packed: u64, ratio_max: u64) -> Result<()> {
    ensure!(
        bytes <= EXPANSION_FREE_BYTES || (bytes - EXPANSION_FREE_BYTES) / ratio_max <= packed,
        "the layers expand to more than {ratio_max} times their size"
    );
    Ok(())
}

/// Fails if a layer's tar is larger than the limit.
pub(crate) fn check_tar_bytes(bytes: u64) -> Result<()> {
    ensure!(bytes <= LAYER_TAR_BYTES_MAX, "the tar has more than {LAYER_TAR_BYTES_MAX} bytes");
    Ok(())
}

/// A reader that counts its bytes in the budget.
pub(crate) struct PackedReader<'a, R> {
    inner: R,
    budget: &'a Budget,
}

impl<R: Read> Read for PackedReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.budget.packed.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::convert::convert_within;
    use crate::store::layers::NewLayer;
    use crate::testing::{TarBuilder, store, zstd};

    #[test]
    fn an_expansion_above_the_ratio_is_rejected() {
        let check = |bytes, packed| check_expansion(bytes, packed, EXPANSION_RATIO_MAX);
        assert!(check(EXPANSION_FREE_BYTES, 0).is_ok());
        assert!(check(EXPANSION_FREE_BYTES + EXPANSION_RATIO_MAX, 0).is_err());
        // The highest ratio of gzip is not a decompression bomb.
        assert!(check(10 << 30, (10 << 30) / 1032).is_ok());
        assert!(check_tar_bytes(LAYER_TAR_BYTES_MAX + 1).is_err());
    }

    #[test]
    fn many_layers_share_one_budget() {
        let budget = Budget::default();
        let third = EXPANSION_FREE_BYTES / 3;
        for layer in 0..4 {
            let fits = budget.count_unpacked(third).is_ok() && budget.count_stored(third).is_ok();
            assert_eq!(fits, layer < 3, "{layer}");
        }
    }

    #[test]
    fn stored_bytes_have_a_lower_ratio_than_holes() {
        let budget = Budget::default();
        io::copy(&mut budget.reader(&[0; 1 << 20][..]), &mut io::sink()).unwrap();
        let most = EXPANSION_FREE_BYTES + (STORED_RATIO_MAX << 20);
        assert!(budget.count_stored(most).is_ok());
        assert!(budget.count_stored(STORED_RATIO_MAX).is_err());
        assert!(budget.count_unpacked(most + (1 << 20)).is_ok());
    }

    #[test]
    fn a_disk_keeps_a_reserve() {
        assert!(check_free_space(1 << 30, 100 << 30).is_ok());
        let error = check_free_space((1 << 30) - 1, 100 << 30).unwrap_err();
        assert!(crate::error::is_fatal(&error));
        assert_eq!(
            libmsb::cli::error::message(&error),
            "the file system of the image store is almost full: cannot write to the image store: \
             no space left on device except the reserve: 1048575 KiB free, 1048576 KiB reserved"
        );
        assert!(
            check_free_space(205 << 10, 4 << 20).is_ok()
                && check_free_space(204 << 10, 4 << 20).is_err()
        );
    }

    #[test]
    fn holes_of_a_layer_are_not_stored_and_contents_are() {
        let (_directory, store) = store();
        let tar =
            TarBuilder::new().file("zeros", &vec![0; 4 << 20]).file("ones", &vec![1; 1 << 20]);
        let blob = zstd(&tar.finish());
        let budget = Budget::of(&store);
        convert_within(budget.reader(&blob[..]), NewLayer::create(&store).unwrap(), &budget)
            .unwrap();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!(count(&budget.packed), blob.len() as u64);
        assert!(count(&budget.unpacked) > 5 << 20);
        let stored = count(&budget.stored);
        assert!((1 << 20..2 << 20).contains(&stored), "{stored}");
    }
}
