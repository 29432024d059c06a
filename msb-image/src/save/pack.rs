//! Layers that are compressed anew. The same tar gives the same bytes: no names and no times are noted.

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
use crate::error::StoreWrite;
use crate::stream::Packing;

const BUFFER_BYTES: usize = 1 << 20;
/// What gzip and zstd choose when they are not told.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

/// A layer that is being compressed, into a file without a name.
pub(super) struct Packed {
    encoder: Encoder,
}

enum Encoder {
    Plain(Hashing),
    Gzip(Box<GzEncoder<Hashing>>),
    Zstd(zstd::stream::write::Encoder<'static, Hashing>),
}

impl Packed {
    pub(super) fn new(store: &Store, packing: Packing) -> Result<Packed> {
        let out = Hashing {
            inner: BufWriter::with_capacity(BUFFER_BYTES, nameless(store)?),
            hash: Sha256::new(),
            bytes: 0,
        };
        let encoder = match packing {
            Packing::Plain => Encoder::Plain(out),
            Packing::Gzip => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                Encoder::Gzip(Box::new(GzEncoder::new(out, level)))
            }
            Packing::Zstd => Encoder::Zstd(zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?),
        };
        Ok(Packed { encoder })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let encoder: &mut dyn Write = match &mut self.encoder {
            Encoder::Plain(out) => out,
            Encoder::Gzip(gzip) => gzip,
            Encoder::Zstd(zstd) => zstd,
        };
        Ok(encoder.write_all(bytes).map_err(StoreWrite)?)
    }

    /// The file, from its start, and what it is.
    pub(super) fn finish(self) -> Result<(File, Descriptor)> {
        let (out, suffix) = match self.encoder {
            Encoder::Plain(out) => (out, ""),
            Encoder::Gzip(gzip) => (gzip.finish().map_err(StoreWrite)?, "+gzip"),
            Encoder::Zstd(zstd) => (zstd.finish().map_err(StoreWrite)?, "+zstd"),
        };
        let digest = Digest::of_bytes(out.hash.finalize().into());
        let blob = Descriptor::new(&format!("{LAYER_TYPE}{suffix}"), digest, out.bytes);
        let mut file = out
            .inner
            .into_inner()
            .map_err(|error| StoreWrite(error.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(StoreWrite)?;
        Ok((file, blob))
    }
}

/// A file that goes when it is closed, on the disk of the store: `/tmp` may lie in memory.
fn nameless(store: &Store) -> Result<File> {
    let name = format!("{}{}", layout::NEW_PREFIX, write::random_hex()?);
    let path = store.layers().join(name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(StoreWrite)?;
    std::fs::remove_file(&path).map_err(StoreWrite)?;
    Ok(file)
}

/// Gives everything that `input` has to `write`, in large pieces.
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

/// Hashes and counts what goes into the file.
struct Hashing {
    inner: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashing {
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
