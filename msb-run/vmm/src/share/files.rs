//! The file system that a guest sees: fuse-backend-rs's, with the validity times that host and guests need to agree.
//!
//! A guest's kernel keeps what LOOKUP and GETATTR answer for as long as the answer says, and nothing takes it back: the
//! virtio device has no notifications (virtio 1.2, 5.11). So no entry is valid beyond the system call that looked it up:
//! each path is walked on the host, and a name leads to what it is there. Attributes of files are not kept either. With
//! them a read of an open file would take old data from the guest's page cache, although a lock says that it may read:
//! the kernel drops pages when a fresh size or modification time differs (FUSE_AUTO_INVAL_DATA).

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::CreateIn;
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use fuse_backend_rs::passthrough::{Config, PassthroughFs};
use libc::{stat64, statvfs64};

use super::stage::SHARE;

/// How long a guest may use what it knows of an entry, and of a file, without asking.
const VALID: Duration = Duration::ZERO;
/// The same of a directory's attributes, of which a guest reads owner and mode at each step of a path. Walking a path
/// refreshes them; what the time saves is a second request at each step.
const DIRECTORY_VALID: Duration = Duration::from_millis(10);

/// How often a directory is read again when an entry vanished while it was looked up.
const READDIR_TRIES: usize = 16;

/// What the server and the guest's kernel both do. READDIRPLUS is missing: its entries would be looked up again.
const FEATURES: FsOptions = FsOptions::ASYNC_READ
    .union(FsOptions::PARALLEL_DIROPS)
    .union(FsOptions::BIG_WRITES)
    .union(FsOptions::AUTO_INVAL_DATA)
    .union(FsOptions::ASYNC_DIO)
    .union(FsOptions::ATOMIC_O_TRUNC)
    .union(FsOptions::MAX_PAGES)
    .union(FsOptions::HANDLE_KILLPRIV_V2);

/// The guest asks nothing when it closes a file that was open for reading (FOPEN_NOFLUSH of linux/fuse.h): there is nothing
/// to write, and locks are its own.
// SAFETY: any bits make flags of this type, which is a number; the library passes them on.
const NO_FLUSH: OpenOptions = unsafe { OpenOptions::from_bits_unchecked(1 << 5) };

/// What is shared, as requests see it.
pub(super) struct SharedFiles(PassthroughFs);

impl SharedFiles {
    /// Opens what stands on the stage.
    pub(super) fn open() -> io::Result<SharedFiles> {
        Self::open_directory(SHARE)
    }

    pub(super) fn open_directory(directory: &str) -> io::Result<SharedFiles> {
        let config = Config {
            root_dir: directory.to_owned(),
            entry_timeout: VALID,
            attr_timeout: VALID,
            dir_entry_timeout: Some(VALID),
            dir_attr_timeout: Some(DIRECTORY_VALID),
            // With it a write costs no look at the file's capabilities.
            killpriv_v2: true,
            // Numbers of files are the host's, the same at each start, by which git and rsync know a file.
            use_host_ino: true,
            xattr: true,
            ..Config::default()
        };
        PassthroughFs::new(config).map(SharedFiles)
    }
}

/// Passes requests on as they are.
macro_rules! pass_on {
    ($(fn $name:ident(&self $(, $argument:ident: $type:ty)*) $(-> $answer:ty)?;)*) => {
        $(fn $name(&self $(, $argument: $type)*) $(-> $answer)? {
            self.0.$name($($argument),*)
        })*
    };
}

type Opened = io::Result<(Option<u64>, OpenOptions, Option<u32>)>;

// No request maps memory (SETUPMAPPING, REMOVEMAPPING): there is no window. READDIRPLUS is not offered.
impl FileSystem for SharedFiles {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        // A guest that starts over has nothing open.
        self.0.destroy();
        // It wants less than it can do; and with a guest that lacks a feature it does without.
        self.0.init(capable & FEATURES)?;
        Ok(FEATURES)
    }

    /// Looks an entry up. A guest's kernel asks for neither `.` nor `..`, which it knows itself.
    fn lookup(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        if matches!(name.to_bytes(), b"." | b"..") {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.0.lookup(context, parent, name)
    }

    fn open(&self, context: &Context, inode: u64, flags: u32, fuse_flags: u32) -> Opened {
        let (handle, options, backing) = self.0.open(context, inode, flags, fuse_flags)?;
        let reads = flags & libc::O_ACCMODE.cast_unsigned() == libc::O_RDONLY.cast_unsigned();
        let options = if reads { options | NO_FLUSH } else { options };
        Ok((handle, options, backing))
    }

    /// Reads a directory, of which each entry is looked up. One that was removed meanwhile is none.
    fn readdir(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        for _ in 1..READDIR_TRIES {
            let read = self
                .0
                .readdir(context, inode, handle, size, offset, add_entry);
            match read {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                read => return read,
            }
        }
        self.0
            .readdir(context, inode, handle, size, offset, add_entry)
    }

    pass_on! {
        fn destroy(&self);
        fn forget(&self, context: &Context, inode: u64, count: u64);
        fn batch_forget(&self, context: &Context, requests: Vec<(u64, u64)>);
        fn getattr(&self, context: &Context, inode: u64, handle: Option<u64>) -> io::Result<(stat64, Duration)>;
        fn setattr(&self, context: &Context, inode: u64, attr: stat64, handle: Option<u64>, valid: SetattrValid) -> io::Result<(stat64, Duration)>;
        fn readlink(&self, context: &Context, inode: u64) -> io::Result<Vec<u8>>;
        fn symlink(&self, context: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry>;
        fn mknod(&self, context: &Context, parent: u64, name: &CStr, mode: u32, device: u32, umask: u32) -> io::Result<Entry>;
        fn mkdir(&self, context: &Context, parent: u64, name: &CStr, mode: u32, umask: u32) -> io::Result<Entry>;
        fn unlink(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<()>;
        fn rmdir(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<()>;
        fn rename(&self, context: &Context, parent: u64, name: &CStr, new_parent: u64, new_name: &CStr, flags: u32) -> io::Result<()>;
        fn link(&self, context: &Context, inode: u64, new_parent: u64, new_name: &CStr) -> io::Result<Entry>;
        fn create(&self, context: &Context, parent: u64, name: &CStr, args: CreateIn) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)>;
        fn read(&self, context: &Context, inode: u64, handle: u64, writer: &mut dyn ZeroCopyWriter, size: u32, offset: u64, lock_owner: Option<u64>, flags: u32) -> io::Result<usize>;
        fn write(&self, context: &Context, inode: u64, handle: u64, reader: &mut dyn ZeroCopyReader, size: u32, offset: u64, lock_owner: Option<u64>, delayed: bool, flags: u32, fuse_flags: u32) -> io::Result<usize>;
        fn flush(&self, context: &Context, inode: u64, handle: u64, lock_owner: u64) -> io::Result<()>;
        fn fsync(&self, context: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()>;
        fn fallocate(&self, context: &Context, inode: u64, handle: u64, mode: u32, offset: u64, length: u64) -> io::Result<()>;
        fn release(&self, context: &Context, inode: u64, flags: u32, handle: u64, flush: bool, flock_release: bool, lock_owner: Option<u64>) -> io::Result<()>;
        fn statfs(&self, context: &Context, inode: u64) -> io::Result<statvfs64>;
        fn setxattr(&self, context: &Context, inode: u64, name: &CStr, value: &[u8], flags: u32) -> io::Result<()>;
        fn getxattr(&self, context: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply>;
        fn listxattr(&self, context: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply>;
        fn removexattr(&self, context: &Context, inode: u64, name: &CStr) -> io::Result<()>;
        fn opendir(&self, context: &Context, inode: u64, flags: u32) -> io::Result<(Option<u64>, OpenOptions)>;
        fn fsyncdir(&self, context: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()>;
        fn releasedir(&self, context: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()>;
        fn access(&self, context: &Context, inode: u64, mask: u32) -> io::Result<()>;
        fn lseek(&self, context: &Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64>;
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
        let files = SharedFiles::open_directory(directory.path().to_str().unwrap()).unwrap();
        let context = Context::default();
        files.init(FsOptions::all()).unwrap();
        let file = files.lookup(&context, 1, c"file").unwrap();
        assert_eq!((file.entry_timeout, file.attr_timeout), (VALID, VALID));
        assert_eq!(files.getattr(&context, file.inode, None).unwrap().1, VALID);
        let sub = files.lookup(&context, 1, c"sub").unwrap();
        assert_eq!(
            (sub.entry_timeout, sub.attr_timeout),
            (VALID, DIRECTORY_VALID)
        );
        assert!(DIRECTORY_VALID < Duration::from_millis(100));
    }

    #[test]
    fn a_name_with_a_slash_is_none() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("sub")).unwrap();
        let files = SharedFiles::open_directory(directory.path().to_str().unwrap()).unwrap();
        let context = Context::default();
        files.init(FsOptions::all()).unwrap();
        for name in [c"..", c"../etc", c"sub/..", c"/etc"] {
            assert!(files.lookup(&context, 1, name).is_err());
            assert!(files.mkdir(&context, 1, name, 0o755, 0).is_err());
            assert!(files.unlink(&context, 1, name).is_err());
        }
    }
}
