//! Decompression and hashing of input streams.
//!
//! A pipeline of threads: one reads and hashes, one decompresses if necessary, and the caller's
//! thread hashes the result and consumes it. Decompression takes by far the longest, so its thread
//! does nothing else. A few reused buffers circulate between two threads, so memory is bounded.

use std::io::{self, BufRead, Cursor, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::ScopedJoinHandle;

use anyhow::{Context, Result, anyhow, bail};
use libmsb::digest::Digest;
use sha2::{Digest as _, Sha256};

use crate::budget::{Budget, check_tar_bytes};
use crate::layer::tar::{RawSource, looks_like_tar};
use crate::limits::ZSTD_WINDOW_LOG_MAX;

const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS_IN_FLIGHT: usize = 8;
/// Bytes that show a tar header.
pub(crate) const HEAD_BYTES: usize = 512;

/// Compression of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlobCompression {
    Uncompressed,
    Gzip,
    Zstd,
}

impl BlobCompression {
    /// Detects the compression of a tar from its first bytes; `None` if they are neither a tar nor
    /// compressed.
    pub(crate) fn of(head: &[u8]) -> Option<BlobCompression> {
        match head {
            [0x1f, 0x8b, 8, ..] => Some(BlobCompression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(BlobCompression::Zstd),
            // A skippable frame: zstd:chunked may start with one.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(BlobCompression::Zstd),
            _ if head.is_empty() || looks_like_tar(head) => Some(BlobCompression::Uncompressed),
            _ => None,
        }
    }
}

/// Describes why the bytes cannot be a tar.
pub(crate) fn describe_unknown(head: &[u8]) -> &'static str {
    match head {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "it is compressed with xz, which is not supported",
        [b'B', b'Z', b'h', ..] => "it is compressed with bzip2, which is not supported",
        [b'{', ..] => "it is JSON, not a tar",
        _ => "it is neither a tar nor compressed with gzip or zstd",
    }
}

/// Digest and size of a blob, compressed as it was received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlobFacts {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
}

/// Digests and sizes of a blob and of its tar.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnpackSummary {
    pub(crate) blob: BlobFacts,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
}

/// Reads and decompresses the whole input while `consume` uses the result. What `consume` leaves
/// unread is read too, so that the digests cover the whole input.
pub(crate) fn unpack<R: Read + Send, T>(
    mut input: R,
    budget: &Budget,
    consume: impl FnOnce(&mut ChunkReader) -> Result<T>,
) -> Result<(T, UnpackSummary)> {
    let head = read_head(&mut input)?;
    let Some(compression) = BlobCompression::of(&head) else {
        bail!("{}", describe_unknown(&head))
    };
    let input = Cursor::new(head).chain(input);
    std::thread::scope(|scope| {
        let (sender, packed) = channel_pair(None);
        let plain = (compression == BlobCompression::Uncompressed).then_some(budget);
        let reader = scope.spawn(move || sender.feed(input, plain));
        let (decoder, mut chunks) = if compression == BlobCompression::Uncompressed {
            // The thread that reads also computes the digest of an uncompressed tar.
            (None, packed)
        } else {
            let (sender, chunks) = channel_pair(Some(Sha256::new()));
            (Some(scope.spawn(move || sender.decode(packed, compression, budget))), chunks)
        };
        let consumed = consume(&mut chunks).and_then(|value| Ok((value, chunks.drain()?)));
        // A thread that waits for a free buffer must see that its receiver is gone.
        let hash = chunks.close();
        let decoded = decoder.map_or(Ok(()), join);
        let blob = join(reader);
        // The last stage received the errors of the stages before it.
        let (value, bytes) = consumed?;
        decoded?;
        let blob = blob?;
        let digest = hash.map_or(blob.digest, |hash| Digest::of_bytes(hash.finalize().into()));
        let unpacked = UnpackSummary { blob, digest, bytes };
        Ok((value, unpacked))
    })
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread that reads the data failed"))?
}

/// Creates a bounded channel of byte buffers between two threads.
fn channel_pair(hash: Option<Sha256>) -> (ChunkSender, ChunkReader) {
    let (sender, receiver) = sync_channel(CHUNKS_IN_FLIGHT);
    let (recycle, recycled) = channel();
    let chunks =
        ChunkReader { receiver, recycle, current: Vec::new(), at: 0, ended: false, hash, bytes: 0 };
    (ChunkSender { sender, recycled }, chunks)
}

/// Sending half of a channel of byte buffers.
struct ChunkSender {
    sender: SyncSender<Result<Vec<u8>>>,
    recycled: Receiver<Vec<u8>>,
}

/// Receiving half of a channel of byte buffers.
pub(crate) struct ChunkReader {
    receiver: Receiver<Result<Vec<u8>>>,
    recycle: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
    hash: Option<Sha256>,
    /// Bytes received so far.
    bytes: u64,
}

impl ChunkSender {
    /// Sends the input unchanged. With a budget the input is a tar.
    fn feed(self, input: impl Read, budget: Option<&Budget>) -> Result<BlobFacts> {
        let mut input = HashingReader::new(input);
        self.send_failure(self.pump(&mut input, budget))?;
        Ok(input.facts())
    }

    /// Sends the decompressed input.
    fn decode(
        self,
        packed: ChunkReader,
        compression: BlobCompression,
        budget: &Budget,
    ) -> Result<()> {
        let outcome = if compression == BlobCompression::Zstd {
            self.zstd(packed, budget)
        } else {
            self.gzip(packed, budget)
        };
        self.send_failure(outcome)
    }

    fn gzip(&self, packed: ChunkReader, budget: &Budget) -> Result<()> {
        let mut gzip = flate2::bufread::MultiGzDecoder::new(packed);
        self.pump(&mut gzip, Some(budget))?;
        gzip.into_inner().drain().map(drop)
    }

    fn zstd(&self, packed: ChunkReader, budget: &Budget) -> Result<()> {
        let mut zstd = zstd::stream::read::Decoder::with_buffer(packed)?;
        zstd.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        self.pump(&mut zstd, Some(budget))?;
        zstd.finish().drain().map(drop)
    }

    /// Sends the reader's bytes up to its end. With a budget they count as bytes of a tar.
    fn pump<R: Read>(&self, reader: &mut R, budget: Option<&Budget>) -> Result<()> {
        let mut total = 0;
        loop {
            let mut chunk = self.recycled.try_recv().unwrap_or_else(|_| vec![0; CHUNK_BYTES]);
            chunk.resize(CHUNK_BYTES, 0);
            let filled = fill(reader, &mut chunk).context("the data is damaged or truncated")?;
            if filled == 0 {
                return Ok(());
            }
            chunk.truncate(filled);
            total += filled as u64;
            check_tar_bytes(total)?;
            if let Some(budget) = budget {
                budget.count_unpacked(filled as u64)?;
            }
            if self.sender.send(Ok(chunk)).is_err() {
                bail!("the receiver stopped reading");
            }
        }
    }

    /// Sends a failure to the receiver. A receiver that is gone has an error of its own.
    fn send_failure(&self, outcome: Result<()>) -> Result<()> {
        outcome.or_else(|error| {
            drop(self.sender.send(Err(error)));
            bail!("the data could not be decompressed")
        })
    }
}

/// Fills the buffer, or less at the end of the input.
pub(crate) fn fill<R: Read + ?Sized>(input: &mut R, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads the first bytes of the input, fewer if it is shorter.
pub(crate) fn read_head<R: Read + ?Sized>(input: &mut R) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD_BYTES];
    let count = fill(input, &mut head)?;
    head.truncate(count);
    Ok(head)
}

impl ChunkReader {
    /// Returns the bytes that are available, after waiting for some; none at the end.
    pub(crate) fn available(&mut self) -> Result<&[u8]> {
        while self.at == self.current.len() && !self.ended {
            let Ok(chunk) = self.receiver.recv() else {
                self.ended = true;
                break;
            };
            let used = std::mem::replace(&mut self.current, chunk?);
            // A decoder that has finished takes back no buffers.
            drop(self.recycle.send(used));
            self.at = 0;
            self.bytes += self.current.len() as u64;
            if let Some(hash) = &mut self.hash {
                hash.update(&self.current);
            }
        }
        Ok(&self.current[self.at..])
    }

    /// Marks available bytes as used.
    pub(crate) fn consume(&mut self, count: usize) {
        self.at = (self.at + count).min(self.current.len());
    }

    /// Discards the rest of the input. Returns the number of bytes received in total.
    fn drain(&mut self) -> Result<u64> {
        loop {
            let count = self.available()?.len();
            if count == 0 {
                return Ok(self.bytes);
            }
            self.consume(count);
        }
    }

    /// Closes the channel and returns the hash.
    fn close(self) -> Option<Sha256> {
        self.hash
    }
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.available().map_err(|error| error.downcast().unwrap_or_else(io::Error::other))
    }

    fn consume(&mut self, count: usize) {
        ChunkReader::consume(self, count);
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        ChunkReader::consume(self, count);
        Ok(count)
    }
}

impl RawSource for ChunkReader {
    fn read_raw(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let available = self.available()?;
            if available.is_empty() {
                break;
            }
            let count = available.len().min(buffer.len() - filled);
            buffer[filled..filled + count].copy_from_slice(&available[..count]);
            self.consume(count);
            filled += count;
        }
        Ok(filled)
    }
}

/// A reader that hashes and counts its bytes.
pub(crate) struct HashingReader<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> HashingReader<R> {
        HashingReader { inner, hash: Sha256::new(), bytes: 0 }
    }

    pub(crate) fn facts(self) -> BlobFacts {
        BlobFacts { digest: Digest::of_bytes(self.hash.finalize().into()), bytes: self.bytes }
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

/// Returns the SHA-256 digest of bytes in memory.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::of_bytes(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_window_is_refused() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(ZSTD_WINDOW_LOG_MAX + 1).unwrap();
        std::io::Write::write_all(&mut encoder, &[0; 1024]).unwrap();
        let packed = encoder.finish().unwrap();
        assert!(unpack(&packed[..], &Budget::default(), |_| Ok(())).is_err());
    }

    #[test]
    fn compression_is_detected_by_the_first_bytes() {
        assert_eq!(BlobCompression::of(&crate::testing::gzip(b"x")), Some(BlobCompression::Gzip));
        assert_eq!(BlobCompression::of(&crate::testing::zstd(b"x")), Some(BlobCompression::Zstd));
        assert_eq!(BlobCompression::of(&[0; 512]), Some(BlobCompression::Uncompressed));
        assert_eq!(BlobCompression::of(b"{}"), None);
        assert_eq!(
            describe_unknown(b"\xfd7zXZ\0"),
            "it is compressed with xz, which is not supported"
        );
    }
}
