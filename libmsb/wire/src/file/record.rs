//! Records: the format of a tree of files in transit.
//!
//! ```text
//!  0      1        5
//!  | kind | length | payload …
//! ```
//!
//! Numbers are big-endian. A stream consists of one root, which has no name, then `Done`. `Problem`
//! and `Failed` may come at any place. A root, and each entry of a directory, is one of: a
//! `Directory` with its entries and then `DirectoryEnd`; a `File` with exactly its size in `Data`
//! and `Hole`; a `Link`, which is symbolic; a `HardLink`, which is another name of an earlier file.
//!
//! [`RecordReader`] is the parser for bytes from the other side. It returns records only in this
//! order, with names that are one name each (no `/`, no NUL, neither `.` nor `..`, at most 255
//! bytes), and never beyond the limits of depth and length below. Its callers need not check them
//! again.

use std::fmt;
use std::io::{self, Read, Write};

/// Longest record, in bytes: enough for a name, a link's target and the attributes of one file.
pub const RECORD_BYTES_MAX: usize = 256 * 1024;

/// Limit of file data in one record, in bytes.
pub const DATA_BYTES_MAX: usize = 64 * 1024;

/// Limit of nested directories. Each is an open descriptor, and the usual limit of a process is
/// 1024.
pub const DEPTH_MAX: usize = 256;

/// Longest name, in bytes: the limit of Linux.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest target of a symbolic link, in bytes: the limit of Linux.
pub const TARGET_BYTES_MAX: usize = 4095;

/// Limit of extended attributes of one file.
pub const XATTRS_MAX: usize = 128;

/// Largest file, in bytes: the limit of Linux.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// Size of a record's header, in bytes.
const HEADER_BYTES: usize = 5;

/// Metadata of a directory or file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryMeta {
    /// One name; empty for the root.
    pub name: Vec<u8>,
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, in seconds since 1970.
    pub mtime_s: i64,
    /// Nanoseconds of the modification time, below 10^9.
    pub mtime_ns: u32,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Severity of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// An entry that cannot be copied was skipped.
    Skipped,
    /// An entry was not copied because of an error.
    Error,
}

/// A part of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A directory. Its entries follow, up to `DirectoryEnd`.
    Directory(EntryMeta, DirectoryMeta),
    /// A file.
    File {
        /// Its metadata.
        meta: EntryMeta,
        /// Size in bytes, holes included.
        size: u64,
        /// True if a `HardLink` may refer to it.
        linked: bool,
    },
    /// A symbolic link.
    Link(EntryMeta, Vec<u8>),
    /// A further hard link to an earlier file.
    HardLink {
        /// The name.
        name: Vec<u8>,
        /// Names from the root down to the file.
        path: Vec<Vec<u8>>,
    },
    /// Bytes of the file.
    Data(&'a [u8]),
    /// A hole: number of zero bytes that take no space.
    Hole(u64),
    /// The end of a directory.
    DirectoryEnd,
    /// A problem to report to the user.
    Problem(Severity, String),
    /// The end: all was sent (or received).
    Done,
    /// The end after an error, with the reason.
    Failed(String),
}

/// Origin of a directory's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryMeta {
    /// Known metadata, which a new directory gets.
    Known,
    /// Only the name is known, from the path of another entry.
    Implied,
}

const DIRECTORY: u8 = 1;
const FILE: u8 = 2;
const LINK: u8 = 3;
const HARD_LINK: u8 = 4;
const DATA: u8 = 5;
const HOLE: u8 = 6;
const DIRECTORY_END: u8 = 7;
const PROBLEM: u8 = 8;
const DONE: u8 = 9;
const FAILED: u8 = 10;

/// An error in the format of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordError(&'static str);

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid record in the copy: {}", self.0)
    }
}

impl std::error::Error for RecordError {}

impl From<RecordError> for io::Error {
    fn from(error: RecordError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// Returns whether bytes are one name that is valid in a directory.
pub fn is_name(name: &[u8]) -> bool {
    let shape = !name.is_empty() && name.len() <= NAME_BYTES_MAX && name != b"." && name != b"..";
    shape && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// A parser of payload fields.
struct PayloadParser<'a>(&'a [u8]);

impl<'a> PayloadParser<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], RecordError> {
        let short = RecordError("a record is too short");
        let (head, tail) = self.0.split_at_checked(count).ok_or(short)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let short = RecordError("a record is too short");
        self.bytes(N)?.try_into().map_err(|_| short)
    }

    fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<usize, RecordError> {
        Ok(usize::from(u16::from_be_bytes(self.array()?)))
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Parses a length and as many bytes.
    fn counted(&mut self) -> Result<Vec<u8>, RecordError> {
        let count = self.u16()?;
        Ok(self.bytes(count)?.to_vec())
    }

    fn meta(&mut self) -> Result<EntryMeta, RecordError> {
        let mut meta = EntryMeta {
            mode: self.u32()?,
            uid: self.u32()?,
            gid: self.u32()?,
            mtime_s: self.u64()? as i64,
            mtime_ns: self.u32()?,
            name: self.counted()?,
            xattrs: Vec::new(),
        };
        if meta.mode & !0o7777 != 0 || meta.mtime_ns >= 1_000_000_000 {
            return Err(RecordError("a file has invalid metadata"));
        }
        let count = self.u16()?;
        if count > XATTRS_MAX {
            return Err(RecordError("a file has too many attributes"));
        }
        for _ in 0..count {
            let name = self.counted()?;
            if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0) {
                return Err(RecordError("an attribute has an invalid name"));
            }
            let length = self.u32()? as usize;
            meta.xattrs.push((name, self.bytes(length)?.to_vec()));
        }
        Ok(meta)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn end(&self) -> Result<(), RecordError> {
        if self.0.is_empty() { Ok(()) } else { Err(RecordError("a record is too long")) }
    }
}

fn parse(kind: u8, payload: &[u8]) -> Result<Record<'_>, RecordError> {
    let mut fields = PayloadParser(payload);
    let record = match kind {
        DIRECTORY => match fields.u8()? {
            0 => Record::Directory(fields.meta()?, DirectoryMeta::Known),
            1 => Record::Directory(fields.meta()?, DirectoryMeta::Implied),
            _ => return Err(RecordError("a directory has an unknown flag")),
        },
        FILE => parse_file(&mut fields)?,
        LINK => parse_link(&mut fields)?,
        HARD_LINK => parse_hard_link(&mut fields)?,
        DATA => parse_data(&mut fields)?,
        HOLE => Record::Hole(fields.u64()?),
        DIRECTORY_END => Record::DirectoryEnd,
        PROBLEM => {
            let severity = match fields.u8()? {
                0 => Severity::Skipped,
                1 => Severity::Error,
                _ => return Err(RecordError("a problem of unknown severity")),
            };
            Record::Problem(severity, text(fields.rest()))
        }
        DONE => Record::Done,
        FAILED => Record::Failed(text(fields.rest())),
        _ => return Err(RecordError("a record of unknown kind")),
    };
    fields.end()?;
    Ok(record)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn parse_file<'a>(fields: &mut PayloadParser<'_>) -> Result<Record<'a>, RecordError> {
    let linked = match fields.u8()? {
        0 => false,
        1 => true,
        _ => return Err(RecordError("a file has an unknown flag")),
    };
    let size = fields.u64()?;
    if size > FILE_BYTES_MAX {
        return Err(RecordError("a file is longer than the limit"));
    }
    Ok(Record::File { meta: fields.meta()?, size, linked })
}

fn parse_link<'a>(fields: &mut PayloadParser<'_>) -> Result<Record<'a>, RecordError> {
    let meta = fields.meta()?;
    let target = fields.rest().to_vec();
    if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) {
        return Err(RecordError("a link has an invalid target"));
    }
    Ok(Record::Link(meta, target))
}

fn parse_hard_link<'a>(fields: &mut PayloadParser<'_>) -> Result<Record<'a>, RecordError> {
    let name = fields.counted()?;
    let path: Vec<Vec<u8>> =
        fields.rest().split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
    if !path.iter().all(|name| is_name(name)) || path.len() > DEPTH_MAX {
        return Err(RecordError("a hard link has an invalid path"));
    }
    Ok(Record::HardLink { name, path })
}

fn parse_data<'a>(fields: &mut PayloadParser<'a>) -> Result<Record<'a>, RecordError> {
    let data = fields.rest();
    if data.is_empty() || data.len() > DATA_BYTES_MAX {
        return Err(RecordError("a data record is empty or too long"));
    }
    Ok(Record::Data(data))
}

/// The order check of records: tracks which record may come next.
#[derive(Clone, Copy, Debug, Default)]
struct RecordOrder {
    depth: usize,
    /// True if the root is complete.
    rooted: bool,
    /// Bytes of the open file that are still to come.
    file_left: u64,
    over: bool,
}

impl RecordOrder {
    fn check(&mut self, record: &Record<'_>) -> Result<(), RecordError> {
        if self.over {
            return Err(RecordError("a record follows the end"));
        }
        match record {
            Record::Problem(..) => Ok(()),
            Record::Failed(_) => {
                self.over = true;
                Ok(())
            }
            Record::Data(data) => self.content(data.len() as u64),
            Record::Hole(length) => self.content(*length),
            _ if self.file_left > 0 => {
                Err(RecordError("a file is shorter than its announced size"))
            }
            Record::Done => {
                self.over = true;
                self.is_complete()
            }
            Record::DirectoryEnd => self.leave(),
            Record::Directory(meta, _) => {
                self.name(&meta.name)?;
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return Err(RecordError("directories are nested too deeply"));
                }
                Ok(())
            }
            Record::File { meta, size, .. } => {
                self.name(&meta.name)?;
                self.file_left = *size;
                self.rooted |= self.depth == 0;
                Ok(())
            }
            Record::Link(meta, _) => {
                self.name(&meta.name)?;
                self.rooted |= self.depth == 0;
                Ok(())
            }
            Record::HardLink { name, .. } if self.depth > 0 => self.name(name),
            Record::HardLink { .. } => Err(RecordError("the root is a hard link")),
        }
    }

    fn content(&mut self, length: u64) -> Result<(), RecordError> {
        let longer = RecordError("a file is longer than its announced size");
        self.file_left = self.file_left.checked_sub(length).filter(|_| length > 0).ok_or(longer)?;
        Ok(())
    }

    fn is_complete(&self) -> Result<(), RecordError> {
        if self.rooted && self.depth == 0 {
            Ok(())
        } else {
            Err(RecordError("the stream ends inside the tree"))
        }
    }

    fn leave(&mut self) -> Result<(), RecordError> {
        let above = RecordError("a directory ends that was not started");
        self.depth = self.depth.checked_sub(1).ok_or(above)?;
        self.rooted |= self.depth == 0;
        Ok(())
    }

    fn name(&self, name: &[u8]) -> Result<(), RecordError> {
        let good = if self.depth == 0 { name.is_empty() } else { is_name(name) };
        if !good {
            return Err(RecordError("a name is invalid"));
        }
        if self.depth == 0 && self.rooted {
            return Err(RecordError("there is a second root"));
        }
        Ok(())
    }
}

/// A reader of records, which checks their order.
#[derive(Debug)]
pub struct RecordReader<R> {
    source: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    order: RecordOrder,
    answers: bool,
}

/// Size of one read, in bytes.
const READ_BYTES: usize = 128 * 1024;

impl<R: Read> RecordReader<R> {
    /// Returns a reader of a tree.
    pub fn new(source: R) -> RecordReader<R> {
        RecordReader {
            source,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            order: RecordOrder::default(),
            answers: false,
        }
    }

    /// Returns a reader of a receiver's replies: problems and the end, no tree.
    pub fn for_replies(source: R) -> RecordReader<R> {
        let mut reader = RecordReader::new(source);
        reader.answers = true;
        reader
    }

    /// Returns the next record. `Done` and `Failed` are the last. A source that ends before them is
    /// an error.
    pub fn next_record(&mut self) -> io::Result<Record<'_>> {
        let (kind, length) = self.header()?;
        self.need(HEADER_BYTES + length)?;
        let start = self.start + HEADER_BYTES;
        self.start = start + length;
        let record = parse(kind, &self.buffer[start..start + length])?;
        if !self.answers {
            self.order.check(&record)?;
        } else if !matches!(record, Record::Problem(..) | Record::Done | Record::Failed(_)) {
            return Err(RecordError("file records from the receiver").into());
        }
        Ok(record)
    }

    fn header(&mut self) -> io::Result<(u8, usize)> {
        self.need(HEADER_BYTES)?;
        let mut fields = PayloadParser(&self.buffer[self.start..self.end]);
        let (kind, length) = (fields.u8()?, fields.u32()? as usize);
        if length > RECORD_BYTES_MAX {
            return Err(RecordError("a record is longer than the limit").into());
        }
        Ok((kind, length))
    }

    /// Reads until `count` bytes are buffered.
    fn need(&mut self, count: usize) -> io::Result<()> {
        while self.end - self.start < count {
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            let room = self.end + READ_BYTES.max(count);
            if self.buffer.len() < room {
                self.buffer.resize(room, 0);
            }
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Bytes that are buffered before a write.
const WRITE_BYTES: usize = 64 * 1024;

/// A buffered writer of records.
#[derive(Debug)]
pub struct RecordWriter<W: Write> {
    sink: W,
    buffer: Vec<u8>,
}

impl<W: Write> RecordWriter<W> {
    /// Returns a writer to `sink`.
    pub fn new(sink: W) -> RecordWriter<W> {
        RecordWriter { sink, buffer: Vec::with_capacity(WRITE_BYTES + DATA_BYTES_MAX) }
    }

    /// Writes a record. It is sent at the latest by the next [`RecordWriter::flush`].
    pub fn put(&mut self, record: &Record<'_>) -> io::Result<()> {
        let at = self.start_record(kind(record));
        put_payload(&mut self.buffer, record);
        self.finish(at)
    }

    /// Lets `fill` read file data, at most `count` bytes, straight into the buffer. `fill` returns
    /// the number of bytes.
    pub fn put_data(
        &mut self,
        most: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let at = self.start_record(DATA);
        let start = self.buffer.len();
        self.buffer.resize(start + most.min(DATA_BYTES_MAX), 0);
        let filled = fill(&mut self.buffer[start..]);
        self.buffer.truncate(start + *filled.as_ref().unwrap_or(&0));
        if matches!(filled, Ok(0) | Err(_)) {
            self.buffer.truncate(at);
            return filled;
        }
        self.finish(at)?;
        filled
    }

    fn start_record(&mut self, kind: u8) -> usize {
        let at = self.buffer.len();
        self.buffer.push(kind);
        self.buffer.extend_from_slice(&[0; 4]);
        at
    }

    fn finish(&mut self, at: usize) -> io::Result<()> {
        let length = self.buffer.len() - at - HEADER_BYTES;
        if length > RECORD_BYTES_MAX {
            self.buffer.truncate(at);
            return Err(RecordError("a record is longer than the limit").into());
        }
        self.buffer[at + 1..at + HEADER_BYTES].copy_from_slice(&(length as u32).to_be_bytes());
        if self.buffer.len() < WRITE_BYTES {
            return Ok(());
        }
        self.flush()
    }

    /// Writes the buffered bytes.
    pub fn flush(&mut self) -> io::Result<()> {
        self.sink.write_all(&self.buffer)?;
        self.buffer.clear();
        self.sink.flush()
    }
}

fn kind(record: &Record<'_>) -> u8 {
    match record {
        Record::Directory(..) => DIRECTORY,
        Record::File { .. } => FILE,
        Record::Link(..) => LINK,
        Record::HardLink { .. } => HARD_LINK,
        Record::Data(_) => DATA,
        Record::Hole(_) => HOLE,
        Record::DirectoryEnd => DIRECTORY_END,
        Record::Problem(..) => PROBLEM,
        Record::Done => DONE,
        Record::Failed(_) => FAILED,
    }
}

fn put_payload(out: &mut Vec<u8>, record: &Record<'_>) {
    match record {
        Record::Directory(meta, existing) => {
            out.push(u8::from(*existing == DirectoryMeta::Implied));
            put_meta(out, meta);
        }
        Record::File { meta, size, linked } => {
            out.push(u8::from(*linked));
            out.extend_from_slice(&size.to_be_bytes());
            put_meta(out, meta);
        }
        Record::Link(meta, target) => {
            put_meta(out, meta);
            out.extend_from_slice(target);
        }
        Record::HardLink { name, path } => {
            put_counted(out, name);
            out.extend_from_slice(&path.join(&b'/'));
        }
        Record::Data(data) => out.extend_from_slice(data),
        Record::Hole(length) => out.extend_from_slice(&length.to_be_bytes()),
        Record::DirectoryEnd | Record::Done => {}
        Record::Problem(severity, text) => {
            out.push(u8::from(*severity == Severity::Error));
            put_text(out, text);
        }
        Record::Failed(text) => put_text(out, text),
    }
}

/// Longest text, in bytes. Texts are for people.
const TEXT_BYTES_MAX: usize = 16 * 1024;

fn put_text(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.extend_from_slice(&bytes[..bytes.len().min(TEXT_BYTES_MAX)]);
}

fn put_meta(out: &mut Vec<u8>, meta: &EntryMeta) {
    for number in [meta.mode, meta.uid, meta.gid] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(&meta.mtime_s.to_be_bytes());
    out.extend_from_slice(&meta.mtime_ns.to_be_bytes());
    put_counted(out, &meta.name);
    out.extend_from_slice(&(meta.xattrs.len() as u16).to_be_bytes());
    for (name, value) in &meta.xattrs {
        put_counted(out, name);
        out.extend_from_slice(&(value.len() as u32).to_be_bytes());
        out.extend_from_slice(value);
    }
}

fn put_counted(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}
