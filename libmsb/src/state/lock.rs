//! Locks: they show which sandboxes are live, and who may write.
//!
//! These are open-file-description locks (`F_OFD_SETLK`, fcntl(2)). Such a lock belongs to the open
//! file and is inherited with its descriptor through fork and exec. It is released when the last
//! process that holds the descriptor has ended, for any reason. `F_OFD_GETLK` tests a lock without
//! taking it. A test with flock(2) would take the lock for a moment and make other processes fail.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;

use crate::cli::verbosity::{Verbosity, log};

/// A lock. It is released when this, and every inherited copy of its descriptor, is closed.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Mode of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LockMode {
    Shared,
    Exclusive,
}

impl Lock {
    /// Takes an exclusive lock; blocks until it is free. Creates the lock file.
    pub fn exclusive(path: &Path) -> anyhow::Result<Lock> {
        take(path, LockMode::Exclusive, true)?.context("the lock was not granted")
    }

    /// Takes a shared lock; blocks until it is free. Creates the lock file.
    pub fn shared(path: &Path) -> anyhow::Result<Lock> {
        take(path, LockMode::Shared, true)?.context("the lock was not granted")
    }

    /// Takes an exclusive lock; `None` if it is held. Creates the lock file.
    pub fn try_exclusive(path: &Path) -> anyhow::Result<Option<Lock>> {
        take(path, LockMode::Exclusive, false)
    }

    /// Takes a shared lock; `None` if it is held exclusively. Creates the lock file.
    pub fn try_shared(path: &Path) -> anyhow::Result<Option<Lock>> {
        take(path, LockMode::Shared, false)
    }

    /// Returns an inherited lock, which the descriptor holds already.
    pub fn inherited(descriptor: OwnedFd) -> Lock {
        Lock { file: File::from(descriptor) }
    }

    /// Returns whether `path` still refers to the locked file. It may have been replaced during a
    /// wait.
    pub fn is_of(&self, path: &Path) -> bool {
        let same =
            |a: &std::fs::Metadata, b: &std::fs::Metadata| a.dev() == b.dev() && a.ino() == b.ino();
        matches!((self.file.metadata(), std::fs::metadata(path)), (Ok(held), Ok(named)) if same(&held, &named))
    }
}

impl From<Lock> for OwnedFd {
    fn from(lock: Lock) -> OwnedFd {
        lock.file.into()
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Returns whether the lock at `path` is held. Does not take it and creates nothing; a missing file
/// is not held.
pub fn is_held(path: &Path) -> anyhow::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot open '{}'", path.display()));
        }
    };
    is_locked(&file).with_context(|| cannot_lock(path))
}

/// Returns whether another open file description holds a lock on a file. Does not take it.
pub fn is_locked(file: &File) -> io::Result<bool> {
    let mut question = request(libc::F_WRLCK);
    fcntl(file, libc::F_OFD_GETLK, &mut question)?;
    Ok(question.l_type != libc::F_UNLCK as libc::c_short)
}

fn take(path: &Path, mode: LockMode, wait: bool) -> anyhow::Result<Option<Lock>> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path);
        let lock = Lock { file: file.with_context(|| cannot_lock(path))? };
        let kind = if mode == LockMode::Shared { libc::F_RDLCK } else { libc::F_WRLCK };
        let command = if wait { libc::F_OFD_SETLKW } else { libc::F_OFD_SETLK };
        match fcntl(&lock.file, command, &mut request(kind)) {
            // The previous holder may have removed the file during the wait. Then this lock
            // protects nothing.
            Ok(()) if lock.is_of(path) => {
                log(Verbosity::Trace, || format!("locked '{}'", path.display()));
                return Ok(Some(lock));
            }
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if !wait && is_taken(&error) => return Ok(None),
            Err(error) => return Err(error).with_context(|| cannot_lock(path)),
        }
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

fn cannot_lock(path: &Path) -> String {
    format!("cannot lock '{}'", path.display())
}

fn request(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        // Must be zero for open-file-description locks.
        l_pid: 0,
    }
}

fn fcntl(file: &File, command: libc::c_int, request: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and the F_OFD_* commands
    // read and write one `struct flock`, which `request` is, exclusively borrowed.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, request as *mut libc::flock) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_is_seen_and_not_given_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        assert!(!is_held(&path).unwrap());
        let lock = Lock::try_exclusive(&path).unwrap().unwrap();
        assert!(is_held(&path).unwrap());
        assert!(Lock::try_exclusive(&path).unwrap().is_none());
        assert!(Lock::try_shared(&path).unwrap().is_none());
        drop(lock);
        assert!(!is_held(&path).unwrap());
    }

    #[test]
    fn asking_takes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        drop(Lock::try_exclusive(&path).unwrap());
        for _ in 0..100 {
            let asker = std::thread::spawn({
                let path = path.clone();
                move || is_held(&path).unwrap()
            });
            assert!(Lock::try_exclusive(&path).unwrap().is_some());
            asker.join().unwrap();
        }
    }

    #[test]
    fn a_copy_of_the_descriptor_keeps_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let lock = Lock::try_exclusive(&path).unwrap().unwrap();
        let copy = lock.as_fd().try_clone_to_owned().unwrap();
        drop(lock);
        assert!(is_held(&path).unwrap());
        drop(Lock::inherited(copy));
        assert!(!is_held(&path).unwrap());
    }

    #[test]
    fn shared_locks_go_together_and_keep_an_exclusive_one_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let one = Lock::shared(&path).unwrap();
        let two = Lock::try_shared(&path).unwrap().unwrap();
        assert!(Lock::try_exclusive(&path).unwrap().is_none());
        drop((one, two));
        assert!(Lock::try_exclusive(&path).unwrap().is_some());
    }
}
