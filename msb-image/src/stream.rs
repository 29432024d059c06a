//! Bytes on their way in: which compression they have, taken off in a thread of its own, hashed on both sides.
//!
//! One thread reads, hashes and decodes, the other hashes the result and uses it: on two cores that halves the time.
//! Between them go buffers, a few of them and always the same ones, so memory is bounded.

use std::cell::Cell;
use std::io::{self, Cursor, Read};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use anyhow::{Context, Result, anyhow, bail, ensure};
use libmsb::digest::Digest;
use sha2::{Digest as _, Sha256};

use crate::layer::tar::{Raw, looks_like_tar};
use crate::limits::{
    EXPANSION_FREE_BYTES, EXPANSION_RATIO_MAX, LAYER_TAR_BYTES_MAX, ZSTD_WINDOW_LOG_MAX,
};

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

/// Unpacked bytes, from the decoding thread.
pub(crate) struct Chunks {
    receiver: Receiver<Result<Vec<u8>>>,
    recycle: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
    hash: Option<Sha256>,
    bytes: u64,
}

/// Reads and unpacks the whole input while `consume` uses what comes out. What `consume` leaves is read all the same, so
/// that the digests are those of the whole.
pub(crate) fn unpack<R: Read + Send, T>(
    mut input: R,
    consume: impl FnOnce(&mut Chunks) -> Result<T>,
) -> Result<(T, Unpacked)> {
    let head = read_head(&mut input)?;
    let Some(packing) = Packing::of(&head) else {
        bail!("{}", describe_unknown(&head))
    };
    let input = Cursor::new(head).chain(input);
    let (sender, receiver) = sync_channel(CHUNKS_IN_FLIGHT);
    let (recycle, recycled) = channel();
    // The digest of a plain tar is taken once, by the thread that reads.
    let hash = (packing != Packing::Plain).then(Sha256::new);
    let mut chunks = Chunks {
        receiver,
        recycle,
        current: Vec::new(),
        at: 0,
        ended: false,
        hash,
        bytes: 0,
    };
    std::thread::scope(|scope| {
        let decoder = scope.spawn(move || Decoder { sender, recycled }.run(input, packing));
        let consumed = consume(&mut chunks).and_then(|value| Ok((value, chunks.drain()?)));
        // A decoder that waits for room must see that nobody listens any more.
        drop(chunks.receiver);
        let blob = decoder
            .join()
            .map_err(|_| anyhow!("the decoding thread failed"))?;
        let (value, bytes) = consumed?;
        let blob = blob?;
        let digest = chunks
            .hash
            .map_or(blob.digest, |hash| Digest::of_bytes(hash.finalize().into()));
        Ok((
            value,
            Unpacked {
                blob,
                digest,
                bytes,
            },
        ))
    })
}

/// Facts of both sides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unpacked {
    pub(crate) blob: BlobFacts,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
}

struct Decoder {
    sender: SyncSender<Result<Vec<u8>>>,
    recycled: Receiver<Vec<u8>>,
}

impl Decoder {
    fn run<R: Read>(self, input: R, packing: Packing) -> Result<BlobFacts> {
        let mut input = io::BufReader::with_capacity(CHUNK_BYTES, HashingReader::new(input));
        let packed = input.get_ref().bytes.clone();
        let outcome = match packing {
            Packing::Plain => self.pump(&mut input, &packed),
            Packing::Gzip => {
                let mut gzip = flate2::bufread::MultiGzDecoder::new(input);
                let outcome = self.pump(&mut gzip, &packed);
                input = gzip.into_inner();
                outcome
            }
            Packing::Zstd => {
                let mut zstd = zstd::stream::read::Decoder::with_buffer(input)?;
                zstd.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                let outcome = self.pump(&mut zstd, &packed);
                input = zstd.finish();
                outcome
            }
        };
        if let Err(error) = outcome {
            // The consumer tells it; if it is gone it has an error of its own.
            drop(self.sender.send(Err(error)));
            bail!("the data could not be unpacked");
        }
        Ok(input.into_inner().facts())
    }

    /// Unpacks everything. `packed` counts what was read for it.
    fn pump(&self, decoder: &mut dyn Read, packed: &Cell<u64>) -> Result<()> {
        let mut total = 0;
        loop {
            let mut chunk = self
                .recycled
                .try_recv()
                .unwrap_or_else(|_| vec![0; CHUNK_BYTES]);
            chunk.resize(CHUNK_BYTES, 0);
            let filled = fill(decoder, &mut chunk).context("the data is damaged or cut off")?;
            if filled == 0 {
                return Ok(());
            }
            chunk.truncate(filled);
            total += filled as u64;
            check_expansion(total, packed.get())?;
            if self.sender.send(Ok(chunk)).is_err() {
                bail!("nobody wants the data any more");
            }
        }
    }
}

fn check_expansion(unpacked: u64, packed: u64) -> Result<()> {
    ensure!(
        unpacked <= LAYER_TAR_BYTES_MAX,
        "it has more than {LAYER_TAR_BYTES_MAX} bytes unpacked"
    );
    ensure!(
        unpacked <= EXPANSION_FREE_BYTES || unpacked / EXPANSION_RATIO_MAX <= packed,
        "it expands to more than {EXPANSION_RATIO_MAX} times its size"
    );
    Ok(())
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

    fn drain(&mut self) -> Result<u64> {
        loop {
            let count = self.available()?.len();
            if count == 0 {
                return Ok(self.bytes);
            }
            self.consume(count);
        }
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
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> HashingReader<R> {
        HashingReader {
            inner,
            hash: Sha256::new(),
            bytes: Rc::default(),
        }
    }

    pub(crate) fn facts(self) -> BlobFacts {
        BlobFacts {
            digest: Digest::of_bytes(self.hash.finalize().into()),
            bytes: self.bytes.get(),
        }
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes.set(self.bytes.get() + count as u64);
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
    fn what_expands_without_measure_is_refused() {
        assert!(check_expansion(EXPANSION_FREE_BYTES, 1).is_ok());
        assert!(check_expansion(EXPANSION_FREE_BYTES + 1, 1).is_err());
        // What gzip can do at most is no bomb.
        assert!(check_expansion(10 << 30, (10 << 30) / 1032).is_ok());
        assert!(check_expansion(LAYER_TAR_BYTES_MAX + 1, LAYER_TAR_BYTES_MAX).is_err());
    }

    #[test]
    fn a_large_window_is_refused() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(ZSTD_WINDOW_LOG_MAX + 1).unwrap();
        std::io::Write::write_all(&mut encoder, &[0; 1024]).unwrap();
        let packed = encoder.finish().unwrap();
        assert!(unpack(&packed[..], |_| Ok(())).is_err());
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
