//! The receiver: writes a tree of files from records.
//!
//! The records may come from a hostile sender. Every step goes from an open directory to one name
//! in it, by openat2(2), which follows no link and does not leave the directory. So a symlink race
//! is not possible: a link that the other side or another process creates in the way is refused or
//! replaced, and never followed. A file gets its name once it is complete: it is written without a
//! name (or under a temporary one, where the file system lacks unnamed files) and then replaces the
//! previous file. Directories get their mode and time when they are complete.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags, chownat, fchmod, fchown, fsetxattr, fstat, ftruncate, futimens, linkat, mkdirat,
    open, openat, openat2, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, pwrite};
use rustix::process::geteuid;

use super::record::{DirectoryMeta, EntryMeta, Record, RecordReader, Severity};

/// Permission bits of a mode: read, write and execute for all.
const PERMISSIONS: u32 = 0o777;
/// `S_ISUID`.
const S_ISUID: u32 = 0o4000;
/// `S_ISGID`.
const S_ISGID: u32 = 0o2000;
/// `S_ISVTX`.
const S_ISVTX: u32 = 0o1000;

/// Limit of files of one copy that can get further hard links.
const LINKS_MAX: usize = 1 << 20;

/// Scope of the extended attributes that are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrScope {
    /// None.
    None,
    /// Names that start with `user.`, which have no meaning for the system.
    User,
    /// All that the system allows.
    All,
}

/// Options: metadata that is kept besides content, permissions and time.
#[derive(Clone, Copy, Debug)]
pub struct PreserveOptions {
    /// True to keep the owner, and the set-user-ID, set-group-ID and sticky bits.
    pub archive: bool,
    /// Extended attributes.
    pub attributes: XattrScope,
    /// Umask: permission bits that are cleared without `archive`, as by umask(2).
    pub umask: u32,
}

/// The result of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveReport {
    /// True if the whole tree was written.
    pub complete: bool,
    /// Files with the set-user-ID or set-group-ID bit, if any were written.
    pub privileged: Option<PrivilegedFiles>,
}

/// Files written with the set-user-ID or set-group-ID bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivilegedFiles {
    /// Number of the files.
    pub count: u64,
    /// Path of the first one.
    pub first: PathBuf,
}

/// The destination of a tree.
#[derive(Debug)]
pub struct Destination {
    directory: OwnedFd,
    /// Name in the directory that the tree gets. Without it, the directory is the tree's root.
    name: Option<Vec<u8>>,
    /// True if `name` is that of the source, and the user named the directory.
    below: bool,
    shown: PathBuf,
}

impl Destination {
    /// Opens a destination. The path is trusted and resolved as usual. If it is a directory, the
    /// tree is created below it under `name`, or without a name merged into it. If it does not
    /// exist, the tree is created under that path.
    pub fn open(
        path: &Path,
        name: Option<&[u8]>,
        must_be_directory: bool,
    ) -> Result<Destination, CopyError> {
        let cannot = |error: Errno| {
            let error = io::Error::from(error);
            CopyError(format!("cannot write to '{}': {error}", path.display()))
        };
        match open(path, DIRECTORY, Mode::empty()) {
            Ok(directory) => {
                return Ok(Destination {
                    directory,
                    name: name.map(<[u8]>::to_vec),
                    below: true,
                    shown: path.to_owned(),
                });
            }
            Err(Errno::NOENT | Errno::NOTDIR)
                if !must_be_directory && !path.as_os_str().as_bytes().ends_with(b"/") => {}
            Err(error) => return Err(cannot(error)),
        }
        let last = path.file_name().ok_or_else(|| cannot(Errno::INVAL))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Ok(Destination {
            directory: open(parent, DIRECTORY, Mode::empty()).map_err(cannot)?,
            name: Some(last.as_bytes().to_vec()),
            below: false,
            shown: path.to_owned(),
        })
    }
}

impl AsFd for Destination {
    /// Returns the directory that is written to.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// An error that ends a copy.
#[derive(Debug)]
pub struct CopyError(String);

impl CopyError {
    /// Returns an error with this text.
    pub fn new(text: impl Into<String>) -> CopyError {
        CopyError(text.into())
    }
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CopyError {}

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> CopyError {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            CopyError("the copy was interrupted".to_owned())
        } else {
            CopyError(error.to_string())
        }
    }
}

/// Receives a whole tree. Calls `report` for each entry that is missing afterwards.
pub fn tree<R: Read>(
    records: &mut RecordReader<R>,
    destination: Destination,
    keep: PreserveOptions,
    report: &mut dyn FnMut(Severity, &str),
) -> Result<ReceiveReport, CopyError> {
    let mut receiver = TreeReceiver {
        destination,
        keep,
        report,
        directories: Vec::new(),
        file: None,
        linkable: HashSet::new(),
        has_unnamed_files: true,
        temporaries: 0,
        complete: true,
        privileged: None,
    };
    let taken = receiver.take_all(records);
    receiver.abandon();
    taken.map(|()| ReceiveReport { complete: receiver.complete, privileged: receiver.privileged })
}

/// An open directory.
struct OpenDirectory {
    /// `None` if it could not be created: its contents are skipped.
    fd: Option<OwnedFd>,
    name: Vec<u8>,
    /// Metadata to set at the end, if this copy created the directory.
    made: Option<EntryMeta>,
}

/// A new file, and its name if it has one.
type NewFile = (OwnedFd, Option<Vec<u8>>);

/// An open file that is being written.
struct OpenFile {
    meta: EntryMeta,
    /// `None` if it could not be created: its content is skipped.
    fd: Option<OwnedFd>,
    /// Temporary name, where the file system lacks unnamed files.
    temporary: Option<Vec<u8>>,
    linked: bool,
    at: u64,
    size: u64,
    has_holes: bool,
}

struct TreeReceiver<'a> {
    destination: Destination,
    keep: PreserveOptions,
    report: &'a mut dyn FnMut(Severity, &str),
    directories: Vec<OpenDirectory>,
    file: Option<OpenFile>,
    /// Device and inode of files that this copy created and that can get further hard links.
    linkable: HashSet<(u64, u64)>,
    /// True if the file system supports unnamed files (`O_TMPFILE`).
    has_unnamed_files: bool,
    temporaries: u64,
    complete: bool,
    privileged: Option<PrivilegedFiles>,
}

impl TreeReceiver<'_> {
    fn take_all<R: Read>(&mut self, records: &mut RecordReader<R>) -> Result<(), CopyError> {
        loop {
            match records.next_record()? {
                Record::Directory(meta, existing) => self.enter(meta, existing)?,
                Record::DirectoryEnd => self.leave(),
                Record::File { meta, size, linked } => self.create_file(meta, size, linked)?,
                Record::Data(bytes) => self.data(bytes)?,
                Record::Hole(length) => self.hole(length)?,
                Record::Link(meta, target) => self.link(&meta, &target)?,
                Record::HardLink { name, path } => self.hard_link(&name, &path)?,
                Record::Problem(severity, text) => {
                    self.complete &= severity != Severity::Error;
                    (self.report)(severity, &text);
                }
                Record::Done => return Ok(()),
                Record::Failed(text) => return Err(CopyError(text)),
            }
        }
    }

    /// Returns the name that a record's entry gets. The sender cannot choose that of the root.
    fn final_name(&self, name: &[u8]) -> Option<Vec<u8>> {
        if self.directories.is_empty() {
            self.destination.name.clone()
        } else {
            Some(name.to_vec())
        }
    }

    /// Returns the open directory; `None` if its contents are skipped.
    fn current(&self) -> Option<BorrowedFd<'_>> {
        match self.directories.last() {
            Some(directory) => directory.fd.as_ref().map(AsFd::as_fd),
            None => Some(self.destination.directory.as_fd()),
        }
    }

    fn enter(&mut self, mut meta: EntryMeta, existing: DirectoryMeta) -> Result<(), CopyError> {
        let Some(name) = self.final_name(&meta.name) else {
            // The destination itself.
            let fd = self.destination.directory.try_clone().map_err(CopyError::from)?;
            self.directories.push(OpenDirectory { fd: Some(fd), name: Vec::new(), made: None });
            return Ok(());
        };
        let opened = self.current().map(|directory| make_directory(directory, &name));
        let (fd, made) = match opened {
            None => (None, false),
            Some(Ok((fd, made))) => (Some(fd), made),
            Some(Err(error)) => {
                self.failed(&name, "create the directory", error)?;
                (None, false)
            }
        };
        meta.name.clear();
        let made = (made && existing == DirectoryMeta::Known).then_some(meta);
        self.directories.push(OpenDirectory { fd, name, made });
        Ok(())
    }

    fn leave(&mut self) {
        let Some(directory) = self.directories.last() else {
            return;
        };
        if let (Some(fd), Some(meta)) = (&directory.fd, &directory.made)
            && let Err((what, error)) = self.apply_metadata(fd.as_fd(), meta)
        {
            self.problem(b"", &format!("cannot {what}"), error);
        }
        self.directories.pop();
    }

    fn create_file(
        &mut self,
        mut meta: EntryMeta,
        size: u64,
        linked: bool,
    ) -> Result<(), CopyError> {
        let Some(name) = self.final_name(&meta.name) else {
            return Err(CopyError(format!(
                "cannot write into '{}': the source is not a directory",
                self.destination.shown.display()
            )));
        };
        meta.name = name;
        let (fd, temporary) = match self.create() {
            Ok(Some((fd, temporary))) => (Some(fd), temporary),
            Ok(None) => (None, None),
            Err(error) => {
                self.failed(&meta.name, "make", error)?;
                (None, None)
            }
        };
        self.file = Some(OpenFile { meta, fd, temporary, linked, at: 0, size, has_holes: false });
        self.finish_if_whole()
    }

    /// Creates a file in the current directory. Returns its name too, if it needs one.
    fn create(&mut self) -> Result<Option<NewFile>, Errno> {
        if self.current().is_none() {
            return Ok(None);
        }
        let mode = Mode::RUSR | Mode::WUSR;
        if self.has_unnamed_files {
            let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
            match self.in_directory(|directory| openat(directory, ".", flags, mode)) {
                Ok(fd) => return Ok(Some((fd, None))),
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
                    self.has_unnamed_files = false;
                }
                Err(error) => return Err(error),
            }
        }
        let (fd, name) = self.with_temporary_name(|directory, name| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            open_child(directory, name, flags, mode)
        })?;
        Ok(Some((fd, Some(name))))
    }

    fn in_directory<T>(
        &self,
        act: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.current().map_or(Err(Errno::NOENT), act)
    }

    /// Creates an entry under an unused name.
    fn with_temporary_name<T>(
        &mut self,
        mut make: impl FnMut(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<(T, Vec<u8>), Errno> {
        loop {
            self.temporaries += 1;
            let name = format!(".msb-cp-{}-{}", std::process::id(), self.temporaries).into_bytes();
            match self.in_directory(|directory| make(directory, &name)) {
                Err(Errno::EXIST) => {}
                made => return made.map(|made| (made, name)),
            }
        }
    }

    fn data(&mut self, mut bytes: &[u8]) -> Result<(), CopyError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let end = file.at + bytes.len() as u64;
        let mut failure = None;
        while let Some(fd) = &file.fd
            && !bytes.is_empty()
        {
            match pwrite(fd, bytes, file.at) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    file.at += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        file.at = end;
        if let Some(error) = failure {
            let name = file.meta.name.clone();
            self.drop_file();
            self.failed(&name, "write", error)?;
        }
        self.finish_if_whole()
    }

    fn hole(&mut self, length: u64) -> Result<(), CopyError> {
        if let Some(file) = &mut self.file {
            file.at += length;
            file.has_holes = true;
        }
        self.finish_if_whole()
    }

    fn finish_if_whole(&mut self) -> Result<(), CopyError> {
        let Some(file) = self.file.take_if(|file| file.at >= file.size) else {
            return Ok(());
        };
        let Some(fd) = &file.fd else { return Ok(()) };
        let finished = self.finish(&file, fd);
        if let Err((what, error)) = finished {
            self.remove_temporary(&file);
            self.failed(&file.meta.name, what, error)?;
        }
        Ok(())
    }

    fn finish(&mut self, file: &OpenFile, fd: &OwnedFd) -> Result<(), (&'static str, Errno)> {
        if file.has_holes {
            ftruncate(fd, file.size).map_err(|error| ("set the size of", error))?;
        }
        if let Err((what, error)) = self.apply_metadata(fd.as_fd(), &file.meta) {
            self.problem(&file.meta.name, &format!("cannot {what}"), error);
        }
        match &file.temporary {
            Some(temporary) => self.rename(temporary, &file.meta.name),
            None => self.give_name(fd, &file.meta.name),
        }
        .map_err(|error| ("rename", error))?;
        if self.mode_of(&file.meta, true) & (S_ISUID | S_ISGID) != 0 {
            self.count_privileged(&file.meta.name);
        }
        if file.linked
            && self.linkable.len() < LINKS_MAX
            && let Ok(stat) = fstat(fd)
        {
            self.linkable.insert((stat.st_dev, stat.st_ino));
        }
        Ok(())
    }

    /// Gives an unnamed file its name and replaces an existing entry.
    fn give_name(&mut self, fd: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let link = |directory: BorrowedFd<'_>, name: &[u8]| {
            let name = OsStr::from_bytes(name);
            linkat(CWD, &source, directory, name, AtFlags::SYMLINK_FOLLOW)
        };
        match self.in_directory(|directory| link(directory, name)) {
            Err(Errno::EXIST) => {}
            linked => return linked,
        }
        let ((), temporary) = self.with_temporary_name(link)?;
        self.replace(&temporary, name)
    }

    fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), Errno> {
        let (from, to) = (OsStr::from_bytes(from), OsStr::from_bytes(to));
        self.in_directory(|directory| renameat(directory, from, directory, to))
    }

    /// Renames an entry from its temporary to its final name. Removes it if that fails.
    fn replace(&self, temporary: &[u8], name: &[u8]) -> Result<(), Errno> {
        let renamed = self.rename(temporary, name);
        // Removes the temporary name also after success: rename(2) does nothing if both names are
        // the same file.
        let _ = self.in_directory(|directory| {
            unlinkat(directory, OsStr::from_bytes(temporary), AtFlags::empty())
        });
        renamed
    }

    fn link(&mut self, meta: &EntryMeta, target: &[u8]) -> Result<(), CopyError> {
        let Some(name) = self.final_name(&meta.name) else {
            return Err(CopyError(format!(
                "cannot write into '{}': the source is not a directory",
                self.destination.shown.display()
            )));
        };
        if self.current().is_none() {
            return Ok(());
        }
        let target = OsStr::from_bytes(target);
        let made = self.with_temporary_name(|directory, name| {
            symlinkat(target, directory, OsStr::from_bytes(name))
        });
        let placed = made.and_then(|((), temporary)| {
            self.apply_link_metadata(&temporary, meta);
            self.replace(&temporary, &name)
        });
        match placed {
            Ok(()) => Ok(()),
            Err(error) => self.failed(&name, "create the link", error),
        }
    }

    /// Sets the owner and time of a link. Errors are ignored: nothing depends on them.
    fn apply_link_metadata(&self, name: &[u8], meta: &EntryMeta) {
        let name = OsStr::from_bytes(name);
        let _ = self.in_directory(|directory| {
            if self.keep.archive {
                let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
                let _ = chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
            }
            utimensat(directory, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW)
        });
    }

    fn hard_link(&mut self, name: &[u8], path: &[Vec<u8>]) -> Result<(), CopyError> {
        if self.current().is_none() {
            return Ok(());
        }
        match self.create_hard_link(name, path) {
            Ok(()) => Ok(()),
            Err(error) => self.failed(name, "create the hard link", error),
        }
    }

    fn create_hard_link(&mut self, name: &[u8], path: &[Vec<u8>]) -> Result<(), Errno> {
        let Some((last, above)) = path.split_last() else {
            return Err(Errno::NOENT);
        };
        let root = self.directories.first().and_then(|root| root.fd.as_ref());
        let mut directory = root.ok_or(Errno::NOENT)?.try_clone().map_err(|_| Errno::MFILE)?;
        for name in above {
            directory = open_child(
                directory.as_fd(),
                name,
                OFlags::PATH | OFlags::DIRECTORY,
                Mode::empty(),
            )?;
        }
        let last = OsStr::from_bytes(last);
        let stat = statat(&directory, last, AtFlags::SYMLINK_NOFOLLOW)?;
        // Only files that this copy created get further links, not files that existed before.
        if !self.linkable.contains(&(stat.st_dev, stat.st_ino)) {
            return Err(Errno::NOENT);
        }
        let ((), temporary) = self.with_temporary_name(|to, name| {
            linkat(&directory, last, to, OsStr::from_bytes(name), AtFlags::empty())
        })?;
        self.replace(&temporary, name)
    }

    /// Sets owner, mode, attributes and time, in an order in which no step undoes another.
    fn apply_metadata(
        &self,
        fd: BorrowedFd<'_>,
        meta: &EntryMeta,
    ) -> Result<(), (&'static str, Errno)> {
        let mut owned = false;
        // A user other than root owns all that it writes.
        if self.keep.archive && geteuid().is_root() {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            fchown(fd, Some(uid), Some(gid)).map_err(|error| ("set the owner of", error))?;
            owned = true;
        }
        fchmod(fd, Mode::from_raw_mode(self.mode_of(meta, owned)))
            .map_err(|error| ("set the mode of", error))?;
        self.set_attributes(fd, meta)?;
        futimens(fd, &times(meta)).map_err(|error| ("set the time of", error))
    }

    /// Returns the mode to set. A set-user-ID program of an owner other than the sender's would run
    /// as a user whom the sender did not choose. So these bits need `owned`: owner and group are
    /// those of the source (POSIX, `cp -p`).
    fn mode_of(&self, meta: &EntryMeta, owned: bool) -> u32 {
        if !self.keep.archive {
            meta.mode & PERMISSIONS & !self.keep.umask
        } else if owned && geteuid().is_root() {
            meta.mode & (PERMISSIONS | S_ISUID | S_ISGID | S_ISVTX)
        } else {
            meta.mode & (PERMISSIONS | S_ISVTX)
        }
    }

    fn count_privileged(&mut self, name: &[u8]) {
        match &mut self.privileged {
            Some(files) => files.count += 1,
            None => {
                let first = self.path_of(name);
                self.privileged = Some(PrivilegedFiles { count: 1, first });
            }
        }
    }

    fn set_attributes(
        &self,
        fd: BorrowedFd<'_>,
        meta: &EntryMeta,
    ) -> Result<(), (&'static str, Errno)> {
        for (name, value) in &meta.xattrs {
            let wanted = match self.keep.attributes {
                XattrScope::None => false,
                XattrScope::User => name.starts_with(b"user."),
                XattrScope::All => true,
            };
            if wanted {
                fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty())
                    .map_err(|error| ("set an attribute of", error))?;
            }
        }
        Ok(())
    }

    /// Reports a failure. A destination that cannot take more data ends the copy.
    fn failed(&mut self, name: &[u8], what: &str, error: Errno) -> Result<(), CopyError> {
        let at_root = self.directories.is_empty();
        let is_fatal = matches!(error, Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::IO);
        if at_root || is_fatal {
            return Err(CopyError(self.describe(name, &format!("cannot {what}"), error)));
        }
        self.problem(name, &format!("cannot {what}"), error);
        Ok(())
    }

    fn problem(&mut self, name: &[u8], what: &str, error: Errno) {
        self.complete = false;
        let text = self.describe(name, what, error);
        (self.report)(Severity::Error, &text);
    }

    /// Returns the path of an entry in the current directory, for messages.
    fn path_of(&self, name: &[u8]) -> PathBuf {
        let mut path = self.destination.shown.clone();
        let names = self.directories.iter().map(|directory| directory.name.as_slice());
        let mut names: Vec<&[u8]> = names.chain([name]).collect();
        if !self.destination.below {
            names.remove(0);
        }
        path.extend(names.into_iter().filter(|name| !name.is_empty()).map(OsStr::from_bytes));
        path
    }

    fn describe(&self, name: &[u8], what: &str, error: Errno) -> String {
        let path = self.path_of(name);
        let why = match error {
            Errno::LOOP => "it is a symbolic link".to_owned(),
            Errno::NOTDIR => "it exists and is not a directory".to_owned(),
            Errno::ISDIR => "it is a directory".to_owned(),
            error => io::Error::from(error).to_string(),
        };
        format!("{what} '{}': {why}", path.display())
    }

    fn drop_file(&mut self) {
        if let Some(file) = &mut self.file {
            file.fd = None;
        }
        if let Some(file) = self.file.take() {
            self.remove_temporary(&file);
            self.file = Some(OpenFile { temporary: None, ..file });
        }
    }

    fn remove_temporary(&self, file: &OpenFile) {
        if let Some(name) = &file.temporary {
            let _ = self.in_directory(|directory| {
                unlinkat(directory, OsStr::from_bytes(name), AtFlags::empty())
            });
        }
    }

    /// Removes incomplete files and restores the mode of directories.
    fn abandon(&mut self) {
        self.drop_file();
        self.file = None;
        while !self.directories.is_empty() {
            self.leave();
        }
    }
}

fn make_directory(above: BorrowedFd<'_>, name: &[u8]) -> Result<(OwnedFd, bool), Errno> {
    let made = match mkdirat(above, OsStr::from_bytes(name), Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    open_child(above, name, flags, Mode::empty()).map(|fd| (fd, made))
}

/// Opens one name in a directory without following links.
fn open_child(
    directory: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    openat2(
        directory,
        OsStr::from_bytes(name),
        flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        mode,
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

fn times(meta: &EntryMeta) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: meta.mtime_s, tv_nsec: meta.mtime_ns.into() },
    }
}
