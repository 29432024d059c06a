//! A blob on its way into a file, read while it grows.
//!
//! The file is kept when a download breaks off, so the next one goes on where this one stopped, be it a moment later or
//! after a kill. Nobody trusts what is in it: the digest is taken over the whole when it is read. A lock on the file is
//! held by whoever writes it; another pull of the same blob waits and then finds it done, and prune leaves it alone.

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
use super::retry::{Patience, Trouble};
use crate::budget::check_disk;
use crate::error::{StoreWrite, is_fatal};

const BUFFER_BYTES: usize = 256 << 10;
/// Bytes between two looks at the free space.
const LOOK_BYTES: u64 = 16 << 20;
/// An attempt that brought as much was worth it: patience begins anew. So a blob of 1 GiB over a connection that breaks
/// every few megabytes arrives, and one that never moves ends.
const PROGRESS_BYTES: u64 = 1 << 20;

/// The file of a blob, locked.
#[derive(Debug)]
pub(crate) struct Download {
    file: File,
    path: PathBuf,
    bytes: u64,
    _lock: Lock,
}

/// Why a blob could not be used.
#[derive(Debug)]
pub(crate) enum Failed {
    /// It did not come, or there is no room: what is there may be kept.
    Underway(anyhow::Error),
    /// What came is wrong.
    Contents(anyhow::Error),
}

/// Begins an answer at an offset of the blob, or before it.
pub(crate) type Ask<'a> = &'a (dyn Fn(u64) -> Result<BlobBody, Trouble> + Sync);

/// Who wants to know how it goes.
pub(crate) trait Watch: Sync {
    /// So many bytes are there.
    fn is_at(&self, bytes: u64);
    /// An attempt failed; another one follows.
    fn tries_again(&self, error: &anyhow::Error);
}

impl Download {
    /// Opens or makes the file of a blob, and waits for others who write it.
    pub(crate) fn open(store: &Store, digest: &Digest, bytes: u64) -> Result<Download> {
        let path = store.download_path(digest);
        let lock = Lock::exclusive(&path)?;
        let file = lock.as_fd().try_clone_to_owned();
        let file = file.with_context(|| format!("cannot open '{}'", path.display()))?;
        let download = Download {
            file: File::from(file),
            path,
            bytes,
            _lock: lock,
        };
        if download.length()? > bytes {
            download.restart()?;
        }
        Ok(download)
    }

    /// Bytes that are there.
    pub(crate) fn length(&self) -> Result<u64> {
        let data = self.file.metadata();
        Ok(data
            .with_context(|| format!("cannot read '{}'", self.path.display()))?
            .len())
    }

    /// Forgets what is there.
    pub(crate) fn restart(&self) -> Result<()> {
        Ok(self.file.set_len(0).map_err(StoreWrite)?)
    }

    /// Removes the file.
    pub(crate) fn discard(self) {
        // What cannot be removed is found again by prune.
        drop(std::fs::remove_file(&self.path));
    }

    /// Brings what is missing, while `consume` reads the blob from its beginning.
    pub(crate) fn consume<T>(
        &self,
        ask: Ask<'_>,
        patience: Patience,
        watch: &dyn Watch,
        stop: &AtomicBool,
        consume: impl FnOnce(Growing<'_>) -> Result<T>,
    ) -> Result<T, Failed> {
        let shared = Shared {
            state: Mutex::new(State {
                ready: self.length().map_err(Failed::Underway)?,
                ended: false,
            }),
            changed: Condvar::new(),
            unwanted: AtomicBool::new(false),
            stop,
        };
        let (fetched, consumed) = std::thread::scope(|scope| {
            let fetcher = scope.spawn(|| {
                let fetched = self.fetch(ask, patience, watch, &shared);
                shared.end();
                fetched
            });
            let consumed = consume(Growing {
                file: &self.file,
                at: 0,
                shared: &shared,
            });
            shared.unwanted.store(true, Ordering::Relaxed);
            let fetched = fetcher.join();
            (
                fetched.unwrap_or_else(|_| Err(anyhow!("the downloading thread failed"))),
                consumed,
            )
        });
        match (fetched, consumed) {
            // The reader's error only follows from this one.
            (Err(error), _) => Err(Failed::Underway(error)),
            (Ok(()), Err(error)) if shared.is_stopped() || is_fatal(&error) => {
                Err(Failed::Underway(error))
            }
            (Ok(()), Err(error)) => Err(Failed::Contents(error)),
            (Ok(()), Ok(value)) => Ok(value),
        }
    }

    /// Brings what is missing, or less when nobody wants it any more.
    fn fetch(
        &self,
        ask: Ask<'_>,
        mut patience: Patience,
        watch: &dyn Watch,
        shared: &Shared<'_>,
    ) -> Result<()> {
        loop {
            let at = shared.state().ready;
            watch.is_at(at);
            if at >= self.bytes || !shared.is_wanted() {
                return Ok(());
            }
            let Err(trouble) = self.attempt(at, ask, watch, shared) else {
                continue;
            };
            if shared.state().ready - at >= PROGRESS_BYTES {
                patience.renew();
            }
            if let Trouble::Passing { error, .. } = &trouble {
                watch.tries_again(error);
            }
            patience.bear(trouble)?;
        }
    }

    fn attempt(
        &self,
        mut at: u64,
        ask: Ask<'_>,
        watch: &dyn Watch,
        shared: &Shared<'_>,
    ) -> Result<(), Trouble> {
        let BlobBody {
            mut body,
            start,
            length,
        } = ask(at)?;
        let promised = length.map(|length| start.saturating_add(length));
        if let Some(promised) = promised.filter(|promised| *promised != self.bytes) {
            return Err(Trouble::Final(anyhow!(
                "the registry has {promised} bytes of it, and the manifest says {}",
                self.bytes
            )));
        }
        // A server that knows no ranges begins at the beginning.
        let again = at - start;
        let skipped = io::copy(&mut body.by_ref().take(again), &mut io::sink()).map_err(broken)?;
        if skipped < again {
            return Err(Trouble::passing(anyhow!("the connection ended early")));
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut looked = at;
        while at < self.bytes && shared.is_wanted() {
            let wanted = buffer
                .len()
                .min(usize::try_from(self.bytes - at).unwrap_or(usize::MAX));
            let count = body.read(&mut buffer[..wanted]).map_err(broken)?;
            if count == 0 {
                return Err(Trouble::passing(anyhow!("the connection ended early")));
            }
            if at >= looked {
                check_disk(&self.path).map_err(Trouble::Final)?;
                looked = at + LOOK_BYTES;
            }
            self.file
                .write_all_at(&buffer[..count], at)
                .map_err(|error| Trouble::Final(StoreWrite(error).into()))?;
            at += count as u64;
            shared.is_at(at);
            watch.is_at(at);
        }
        Ok(())
    }
}

/// What writer and reader of a file know together.
struct Shared<'a> {
    state: Mutex<State>,
    changed: Condvar,
    /// The reader is done.
    unwanted: AtomicBool,
    /// The whole pull has failed elsewhere.
    stop: &'a AtomicBool,
}

struct State {
    /// Bytes that can be read.
    ready: u64,
    /// No more will come.
    ended: bool,
}

impl Shared<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_at(&self, bytes: u64) {
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

    /// Waits until there is more than `at`; gives how far the file goes.
    fn wait(&self, at: u64) -> u64 {
        let waiting = |state: &mut State| state.ready <= at && !state.ended;
        let state = self.changed.wait_while(self.state(), waiting);
        state.unwrap_or_else(PoisonError::into_inner).ready
    }
}

/// Reads a file as far as it has come, and waits for more.
pub(crate) struct Growing<'a> {
    file: &'a File,
    at: u64,
    shared: &'a Shared<'a>,
}

impl Read for Growing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = self.shared.wait(self.at);
        let most = usize::try_from(ready.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let end = buffer.len().min(most);
        let count = self.file.read_at(&mut buffer[..end], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Removes the files of blobs that are in the store by now, but those that somebody else is using.
pub(crate) fn remove_finished<'a>(store: &Store, digests: impl IntoIterator<Item = &'a Digest>) {
    for digest in digests {
        let path = store.download_path(digest);
        if path.exists() && matches!(Lock::try_exclusive(&path), Ok(Some(_))) {
            drop(std::fs::remove_file(&path));
        }
    }
}
