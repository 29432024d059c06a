//! The sender: walks a tree of files and writes records.
//!
//! An entry that cannot be read is reported and skipped, and the rest follows. Files may change
//! meanwhile: a file is sent with its announced size, whatever its size has become. Files that have
//! side effects when opened are not opened.

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
    DATA_BYTES_MAX, DEPTH_MAX, DirectoryMeta, EntryMeta, FILE_BYTES_MAX, Record, RecordWriter,
    Severity, TARGET_BYTES_MAX, XATTRS_MAX, is_name,
};

/// Limit of remembered files with several hard links. Files beyond it are sent once for each link.
pub const LINKS_MAX: usize = 1 << 18;

/// Limit of attributes of one file, in bytes.
const XATTR_BYTES_MAX: usize = 128 * 1024;

/// Size of a block of `st_blocks`, in bytes.
const BLOCK_BYTES: u64 = 512;

/// File systems that show the kernel's state and hold no user files, by their magic number of
/// statfs(2): proc, sysfs, cgroup2, devpts, debugfs, tracefs, bpf, securityfs, binfmt_misc.
const KERNEL_FILE_SYSTEMS: [u32; 9] = [
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

/// Options of a sender.
#[derive(Clone, Copy, Debug, Default)]
pub struct SendOptions {
    /// True to follow the path if it is a symbolic link.
    pub follow: bool,
    /// True to send extended attributes.
    pub xattrs: bool,
}

/// The result of sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendReport {
    /// All was sent.
    All,
    /// All that could be read was sent.
    Partial,
    /// Nothing was sent, with the reason.
    Nothing(String),
}

/// Sends the tree at a path, up to the last record. An error is one of the sink.
pub fn tree<W: Write>(
    path: &Path,
    options: SendOptions,
    out: &mut RecordWriter<W>,
) -> io::Result<SendReport> {
    let mut sender = TreeSender {
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
            if sender.complete { SendReport::All } else { SendReport::Partial }
        }
        Err(why) => {
            sender.out.put(&Record::Failed(why.clone()))?;
            SendReport::Nothing(why)
        }
    };
    sender.out.flush()?;
    Ok(sent)
}

/// Device and inode of a file, which are equal for all its hard links.
type FileIdentity = (u64, u64);

struct TreeSender<'a, W: Write> {
    out: &'a mut RecordWriter<W>,
    options: SendOptions,
    root: PathBuf,
    /// Names from the root to the directory that is being read.
    names: Vec<Vec<u8>>,
    /// Paths of sent files with several hard links.
    seen: HashMap<FileIdentity, Vec<Vec<u8>>>,
    scratch: Vec<u8>,
    complete: bool,
}

impl<W: Write> TreeSender<'_, W> {
    /// Sends the root. The inner error is the reason why nothing could be sent.
    fn root(&mut self) -> io::Result<Result<(), String>> {
        let path = self.root.clone();
        let flags = if self.options.follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let cannot = |error: Errno| format!("cannot read '{}': {}", path.display(), reason(error));
        let stat = match statat(CWD, &path, flags) {
            Ok(stat) => stat,
            Err(error) => return Ok(Err(cannot(error))),
        };
        let follow = if self.options.follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => match openat(CWD, &path, DIRECTORY_FLAGS, Mode::empty()) {
                Ok(directory) => self.directory(Vec::new(), &directory)?,
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
                    special_type_name(other)
                )));
            }
        }
        Ok(Ok(()))
    }

    fn directory(&mut self, name: Vec<u8>, directory: &OwnedFd) -> io::Result<()> {
        let meta = match fstat(directory) {
            Ok(stat) => self.meta(name, &stat, directory.as_fd()),
            Err(error) => return self.unreadable(&name, error),
        };
        let device = fstat(directory).map(|stat| stat.st_dev).unwrap_or_default();
        self.out.put(&Record::Directory(meta, DirectoryMeta::Known))?;
        let mut entries = match entries(directory) {
            Ok(entries) => entries,
            Err(error) => {
                self.unreadable(b"", error)?;
                Vec::new()
            }
        };
        entries.sort();
        for (name, kind) in entries {
            self.entry(directory.as_fd(), name, kind, device)?;
        }
        self.out.put(&Record::DirectoryEnd)
    }

    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        name: Vec<u8>,
        kind: Option<FileKind>,
        device: u64,
    ) -> io::Result<()> {
        let stat = match kind {
            Some(FileKind::File | FileKind::Directory) => None,
            _ => match statat(directory, OsStr::from_bytes(&name), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Some(stat),
                Err(error) => return self.unreadable(&name, error),
            },
        };
        let kind = kind.or_else(|| FileKind::of(FileType::from_raw_mode(stat?.st_mode)));
        match (kind, stat) {
            (Some(FileKind::Directory), _) => self.enter(directory, name, device),
            (Some(FileKind::File), _) => {
                match openat(
                    directory,
                    OsStr::from_bytes(&name),
                    FILE_FLAGS | OFlags::NOFOLLOW,
                    Mode::empty(),
                ) {
                    Ok(file) => self.file(name, &file),
                    Err(error) => self.unreadable(&name, error),
                }
            }
            (Some(FileKind::Link), Some(stat)) => {
                match readlinkat(directory, OsStr::from_bytes(&name), Vec::new()) {
                    Ok(target) => self.link(meta(name, &stat), target.into_bytes()),
                    Err(error) => self.unreadable(&name, error),
                }
            }
            (_, stat) => {
                let what = stat.map_or("special file", |stat| {
                    special_type_name(FileType::from_raw_mode(stat.st_mode))
                });
                self.problem(Severity::Skipped, &name, &format!("is a {what}"))
            }
        }
    }

    fn enter(&mut self, above: BorrowedFd<'_>, name: Vec<u8>, device: u64) -> io::Result<()> {
        // The root counts too, and this entry would be one more.
        if self.names.len() + 2 > DEPTH_MAX {
            return self.problem(Severity::Error, &name, "is nested too deeply");
        }
        let flags = DIRECTORY_FLAGS | OFlags::NOFOLLOW;
        let directory = match openat(above, OsStr::from_bytes(&name), flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(error) => return self.unreadable(&name, error),
        };
        let elsewhere = fstat(&directory).is_ok_and(|stat| stat.st_dev != device);
        if elsewhere
            && fstatfs(&directory)
                .is_ok_and(|stat| KERNEL_FILE_SYSTEMS.contains(&(stat.f_type as u32)))
        {
            return self.problem(Severity::Skipped, &name, "is a file system of kernel state");
        }
        self.names.push(name.clone());
        let sent = self.directory(name, &directory);
        self.names.pop();
        sent
    }

    fn link(&mut self, meta: EntryMeta, target: Vec<u8>) -> io::Result<()> {
        if target.is_empty() || target.len() > TARGET_BYTES_MAX {
            return self.problem(Severity::Error, &meta.name, "has an invalid target");
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
            return self.out.put(&Record::HardLink { name, path });
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
        self.out.put(&Record::File { meta: meta.clone(), size, linked })?;
        let sparse = u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK_BYTES < size;
        self.content(&meta.name, file, size, sparse)
    }

    /// Sends a small file. Reads it before it announces the size: files of the kernel report size 0
    /// and have content.
    fn small_file(
        &mut self,
        meta: EntryMeta,
        linked: bool,
        file: &OwnedFd,
        size: usize,
    ) -> io::Result<()> {
        let most = if size == 0 { self.scratch.len() } else { size + 1 };
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
            return self.problem(Severity::Error, &name, "reports size 0 but has content");
        }
        self.out.put(&Record::File { meta, size: count as u64, linked })?;
        if count > 0 {
            self.out.put(&Record::Data(&self.scratch[..count]))?;
        }
        Ok(())
    }

    fn content(&mut self, name: &[u8], file: &OwnedFd, size: u64, sparse: bool) -> io::Result<()> {
        let mut at = 0;
        while at < size {
            let (start, end) = if sparse { next_data(file, at, size) } else { (at, size) };
            if start > at {
                self.out.put(&Record::Hole(start - at))?;
            }
            at = start;
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(DATA_BYTES_MAX);
                let read = self.out.put_data(most, |room| read_some(file, room));
                let why = match read {
                    Ok(0) => "became shorter while it was read".to_owned(),
                    Ok(count) => {
                        at += count as u64;
                        continue;
                    }
                    Err(error) if is_sink_error(&error) => return Err(error),
                    Err(error) => format!("cannot be read: {error}"),
                };
                // The size was announced: zeros replace missing data.
                self.out.put(&Record::Hole(size - at))?;
                return self.problem(Severity::Error, name, &why);
            }
        }
        Ok(())
    }

    fn meta(&mut self, name: Vec<u8>, stat: &Stat, file: BorrowedFd<'_>) -> EntryMeta {
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
            names.chain([name].into_iter().filter(|name| !name.is_empty())).map(OsStr::from_bytes),
        );
        let text = format!("'{}' {why}", path.display());
        self.out.put(&Record::Problem(severity, text))
    }
}

const DIRECTORY_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Non-blocking, in case the file has become a FIFO meanwhile.
const FILE_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Type of an entry that can be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum FileKind {
    File,
    Directory,
    Link,
    Special,
}

impl FileKind {
    fn of(file_type: FileType) -> Option<FileKind> {
        match file_type {
            FileType::RegularFile => Some(FileKind::File),
            FileType::Directory => Some(FileKind::Directory),
            FileType::Symlink => Some(FileKind::Link),
            FileType::Unknown => None,
            _ => Some(FileKind::Special),
        }
    }
}

/// A name in a directory, and its type if the file system reports it.
type DirEntry = (Vec<u8>, Option<FileKind>);

/// Returns the entries of a directory. Names that cannot be sent are invalid in the file system,
/// and skipped.
fn entries(directory: &OwnedFd) -> Result<Vec<DirEntry>, Errno> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if is_name(name) {
            entries.push((name.to_vec(), FileKind::of(entry.file_type())));
        }
    }
    Ok(entries)
}

fn meta(name: Vec<u8>, stat: &Stat) -> EntryMeta {
    EntryMeta {
        name,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_s: stat.st_mtime,
        mtime_ns: (stat.st_mtime_nsec as u32).min(999_999_999),
        xattrs: Vec::new(),
    }
}

/// Returns the attributes of a file, within the limit. An attribute that cannot be read was removed
/// meanwhile.
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

/// Returns the next range of data (not a hole) from `at` on. The file offset is then at its start.
fn next_data(file: &OwnedFd, at: u64, size: u64) -> (u64, u64) {
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.clamp(at, size),
        Err(Errno::NXIO) => return (size, size),
        // The file system has no holes.
        Err(_) => at,
    };
    let end = seek(file, SeekFrom::Hole(start)).map_or(size, |end| end.min(size));
    let end = if end > start { end } else { size };
    // If it fails, the sent content is wrong, as for a file that changes while it is read.
    let _ = seek(file, SeekFrom::Start(start));
    (start, end)
}

/// An error of the source. The mark tells it from errors of the sink.
#[derive(Debug)]
struct SourceError(Errno);

impl std::fmt::Display for SourceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&reason(self.0))
    }
}

impl std::error::Error for SourceError {}

fn is_sink_error(error: &io::Error) -> bool {
    !error.get_ref().is_some_and(|inner| inner.is::<SourceError>())
}

fn read_some(file: &OwnedFd, room: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(file, &mut *room) {
            Err(Errno::INTR) => {}
            result => return result.map_err(|error| io::Error::other(SourceError(error))),
        }
    }
}

/// Returns the system's message of an error.
fn reason(error: Errno) -> String {
    io::Error::from(error).to_string()
}

fn special_type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        _ => "special file",
    }
}
