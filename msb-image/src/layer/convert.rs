//! Conversion of a layer, compressed or not, to its two files: one pass in bounded memory. No file
//! of the layer is ever created on the host.

use std::fs::File;
use std::io::{self, Read, Write};

use anyhow::{Context, Result, ensure};

use super::data::DataWriter;
use super::index::{FileContent, IndexWriter, LayerSummary};
use super::sparse::SparsePiece;
use super::tar::{RawSource, TarEntry, TarReader};
use crate::budget::Budget;
use crate::error::StoreWriteError;
use crate::limits::{LAYER_ENTRIES_MAX, TRAILER_BYTES_MAX};
use crate::store::layers::NewLayer;
use crate::stream::{self, ChunkReader, UnpackSummary};

/// A converted layer that has no name in the store yet.
#[derive(Debug)]
pub(crate) struct ConvertedLayer {
    pub(crate) summary: LayerSummary,
    pub(crate) unpacked: UnpackSummary,
    pub(crate) entries: u64,
    /// Set if the tar had its end mark. A tar without one may be truncated.
    pub(crate) end_mark: bool,
    pub(crate) files: NewLayer,
}

/// Converts a layer with a budget of its own.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn convert<R: Read + Send>(input: R, files: NewLayer) -> Result<ConvertedLayer> {
    let budget = Budget::default();
    convert_within(budget.reader(input), files, &budget)
}

/// Converts a layer into files that are removed unless they are committed. The reader of the input
/// counts the compressed bytes; this function counts the output.
pub(crate) fn convert_within<R: Read + Send>(
    input: R,
    mut files: NewLayer,
    budget: &Budget,
) -> Result<ConvertedLayer> {
    let (index, data) = files.files()?;
    let input = TeeReader { inner: input, copy: files.blob_file()? };
    let (recorded, unpacked) = stream::unpack(input, budget, |chunks| {
        let recorder = LayerRecorder {
            budget,
            chunks,
            index: IndexWriter::new(index)?,
            data: DataWriter::new(data),
            entries: 0,
        };
        recorder.run()
    })?;
    let (_, data_bytes) = recorded.data.finish()?;
    let summary = LayerSummary { diff_id: unpacked.digest, tar_bytes: unpacked.bytes, data_bytes };
    recorded.index.finish(summary)?;
    files.set_blob_digest(&unpacked.blob.digest, &summary.diff_id);
    Ok(ConvertedLayer {
        summary,
        unpacked,
        entries: recorded.entries,
        end_mark: recorded.end_mark,
        files,
    })
}

/// A reader that also writes its bytes to a file, if there is one.
struct TeeReader<R> {
    inner: R,
    copy: Option<File>,
}

impl<R: Read> Read for TeeReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buffer[..count])
                .map_err(|error| io::Error::other(StoreWriteError(error)))?;
        }
        Ok(count)
    }
}

/// Result of recording a tar.
struct RecorderOutput {
    index: IndexWriter,
    data: DataWriter,
    entries: u64,
    end_mark: bool,
}

/// A recorder of one tar: file contents go to the data file, all other bytes to the index.
struct LayerRecorder<'a> {
    budget: &'a Budget,
    chunks: &'a mut ChunkReader,
    index: IndexWriter,
    data: DataWriter,
    entries: u64,
}

impl LayerRecorder<'_> {
    fn run(self) -> Result<RecorderOutput> {
        let mut tar = TarReader::new(self);
        while let Some(entry) = tar.next()? {
            tar.source.entries += 1;
            ensure!(
                tar.source.entries <= LAYER_ENTRIES_MAX,
                "the layer has more than {LAYER_ENTRIES_MAX} entries"
            );
            if entry.size > 0 {
                tar.source.record_content(&entry).with_context(|| {
                    format!("entry '{}'", libmsb::cli::escape::escape(&entry.path))
                })?;
            }
        }
        let end_mark = tar.end_mark;
        tar.source.record_trailer()?;
        let LayerRecorder { index, data, entries, .. } = tar.source;
        Ok(RecorderOutput { index, data, entries, end_mark })
    }

    fn record_content(&mut self, entry: &TarEntry) -> Result<()> {
        let block = self.data.start_file()?;
        let whole = [SparsePiece { offset: 0, length: entry.stored }];
        let mut end = 0;
        for piece in entry.pieces.as_deref().unwrap_or(&whole) {
            self.data.hole(piece.offset - end)?;
            self.copy(piece.length)?;
            end = piece.offset + piece.length;
        }
        self.data.hole(entry.size - end)?;
        self.index.content(&FileContent {
            stored: entry.stored,
            block,
            pieces: entry.pieces.clone(),
        })
    }

    fn copy(&mut self, length: u64) -> Result<()> {
        let mut left = length;
        while left > 0 {
            let available = self.chunks.available()?;
            ensure!(
                !available.is_empty(),
                "the archive is truncated: it ends in the contents of a file"
            );
            let count = available.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let before = self.data.stored_bytes();
            self.data.write(&available[..count])?;
            self.budget.count_stored(self.data.stored_bytes() - before)?;
            self.chunks.consume(count);
            left -= count as u64;
        }
        Ok(())
    }

    /// Records the bytes after the end mark: mostly zeros that fill a tape record.
    fn record_trailer(&mut self) -> Result<()> {
        let mut bytes = 0;
        loop {
            let available = self.chunks.available()?;
            let count = available.len();
            if count == 0 {
                return Ok(());
            }
            bytes += count as u64;
            ensure!(
                bytes <= TRAILER_BYTES_MAX,
                "more than {TRAILER_BYTES_MAX} bytes follow the end of the archive"
            );
            self.index.raw(available)?;
            self.chunks.consume(count);
        }
    }
}

impl RawSource for LayerRecorder<'_> {
    fn read_raw(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = self.chunks.read_raw(buffer)?;
        self.index.raw(&buffer[..count])?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::index::IndexReader;
    use crate::layer::rebuild::{GapCheck, rebuild};
    use crate::testing::{TarBuilder, gzip, store, zstd};
    use libmsb::state::images::Store;

    fn sample() -> TarBuilder {
        TarBuilder::new()
            .directory("d/", 0o755)
            .file("d/empty", b"")
            .file("d/one", b"1")
            .pax(&[("path", b"d/\xff"), ("SCHILY.xattr.user.a", b"\0\n")])
            .file("x", &vec![7; 10_000])
            .old_gnu_sparse("d/sparse", &[(4096, 3), (1 << 20, 2)], 2 << 20, b"aabbb")
            .symlink("d/s", "one")
    }

    fn load(store: &Store, bytes: &[u8]) -> Result<ConvertedLayer> {
        let converted = convert(bytes, NewLayer::create(store)?)?;
        converted.files.commit(store, &converted.summary.diff_id)?;
        Ok(converted)
    }

    fn rebuilt(store: &Store, converted: &ConvertedLayer) -> Vec<u8> {
        let mut tar = Vec::new();
        let sink = |bytes: &[u8]| {
            tar.extend_from_slice(bytes);
            Ok(())
        };
        rebuild(store, &converted.summary.diff_id, GapCheck::Check, sink).unwrap();
        tar
    }

    #[test]
    fn the_tar_can_be_rebuilt_byte_for_byte() {
        let (_directory, store) = store();
        let tails: [&[u8]; 4] =
            [&[0; 1024], &[0; 10_240], b"", &[&[0; 1024][..], b"left over"].concat()];
        for tail in tails {
            let tar = sample().raw(tail).finish_without_end();
            let converted = load(&store, &tar).unwrap();
            assert_eq!(rebuilt(&store, &converted), tar);
            assert_eq!(converted.summary.tar_bytes, tar.len() as u64);
            assert_eq!(converted.end_mark, !tail.is_empty());
        }
    }

    #[test]
    fn all_packings_give_the_same_files() {
        let (_directory, store) = store();
        let tar = sample().finish();
        let (left, right) = tar.split_at(5_000);
        let packed = [
            tar.clone(),
            gzip(&tar),
            zstd(&tar),
            [gzip(left), gzip(right)].concat(),
            [zstd(left), zstd(right)].concat(),
        ];
        let mut seen = Vec::new();
        for blob in packed {
            let converted = load(&store, &blob).unwrap();
            let id = converted.summary.diff_id;
            assert_eq!(converted.unpacked.blob.digest, stream::digest_of(&blob));
            assert_eq!(converted.unpacked.blob.bytes, blob.len() as u64);
            assert_eq!(id, stream::digest_of(&tar));
            let files = [store.layer_index_path(&id), store.layer_data_path(&id)];
            seen.push(files.map(|path| std::fs::read(path).unwrap()));
        }
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn damage_and_truncation_leave_nothing_behind() {
        let (_directory, store) = store();
        let tar = sample().finish();
        let gzipped = gzip(&tar);
        let mut damaged = zstd(&tar);
        damaged.pop();
        for bad in [
            &tar[..9_000],
            &gzipped[..gzipped.len() - 4],
            &damaged,
            b"hello",
            b"BZh91AY&SY",
            &[&gzipped[..], b"rubbish"].concat(),
        ] {
            assert!(load(&store, bad).is_err());
        }
        assert_eq!(std::fs::read_dir(store.layers()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_index_is_noticed() {
        let (_directory, store) = store();
        let converted = load(&store, &sample().finish()).unwrap();
        let id = converted.summary.diff_id;
        let path = store.layer_index_path(&id);
        let good = std::fs::read(&path).unwrap();
        let finish = || IndexReader::open(&path, &id).and_then(IndexReader::finish);
        assert!(finish().is_ok());
        for at in [0, 9, 20, 83, 100, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(finish().is_err(), "{at}");
        }
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(finish().is_err());
    }
}
