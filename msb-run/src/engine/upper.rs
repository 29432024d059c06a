//! The empty writable disk: a sparse file with a small ext4 file system, which the guest grows to
//! the size of the disk.
//!
//! No program of the host makes it: the few blocks of the file system are part of this program
//! (`make-upper-template`).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use flate2::read::ZlibDecoder;

/// Empty file systems, by size in MiB. A larger disk starts with the largest one that fits.
const TEMPLATES: [(u64, &[u8]); 2] = [
    (4096, include_bytes!("upper-4g.template")),
    (SIZE_MIB_MIN, include_bytes!("upper-24m.template")),
];
const BLOCK_BYTES: usize = 4096;

/// Minimum size of a disk, in MiB.
pub(crate) const SIZE_MIB_MIN: u64 = 24;

/// Writes an empty file system into an empty file and sets the size of the file.
pub(crate) fn format(file: &File, size_mib: u64) -> io::Result<()> {
    let size_mib = size_mib.max(SIZE_MIB_MIN);
    file.set_len(size_mib * 1024 * 1024)?;
    let fits = TEMPLATES.iter().find(|(mib, _)| *mib <= size_mib);
    let mut template = ZlibDecoder::new(fits.map_or(&[][..], |(_, bytes)| bytes));
    let mut number = [0; 4];
    let mut block = [0; BLOCK_BYTES];
    while template.read(&mut number)? == number.len() {
        template.read_exact(&mut block)?;
        let at = u64::from(u32::from_le_bytes(number)) * BLOCK_BYTES as u64;
        file.write_all_at(&block, at)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_disk_is_sparse_and_has_a_file_system_no_larger_than_itself() {
        for size_mib in [24, 100, 4095, 4096, 70_000] {
            let file = tempfile::tempfile().unwrap();
            format(&file, size_mib).unwrap();
            let meta = file.metadata().unwrap();
            assert_eq!(meta.len(), size_mib << 20);
            let allocated = meta.blocks() * 512;
            assert!(allocated < 256 * 1024, "{allocated} bytes are allocated");
            // Superblock at 1024: the number of blocks at 4, the magic number at 56 (kernel:
            // ext4/super.rst).
            let mut superblock = [0; 64];
            file.read_exact_at(&mut superblock, 1024).unwrap();
            assert_eq!(superblock[56..58], [0x53, 0xef]);
            let blocks =
                u32::from_le_bytes([superblock[4], superblock[5], superblock[6], superblock[7]]);
            assert!(u64::from(blocks) * 4096 <= size_mib << 20);
        }
    }
}
