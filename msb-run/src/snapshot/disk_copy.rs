//! Copies of sparse files.
//!
//! A file system with reflinks (XFS, Btrfs) shares the blocks, at a cost of its extents. On another
//! one the data is copied by the kernel (copy_file_range(2)) and holes are skipped (SEEK_DATA), so
//! the cost is that of the data and not of the disk's size.

use std::fs::File;

use anyhow::Context;
use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Bytes that are copied by one system call.
const COPY_BYTES: u64 = 1 << 30;
/// Bytes that are copied through memory at once.
const PART_BYTES: usize = 1 << 20;

/// The data of a sparse file: ranges that are not holes, in order.
#[derive(Debug)]
pub(crate) struct DataRanges<'a> {
    file: &'a File,
    from: u64,
}

impl<'a> DataRanges<'a> {
    /// Returns the ranges of a file. They are searched one by one.
    pub(crate) fn of(file: &'a File) -> DataRanges<'a> {
        DataRanges { file, from: 0 }
    }
}

impl Iterator for DataRanges<'_> {
    type Item = anyhow::Result<(u64, u64)>;

    fn next(&mut self) -> Option<Self::Item> {
        let find = || {
            let start = seek(self.file, SeekFrom::Data(self.from))?;
            Ok((start, seek(self.file, SeekFrom::Hole(start))?))
        };
        match find() {
            Ok((start, end)) => {
                self.from = end;
                Some(Ok((start, end)))
            }
            Err(Errno::NXIO) => None,
            Err(error) => {
                self.from = u64::MAX >> 1;
                Some(Err(std::io::Error::from(error)).context("cannot find the data of the disk"))
            }
        }
    }
}

/// Copies a disk into an empty file and flushes it. Shares blocks if the file system can.
pub(crate) fn copy_disk(from: &File, to: &File) -> anyhow::Result<()> {
    if !share_blocks(from, to)? {
        copy_data(from, to)?;
    }
    to.sync_all().context("cannot flush the copy of the disk")
}

/// Shares the blocks of a file with an empty file; returns `false` if the file system cannot.
pub(crate) fn share_blocks(from: &File, to: &File) -> anyhow::Result<bool> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(
            Errno::OPNOTSUPP
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOTTY
            | Errno::NOSYS
            | Errno::PERM
            | Errno::TXTBSY,
        ) => Ok(false),
        Err(error) => Err(std::io::Error::from(error)).context("cannot copy the disk"),
    }
}

/// Copies the data of a sparse file into an empty file. Does not flush it.
pub(crate) fn copy_data(from: &File, to: &File) -> anyhow::Result<()> {
    copy_ranges(from, to, DataRanges::of(from))
}

/// Copies ranges of a file to the same places of another one. Does not flush it.
pub(crate) fn copy_ranges(
    from: &File,
    to: &File,
    ranges: impl Iterator<Item = anyhow::Result<(u64, u64)>>,
) -> anyhow::Result<()> {
    let cannot = "cannot copy the disk";
    let size = from.metadata().context(cannot)?.len();
    to.set_len(size).context(cannot)?;
    let mut in_kernel = true;
    for range in ranges {
        let (start, end) = range?;
        let mut at = start;
        while at < end.min(size) {
            let left = (end.min(size) - at).min(COPY_BYTES) as usize;
            let (mut read, mut written) = (at, at);
            let copied = if in_kernel {
                copy_file_range(from, Some(&mut read), to, Some(&mut written), left)
            } else {
                copy_part(from, to, at, left)
            };
            match copied {
                Err(Errno::INTR) => {}
                // Between two file systems.
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if in_kernel => {
                    in_kernel = false;
                }
                Ok(0) => anyhow::bail!("the disk was truncated during the copy"),
                Ok(count) => at += count as u64,
                Err(error) => return Err(std::io::Error::from(error)).context(cannot),
            }
        }
    }
    Ok(())
}

/// Copies the first bytes of a range through memory. Returns their number.
fn copy_part(from: &File, to: &File, at: u64, bytes: usize) -> Result<usize, Errno> {
    let mut buffer = vec![0; bytes.min(PART_BYTES)];
    let count = rustix::io::pread(from, &mut buffer[..], at)?;
    let mut done = 0;
    while done < count {
        done += rustix::io::pwrite(to, &buffer[done..count], at + done as u64)?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let from = tempfile::tempfile().unwrap();
        from.set_len(1 << 40).unwrap();
        for at in [0, 5 << 20, (1 << 40) - 4096] {
            from.write_all_at(&[7; 4096], at).unwrap();
        }
        let to = tempfile::tempfile().unwrap();
        copy_disk(&from, &to).unwrap();
        let meta = to.metadata().unwrap();
        assert_eq!(meta.len(), 1 << 40);
        assert!(meta.blocks() * 512 <= 64 * 1024, "{} blocks", meta.blocks());
        let ranges =
            |file: &File| -> Vec<(u64, u64)> { DataRanges::of(file).map(Result::unwrap).collect() };
        assert_eq!(ranges(&from), ranges(&to));
        let mut read = [0; 4096];
        to.read_exact_at(&mut read, 5 << 20).unwrap();
        assert_eq!(read, [7; 4096]);
    }
}
