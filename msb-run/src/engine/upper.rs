//! The empty writable disk: a sparse file with a small ext4 file system, which the guest grows to the disk's size.
//!
//! No program of the host makes it: the file system's few blocks are part of this one (`make-upper-template`).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use flate2::read::ZlibDecoder;

const TEMPLATE: &[u8] = include_bytes!("upper.template");
const BLOCK_BYTES: usize = 4096;

/// Smallest disk, in MiB: the file system as it is in the template.
pub(crate) const SIZE_MIB_MIN: u64 = 24;

/// Writes an empty file system into an empty file, and gives the file its size.
pub(crate) fn format(file: &File, size_mib: u64) -> io::Result<()> {
    file.set_len(size_mib.max(SIZE_MIB_MIN) * 1024 * 1024)?;
    let mut template = ZlibDecoder::new(TEMPLATE);
    let mut number = [0; 4];
    let mut block = [0; BLOCK_BYTES];
    while template.read(&mut number)? == number.len() {
        template.read_exact(&mut block)?;
        file.write_all_at(
            &block,
            u64::from(u32::from_le_bytes(number)) * BLOCK_BYTES as u64,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_disk_is_sparse_and_has_a_file_system() {
        let file = tempfile::tempfile().unwrap();
        format(&file, 4096).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), 4 << 30);
        assert!(
            meta.blocks() * 512 < 256 * 1024,
            "{} bytes are allocated",
            meta.blocks() * 512
        );
        let mut magic = [0; 2];
        file.read_exact_at(&mut magic, 1024 + 56).unwrap();
        assert_eq!(u16::from_le_bytes(magic), 0xef53);
    }
}
