//! File locks of a guest (flock(2), fcntl(2)) on the files of the host, so that they hold among all
//! guests that share a directory, and on the host.
//!
//! A lock has an owner: a number that the guest's kernel chooses, for a process or an open file.
//! Each owner has an open file description of its own here, since the host's kernel gives locks to
//! those: a lock of flock(2), or open file description locks for the ranges of fcntl(2). Closing
//! the description releases all of them.
//!
//! A lock that is held by another owner is refused at once. The queue asks again for a guest that
//! waits: the server has one thread, which must answer the request that releases the lock.
//!
//! A guest's kernel keeps pages of a file until its size or modification time differs. Two writes
//! of another guest within one tick of the host's clock would look like one, and a lock would be
//! granted to a reader of old data. Each lock that is granted therefore changes the modification
//! time that the guest sees next, by one nanosecond at most.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fuse_backend_rs::api::filesystem::FileLock;
use libc::stat64;

/// FUSE_LK_FLOCK of linux/fuse.h: a lock of flock(2).
const LK_FLOCK: u32 = 1;
/// End of a range that reaches to the end of the file, however long it becomes.
const RANGE_END: u64 = i64::MAX.unsigned_abs();

/// The locks of a guest, by inode.
#[derive(Default)]
pub(super) struct LockTable {
    files: Mutex<HashMap<u64, FileLocks>>,
    /// A lock was refused because another owner has it.
    refused: AtomicBool,
}

/// The locks of one file.
#[derive(Default)]
struct FileLocks {
    owners: Vec<LockOwner>,
    /// A lock was granted since the guest last read the modification time.
    pending: bool,
    /// Difference between the modification time that the guest sees and that of the host.
    shift_ns: i64,
}

/// An owner of locks, with its open file description.
struct LockOwner {
    owner: u64,
    /// Handle of the guest's open file through which it locked first.
    handle: u64,
    file: File,
}

/// A request for a lock, as the guest's kernel sent it.
#[derive(Clone, Copy)]
pub(super) struct LockRequest {
    pub(super) inode: u64,
    pub(super) handle: u64,
    pub(super) owner: u64,
    pub(super) lock: FileLock,
    pub(super) flags: u32,
}

impl LockTable {
    /// Takes or releases a lock. `open` opens the file for a new owner.
    pub(super) fn set(
        &self,
        request: &LockRequest,
        open: impl FnOnce() -> io::Result<File>,
    ) -> io::Result<()> {
        let unlocks = request.lock.lock_type == libc::F_UNLCK as u32;
        let mut files = self.files();
        let locks = files.entry(request.inode).or_default();
        let known = locks.owners.iter().position(|known| known.owner == request.owner);
        let index = match known {
            Some(index) => index,
            None if unlocks => return Ok(()),
            None => {
                let LockRequest { owner, handle, .. } = *request;
                locks.owners.push(LockOwner { owner, handle, file: open()? });
                locks.owners.len() - 1
            }
        };
        let result = match locks.owners.get(index) {
            Some(found) => apply(&found.file, request),
            None => Ok(()),
        };
        if unlocks && covers_all(request) {
            locks.owners.swap_remove(index);
        }
        locks.pending |= result.is_ok() && !unlocks;
        let is_held = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        self.refused.store(result.as_ref().err().is_some_and(is_held), Ordering::Relaxed);
        result
    }

    /// Returns whether a lock was refused since the last call, because another owner has it.
    pub(super) fn take_refused(&self) -> bool {
        self.refused.swap(false, Ordering::Relaxed)
    }

    /// Returns a lock of another owner that conflicts with the request, or an unlocked range.
    pub(super) fn get(
        &self,
        request: &LockRequest,
        open: impl FnOnce() -> io::Result<File>,
    ) -> io::Result<FileLock> {
        let files = self.files();
        let known = files
            .get(&request.inode)
            .and_then(|locks| locks.owners.iter().find(|known| known.owner == request.owner));
        let opened;
        let file = match known {
            Some(known) => &known.file,
            None => {
                opened = open()?;
                &opened
            }
        };
        let mut range = range(&request.lock)?;
        fcntl_lock(file, libc::F_OFD_GETLK, &mut range)?;
        let start = range.l_start.unsigned_abs();
        let length = range.l_len.unsigned_abs();
        let end = if length == 0 { RANGE_END } else { start + (length - 1) };
        // The host's kernel names no process for such a lock, and the guest knows only its own.
        Ok(FileLock { start, end, lock_type: range.l_type.unsigned_abs().into(), pid: 0 })
    }

    /// Releases the locks of a process on a file of which it closes a descriptor.
    pub(super) fn close(&self, inode: u64, owner: u64) {
        self.drop_owners(inode, |known| known.owner == owner);
    }

    /// Releases the locks that were taken through an open file.
    pub(super) fn release(&self, inode: u64, handle: u64) {
        self.drop_owners(inode, |known| known.handle == handle);
    }

    /// Forgets a file that the guest no longer knows.
    pub(super) fn forget(&self, inode: u64) {
        self.files().remove(&inode);
    }

    /// Returns whether the file has been locked.
    pub(super) fn knows(&self, inode: u64) -> bool {
        self.files().contains_key(&inode)
    }

    /// Releases all locks.
    pub(super) fn clear(&self) {
        self.files().clear();
    }

    /// Shifts the modification time of a file that was locked, so that the guest drops its pages.
    pub(super) fn shift_mtime(&self, inode: u64, attr: &mut stat64) {
        let mut files = self.files();
        let Some(locks) = files.get_mut(&inode) else {
            return;
        };
        if std::mem::take(&mut locks.pending) {
            locks.shift_ns ^= 1;
        }
        attr.st_mtime_nsec ^= locks.shift_ns;
    }

    fn drop_owners(&self, inode: u64, is_gone: impl Fn(&LockOwner) -> bool) {
        if let Some(locks) = self.files().get_mut(&inode) {
            locks.owners.retain(|known| !is_gone(known));
        }
    }

    fn files(&self) -> MutexGuard<'_, HashMap<u64, FileLocks>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a file once more, by a path that must lead to the same file. For writing if possible: a
/// lock of fcntl(2) for writing requires it.
pub(super) fn open_again(path: &Path, attr: &stat64) -> io::Result<File> {
    let open = |write: bool| {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        OpenOptions::new().read(true).write(write).custom_flags(flags).open(path)
    };
    let file = open(true).or_else(|_| open(false));
    // Removed or renamed meanwhile.
    let file = file.map_err(|_| io::Error::from_raw_os_error(libc::ENOLCK))?;
    let stat = rustix::fs::fstat(&file)?;
    if (stat.st_dev, stat.st_ino) == (attr.st_dev, attr.st_ino) {
        return Ok(file);
    }
    Err(io::Error::from_raw_os_error(libc::ENOLCK))
}

/// Returns whether the request concerns the whole file.
fn covers_all(request: &LockRequest) -> bool {
    request.flags & LK_FLOCK != 0 || (request.lock.start == 0 && request.lock.end == RANGE_END)
}

/// Asks the host's kernel, without waiting.
fn apply(file: &File, request: &LockRequest) -> io::Result<()> {
    if request.flags & LK_FLOCK != 0 {
        return flock(file, request.lock.lock_type);
    }
    fcntl_lock(file, libc::F_OFD_SETLK, &mut range(&request.lock)?)
}

fn flock(file: &File, lock_type: u32) -> io::Result<()> {
    use rustix::fs::FlockOperation;
    let operation = match i32::try_from(lock_type) {
        Ok(libc::F_RDLCK) => FlockOperation::NonBlockingLockShared,
        Ok(libc::F_WRLCK) => FlockOperation::NonBlockingLockExclusive,
        Ok(libc::F_UNLCK) => FlockOperation::Unlock,
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    Ok(rustix::fs::flock(file, operation)?)
}

/// Returns the range of fcntl(2). The guest names the last byte, fcntl the length.
fn range(lock: &FileLock) -> io::Result<libc::flock> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let l_type = i16::try_from(lock.lock_type).map_err(|_| invalid())?;
    let l_start = i64::try_from(lock.start).map_err(|_| invalid())?;
    let l_len = match lock.end {
        RANGE_END => 0,
        end => {
            let bytes = end.checked_sub(lock.start).and_then(|bytes| bytes.checked_add(1));
            bytes.and_then(|bytes| i64::try_from(bytes).ok()).ok_or_else(invalid)?
        }
    };
    let l_whence = libc::SEEK_SET as i16;
    Ok(libc::flock { l_type, l_whence, l_start, l_len, l_pid: 0 })
}

fn fcntl_lock(file: &File, command: libc::c_int, range: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call, and the kernel reads and writes only the
    // structure, which is of the type that these commands take.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(range)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: u32 = libc::F_RDLCK as u32;
    const WRITE: u32 = libc::F_WRLCK as u32;
    const UNLOCK: u32 = libc::F_UNLCK as u32;

    fn request(owner: u64, lock_type: u32, start: u64, end: u64) -> LockRequest {
        let lock = FileLock { start, end, lock_type, pid: 7 };
        LockRequest { inode: 5, handle: owner + 100, owner, lock, flags: 0 }
    }

    fn flock_request(owner: u64, lock_type: u32) -> LockRequest {
        LockRequest { flags: LK_FLOCK, ..request(owner, lock_type, 0, RANGE_END) }
    }

    struct Fixture {
        table: LockTable,
        file: tempfile::NamedTempFile,
    }

    impl Fixture {
        fn new() -> Fixture {
            Fixture { table: LockTable::default(), file: tempfile::NamedTempFile::new().unwrap() }
        }

        /// Sets a lock. Returns the error number.
        fn set(&self, request: &LockRequest) -> i32 {
            let open = || OpenOptions::new().read(true).write(true).open(self.file.path());
            self.table.set(request, open).map_or_else(|error| error.raw_os_error().unwrap(), |()| 0)
        }

        fn get(&self, request: &LockRequest) -> FileLock {
            self.table.get(request, || File::open(self.file.path())).unwrap()
        }
    }

    #[test]
    fn ranges_exclude_other_owners_until_they_are_released() {
        let fixture = Fixture::new();
        assert_eq!(fixture.set(&request(1, WRITE, 0, 9)), 0);
        assert_eq!(fixture.set(&request(2, WRITE, 10, 19)), 0);
        assert_eq!(fixture.set(&request(2, READ, 9, 9)), libc::EAGAIN);
        let found = fixture.get(&request(2, WRITE, 0, RANGE_END));
        assert_eq!((found.start, found.end, found.lock_type), (0, 9, WRITE));
        assert_eq!(fixture.set(&request(1, UNLOCK, 9, 9)), 0);
        assert_eq!(fixture.set(&request(2, READ, 9, 9)), 0);
        assert_eq!(fixture.set(&request(3, READ, 0, 0)), libc::EAGAIN);
        // A process closes a descriptor of the file.
        fixture.table.close(5, 1);
        assert_eq!(fixture.set(&request(3, READ, 0, 0)), 0);
        assert_eq!(fixture.get(&request(4, READ, 0, 0)).lock_type, UNLOCK);
    }

    #[test]
    fn locks_of_whole_files_are_another_kind_and_end_with_their_open_file() {
        let fixture = Fixture::new();
        assert_eq!(fixture.set(&flock_request(1, READ)), 0);
        assert_eq!(fixture.set(&flock_request(2, READ)), 0);
        assert_eq!(fixture.set(&flock_request(2, WRITE)), libc::EAGAIN);
        // Ranges and whole files do not exclude each other.
        assert_eq!(fixture.set(&request(3, WRITE, 0, RANGE_END)), 0);
        fixture.table.release(5, 101);
        assert_eq!(fixture.set(&flock_request(2, WRITE)), 0);
        assert_eq!(fixture.set(&flock_request(2, UNLOCK)), 0);
        assert_eq!(fixture.set(&flock_request(4, WRITE)), 0);
    }

    #[test]
    fn a_request_that_no_kernel_sends_is_refused() {
        let fixture = Fixture::new();
        for (lock_type, start, end) in [
            (WRITE, 5, 4),
            (WRITE, u64::MAX, u64::MAX),
            (9, 0, 1),
            (u32::MAX, 0, 1),
            (WRITE, 0, u64::MAX),
        ] {
            assert_eq!(fixture.set(&request(1, lock_type, start, end)), libc::EINVAL);
        }
        assert_eq!(fixture.set(&flock_request(1, 77)), libc::EINVAL);
        assert_eq!(fixture.set(&request(9, UNLOCK, 0, RANGE_END)), 0);
    }

    #[test]
    fn a_granted_lock_changes_the_modification_time_once() {
        let fixture = Fixture::new();
        let seen = || {
            // SAFETY: zeros are a value of this type, which holds numbers only.
            let mut attr: stat64 = unsafe { std::mem::zeroed() };
            attr.st_mtime_nsec = 1000;
            fixture.table.shift_mtime(5, &mut attr);
            attr.st_mtime_nsec
        };
        assert_eq!(seen(), 1000);
        let mut before = seen();
        for owner in 1..4 {
            assert_eq!(fixture.set(&request(owner, READ, 0, 9)), 0);
            assert_eq!(fixture.set(&request(owner, READ, 20, 29)), 0);
            let now = seen();
            assert_ne!(now, before);
            assert_eq!(seen(), now);
            before = now;
        }
        assert_eq!(fixture.set(&request(9, WRITE, 0, 9)), libc::EAGAIN);
        assert_eq!(seen(), before);
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_not_locked() {
        let fixture = Fixture::new();
        let other = tempfile::NamedTempFile::new().unwrap();
        let stat = |file: &File| {
            // SAFETY: zeros are a value of this type, which holds numbers only.
            let mut attr: stat64 = unsafe { std::mem::zeroed() };
            let found = rustix::fs::fstat(file).unwrap();
            (attr.st_dev, attr.st_ino) = (found.st_dev, found.st_ino);
            attr
        };
        let attr = stat(fixture.file.as_file());
        assert!(open_again(fixture.file.path(), &attr).is_ok());
        let error = open_again(other.path(), &attr).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOLCK));
        assert!(open_again(Path::new("/nowhere (deleted)"), &attr).is_err());
    }
}
