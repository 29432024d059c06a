//! Packets of the SSH file transfer protocol, version 3 (draft-ietf-secsh-filexfer-02), with the extensions of OpenSSH
//! (its file PROTOCOL): the checked door for what a client sends, and the writer of what it is answered.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Largest packet without its length, in bytes: that of OpenSSH, which no client exceeds.
pub(crate) const PACKET_BYTES_MAX: usize = 256 * 1024;

/// Most that a read or a write moves, in bytes: a packet and room for its head.
pub(crate) const CHUNK_BYTES_MAX: usize = PACKET_BYTES_MAX - 1024;

/// Version of the protocol.
pub(crate) const VERSION: u32 = 3;

/// Extensions, and the version of each.
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

/// Codes of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Status {
    Ok = 0,
    Eof = 1,
    NoSuchFile = 2,
    PermissionDenied = 3,
    Failure = 4,
    BadMessage = 5,
    Unsupported = 8,
}

/// Kinds of packets.
mod kind {
    pub(super) const INIT: u8 = 1;
    pub(super) const VERSION: u8 = 2;
    pub(super) const STATUS: u8 = 101;
    pub(super) const HANDLE: u8 = 102;
    pub(super) const DATA: u8 = 103;
    pub(super) const NAME: u8 = 104;
    pub(super) const ATTRS: u8 = 105;
    pub(super) const EXTENDED_REPLY: u8 = 201;
}

/// Bits of an OPEN's flags.
pub(crate) mod open {
    pub(crate) const READ: u32 = 1;
    pub(crate) const WRITE: u32 = 2;
    pub(crate) const APPEND: u32 = 4;
    pub(crate) const CREATE: u32 = 8;
    pub(crate) const TRUNCATE: u32 = 16;
    pub(crate) const EXCLUSIVE: u32 = 32;
}

/// Bits that say which attributes are there.
mod present {
    pub(super) const SIZE: u32 = 1;
    pub(super) const OWNER: u32 = 2;
    pub(super) const MODE: u32 = 4;
    pub(super) const TIMES: u32 = 8;
    pub(super) const EXTENDED: u32 = 0x8000_0000;
}

/// Attributes of a file, as far as they are known or wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// In bytes.
    pub(crate) size: Option<u64>,
    /// User and group.
    pub(crate) owner: Option<(u32, u32)>,
    /// Type and permissions, as in `st_mode`.
    pub(crate) mode: Option<u32>,
    /// Last access and modification, in seconds since 1970.
    pub(crate) times: Option<(u32, u32)>,
}

/// The name of something that is open.
pub(crate) type Handle = u32;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    Init,
    Open {
        path: PathBuf,
        flags: u32,
        attributes: Attributes,
    },
    Close(Handle),
    Read {
        handle: Handle,
        offset: u64,
        length: usize,
    },
    Write {
        handle: Handle,
        offset: u64,
        data: &'a [u8],
    },
    Lstat(PathBuf),
    Fstat(Handle),
    Setstat(PathBuf, Attributes),
    Fsetstat(Handle, Attributes),
    OpenFolder(PathBuf),
    ReadFolder(Handle),
    Remove(PathBuf),
    MakeFolder(PathBuf, Attributes),
    RemoveFolder(PathBuf),
    RealPath(PathBuf),
    Stat(PathBuf),
    Rename {
        from: PathBuf,
        to: PathBuf,
        replace: bool,
    },
    ReadLink(PathBuf),
    /// What it names, and where it is; OpenSSH has them in this order, against the draft, and everybody follows it.
    Symlink {
        target: PathBuf,
        link: PathBuf,
    },
    StatVfs(PathBuf),
    FstatVfs(Handle),
    HardLink {
        from: PathBuf,
        to: PathBuf,
    },
    Sync(Handle),
    LinkSetstat(PathBuf, Attributes),
    Limits,
    ExpandPath(PathBuf),
    CopyData {
        from: Handle,
        offset: u64,
        /// `None`: to the end.
        length: Option<u64>,
        to: Handle,
        to_offset: u64,
    },
    HomeFolder(Vec<u8>),
    Names {
        users: Vec<u32>,
        groups: Vec<u32>,
    },
    Unknown,
}

/// A packet that does not have the form of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// What is left of a packet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        let bytes = self.take(8)?.try_into().map_err(|_| Malformed)?;
        Ok(u64::from_be_bytes(bytes))
    }

    fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    /// A path; an empty one is where we are.
    fn path(&mut self) -> Result<PathBuf, Malformed> {
        let bytes = self.string()?;
        if bytes.contains(&0) {
            return Err(Malformed);
        }
        let bytes = if bytes.is_empty() { b"." } else { bytes };
        Ok(Path::new(OsStr::from_bytes(bytes)).to_owned())
    }

    fn handle(&mut self) -> Result<Handle, Malformed> {
        let bytes = self.string()?.try_into().map_err(|_| Malformed)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn attributes(&mut self) -> Result<Attributes, Malformed> {
        let flags = self.u32()?;
        let mut attributes = Attributes::default();
        if flags & present::SIZE != 0 {
            attributes.size = Some(self.u64()?);
        }
        if flags & present::OWNER != 0 {
            attributes.owner = Some((self.u32()?, self.u32()?));
        }
        if flags & present::MODE != 0 {
            attributes.mode = Some(self.u32()?);
        }
        if flags & present::TIMES != 0 {
            attributes.times = Some((self.u32()?, self.u32()?));
        }
        if flags & present::EXTENDED != 0 {
            for _ in 0..self.u32()? {
                self.string()?;
                self.string()?;
            }
        }
        Ok(attributes)
    }

    fn numbers(&mut self) -> Result<Vec<u32>, Malformed> {
        let mut list = Fields(self.string()?);
        let mut numbers = Vec::new();
        while !list.0.is_empty() {
            numbers.push(list.u32()?);
        }
        Ok(numbers)
    }
}

/// Reads a packet without its length: its number (0 for the first one, which has none) and what it asks for.
pub(crate) fn parse(packet: &[u8]) -> (u32, Result<Request<'_>, Malformed>) {
    let mut fields = Fields(packet);
    let Ok(kind) = fields.byte() else {
        return (0, Err(Malformed));
    };
    let Ok(number) = fields.u32() else {
        return (0, Err(Malformed));
    };
    if kind == kind::INIT {
        return (0, Ok(Request::Init));
    }
    (number, request(kind, &mut fields))
}

fn request<'a>(kind: u8, fields: &mut Fields<'a>) -> Result<Request<'a>, Malformed> {
    Ok(match kind {
        3 => Request::Open {
            path: fields.path()?,
            flags: fields.u32()?,
            attributes: fields.attributes()?,
        },
        4 => Request::Close(fields.handle()?),
        5 => Request::Read {
            handle: fields.handle()?,
            offset: fields.u64()?,
            length: (fields.u32()? as usize).min(CHUNK_BYTES_MAX),
        },
        6 => Request::Write {
            handle: fields.handle()?,
            offset: fields.u64()?,
            data: fields.string()?,
        },
        7 => Request::Lstat(fields.path()?),
        8 => Request::Fstat(fields.handle()?),
        9 => Request::Setstat(fields.path()?, fields.attributes()?),
        10 => Request::Fsetstat(fields.handle()?, fields.attributes()?),
        11 => Request::OpenFolder(fields.path()?),
        12 => Request::ReadFolder(fields.handle()?),
        13 => Request::Remove(fields.path()?),
        14 => Request::MakeFolder(fields.path()?, fields.attributes()?),
        15 => Request::RemoveFolder(fields.path()?),
        16 => Request::RealPath(fields.path()?),
        17 => Request::Stat(fields.path()?),
        18 => rename(fields, false)?,
        19 => Request::ReadLink(fields.path()?),
        20 => Request::Symlink {
            target: fields.path()?,
            link: fields.path()?,
        },
        200 => extended(fields)?,
        _ => Request::Unknown,
    })
}

fn rename<'a>(fields: &mut Fields<'a>, replace: bool) -> Result<Request<'a>, Malformed> {
    Ok(Request::Rename {
        from: fields.path()?,
        to: fields.path()?,
        replace,
    })
}

fn extended<'a>(fields: &mut Fields<'a>) -> Result<Request<'a>, Malformed> {
    Ok(match fields.string()? {
        b"posix-rename@openssh.com" => rename(fields, true)?,
        b"statvfs@openssh.com" => Request::StatVfs(fields.path()?),
        b"fstatvfs@openssh.com" => Request::FstatVfs(fields.handle()?),
        b"hardlink@openssh.com" => Request::HardLink {
            from: fields.path()?,
            to: fields.path()?,
        },
        b"fsync@openssh.com" => Request::Sync(fields.handle()?),
        b"lsetstat@openssh.com" => Request::LinkSetstat(fields.path()?, fields.attributes()?),
        b"limits@openssh.com" => Request::Limits,
        b"expand-path@openssh.com" => Request::ExpandPath(fields.path()?),
        b"copy-data" => Request::CopyData {
            from: fields.handle()?,
            offset: fields.u64()?,
            length: Some(fields.u64()?).filter(|length| *length != 0),
            to: fields.handle()?,
            to_offset: fields.u64()?,
        },
        b"home-directory" => Request::HomeFolder(fields.string()?.to_vec()),
        b"users-groups-by-id@openssh.com" => Request::Names {
            users: fields.numbers()?,
            groups: fields.numbers()?,
        },
        _ => Request::Unknown,
    })
}

/// One answer under construction: appended to `out`, its length put right when it is finished.
pub(crate) struct Reply<'a> {
    out: &'a mut Vec<u8>,
    begin: usize,
}

impl<'a> Reply<'a> {
    fn begin(out: &'a mut Vec<u8>, kind: u8, number: u32) -> Reply<'a> {
        let begin = out.len();
        out.extend_from_slice(&[0; 4]);
        out.push(kind);
        out.extend_from_slice(&number.to_be_bytes());
        Reply { out, begin }
    }

    /// An answer of an extension, in whose form it is filled.
    pub(crate) fn extended(out: &'a mut Vec<u8>, number: u32) -> Reply<'a> {
        Reply::begin(out, kind::EXTENDED_REPLY, number)
    }

    /// A list of names.
    pub(crate) fn names(out: &'a mut Vec<u8>, number: u32, count: u32) -> Reply<'a> {
        let mut reply = Reply::begin(out, kind::NAME, number);
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

    pub(crate) fn attributes(&mut self, attributes: &Attributes) {
        let mut flags = 0;
        for (there, flag) in [
            (attributes.size.is_some(), present::SIZE),
            (attributes.owner.is_some(), present::OWNER),
            (attributes.mode.is_some(), present::MODE),
            (attributes.times.is_some(), present::TIMES),
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

    /// Puts the length right.
    pub(crate) fn finish(self) {
        let length = (self.out.len() - self.begin - 4) as u32;
        self.out[self.begin..self.begin + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// Our version and extensions. The place of a request's number is that of the version.
pub(crate) fn put_version(out: &mut Vec<u8>) {
    let mut reply = Reply::begin(out, kind::VERSION, VERSION);
    for (name, version) in EXTENSIONS {
        reply.string(name.as_bytes());
        reply.string(version.as_bytes());
    }
    reply.finish();
}

/// How a request went.
pub(crate) fn put_status(out: &mut Vec<u8>, number: u32, status: Status, message: &str) {
    let mut reply = Reply::begin(out, kind::STATUS, number);
    reply.u32(status as u32);
    reply.string(message.as_bytes());
    reply.string(b"en");
    reply.finish();
}

/// Something is open now.
pub(crate) fn put_handle(out: &mut Vec<u8>, number: u32, handle: Handle) {
    let mut reply = Reply::begin(out, kind::HANDLE, number);
    reply.string(&handle.to_be_bytes());
    reply.finish();
}

/// Bytes of a file, which `read` puts into the room that it is given, and says how many they are. 0 is the end.
pub(crate) fn put_data<E>(
    out: &mut Vec<u8>,
    number: u32,
    length: usize,
    read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
) -> Result<usize, E> {
    let begin = out.len();
    let mut reply = Reply::begin(out, kind::DATA, number);
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
            out.truncate(begin);
            other
        }
    }
}

/// What a file is.
pub(crate) fn put_attributes(out: &mut Vec<u8>, number: u32, attributes: &Attributes) {
    let mut reply = Reply::begin(out, kind::ATTRS, number);
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
        let open = packet(
            3,
            &[
                &string(b"a/b"),
                &[0, 0, 0, 10],
                &[0, 0, 0, 4, 0, 0, 1, 0xa4],
            ],
        );
        let attributes = Attributes {
            mode: Some(0o644),
            ..Attributes::default()
        };
        let expected = Request::Open {
            path: "a/b".into(),
            flags: open::CREATE | open::WRITE,
            attributes,
        };
        assert_eq!(parse(&open), (9, Ok(expected)));
        let rename = packet(
            200,
            &[
                &string(b"posix-rename@openssh.com"),
                &string(b"x"),
                &string(b""),
            ],
        );
        let expected = Request::Rename {
            from: "x".into(),
            to: ".".into(),
            replace: true,
        };
        assert_eq!(parse(&rename), (9, Ok(expected)));
        assert_eq!(parse(&packet(77, &[])), (9, Ok(Request::Unknown)));
        assert_eq!(parse(&[1, 0, 0, 0, 3]), (0, Ok(Request::Init)));
    }

    #[test]
    fn what_is_cut_off_or_holds_a_nul_is_malformed() {
        let rename = packet(18, &[&string(b"abc"), &string(b"d")]);
        for end in 5..rename.len() {
            assert_eq!(parse(&rename[..end]).1, Err(Malformed), "{end}");
        }
        assert_eq!(parse(&packet(7, &[&string(b"a\0b")])).1, Err(Malformed));
        // A handle of ours has four bytes, and a count of strings may lie.
        assert_eq!(parse(&packet(4, &[&string(b"abcde")])).1, Err(Malformed));
        let lie = packet(
            9,
            &[&string(b"a"), &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]],
        );
        assert_eq!(parse(&lie).1, Err(Malformed));
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        let mut state = 1_u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
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
        put_status(&mut out, 9, Status::Eof, "end");
        assert_eq!(out[2..6], 22_u32.to_be_bytes());
        assert_eq!(out.len(), 2 + 4 + 22);
        let nothing: Result<usize, ()> = put_data(&mut out, 1, 100, |_| Ok(0));
        assert_eq!((nothing, out.len()), (Ok(0), 28));
        let read: Result<usize, ()> = put_data(&mut out, 1, 100, |room| {
            room[..2].copy_from_slice(b"hi");
            Ok(2)
        });
        assert_eq!(read, Ok(2));
        assert_eq!(
            out[28..],
            [&[0, 0, 0, 11, 103, 0, 0, 0, 1][..], &string(b"hi")].concat()
        );
    }
}
