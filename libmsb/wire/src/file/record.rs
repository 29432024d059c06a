//! Records: what a tree of files looks like on its way.
//!
//! ```text
//!  0      1        5
//!  | kind | length | payload …
//! ```
//!
//! Numbers are big-endian. A stream is: problems at any place; one root, which has no name; `Done`, or `Failed` at any
//! place. A root, and everything in a folder, is a `Folder` with what is in it and then `Up`; a `File` with exactly its
//! size in `Data` and `Hole`; a `Link`; or an `Again`, which is another name of a file that came before.
//!
//! [`RecordReader`] is the door for such bytes from the other side: it gives out records only in this order, with names
//! that are one name each (no `/`, no NUL, neither `.` nor `..`, at most 255 bytes), and never more depth or length
//! than the limits below. Code behind it cannot meet a wrong shape.

use std::fmt;
use std::io::{self, Read, Write};

/// Longest record, in bytes. Room for a name, a link's target and the attributes of one file.
pub const RECORD_BYTES_MAX: usize = 256 * 1024;

/// Bytes of a file that one record carries at the most.
pub const DATA_BYTES_MAX: usize = 64 * 1024;

/// Folders inside each other. Each one is an open descriptor, of which a process has 1024 as a rule.
pub const DEPTH_MAX: usize = 256;

/// Longest name, in bytes: what Linux takes.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest target of a symbolic link, in bytes: what Linux takes.
pub const TARGET_BYTES_MAX: usize = 4095;

/// Extended attributes of one file.
pub const XATTRS_MAX: usize = 128;

/// Largest file: what Linux takes.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// Size of a record's header, in bytes.
const HEADER_BYTES: usize = 5;

/// What is known of a folder or file but for its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// One name; empty for the root.
    pub name: Vec<u8>,
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content, in seconds since 1970.
    pub mtime_s: i64,
    /// Nanoseconds of it, below a thousand million.
    pub mtime_ns: u32,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Something that cannot be copied was left out.
    Skipped,
    /// Something was not copied that should have been.
    Error,
}

/// A part of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A folder; what follows is in it, up to `Up`.
    Folder(Meta, Existing),
    /// A file of so many bytes.
    File {
        /// All but its content.
        meta: Meta,
        /// Bytes that follow, holes included.
        size: u64,
        /// Whether an `Again` may name it.
        linked: bool,
    },
    /// A symbolic link.
    Link(Meta, Vec<u8>),
    /// Another name of a file that came before.
    Again {
        /// The name.
        name: Vec<u8>,
        /// Names from the root down to the file.
        path: Vec<Vec<u8>>,
    },
    /// Bytes of the file.
    Data(&'a [u8]),
    /// So many zeros that take no room.
    Hole(u64),
    /// The folder is complete.
    Up,
    /// Something that people must know.
    Problem(Severity, String),
    /// Everything was sent (or received).
    Done,
    /// It cannot go on, and why.
    Failed(String),
}

/// Whether a folder's properties are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// They are, and a new folder gets them.
    Known,
    /// Only the name is: a path led through it.
    Implied,
}

const FOLDER: u8 = 1;
const FILE: u8 = 2;
const LINK: u8 = 3;
const AGAIN: u8 = 4;
const DATA: u8 = 5;
const HOLE: u8 = 6;
const UP: u8 = 7;
const PROBLEM: u8 = 8;
const DONE: u8 = 9;
const FAILED: u8 = 10;

/// Why bytes are no records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordError(&'static str);

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a copy broke its form: {}", self.0)
    }
}

impl std::error::Error for RecordError {}

impl From<RecordError> for io::Error {
    fn from(error: RecordError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// Whether bytes are one name that may stand in a folder.
pub fn is_name(name: &[u8]) -> bool {
    let shape = !name.is_empty() && name.len() <= NAME_BYTES_MAX && name != b"." && name != b"..";
    shape && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// Takes the fields of a payload, one by one.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
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

    /// Bytes behind their number.
    fn counted(&mut self) -> Result<Vec<u8>, RecordError> {
        let count = self.u16()?;
        Ok(self.bytes(count)?.to_vec())
    }

    fn meta(&mut self) -> Result<Meta, RecordError> {
        let mut meta = Meta {
            mode: self.u32()?,
            uid: self.u32()?,
            gid: self.u32()?,
            mtime_s: self.u64()? as i64,
            mtime_ns: self.u32()?,
            name: self.counted()?,
            xattrs: Vec::new(),
        };
        if meta.mode & !0o7777 != 0 || meta.mtime_ns >= 1_000_000_000 {
            return Err(RecordError("a file has impossible properties"));
        }
        let count = self.u16()?;
        if count > XATTRS_MAX {
            return Err(RecordError("a file has too many attributes"));
        }
        for _ in 0..count {
            let name = self.counted()?;
            if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0) {
                return Err(RecordError("an attribute has an impossible name"));
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
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(RecordError("a record is too long"))
        }
    }
}

fn parse(kind: u8, payload: &[u8]) -> Result<Record<'_>, RecordError> {
    let mut fields = Fields(payload);
    let record = match kind {
        FOLDER => match fields.u8()? {
            0 => Record::Folder(fields.meta()?, Existing::Known),
            1 => Record::Folder(fields.meta()?, Existing::Implied),
            _ => return Err(RecordError("a folder has an unknown flag")),
        },
        FILE => parse_file(&mut fields)?,
        LINK => parse_link(&mut fields)?,
        AGAIN => parse_again(&mut fields)?,
        DATA => parse_data(&mut fields)?,
        HOLE => Record::Hole(fields.u64()?),
        UP => Record::Up,
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

fn parse_file<'a>(fields: &mut Fields<'_>) -> Result<Record<'a>, RecordError> {
    let linked = match fields.u8()? {
        0 => false,
        1 => true,
        _ => return Err(RecordError("a file has an unknown flag")),
    };
    let size = fields.u64()?;
    if size > FILE_BYTES_MAX {
        return Err(RecordError("a file is longer than can be"));
    }
    Ok(Record::File {
        meta: fields.meta()?,
        size,
        linked,
    })
}

fn parse_link<'a>(fields: &mut Fields<'_>) -> Result<Record<'a>, RecordError> {
    let meta = fields.meta()?;
    let target = fields.rest().to_vec();
    if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) {
        return Err(RecordError("a link has an impossible target"));
    }
    Ok(Record::Link(meta, target))
}

fn parse_again<'a>(fields: &mut Fields<'_>) -> Result<Record<'a>, RecordError> {
    let name = fields.counted()?;
    let path: Vec<Vec<u8>> = fields
        .rest()
        .split(|byte| *byte == b'/')
        .map(<[u8]>::to_vec)
        .collect();
    if !path.iter().all(|name| is_name(name)) || path.len() > DEPTH_MAX {
        return Err(RecordError("a hard link has an impossible path"));
    }
    Ok(Record::Again { name, path })
}

fn parse_data<'a>(fields: &mut Fields<'a>) -> Result<Record<'a>, RecordError> {
    let data = fields.rest();
    if data.is_empty() || data.len() > DATA_BYTES_MAX {
        return Err(RecordError("a portion of data is empty or too long"));
    }
    Ok(Record::Data(data))
}

/// Which record may come next.
#[derive(Clone, Copy, Debug, Default)]
struct Order {
    depth: usize,
    /// The root is complete.
    rooted: bool,
    /// Bytes of the open file that have not come.
    file_left: u64,
    over: bool,
}

impl Order {
    fn check(&mut self, record: &Record<'_>) -> Result<(), RecordError> {
        if self.over {
            return Err(RecordError("something follows the end"));
        }
        match record {
            Record::Problem(..) => Ok(()),
            Record::Failed(_) => {
                self.over = true;
                Ok(())
            }
            Record::Data(data) => self.content(data.len() as u64),
            Record::Hole(length) => self.content(*length),
            _ if self.file_left > 0 => Err(RecordError("a file is shorter than was said")),
            Record::Done => {
                self.over = true;
                self.is_complete()
            }
            Record::Up => self.leave(),
            Record::Folder(meta, _) => {
                self.name(&meta.name)?;
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return Err(RecordError("folders are too deep"));
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
            Record::Again { name, .. } if self.depth > 0 => self.name(name),
            Record::Again { .. } => Err(RecordError("a hard link stands alone")),
        }
    }

    fn content(&mut self, length: u64) -> Result<(), RecordError> {
        let longer = RecordError("a file is longer than was said");
        self.file_left = self
            .file_left
            .checked_sub(length)
            .filter(|_| length > 0)
            .ok_or(longer)?;
        Ok(())
    }

    fn is_complete(&self) -> Result<(), RecordError> {
        if self.rooted && self.depth == 0 {
            Ok(())
        } else {
            Err(RecordError("it ends in the middle"))
        }
    }

    fn leave(&mut self) -> Result<(), RecordError> {
        let above = RecordError("it leaves the folder that it began with");
        self.depth = self.depth.checked_sub(1).ok_or(above)?;
        self.rooted |= self.depth == 0;
        Ok(())
    }

    fn name(&self, name: &[u8]) -> Result<(), RecordError> {
        let good = if self.depth == 0 {
            name.is_empty()
        } else {
            is_name(name)
        };
        if !good {
            return Err(RecordError("a name cannot be one"));
        }
        if self.depth == 0 && self.rooted {
            return Err(RecordError("there are two roots"));
        }
        Ok(())
    }
}

/// Reads records, in an order that is known to be right.
#[derive(Debug)]
pub struct RecordReader<R> {
    source: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    order: Order,
    answers: bool,
}

/// What one read may bring, in bytes.
const READ_BYTES: usize = 128 * 1024;

impl<R: Read> RecordReader<R> {
    /// Reads a tree.
    pub fn new(source: R) -> RecordReader<R> {
        RecordReader {
            source,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            order: Order::default(),
            answers: false,
        }
    }

    /// Reads what the receiver of a tree says: problems and the end, no tree.
    pub fn of_answers(source: R) -> RecordReader<R> {
        let mut reader = RecordReader::new(source);
        reader.answers = true;
        reader
    }

    /// The next record; `Done` and `Failed` are the last. A source that ends before is an error.
    pub fn next_record(&mut self) -> io::Result<Record<'_>> {
        let (kind, length) = self.header()?;
        self.need(HEADER_BYTES + length)?;
        let begin = self.start + HEADER_BYTES;
        self.start = begin + length;
        let record = parse(kind, &self.buffer[begin..begin + length])?;
        if !self.answers {
            self.order.check(&record)?;
        } else if !matches!(
            record,
            Record::Problem(..) | Record::Done | Record::Failed(_)
        ) {
            return Err(RecordError("files came from the side that takes them").into());
        }
        Ok(record)
    }

    fn header(&mut self) -> io::Result<(u8, usize)> {
        self.need(HEADER_BYTES)?;
        let mut fields = Fields(&self.buffer[self.start..self.end]);
        let (kind, length) = (fields.u8()?, fields.u32()? as usize);
        if length > RECORD_BYTES_MAX {
            return Err(RecordError("a record is longer than the limit").into());
        }
        Ok((kind, length))
    }

    /// Reads until so many bytes are there.
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

/// Bytes that are collected before they are written.
const WRITE_BYTES: usize = 64 * 1024;

/// Writes records, many small ones at once.
#[derive(Debug)]
pub struct RecordWriter<W: Write> {
    sink: W,
    buffer: Vec<u8>,
}

impl<W: Write> RecordWriter<W> {
    /// Writes to `sink`.
    pub fn new(sink: W) -> RecordWriter<W> {
        RecordWriter {
            sink,
            buffer: Vec::with_capacity(WRITE_BYTES + DATA_BYTES_MAX),
        }
    }

    /// Writes a record, at the latest with the next [`RecordWriter::flush`].
    pub fn put(&mut self, record: &Record<'_>) -> io::Result<()> {
        let at = self.begin(kind(record));
        put_payload(&mut self.buffer, record);
        self.finish(at)
    }

    /// Lets `fill` put data of a file, at most so many bytes, straight into the buffer. It says how many there are.
    pub fn put_data(
        &mut self,
        most: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let at = self.begin(DATA);
        let begin = self.buffer.len();
        self.buffer.resize(begin + most.min(DATA_BYTES_MAX), 0);
        let filled = fill(&mut self.buffer[begin..]);
        self.buffer.truncate(begin + *filled.as_ref().unwrap_or(&0));
        if matches!(filled, Ok(0) | Err(_)) {
            self.buffer.truncate(at);
            return filled;
        }
        self.finish(at)?;
        filled
    }

    fn begin(&mut self, kind: u8) -> usize {
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

    /// Writes what was collected.
    pub fn flush(&mut self) -> io::Result<()> {
        self.sink.write_all(&self.buffer)?;
        self.buffer.clear();
        self.sink.flush()
    }
}

fn kind(record: &Record<'_>) -> u8 {
    match record {
        Record::Folder(..) => FOLDER,
        Record::File { .. } => FILE,
        Record::Link(..) => LINK,
        Record::Again { .. } => AGAIN,
        Record::Data(_) => DATA,
        Record::Hole(_) => HOLE,
        Record::Up => UP,
        Record::Problem(..) => PROBLEM,
        Record::Done => DONE,
        Record::Failed(_) => FAILED,
    }
}

fn put_payload(out: &mut Vec<u8>, record: &Record<'_>) {
    match record {
        Record::Folder(meta, existing) => {
            out.push(u8::from(*existing == Existing::Implied));
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
        Record::Again { name, path } => {
            put_counted(out, name);
            out.extend_from_slice(&path.join(&b'/'));
        }
        Record::Data(data) => out.extend_from_slice(data),
        Record::Hole(length) => out.extend_from_slice(&length.to_be_bytes()),
        Record::Up | Record::Done => {}
        Record::Problem(severity, text) => {
            out.push(u8::from(*severity == Severity::Error));
            put_text(out, text);
        }
        Record::Failed(text) => put_text(out, text),
    }
}

/// Texts are for people, who read no more than this.
const TEXT_BYTES_MAX: usize = 16 * 1024;

fn put_text(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.extend_from_slice(&bytes[..bytes.len().min(TEXT_BYTES_MAX)]);
}

fn put_meta(out: &mut Vec<u8>, meta: &Meta) {
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
