//! From files to records: walks a tree and says what is there.
//!
//! What cannot be read is told and left out, and the rest goes on. Files may change meanwhile: a file has the size that
//! was announced, whatever it has become. Nothing is opened that has effects by being opened.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fgetxattr, flistxattr, fstat,
    fstatfs, openat, readlinkat, seek, statat,
};
use rustix::io::Errno;

use super::record::{
    DATA_BYTES_MAX, DEPTH_MAX, Existing, FILE_BYTES_MAX, Meta, Record, RecordWriter, Severity,
    TARGET_BYTES_MAX, XATTRS_MAX, is_name,
};

/// Files with several names that are remembered; those beyond are sent once for each name.
pub const LINKS_MAX: usize = 1 << 18;

/// Bytes of attributes of one file that are sent.
const XATTR_BYTES_MAX: usize = 128 * 1024;

/// Size of a block of `st_blocks`, in bytes.
const BLOCK_BYTES: u64 = 512;

/// File systems that show the kernel's state and hold nobody's files, by the number of statfs(2): proc, sysfs, cgroup2,
/// devpts, debugfs, tracefs, bpf, securityfs, and the one of program interpreters.
const KERNELS_OWN: [u32; 9] = [
    0x9fa0,
    0x6265_6572,
    0x6367_7270,
    0x1cd1,
    0x6462_6720,
    0x7472_6163,
    0xcafe_4a11,
    0x7363_6673,
    0x4249_4e4d,
];

/// What is sent beside content, mode and time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// If the path is a symbolic link, what it names is meant.
    pub follow: bool,
    /// Extended attributes too.
    pub xattrs: bool,
}

/// What was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// All of it.
    All,
    /// What could be read.
    Part,
    /// Nothing, and why.
    Nothing(String),
}

/// Sends what is at a path, to the last record. The error is that of the sink.
pub fn tree<W: Write>(
    path: &Path,
    options: Options,
    out: &mut RecordWriter<W>,
) -> io::Result<Sent> {
    let mut sender = Sender {
        out,
        options,
        root: path.to_owned(),
        names: Vec::new(),
        seen: HashMap::new(),
        scratch: vec![0; DATA_BYTES_MAX + 1],
        complete: true,
    };
    let sent = match sender.root()? {
        Ok(()) => {
            sender.out.put(&Record::Done)?;
            if sender.complete {
                Sent::All
            } else {
                Sent::Part
            }
        }
        Err(why) => {
            sender.out.put(&Record::Failed(why.clone()))?;
            Sent::Nothing(why)
        }
    };
    sender.out.flush()?;
    Ok(sent)
}

/// Device and number of a file: what makes it one file under several names.
type Identity = (u64, u64);

struct Sender<'a, W: Write> {
    out: &'a mut RecordWriter<W>,
    options: Options,
    root: PathBuf,
    /// From the root to the folder that is being read.
    names: Vec<Vec<u8>>,
    /// Where files with several names were sent.
    seen: HashMap<Identity, Vec<Vec<u8>>>,
    scratch: Vec<u8>,
    complete: bool,
}

impl<W: Write> Sender<'_, W> {
    /// The inner error is why nothing could be sent at all.
    fn root(&mut self) -> io::Result<Result<(), String>> {
        let path = self.root.clone();
        let flags = if self.options.follow {
            AtFlags::empty()
        } else {
            AtFlags::SYMLINK_NOFOLLOW
        };
        let cannot = |error: Errno| format!("cannot read '{}': {}", path.display(), reason(error));
        let stat = match statat(CWD, &path, flags) {
            Ok(stat) => stat,
            Err(error) => return Ok(Err(cannot(error))),
        };
        let follow = if self.options.follow {
            OFlags::empty()
        } else {
            OFlags::NOFOLLOW
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => match openat(CWD, &path, FOLDER_FLAGS, Mode::empty()) {
                Ok(folder) => self.folder(Vec::new(), &folder)?,
                Err(error) => return Ok(Err(cannot(error))),
            },
            FileType::RegularFile => match openat(CWD, &path, FILE_FLAGS | follow, Mode::empty()) {
                Ok(file) => self.file(Vec::new(), &file)?,
                Err(error) => return Ok(Err(cannot(error))),
            },
            FileType::Symlink => match readlinkat(CWD, &path, Vec::new()) {
                Ok(target) => self.link(meta(Vec::new(), &stat), target.into_bytes())?,
                Err(error) => return Ok(Err(cannot(error))),
            },
            other => {
                return Ok(Err(format!(
                    "'{}' is a {}, which cannot be copied",
                    path.display(),
                    special(other)
                )));
            }
        }
        Ok(Ok(()))
    }

    fn folder(&mut self, name: Vec<u8>, folder: &OwnedFd) -> io::Result<()> {
        let meta = match fstat(folder) {
            Ok(stat) => self.meta(name, &stat, folder.as_fd()),
            Err(error) => return self.unreadable(&name, error),
        };
        let device = fstat(folder).map(|stat| stat.st_dev).unwrap_or_default();
        self.out.put(&Record::Folder(meta, Existing::Known))?;
        let mut entries = match entries(folder) {
            Ok(entries) => entries,
            Err(error) => {
                self.unreadable(b"", error)?;
                Vec::new()
            }
        };
        entries.sort();
        for (name, kind) in entries {
            self.entry(folder.as_fd(), name, kind, device)?;
        }
        self.out.put(&Record::Up)
    }

    fn entry(
        &mut self,
        folder: BorrowedFd<'_>,
        name: Vec<u8>,
        kind: Option<Kind>,
        device: u64,
    ) -> io::Result<()> {
        let stat = match kind {
            Some(Kind::File | Kind::Folder) => None,
            _ => match statat(folder, OsStr::from_bytes(&name), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Some(stat),
                Err(error) => return self.unreadable(&name, error),
            },
        };
        let kind = kind.or_else(|| Kind::of(FileType::from_raw_mode(stat?.st_mode)));
        match (kind, stat) {
            (Some(Kind::Folder), _) => self.enter(folder, name, device),
            (Some(Kind::File), _) => {
                match openat(
                    folder,
                    OsStr::from_bytes(&name),
                    FILE_FLAGS | OFlags::NOFOLLOW,
                    Mode::empty(),
                ) {
                    Ok(file) => self.file(name, &file),
                    Err(error) => self.unreadable(&name, error),
                }
            }
            (Some(Kind::Link), Some(stat)) => {
                match readlinkat(folder, OsStr::from_bytes(&name), Vec::new()) {
                    Ok(target) => self.link(meta(name, &stat), target.into_bytes()),
                    Err(error) => self.unreadable(&name, error),
                }
            }
            (_, stat) => {
                let what = stat.map_or("special file", |stat| {
                    special(FileType::from_raw_mode(stat.st_mode))
                });
                self.problem(Severity::Skipped, &name, &format!("is a {what}"))
            }
        }
    }

    fn enter(&mut self, above: BorrowedFd<'_>, name: Vec<u8>, device: u64) -> io::Result<()> {
        // The root is one, and this would be another.
        if self.names.len() + 2 > DEPTH_MAX {
            return self.problem(Severity::Error, &name, "is too deep");
        }
        let flags = FOLDER_FLAGS | OFlags::NOFOLLOW;
        let folder = match openat(above, OsStr::from_bytes(&name), flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(error) => return self.unreadable(&name, error),
        };
        let elsewhere = fstat(&folder).is_ok_and(|stat| stat.st_dev != device);
        if elsewhere
            && fstatfs(&folder).is_ok_and(|stat| KERNELS_OWN.contains(&(stat.f_type as u32)))
        {
            return self.problem(Severity::Skipped, &name, "shows the kernel's state");
        }
        self.names.push(name.clone());
        let sent = self.folder(name, &folder);
        self.names.pop();
        sent
    }

    fn link(&mut self, meta: Meta, target: Vec<u8>) -> io::Result<()> {
        if target.is_empty() || target.len() > TARGET_BYTES_MAX {
            return self.problem(Severity::Error, &meta.name, "has an impossible target");
        }
        self.out.put(&Record::Link(meta, target))
    }

    fn file(&mut self, name: Vec<u8>, file: &OwnedFd) -> io::Result<()> {
        let stat = match fstat(file) {
            Ok(stat) => stat,
            Err(error) => return self.unreadable(&name, error),
        };
        let linked = stat.st_nlink > 1 && !name.is_empty();
        let identity = (stat.st_dev, stat.st_ino);
        if linked && let Some(path) = self.seen.get(&identity) {
            let path = path.clone();
            return self.out.put(&Record::Again { name, path });
        }
        let linked = linked && self.seen.len() < LINKS_MAX;
        if linked {
            let path = self.names.iter().chain([&name]).cloned().collect();
            self.seen.insert(identity, path);
        }
        let meta = self.meta(name, &stat, file.as_fd());
        let size = u64::try_from(stat.st_size).unwrap_or(0).min(FILE_BYTES_MAX);
        if size < DATA_BYTES_MAX as u64 {
            return self.small_file(meta, linked, file, size as usize);
        }
        self.out.put(&Record::File {
            meta: meta.clone(),
            size,
            linked,
        })?;
        let sparse = u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK_BYTES < size;
        self.content(&meta.name, file, size, sparse)
    }

    /// Read before its size is told: files of the kernel say 0 and have content.
    fn small_file(
        &mut self,
        meta: Meta,
        linked: bool,
        file: &OwnedFd,
        size: usize,
    ) -> io::Result<()> {
        let most = if size == 0 {
            self.scratch.len()
        } else {
            size + 1
        };
        let mut count = 0;
        let mut failure = None;
        while count < most {
            match rustix::io::read(file, &mut self.scratch[count..most]) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(Errno::INTR) => {}
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
            if count == size && size > 0 {
                break;
            }
        }
        let name = meta.name.clone();
        if let Some(error) = failure {
            return self.unreadable(&name, error);
        }
        if count > size && size > 0 {
            count = size;
        }
        if count > DATA_BYTES_MAX {
            return self.problem(Severity::Error, &name, "has no size and much content");
        }
        self.out.put(&Record::File {
            meta,
            size: count as u64,
            linked,
        })?;
        if count > 0 {
            self.out.put(&Record::Data(&self.scratch[..count]))?;
        }
        Ok(())
    }

    fn content(&mut self, name: &[u8], file: &OwnedFd, size: u64, sparse: bool) -> io::Result<()> {
        let mut at = 0;
        while at < size {
            let (begin, end) = if sparse {
                next_data(file, at, size)
            } else {
                (at, size)
            };
            if begin > at {
                self.out.put(&Record::Hole(begin - at))?;
            }
            at = begin;
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(DATA_BYTES_MAX);
                let read = self.out.put_data(most, |room| read_some(file, room));
                let why = match read {
                    Ok(0) => "became shorter while it was read".to_owned(),
                    Ok(count) => {
                        at += count as u64;
                        continue;
                    }
                    Err(error) if is_of_sink(&error) => return Err(error),
                    Err(error) => format!("cannot be read: {error}"),
                };
                // Its size was told: zeros stand for what is not there.
                self.out.put(&Record::Hole(size - at))?;
                return self.problem(Severity::Error, name, &why);
            }
        }
        Ok(())
    }

    fn meta(&mut self, name: Vec<u8>, stat: &Stat, file: BorrowedFd<'_>) -> Meta {
        let mut meta = meta(name, stat);
        if self.options.xattrs {
            meta.xattrs = xattrs(file);
        }
        meta
    }

    fn unreadable(&mut self, name: &[u8], error: Errno) -> io::Result<()> {
        let why = format!("cannot be read: {}", reason(error));
        self.problem(Severity::Error, name, &why)
    }

    fn problem(&mut self, severity: Severity, name: &[u8], why: &str) -> io::Result<()> {
        self.complete &= severity != Severity::Error;
        let mut path = self.root.clone();
        let names = self.names.iter().map(Vec::as_slice);
        path.extend(
            names
                .chain([name].into_iter().filter(|name| !name.is_empty()))
                .map(OsStr::from_bytes),
        );
        let text = format!("'{}' {why}", path.display());
        self.out.put(&Record::Problem(severity, text))
    }
}

const FOLDER_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// Not blocking, should the file have become a fifo meanwhile.
const FILE_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// What can be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    File,
    Folder,
    Link,
    Special,
}

impl Kind {
    fn of(file_type: FileType) -> Option<Kind> {
        match file_type {
            FileType::RegularFile => Some(Kind::File),
            FileType::Directory => Some(Kind::Folder),
            FileType::Symlink => Some(Kind::Link),
            FileType::Unknown => None,
            _ => Some(Kind::Special),
        }
    }
}

/// A name in a folder, and what it is if the file system says so.
type Entry = (Vec<u8>, Option<Kind>);

/// Names in a folder. A name that could not be sent is the file system's fault and left out.
fn entries(folder: &OwnedFd) -> Result<Vec<Entry>, Errno> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if is_name(name) {
            entries.push((name.to_vec(), Kind::of(entry.file_type())));
        }
    }
    Ok(entries)
}

fn meta(name: Vec<u8>, stat: &Stat) -> Meta {
    Meta {
        name,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_s: stat.st_mtime,
        mtime_ns: (stat.st_mtime_nsec as u32).min(999_999_999),
        xattrs: Vec::new(),
    }
}

/// Attributes of a file, as far as there is room for them; one that cannot be read has gone.
fn xattrs(file: BorrowedFd<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; XATTR_BYTES_MAX];
    let Ok(length) = flistxattr(file, &mut names[..]) else {
        return Vec::new();
    };
    let mut value = vec![0; XATTR_BYTES_MAX];
    let mut left = XATTR_BYTES_MAX;
    let mut found = Vec::new();
    let names = names[..length].split(|byte| *byte == 0);
    for name in names.filter(|name| !name.is_empty()).take(XATTRS_MAX) {
        let Ok(length) = fgetxattr(file, OsStr::from_bytes(name), &mut value[..]) else {
            continue;
        };
        if let Some(rest) = left.checked_sub(length + name.len()) {
            left = rest;
            found.push((name.to_vec(), value[..length].to_vec()));
        }
    }
    found
}

/// The next part of a file that is no hole, from `at` on; its file offset is then there.
fn next_data(file: &OwnedFd, at: u64, size: u64) -> (u64, u64) {
    let begin = match seek(file, SeekFrom::Data(at)) {
        Ok(begin) => begin.clamp(at, size),
        Err(Errno::NXIO) => return (size, size),
        // A file system without holes.
        Err(_) => at,
    };
    let end = seek(file, SeekFrom::Hole(begin)).map_or(size, |end| end.min(size));
    let end = if end > begin { end } else { size };
    // Should it fail, the file's content is wrong no more than that of a file that changes.
    let _ = seek(file, SeekFrom::Start(begin));
    (begin, end)
}

/// An error of the source, marked as such: that of the sink has no such mark.
#[derive(Debug)]
struct SourceError(Errno);

impl std::fmt::Display for SourceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&reason(self.0))
    }
}

impl std::error::Error for SourceError {}

fn is_of_sink(error: &io::Error) -> bool {
    !error
        .get_ref()
        .is_some_and(|inner| inner.is::<SourceError>())
}

fn read_some(file: &OwnedFd, room: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(file, &mut *room) {
            Err(Errno::INTR) => {}
            result => return result.map_err(|error| io::Error::other(SourceError(error))),
        }
    }
}

/// The system's words for an error.
fn reason(error: Errno) -> String {
    io::Error::from(error).to_string()
}

fn special(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        _ => "special file",
    }
}
