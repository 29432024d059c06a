//! Download of a blob into a file, which is read while it grows.
//!
//! The file is kept when a download is interrupted, and the next attempt resumes it, even after a
//! kill. Its contents are not trusted: the digest is computed over the whole when it is read. The
//! writer holds a lock on the file. Another pull of the same blob waits for it and then finds the
//! blob complete, and prune skips the file.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow};
use libmsb::digest::Digest;
use libmsb::state::images::Store;
use libmsb::state::lock::Lock;

use super::client::BlobBody;
use super::connection::broken;
use super::retry::{FetchError, RetryBackoff};
use crate::budget::check_disk;
use crate::error::{StoreWriteError, is_fatal};

const BUFFER_BYTES: usize = 256 << 10;
/// Bytes between two checks of the free space.
const FREE_SPACE_CHECK_BYTES: u64 = 16 << 20;
/// Bytes after which an attempt counts as progress and resets the backoff. A blob of 1 GiB arrives
/// over a connection that breaks every few megabytes, and a stuck one fails.
const PROGRESS_BYTES: u64 = 1 << 20;

/// The locked file of a blob.
#[derive(Debug)]
pub(crate) struct BlobDownload {
    file: File,
    path: PathBuf,
    bytes: u64,
    _lock: Lock,
}

/// Failure of a download.
#[derive(Debug)]
pub(crate) enum DownloadError {
    /// The transfer failed, or the disk is full. The partial file may be kept.
    Transfer(anyhow::Error),
    /// The contents are wrong.
    Contents(anyhow::Error),
}

/// A function that requests a blob from an offset. The answer may start before it.
pub(crate) type RangeRequest<'a> = &'a (dyn Fn(u64) -> Result<BlobBody, FetchError> + Sync);

/// An observer of a download's progress.
pub(crate) trait DownloadObserver: Sync {
    /// Sets the number of bytes downloaded.
    fn set_bytes(&self, bytes: u64);
    /// Reports a failed attempt that will be retried.
    fn retrying(&self, error: &anyhow::Error);
}

impl BlobDownload {
    /// Opens or creates the file of a blob. Waits for another writer.
    pub(crate) fn open(store: &Store, digest: &Digest, bytes: u64) -> Result<BlobDownload> {
        let path = store.download_path(digest);
        let lock = Lock::exclusive(&path)?;
        let file = lock.as_fd().try_clone_to_owned();
        let file = file.with_context(|| format!("cannot open '{}'", path.display()))?;
        let download = BlobDownload { file: File::from(file), path, bytes, _lock: lock };
        if download.length()? > bytes {
            download.restart()?;
        }
        Ok(download)
    }

    /// Returns the number of bytes in the file.
    pub(crate) fn length(&self) -> Result<u64> {
        let data = self.file.metadata();
        Ok(data.with_context(|| format!("cannot read '{}'", self.path.display()))?.len())
    }

    /// Truncates the file.
    pub(crate) fn restart(&self) -> Result<()> {
        Ok(self.file.set_len(0).map_err(StoreWriteError)?)
    }

    /// Removes the file.
    pub(crate) fn discard(self) {
        // Prune removes the file later.
        drop(std::fs::remove_file(&self.path));
    }

    /// Downloads the missing bytes while `consume` reads the blob from the start.
    pub(crate) fn consume<T>(
        &self,
        request: RangeRequest<'_>,
        backoff: RetryBackoff,
        observer: &dyn DownloadObserver,
        stop: &AtomicBool,
        consume: impl FnOnce(GrowingReader<'_>) -> Result<T>,
    ) -> Result<T, DownloadError> {
        let shared = TransferState {
            state: Mutex::new(FileState {
                ready: self.length().map_err(DownloadError::Transfer)?,
                ended: false,
            }),
            changed: Condvar::new(),
            unwanted: AtomicBool::new(false),
            stop,
        };
        let (fetched, consumed) = std::thread::scope(|scope| {
            let fetcher = scope.spawn(|| {
                let fetched = self.fetch(request, backoff, observer, &shared);
                shared.end();
                fetched
            });
            let consumed = consume(GrowingReader { file: &self.file, at: 0, shared: &shared });
            shared.unwanted.store(true, Ordering::Relaxed);
            let fetched = fetcher.join();
            (fetched.unwrap_or_else(|_| Err(anyhow!("the downloading thread failed"))), consumed)
        });
        match (fetched, consumed) {
            // The reader's error is only a consequence.
            (Err(error), _) => Err(DownloadError::Transfer(error)),
            (Ok(()), Err(error)) if shared.is_stopped() || is_fatal(&error) => {
                Err(DownloadError::Transfer(error))
            }
            (Ok(()), Err(error)) => Err(DownloadError::Contents(error)),
            (Ok(()), Ok(value)) => Ok(value),
        }
    }

    /// Downloads the missing bytes, until the reader is done or the pull is stopped.
    fn fetch(
        &self,
        request: RangeRequest<'_>,
        mut backoff: RetryBackoff,
        observer: &dyn DownloadObserver,
        shared: &TransferState<'_>,
    ) -> Result<()> {
        loop {
            let at = shared.state().ready;
            observer.set_bytes(at);
            if at >= self.bytes || !shared.is_wanted() {
                return Ok(());
            }
            let Err(error) = self.attempt(at, request, observer, shared) else {
                continue;
            };
            if shared.state().ready - at >= PROGRESS_BYTES {
                backoff.reset();
            }
            if let FetchError::Transient { error, .. } = &error {
                observer.retrying(error);
            }
            backoff.next_attempt(error)?;
        }
    }

    fn attempt(
        &self,
        mut at: u64,
        request: RangeRequest<'_>,
        observer: &dyn DownloadObserver,
        shared: &TransferState<'_>,
    ) -> Result<(), FetchError> {
        let BlobBody { mut body, start, length } = request(at)?;
        let promised = length.map(|length| start.saturating_add(length));
        if let Some(promised) = promised.filter(|promised| *promised != self.bytes) {
            return Err(FetchError::Permanent(anyhow!(
                "the registry has {promised} bytes, but the manifest says {}",
                self.bytes
            )));
        }
        // A server without range support starts at offset 0.
        let overlap = at - start;
        let skipped =
            io::copy(&mut body.by_ref().take(overlap), &mut io::sink()).map_err(broken)?;
        if skipped < overlap {
            return Err(FetchError::transient(anyhow!("the connection closed early")));
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut checked_at = at;
        while at < self.bytes && shared.is_wanted() {
            let wanted = buffer.len().min(usize::try_from(self.bytes - at).unwrap_or(usize::MAX));
            let count = body.read(&mut buffer[..wanted]).map_err(broken)?;
            if count == 0 {
                return Err(FetchError::transient(anyhow!("the connection closed early")));
            }
            if at >= checked_at {
                check_disk(&self.path).map_err(FetchError::Permanent)?;
                checked_at = at + FREE_SPACE_CHECK_BYTES;
            }
            self.file
                .write_all_at(&buffer[..count], at)
                .map_err(|error| FetchError::Permanent(StoreWriteError(error).into()))?;
            at += count as u64;
            shared.set_bytes(at);
            observer.set_bytes(at);
        }
        Ok(())
    }
}

/// State shared by the writer and the reader of a file.
struct TransferState<'a> {
    state: Mutex<FileState>,
    changed: Condvar,
    /// The reader is done.
    unwanted: AtomicBool,
    /// The pull failed elsewhere.
    stop: &'a AtomicBool,
}

struct FileState {
    /// Bytes that can be read.
    ready: u64,
    /// No more bytes will follow.
    ended: bool,
}

impl TransferState<'_> {
    fn state(&self) -> MutexGuard<'_, FileState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_bytes(&self, bytes: u64) {
        self.state().ready = bytes;
        self.changed.notify_all();
    }

    fn end(&self) {
        self.state().ended = true;
        self.changed.notify_all();
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn is_wanted(&self) -> bool {
        !self.is_stopped() && !self.unwanted.load(Ordering::Relaxed)
    }

    /// Waits for bytes after `at`, or the end. Returns the number of readable bytes.
    fn wait(&self, at: u64) -> u64 {
        let waiting = |state: &mut FileState| state.ready <= at && !state.ended;
        let state = self.changed.wait_while(self.state(), waiting);
        state.unwrap_or_else(PoisonError::into_inner).ready
    }
}

/// A reader of a growing file; it waits for more bytes.
pub(crate) struct GrowingReader<'a> {
    file: &'a File,
    at: u64,
    shared: &'a TransferState<'a>,
}

impl Read for GrowingReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = self.shared.wait(self.at);
        let most = usize::try_from(ready.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let end = buffer.len().min(most);
        let count = self.file.read_at(&mut buffer[..end], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Removes downloads of blobs that are now in the store, except those that another process uses.
pub(crate) fn remove_finished<'a>(store: &Store, digests: impl IntoIterator<Item = &'a Digest>) {
    for digest in digests {
        let path = store.download_path(digest);
        if path.exists() && matches!(Lock::try_exclusive(&path), Ok(Some(_))) {
            drop(std::fs::remove_file(&path));
        }
    }
}
