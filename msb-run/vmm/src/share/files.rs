//! The file system of a share: that of fuse-backend-rs, with cache timeouts that keep host and
//! guests consistent.
//!
//! A guest's kernel caches the answers to LOOKUP and GETATTR for the time in the answer, and
//! nothing can revoke them: the virtio device has no notifications (virtio 1.2, 5.11). No entry is
//! therefore valid beyond the system call that looked it up: each path is walked on the host, and a
//! name leads to what it is there. Attributes of files are not cached either. Otherwise a read of
//! an open file would return old data from the guest's page cache although a lock permits the read:
//! the kernel drops pages when a fresh size or modification time differs (FUSE_AUTO_INVAL_DATA).

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::CreateIn;
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileLock, FileSystem, FsOptions, GetxattrReply, ListxattrReply,
    OpenOptions, SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use fuse_backend_rs::passthrough::{Config, PassthroughFs};
use libc::{stat64, statvfs64};

use super::locks::{LockRequest, LockTable, open_again};
use super::mount_namespace::SHARE;

/// Cache timeout of entries and of file attributes.
const ENTRY_TIMEOUT: Duration = Duration::ZERO;
/// Cache timeout of a directory's attributes. A guest reads owner and mode at each step of a path,
/// and walking a path refreshes them. The timeout saves a second request at each step.
const DIRECTORY_ATTR_TIMEOUT: Duration = Duration::from_millis(10);

/// Number of attempts to read a directory when an entry vanished while it was looked up.
const READDIR_ATTEMPTS: usize = 16;

/// FUSE features of the server and the guest's kernel. READDIRPLUS is missing: its entries would be
/// looked up again.
const FEATURES: FsOptions = FsOptions::ASYNC_READ
    .union(FsOptions::PARALLEL_DIROPS)
    .union(FsOptions::BIG_WRITES)
    .union(FsOptions::AUTO_INVAL_DATA)
    .union(FsOptions::ASYNC_DIO)
    .union(FsOptions::ATOMIC_O_TRUNC)
    .union(FsOptions::MAX_PAGES)
    .union(FsOptions::HANDLE_KILLPRIV_V2);

/// Features of a share whose locks are the host's. Without them, the guest's kernel keeps the locks
/// of its own processes.
const LOCK_FEATURES: FsOptions = FsOptions::POSIX_LOCKS.union(FsOptions::FLOCK_LOCKS);

/// FOPEN_NOFLUSH of linux/fuse.h: the guest sends no FLUSH when it closes a file that was open for
/// reading. There is nothing to write, and no lock to release if locks are the guest's own.
// SAFETY: any bits make flags of this type, which is a number; the library passes them on.
const FOPEN_NOFLUSH: OpenOptions = unsafe { OpenOptions::from_bits_unchecked(1 << 5) };

/// The shared files, as requests see them.
pub(super) struct SharedFiles {
    files: PassthroughFs,
    /// Locks on the files of the host. Without it, locks are the guest's own.
    locks: Option<LockTable>,
}

impl SharedFiles {
    /// Opens the share in the mount namespace.
    pub(super) fn open(host_locks: bool) -> io::Result<SharedFiles> {
        Self::open_directory(SHARE, host_locks)
    }

    pub(super) fn open_directory(directory: &str, host_locks: bool) -> io::Result<SharedFiles> {
        let config = Config {
            root_dir: directory.to_owned(),
            entry_timeout: ENTRY_TIMEOUT,
            attr_timeout: ENTRY_TIMEOUT,
            dir_entry_timeout: Some(ENTRY_TIMEOUT),
            dir_attr_timeout: Some(DIRECTORY_ATTR_TIMEOUT),
            // With it, a write does not read the file's capabilities.
            killpriv_v2: true,
            // Inode numbers are the host's and stay the same at each start; git and rsync identify
            // files by them.
            use_host_ino: true,
            xattr: true,
            ..Config::default()
        };
        let files = PassthroughFs::new(config)?;
        Ok(SharedFiles { files, locks: host_locks.then(LockTable::default) })
    }

    fn features(&self) -> FsOptions {
        if self.locks.is_some() { FEATURES | LOCK_FEATURES } else { FEATURES }
    }

    /// Returns the lock table, without which no guest sends requests for locks.
    fn lock_table(&self) -> io::Result<&LockTable> {
        self.locks.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSYS))
    }

    /// Returns whether a lock was refused since the last call.
    pub(super) fn take_refused_lock(&self) -> bool {
        self.locks.as_ref().is_some_and(LockTable::take_refused)
    }

    /// Opens a file once more, for an owner of locks.
    fn open_for_locks(&self, context: &Context, inode: u64) -> io::Result<File> {
        let (attr, _) = self.files.getattr(context, inode, None)?;
        if attr.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(io::Error::from_raw_os_error(libc::ENOLCK));
        }
        open_again(&self.files.readlinkat_proc_file(inode)?, &attr)
    }

    /// Shows the modification time of an entry as [`LockTable`] requires.
    fn shift_mtime(&self, inode: u64, attr: &mut stat64) {
        if let Some(locks) = &self.locks {
            locks.shift_mtime(inode, attr);
        }
    }

    fn shifted(&self, mut entry: Entry) -> Entry {
        self.shift_mtime(entry.inode, &mut entry.attr);
        entry
    }
}

/// Passes requests on unchanged.
macro_rules! pass_on {
    ($(fn $name:ident(&self $(, $argument:ident: $type:ty)*) $(-> $answer:ty)?;)*) => {
        $(fn $name(&self $(, $argument: $type)*) $(-> $answer)? {
            self.files.$name($($argument),*)
        })*
    };
}

type OpenReply = io::Result<(Option<u64>, OpenOptions, Option<u32>)>;

// No request maps memory (SETUPMAPPING, REMOVEMAPPING): there is no DAX window. READDIRPLUS is not
// offered.
impl FileSystem for SharedFiles {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        // A guest that initializes again has no open files.
        self.destroy();
        // Only these features are enabled, and the server works without those that a guest lacks.
        self.files.init(capable & FEATURES)?;
        Ok(self.features())
    }

    /// Looks up an entry. A guest's kernel never asks for `.` and `..`, which it resolves itself.
    fn lookup(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        if matches!(name.to_bytes(), b"." | b"..") {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.files.lookup(context, parent, name).map(|entry| self.shifted(entry))
    }

    fn destroy(&self) {
        if let Some(locks) = &self.locks {
            locks.clear();
        }
        self.files.destroy();
    }

    fn forget(&self, context: &Context, inode: u64, count: u64) {
        self.files.forget(context, inode, count);
        if let Some(locks) = self.locks.as_ref().filter(|locks| locks.knows(inode))
            && self.files.getattr(context, inode, None).is_err()
        {
            locks.forget(inode);
        }
    }

    fn batch_forget(&self, context: &Context, requests: Vec<(u64, u64)>) {
        for (inode, count) in requests {
            self.forget(context, inode, count);
        }
    }

    fn getattr(
        &self,
        context: &Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        let (mut attr, timeout) = self.files.getattr(context, inode, handle)?;
        self.shift_mtime(inode, &mut attr);
        Ok((attr, timeout))
    }

    fn setattr(
        &self,
        context: &Context,
        inode: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        let (mut attr, timeout) = self.files.setattr(context, inode, attr, handle, valid)?;
        self.shift_mtime(inode, &mut attr);
        Ok((attr, timeout))
    }

    fn link(
        &self,
        context: &Context,
        inode: u64,
        new_parent: u64,
        new_name: &CStr,
    ) -> io::Result<Entry> {
        self.files.link(context, inode, new_parent, new_name).map(|entry| self.shifted(entry))
    }

    fn getlk(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        owner: u64,
        lock: FileLock,
        flags: u32,
    ) -> io::Result<FileLock> {
        let request = LockRequest { inode, handle, owner, lock, flags };
        self.lock_table()?.get(&request, || self.open_for_locks(context, inode))
    }

    /// Takes or releases a lock. The library calls this also for a guest that waits.
    fn setlk(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        owner: u64,
        lock: FileLock,
        flags: u32,
    ) -> io::Result<()> {
        let request = LockRequest { inode, handle, owner, lock, flags };
        self.lock_table()?.set(&request, || self.open_for_locks(context, inode))
    }

    /// Ends the use of a file by a process that closes a descriptor of it.
    fn flush(&self, context: &Context, inode: u64, handle: u64, lock_owner: u64) -> io::Result<()> {
        if let Some(locks) = &self.locks {
            locks.close(inode, lock_owner);
        }
        self.files.flush(context, inode, handle, lock_owner)
    }

    fn release(
        &self,
        context: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        if let Some(locks) = &self.locks {
            locks.release(inode, handle);
        }
        self.files.release(context, inode, flags, handle, flush, flock_release, lock_owner)
    }

    fn open(&self, context: &Context, inode: u64, flags: u32, fuse_flags: u32) -> OpenReply {
        let (handle, options, backing) = self.files.open(context, inode, flags, fuse_flags)?;
        let reads = flags & libc::O_ACCMODE.cast_unsigned() == libc::O_RDONLY.cast_unsigned();
        let no_flush = reads && self.locks.is_none();
        let options = if no_flush { options | FOPEN_NOFLUSH } else { options };
        Ok((handle, options, backing))
    }

    /// Reads a directory and looks up each entry. An entry that was removed meanwhile is left out.
    fn readdir(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        for _ in 1..READDIR_ATTEMPTS {
            let read = self.files.readdir(context, inode, handle, size, offset, add_entry);
            match read {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                read => return read,
            }
        }
        self.files.readdir(context, inode, handle, size, offset, add_entry)
    }

    pass_on! {
        fn readlink(&self, context: &Context, inode: u64) -> io::Result<Vec<u8>>;
        fn symlink(
            &self, context: &Context, target: &CStr, parent: u64, name: &CStr
        ) -> io::Result<Entry>;
        fn mknod(
            &self, context: &Context, parent: u64, name: &CStr, mode: u32, device: u32, umask: u32
        ) -> io::Result<Entry>;
        fn mkdir(
            &self, context: &Context, parent: u64, name: &CStr, mode: u32, umask: u32
        ) -> io::Result<Entry>;
        fn unlink(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<()>;
        fn rmdir(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<()>;
        fn rename(
            &self, context: &Context, parent: u64, name: &CStr, new_parent: u64, new_name: &CStr,
            flags: u32
        ) -> io::Result<()>;
        fn create(
            &self, context: &Context, parent: u64, name: &CStr, args: CreateIn
        ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)>;
        fn read(
            &self, context: &Context, inode: u64, handle: u64, writer: &mut dyn ZeroCopyWriter,
            size: u32, offset: u64, lock_owner: Option<u64>, flags: u32
        ) -> io::Result<usize>;
        fn write(
            &self, context: &Context, inode: u64, handle: u64, reader: &mut dyn ZeroCopyReader,
            size: u32, offset: u64, lock_owner: Option<u64>, delayed: bool, flags: u32,
            fuse_flags: u32
        ) -> io::Result<usize>;
        fn fsync(
            &self, context: &Context, inode: u64, data_only: bool, handle: u64
        ) -> io::Result<()>;
        fn fallocate(
            &self, context: &Context, inode: u64, handle: u64, mode: u32, offset: u64, length: u64
        ) -> io::Result<()>;
        fn statfs(&self, context: &Context, inode: u64) -> io::Result<statvfs64>;
        fn setxattr(
            &self, context: &Context, inode: u64, name: &CStr, value: &[u8], flags: u32
        ) -> io::Result<()>;
        fn getxattr(
            &self, context: &Context, inode: u64, name: &CStr, size: u32
        ) -> io::Result<GetxattrReply>;
        fn listxattr(&self, context: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply>;
        fn removexattr(&self, context: &Context, inode: u64, name: &CStr) -> io::Result<()>;
        fn opendir(
            &self, context: &Context, inode: u64, flags: u32
        ) -> io::Result<(Option<u64>, OpenOptions)>;
        fn fsyncdir(
            &self, context: &Context, inode: u64, data_only: bool, handle: u64
        ) -> io::Result<()>;
        fn releasedir(
            &self, context: &Context, inode: u64, flags: u32, handle: u64
        ) -> io::Result<()>;
        fn access(&self, context: &Context, inode: u64, mask: u32) -> io::Result<()>;
        fn lseek(
            &self, context: &Context, inode: u64, handle: u64, offset: u64, whence: u32
        ) -> io::Result<u64>;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_files_are_valid_for_no_time() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "x").unwrap();
        std::fs::create_dir(directory.path().join("sub")).unwrap();
        let files = SharedFiles::open_directory(directory.path().to_str().unwrap(), false).unwrap();
        let context = Context::default();
        files.init(FsOptions::all()).unwrap();
        let file = files.lookup(&context, 1, c"file").unwrap();
        assert_eq!((file.entry_timeout, file.attr_timeout), (ENTRY_TIMEOUT, ENTRY_TIMEOUT));
        assert_eq!(files.getattr(&context, file.inode, None).unwrap().1, ENTRY_TIMEOUT);
        let sub = files.lookup(&context, 1, c"sub").unwrap();
        assert_eq!((sub.entry_timeout, sub.attr_timeout), (ENTRY_TIMEOUT, DIRECTORY_ATTR_TIMEOUT));
        assert!(DIRECTORY_ATTR_TIMEOUT < Duration::from_millis(100));
    }

    #[test]
    fn a_name_with_a_slash_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("sub")).unwrap();
        let files = SharedFiles::open_directory(directory.path().to_str().unwrap(), false).unwrap();
        let context = Context::default();
        files.init(FsOptions::all()).unwrap();
        for name in [c"..", c"../etc", c"sub/..", c"/etc"] {
            assert!(files.lookup(&context, 1, name).is_err());
            assert!(files.mkdir(&context, 1, name, 0o755, 0).is_err());
            assert!(files.unlink(&context, 1, name).is_err());
        }
    }
}
