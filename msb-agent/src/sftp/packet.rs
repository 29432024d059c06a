//! Packets of the SSH file transfer protocol, version 3 (draft-ietf-secsh-filexfer-02), with the
//! extensions of OpenSSH (its file PROTOCOL): the parser for untrusted requests, and the writer for
//! answers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Maximum size of a packet in bytes without its length field: same as OpenSSH, which no client
/// exceeds.
pub(crate) const PACKET_BYTES_MAX: usize = 256 * 1024;

/// Maximum size of a read or write in bytes: a packet minus its header.
pub(crate) const CHUNK_BYTES_MAX: usize = PACKET_BYTES_MAX - 1024;

/// Protocol version.
pub(crate) const VERSION: u32 = 3;

/// Extensions and their versions.
pub(crate) const EXTENSIONS: [(&str, &str); 11] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
    ("copy-data", "1"),
    ("home-directory", "1"),
    ("users-groups-by-id@openssh.com", "1"),
];

/// Status codes (SSH_FX_…).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum StatusCode {
    Ok = 0,
    Eof = 1,
    NoSuchFile = 2,
    PermissionDenied = 3,
    Failure = 4,
    BadMessage = 5,
    Unsupported = 8,
}

/// Packet types (SSH_FXP_…).
mod fxp {
    pub(super) const INIT: u8 = 1;
    pub(super) const VERSION: u8 = 2;
    pub(super) const OPEN: u8 = 3;
    pub(super) const CLOSE: u8 = 4;
    pub(super) const READ: u8 = 5;
    pub(super) const WRITE: u8 = 6;
    pub(super) const LSTAT: u8 = 7;
    pub(super) const FSTAT: u8 = 8;
    pub(super) const SETSTAT: u8 = 9;
    pub(super) const FSETSTAT: u8 = 10;
    pub(super) const OPENDIR: u8 = 11;
    pub(super) const READDIR: u8 = 12;
    pub(super) const REMOVE: u8 = 13;
    pub(super) const MKDIR: u8 = 14;
    pub(super) const RMDIR: u8 = 15;
    pub(super) const REALPATH: u8 = 16;
    pub(super) const STAT: u8 = 17;
    pub(super) const RENAME: u8 = 18;
    pub(super) const READLINK: u8 = 19;
    pub(super) const SYMLINK: u8 = 20;
    pub(super) const STATUS: u8 = 101;
    pub(super) const HANDLE: u8 = 102;
    pub(super) const DATA: u8 = 103;
    pub(super) const NAME: u8 = 104;
    pub(super) const ATTRS: u8 = 105;
    pub(super) const EXTENDED: u8 = 200;
    pub(super) const EXTENDED_REPLY: u8 = 201;
}

/// Flags of SSH_FXP_OPEN (SSH_FXF_…).
pub(crate) mod fxf {
    pub(crate) const READ: u32 = 1;
    pub(crate) const WRITE: u32 = 2;
    pub(crate) const APPEND: u32 = 4;
    pub(crate) const CREAT: u32 = 8;
    pub(crate) const TRUNC: u32 = 16;
    pub(crate) const EXCL: u32 = 32;
}

/// Flags of the attributes that are present (SSH_FILEXFER_ATTR_…).
mod attr {
    pub(super) const SIZE: u32 = 1;
    pub(super) const UIDGID: u32 = 2;
    pub(super) const PERMISSIONS: u32 = 4;
    pub(super) const ACMODTIME: u32 = 8;
    pub(super) const EXTENDED: u32 = 0x8000_0000;
}

/// Attributes of a file; absent ones are `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileAttributes {
    /// Size in bytes.
    pub(crate) size: Option<u64>,
    /// User and group id.
    pub(crate) owner: Option<(u32, u32)>,
    /// Type and permissions, as in `st_mode`.
    pub(crate) mode: Option<u32>,
    /// Times of last access and modification, in seconds since 1970.
    pub(crate) times: Option<(u32, u32)>,
}

/// Handle of an open file or directory.
pub(crate) type FileHandle = u32;

/// A request of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClientRequest<'a> {
    Init,
    Open {
        path: PathBuf,
        flags: u32,
        attributes: FileAttributes,
    },
    Close(FileHandle),
    Read {
        handle: FileHandle,
        offset: u64,
        length: usize,
    },
    Write {
        handle: FileHandle,
        offset: u64,
        data: &'a [u8],
    },
    Lstat(PathBuf),
    Fstat(FileHandle),
    Setstat(PathBuf, FileAttributes),
    Fsetstat(FileHandle, FileAttributes),
    OpenDirectory(PathBuf),
    ReadDirectory(FileHandle),
    Remove(PathBuf),
    MakeDirectory(PathBuf, FileAttributes),
    RemoveDirectory(PathBuf),
    RealPath(PathBuf),
    Stat(PathBuf),
    Rename {
        from: PathBuf,
        to: PathBuf,
        replace: bool,
    },
    ReadLink(PathBuf),
    /// Target and link path are in the order that OpenSSH uses, contrary to the draft; all clients
    /// follow it.
    Symlink {
        target: PathBuf,
        link: PathBuf,
    },
    StatVfs(PathBuf),
    FstatVfs(FileHandle),
    HardLink {
        from: PathBuf,
        to: PathBuf,
    },
    Sync(FileHandle),
    LinkSetstat(PathBuf, FileAttributes),
    Limits,
    ExpandPath(PathBuf),
    CopyData {
        from: FileHandle,
        offset: u64,
        /// Length, or `None` up to the end of the file.
        length: Option<u64>,
        to: FileHandle,
        to_offset: u64,
    },
    HomeDirectory(Vec<u8>),
    Names {
        users: Vec<u32>,
        groups: Vec<u32>,
    },
    Unknown,
}

/// Error: a packet is not well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MalformedPacket;

/// Fields of a packet that are not parsed yet.
struct PacketFields<'a>(&'a [u8]);

impl<'a> PacketFields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], MalformedPacket> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(MalformedPacket)?;
        self.0 = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, MalformedPacket> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, MalformedPacket> {
        let bytes = self.take(4)?.try_into().map_err(|_| MalformedPacket)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, MalformedPacket> {
        let bytes = self.take(8)?.try_into().map_err(|_| MalformedPacket)?;
        Ok(u64::from_be_bytes(bytes))
    }

    fn string(&mut self) -> Result<&'a [u8], MalformedPacket> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    /// Parses a path. An empty one is the current directory.
    fn path(&mut self) -> Result<PathBuf, MalformedPacket> {
        let bytes = self.string()?;
        if bytes.contains(&0) {
            return Err(MalformedPacket);
        }
        let bytes = if bytes.is_empty() { b"." } else { bytes };
        Ok(Path::new(OsStr::from_bytes(bytes)).to_owned())
    }

    fn handle(&mut self) -> Result<FileHandle, MalformedPacket> {
        let bytes = self.string()?.try_into().map_err(|_| MalformedPacket)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn attributes(&mut self) -> Result<FileAttributes, MalformedPacket> {
        let flags = self.u32()?;
        let mut attributes = FileAttributes::default();
        if flags & attr::SIZE != 0 {
            attributes.size = Some(self.u64()?);
        }
        if flags & attr::UIDGID != 0 {
            attributes.owner = Some((self.u32()?, self.u32()?));
        }
        if flags & attr::PERMISSIONS != 0 {
            attributes.mode = Some(self.u32()?);
        }
        if flags & attr::ACMODTIME != 0 {
            attributes.times = Some((self.u32()?, self.u32()?));
        }
        if flags & attr::EXTENDED != 0 {
            for _ in 0..self.u32()? {
                self.string()?;
                self.string()?;
            }
        }
        Ok(attributes)
    }

    fn numbers(&mut self) -> Result<Vec<u32>, MalformedPacket> {
        let mut list = PacketFields(self.string()?);
        let mut numbers = Vec::new();
        while !list.0.is_empty() {
            numbers.push(list.u32()?);
        }
        Ok(numbers)
    }
}

/// Parses a packet without its length field. Returns its request id (0 for SSH_FXP_INIT, which has
/// none) and the request.
pub(crate) fn parse(packet: &[u8]) -> (u32, Result<ClientRequest<'_>, MalformedPacket>) {
    let mut fields = PacketFields(packet);
    let Ok(kind) = fields.byte() else {
        return (0, Err(MalformedPacket));
    };
    let Ok(number) = fields.u32() else {
        return (0, Err(MalformedPacket));
    };
    if kind == fxp::INIT {
        return (0, Ok(ClientRequest::Init));
    }
    (number, request(kind, &mut fields))
}

fn request<'a>(
    kind: u8,
    fields: &mut PacketFields<'a>,
) -> Result<ClientRequest<'a>, MalformedPacket> {
    Ok(match kind {
        fxp::OPEN => ClientRequest::Open {
            path: fields.path()?,
            flags: fields.u32()?,
            attributes: fields.attributes()?,
        },
        fxp::CLOSE => ClientRequest::Close(fields.handle()?),
        fxp::READ => ClientRequest::Read {
            handle: fields.handle()?,
            offset: fields.u64()?,
            length: (fields.u32()? as usize).min(CHUNK_BYTES_MAX),
        },
        fxp::WRITE => ClientRequest::Write {
            handle: fields.handle()?,
            offset: fields.u64()?,
            data: fields.string()?,
        },
        fxp::LSTAT => ClientRequest::Lstat(fields.path()?),
        fxp::FSTAT => ClientRequest::Fstat(fields.handle()?),
        fxp::SETSTAT => ClientRequest::Setstat(fields.path()?, fields.attributes()?),
        fxp::FSETSTAT => ClientRequest::Fsetstat(fields.handle()?, fields.attributes()?),
        fxp::OPENDIR => ClientRequest::OpenDirectory(fields.path()?),
        fxp::READDIR => ClientRequest::ReadDirectory(fields.handle()?),
        fxp::REMOVE => ClientRequest::Remove(fields.path()?),
        fxp::MKDIR => ClientRequest::MakeDirectory(fields.path()?, fields.attributes()?),
        fxp::RMDIR => ClientRequest::RemoveDirectory(fields.path()?),
        fxp::REALPATH => ClientRequest::RealPath(fields.path()?),
        fxp::STAT => ClientRequest::Stat(fields.path()?),
        fxp::RENAME => rename(fields, false)?,
        fxp::READLINK => ClientRequest::ReadLink(fields.path()?),
        fxp::SYMLINK => ClientRequest::Symlink { target: fields.path()?, link: fields.path()? },
        fxp::EXTENDED => extended(fields)?,
        _ => ClientRequest::Unknown,
    })
}

fn rename<'a>(
    fields: &mut PacketFields<'a>,
    replace: bool,
) -> Result<ClientRequest<'a>, MalformedPacket> {
    Ok(ClientRequest::Rename { from: fields.path()?, to: fields.path()?, replace })
}

fn extended<'a>(fields: &mut PacketFields<'a>) -> Result<ClientRequest<'a>, MalformedPacket> {
    Ok(match fields.string()? {
        b"posix-rename@openssh.com" => rename(fields, true)?,
        b"statvfs@openssh.com" => ClientRequest::StatVfs(fields.path()?),
        b"fstatvfs@openssh.com" => ClientRequest::FstatVfs(fields.handle()?),
        b"hardlink@openssh.com" => {
            ClientRequest::HardLink { from: fields.path()?, to: fields.path()? }
        }
        b"fsync@openssh.com" => ClientRequest::Sync(fields.handle()?),
        b"lsetstat@openssh.com" => ClientRequest::LinkSetstat(fields.path()?, fields.attributes()?),
        b"limits@openssh.com" => ClientRequest::Limits,
        b"expand-path@openssh.com" => ClientRequest::ExpandPath(fields.path()?),
        b"copy-data" => ClientRequest::CopyData {
            from: fields.handle()?,
            offset: fields.u64()?,
            length: Some(fields.u64()?).filter(|length| *length != 0),
            to: fields.handle()?,
            to_offset: fields.u64()?,
        },
        b"home-directory" => ClientRequest::HomeDirectory(fields.string()?.to_vec()),
        b"users-groups-by-id@openssh.com" => {
            ClientRequest::Names { users: fields.numbers()?, groups: fields.numbers()? }
        }
        _ => ClientRequest::Unknown,
    })
}

/// An answer that is being written to `out`. Its length field is set when it is finished.
pub(crate) struct ReplyWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> ReplyWriter<'a> {
    fn start(out: &'a mut Vec<u8>, kind: u8, number: u32) -> ReplyWriter<'a> {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.push(kind);
        out.extend_from_slice(&number.to_be_bytes());
        ReplyWriter { out, start }
    }

    /// Starts the answer to an extended request.
    pub(crate) fn extended(out: &'a mut Vec<u8>, number: u32) -> ReplyWriter<'a> {
        ReplyWriter::start(out, fxp::EXTENDED_REPLY, number)
    }

    /// Starts a list of names.
    pub(crate) fn names(out: &'a mut Vec<u8>, number: u32, count: u32) -> ReplyWriter<'a> {
        let mut reply = ReplyWriter::start(out, fxp::NAME, number);
        reply.u32(count);
        reply
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn string(&mut self, value: &[u8]) {
        self.u32(value.len() as u32);
        self.out.extend_from_slice(value);
    }

    pub(crate) fn attributes(&mut self, attributes: &FileAttributes) {
        let mut flags = 0;
        for (there, flag) in [
            (attributes.size.is_some(), attr::SIZE),
            (attributes.owner.is_some(), attr::UIDGID),
            (attributes.mode.is_some(), attr::PERMISSIONS),
            (attributes.times.is_some(), attr::ACMODTIME),
        ] {
            flags |= if there { flag } else { 0 };
        }
        self.u32(flags);
        if let Some(size) = attributes.size {
            self.u64(size);
        }
        if let Some((user, group)) = attributes.owner {
            self.u32(user);
            self.u32(group);
        }
        if let Some(mode) = attributes.mode {
            self.u32(mode);
        }
        if let Some((accessed, modified)) = attributes.times {
            self.u32(accessed);
            self.u32(modified);
        }
    }

    /// Sets the length field.
    pub(crate) fn finish(self) {
        let length = (self.out.len() - self.start - 4) as u32;
        self.out[self.start..self.start + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// Writes SSH_FXP_VERSION with the extensions. The version takes the place of the request id.
pub(crate) fn put_version(out: &mut Vec<u8>) {
    let mut reply = ReplyWriter::start(out, fxp::VERSION, VERSION);
    for (name, version) in EXTENSIONS {
        reply.string(name.as_bytes());
        reply.string(version.as_bytes());
    }
    reply.finish();
}

/// Writes a status.
pub(crate) fn put_status(out: &mut Vec<u8>, number: u32, status: StatusCode, message: &str) {
    let mut reply = ReplyWriter::start(out, fxp::STATUS, number);
    reply.u32(status as u32);
    reply.string(message.as_bytes());
    reply.string(b"en");
    reply.finish();
}

/// Writes a handle.
pub(crate) fn put_handle(out: &mut Vec<u8>, number: u32, handle: FileHandle) {
    let mut reply = ReplyWriter::start(out, fxp::HANDLE, number);
    reply.string(&handle.to_be_bytes());
    reply.finish();
}

/// Writes data, which `read` puts into a buffer. It returns the number of bytes, 0 at the end of
/// the file.
pub(crate) fn put_data<E>(
    out: &mut Vec<u8>,
    number: u32,
    length: usize,
    read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
) -> Result<usize, E> {
    let start = out.len();
    let mut reply = ReplyWriter::start(out, fxp::DATA, number);
    reply.u32(0);
    let data = reply.out.len();
    reply.out.resize(data + length, 0);
    match read(&mut reply.out[data..]) {
        Ok(count) if count > 0 => {
            reply.out.truncate(data + count);
            reply.out[data - 4..data].copy_from_slice(&(count as u32).to_be_bytes());
            reply.finish();
            Ok(count)
        }
        other => {
            out.truncate(start);
            other
        }
    }
}

/// Writes the attributes of a file.
pub(crate) fn put_attributes(out: &mut Vec<u8>, number: u32, attributes: &FileAttributes) {
    let mut reply = ReplyWriter::start(out, fxp::ATTRS, number);
    reply.attributes(attributes);
    reply.finish();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
    }

    fn packet(kind: u8, fields: &[&[u8]]) -> Vec<u8> {
        [&[kind, 0, 0, 0, 9][..], &fields.concat()].concat()
    }

    #[test]
    fn requests_are_read_field_by_field() {
        let open = packet(3, &[&string(b"a/b"), &[0, 0, 0, 10], &[0, 0, 0, 4, 0, 0, 1, 0xa4]]);
        let attributes = FileAttributes { mode: Some(0o644), ..FileAttributes::default() };
        let expected =
            ClientRequest::Open { path: "a/b".into(), flags: fxf::CREAT | fxf::WRITE, attributes };
        assert_eq!(parse(&open), (9, Ok(expected)));
        let rename =
            packet(200, &[&string(b"posix-rename@openssh.com"), &string(b"x"), &string(b"")]);
        let expected = ClientRequest::Rename { from: "x".into(), to: ".".into(), replace: true };
        assert_eq!(parse(&rename), (9, Ok(expected)));
        assert_eq!(parse(&packet(77, &[])), (9, Ok(ClientRequest::Unknown)));
        assert_eq!(parse(&[1, 0, 0, 0, 3]), (0, Ok(ClientRequest::Init)));
    }

    #[test]
    fn truncated_packets_and_nul_bytes_are_malformed() {
        let rename = packet(18, &[&string(b"abc"), &string(b"d")]);
        for end in 5..rename.len() {
            assert_eq!(parse(&rename[..end]).1, Err(MalformedPacket), "{end}");
        }
        assert_eq!(parse(&packet(7, &[&string(b"a\0b")])).1, Err(MalformedPacket));
        // Handles have four bytes, and a count of strings may be wrong.
        assert_eq!(parse(&packet(4, &[&string(b"abcde")])).1, Err(MalformedPacket));
        let lie = packet(9, &[&string(b"a"), &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]]);
        assert_eq!(parse(&lie).1, Err(MalformedPacket));
    }

    #[test]
    fn any_bytes_are_parsed_or_rejected() {
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        for kind in 0..=255 {
            for length in 0..64 {
                let body: Vec<u8> = (0..length).map(|_| random() & 0x8f).collect();
                let _ = parse(&packet(kind, &[&body]));
            }
        }
    }

    #[test]
    fn an_answer_carries_its_length() {
        let mut out = vec![1, 2];
        put_status(&mut out, 9, StatusCode::Eof, "end");
        assert_eq!(out[2..6], 22_u32.to_be_bytes());
        assert_eq!(out.len(), 2 + 4 + 22);
        let nothing: Result<usize, ()> = put_data(&mut out, 1, 100, |_| Ok(0));
        assert_eq!((nothing, out.len()), (Ok(0), 28));
        let read: Result<usize, ()> = put_data(&mut out, 1, 100, |room| {
            room[..2].copy_from_slice(b"hi");
            Ok(2)
        });
        assert_eq!(read, Ok(2));
        assert_eq!(out[28..], [&[0, 0, 0, 11, 103, 0, 0, 0, 1][..], &string(b"hi")].concat());
    }
}
