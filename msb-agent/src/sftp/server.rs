//! What is done for a request.

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

use super::listing::{self, Names};
use super::packet::{
    self, Attributes, CHUNK_BYTES_MAX, Handle, Malformed, PACKET_BYTES_MAX, Reply, Request, Status,
};
use crate::console::reason;
use crate::users;

/// Files and folders that one client may have open.
const HANDLES_MAX: usize = 512;

/// Bytes of names in one answer; a client asks again for the rest.
const NAMES_BYTES: usize = 32 * 1024;

/// Permission bits of a mode.
const PERMISSIONS: u32 = 0o7777;

/// Something open.
enum Open {
    File {
        file: File,
        /// Written at its end, whatever offset is given.
        append: bool,
    },
    Folder {
        path: PathBuf,
        entries: ReadDir,
    },
}

/// The server's side of one client.
pub(super) struct Server {
    read_only: bool,
    open: HashMap<Handle, Open>,
    next: Handle,
    names: Names,
}

/// Why a request failed.
struct Failed(Status, String);

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        let status = match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Status::NoSuchFile,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Status::PermissionDenied,
            ErrorKind::Unsupported => Status::Unsupported,
            _ => Status::Failure,
        };
        Failed(status, reason(error))
    }
}

impl From<Errno> for Failed {
    fn from(error: Errno) -> Failed {
        io::Error::from(error).into()
    }
}

type Done = Result<(), Failed>;

impl Server {
    /// For a client that may change files, or not.
    pub(super) fn new(read_only: bool) -> Server {
        Server {
            read_only,
            open: HashMap::new(),
            next: 0,
            names: Names::read(),
        }
    }

    /// Appends the answer to a packet.
    pub(super) fn answer(&mut self, packet: &[u8], out: &mut Vec<u8>) {
        let (number, request) = packet::parse(packet);
        let done = match request {
            Ok(request) if self.read_only && changes(&request) => Err(Failed(
                Status::PermissionDenied,
                "files may only be read here".into(),
            )),
            Ok(request) => self.serve(number, request, out),
            Err(Malformed) => Err(Failed(Status::BadMessage, "a malformed request".into())),
        };
        if let Err(Failed(status, message)) = done {
            packet::put_status(out, number, status, &message);
        }
    }

    fn serve(&mut self, number: u32, request: Request<'_>, out: &mut Vec<u8>) -> Done {
        match request {
            Request::Init => packet::put_version(out),
            Request::Open {
                path,
                flags,
                attributes,
            } => {
                let open = open_file(&path, flags, attributes)?;
                packet::put_handle(out, number, self.keep(open)?);
            }
            Request::OpenFolder(path) => {
                let entries = fs::read_dir(&path)?;
                packet::put_handle(out, number, self.keep(Open::Folder { path, entries })?);
            }
            Request::Read {
                handle,
                offset,
                length,
            } => {
                let file = self.file(handle)?;
                let read = |room: &mut [u8]| file.read_at(room, offset);
                if packet::put_data(out, number, length, read)? == 0 {
                    return Err(end());
                }
            }
            Request::ReadFolder(handle) => self.read_folder(number, handle, out)?,
            Request::Stat(path) => put_metadata(out, number, &fs::metadata(path)?),
            Request::Lstat(path) => put_metadata(out, number, &fs::symlink_metadata(path)?),
            Request::Fstat(handle) => put_metadata(out, number, &self.metadata(handle)?),
            Request::RealPath(path) => put_path(out, number, &real_path(&path)?),
            Request::ReadLink(path) => put_path(out, number, &fs::read_link(path)?),
            Request::ExpandPath(path) => put_path(out, number, &real_path(&expand(&path)?)?),
            Request::HomeFolder(user) => put_path(out, number, &home(&user)?),
            Request::StatVfs(path) => put_statvfs(out, number, &statvfs(&path)?),
            Request::FstatVfs(handle) => put_statvfs(out, number, &fstatvfs(self.file(handle)?)?),
            Request::Limits => put_limits(out, number),
            Request::Names { users, groups } => self.put_names(out, number, &users, &groups),
            other => {
                self.change(other)?;
                packet::put_status(out, number, Status::Ok, "done");
            }
        }
        Ok(())
    }

    /// Requests that are answered by their status alone.
    fn change(&mut self, request: Request<'_>) -> Done {
        match request {
            Request::Close(handle) => {
                let closed = self.open.remove(&handle).ok_or_else(no_handle)?;
                drop(closed);
            }
            Request::Write {
                handle,
                offset,
                data,
            } => match self.open.get(&handle) {
                Some(Open::File { file, append: true }) => io::Write::write_all(&mut &*file, data)?,
                Some(Open::File { file, .. }) => file.write_all_at(data, offset)?,
                _ => return Err(no_handle()),
            },
            Request::Setstat(path, wanted) => set_attributes(&path, wanted, AtFlags::empty())?,
            Request::LinkSetstat(path, wanted) => {
                set_attributes(&path, wanted, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Request::Fsetstat(handle, wanted) => set_of_file(self.file(handle)?, wanted)?,
            Request::Remove(path) => fs::remove_file(path)?,
            Request::MakeFolder(path, wanted) => {
                let mode = wanted.mode.unwrap_or(0o777) & PERMISSIONS;
                mkdir(&path, Mode::from_raw_mode(mode))?;
            }
            Request::RemoveFolder(path) => fs::remove_dir(path)?,
            Request::Rename { from, to, replace } => rename(&from, &to, replace)?,
            Request::Symlink { target, link } => symlink(target, link)?,
            Request::HardLink { from, to } => fs::hard_link(from, to)?,
            Request::Sync(handle) => self.file(handle)?.sync_all()?,
            Request::CopyData {
                from,
                offset,
                length,
                to,
                to_offset,
            } => self.copy(from, offset, length, to, to_offset)?,
            _ => {
                let message = "this operation is not known here".to_owned();
                return Err(Failed(Status::Unsupported, message));
            }
        }
        Ok(())
    }

    fn keep(&mut self, open: Open) -> Result<Handle, Failed> {
        if self.open.len() >= HANDLES_MAX {
            let message = format!("{HANDLES_MAX} files are open already");
            return Err(Failed(Status::Failure, message));
        }
        while self.open.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let handle = self.next;
        self.next = self.next.wrapping_add(1);
        self.open.insert(handle, open);
        Ok(handle)
    }

    fn file(&self, handle: Handle) -> Result<&File, Failed> {
        match self.open.get(&handle) {
            Some(Open::File { file, .. }) => Ok(file),
            _ => Err(no_handle()),
        }
    }

    fn metadata(&self, handle: Handle) -> Result<Metadata, Failed> {
        match self.open.get(&handle) {
            Some(Open::File { file, .. }) => Ok(file.metadata()?),
            Some(Open::Folder { path, .. }) => Ok(fs::metadata(path)?),
            None => Err(no_handle()),
        }
    }

    fn read_folder(&mut self, number: u32, handle: Handle, out: &mut Vec<u8>) -> Done {
        let Some(Open::Folder { entries, .. }) = self.open.get_mut(&handle) else {
            return Err(no_handle());
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |time| time.as_secs() as i64);
        let (mut found, mut bytes) = (Vec::new(), 0);
        while bytes < NAMES_BYTES
            && let Some(entry) = entries.next()
        {
            let entry = entry?;
            // One that has gone in between is not in the folder any more.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let name = entry.file_name();
            let line = listing::line(name.as_bytes(), &metadata, &self.names, now);
            bytes += name.len() + line.len() + 40;
            found.push((name, line, listing::attributes(&metadata)));
        }
        if found.is_empty() {
            return Err(end());
        }
        let mut reply = Reply::names(out, number, found.len() as u32);
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
        from: Handle,
        offset: u64,
        length: Option<u64>,
        to: Handle,
        to_offset: u64,
    ) -> Done {
        let (source, target) = (self.file(from)?, self.file(to)?);
        if from == to {
            return Err(Failed(Status::Failure, "a file onto itself".into()));
        }
        let mut buffer = vec![0; CHUNK_BYTES_MAX];
        let (mut done, wanted) = (0, length.unwrap_or(u64::MAX));
        while done < wanted {
            let most = usize::try_from(wanted - done).map_or(buffer.len(), |m| m.min(buffer.len()));
            let at = offset.saturating_add(done);
            match source.read_at(&mut buffer[..most], at)? {
                0 if length.is_none() => break,
                0 => return Err(end()),
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
        let mut reply = Reply::extended(out, number);
        reply.string(&users);
        reply.string(&groups);
        reply.finish();
    }
}

/// Whether a request would change a file system.
fn changes(request: &Request<'_>) -> bool {
    match request {
        Request::Open { flags, .. } => *flags & !packet::open::READ != 0,
        Request::Write { .. }
        | Request::Setstat(..)
        | Request::Fsetstat(..)
        | Request::LinkSetstat(..)
        | Request::Remove(_)
        | Request::MakeFolder(..)
        | Request::RemoveFolder(_)
        | Request::Rename { .. }
        | Request::Symlink { .. }
        | Request::HardLink { .. }
        | Request::CopyData { .. } => true,
        _ => false,
    }
}

fn end() -> Failed {
    Failed(Status::Eof, "end of file".into())
}

fn no_handle() -> Failed {
    Failed(Status::Failure, "nothing is open under this handle".into())
}

fn open_file(path: &Path, wanted: u32, attributes: Attributes) -> Result<Open, Failed> {
    use packet::open::{APPEND, CREATE, EXCLUSIVE, READ, TRUNCATE, WRITE};
    let mut flags = match wanted & (READ | WRITE) {
        READ => OFlags::RDONLY,
        WRITE => OFlags::WRONLY,
        _ => OFlags::RDWR,
    };
    for (asked, flag) in [
        (APPEND, OFlags::APPEND),
        (CREATE, OFlags::CREATE),
        (TRUNCATE, OFlags::TRUNC),
        (EXCLUSIVE, OFlags::EXCL),
    ] {
        flags.set(flag, wanted & asked != 0);
    }
    // A fifo or a terminal must not hold up everything else.
    flags |= OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(attributes.mode.unwrap_or(0o666) & PERMISSIONS);
    let file = File::from(open(path, flags, mode)?);
    if file.metadata()?.is_dir() {
        return Err(Failed(Status::Failure, "it is a folder".into()));
    }
    let append = wanted & APPEND != 0;
    Ok(Open::File { file, append })
}

/// Without replacing what is there: the draft's rename. With it: that of POSIX.
fn rename(from: &Path, to: &Path, replace: bool) -> Done {
    if replace {
        return Ok(fs::rename(from, to)?);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that does not know the flag.
        Err(Errno::INVAL) if fs::symlink_metadata(to).is_err() => Ok(fs::rename(from, to)?),
        Err(Errno::INVAL) => Err(Errno::EXIST.into()),
        result => Ok(result?),
    }
}

fn timestamps((accessed, modified): (u32, u32)) -> Timestamps {
    let time = |seconds: u32| Timespec {
        tv_sec: seconds.into(),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time(accessed),
        last_modification: time(modified),
    }
}

/// A number that means "as it is" would be somebody's in the kernel's eyes.
fn owner((user, group): (u32, u32)) -> (Option<Uid>, Option<Gid>) {
    let known = |id: u32| (id != u32::MAX).then_some(id);
    (
        known(user).map(Uid::from_raw),
        known(group).map(Gid::from_raw),
    )
}

fn set_attributes(path: &Path, wanted: Attributes, flags: AtFlags) -> Done {
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

fn set_of_file(file: &File, wanted: Attributes) -> Done {
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

/// The path without links and dots. Its last name need not be there yet.
fn real_path(path: &Path) -> Result<PathBuf, Failed> {
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

/// `~` and `~user` at the beginning, as a shell has them.
fn expand(path: &Path) -> Result<PathBuf, Failed> {
    let bytes = path.as_os_str().as_bytes();
    let Some(rest) = bytes.strip_prefix(b"~") else {
        return Ok(path.to_owned());
    };
    let slash = rest.iter().position(|byte| *byte == b'/');
    let (user, below) = rest.split_at(slash.unwrap_or(rest.len()));
    let below = below.strip_prefix(b"/").unwrap_or(below);
    Ok(home(user)?.join(Path::new(OsStr::from_bytes(below))))
}

/// The home of a user; of ourselves when none is named.
fn home(user: &[u8]) -> Result<PathBuf, Failed> {
    let ours = rustix::process::getuid().as_raw().to_string();
    let user = if user.is_empty() {
        ours.as_bytes()
    } else {
        user
    };
    let account = users::find(user)
        .map_err(|_| Failed(Status::NoSuchFile, "there is no such user".to_owned()))?;
    Ok(PathBuf::from(OsStr::from_bytes(&account.home)))
}

fn put_metadata(out: &mut Vec<u8>, number: u32, file: &Metadata) {
    packet::put_attributes(out, number, &listing::attributes(file));
}

/// One name, whose attributes nobody asks for.
fn put_path(out: &mut Vec<u8>, number: u32, path: &Path) {
    let mut reply = Reply::names(out, number, 1);
    reply.string(path.as_os_str().as_bytes());
    reply.string(path.as_os_str().as_bytes());
    reply.attributes(&Attributes::default());
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
    let mut reply = Reply::extended(out, number);
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
    let mut reply = Reply::extended(out, number);
    for value in [
        PACKET_BYTES_MAX,
        CHUNK_BYTES_MAX,
        CHUNK_BYTES_MAX,
        HANDLES_MAX,
    ] {
        reply.u64(value as u64);
    }
    reply.finish();
}

/// Whether a packet can be served without a look at any file: for the fuzzer, which sends everything.
#[cfg(any(test, fuzzing))]
pub(super) fn touches_nothing(packet: &[u8]) -> bool {
    match packet::parse(packet).1 {
        Err(Malformed) => true,
        Ok(request) => matches!(
            request,
            Request::Init
                | Request::Unknown
                | Request::Limits
                | Request::Close(_)
                | Request::Read { .. }
                | Request::Write { .. }
                | Request::Fstat(_)
                | Request::Fsetstat(..)
                | Request::ReadFolder(_)
                | Request::FstatVfs(_)
                | Request::Sync(_)
                | Request::CopyData { .. }
                | Request::Names { .. }
        ),
    }
}
