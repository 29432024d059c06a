//! The data file of a layer: the contents of its files, each starting at a block.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use anyhow::{Result, ensure};

use super::BLOCK_BYTES;
use crate::error::StoreWriteError;
use crate::limits::LAYER_DATA_BYTES_MAX;

/// Large writes keep the number of system calls low; small files are gathered.
const BUFFER_BYTES: usize = 1 << 20;
/// Holes below this size are written as zeros.
const HOLE_BYTES_MIN: u64 = 64 << 10;

/// A writer of a data file.
#[derive(Debug)]
pub(crate) struct DataWriter {
    file: File,
    buffer: Vec<u8>,
    /// Offset of the next byte, including buffered ones.
    position: u64,
    /// Bytes that are not holes.
    stored: u64,
}

impl DataWriter {
    pub(crate) fn new(file: File) -> DataWriter {
        DataWriter { file, buffer: Vec::with_capacity(BUFFER_BYTES), position: 0, stored: 0 }
    }

    /// Returns the bytes that take disk space, including buffered ones.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.stored
    }

    /// Starts a file and returns its first block.
    pub(crate) fn start_file(&mut self) -> Result<u64> {
        self.hole(self.position.next_multiple_of(BLOCK_BYTES) - self.position)?;
        Ok(self.position / BLOCK_BYTES)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        // Terabytes of zeros take no disk space, whether or not the archive declares them sparse.
        if bytes.len() as u64 >= HOLE_BYTES_MIN && is_zero(bytes) {
            return self.hole(bytes.len() as u64);
        }
        self.advance(bytes.len() as u64)?;
        self.stored += bytes.len() as u64;
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        if bytes.len() >= BUFFER_BYTES / 4 && self.buffer.is_empty() {
            self.file.write_all(bytes).map_err(StoreWriteError)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Writes zeros, or a hole if they are long enough.
    pub(crate) fn hole(&mut self, length: u64) -> Result<()> {
        const ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
        if length >= HOLE_BYTES_MIN {
            self.advance(length)?;
            self.flush()?;
            self.file.seek(SeekFrom::Start(self.position)).map_err(StoreWriteError)?;
            return Ok(());
        }
        let mut left = length;
        while left > 0 {
            let now = left.min(BLOCK_BYTES);
            self.write(&ZEROS[..now as usize])?;
            left -= now;
        }
        Ok(())
    }

    /// Fills the last block. Returns the file and its length.
    pub(crate) fn finish(mut self) -> Result<(File, u64)> {
        self.start_file()?;
        self.flush()?;
        // A hole at the end does not extend the file by itself.
        self.file.set_len(self.position).map_err(StoreWriteError)?;
        Ok((self.file, self.position))
    }

    fn advance(&mut self, length: u64) -> Result<()> {
        self.position = self.position.saturating_add(length);
        ensure!(
            self.position <= LAYER_DATA_BYTES_MAX,
            "the layer's files have more than {LAYER_DATA_BYTES_MAX} bytes, holes counted"
        );
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_all(&self.buffer).map_err(StoreWriteError)?;
        self.buffer.clear();
        Ok(())
    }
}

/// Returns whether all bytes are zero. The first bytes usually decide; otherwise the slice is
/// compared with itself, shifted by one.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0) && bytes[1..] == bytes[..bytes.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn contents_start_at_blocks_and_holes_are_zeros() {
        let mut data = DataWriter::new(tempfile::tempfile().unwrap());
        assert_eq!(data.start_file().unwrap(), 0);
        data.write(b"one").unwrap();
        assert_eq!(data.start_file().unwrap(), 1);
        data.hole(1 << 20).unwrap();
        data.write(b"two").unwrap();
        data.hole(1 << 20).unwrap();
        let (mut file, length) = data.finish().unwrap();
        assert_eq!(length, 4096 + (2 << 20) + 4096);
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, length);
        assert_eq!(&bytes[..4], b"one\0");
        let two = 4096 + (1 << 20);
        assert_eq!(&bytes[two..two + 4], b"two\0");
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 6);
    }

    #[test]
    fn zeros_take_no_disk_space() {
        let mut data = DataWriter::new(tempfile::tempfile().unwrap());
        data.write(b"x").unwrap();
        for _ in 0..64 {
            data.write(&[0; 256 << 10]).unwrap();
        }
        let mut last = vec![0; 256 << 10];
        last[(256 << 10) - 1] = 1;
        data.write(&last).unwrap();
        let (mut file, length) = data.finish().unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, length);
        assert_eq!((bytes[0], bytes[65 * (256 << 10)]), (b'x', 1));
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 2);
    }

    #[test]
    fn a_layer_cannot_grow_without_end() {
        let mut data = DataWriter::new(tempfile::tempfile().unwrap());
        assert!(data.hole(LAYER_DATA_BYTES_MAX).is_ok());
        assert!(data.write(b"x").is_err());
    }
}
