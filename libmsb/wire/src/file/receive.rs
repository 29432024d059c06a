//! From records to files: what a tree becomes at its destination.
//!
//! The records may come from a liar. Every step goes from an open folder to one name in it, by openat2(2) that follows
//! no link and leaves nothing; so whatever stands in the way, be it a link that was made a moment ago by the other side
//! or by somebody else, is refused or replaced and never gone through. A file gets its name when it is whole: it is
//! written without a name (or, where the file system cannot do that, under a temporary one) and then takes the place of
//! what was there. Folders get their mode and time when they are complete.

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

use super::record::{Existing, Meta, Record, RecordReader, Severity};

/// Bits of a mode: read, write and execute for all.
const PERMISSIONS: u32 = 0o777;
/// `S_ISUID`.
const SET_USER_ID: u32 = 0o4000;
/// `S_ISGID`.
const SET_GROUP_ID: u32 = 0o2000;
/// `S_ISVTX`.
const STICKY: u32 = 0o1000;

/// Files of one copy that may be linked again. Those beyond cannot.
const LINKS_MAX: usize = 1 << 20;

/// Which extended attributes are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attributes {
    /// None.
    None,
    /// Those that mean nothing to the system: names that begin with `user.`.
    User,
    /// All that the system lets us set.
    All,
}

/// What is kept beside content, permissions and time.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Owner, and the bits set-user-id, set-group-id and sticky.
    pub archive: bool,
    /// Extended attributes.
    pub attributes: Attributes,
    /// Permission bits that are cleared without `archive`, as by umask(2).
    pub umask: u32,
}

/// The result of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// All of the tree is there now.
    pub complete: bool,
    /// The files that run as another user, if any was written.
    pub privileged: Option<PrivilegedFiles>,
}

/// Files that got the bit set-user-id or set-group-id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivilegedFiles {
    /// How many were written.
    pub count: u64,
    /// The path of the first one.
    pub first: PathBuf,
}

/// Where a tree goes.
#[derive(Debug)]
pub struct Destination {
    folder: OwnedFd,
    /// The name in the folder that the tree takes; without it, the folder is the tree's root.
    name: Option<Vec<u8>>,
    /// `name` is that of the source, and the folder was named by the user.
    below: bool,
    shown: PathBuf,
}

impl Destination {
    /// Opens the place that a path names, which is trusted and resolved as any. If it is a folder, the tree goes below
    /// it under `name`, or without a name becomes part of it. If it is not there, the tree becomes what the path says.
    pub fn open(
        path: &Path,
        name: Option<&[u8]>,
        must_be_folder: bool,
    ) -> Result<Destination, CopyError> {
        let cannot = |error: Errno| {
            let error = io::Error::from(error);
            CopyError(format!("cannot write to '{}': {error}", path.display()))
        };
        match open(path, FOLDER, Mode::empty()) {
            Ok(folder) => {
                return Ok(Destination {
                    folder,
                    name: name.map(<[u8]>::to_vec),
                    below: true,
                    shown: path.to_owned(),
                });
            }
            Err(Errno::NOENT | Errno::NOTDIR)
                if !must_be_folder && !path.as_os_str().as_bytes().ends_with(b"/") => {}
            Err(error) => return Err(cannot(error)),
        }
        let last = path.file_name().ok_or_else(|| cannot(Errno::INVAL))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Ok(Destination {
            folder: open(parent, FOLDER, Mode::empty()).map_err(cannot)?,
            name: Some(last.as_bytes().to_vec()),
            below: false,
            shown: path.to_owned(),
        })
    }
}

impl AsFd for Destination {
    /// The folder that is written to.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// Why a copy cannot go on.
#[derive(Debug)]
pub struct CopyError(String);

impl CopyError {
    /// An error with this text.
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
            CopyError("the copy was broken off".to_owned())
        } else {
            CopyError(error.to_string())
        }
    }
}

/// Takes a tree to its end; `report` hears of what is not there afterwards.
pub fn tree<R: Read>(
    records: &mut RecordReader<R>,
    destination: Destination,
    keep: Keep,
    report: &mut dyn FnMut(Severity, &str),
) -> Result<Received, CopyError> {
    let mut receiver = Receiver {
        destination,
        keep,
        report,
        folders: Vec::new(),
        file: None,
        linkable: HashSet::new(),
        nameless: true,
        temporaries: 0,
        complete: true,
        privileged: None,
    };
    let taken = receiver.take_all(records);
    receiver.abandon();
    taken.map(|()| Received {
        complete: receiver.complete,
        privileged: receiver.privileged,
    })
}

/// A folder that is open.
struct Folder {
    /// `None` when it could not be made: what is in it is passed over.
    fd: Option<OwnedFd>,
    name: Vec<u8>,
    /// For one that we made: what it is to be like in the end.
    made: Option<Meta>,
}

/// A file that was just made, and its name if it has one.
type NewFile = (OwnedFd, Option<Vec<u8>>);

/// A file that is being written.
struct OpenFile {
    meta: Meta,
    /// `None` when it could not be made: its content is passed over.
    fd: Option<OwnedFd>,
    /// Its name so far, where files cannot be without one.
    temporary: Option<Vec<u8>>,
    linked: bool,
    at: u64,
    size: u64,
    has_holes: bool,
}

struct Receiver<'a> {
    destination: Destination,
    keep: Keep,
    report: &'a mut dyn FnMut(Severity, &str),
    folders: Vec<Folder>,
    file: Option<OpenFile>,
    /// Device and number of the files that this copy made and that may get further names.
    linkable: HashSet<(u64, u64)>,
    /// Whether the file system has files without a name.
    nameless: bool,
    temporaries: u64,
    complete: bool,
    privileged: Option<PrivilegedFiles>,
}

impl Receiver<'_> {
    fn take_all<R: Read>(&mut self, records: &mut RecordReader<R>) -> Result<(), CopyError> {
        loop {
            match records.next_record()? {
                Record::Folder(meta, existing) => self.enter(meta, existing)?,
                Record::Up => self.leave(),
                Record::File { meta, size, linked } => self.begin_file(meta, size, linked)?,
                Record::Data(bytes) => self.data(bytes)?,
                Record::Hole(length) => self.hole(length)?,
                Record::Link(meta, target) => self.link(&meta, &target)?,
                Record::Again { name, path } => self.again(&name, &path)?,
                Record::Problem(severity, text) => {
                    self.complete &= severity != Severity::Error;
                    (self.report)(severity, &text);
                }
                Record::Done => return Ok(()),
                Record::Failed(text) => return Err(CopyError(text)),
            }
        }
    }

    /// The name that a record's file or folder gets: the root's is not the sender's to choose.
    fn final_name(&self, name: &[u8]) -> Option<Vec<u8>> {
        if self.folders.is_empty() {
            self.destination.name.clone()
        } else {
            Some(name.to_vec())
        }
    }

    /// The folder that is open; `None` when it is passed over.
    fn current(&self) -> Option<BorrowedFd<'_>> {
        match self.folders.last() {
            Some(folder) => folder.fd.as_ref().map(AsFd::as_fd),
            None => Some(self.destination.folder.as_fd()),
        }
    }

    fn enter(&mut self, mut meta: Meta, existing: Existing) -> Result<(), CopyError> {
        let Some(name) = self.final_name(&meta.name) else {
            // The destination itself.
            let fd = self
                .destination
                .folder
                .try_clone()
                .map_err(CopyError::from)?;
            self.folders.push(Folder {
                fd: Some(fd),
                name: Vec::new(),
                made: None,
            });
            return Ok(());
        };
        let opened = self.current().map(|folder| make_folder(folder, &name));
        let (fd, made) = match opened {
            None => (None, false),
            Some(Ok((fd, made))) => (Some(fd), made),
            Some(Err(error)) => {
                self.failed(&name, "make the folder", error)?;
                (None, false)
            }
        };
        meta.name.clear();
        let made = (made && existing == Existing::Known).then_some(meta);
        self.folders.push(Folder { fd, name, made });
        Ok(())
    }

    fn leave(&mut self) {
        let Some(folder) = self.folders.last() else {
            return;
        };
        if let (Some(fd), Some(meta)) = (&folder.fd, &folder.made)
            && let Err((what, error)) = self.dress(fd.as_fd(), meta)
        {
            self.problem(b"", &format!("cannot {what}"), error);
        }
        self.folders.pop();
    }

    fn begin_file(&mut self, mut meta: Meta, size: u64, linked: bool) -> Result<(), CopyError> {
        let Some(name) = self.final_name(&meta.name) else {
            return Err(CopyError(format!(
                "what was to be put into '{}' is no folder",
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
        self.file = Some(OpenFile {
            meta,
            fd,
            temporary,
            linked,
            at: 0,
            size,
            has_holes: false,
        });
        self.finish_if_whole()
    }

    /// A new file in the current folder, and its name if it needs one.
    fn create(&mut self) -> Result<Option<NewFile>, Errno> {
        if self.current().is_none() {
            return Ok(None);
        }
        let mode = Mode::RUSR | Mode::WUSR;
        if self.nameless {
            let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
            match self.with_folder(|folder| openat(folder, ".", flags, mode)) {
                Ok(fd) => return Ok(Some((fd, None))),
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
                    self.nameless = false;
                }
                Err(error) => return Err(error),
            }
        }
        let (fd, name) = self.under_new_name(|folder, name| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            open_child(folder, name, flags, mode)
        })?;
        Ok(Some((fd, Some(name))))
    }

    fn with_folder<T>(
        &self,
        act: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.current().map_or(Err(Errno::NOENT), act)
    }

    /// Makes something under a name that nobody uses.
    fn under_new_name<T>(
        &mut self,
        mut make: impl FnMut(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<(T, Vec<u8>), Errno> {
        loop {
            self.temporaries += 1;
            let name = format!(".msb-cp-{}-{}", std::process::id(), self.temporaries).into_bytes();
            match self.with_folder(|folder| make(folder, &name)) {
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
        if let Err((what, error)) = self.dress(fd.as_fd(), &file.meta) {
            self.problem(&file.meta.name, &format!("cannot {what}"), error);
        }
        match &file.temporary {
            Some(temporary) => self.rename(temporary, &file.meta.name),
            None => self.give_name(fd, &file.meta.name),
        }
        .map_err(|error| ("put into its place", error))?;
        if self.mode_of(&file.meta, true) & (SET_USER_ID | SET_GROUP_ID) != 0 {
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

    /// Gives a file without a name one, in the place of whatever has it.
    fn give_name(&mut self, fd: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let link = |folder: BorrowedFd<'_>, name: &[u8]| {
            let name = OsStr::from_bytes(name);
            linkat(CWD, &source, folder, name, AtFlags::SYMLINK_FOLLOW)
        };
        match self.with_folder(|folder| link(folder, name)) {
            Err(Errno::EXIST) => {}
            linked => return linked,
        }
        let ((), temporary) = self.under_new_name(link)?;
        self.replace(&temporary, name)
    }

    fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), Errno> {
        let (from, to) = (OsStr::from_bytes(from), OsStr::from_bytes(to));
        self.with_folder(|folder| renameat(folder, from, folder, to))
    }

    /// Moves what has a temporary name to its final one; it is gone if that fails.
    fn replace(&self, temporary: &[u8], name: &[u8]) -> Result<(), Errno> {
        let renamed = self.rename(temporary, name);
        // Also when it worked: two names of one file are left as they are by rename(2).
        let _ = self
            .with_folder(|folder| unlinkat(folder, OsStr::from_bytes(temporary), AtFlags::empty()));
        renamed
    }

    fn link(&mut self, meta: &Meta, target: &[u8]) -> Result<(), CopyError> {
        let Some(name) = self.final_name(&meta.name) else {
            return Err(CopyError(format!(
                "what was to be put into '{}' is no folder",
                self.destination.shown.display()
            )));
        };
        if self.current().is_none() {
            return Ok(());
        }
        let target = OsStr::from_bytes(target);
        let made =
            self.under_new_name(|folder, name| symlinkat(target, folder, OsStr::from_bytes(name)));
        let placed = made.and_then(|((), temporary)| {
            self.dress_link(&temporary, meta);
            self.replace(&temporary, &name)
        });
        match placed {
            Ok(()) => Ok(()),
            Err(error) => self.failed(&name, "make the link", error),
        }
    }

    /// Owner and time of a link: nothing depends on them.
    fn dress_link(&self, name: &[u8], meta: &Meta) {
        let name = OsStr::from_bytes(name);
        let _ = self.with_folder(|folder| {
            if self.keep.archive {
                let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
                let _ = chownat(
                    folder,
                    name,
                    Some(uid),
                    Some(gid),
                    AtFlags::SYMLINK_NOFOLLOW,
                );
            }
            utimensat(folder, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW)
        });
    }

    fn again(&mut self, name: &[u8], path: &[Vec<u8>]) -> Result<(), CopyError> {
        if self.current().is_none() {
            return Ok(());
        }
        match self.link_again(name, path) {
            Ok(()) => Ok(()),
            Err(error) => self.failed(name, "make the hard link", error),
        }
    }

    fn link_again(&mut self, name: &[u8], path: &[Vec<u8>]) -> Result<(), Errno> {
        let Some((last, above)) = path.split_last() else {
            return Err(Errno::NOENT);
        };
        let root = self.folders.first().and_then(|root| root.fd.as_ref());
        let mut folder = root
            .ok_or(Errno::NOENT)?
            .try_clone()
            .map_err(|_| Errno::MFILE)?;
        for name in above {
            folder = open_child(
                folder.as_fd(),
                name,
                OFlags::PATH | OFlags::DIRECTORY,
                Mode::empty(),
            )?;
        }
        let last = OsStr::from_bytes(last);
        let stat = statat(&folder, last, AtFlags::SYMLINK_NOFOLLOW)?;
        // Only what this copy has made gets further names: not what was there before.
        if !self.linkable.contains(&(stat.st_dev, stat.st_ino)) {
            return Err(Errno::NOENT);
        }
        let ((), temporary) = self.under_new_name(|to, name| {
            linkat(&folder, last, to, OsStr::from_bytes(name), AtFlags::empty())
        })?;
        self.replace(&temporary, name)
    }

    /// Owner, mode, attributes and time, in the order in which one does not undo the other.
    fn dress(&self, fd: BorrowedFd<'_>, meta: &Meta) -> Result<(), (&'static str, Errno)> {
        let mut owned = false;
        // Who is not root owns all that they write.
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

    /// Returns the mode to set. A set-user-id program of another owner than the sender's would run as somebody whom the
    /// sender did not choose, so these bits need `owned`: owner and group are those of the source (POSIX, `cp -p`).
    fn mode_of(&self, meta: &Meta, owned: bool) -> u32 {
        if !self.keep.archive {
            meta.mode & PERMISSIONS & !self.keep.umask
        } else if owned && geteuid().is_root() {
            meta.mode & (PERMISSIONS | SET_USER_ID | SET_GROUP_ID | STICKY)
        } else {
            meta.mode & (PERMISSIONS | STICKY)
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

    fn set_attributes(&self, fd: BorrowedFd<'_>, meta: &Meta) -> Result<(), (&'static str, Errno)> {
        for (name, value) in &meta.xattrs {
            let wanted = match self.keep.attributes {
                Attributes::None => false,
                Attributes::User => name.starts_with(b"user."),
                Attributes::All => true,
            };
            if wanted {
                fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty())
                    .map_err(|error| ("set an attribute of", error))?;
            }
        }
        Ok(())
    }

    /// Tells of a failure. A destination that takes nothing more ends the copy.
    fn failed(&mut self, name: &[u8], what: &str, error: Errno) -> Result<(), CopyError> {
        let at_root = self.folders.is_empty();
        let hopeless = matches!(error, Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::IO);
        if at_root || hopeless {
            return Err(CopyError(self.describe(
                name,
                &format!("cannot {what}"),
                error,
            )));
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
        let names = self.folders.iter().map(|folder| folder.name.as_slice());
        let mut names: Vec<&[u8]> = names.chain([name]).collect();
        if !self.destination.below {
            names.remove(0);
        }
        path.extend(
            names
                .into_iter()
                .filter(|name| !name.is_empty())
                .map(OsStr::from_bytes),
        );
        path
    }

    fn describe(&self, name: &[u8], what: &str, error: Errno) -> String {
        let path = self.path_of(name);
        let why = match error {
            Errno::LOOP => "a symbolic link is in its place".to_owned(),
            Errno::NOTDIR => "something that is no folder is in its place".to_owned(),
            Errno::ISDIR => "a folder is in its place".to_owned(),
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
            self.file = Some(OpenFile {
                temporary: None,
                ..file
            });
        }
    }

    fn remove_temporary(&self, file: &OpenFile) {
        if let Some(name) = &file.temporary {
            let _ = self
                .with_folder(|folder| unlinkat(folder, OsStr::from_bytes(name), AtFlags::empty()));
        }
    }

    /// What is not complete goes; folders are left as they should be.
    fn abandon(&mut self) {
        self.drop_file();
        self.file = None;
        while !self.folders.is_empty() {
            self.leave();
        }
    }
}

fn make_folder(above: BorrowedFd<'_>, name: &[u8]) -> Result<(OwnedFd, bool), Errno> {
    let made = match mkdirat(above, OsStr::from_bytes(name), Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    open_child(above, name, flags, Mode::empty()).map(|fd| (fd, made))
}

/// Opens one name in a folder and nothing else, whatever stands there.
fn open_child(
    folder: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    openat2(
        folder,
        OsStr::from_bytes(name),
        flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        mode,
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

fn times(meta: &Meta) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: meta.mtime_s,
            tv_nsec: meta.mtime_ns.into(),
        },
    }
}
