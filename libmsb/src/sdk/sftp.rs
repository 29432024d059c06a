//! A client of the SSH file transfer protocol, version 3 (draft-ietf-secsh-filexfer-02), over the
//! operation `sftp` of a sandbox.
//!
//! A thread reads the answers and gives each to the caller that waits for it, so that any number of
//! threads share a session and requests can be sent before earlier ones are answered.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use msb_wire::client::{CallReader, CallSender, ClientCall, ClientConnection, Incoming};
use msb_wire::exec::ExecEvent;
use msb_wire::frame::{STDIN, STDOUT};
use msb_wire::sandbox::Request;
use msb_wire::sftp::SftpRequest;
use msb_wire::text::Text;

use super::error::Error;
use crate::cli::error::Code;

/// Longest packet that is accepted from a guest, in bytes.
const PACKET_BYTES_MAX: usize = 1 << 20;

/// Bytes of one read or write.
pub(super) const CHUNK_BYTES: usize = 128 << 10;

/// Flags of an open request (section 6.3).
pub(super) const OPEN_READ: u32 = 1;
pub(super) const OPEN_WRITE: u32 = 2;
pub(super) const OPEN_CREATE: u32 = 8;
pub(super) const OPEN_TRUNCATE: u32 = 16;

/// Types of packets (section 3).
pub(super) mod kind {
    pub(super) const INIT: u8 = 1;
    pub(super) const VERSION: u8 = 2;
    pub(in crate::sdk) const OPEN: u8 = 3;
    pub(in crate::sdk) const CLOSE: u8 = 4;
    pub(in crate::sdk) const READ: u8 = 5;
    pub(in crate::sdk) const WRITE: u8 = 6;
    pub(in crate::sdk) const LSTAT: u8 = 7;
    pub(in crate::sdk) const SETSTAT: u8 = 9;
    pub(in crate::sdk) const FSETSTAT: u8 = 10;
    pub(in crate::sdk) const OPENDIR: u8 = 11;
    pub(in crate::sdk) const READDIR: u8 = 12;
    pub(in crate::sdk) const REMOVE: u8 = 13;
    pub(in crate::sdk) const MKDIR: u8 = 14;
    pub(in crate::sdk) const RMDIR: u8 = 15;
    pub(in crate::sdk) const REALPATH: u8 = 16;
    pub(in crate::sdk) const STAT: u8 = 17;
    pub(in crate::sdk) const READLINK: u8 = 19;
    pub(in crate::sdk) const SYMLINK: u8 = 20;
    pub(in crate::sdk) const EXTENDED: u8 = 200;
    pub(super) const STATUS: u8 = 101;
    pub(super) const HANDLE: u8 = 102;
    pub(super) const DATA: u8 = 103;
    pub(super) const NAME: u8 = 104;
    pub(super) const ATTRS: u8 = 105;
}

/// Status codes (section 7).
const STATUS_OK: u32 = 0;
const STATUS_EOF: u32 = 1;
const STATUS_NO_SUCH_FILE: u32 = 2;

/// Bits of the flags of attributes (section 5).
const ATTR_SIZE: u32 = 1;
const ATTR_OWNER: u32 = 2;
const ATTR_MODE: u32 = 4;
const ATTR_TIMES: u32 = 8;
const ATTR_EXTENDED: u32 = 0x8000_0000;

/// Bits of a file's mode that hold its type.
const TYPE_MASK: u32 = 0o170_000;

/// Type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Device, socket or pipe.
    Other,
}

/// Metadata of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// Type.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits, 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last access, to the second.
    pub accessed: Option<SystemTime>,
    /// Time of the last change of the contents, to the second.
    pub modified: Option<SystemTime>,
}

fn invalid(message: &str) -> Error {
    Error::new(Code::Failed, format!("invalid answer of the guest's file server: {message}"))
}

/// The fields of a request, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Body(Vec<u8>);

impl Body {
    pub(super) fn u32(mut self, value: u32) -> Body {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Body {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Adds a string with its length.
    pub(super) fn text(self, value: impl AsRef<[u8]>) -> Body {
        let value = value.as_ref();
        // Longer strings than 4 GiB are refused by the server, as any long packet.
        let mut body = self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        body.0.extend(value);
        body
    }

    /// Adds attributes: none, permission bits, or owner and group.
    pub(super) fn attributes(self, change: Attributes) -> Body {
        match change {
            Attributes::None => self.u32(0),
            Attributes::Mode(mode) => self.u32(ATTR_MODE).u32(mode),
            Attributes::Owner(uid, gid) => self.u32(ATTR_OWNER).u32(uid).u32(gid),
        }
    }
}

/// Attributes that a request sets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Attributes {
    /// None.
    None,
    /// Permission bits.
    Mode(u32),
    /// Owner and group.
    Owner(u32, u32),
}

/// The fields of an answer that have not been read.
#[derive(Debug)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) =
            self.0.split_at_checked(count).ok_or_else(|| invalid("it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        let bytes = self.take(4)?.first_chunk().ok_or_else(|| invalid("it ends early"))?;
        Ok(u32::from_be_bytes(*bytes))
    }

    fn u64(&mut self) -> Result<u64, Error> {
        let bytes = self.take(8)?.first_chunk().ok_or_else(|| invalid("it ends early"))?;
        Ok(u64::from_be_bytes(*bytes))
    }

    fn text(&mut self) -> Result<&'a [u8], Error> {
        let length = self.u32()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn stat(&mut self) -> Result<FileStat, Error> {
        let flags = self.u32()?;
        let has = |bit: u32| flags & bit != 0;
        let size = if has(ATTR_SIZE) { self.u64()? } else { 0 };
        let (uid, gid) = if has(ATTR_OWNER) { (self.u32()?, self.u32()?) } else { (0, 0) };
        let mode = if has(ATTR_MODE) { self.u32()? } else { 0 };
        let times = if has(ATTR_TIMES) { Some((self.u32()?, self.u32()?)) } else { None };
        if has(ATTR_EXTENDED) {
            for _ in 0..self.u32()? {
                self.text()?;
                self.text()?;
            }
        }
        let kind = match mode & TYPE_MASK {
            0o100_000 => FileKind::File,
            0o040_000 => FileKind::Directory,
            0o120_000 => FileKind::Symlink,
            _ => FileKind::Other,
        };
        let time = |seconds: u32| UNIX_EPOCH + Duration::from_secs(seconds.into());
        Ok(FileStat {
            kind,
            size,
            mode: mode & 0o7777,
            uid,
            gid,
            accessed: times.map(|(accessed, _)| time(accessed)),
            modified: times.map(|(_, modified)| time(modified)),
        })
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    kind: u8,
    body: Vec<u8>,
}

/// A request that the guest has refused, for the error's text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    /// The action, such as `open`.
    pub(super) action: &'a str,
    /// The path.
    pub(super) path: &'a str,
}

impl Answer {
    /// Returns the error of a status that is neither success nor `also`.
    fn check(&self, subject: Subject<'_>, also: u32) -> Result<u32, Error> {
        if self.kind != kind::STATUS {
            return Err(invalid(&format!("a packet of type {}", self.kind)));
        }
        let mut fields = Fields(&self.body);
        let status = fields.u32()?;
        if status == STATUS_OK || status == also {
            return Ok(status);
        }
        let code = if status == STATUS_NO_SUCH_FILE { Code::NotFound } else { Code::Failed };
        let reason = String::from_utf8_lossy(fields.text().unwrap_or_default()).into_owned();
        let Subject { action, path } = subject;
        Err(Error::new(code, format!("cannot {action} '{path}' in the guest: {reason}")))
    }

    /// Returns whether the request succeeded.
    pub(super) fn ok(&self, subject: Subject<'_>) -> Result<(), Error> {
        self.check(subject, STATUS_OK).map(drop)
    }

    /// Returns the handle of an opened file or directory.
    pub(super) fn handle(&self, subject: Subject<'_>) -> Result<Vec<u8>, Error> {
        if self.kind == kind::HANDLE {
            return Ok(Fields(&self.body).text()?.to_vec());
        }
        self.ok(subject)?;
        Err(invalid("no handle"))
    }

    /// Returns the one name of the answer.
    pub(super) fn name(&self, subject: Subject<'_>) -> Result<String, Error> {
        if self.kind == kind::NAME {
            let mut fields = Fields(&self.body);
            if fields.u32()? == 1 {
                return Ok(String::from_utf8_lossy(fields.text()?).into_owned());
            }
        }
        self.ok(subject)?;
        Err(invalid("no name"))
    }

    /// Returns the entries of a directory; `None` after the last.
    pub(super) fn entries(
        &self,
        subject: Subject<'_>,
    ) -> Result<Option<Vec<(String, FileStat)>>, Error> {
        if self.kind != kind::NAME {
            return self.check(subject, STATUS_EOF).map(|_| None);
        }
        let mut fields = Fields(&self.body);
        let mut entries = Vec::new();
        for _ in 0..fields.u32()? {
            let name = String::from_utf8_lossy(fields.text()?).into_owned();
            fields.text()?;
            entries.push((name, fields.stat()?));
        }
        Ok(Some(entries))
    }

    /// Returns the attributes.
    pub(super) fn stat(&self, subject: Subject<'_>) -> Result<FileStat, Error> {
        if self.kind == kind::ATTRS {
            return Fields(&self.body).stat();
        }
        self.ok(subject)?;
        Err(invalid("no attributes"))
    }

    /// Returns the bytes of a read; none at the end of the file.
    pub(super) fn data(&self, subject: Subject<'_>) -> Result<&[u8], Error> {
        if self.kind == kind::DATA {
            return Fields(&self.body).text();
        }
        self.check(subject, STATUS_EOF).map(|_| [].as_slice())
    }
}

#[derive(Debug, Default)]
struct Waiting {
    next: u32,
    answers: HashMap<u32, SyncSender<Answer>>,
    /// The reason why no answer comes any more.
    broken: Option<Error>,
}

#[derive(Debug)]
struct Shared {
    sender: CallSender,
    /// Held while a packet is written, so that packets of several threads do not mix.
    write: Mutex<()>,
    waiting: Mutex<Waiting>,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session with the guest's file server. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Session {
    shared: Arc<Shared>,
}

/// A request whose answer has not been read.
#[derive(Debug)]
pub(super) struct Pending {
    answer: Receiver<Answer>,
    shared: Arc<Shared>,
}

impl Pending {
    /// Waits for the answer.
    pub(super) fn wait(self) -> Result<Answer, Error> {
        self.answer.recv().map_err(|_| {
            let broken = self.shared.waiting().broken.clone();
            broken.unwrap_or_else(|| Error::new(Code::Failed, "the file session has ended"))
        })
    }
}

impl Session {
    /// Opens a session as a user of the guest, the sandbox's by default.
    pub(super) fn open(connection: ClientConnection, user: Option<&str>) -> Result<Session, Error> {
        let request = SftpRequest { user: user.map(Text::from), read_only: false };
        let ClientCall { mut reader, sender } = connection.open(&Request::Sftp(request))?;
        let mut packets = Packets::default();
        match reader.receive()? {
            Some(Incoming::Event { message, .. }) => {
                if let Ok(ExecEvent::Failed { kind, message }) = serde_json::from_slice(&message) {
                    return Err(Error::of_exec(kind, message));
                }
            }
            _ => return Err(invalid("data before the start of the session")),
        }
        // The version 3, without a request number.
        let init = Body::default().u32(5).0;
        sender.data(STDIN, &[&init[..], &[kind::INIT, 0, 0, 0, 3]].concat())?;
        let version = packets.next(&mut reader, &sender)?;
        if version.first() != Some(&kind::VERSION) {
            return Err(invalid("no version"));
        }
        let waiting = Mutex::new(Waiting::default());
        let shared = Arc::new(Shared { sender, write: Mutex::new(()), waiting });
        let answers = Arc::clone(&shared);
        std::thread::Builder::new().name("msb-sftp".to_owned()).spawn(move || {
            let broken = read_answers(&mut reader, packets, &answers);
            let mut waiting = answers.waiting();
            waiting.broken = Some(broken);
            waiting.answers.clear();
        })?;
        Ok(Session { shared })
    }

    /// Returns whether the session can be used.
    pub(super) fn is_open(&self) -> bool {
        self.shared.waiting().broken.is_none()
    }

    /// Sends a request. The answer is waited for later.
    pub(super) fn send(&self, kind: u8, body: Body) -> Result<Pending, Error> {
        let (sender, answer) = sync_channel(1);
        let number = {
            let mut waiting = self.shared.waiting();
            if let Some(broken) = &waiting.broken {
                return Err(broken.clone());
            }
            let number = waiting.next;
            waiting.next = number.wrapping_add(1);
            waiting.answers.insert(number, sender);
            number
        };
        let length = u32::try_from(body.0.len() + 5).map_err(|_| {
            Error::new(Code::InvalidConfig, "a path or a piece of data is too long")
        })?;
        let mut packet = Body::default().u32(length).0;
        packet.push(kind);
        packet.extend(number.to_be_bytes());
        packet.extend(body.0);
        let _whole = self.shared.write.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.sender.data(STDIN, &packet)?;
        Ok(Pending { answer, shared: Arc::clone(&self.shared) })
    }

    /// Sends a request and waits for the answer.
    pub(super) fn ask(&self, kind: u8, body: Body) -> Result<Answer, Error> {
        self.send(kind, body)?.wait()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.sender.hang_up();
    }
}

/// Bytes from the guest, cut into packets.
#[derive(Debug, Default)]
struct Packets {
    bytes: Vec<u8>,
}

impl Packets {
    /// Returns the next packet, without its length.
    fn next(&mut self, reader: &mut CallReader, sender: &CallSender) -> Result<Vec<u8>, Error> {
        loop {
            if let Some(head) = self.bytes.first_chunk() {
                let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
                if length == 0 || length > PACKET_BYTES_MAX {
                    return Err(invalid(&format!("a packet of {length} bytes")));
                }
                if self.bytes.len() >= 4 + length {
                    let rest = self.bytes.split_off(4 + length);
                    let packet = std::mem::replace(&mut self.bytes, rest);
                    return Ok(packet.get(4..).unwrap_or_default().to_vec());
                }
            }
            match reader.receive()? {
                Some(Incoming::Data { channel: STDOUT, bytes, .. }) => {
                    sender.used(STDOUT, bytes.len())?;
                    self.bytes.extend(bytes);
                }
                Some(Incoming::Data { channel, bytes, .. }) => sender.used(channel, bytes.len())?,
                Some(Incoming::Event { last: false, .. }) => {}
                Some(Incoming::Event { .. }) => {
                    return Err(Error::new(Code::Failed, "the guest ended the file session"));
                }
                None => {
                    let message = "the sandbox ended, or the file session was closed";
                    return Err(Error::new(Code::SandboxNotRunning, message));
                }
            }
        }
    }
}

/// Gives each answer to its caller, until the session ends. Returns the reason.
fn read_answers(reader: &mut CallReader, mut packets: Packets, shared: &Shared) -> Error {
    loop {
        let packet = match packets.next(reader, &shared.sender) {
            Ok(packet) => packet,
            Err(error) => return error,
        };
        let Some((&[kind, a, b, c, d], body)) = packet.split_first_chunk() else {
            return invalid("no request number");
        };
        let number = u32::from_be_bytes([a, b, c, d]);
        if let Some(caller) = shared.waiting().answers.remove(&number) {
            // A caller that has gone needs no answer.
            let _ = caller.send(Answer { kind, body: body.to_vec() });
        }
    }
}
