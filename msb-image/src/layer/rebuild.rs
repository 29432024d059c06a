//! Rebuilding of a layer's tar from its two files, byte for byte.
//!
//! One thread builds the tar and hashes it; the caller's thread uses it. The bytes must pass
//! through memory for their digest, so calls that copy between files would gain nothing: they would
//! copy a damaged store unnoticed. The bytes passed to the caller are valid only if the whole call
//! succeeds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

use anyhow::{Context, Error, Result, anyhow, ensure};
use libmsb::digest::Digest;
use libmsb::state::images::Store;
use rustix::fs::SeekFrom;
use sha2::{Digest as _, Sha256};

use super::BLOCK_BYTES;
use super::index::{FileContent, IndexReader, IndexRecord, LayerSummary};
use super::sparse::SparsePiece;
use super::tar::RawSource;

/// Large, so that each write to a file or a pipe moves many bytes.
const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS_IN_FLIGHT: usize = 4;
const GAP_BUFFER_BYTES: usize = 64 << 10;

/// Handling of the gaps between contents in the data file. A guest reads a gap as the rest of a
/// file's last block or as a hole of a sparse file; the tar does not contain it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GapCheck {
    /// Gaps are not read.
    Ignore,
    /// Gaps must be zeros.
    Check,
}

/// Passes the tar of a layer to `sink` in pieces, and checks its digest at the end. An error names
/// the damaged file.
pub(crate) fn rebuild(
    store: &Store,
    diff_id: &Digest,
    gaps: GapCheck,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<LayerSummary> {
    let (full, chunks) = sync_channel::<TarChunk>(CHUNKS_IN_FLIGHT);
    let (recycle, recycled) = channel();
    std::thread::scope(|scope| {
        let writer = ChunkWriter::new(full, recycled);
        let builder = scope.spawn(move || {
            TarRebuilder::open(store, diff_id, gaps, writer)
                .and_then(TarRebuilder::run)
                .map_err(|error| attribute_damage(store, diff_id, error))
        });
        let used: Result<()> = chunks.iter().try_for_each(|chunk| {
            sink(&chunk.bytes[..chunk.filled])?;
            // A builder that has finished takes back no buffers.
            drop(recycle.send(chunk));
            Ok(())
        });
        // A builder that waits for a free buffer must see that its receiver is gone.
        drop(chunks);
        let built =
            builder.join().map_err(|_| anyhow!("the thread that rebuilds layers failed"))?;
        used?;
        built
    })
}

/// Attributes an error to the index if its own checksum fails: a damaged index can make the data
/// look damaged.
fn attribute_damage(store: &Store, diff_id: &Digest, error: Error) -> Error {
    let path = store.layer_index_path(diff_id);
    match IndexReader::open(&path, diff_id).and_then(IndexReader::finish) {
        Ok(()) => error,
        Err(cause) => cause.context(format!("the index '{}' is damaged", path.display())),
    }
}

/// A buffer of tar bytes.
struct TarChunk {
    bytes: Vec<u8>,
    filled: usize,
}

/// A writer that collects the tar into chunks and sends them.
struct ChunkWriter {
    full: SyncSender<TarChunk>,
    recycled: Receiver<TarChunk>,
    chunk: TarChunk,
    hash: Sha256,
    /// Bytes written so far.
    bytes: u64,
    bytes_max: u64,
}

impl ChunkWriter {
    fn new(full: SyncSender<TarChunk>, recycled: Receiver<TarChunk>) -> ChunkWriter {
        ChunkWriter {
            full,
            recycled,
            chunk: TarChunk::empty(),
            hash: Sha256::new(),
            bytes: 0,
            bytes_max: 0,
        }
    }

    /// Returns space for the next bytes: at least one, at most `wanted`.
    fn room(&mut self, wanted: u64) -> Result<&mut [u8]> {
        ensure!(wanted <= self.bytes_max - self.bytes, "its tar is longer than the index says");
        if self.chunk.filled == CHUNK_BYTES {
            self.flush()?;
        }
        let room = &mut self.chunk.bytes[self.chunk.filled..];
        let count = usize::try_from(wanted).map_or(room.len(), |wanted| wanted.min(room.len()));
        Ok(&mut room[..count])
    }

    fn advance(&mut self, count: usize) {
        self.chunk.filled += count;
        self.bytes += count as u64;
    }

    fn flush(&mut self) -> Result<()> {
        let next = self.recycled.try_recv().unwrap_or_else(|_| TarChunk::empty());
        let chunk = std::mem::replace(&mut self.chunk, next);
        self.chunk.filled = 0;
        self.hash.update(&chunk.bytes[..chunk.filled]);
        self.full.send(chunk).map_err(|_| anyhow!("the receiver stopped reading"))
    }
}

impl TarChunk {
    fn empty() -> TarChunk {
        TarChunk { bytes: vec![0; CHUNK_BYTES], filled: 0 }
    }
}

/// The rebuilding of one tar.
struct TarRebuilder {
    index: IndexReader,
    index_path: PathBuf,
    data: DataFile,
    writer: ChunkWriter,
    gaps: GapCheck,
}

impl TarRebuilder {
    fn open(
        store: &Store,
        diff_id: &Digest,
        gaps: GapCheck,
        mut writer: ChunkWriter,
    ) -> Result<TarRebuilder> {
        let index_path = store.layer_index_path(diff_id);
        let index = IndexReader::open(&index_path, diff_id)?;
        let data =
            DataFile::open(store.layer_data_path(diff_id), index.summary().data_bytes, gaps)?;
        writer.bytes_max = index.summary().tar_bytes;
        Ok(TarRebuilder { index, index_path, data, writer, gaps })
    }

    fn run(mut self) -> Result<LayerSummary> {
        let summary = self.index.summary();
        let label = format!("the index '{}' is damaged", self.index_path.display());
        while let Some(part) = self.index.part().with_context(|| label.clone())? {
            match part {
                IndexRecord::Raw(length) => self.raw(length).with_context(|| label.clone())?,
                IndexRecord::Content(content) => self.content(&content)?,
            }
        }
        if self.gaps == GapCheck::Check {
            self.data.gap(summary.data_bytes)?;
        }
        self.writer.flush()?;
        self.index.finish().with_context(|| label.clone())?;
        ensure!(
            self.writer.bytes == summary.tar_bytes,
            "{label}: it has {} bytes of {}",
            self.writer.bytes,
            summary.tar_bytes
        );
        // The checksum of the index was right, so the data file is damaged.
        let found = Digest::of_bytes(self.writer.hash.finalize().into());
        ensure!(
            found == summary.diff_id,
            "'{}' is damaged: the layer's tar has the digest {found}",
            self.data.path.display()
        );
        Ok(summary)
    }

    fn raw(&mut self, length: u64) -> Result<()> {
        let mut left = length;
        while left > 0 {
            let room = self.writer.room(left)?;
            let wanted = room.len();
            let count = self.index.read_raw(room)?;
            ensure!(count == wanted, "it ends early");
            self.writer.advance(count);
            left -= count as u64;
        }
        Ok(())
    }

    fn content(&mut self, content: &FileContent) -> Result<()> {
        let start = content
            .block
            .checked_mul(BLOCK_BYTES)
            .with_context(|| self.data.damaged("a file lies beyond its end"))?;
        let whole = [SparsePiece { offset: 0, length: content.stored }];
        for piece in content.pieces.as_deref().unwrap_or(&whole) {
            let offset = start
                .checked_add(piece.offset)
                .with_context(|| self.data.damaged("a file lies beyond its end"))?;
            self.copy(offset, piece.length)?;
        }
        Ok(())
    }

    fn copy(&mut self, offset: u64, length: u64) -> Result<()> {
        if self.gaps == GapCheck::Check {
            self.data.gap(offset)?;
        }
        let (mut at, mut left) = (offset, length);
        while left > 0 {
            let room = self.writer.room(left)?;
            let count = room.len();
            self.data.read(room, at)?;
            self.writer.advance(count);
            at += count as u64;
            left -= count as u64;
        }
        self.data.covered = at;
        Ok(())
    }
}

/// An open data file.
struct DataFile {
    path: PathBuf,
    file: File,
    /// End of the bytes that were checked.
    covered: u64,
    /// Buffer for gaps, if they are checked.
    gap_buffer: Vec<u8>,
}

impl DataFile {
    fn open(path: PathBuf, bytes: u64, gaps: GapCheck) -> Result<DataFile> {
        let cannot = || format!("cannot read '{}'", path.display());
        let file = File::open(&path).with_context(cannot)?;
        let found = file.metadata().with_context(cannot)?.len();
        let buffer_bytes = if gaps == GapCheck::Check { GAP_BUFFER_BYTES } else { 0 };
        let data = DataFile { path, file, covered: 0, gap_buffer: vec![0; buffer_bytes] };
        ensure!(
            found == bytes,
            data.damaged(&format!("it has {found} bytes, but its index says {bytes}"))
        );
        Ok(data)
    }

    fn damaged(&self, reason: &str) -> String {
        format!("'{}' is damaged: {reason}", self.path.display())
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        match self.file.read_exact_at(buffer, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(anyhow!(self.damaged("a file lies beyond its end")))
            }
            read => read.with_context(|| format!("cannot read '{}'", self.path.display())),
        }
    }

    /// Checks that the bytes from `covered` to `end` are zeros.
    fn gap(&mut self, end: u64) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.gap_buffer);
        let mut at = self.covered;
        while at < end {
            // Holes are zeros and need not be read.
            if end - at > BLOCK_BYTES {
                at = self.next_data(at)?.min(end);
            }
            let count = (end - at).min(buffer.len() as u64) as usize;
            self.read(&mut buffer[..count], at)?;
            let dirty = buffer[..count].iter().position(|byte| *byte != 0);
            if let Some(position) = dirty {
                let place = at + position as u64;
                return Err(anyhow!(
                    self.damaged(&format!("byte {place} belongs to no file and is not zero"))
                ));
            }
            at += count as u64;
        }
        self.gap_buffer = buffer;
        Ok(())
    }

    fn next_data(&self, at: u64) -> Result<u64> {
        match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
            Ok(offset) => Ok(offset),
            Err(rustix::io::Errno::NXIO) => Ok(u64::MAX),
            // The file system does not support holes.
            Err(rustix::io::Errno::INVAL) => Ok(at),
            Err(error) => {
                Err(error).with_context(|| format!("cannot read '{}'", self.path.display()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::convert::convert;
    use crate::store::layers::NewLayer;
    use crate::testing::{TarBuilder, store};

    fn layer(store: &Store) -> LayerSummary {
        let tar = TarBuilder::new()
            .file("one", b"1")
            .old_gnu_sparse("sparse", &[(4096, 3), (1 << 20, 2)], 2 << 20, b"aabbb")
            .file("large", &vec![7; 3 << 20])
            .finish();
        let converted = convert(&tar[..], NewLayer::create(store).unwrap()).unwrap();
        converted.files.commit(store, &converted.summary.diff_id).unwrap();
        converted.summary
    }

    fn outcome(store: &Store, id: &Digest, gaps: GapCheck) -> Result<LayerSummary> {
        rebuild(store, id, gaps, |_| Ok(()))
    }

    #[test]
    fn every_byte_of_both_files_counts() {
        let (_directory, store) = store();
        let summary = layer(&store);
        let id = &summary.diff_id;
        assert_eq!(outcome(&store, id, GapCheck::Check).unwrap(), summary);
        let data = std::fs::read(store.layer_data_path(id)).unwrap();
        // In a file, in the rest of its block, in a hole, in the last byte.
        for at in [0, 1, 4096 + 100_000, data.len() - 1] {
            let mut bad = data.clone();
            bad[at] ^= 1;
            std::fs::write(store.layer_data_path(id), bad).unwrap();
            let error = outcome(&store, id, GapCheck::Check).unwrap_err();
            let text = libmsb::cli::error::message(&error);
            assert!(text.contains(".data' is damaged"), "{at}: {text}");
        }
        std::fs::write(store.layer_data_path(id), &data[..data.len() - 1]).unwrap();
        assert!(outcome(&store, id, GapCheck::Ignore).is_err());
        std::fs::write(store.layer_data_path(id), data).unwrap();
        let index = std::fs::read(store.layer_index_path(id)).unwrap();
        for at in 0..index.len() {
            let mut bad = index.clone();
            bad[at] ^= 1;
            std::fs::write(store.layer_index_path(id), bad).unwrap();
            let error = outcome(&store, id, GapCheck::Ignore).unwrap_err();
            let text = libmsb::cli::error::message(&error);
            assert!(text.contains(".index' is damaged"), "{at}: {text}");
        }
    }

    #[test]
    fn a_sink_that_fails_ends_it() {
        let (_directory, store) = store();
        let id = layer(&store).diff_id;
        let error = rebuild(&store, &id, GapCheck::Ignore, |_| Err(anyhow!("full"))).unwrap_err();
        assert_eq!(error.to_string(), "full");
    }
}
