//! Files of a running sandbox.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::address::Address;
use super::error::Error;
use super::sftp::{
    Attributes, Body, CHUNK_BYTES, FileKind, FileStat, OPEN_CREATE, OPEN_READ, OPEN_TRUNCATE,
    OPEN_WRITE, Pending, Session, Subject, kind,
};
use super::tool;
use crate::cli::error::Code;

/// Requests of one file that are sent before the first is answered.
const AHEAD: usize = 8;

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Path: that of the directory with the name.
    pub path: String,
    /// Metadata; of a symbolic link itself.
    pub stat: FileStat,
}

/// The files in a running sandbox, read and changed as a user of the guest. Relative paths start in
/// the user's home directory. Any number of threads can use it.
///
/// A missing file is an error with [`Code::NotFound`].
///
/// ```no_run
/// # use libmsb::sdk::Sandbox;
/// # fn main() -> Result<(), libmsb::sdk::Error> {
/// let files = Sandbox::get("worker")?.fs();
/// files.write("/root/task.py", "print(6 * 7)")?;
/// for entry in files.list("/root")? {
///     println!("{} {}", entry.path, entry.stat.size);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SandboxFs {
    sandbox: Address,
    user: Option<String>,
    session: Mutex<Option<Arc<Session>>>,
}

impl SandboxFs {
    pub(super) fn new(sandbox: Address, user: Option<String>) -> SandboxFs {
        SandboxFs { sandbox, user, session: Mutex::new(None) }
    }

    /// Returns the open session, which all calls share. One that has broken is opened again.
    fn session(&self) -> Result<Arc<Session>, Error> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        match &*session {
            Some(open) if open.is_open() => Ok(Arc::clone(open)),
            _ => {
                let opened = Session::open(self.sandbox.connection()?, self.user.as_deref())?;
                Ok(Arc::clone(session.insert(Arc::new(opened))))
            }
        }
    }

    /// Sends a request that is answered by a status.
    fn change(&self, action: &str, path: &str, kind: u8, body: Body) -> Result<(), Error> {
        self.session()?.ask(kind, body)?.ok(Subject { action, path })
    }

    /// Returns the contents of a file.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        let mut contents = Vec::new();
        self.read_stream(path)?.read_to_end(&mut contents).map_err(Error::from_stream)?;
        Ok(contents)
    }

    /// Returns the contents of a file as text. Bytes that are not UTF-8 are an error.
    pub fn read_to_string(&self, path: &str) -> Result<String, Error> {
        String::from_utf8(self.read(path)?)
            .map_err(|_| Error::new(Code::Failed, format!("'{path}' in the guest is not UTF-8")))
    }

    /// Writes a file. An existing one is truncated.
    pub fn write(&self, path: &str, contents: impl AsRef<[u8]>) -> Result<(), Error> {
        let mut stream = self.write_stream(path)?;
        stream.write_all(contents.as_ref()).map_err(Error::from_stream)?;
        stream.close()
    }

    /// Opens a file for reading.
    pub fn read_stream(&self, path: &str) -> Result<FsReader, Error> {
        let body = Body::default().text(path).u32(OPEN_READ).attributes(Attributes::None);
        let file = OpenFile::open(self.session()?, path, body)?;
        Ok(FsReader {
            file,
            requested: 0,
            pending: VecDeque::new(),
            bytes: Vec::new(),
            taken: 0,
            ahead: 1,
        })
    }

    /// Opens a file for writing. An existing one is truncated. Errors of the last writes are
    /// reported by [`FsWriter::close`].
    pub fn write_stream(&self, path: &str) -> Result<FsWriter, Error> {
        let flags = OPEN_WRITE | OPEN_CREATE | OPEN_TRUNCATE;
        let body = Body::default().text(path).u32(flags).attributes(Attributes::None);
        let file = OpenFile::open(self.session()?, path, body)?;
        Ok(FsWriter { file, offset: 0, pending: VecDeque::new() })
    }

    /// Returns the entries of a directory, sorted by path.
    pub fn list(&self, path: &str) -> Result<Vec<FileEntry>, Error> {
        let session = self.session()?;
        let subject = Subject { action: "list", path };
        let body = Body::default().text(path);
        let opened = OpenFile::of(session, path, kind::OPENDIR, body, subject)?;
        let mut entries = Vec::new();
        loop {
            let body = Body::default().text(&opened.handle);
            let answer = opened.session.ask(kind::READDIR, body)?;
            let Some(some) = answer.entries(subject)? else { break };
            entries.extend(some.into_iter().filter(|(name, _)| name != "." && name != "..").map(
                |(name, stat)| FileEntry {
                    path: format!("{}/{name}", path.trim_end_matches('/')),
                    stat,
                },
            ));
        }
        entries.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(entries)
    }

    /// Returns the metadata of a file; of the target, if it is a symbolic link.
    pub fn stat(&self, path: &str) -> Result<FileStat, Error> {
        self.stat_with_follow(path, true)
    }

    /// Returns the metadata of a file, or of a symbolic link itself.
    pub fn stat_with_follow(&self, path: &str, follow: bool) -> Result<FileStat, Error> {
        let kind = if follow { kind::STAT } else { kind::LSTAT };
        let answer = self.session()?.ask(kind, Body::default().text(path))?;
        answer.stat(Subject { action: "read", path })
    }

    /// Returns whether a path exists. Other errors than a missing file are errors.
    pub fn exists(&self, path: &str) -> Result<bool, Error> {
        match self.stat(path) {
            Ok(_) => Ok(true),
            Err(error) if error.code == Code::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Creates a directory and its parents. An existing directory is no error.
    pub fn mkdir(&self, path: &str) -> Result<(), Error> {
        let body = || Body::default().text(path).attributes(Attributes::None);
        let made = self.change("create", path, kind::MKDIR, body());
        let Err(error) = made else { return Ok(()) };
        if self.stat(path).is_ok_and(|stat| stat.kind == FileKind::Directory) {
            return Ok(());
        }
        let parent = path.trim_end_matches('/').rsplit_once('/').map(|(parent, _)| parent);
        match parent {
            Some(parent) if error.code == Code::NotFound && !parent.is_empty() => {
                self.mkdir(parent)?;
                self.change("create", path, kind::MKDIR, body())
            }
            _ => Err(error),
        }
    }

    /// Removes a file or symbolic link.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        self.change("remove", path, kind::REMOVE, Body::default().text(path))
    }

    /// Removes a directory with its contents. Symbolic links in it are removed, not followed.
    pub fn remove_dir(&self, path: &str) -> Result<(), Error> {
        if self.stat_with_follow(path, false)?.kind != FileKind::Directory {
            let message = format!("cannot remove '{path}' in the guest: not a directory");
            return Err(Error::new(Code::Failed, message));
        }
        for entry in self.list(path)? {
            match entry.stat.kind {
                FileKind::Directory => self.remove_dir(&entry.path)?,
                _ => self.remove(&entry.path)?,
            }
        }
        self.remove_empty_dir(path)
    }

    /// Removes an empty directory.
    pub fn remove_empty_dir(&self, path: &str) -> Result<(), Error> {
        self.change("remove", path, kind::RMDIR, Body::default().text(path))
    }

    /// Copies a file inside the guest, with its permission bits.
    pub fn copy(&self, source: &str, target: &str) -> Result<(), Error> {
        let mode = Attributes::Mode(self.stat(source)?.mode);
        let session = self.session()?;
        let body = Body::default().text(source).u32(OPEN_READ).attributes(Attributes::None);
        let from = OpenFile::open(Arc::clone(&session), source, body)?;
        let flags = OPEN_WRITE | OPEN_CREATE | OPEN_TRUNCATE;
        let body = Body::default().text(target).u32(flags).attributes(mode);
        let to = OpenFile::open(Arc::clone(&session), target, body)?;
        // draft-ietf-secsh-filexfer-extensions-00: offset 0, all bytes, to offset 0.
        let body = Body::default().text("copy-data").text(&from.handle).u64(0).u64(0);
        let body = body.text(&to.handle).u64(0);
        let subject = Subject { action: "copy", path: source };
        session.ask(kind::EXTENDED, body)?.ok(subject)?;
        let body = Body::default().text(&to.handle).attributes(mode);
        session.ask(kind::FSETSTAT, body)?.ok(subject)
    }

    /// Renames a file or directory. An existing file is replaced.
    pub fn rename(&self, source: &str, target: &str) -> Result<(), Error> {
        let body = Body::default().text("posix-rename@openssh.com").text(source).text(target);
        self.change("rename", source, kind::EXTENDED, body)
    }

    /// Returns the target of a symbolic link.
    pub fn read_link(&self, path: &str) -> Result<String, Error> {
        let answer = self.session()?.ask(kind::READLINK, Body::default().text(path))?;
        answer.name(Subject { action: "read", path })
    }

    /// Creates a symbolic link to `target`.
    pub fn symlink(&self, target: &str, link: &str) -> Result<(), Error> {
        // OpenSSH's order, which all servers follow, is not that of the draft.
        self.change("create", link, kind::SYMLINK, Body::default().text(target).text(link))
    }

    /// Returns the absolute path without symbolic links.
    pub fn real_path(&self, path: &str) -> Result<String, Error> {
        let answer = self.session()?.ask(kind::REALPATH, Body::default().text(path))?;
        answer.name(Subject { action: "resolve", path })
    }

    /// Sets the permission bits of a file.
    pub fn chmod(&self, path: &str, mode: u32) -> Result<(), Error> {
        let body = Body::default().text(path).attributes(Attributes::Mode(mode));
        self.change("change", path, kind::SETSTAT, body)
    }

    /// Sets the owner and group of a file.
    pub fn chown(&self, path: &str, uid: u32, gid: u32) -> Result<(), Error> {
        let body = Body::default().text(path).attributes(Attributes::Owner(uid, gid));
        self.change("change", path, kind::SETSTAT, body)
    }

    /// Copies a file or directory of the host into the guest, as `msb cp` does.
    pub fn copy_from_host(&self, host: &Path, guest: &str) -> Result<(), Error> {
        self.copy_tree(host.into(), self.guest_path(guest))
    }

    /// Copies a file or directory of the guest to the host, as `msb cp` does.
    pub fn copy_to_host(&self, guest: &str, host: &Path) -> Result<(), Error> {
        self.copy_tree(self.guest_path(guest), host.into())
    }

    fn guest_path(&self, path: &str) -> OsString {
        format!("{}:{path}", self.sandbox.name()).into()
    }

    fn copy_tree(&self, source: OsString, target: OsString) -> Result<(), Error> {
        // A path of the host that has a colon is no sandbox's.
        let args = ["--quiet".into(), "--".into(), source, target];
        tool::run(&self.sandbox.home, "msb-cp", args).map(drop)
    }
}

/// An open file or directory. It is closed when this is dropped.
#[derive(Debug)]
struct OpenFile {
    session: Arc<Session>,
    path: String,
    handle: Vec<u8>,
    closed: bool,
}

impl OpenFile {
    fn open(session: Arc<Session>, path: &str, body: Body) -> Result<OpenFile, Error> {
        OpenFile::of(session, path, kind::OPEN, body, Subject { action: "open", path })
    }

    fn of(
        session: Arc<Session>,
        path: &str,
        kind: u8,
        body: Body,
        subject: Subject<'_>,
    ) -> Result<OpenFile, Error> {
        let handle = session.ask(kind, body)?.handle(subject)?;
        Ok(OpenFile { session, path: path.to_owned(), handle, closed: false })
    }

    fn subject<'a>(&'a self, action: &'a str) -> Subject<'a> {
        Subject { action, path: &self.path }
    }

    /// Sends the request to close the file.
    fn send_close(&mut self) -> Result<Pending, Error> {
        self.closed = true;
        self.session.send(kind::CLOSE, Body::default().text(&self.handle))
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if !self.closed {
            // A session that has ended has closed its files.
            let _ = self.send_close();
        }
    }
}

/// A file that is read. Reads are requested ahead, from the second on.
#[derive(Debug)]
pub struct FsReader {
    file: OpenFile,
    /// Offset of the next request.
    requested: u64,
    /// Requests with their offsets.
    pending: VecDeque<(u64, Pending)>,
    /// Bytes of the last answer, of which `taken` were read.
    bytes: Vec<u8>,
    taken: usize,
    /// Number of requests to keep on the way.
    ahead: usize,
}

impl FsReader {
    /// Waits for the next bytes; none at the end of the file.
    fn fill(&mut self) -> Result<(), Error> {
        while self.pending.len() < self.ahead {
            let length = u32::try_from(CHUNK_BYTES).unwrap_or(u32::MAX);
            let body = Body::default().text(&self.file.handle).u64(self.requested).u32(length);
            let pending = self.file.session.send(kind::READ, body)?;
            self.pending.push_back((self.requested, pending));
            self.requested += u64::from(length);
        }
        let Some((offset, pending)) = self.pending.pop_front() else { return Ok(()) };
        let answer = pending.wait()?;
        self.bytes = answer.data(self.file.subject("read"))?.to_vec();
        self.taken = 0;
        let next = offset + self.bytes.len() as u64;
        if self.bytes.is_empty() {
            // What was requested beyond the end of the file has no bytes either.
            self.pending.clear();
        } else if self.bytes.len() < CHUNK_BYTES {
            // A short read: the requests that follow it have the wrong offsets.
            self.pending.clear();
            self.requested = next;
            self.ahead = 1;
        } else {
            self.ahead = AHEAD;
        }
        Ok(())
    }
}

impl Read for FsReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.bytes.len() {
            self.fill().map_err(io::Error::other)?;
        }
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let count = rest.len().min(into.len());
        for (to, from) in into.iter_mut().zip(rest) {
            *to = *from;
        }
        self.taken += count;
        Ok(count)
    }
}

/// A file that is written. Up to eight pieces are sent before the first is answered.
#[derive(Debug)]
pub struct FsWriter {
    file: OpenFile,
    offset: u64,
    pending: VecDeque<Pending>,
}

impl FsWriter {
    fn settle(&mut self, most: usize) -> Result<(), Error> {
        while self.pending.len() > most {
            let Some(pending) = self.pending.pop_front() else { break };
            pending.wait()?.ok(self.file.subject("write"))?;
        }
        Ok(())
    }

    /// Waits until all is written, and closes the file.
    pub fn close(mut self) -> Result<(), Error> {
        let closing = self.file.send_close()?;
        self.settle(0)?;
        closing.wait()?.ok(self.file.subject("close"))
    }
}

impl Write for FsWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.get(..CHUNK_BYTES).unwrap_or(bytes);
        if piece.is_empty() {
            return Ok(0);
        }
        self.settle(AHEAD - 1).map_err(io::Error::other)?;
        let body = Body::default().text(&self.file.handle).u64(self.offset).text(piece);
        let pending = self.file.session.send(kind::WRITE, body).map_err(io::Error::other)?;
        self.pending.push_back(pending);
        self.offset += piece.len() as u64;
        Ok(piece.len())
    }

    /// Waits until all that was written is in the file.
    fn flush(&mut self) -> io::Result<()> {
        self.settle(0).map_err(io::Error::other)
    }
}
