//! From the two files of a layer back to its tar, byte for byte.
//!
//! One thread puts the tar together and hashes it, the caller's uses it. The bytes must pass through memory for their
//! digest, so nothing is gained by calls that copy between files: what was damaged in the store would be saved
//! unseen. What the caller has got counts only when all went well.

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
use super::index::{Content, IndexReader, Part, Summary};
use super::sparse::Piece;
use super::tar::Raw;

/// Large, so that a write to a file or a pipe is worth its call.
const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS_IN_FLIGHT: usize = 4;
const GAP_BUFFER_BYTES: usize = 64 << 10;

/// What lies between the contents in the data file: a guest reads it as the rest of a file's last block, and as the
/// holes of sparse files. The tar has none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gaps {
    /// Not looked at.
    Ignore,
    /// Must be zeros.
    Check,
}

/// Gives the tar of a layer to `sink`, piece by piece, and checks its digest at the end. An error names the file that is
/// damaged.
pub(crate) fn rebuild(
    store: &Store,
    diff_id: &Digest,
    gaps: Gaps,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<Summary> {
    let (full, chunks) = sync_channel::<Chunk>(CHUNKS_IN_FLIGHT);
    let (recycle, recycled) = channel();
    std::thread::scope(|scope| {
        let out = Out::new(full, recycled);
        let builder = scope.spawn(move || {
            Builder::open(store, diff_id, gaps, out)
                .and_then(Builder::run)
                .map_err(|error| blame(store, diff_id, error))
        });
        let used: Result<()> = chunks.iter().try_for_each(|chunk| {
            sink(&chunk.bytes[..chunk.filled])?;
            // The builder may have finished: then nobody needs the buffer.
            drop(recycle.send(chunk));
            Ok(())
        });
        // A builder that waits for room must see that nobody listens any more.
        drop(chunks);
        let built = builder
            .join()
            .map_err(|_| anyhow!("the thread that rebuilds layers failed"))?;
        used?;
        built
    })
}

/// A damaged index can make the data look damaged: it has a checksum of its own, which decides.
fn blame(store: &Store, diff_id: &Digest, error: Error) -> Error {
    let path = store.layer_index_path(diff_id);
    match IndexReader::open(&path, diff_id).and_then(IndexReader::finish) {
        Ok(()) => error,
        Err(cause) => cause.context(format!("the index '{}' is damaged", path.display())),
    }
}

/// Bytes of the tar on their way.
struct Chunk {
    bytes: Vec<u8>,
    filled: usize,
}

/// Gathers the tar into chunks.
struct Out {
    full: SyncSender<Chunk>,
    recycled: Receiver<Chunk>,
    chunk: Chunk,
    hash: Sha256,
    /// Bytes given so far.
    bytes: u64,
    bytes_max: u64,
}

impl Out {
    fn new(full: SyncSender<Chunk>, recycled: Receiver<Chunk>) -> Out {
        Out {
            full,
            recycled,
            chunk: Chunk::empty(),
            hash: Sha256::new(),
            bytes: 0,
            bytes_max: 0,
        }
    }

    /// Room for some of the bytes that come now: at least one, at most `wanted`.
    fn room(&mut self, wanted: u64) -> Result<&mut [u8]> {
        ensure!(
            wanted <= self.bytes_max - self.bytes,
            "its tar is longer than the index says"
        );
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
        let next = self.recycled.try_recv().unwrap_or_else(|_| Chunk::empty());
        let chunk = std::mem::replace(&mut self.chunk, next);
        self.chunk.filled = 0;
        self.hash.update(&chunk.bytes[..chunk.filled]);
        self.full
            .send(chunk)
            .map_err(|_| anyhow!("nobody wants the tar any more"))
    }
}

impl Chunk {
    fn empty() -> Chunk {
        Chunk {
            bytes: vec![0; CHUNK_BYTES],
            filled: 0,
        }
    }
}

/// Puts a tar together.
struct Builder {
    index: IndexReader,
    index_path: PathBuf,
    data: DataFile,
    out: Out,
    gaps: Gaps,
}

impl Builder {
    fn open(store: &Store, diff_id: &Digest, gaps: Gaps, mut out: Out) -> Result<Builder> {
        let index_path = store.layer_index_path(diff_id);
        let index = IndexReader::open(&index_path, diff_id)?;
        let data = DataFile::open(
            store.layer_data_path(diff_id),
            index.summary().data_bytes,
            gaps,
        )?;
        out.bytes_max = index.summary().tar_bytes;
        Ok(Builder {
            index,
            index_path,
            data,
            out,
            gaps,
        })
    }

    fn run(mut self) -> Result<Summary> {
        let summary = self.index.summary();
        let label = format!("the index '{}' is damaged", self.index_path.display());
        while let Some(part) = self.index.part().with_context(|| label.clone())? {
            match part {
                Part::Raw(length) => self.raw(length).with_context(|| label.clone())?,
                Part::Content(content) => self.content(&content)?,
            }
        }
        if self.gaps == Gaps::Check {
            self.data.gap(summary.data_bytes)?;
        }
        self.out.flush()?;
        self.index.finish().with_context(|| label.clone())?;
        ensure!(
            self.out.bytes == summary.tar_bytes,
            "{label}: it has {} bytes of {}",
            self.out.bytes,
            summary.tar_bytes
        );
        // The index has a checksum of its own, and that was right.
        let found = Digest::of_bytes(self.out.hash.finalize().into());
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
            let room = self.out.room(left)?;
            let wanted = room.len();
            let count = self.index.read_raw(room)?;
            ensure!(count == wanted, "it ends too early");
            self.out.advance(count);
            left -= count as u64;
        }
        Ok(())
    }

    fn content(&mut self, content: &Content) -> Result<()> {
        let start = content
            .block
            .checked_mul(BLOCK_BYTES)
            .with_context(|| self.data.damaged("a file lies beyond its end"))?;
        let whole = [Piece {
            offset: 0,
            length: content.stored,
        }];
        for piece in content.pieces.as_deref().unwrap_or(&whole) {
            let offset = start
                .checked_add(piece.offset)
                .with_context(|| self.data.damaged("a file lies beyond its end"))?;
            self.copy(offset, piece.length)?;
        }
        Ok(())
    }

    fn copy(&mut self, offset: u64, length: u64) -> Result<()> {
        if self.gaps == Gaps::Check {
            self.data.gap(offset)?;
        }
        let (mut at, mut left) = (offset, length);
        while left > 0 {
            let room = self.out.room(left)?;
            let count = room.len();
            self.data.read(room, at)?;
            self.out.advance(count);
            at += count as u64;
            left -= count as u64;
        }
        self.data.covered = at;
        Ok(())
    }
}

/// The contents of the layer's files.
struct DataFile {
    path: PathBuf,
    file: File,
    /// Up to here all was looked at.
    covered: u64,
    /// For what lies between files, when that is looked at.
    gap_buffer: Vec<u8>,
}

impl DataFile {
    fn open(path: PathBuf, bytes: u64, gaps: Gaps) -> Result<DataFile> {
        let cannot = || format!("cannot read '{}'", path.display());
        let file = File::open(&path).with_context(cannot)?;
        let found = file.metadata().with_context(cannot)?.len();
        let buffer_bytes = if gaps == Gaps::Check {
            GAP_BUFFER_BYTES
        } else {
            0
        };
        let data = DataFile {
            path,
            file,
            covered: 0,
            gap_buffer: vec![0; buffer_bytes],
        };
        ensure!(
            found == bytes,
            data.damaged(&format!("it has {found} bytes, and its index says {bytes}"))
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

    /// Checks that there are only zeros between what was covered and `end`.
    fn gap(&mut self, end: u64) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.gap_buffer);
        let mut at = self.covered;
        while at < end {
            // Holes need not be read to know what is in them.
            if end - at > BLOCK_BYTES {
                at = self.next_data(at)?.min(end);
            }
            let count = (end - at).min(buffer.len() as u64) as usize;
            self.read(&mut buffer[..count], at)?;
            let dirty = buffer[..count].iter().position(|byte| *byte != 0);
            if let Some(position) = dirty {
                let place = at + position as u64;
                return Err(anyhow!(self.damaged(&format!(
                    "byte {place} belongs to no file and is not zero"
                ))));
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
            // A file system that knows no holes.
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
    use crate::store::NewLayer;
    use crate::testing::{TarBuilder, store};

    fn layer(store: &Store) -> Summary {
        let tar = TarBuilder::new()
            .file("one", b"1")
            .old_gnu_sparse("sparse", &[(4096, 3), (1 << 20, 2)], 2 << 20, b"aabbb")
            .file("large", &vec![7; 3 << 20])
            .finish();
        let converted = convert(&tar[..], NewLayer::create(store).unwrap()).unwrap();
        converted
            .files
            .commit(store, &converted.summary.diff_id)
            .unwrap();
        converted.summary
    }

    fn outcome(store: &Store, id: &Digest, gaps: Gaps) -> Result<Summary> {
        rebuild(store, id, gaps, |_| Ok(()))
    }

    #[test]
    fn every_byte_of_both_files_counts() {
        let (_folder, store) = store();
        let summary = layer(&store);
        let id = &summary.diff_id;
        assert_eq!(outcome(&store, id, Gaps::Check).unwrap(), summary);
        let data = std::fs::read(store.layer_data_path(id)).unwrap();
        // In a file, in the rest of its block, in a hole, in the last byte.
        for at in [0, 1, 4096 + 100_000, data.len() - 1] {
            let mut bad = data.clone();
            bad[at] ^= 1;
            std::fs::write(store.layer_data_path(id), bad).unwrap();
            let error = outcome(&store, id, Gaps::Check).unwrap_err();
            let text = libmsb::cli::error::message(&error);
            assert!(text.contains(".data' is damaged"), "{at}: {text}");
        }
        std::fs::write(store.layer_data_path(id), &data[..data.len() - 1]).unwrap();
        assert!(outcome(&store, id, Gaps::Ignore).is_err());
        std::fs::write(store.layer_data_path(id), data).unwrap();
        let index = std::fs::read(store.layer_index_path(id)).unwrap();
        for at in 0..index.len() {
            let mut bad = index.clone();
            bad[at] ^= 1;
            std::fs::write(store.layer_index_path(id), bad).unwrap();
            let error = outcome(&store, id, Gaps::Ignore).unwrap_err();
            let text = libmsb::cli::error::message(&error);
            assert!(text.contains(".index' is damaged"), "{at}: {text}");
        }
    }

    #[test]
    fn a_sink_that_fails_ends_it() {
        let (_folder, store) = store();
        let id = layer(&store).diff_id;
        let error = rebuild(&store, &id, Gaps::Ignore, |_| Err(anyhow!("full"))).unwrap_err();
        assert_eq!(error.to_string(), "full");
    }
}
