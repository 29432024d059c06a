//! Bytes on their way in: which compression they have, taken off, hashed on both sides.
//!
//! A row of threads: one reads and hashes, one decodes if there is something to decode, and the caller's hashes the result
//! and uses it. Decoding is the longest part by far, so that thread does nothing else. Between two of them go buffers, a few
//! and always the same ones, so memory is bounded.

use std::io::{self, BufRead, Cursor, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::ScopedJoinHandle;

use anyhow::{Context, Result, anyhow, bail};
use libmsb::digest::Digest;
use sha2::{Digest as _, Sha256};

use crate::budget::{Budget, check_tar_bytes};
use crate::layer::tar::{Raw, looks_like_tar};
use crate::limits::ZSTD_WINDOW_LOG_MAX;

const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS_IN_FLIGHT: usize = 8;
/// Enough to see a header of a tar.
pub(crate) const HEAD_BYTES: usize = 512;

/// How a blob is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    /// What the first bytes of a tar, packed or not, say; `None` when they are neither.
    pub(crate) fn of(head: &[u8]) -> Option<Packing> {
        match head {
            [0x1f, 0x8b, 8, ..] => Some(Packing::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Packing::Zstd),
            // A skippable frame: zstd:chunked may begin with one.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Packing::Zstd),
            _ if head.is_empty() || looks_like_tar(head) => Some(Packing::Plain),
            _ => None,
        }
    }
}

/// Why the bytes cannot be a tar.
pub(crate) fn describe_unknown(head: &[u8]) -> &'static str {
    match head {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "it is compressed with xz, which is not supported",
        [b'B', b'Z', b'h', ..] => "it is compressed with bzip2, which is not supported",
        [b'{', ..] => "it is JSON, not a tar",
        _ => "it is neither a tar nor compressed with gzip or zstd",
    }
}

/// What was read, as it was packed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlobFacts {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
}

/// Facts of both sides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unpacked {
    pub(crate) blob: BlobFacts,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
}

/// Reads and unpacks the whole input while `consume` uses what comes out. What `consume` leaves is read all the same, so
/// that the digests are those of the whole.
pub(crate) fn unpack<R: Read + Send, T>(
    mut input: R,
    budget: &Budget,
    consume: impl FnOnce(&mut Chunks) -> Result<T>,
) -> Result<(T, Unpacked)> {
    let head = read_head(&mut input)?;
    let Some(packing) = Packing::of(&head) else {
        bail!("{}", describe_unknown(&head))
    };
    let input = Cursor::new(head).chain(input);
    std::thread::scope(|scope| {
        let (out, packed) = link(None);
        let plain = (packing == Packing::Plain).then_some(budget);
        let feeder = scope.spawn(move || out.feed(input, plain));
        let (decoder, mut chunks) = if packing == Packing::Plain {
            // The digest of a plain tar is taken once, by the thread that reads.
            (None, packed)
        } else {
            let (out, chunks) = link(Some(Sha256::new()));
            (
                Some(scope.spawn(move || out.decode(packed, packing, budget))),
                chunks,
            )
        };
        let consumed = consume(&mut chunks).and_then(|value| Ok((value, chunks.drain()?)));
        // A thread that waits for room must see that nobody listens any more.
        let hash = chunks.close();
        let decoded = decoder.map_or(Ok(()), join);
        let blob = join(feeder);
        // The last in the row was told of what went wrong before it.
        let (value, bytes) = consumed?;
        decoded?;
        let blob = blob?;
        let digest = hash.map_or(blob.digest, |hash| Digest::of_bytes(hash.finalize().into()));
        let unpacked = Unpacked {
            blob,
            digest,
            bytes,
        };
        Ok((value, unpacked))
    })
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow!("a thread that reads the data failed"))?
}

/// Two ends of a way for bytes from one thread to the next.
fn link(hash: Option<Sha256>) -> (Out, Chunks) {
    let (sender, receiver) = sync_channel(CHUNKS_IN_FLIGHT);
    let (recycle, recycled) = channel();
    let chunks = Chunks {
        receiver,
        recycle,
        current: Vec::new(),
        at: 0,
        ended: false,
        hash,
        bytes: 0,
    };
    (Out { sender, recycled }, chunks)
}

/// The end that bytes go into.
struct Out {
    sender: SyncSender<Result<Vec<u8>>>,
    recycled: Receiver<Vec<u8>>,
}

/// The end where they come out.
pub(crate) struct Chunks {
    receiver: Receiver<Result<Vec<u8>>>,
    recycle: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
    hash: Option<Sha256>,
    /// Bytes that came so far.
    bytes: u64,
}

impl Out {
    /// Sends the whole input on as it is; with a budget it is a tar.
    fn feed(self, input: impl Read, budget: Option<&Budget>) -> Result<BlobFacts> {
        let mut input = HashingReader::new(input);
        self.tell(self.pump(&mut input, budget))?;
        Ok(input.facts())
    }

    /// Sends on what the packed bytes hold.
    fn decode(self, packed: Chunks, packing: Packing, budget: &Budget) -> Result<()> {
        let outcome = if packing == Packing::Zstd {
            self.zstd(packed, budget)
        } else {
            self.gzip(packed, budget)
        };
        self.tell(outcome)
    }

    fn gzip(&self, packed: Chunks, budget: &Budget) -> Result<()> {
        let mut gzip = flate2::bufread::MultiGzDecoder::new(packed);
        self.pump(&mut gzip, Some(budget))?;
        gzip.into_inner().drain().map(drop)
    }

    fn zstd(&self, packed: Chunks, budget: &Budget) -> Result<()> {
        let mut zstd = zstd::stream::read::Decoder::with_buffer(packed)?;
        zstd.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        self.pump(&mut zstd, Some(budget))?;
        zstd.finish().drain().map(drop)
    }

    /// Reads to the end. What is a tar counts in a budget.
    fn pump<R: Read>(&self, reader: &mut R, budget: Option<&Budget>) -> Result<()> {
        let mut total = 0;
        loop {
            let mut chunk = self
                .recycled
                .try_recv()
                .unwrap_or_else(|_| vec![0; CHUNK_BYTES]);
            chunk.resize(CHUNK_BYTES, 0);
            let filled = fill(reader, &mut chunk).context("the data is damaged or cut off")?;
            if filled == 0 {
                return Ok(());
            }
            chunk.truncate(filled);
            total += filled as u64;
            check_tar_bytes(total)?;
            if let Some(budget) = budget {
                budget.unpack(filled as u64)?;
            }
            if self.sender.send(Ok(chunk)).is_err() {
                bail!("nobody wants the data any more");
            }
        }
    }

    /// Passes a failure on to whoever waits for bytes; if it is gone it has an error of its own.
    fn tell(&self, outcome: Result<()>) -> Result<()> {
        outcome.or_else(|error| {
            drop(self.sender.send(Err(error)));
            bail!("the data could not be unpacked")
        })
    }
}

/// Fills the buffer unless the input ends.
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

/// The first bytes of the input, fewer if it is shorter.
pub(crate) fn read_head<R: Read + ?Sized>(input: &mut R) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD_BYTES];
    let count = fill(input, &mut head)?;
    head.truncate(count);
    Ok(head)
}

impl Chunks {
    /// Bytes that are there now; none at the end.
    pub(crate) fn available(&mut self) -> Result<&[u8]> {
        while self.at == self.current.len() && !self.ended {
            let Ok(chunk) = self.receiver.recv() else {
                self.ended = true;
                break;
            };
            let used = std::mem::replace(&mut self.current, chunk?);
            // The decoder may have finished: then nobody needs the buffer.
            drop(self.recycle.send(used));
            self.at = 0;
            self.bytes += self.current.len() as u64;
            if let Some(hash) = &mut self.hash {
                hash.update(&self.current);
            }
        }
        Ok(&self.current[self.at..])
    }

    /// Says how many of the available bytes were used.
    pub(crate) fn consume(&mut self, count: usize) {
        self.at = (self.at + count).min(self.current.len());
    }

    /// Reads what is left; gives how many bytes came in all.
    fn drain(&mut self) -> Result<u64> {
        loop {
            let count = self.available()?.len();
            if count == 0 {
                return Ok(self.bytes);
            }
            self.consume(count);
        }
    }

    /// Lets the other end know that no more is wanted.
    fn close(self) -> Option<Sha256> {
        self.hash
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.available()
            .map_err(|error| error.downcast().unwrap_or_else(io::Error::other))
    }

    fn consume(&mut self, count: usize) {
        Chunks::consume(self, count);
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        Chunks::consume(self, count);
        Ok(count)
    }
}

impl Raw for Chunks {
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

/// Hashes and counts what is read.
pub(crate) struct HashingReader<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> HashingReader<R> {
        HashingReader {
            inner,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    pub(crate) fn facts(self) -> BlobFacts {
        BlobFacts {
            digest: Digest::of_bytes(self.hash.finalize().into()),
            bytes: self.bytes,
        }
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

/// SHA-256 of bytes in memory.
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
    fn packings_are_known_by_their_first_bytes() {
        assert_eq!(
            Packing::of(&crate::testing::gzip(b"x")),
            Some(Packing::Gzip)
        );
        assert_eq!(
            Packing::of(&crate::testing::zstd(b"x")),
            Some(Packing::Zstd)
        );
        assert_eq!(Packing::of(&[0; 512]), Some(Packing::Plain));
        assert_eq!(Packing::of(b"{}"), None);
        assert_eq!(
            describe_unknown(b"\xfd7zXZ\0"),
            "it is compressed with xz, which is not supported"
        );
    }
}
