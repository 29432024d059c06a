//! Compression of layers. The same tar gives the same bytes: gzip headers have no name and no time.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use flate2::write::GzEncoder;
use libmsb::digest::Digest;
use libmsb::state::images::Store;
use libmsb::state::{layout, write};
use sha2::{Digest as _, Sha256};

use crate::document::{Descriptor, LAYER_TYPE};
use crate::error::StoreWriteError;
use crate::stream::BlobCompression;

const BUFFER_BYTES: usize = 1 << 20;
/// Default levels of the gzip and zstd programs.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

/// A layer being compressed into an unlinked file.
pub(super) struct LayerCompressor {
    encoder: BlobEncoder,
}

enum BlobEncoder {
    Uncompressed(HashingWriter),
    Gzip(Box<GzEncoder<HashingWriter>>),
    Zstd(zstd::stream::write::Encoder<'static, HashingWriter>),
}

impl LayerCompressor {
    pub(super) fn new(store: &Store, compression: BlobCompression) -> Result<LayerCompressor> {
        let out = HashingWriter {
            inner: BufWriter::with_capacity(BUFFER_BYTES, unlinked_file(store)?),
            hash: Sha256::new(),
            bytes: 0,
        };
        let encoder = match compression {
            BlobCompression::Uncompressed => BlobEncoder::Uncompressed(out),
            BlobCompression::Gzip => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                BlobEncoder::Gzip(Box::new(GzEncoder::new(out, level)))
            }
            BlobCompression::Zstd => {
                BlobEncoder::Zstd(zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?)
            }
        };
        Ok(LayerCompressor { encoder })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let encoder: &mut dyn Write = match &mut self.encoder {
            BlobEncoder::Uncompressed(out) => out,
            BlobEncoder::Gzip(gzip) => gzip,
            BlobEncoder::Zstd(zstd) => zstd,
        };
        Ok(encoder.write_all(bytes).map_err(StoreWriteError)?)
    }

    /// Returns the file, at its start, and its descriptor.
    pub(super) fn finish(self) -> Result<(File, Descriptor)> {
        let (out, suffix) = match self.encoder {
            BlobEncoder::Uncompressed(out) => (out, ""),
            BlobEncoder::Gzip(gzip) => (gzip.finish().map_err(StoreWriteError)?, "+gzip"),
            BlobEncoder::Zstd(zstd) => (zstd.finish().map_err(StoreWriteError)?, "+zstd"),
        };
        let digest = Digest::of_bytes(out.hash.finalize().into());
        let blob = Descriptor::new(&format!("{LAYER_TYPE}{suffix}"), digest, out.bytes);
        let mut file =
            out.inner.into_inner().map_err(|error| StoreWriteError(error.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(StoreWriteError)?;
        Ok((file, blob))
    }
}

/// Creates an unlinked file on the file system of the store, because `/tmp` may be in memory.
fn unlinked_file(store: &Store) -> Result<File> {
    let name = format!("{}{}", layout::NEW_PREFIX, write::random_hex()?);
    let path = store.layers().join(name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(StoreWriteError)?;
    std::fs::remove_file(&path).map_err(StoreWriteError)?;
    Ok(file)
}

/// Passes all of `input` to `write` in large pieces.
pub(super) fn copy(
    input: &mut impl Read,
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = crate::stream::fill(input, &mut buffer).context("cannot read a layer")?;
        if count == 0 {
            return Ok(());
        }
        write(&buffer[..count])?;
    }
}

/// A writer that hashes and counts its bytes.
struct HashingWriter {
    inner: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl Write for HashingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
