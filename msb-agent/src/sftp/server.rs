//! Implementation of the SFTP requests.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, ReadDir};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, StatVfs, Timespec, Timestamps, Uid, chmodat,
    chownat, fchmod, fchown, fstatvfs, futimens, mkdir, open, renameat_with, statvfs, utimensat,
};
use rustix::io::Errno;

use super::listing::{self, AccountNames};
use super::packet::{
    self, CHUNK_BYTES_MAX, ClientRequest, FileAttributes, FileHandle, MalformedPacket,
    PACKET_BYTES_MAX, ReplyWriter, StatusCode,
};
use crate::console::reason;
use crate::users;

/// Maximum number of open files and directories of one client.
const HANDLES_MAX: usize = 512;

/// Maximum number of bytes in a list of names; the client requests the rest.
const NAMES_BYTES: usize = 32 * 1024;

/// Permission bits of a mode.
const PERMISSIONS: u32 = 0o7777;

/// An open file or directory.
enum OpenEntry {
    File {
        file: File,
        /// Data is appended, regardless of the offset.
        append: bool,
    },
    Directory {
        path: PathBuf,
        entries: ReadDir,
    },
}

/// Server for one client.
pub struct SftpServer {
    read_only: bool,
    open: HashMap<FileHandle, OpenEntry>,
    next: FileHandle,
    names: AccountNames,
}

/// Status and message of a failed request.
struct RequestError(StatusCode, String);

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> RequestError {
        let status = match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => StatusCode::NoSuchFile,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                StatusCode::PermissionDenied
            }
            ErrorKind::Unsupported => StatusCode::Unsupported,
            _ => StatusCode::Failure,
        };
        RequestError(status, reason(error))
    }
}

impl From<Errno> for RequestError {
    fn from(error: Errno) -> RequestError {
        io::Error::from(error).into()
    }
}

type StatusResult = Result<(), RequestError>;

impl SftpServer {
    /// Returns a server, optionally one that refuses changes.
    pub fn new(read_only: bool) -> SftpServer {
        SftpServer { read_only, open: HashMap::new(), next: 0, names: AccountNames::read() }
    }

    /// Appends the answer to a packet.
    pub fn answer(&mut self, packet: &[u8], out: &mut Vec<u8>) {
        let (number, request) = packet::parse(packet);
        let done = match request {
            Ok(request) if self.read_only && changes(&request) => {
                Err(RequestError(StatusCode::PermissionDenied, "the server is read-only".into()))
            }
            Ok(request) => self.serve(number, request, out),
            Err(MalformedPacket) => {
                Err(RequestError(StatusCode::BadMessage, "malformed request".into()))
            }
        };
        if let Err(RequestError(status, message)) = done {
            packet::put_status(out, number, status, &message);
        }
    }

    fn serve(
        &mut self,
        number: u32,
        request: ClientRequest<'_>,
        out: &mut Vec<u8>,
    ) -> StatusResult {
        match request {
            ClientRequest::Init => packet::put_version(out),
            ClientRequest::Open { path, flags, attributes } => {
                let open = open_file(&path, flags, attributes)?;
                packet::put_handle(out, number, self.add_handle(open)?);
            }
            ClientRequest::OpenDirectory(path) => {
                let entries = fs::read_dir(&path)?;
                packet::put_handle(
                    out,
                    number,
                    self.add_handle(OpenEntry::Directory { path, entries })?,
                );
            }
            ClientRequest::Read { handle, offset, length } => {
                let file = self.file(handle)?;
                let read = |room: &mut [u8]| file.read_at(room, offset);
                if packet::put_data(out, number, length, read)? == 0 {
                    return Err(end_of_file());
                }
            }
            ClientRequest::ReadDirectory(handle) => self.read_directory(number, handle, out)?,
            ClientRequest::Stat(path) => put_metadata(out, number, &fs::metadata(path)?),
            ClientRequest::Lstat(path) => put_metadata(out, number, &fs::symlink_metadata(path)?),
            ClientRequest::Fstat(handle) => put_metadata(out, number, &self.metadata(handle)?),
            ClientRequest::RealPath(path) => put_path(out, number, &real_path(&path)?),
            ClientRequest::ReadLink(path) => put_path(out, number, &fs::read_link(path)?),
            ClientRequest::ExpandPath(path) => put_path(out, number, &real_path(&expand(&path)?)?),
            ClientRequest::HomeDirectory(user) => put_path(out, number, &home(&user)?),
            ClientRequest::StatVfs(path) => put_statvfs(out, number, &statvfs(&path)?),
            ClientRequest::FstatVfs(handle) => {
                put_statvfs(out, number, &fstatvfs(self.file(handle)?)?)
            }
            ClientRequest::Limits => put_limits(out, number),
            ClientRequest::Names { users, groups } => self.put_names(out, number, &users, &groups),
            other => {
                self.change(other)?;
                packet::put_status(out, number, StatusCode::Ok, "done");
            }
        }
        Ok(())
    }

    /// Serves a request whose answer is a status.
    fn change(&mut self, request: ClientRequest<'_>) -> StatusResult {
        match request {
            ClientRequest::Close(handle) => {
                let closed = self.open.remove(&handle).ok_or_else(no_handle)?;
                drop(closed);
            }
            ClientRequest::Write { handle, offset, data } => match self.open.get(&handle) {
                Some(OpenEntry::File { file, append: true }) => {
                    io::Write::write_all(&mut &*file, data)?
                }
                Some(OpenEntry::File { file, .. }) => file.write_all_at(data, offset)?,
                _ => return Err(no_handle()),
            },
            ClientRequest::Setstat(path, wanted) => {
                set_attributes(&path, wanted, AtFlags::empty())?
            }
            ClientRequest::LinkSetstat(path, wanted) => {
                set_attributes(&path, wanted, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            ClientRequest::Fsetstat(handle, wanted) => set_of_file(self.file(handle)?, wanted)?,
            ClientRequest::Remove(path) => fs::remove_file(path)?,
            ClientRequest::MakeDirectory(path, wanted) => {
                let mode = wanted.mode.unwrap_or(0o777) & PERMISSIONS;
                mkdir(&path, Mode::from_raw_mode(mode))?;
            }
            ClientRequest::RemoveDirectory(path) => fs::remove_dir(path)?,
            ClientRequest::Rename { from, to, replace } => rename(&from, &to, replace)?,
            ClientRequest::Symlink { target, link } => symlink(target, link)?,
            ClientRequest::HardLink { from, to } => fs::hard_link(from, to)?,
            ClientRequest::Sync(handle) => self.file(handle)?.sync_all()?,
            ClientRequest::CopyData { from, offset, length, to, to_offset } => {
                self.copy(from, offset, length, to, to_offset)?
            }
            _ => {
                let message = "unsupported operation".to_owned();
                return Err(RequestError(StatusCode::Unsupported, message));
            }
        }
        Ok(())
    }

    fn add_handle(&mut self, open: OpenEntry) -> Result<FileHandle, RequestError> {
        if self.open.len() >= HANDLES_MAX {
            let message = format!("{HANDLES_MAX} files are open already");
            return Err(RequestError(StatusCode::Failure, message));
        }
        while self.open.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let handle = self.next;
        self.next = self.next.wrapping_add(1);
        self.open.insert(handle, open);
        Ok(handle)
    }

    fn file(&self, handle: FileHandle) -> Result<&File, RequestError> {
        match self.open.get(&handle) {
            Some(OpenEntry::File { file, .. }) => Ok(file),
            _ => Err(no_handle()),
        }
    }

    fn metadata(&self, handle: FileHandle) -> Result<Metadata, RequestError> {
        match self.open.get(&handle) {
            Some(OpenEntry::File { file, .. }) => Ok(file.metadata()?),
            Some(OpenEntry::Directory { path, .. }) => Ok(fs::metadata(path)?),
            None => Err(no_handle()),
        }
    }

    fn read_directory(
        &mut self,
        number: u32,
        handle: FileHandle,
        out: &mut Vec<u8>,
    ) -> StatusResult {
        let Some(OpenEntry::Directory { entries, .. }) = self.open.get_mut(&handle) else {
            return Err(no_handle());
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |time| time.as_secs() as i64);
        let (mut found, mut bytes) = (Vec::new(), 0);
        while bytes < NAMES_BYTES
            && let Some(entry) = entries.next()
        {
            let entry = entry?;
            // An entry that was removed in the meantime is skipped.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let name = entry.file_name();
            let line = listing::line(name.as_bytes(), &metadata, &self.names, now);
            bytes += name.len() + line.len() + 40;
            found.push((name, line, listing::attributes(&metadata)));
        }
        if found.is_empty() {
            return Err(end_of_file());
        }
        let mut reply = ReplyWriter::names(out, number, found.len() as u32);
        for (name, line, attributes) in found {
            reply.string(name.as_bytes());
            reply.string(&line);
            reply.attributes(&attributes);
        }
        reply.finish();
        Ok(())
    }

    fn copy(
        &self,
        from: FileHandle,
        offset: u64,
        length: Option<u64>,
        to: FileHandle,
        to_offset: u64,
    ) -> StatusResult {
        let (source, target) = (self.file(from)?, self.file(to)?);
        if from == to {
            return Err(RequestError(
                StatusCode::Failure,
                "source and target are the same file".into(),
            ));
        }
        let mut buffer = vec![0; CHUNK_BYTES_MAX];
        let (mut done, wanted) = (0, length.unwrap_or(u64::MAX));
        while done < wanted {
            let most = usize::try_from(wanted - done).map_or(buffer.len(), |m| m.min(buffer.len()));
            let at = offset.saturating_add(done);
            match source.read_at(&mut buffer[..most], at)? {
                0 if length.is_none() => break,
                0 => return Err(end_of_file()),
                count => {
                    target.write_all_at(&buffer[..count], to_offset.saturating_add(done))?;
                    done += count as u64;
                }
            }
        }
        Ok(())
    }

    fn put_names(&self, out: &mut Vec<u8>, number: u32, users: &[u32], groups: &[u32]) {
        let list = |numbers: &[u32], name: &dyn Fn(u32) -> Option<String>| {
            let mut list = Vec::new();
            for number in numbers {
                let name = name(*number).unwrap_or_default();
                list.extend_from_slice(&(name.len() as u32).to_be_bytes());
                list.extend_from_slice(name.as_bytes());
            }
            list
        };
        let users = list(users, &|id| self.names.user(id).map(str::to_owned));
        let groups = list(groups, &|id| self.names.group(id).map(str::to_owned));
        let mut reply = ReplyWriter::extended(out, number);
        reply.string(&users);
        reply.string(&groups);
        reply.finish();
    }
}

/// Returns whether a request may change a file system.
fn changes(request: &ClientRequest<'_>) -> bool {
    match request {
        ClientRequest::Open { flags, .. } => *flags & !packet::fxf::READ != 0,
        ClientRequest::Write { .. }
        | ClientRequest::Setstat(..)
        | ClientRequest::Fsetstat(..)
        | ClientRequest::LinkSetstat(..)
        | ClientRequest::Remove(_)
        | ClientRequest::MakeDirectory(..)
        | ClientRequest::RemoveDirectory(_)
        | ClientRequest::Rename { .. }
        | ClientRequest::Symlink { .. }
        | ClientRequest::HardLink { .. }
        | ClientRequest::CopyData { .. } => true,
        _ => false,
    }
}

fn end_of_file() -> RequestError {
    RequestError(StatusCode::Eof, "end of file".into())
}

fn no_handle() -> RequestError {
    RequestError(StatusCode::Failure, "invalid handle".into())
}

fn open_file(
    path: &Path,
    wanted: u32,
    attributes: FileAttributes,
) -> Result<OpenEntry, RequestError> {
    use packet::fxf::{APPEND, CREAT, EXCL, READ, TRUNC, WRITE};
    let mut flags = match wanted & (READ | WRITE) {
        READ => OFlags::RDONLY,
        WRITE => OFlags::WRONLY,
        _ => OFlags::RDWR,
    };
    for (asked, flag) in [
        (APPEND, OFlags::APPEND),
        (CREAT, OFlags::CREATE),
        (TRUNC, OFlags::TRUNC),
        (EXCL, OFlags::EXCL),
    ] {
        flags.set(flag, wanted & asked != 0);
    }
    // A fifo or a terminal must not block the server.
    flags |= OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(attributes.mode.unwrap_or(0o666) & PERMISSIONS);
    let file = File::from(open(path, flags, mode)?);
    if file.metadata()?.is_dir() {
        return Err(RequestError(StatusCode::Failure, "is a directory".into()));
    }
    let append = wanted & APPEND != 0;
    Ok(OpenEntry::File { file, append })
}

/// Renames a file. Without `replace` it is the draft's rename, which fails if the target exists;
/// with it, that of POSIX.
fn rename(from: &Path, to: &Path, replace: bool) -> StatusResult {
    if replace {
        return Ok(fs::rename(from, to)?);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system does not support the flag.
        Err(Errno::INVAL) if fs::symlink_metadata(to).is_err() => Ok(fs::rename(from, to)?),
        Err(Errno::INVAL) => Err(Errno::EXIST.into()),
        result => Ok(result?),
    }
}

fn timestamps((accessed, modified): (u32, u32)) -> Timestamps {
    let time = |seconds: u32| Timespec { tv_sec: seconds.into(), tv_nsec: 0 };
    Timestamps { last_access: time(accessed), last_modification: time(modified) }
}

/// Converts owner ids. The maximum id means "unchanged" to the kernel, so it is not passed on as an
/// id.
fn owner((user, group): (u32, u32)) -> (Option<Uid>, Option<Gid>) {
    let known = |id: u32| (id != u32::MAX).then_some(id);
    (known(user).map(Uid::from_raw), known(group).map(Gid::from_raw))
}

fn set_attributes(path: &Path, wanted: FileAttributes, flags: AtFlags) -> StatusResult {
    if let Some(size) = wanted.size {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        File::from(open(path, flags, Mode::empty())?).set_len(size)?;
    }
    if let Some(mode) = wanted.mode {
        chmodat(CWD, path, Mode::from_raw_mode(mode & PERMISSIONS), flags)?;
    }
    if let Some(times) = wanted.times {
        utimensat(CWD, path, &timestamps(times), flags)?;
    }
    if let Some(both) = wanted.owner {
        let (user, group) = owner(both);
        chownat(CWD, path, user, group, flags)?;
    }
    Ok(())
}

fn set_of_file(file: &File, wanted: FileAttributes) -> StatusResult {
    if let Some(size) = wanted.size {
        file.set_len(size)?;
    }
    if let Some(mode) = wanted.mode {
        fchmod(file, Mode::from_raw_mode(mode & PERMISSIONS))?;
    }
    if let Some(times) = wanted.times {
        futimens(file, &timestamps(times))?;
    }
    if let Some(both) = wanted.owner {
        let (user, group) = owner(both);
        fchown(file, user, group)?;
    }
    Ok(())
}

/// Resolves a path without symbolic links and dots. Its last component need not exist.
fn real_path(path: &Path) -> Result<PathBuf, RequestError> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let Some(name) = path.file_name() else {
                return Err(error.into());
            };
            let parent = path.parent().filter(|parent| *parent != Path::new(""));
            let parent = fs::canonicalize(parent.unwrap_or(Path::new(".")))?;
            Ok(parent.join(name))
        }
        result => Ok(result?),
    }
}

/// Expands a leading `~` or `~user`, as a shell does.
fn expand(path: &Path) -> Result<PathBuf, RequestError> {
    let bytes = path.as_os_str().as_bytes();
    let Some(rest) = bytes.strip_prefix(b"~") else {
        return Ok(path.to_owned());
    };
    let slash = rest.iter().position(|byte| *byte == b'/');
    let (user, below) = rest.split_at(slash.unwrap_or(rest.len()));
    let below = below.strip_prefix(b"/").unwrap_or(below);
    Ok(home(user)?.join(Path::new(OsStr::from_bytes(below))))
}

/// Returns the home directory of a user, or of the current user if the name is empty.
fn home(user: &[u8]) -> Result<PathBuf, RequestError> {
    let ours = rustix::process::getuid().as_raw().to_string();
    let user = if user.is_empty() { ours.as_bytes() } else { user };
    let account = users::find(user)
        .map_err(|_| RequestError(StatusCode::NoSuchFile, "unknown user".to_owned()))?;
    Ok(PathBuf::from(OsStr::from_bytes(&account.home)))
}

fn put_metadata(out: &mut Vec<u8>, number: u32, file: &Metadata) {
    packet::put_attributes(out, number, &listing::attributes(file));
}

/// Writes a list with one name and no attributes.
fn put_path(out: &mut Vec<u8>, number: u32, path: &Path) {
    let mut reply = ReplyWriter::names(out, number, 1);
    reply.string(path.as_os_str().as_bytes());
    reply.string(path.as_os_str().as_bytes());
    reply.attributes(&FileAttributes::default());
    reply.finish();
}

fn put_statvfs(out: &mut Vec<u8>, number: u32, found: &StatVfs) {
    const READ_ONLY: u64 = 1;
    const NO_SET_USER: u64 = 2;
    let flags = rustix::fs::StatVfsMountFlags::RDONLY;
    let no_set_user = rustix::fs::StatVfsMountFlags::NOSUID;
    let mut bits = 0;
    if found.f_flag.contains(flags) {
        bits |= READ_ONLY;
    }
    if found.f_flag.contains(no_set_user) {
        bits |= NO_SET_USER;
    }
    let mut reply = ReplyWriter::extended(out, number);
    for value in [
        found.f_bsize,
        found.f_frsize,
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        found.f_favail,
        found.f_fsid,
        bits,
        found.f_namemax,
    ] {
        reply.u64(value);
    }
    reply.finish();
}

fn put_limits(out: &mut Vec<u8>, number: u32) {
    let mut reply = ReplyWriter::extended(out, number);
    for value in [PACKET_BYTES_MAX, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, HANDLES_MAX] {
        reply.u64(value as u64);
    }
    reply.finish();
}

/// Returns whether a packet can be served without access to files.
pub fn needs_no_file(packet: &[u8]) -> bool {
    match packet::parse(packet).1 {
        Err(MalformedPacket) => true,
        Ok(request) => matches!(
            request,
            ClientRequest::Init
                | ClientRequest::Unknown
                | ClientRequest::Limits
                | ClientRequest::Close(_)
                | ClientRequest::Read { .. }
                | ClientRequest::Write { .. }
                | ClientRequest::Fstat(_)
                | ClientRequest::Fsetstat(..)
                | ClientRequest::ReadDirectory(_)
                | ClientRequest::FstatVfs(_)
                | ClientRequest::Sync(_)
                | ClientRequest::CopyData { .. }
                | ClientRequest::Names { .. }
        ),
    }
}
