//! Archives of tar on the standard streams: records become entries, entries become records.
//!
//! Nothing is unpacked here. What is read comes from the user, and is taken apart into names that cannot leave the
//! destination; what is written goes to a program of the user's choice.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::Context;
use libmsb::cli::output;
use msb_wire::file::receive::{CopyError, Keep};
use msb_wire::file::record::{
    DATA_BYTES_MAX, Existing, Meta, Record, RecordReader, RecordWriter, Severity, is_name,
};
use tar::{Archive, Builder, Entry, EntryType, Header};

use super::{Report, join};

/// Begins the names of extended attributes in an archive.
const XATTR: &str = "SCHILY.xattr.";

/// Permissions, and with `archive` the bits set-user-id, set-group-id and sticky.
const MODE_BITS: u32 = 0o777;
const ARCHIVE_MODE_BITS: u32 = 0o7777;

/// Writes an archive to standard output. Without a name its entries are below `.`.
pub(super) fn write<R: Read>(
    records: &mut RecordReader<R>,
    name: Option<&[u8]>,
    keep: Keep,
    report: Report<'_>,
) -> anyhow::Result<bool> {
    let stdout = io::BufWriter::with_capacity(DATA_BYTES_MAX, output::stdout());
    let mut writer = Writer {
        out: Builder::new(stdout),
        names: Vec::new(),
        root: name.unwrap_or(b".").to_vec(),
        complete: true,
        mode_bits: if keep.archive {
            ARCHIVE_MODE_BITS
        } else {
            MODE_BITS
        },
    };
    writer.write_all(records, report)?;
    writer.out.into_inner()?.flush()?;
    Ok(writer.complete)
}

struct Writer<W: Write> {
    out: Builder<W>,
    /// From the top to the folder that is open.
    names: Vec<Vec<u8>>,
    root: Vec<u8>,
    complete: bool,
    /// The bits of a mode that entries keep.
    mode_bits: u32,
}

impl<W: Write> Writer<W> {
    fn write_all<R: Read>(
        &mut self,
        records: &mut RecordReader<R>,
        report: Report<'_>,
    ) -> anyhow::Result<()> {
        loop {
            match records.next_record().map_err(CopyError::from)? {
                Record::Folder(meta, _) => self.enter(meta)?,
                Record::Up => drop(self.names.pop()),
                Record::File { meta, size, .. } => self.file(&meta, size, records, report)?,
                Record::Link(meta, target) => self.link(&meta, EntryType::Symlink, &target)?,
                Record::Again { name, path } => {
                    let meta = Meta {
                        name,
                        ..Meta::default()
                    };
                    let target: Vec<Vec<u8>> =
                        [self.root.clone()].into_iter().chain(path).collect();
                    self.link(&meta, EntryType::Link, &target.join(&b'/'))?;
                }
                Record::Problem(severity, text) => {
                    self.complete &= severity != Severity::Error;
                    report(severity, &text);
                }
                Record::Done => return Ok(()),
                Record::Failed(why) => {
                    return Err(CopyError::new(format!("in the guest: {why}")).into());
                }
                // Data is taken with its file.
                Record::Data(_) | Record::Hole(_) => {}
            }
        }
    }

    fn path(&self, name: &[u8]) -> PathBuf {
        let name = if self.names.is_empty() {
            &self.root
        } else {
            name
        };
        join(&self.names).join(OsStr::from_bytes(name))
    }

    fn header(&mut self, meta: &Meta, kind: EntryType, size: u64) -> anyhow::Result<Header> {
        if !meta.xattrs.is_empty() {
            let attributes: Vec<(String, &[u8])> = meta
                .xattrs
                .iter()
                .map(|(name, value)| {
                    let name = String::from_utf8_lossy(name);
                    (format!("{XATTR}{name}"), value.as_slice())
                })
                .collect();
            let attributes = attributes
                .iter()
                .map(|(name, value)| (name.as_str(), *value));
            self.out.append_pax_extensions(attributes)?;
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(meta.mode & self.mode_bits);
        header.set_uid(meta.uid.into());
        header.set_gid(meta.gid.into());
        header.set_mtime(u64::try_from(meta.mtime_s).unwrap_or(0));
        header.set_size(size);
        Ok(header)
    }

    fn enter(&mut self, meta: Meta) -> anyhow::Result<()> {
        let mut header = self.header(&meta, EntryType::Directory, 0)?;
        // A slash at the end is how folders are written.
        let path = self.path(&meta.name).join("");
        self.out.append_data(&mut header, path, io::empty())?;
        let name = if self.names.is_empty() {
            self.root.clone()
        } else {
            meta.name
        };
        self.names.push(name);
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        meta: &Meta,
        size: u64,
        records: &mut RecordReader<R>,
        report: Report<'_>,
    ) -> anyhow::Result<()> {
        let mut header = self.header(meta, EntryType::Regular, size)?;
        let path = self.path(&meta.name);
        let content = Content {
            records,
            left: size,
            waiting: Waiting::Bytes(Vec::new(), 0),
            report,
            complete: &mut self.complete,
        };
        Ok(self.out.append_data(&mut header, path, content)?)
    }

    fn link(&mut self, meta: &Meta, kind: EntryType, target: &[u8]) -> anyhow::Result<()> {
        let mut header = self.header(meta, kind, 0)?;
        let target = OsStr::from_bytes(target);
        let path = self.path(&meta.name);
        Ok(self.out.append_link(&mut header, path, target)?)
    }
}

/// What is to be read before the next record.
enum Waiting {
    Bytes(Vec<u8>, usize),
    Zeros(u64),
}

/// The content of a file, from its records.
struct Content<'a, 'b, R: Read> {
    records: &'a mut RecordReader<R>,
    left: u64,
    waiting: Waiting,
    report: &'a mut (dyn FnMut(Severity, &str) + Send + 'b),
    complete: &'a mut bool,
}

impl<R: Read> Content<'_, '_, R> {
    fn next(&mut self) -> io::Result<()> {
        match self.records.next_record()? {
            Record::Data(bytes) => self.waiting = Waiting::Bytes(bytes.to_vec(), 0),
            Record::Hole(length) => self.waiting = Waiting::Zeros(length),
            Record::Problem(severity, text) => {
                *self.complete &= severity != Severity::Error;
                (self.report)(severity, &text);
            }
            Record::Failed(why) => return Err(io::Error::other(why)),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(())
    }
}

impl<R: Read> Read for Content<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left > 0 {
            let count = match &mut self.waiting {
                Waiting::Bytes(bytes, at) => {
                    let count = (bytes.len() - *at).min(buffer.len());
                    buffer[..count].copy_from_slice(&bytes[*at..*at + count]);
                    *at += count;
                    count
                }
                Waiting::Zeros(left) => {
                    let count = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(buffer.len());
                    buffer[..count].fill(0);
                    *left -= count as u64;
                    count
                }
            };
            if count > 0 {
                self.left -= count as u64;
                return Ok(count);
            }
            self.next()?;
        }
        Ok(0)
    }
}

/// Reads an archive from standard input.
pub(super) fn read<W: Write>(
    out: &mut RecordWriter<W>,
    report: Report<'_>,
) -> anyhow::Result<bool> {
    let mut reader = Entries {
        out,
        report,
        names: Vec::new(),
        complete: true,
    };
    reader
        .out
        .put(&Record::Folder(Meta::default(), Existing::Implied))?;
    let mut archive = Archive::new(io::stdin().lock());
    let broken = "cannot understand the archive";
    for entry in archive.entries().context(broken)? {
        reader.entry(entry.context(broken)?)?;
    }
    reader.go_to(&[])?;
    let complete = reader.complete;
    out.put(&Record::Up)?;
    out.put(&Record::Done)?;
    out.flush()?;
    // Behind the end of the archive there may be padding, which its writer must get rid of.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(complete)
}

struct Entries<'a, 'b, W: Write> {
    out: &'a mut RecordWriter<W>,
    report: &'a mut (dyn FnMut(Severity, &str) + Send + 'b),
    /// The folder that is open, below the destination.
    names: Vec<Vec<u8>>,
    complete: bool,
}

impl<W: Write> Entries<'_, '_, W> {
    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> anyhow::Result<()> {
        let path = entry.path_bytes().into_owned();
        let Some(mut path) = parts(&path) else {
            return self.refuse(
                Severity::Error,
                &path,
                "has a path that leaves the destination",
            );
        };
        let kind = entry.header().entry_type();
        let Some(name) = path.pop() else {
            // The destination itself.
            return Ok(());
        };
        let mut meta = properties(&mut entry)?;
        meta.name = name;
        match kind {
            EntryType::Directory => {
                self.go_to(&path)?;
                self.names.push(meta.name.clone());
                self.out.put(&Record::Folder(meta, Existing::Known))?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.go_to(&path)?;
                self.file(meta, &mut entry)?;
            }
            EntryType::Symlink => {
                self.go_to(&path)?;
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.out.put(&Record::Link(meta, target))?;
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let Some(target) = parts(&target).filter(|target| !target.is_empty()) else {
                    let name = meta.name;
                    return self.refuse(Severity::Error, &name, "is a hard link to elsewhere");
                };
                self.go_to(&path)?;
                self.out.put(&Record::Again {
                    name: meta.name,
                    path: target,
                })?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                return self.refuse(Severity::Skipped, &meta.name, "is a device or fifo");
            }
            _ => {}
        }
        Ok(())
    }

    /// Leaves and enters folders until the right one is open.
    fn go_to(&mut self, path: &[Vec<u8>]) -> anyhow::Result<()> {
        let common = self.names.iter().zip(path).take_while(|(a, b)| a == b);
        let common = common.count();
        while self.names.len() > common {
            self.names.pop();
            self.out.put(&Record::Up)?;
        }
        for name in &path[common..] {
            let meta = Meta {
                name: name.clone(),
                ..Meta::default()
            };
            self.out.put(&Record::Folder(meta, Existing::Implied))?;
            self.names.push(name.clone());
        }
        Ok(())
    }

    fn file<R: Read>(&mut self, meta: Meta, entry: &mut Entry<'_, R>) -> anyhow::Result<()> {
        let mut left = entry.size();
        self.out.put(&Record::File {
            meta,
            size: left,
            linked: true,
        })?;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(DATA_BYTES_MAX);
            let count = self.out.put_data(most, |room| entry.read(room))?;
            anyhow::ensure!(count > 0, "the archive is cut off");
            left -= count as u64;
        }
        Ok(())
    }

    fn refuse(&mut self, severity: Severity, path: &[u8], why: &str) -> anyhow::Result<()> {
        self.complete &= severity != Severity::Error;
        let path = String::from_utf8_lossy(path);
        (self.report)(severity, &format!("'{path}' of the archive {why}"));
        Ok(())
    }
}

/// A path as names; `None` when it leads upward or holds what is no name.
fn parts(path: &[u8]) -> Option<Vec<Vec<u8>>> {
    let parts = path.split(|byte| *byte == b'/');
    let parts = parts.filter(|part| !part.is_empty() && *part != b".");
    parts
        .map(|part| is_name(part).then(|| part.to_vec()))
        .collect()
}

fn properties<R: Read>(entry: &mut Entry<'_, R>) -> anyhow::Result<Meta> {
    let wrong = "an entry of the archive has impossible properties";
    let header = entry.header();
    let id = |id: io::Result<u64>| id.map(|id| u32::try_from(id).unwrap_or(u32::MAX));
    let mut meta = Meta {
        name: Vec::new(),
        mode: header.mode().context(wrong)? & 0o7777,
        uid: id(header.uid()).context(wrong)?,
        gid: id(header.gid()).context(wrong)?,
        mtime_s: header.mtime().context(wrong)? as i64,
        mtime_ns: 0,
        xattrs: Vec::new(),
    };
    let Some(extensions) = entry.pax_extensions().context(wrong)? else {
        return Ok(meta);
    };
    for extension in extensions {
        let extension = extension.context(wrong)?;
        if let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix(XATTR)) {
            let value = extension.value_bytes().to_vec();
            meta.xattrs.push((name.as_bytes().to_vec(), value));
        }
    }
    Ok(meta)
}
