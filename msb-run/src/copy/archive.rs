//! Conversion between tar archives on the standard streams and records.
//!
//! Nothing is unpacked here. An archive that is read comes from the user; its paths are split into
//! names that cannot leave the destination. An archive that is written goes to a program of the
//! user's choice.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::cli::output;
use msb_wire::file::receive::{CopyError, PreserveOptions};
use msb_wire::file::record::{
    DATA_BYTES_MAX, DirectoryMeta, EntryMeta, Record, RecordReader, RecordWriter, Severity, is_name,
};
use tar::{Archive, Builder, Entry, EntryType, Header};

use super::reporter::CopyReporter;

/// Prefix of the names of extended attributes in an archive.
const XATTR: &str = "SCHILY.xattr.";

/// Permission bits; with `archive` also the bits set-user-id, set-group-id and sticky.
const MODE_BITS: u32 = 0o777;
const ARCHIVE_MODE_BITS: u32 = 0o7777;

/// Writes an archive to standard output. Without a name its entries are below `.`.
pub(super) fn write<R: Read>(
    records: &mut RecordReader<R>,
    name: Option<&[u8]>,
    keep: PreserveOptions,
    report: CopyReporter<'_>,
) -> anyhow::Result<bool> {
    let stdout = io::BufWriter::with_capacity(DATA_BYTES_MAX, output::stdout());
    let mut writer = ArchiveWriter {
        out: Builder::new(stdout),
        names: Vec::new(),
        root: name.unwrap_or(b".").to_vec(),
        complete: true,
        mode_bits: if keep.archive { ARCHIVE_MODE_BITS } else { MODE_BITS },
    };
    writer.write_all(records, report)?;
    writer.out.into_inner()?.flush()?;
    Ok(writer.complete)
}

struct ArchiveWriter<W: Write> {
    out: Builder<W>,
    /// Names from the root to the open directory.
    names: Vec<Vec<u8>>,
    root: Vec<u8>,
    complete: bool,
    /// Mode bits that entries keep.
    mode_bits: u32,
}

impl<W: Write> ArchiveWriter<W> {
    fn write_all<R: Read>(
        &mut self,
        records: &mut RecordReader<R>,
        report: CopyReporter<'_>,
    ) -> anyhow::Result<()> {
        loop {
            match records.next_record().map_err(CopyError::from)? {
                Record::Directory(meta, _) => self.enter(meta)?,
                Record::DirectoryEnd => drop(self.names.pop()),
                Record::File { meta, size, .. } => self.file(&meta, size, records, report)?,
                Record::Link(meta, target) => self.link(&meta, EntryType::Symlink, &target)?,
                Record::HardLink { name, path } => {
                    let meta = EntryMeta { name, ..EntryMeta::default() };
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
                // Data is read with its file.
                Record::Data(_) | Record::Hole(_) => {}
            }
        }
    }

    fn path(&self, name: &[u8]) -> PathBuf {
        let name = if self.names.is_empty() { &self.root } else { name };
        join(&self.names).join(OsStr::from_bytes(name))
    }

    fn header(&mut self, meta: &EntryMeta, kind: EntryType, size: u64) -> anyhow::Result<Header> {
        if !meta.xattrs.is_empty() {
            let attributes: Vec<(String, &[u8])> = meta
                .xattrs
                .iter()
                .map(|(name, value)| {
                    let name = String::from_utf8_lossy(name);
                    (format!("{XATTR}{name}"), value.as_slice())
                })
                .collect();
            let attributes = attributes.iter().map(|(name, value)| (name.as_str(), *value));
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

    fn enter(&mut self, meta: EntryMeta) -> anyhow::Result<()> {
        let mut header = self.header(&meta, EntryType::Directory, 0)?;
        // By convention the path of a directory ends with a slash.
        let path = self.path(&meta.name).join("");
        self.out.append_data(&mut header, path, io::empty())?;
        let name = if self.names.is_empty() { self.root.clone() } else { meta.name };
        self.names.push(name);
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        meta: &EntryMeta,
        size: u64,
        records: &mut RecordReader<R>,
        report: CopyReporter<'_>,
    ) -> anyhow::Result<()> {
        let mut header = self.header(meta, EntryType::Regular, size)?;
        let path = self.path(&meta.name);
        let content = FileContent {
            records,
            left: size,
            pending: PendingContent::Bytes(Vec::new(), 0),
            report,
            complete: &mut self.complete,
        };
        Ok(self.out.append_data(&mut header, path, content)?)
    }

    fn link(&mut self, meta: &EntryMeta, kind: EntryType, target: &[u8]) -> anyhow::Result<()> {
        let mut header = self.header(meta, kind, 0)?;
        let target = OsStr::from_bytes(target);
        let path = self.path(&meta.name);
        Ok(self.out.append_link(&mut header, path, target)?)
    }
}

/// Content to be read before the next record.
enum PendingContent {
    Bytes(Vec<u8>, usize),
    Zeros(u64),
}

/// A reader of a file's content, taken from its records.
struct FileContent<'a, 'b, R: Read> {
    records: &'a mut RecordReader<R>,
    left: u64,
    pending: PendingContent,
    report: &'a mut (dyn FnMut(Severity, &str) + Send + 'b),
    complete: &'a mut bool,
}

impl<R: Read> FileContent<'_, '_, R> {
    fn next(&mut self) -> io::Result<()> {
        match self.records.next_record()? {
            Record::Data(bytes) => self.pending = PendingContent::Bytes(bytes.to_vec(), 0),
            Record::Hole(length) => self.pending = PendingContent::Zeros(length),
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

impl<R: Read> Read for FileContent<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left > 0 {
            let count = match &mut self.pending {
                PendingContent::Bytes(bytes, at) => {
                    let count = (bytes.len() - *at).min(buffer.len());
                    buffer[..count].copy_from_slice(&bytes[*at..*at + count]);
                    *at += count;
                    count
                }
                PendingContent::Zeros(left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
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
    report: CopyReporter<'_>,
) -> anyhow::Result<bool> {
    let mut reader = ArchiveReader { out, report, names: Vec::new(), complete: true };
    reader.out.put(&Record::Directory(EntryMeta::default(), DirectoryMeta::Implied))?;
    let mut archive = Archive::new(io::stdin().lock());
    let unreadable = "cannot read the archive";
    for entry in archive.entries().context(unreadable)? {
        reader.entry(entry.context(unreadable)?)?;
    }
    reader.enter_directory(&[])?;
    let complete = reader.complete;
    out.put(&Record::DirectoryEnd)?;
    out.put(&Record::Done)?;
    out.flush()?;
    // Read the padding after the end of the archive, so that its writer does not get SIGPIPE.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(complete)
}

struct ArchiveReader<'a, 'b, W: Write> {
    out: &'a mut RecordWriter<W>,
    report: &'a mut (dyn FnMut(Severity, &str) + Send + 'b),
    /// Open directory, below the destination.
    names: Vec<Vec<u8>>,
    complete: bool,
}

impl<W: Write> ArchiveReader<'_, '_, W> {
    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> anyhow::Result<()> {
        let path = entry.path_bytes().into_owned();
        let Some(mut path) = parts(&path) else {
            return self.report_skipped(
                Severity::Error,
                &path,
                "has a path outside the destination",
            );
        };
        let kind = entry.header().entry_type();
        let Some(name) = path.pop() else {
            // The entry is the destination itself.
            return Ok(());
        };
        let mut meta = properties(&mut entry)?;
        meta.name = name;
        match kind {
            EntryType::Directory => {
                self.enter_directory(&path)?;
                self.names.push(meta.name.clone());
                self.out.put(&Record::Directory(meta, DirectoryMeta::Known))?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.enter_directory(&path)?;
                self.file(meta, &mut entry)?;
            }
            EntryType::Symlink => {
                self.enter_directory(&path)?;
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.out.put(&Record::Link(meta, target))?;
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let Some(target) = parts(&target).filter(|target| !target.is_empty()) else {
                    let name = meta.name;
                    return self.report_skipped(
                        Severity::Error,
                        &name,
                        "is a hard link to a path outside the destination",
                    );
                };
                self.enter_directory(&path)?;
                self.out.put(&Record::HardLink { name: meta.name, path: target })?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                return self.report_skipped(Severity::Skipped, &meta.name, "is a device or fifo");
            }
            _ => {}
        }
        Ok(())
    }

    /// Leaves and enters directories until the one at `path` is open.
    fn enter_directory(&mut self, path: &[Vec<u8>]) -> anyhow::Result<()> {
        let common = self.names.iter().zip(path).take_while(|(a, b)| a == b);
        let common = common.count();
        while self.names.len() > common {
            self.names.pop();
            self.out.put(&Record::DirectoryEnd)?;
        }
        for name in &path[common..] {
            let meta = EntryMeta { name: name.clone(), ..EntryMeta::default() };
            self.out.put(&Record::Directory(meta, DirectoryMeta::Implied))?;
            self.names.push(name.clone());
        }
        Ok(())
    }

    fn file<R: Read>(&mut self, meta: EntryMeta, entry: &mut Entry<'_, R>) -> anyhow::Result<()> {
        let mut left = entry.size();
        self.out.put(&Record::File { meta, size: left, linked: true })?;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(DATA_BYTES_MAX);
            let count = self.out.put_data(most, |room| entry.read(room))?;
            anyhow::ensure!(count > 0, "the archive is truncated");
            left -= count as u64;
        }
        Ok(())
    }

    fn report_skipped(&mut self, severity: Severity, path: &[u8], why: &str) -> anyhow::Result<()> {
        self.complete &= severity != Severity::Error;
        let path = String::from_utf8_lossy(path);
        (self.report)(severity, &format!("archive entry '{path}' {why}"));
        Ok(())
    }
}

/// Splits a path into names. Returns `None` if it contains `..` or an invalid name.
fn parts(path: &[u8]) -> Option<Vec<Vec<u8>>> {
    let parts = path.split(|byte| *byte == b'/');
    let parts = parts.filter(|part| !part.is_empty() && *part != b".");
    parts.map(|part| is_name(part).then(|| part.to_vec())).collect()
}

fn properties<R: Read>(entry: &mut Entry<'_, R>) -> anyhow::Result<EntryMeta> {
    let invalid = "an archive entry has invalid metadata";
    let header = entry.header();
    let id = |id: io::Result<u64>| id.map(|id| u32::try_from(id).unwrap_or(u32::MAX));
    let mut meta = EntryMeta {
        name: Vec::new(),
        mode: header.mode().context(invalid)? & 0o7777,
        uid: id(header.uid()).context(invalid)?,
        gid: id(header.gid()).context(invalid)?,
        mtime_s: header.mtime().context(invalid)? as i64,
        mtime_ns: 0,
        xattrs: Vec::new(),
    };
    let Some(extensions) = entry.pax_extensions().context(invalid)? else {
        return Ok(meta);
    };
    for extension in extensions {
        let extension = extension.context(invalid)?;
        if let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix(XATTR)) {
            let value = extension.value_bytes().to_vec();
            meta.xattrs.push((name.as_bytes().to_vec(), value));
        }
    }
    Ok(meta)
}

/// Joins names to a path.
fn join(names: &[Vec<u8>]) -> PathBuf {
    names.iter().map(|name| Path::new(OsStr::from_bytes(name))).collect()
}
