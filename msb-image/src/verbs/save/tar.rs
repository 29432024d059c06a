//! Tar output: regular files and directories, owned by root, without times.

use std::io::{BufWriter, Write};

use anyhow::{Result, ensure};

use super::target::OutputTarget;

const BLOCK_BYTES: u64 = 512;
/// Buffer for headers and documents; larger contents bypass it.
const BUFFER_BYTES: usize = 64 << 10;
/// The first size that does not fit into eleven octal digits.
const LARGE_BYTES: u64 = 1 << 33;

/// A writer of tar members.
pub(super) struct TarWriter {
    out: BufWriter<OutputTarget>,
    /// Bytes of contents since the last header.
    contents: u64,
}

impl TarWriter {
    pub(super) fn new(target: OutputTarget) -> TarWriter {
        TarWriter { out: BufWriter::with_capacity(BUFFER_BYTES, target), contents: 0 }
    }

    /// Writes a whole member.
    pub(super) fn member(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        self.header(name, contents.len() as u64)?;
        self.contents(contents)?;
        self.pad(contents.len() as u64)
    }

    pub(super) fn directory(&mut self, name: &str) -> Result<()> {
        self.write(&header(name, b'5', 0o755, 0))
    }

    /// Writes the header of a member. Its contents must follow, then [`TarWriter::pad`].
    pub(super) fn header(&mut self, name: &str, bytes: u64) -> Result<()> {
        self.contents = 0;
        self.write(&header(name, b'0', 0o644, bytes))
    }

    pub(super) fn contents(&mut self, bytes: &[u8]) -> Result<()> {
        self.contents += bytes.len() as u64;
        self.write(bytes)
    }

    /// Ends a member and checks its size against the header.
    pub(super) fn pad(&mut self, bytes: u64) -> Result<()> {
        ensure!(self.contents == bytes, "a member of {bytes} bytes got {}", self.contents);
        let padding = bytes.next_multiple_of(BLOCK_BYTES) - bytes;
        self.write(&[0; BLOCK_BYTES as usize][..padding as usize])
    }

    /// Writes the end mark and returns the target.
    pub(super) fn finish(mut self) -> Result<OutputTarget> {
        self.write(&[0; 2 * BLOCK_BYTES as usize])?;
        let flushed = self.out.flush();
        let (target, _) = self.out.into_parts();
        flushed.map_err(|error| target.error(error))?;
        Ok(target)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|error| self.out.get_ref().error(error))
    }
}

/// Builds a ustar header.
fn header(name: &str, flag: u8, mode: u32, bytes: u64) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, &size(bytes));
    put(136, b"00000000000\0");
    // The checksum field counts as spaces.
    put(148, b"        ");
    put(156, &[flag]);
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// Formats the size of a member: octal, or base-256 if it is too large, which all readers support.
fn size(bytes: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if bytes < LARGE_BYTES {
        field.copy_from_slice(format!("{bytes:011o}\0").as_bytes());
    } else {
        field[0] = 0x80;
        field[4..].copy_from_slice(&bytes.to_be_bytes());
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::tar::{EntryKind, TarReader};

    #[test]
    fn headers_are_understood_whatever_the_size() {
        for bytes in [0, 1, LARGE_BYTES - 1, LARGE_BYTES, 64 << 30] {
            let header = header("blobs/sha256/x", b'0', 0o644, bytes);
            let entry = TarReader::new(&header[..]).next().unwrap().unwrap();
            assert_eq!((entry.size, entry.mode, entry.kind), (bytes, 0o644, EntryKind::File));
            assert_eq!(entry.path, b"blobs/sha256/x");
        }
    }
}
