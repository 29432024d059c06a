//! The index of a layer: every byte of its tar that is not the contents of a file, in order, and
//! the position of each file's contents.
//!
//! Format, version 1, little-endian:
//!
//! | bytes | |
//! |---|---|
//! | 8 | `msblayer` |
//! | 4, 4 | version; zero |
//! | 64 | diff_id: SHA-256 of the tar, in hexadecimal digits |
//! | 8, 8 | bytes of the tar; bytes of the data file |
//! | 32 | SHA-256 of the body as stored, then of the 96 bytes above |
//! | rest | body, one zstd stream (headers of a tar shrink to a twentieth) |
//!
//! The body is a list of records. Each starts with a number (LEB128): twice a length, plus one for
//! contents.
//! - `2n`: n bytes of the tar follow. `0` ends the list.
//! - `2n + 1`: n bytes of contents belong here. The first block in the data file follows, then 0;
//!   or for a sparse file one more than the number of its pieces, and the offset and length of
//!   each.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use libmsb::digest::Digest;
use sha2::{Digest as _, Sha256};

use super::sparse::SparsePiece;
use super::tar::RawSource;
use crate::error::StoreWriteError;
use crate::limits::SPARSE_PIECES_MAX;

const MAGIC: &[u8; 8] = b"msblayer";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 128;
const SIGNED_BYTES: usize = 96;
/// The fastest level: headers compress well at any level, and loading must not wait for it.
const ZSTD_LEVEL: i32 = 1;
/// Length at which tar bytes are written as a record.
const RUN_BYTES: usize = 64 << 10;

/// Header of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayerSummary {
    pub(crate) diff_id: Digest,
    pub(crate) tar_bytes: u64,
    pub(crate) data_bytes: u64,
}

/// A writer of an index.
pub(crate) struct IndexWriter {
    body: zstd::stream::write::Encoder<'static, HashingStream<BufWriter<File>>>,
    run: Vec<u8>,
}

/// A reader of an index. Its tar bytes are read as a [`RawSource`].
pub(crate) struct IndexReader {
    body: BufReader<zstd::stream::read::Decoder<'static, BufReader<HashingStream<File>>>>,
    summary: LayerSummary,
    signed: [u8; HEADER_BYTES],
    /// Bytes left of the current record.
    run: u64,
    ended: bool,
}

/// A record of an index.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum IndexRecord {
    /// Number of tar bytes that can be read from the [`RawSource`].
    Raw(u64),
    /// Contents of a file in the data file.
    Content(FileContent),
}

/// Position of a file's contents.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FileContent {
    pub(crate) stored: u64,
    pub(crate) block: u64,
    pub(crate) pieces: Option<Vec<SparsePiece>>,
}

impl IndexWriter {
    pub(crate) fn new(mut file: File) -> Result<IndexWriter> {
        file.write_all(&[0; HEADER_BYTES]).map_err(StoreWriteError)?;
        let hashing =
            HashingStream { inner: BufWriter::with_capacity(256 << 10, file), hash: Sha256::new() };
        let body =
            zstd::stream::write::Encoder::new(hashing, ZSTD_LEVEL).map_err(StoreWriteError)?;
        Ok(IndexWriter { body, run: Vec::with_capacity(2 * RUN_BYTES) })
    }

    /// Appends bytes of the tar.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.run.extend_from_slice(bytes);
        if self.run.len() >= RUN_BYTES { self.flush_run() } else { Ok(()) }
    }

    /// Appends a record of contents.
    pub(crate) fn content(&mut self, content: &FileContent) -> Result<()> {
        self.flush_run()?;
        let mut record = Vec::new();
        put_number(&mut record, content.stored << 1 | 1);
        put_number(&mut record, content.block);
        put_number(
            &mut record,
            content.pieces.as_ref().map_or(0, |pieces| pieces.len() as u64 + 1),
        );
        for piece in content.pieces.iter().flatten() {
            put_number(&mut record, piece.offset);
            put_number(&mut record, piece.length);
        }
        self.write(&record)
    }

    /// Writes bytes that may not be a record.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn put_body(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes)
    }

    /// Writes the end and the header. Returns the file.
    pub(crate) fn finish(mut self, summary: LayerSummary) -> Result<File> {
        self.flush_run()?;
        self.write(&[0])?;
        let HashingStream { inner, mut hash } = self.body.finish().map_err(StoreWriteError)?;
        let mut file = inner.into_inner().map_err(|error| StoreWriteError(error.into_error()))?;
        let mut header = summary.header();
        hash.update(&header[..SIGNED_BYTES]);
        header[SIGNED_BYTES..].copy_from_slice(&hash.finalize());
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.write_all(&header))
            .map_err(StoreWriteError)?;
        Ok(file)
    }

    fn flush_run(&mut self) -> Result<()> {
        if self.run.is_empty() {
            return Ok(());
        }
        let mut start = Vec::new();
        put_number(&mut start, (self.run.len() as u64) << 1);
        self.write(&start)?;
        self.body.write_all(&self.run).map_err(StoreWriteError)?;
        self.run.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.body.write_all(bytes).map_err(StoreWriteError)?)
    }
}

impl LayerSummary {
    /// Reads the header of an index.
    pub(crate) fn read(file: &mut File) -> Result<(LayerSummary, [u8; HEADER_BYTES])> {
        let mut header = [0; HEADER_BYTES];
        file.read_exact(&mut header)?;
        ensure!(&header[..8] == MAGIC, "it is not a layer index");
        let version = u32::from_le_bytes(array(&header[8..]));
        ensure!(
            version == VERSION,
            "unsupported version {version}; this program supports {VERSION}"
        );
        let summary = LayerSummary {
            diff_id: format!("sha256:{}", String::from_utf8_lossy(&header[16..80])).parse()?,
            tar_bytes: u64::from_le_bytes(array(&header[80..])),
            data_bytes: u64::from_le_bytes(array(&header[88..])),
        };
        Ok((summary, header))
    }

    fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..80].copy_from_slice(self.diff_id.hex().as_bytes());
        header[80..88].copy_from_slice(&self.tar_bytes.to_le_bytes());
        header[88..96].copy_from_slice(&self.data_bytes.to_le_bytes());
        header
    }
}

impl IndexReader {
    /// Opens the index of a layer.
    pub(crate) fn open(path: &Path, diff_id: &Digest) -> Result<IndexReader> {
        IndexReader::start(path, diff_id)
            .with_context(|| format!("cannot read the index '{}'", path.display()))
    }

    fn start(path: &Path, diff_id: &Digest) -> Result<IndexReader> {
        let mut file = File::open(path)?;
        let (summary, signed) = LayerSummary::read(&mut file)?;
        ensure!(summary.diff_id == *diff_id, "it belongs to layer {}", summary.diff_id);
        let hashing =
            BufReader::with_capacity(256 << 10, HashingStream { inner: file, hash: Sha256::new() });
        let body =
            BufReader::with_capacity(128 << 10, zstd::stream::read::Decoder::with_buffer(hashing)?);
        Ok(IndexReader { body, summary, signed, run: 0, ended: false })
    }

    pub(crate) fn summary(&self) -> LayerSummary {
        self.summary
    }

    /// Returns the next record, or `None` at the end. The bytes of the record before must have been
    /// read.
    pub(crate) fn part(&mut self) -> Result<Option<IndexRecord>> {
        ensure!(self.run == 0, "the index was not read in order");
        let tag = self.number()?;
        if tag & 1 == 1 {
            return Ok(Some(IndexRecord::Content(self.content_of(tag >> 1)?)));
        }
        (self.run, self.ended) = (tag >> 1, tag == 0);
        Ok((!self.ended).then_some(IndexRecord::Raw(self.run)))
    }

    /// Reads a record of contents, which must be next.
    pub(crate) fn content(&mut self) -> Result<FileContent> {
        ensure!(self.run == 0 && !self.ended, "the index is damaged: misplaced contents");
        let tag = self.number()?;
        ensure!(tag & 1 == 1, "the index is damaged: contents are missing");
        self.content_of(tag >> 1)
    }

    fn content_of(&mut self, stored: u64) -> Result<FileContent> {
        let block = self.number()?;
        let count = self.number()?;
        ensure!(count <= SPARSE_PIECES_MAX as u64 + 1, "the index is damaged: too many pieces");
        let mut pieces = Vec::new();
        for _ in 1..count {
            pieces.push(SparsePiece { offset: self.number()?, length: self.number()? });
        }
        Ok(FileContent { stored, block, pieces: (count > 0).then_some(pieces) })
    }

    /// Reads the rest and verifies the checksum. Results read before are valid only after this.
    pub(crate) fn finish(mut self) -> Result<()> {
        std::io::copy(&mut self.body, &mut std::io::sink())?;
        let mut rest = self.body.into_inner().finish();
        std::io::copy(&mut rest, &mut std::io::sink())?;
        let mut hash = rest.into_inner().hash;
        hash.update(&self.signed[..SIGNED_BYTES]);
        ensure!(
            hash.finalize()[..] == self.signed[SIGNED_BYTES..],
            "the index of layer {} is damaged",
            self.summary.diff_id
        );
        Ok(())
    }

    fn number(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let mut byte = [0];
            self.body.read_exact(&mut byte).context("the index is damaged")?;
            number |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(number);
            }
        }
        bail!("the index is damaged: a number is too long")
    }
}

impl RawSource for IndexReader {
    fn read_raw(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() && !self.ended {
            if self.run == 0 {
                let tag = self.number()?;
                ensure!(tag & 1 == 0, "the index is damaged: misplaced contents");
                (self.run, self.ended) = (tag >> 1, tag == 0);
                continue;
            }
            let count = self.run.min((buffer.len() - filled) as u64) as usize;
            self.body
                .read_exact(&mut buffer[filled..filled + count])
                .context("the index is damaged")?;
            self.run -= count as u64;
            filled += count;
        }
        Ok(filled)
    }
}

/// A reader or writer that hashes its bytes.
struct HashingStream<T> {
    inner: T,
    hash: Sha256,
}

impl<T: Write> Write for HashingStream<T> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for HashingStream<T> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

fn put_number(record: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        record.push(number as u8 | 0x80);
        number >>= 7;
    }
    record.push(number as u8);
}

/// Returns the first N bytes of a slice that is long enough.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[..N]);
    array
}

/// Rebuilds the tar of a layer from its two files.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn rebuild(index: &Path, data: &Path, diff_id: &Digest) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut reader = IndexReader::open(index, diff_id)?;
    let data = File::open(data)?;
    let mut tar = Vec::new();
    loop {
        let tag = reader.number()?;
        if tag == 0 {
            reader.finish()?;
            return Ok(tar);
        }
        let start = tar.len();
        if tag & 1 == 0 {
            tar.resize(start + (tag >> 1) as usize, 0);
            reader.body.read_exact(&mut tar[start..])?;
            continue;
        }
        let content = reader.content_of(tag >> 1)?;
        let whole = vec![SparsePiece { offset: 0, length: content.stored }];
        for piece in content.pieces.unwrap_or(whole) {
            let at = tar.len();
            tar.resize(at + piece.length as usize, 0);
            data.read_exact_at(&mut tar[at..], content.block * super::BLOCK_BYTES + piece.offset)?;
        }
    }
}
