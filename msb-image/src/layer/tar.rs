//! A strict reader of tar archives: v7, ustar, GNU and PAX.
//!
//! Readers that disagree about the end of an entry let an archive show different files to each of
//! them. This reader therefore has one rule for each case and rejects the rest:
//!
//! - Checksums must be right. Numbers are octal or base-256; negative and overflowing ones are
//!   rejected (only times may be before 1970).
//! - A PAX record overrides a GNU long name, which overrides the header. A PAX size is the size.
//! - Symbolic links, directories, devices and fifos with a size are rejected: GNU tar reads that
//!   many bytes as their contents, Go and Python none. A hard link has no contents whatever its
//!   size: old writers repeat that of the file, and all readers know that.
//! - The archive ends at two blocks of zeros, or at a boundary between entries. Bytes after the end
//!   mark are kept but never parsed.
//!
//! The reader gets every byte that is not contents through [`RawSource`], so that its
//! implementation can keep them. The caller reads the contents: after an entry it must take
//! [`TarEntry::stored`] bytes from the same source.

use anyhow::{Context, Result, bail, ensure};
use libmsb::cli::escape::escape;

use super::pax::PaxRecords;
use super::sparse::{self, SparsePiece};
use crate::limits::{PATH_BYTES_MAX, PAX_BYTES_MAX};

/// A source of the bytes of a tar that are not contents.
pub(crate) trait RawSource {
    /// Fills the buffer; returns fewer bytes only at the end of the archive.
    fn read_raw(&mut self, buffer: &mut [u8]) -> Result<usize>;
}

/// A modification time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TarTime {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

/// Type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// An entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TarEntry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    /// Permission bits, with set-user-ID, set-group-ID and sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: TarTime,
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    /// Size of the file.
    pub(crate) size: u64,
    /// Bytes of contents in the archive: the size, except for a sparse file.
    pub(crate) stored: u64,
    /// The pieces of a sparse file.
    pub(crate) pieces: Option<Vec<SparsePiece>>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A reader of the entries of a tar.
#[derive(Debug)]
pub(crate) struct TarReader<R> {
    /// Source of the contents of the last entry.
    pub(crate) source: R,
    /// Bytes read so far, including contents.
    position: u64,
    /// Bytes that pad the contents of the last entry to a block.
    padding: u64,
    global: PaxRecords,
    /// Set once the end mark was read.
    pub(crate) end_mark: bool,
}

/// Extended headers read before the entry that they describe.
#[derive(Default)]
struct PendingHeaders {
    pax: Option<PaxRecords>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

type TarBlock = [u8; 512];

impl<R: RawSource> TarReader<R> {
    pub(crate) fn new(source: R) -> TarReader<R> {
        TarReader {
            source,
            position: 0,
            padding: 0,
            global: PaxRecords::default(),
            end_mark: false,
        }
    }

    /// Returns the next entry, or `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<TarEntry>> {
        self.skip_padding()?;
        let start = self.position;
        self.next_entry().with_context(|| format!("at byte {start} of the tar"))
    }

    fn next_entry(&mut self) -> Result<Option<TarEntry>> {
        let mut prefix = PendingHeaders::default();
        loop {
            let Some(header) = self.next_header()? else {
                ensure!(prefix.is_empty(), "the archive ends after an extended header");
                return Ok(None);
            };
            match header[156] {
                b'x' => {
                    ensure!(prefix.pax.is_none(), "two extended headers for one entry");
                    let mut attributes = self.global.clone();
                    attributes.read(&self.extension(&header, PAX_BYTES_MAX)?)?;
                    prefix.pax = Some(attributes);
                }
                b'g' => {
                    ensure!(
                        prefix.is_empty(),
                        "a global extended header between an entry and its own"
                    );
                    let text = self.extension(&header, PAX_BYTES_MAX)?;
                    self.global.read(&text)?;
                    self.global.check_global()?;
                }
                b'L' => {
                    ensure!(prefix.name.is_none(), "two long names for one entry");
                    prefix.name = Some(self.long_name(&header)?);
                }
                b'K' => {
                    ensure!(prefix.link.is_none(), "two long link targets for one entry");
                    prefix.link = Some(self.long_name(&header)?);
                }
                _ => return self.entry(&header, prefix).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &TarBlock, prefix: PendingHeaders) -> Result<TarEntry> {
        let pax = prefix.pax.unwrap_or_else(|| self.global.clone());
        let sparse_name = pax.sparse.name.clone();
        let path =
            sparse_name.or(pax.path.clone()).or(prefix.name).unwrap_or_else(|| name_of(header));
        check_name(&path, "path")?;
        self.finish_entry(header, &path, pax, prefix.link)
            .with_context(|| format!("entry '{}'", escape(&path)))
    }

    fn finish_entry(
        &mut self,
        header: &TarBlock,
        path: &[u8],
        pax: PaxRecords,
        link: Option<Vec<u8>>,
    ) -> Result<TarEntry> {
        let kind = kind_of(header[156], path)?;
        let link =
            pax.linkpath.clone().or(link).unwrap_or_else(|| until_nul(&header[157..257]).to_vec());
        if matches!(kind, EntryKind::HardLink | EntryKind::Symlink) {
            check_name(&link, "link target")?;
        }
        let (size, stored, pieces) = self.contents(header, kind, &pax)?;
        self.position += stored;
        self.padding = stored.next_multiple_of(512) - stored;
        let header_time = TarTime { seconds: number(&header[136..148]).context("time")?, nanos: 0 };
        Ok(TarEntry {
            path: path.to_vec(),
            kind,
            link,
            mode: (Self::unsigned(&header[100..108]).context("mode")? & 0o7777) as u16,
            uid: pax.uid.map_or_else(|| id(&header[108..116]), Ok)?,
            gid: pax.gid.map_or_else(|| id(&header[116..124]), Ok)?,
            mtime: pax.mtime.unwrap_or(header_time),
            device: device_of(header, kind)?,
            size,
            stored,
            pieces,
            xattrs: pax.xattrs.into_iter().collect(),
        })
    }

    /// Returns the size of the file, the bytes of it in the archive, and the map of a sparse file.
    fn contents(
        &mut self,
        header: &TarBlock,
        kind: EntryKind,
        pax: &PaxRecords,
    ) -> Result<(u64, u64, Option<Vec<SparsePiece>>)> {
        if kind != EntryKind::File {
            ensure!(!pax.sparse.is_present(), "a sparse entry that is not a regular file");
            let is_empty = kind == EntryKind::HardLink || Self::size(header, pax)? == 0;
            ensure!(is_empty, "an entry with contents that is not a regular file");
            return Ok((0, 0, None));
        }
        let stored = Self::size(header, pax)?;
        // Files of more than 2^62 bytes could overflow sums; no such file can be stored.
        ensure!(stored < 1 << 62, "the size of the file is too large");
        let (pieces, size, stored) = if header[156] == b'S' {
            ensure!(!pax.sparse.is_present(), "a sparse file in two formats at once");
            let (pieces, size) = sparse::read_old_gnu(self, header)?;
            (pieces, size, stored)
        } else if pax.sparse.is_present() {
            self.pax_sparse(pax, stored)?
        } else {
            return Ok((stored, stored, None));
        };
        ensure!(size < 1 << 62, "the size of the file is too large");
        Ok((size, stored, Some(sparse::check(pieces, size, stored)?)))
    }

    fn size(header: &TarBlock, pax: &PaxRecords) -> Result<u64> {
        pax.size.map_or_else(|| Self::unsigned(&header[124..136]).context("size"), Ok)
    }

    fn pax_sparse(
        &mut self,
        pax: &PaxRecords,
        stored: u64,
    ) -> Result<(Vec<SparsePiece>, u64, u64)> {
        let size = pax.sparse.size.context("a sparse file without a size")?;
        match (pax.sparse.major, pax.sparse.minor) {
            (Some(1), Some(0)) => {
                ensure!(pax.sparse.pieces.is_none(), "a sparse file with two maps");
                let (pieces, taken) = sparse::read_map_1_0(self, stored)?;
                Ok((pieces, size, stored - taken))
            }
            (None | Some(0), None | Some(0 | 1)) => {
                let pieces = pax.sparse.pieces.clone().context("a sparse file without its map")?;
                Ok((pieces, size, stored))
            }
            _ => bail!("unknown format of a sparse file"),
        }
    }

    /// Returns the next block that is a header, or `None` at the end.
    fn next_header(&mut self) -> Result<Option<TarBlock>> {
        self.skip_padding()?;
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block.iter().all(|byte| *byte == 0) {
            return self.end(&block);
        }
        check_checksum(&block)?;
        Ok(Some(block))
    }

    /// Ends the archive after a block of zeros. A second one, or the end of input, must follow.
    fn end(&mut self, _zeros: &TarBlock) -> Result<Option<TarBlock>> {
        match self.block()? {
            None => {}
            Some(block) if block.iter().all(|byte| *byte == 0) => {}
            Some(_) => bail!("a single block of zeros between entries"),
        }
        self.end_mark = true;
        Ok(None)
    }

    /// Reads the contents of an extended header.
    fn extension(&mut self, header: &TarBlock, bytes_max: u64) -> Result<Vec<u8>> {
        let size = Self::unsigned(&header[124..136]).context("size of an extended header")?;
        ensure!(
            size <= bytes_max,
            "an extended header of {size} bytes; at most {bytes_max} are allowed"
        );
        let mut bytes = vec![0; size as usize];
        self.require(&mut bytes, "an extended header")?;
        self.padding = size.next_multiple_of(512) - size;
        Ok(bytes)
    }

    fn long_name(&mut self, header: &TarBlock) -> Result<Vec<u8>> {
        let bytes = self.extension(header, PATH_BYTES_MAX as u64 + 1)?;
        Ok(until_nul(&bytes).to_vec())
    }

    /// Skips the padding of the last entry. The archive may end here: umoci and others do not pad
    /// the last block, and readers such as Go's accept that. The layer's digest shows whether bytes
    /// are missing.
    fn skip_padding(&mut self) -> Result<()> {
        let mut bytes = [0; 512];
        let count = std::mem::take(&mut self.padding) as usize;
        if count > 0 {
            self.position += self.source.read_raw(&mut bytes[..count])? as u64;
        }
        Ok(())
    }

    /// Reads a block; `None` at the end of the archive.
    fn block(&mut self) -> Result<Option<TarBlock>> {
        let mut block = [0; 512];
        match self.source.read_raw(&mut block)? {
            0 => Ok(None),
            512 => {
                self.position += 512;
                Ok(Some(block))
            }
            count => bail!(
                "the archive is truncated: it ends after {} bytes, in a header",
                self.position + count as u64
            ),
        }
    }

    /// Reads a block that must exist.
    pub(crate) fn require_block(&mut self, what: &str) -> Result<TarBlock> {
        let mut block = [0; 512];
        self.require(&mut block, what)?;
        Ok(block)
    }

    fn require(&mut self, buffer: &mut [u8], what: &str) -> Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        let count = self.source.read_raw(buffer)?;
        self.position += count as u64;
        ensure!(
            count == buffer.len(),
            "the archive is truncated: it ends after {} bytes, in {what}",
            self.position
        );
        Ok(())
    }

    /// Parses a number that must not be negative.
    pub(crate) fn unsigned(field: &[u8]) -> Result<u64> {
        u64::try_from(number(field)?).context("the number is negative")
    }
}

impl PendingHeaders {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.name.is_none() && self.link.is_none()
    }
}

impl RawSource for &[u8] {
    fn read_raw(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = buffer.len().min(self.len());
        let (taken, rest) = self.split_at(count);
        buffer[..count].copy_from_slice(taken);
        *self = rest;
        Ok(count)
    }
}

/// Returns whether the bytes start with a tar header, or with the zeros of an empty archive.
pub(crate) fn looks_like_tar(start: &[u8]) -> bool {
    let Some(block) = start.first_chunk::<512>() else {
        return false;
    };
    block.iter().all(|byte| *byte == 0) || check_checksum(block).is_ok()
}

fn kind_of(flag: u8, path: &[u8]) -> Result<EntryKind> {
    Ok(match flag {
        // v7 has no type flag for directories.
        0 if path.ends_with(b"/") => EntryKind::Directory,
        0 | b'0' | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        other => bail!("entries of type '{}' are not supported", escape(&[other])),
    })
}

fn device_of(header: &TarBlock, kind: EntryKind) -> Result<(u32, u32)> {
    if !matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
        return Ok((0, 0));
    }
    let part = |field: &[u8]| u32::try_from(number(field)?).context("the number does not fit");
    let (major, minor) =
        (part(&header[329..337]).context("device")?, part(&header[337..345]).context("device")?);
    // The range of Linux device numbers.
    ensure!(major < 1 << 12 && minor < 1 << 20, "invalid device number {major}:{minor}");
    Ok((major, minor))
}

fn name_of(header: &TarBlock) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = match &header[257..263] {
        // star: times follow a shorter prefix.
        b"ustar\0" if &header[508..512] == b"tar\0" => until_nul(&header[345..476]),
        b"ustar\0" => until_nul(&header[345..500]),
        _ => b"",
    };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

fn check_name(name: &[u8], what: &str) -> Result<()> {
    ensure!(!name.is_empty(), "an empty {what}");
    ensure!(
        name.len() <= PATH_BYTES_MAX,
        "a {what} of {} bytes; at most {PATH_BYTES_MAX} are allowed",
        name.len()
    );
    Ok(())
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Checks the checksum of a header. Some old writers summed signed bytes.
fn check_checksum(block: &TarBlock) -> Result<()> {
    let blanked = |at: usize| {
        if (148..156).contains(&at) { b' ' } else { block[at] }
    };
    let unsigned: i64 = (0..512).map(|at| i64::from(blanked(at))).sum();
    let signed: i64 = (0..512).map(|at| i64::from(blanked(at).cast_signed())).sum();
    let stored = number(&block[148..156]).context("checksum of the header")?;
    ensure!(stored == unsigned || stored == signed, "the checksum of the header is wrong");
    Ok(())
}

fn id(field: &[u8]) -> Result<u32> {
    let number = number(field).context("owner")?;
    u32::try_from(number).context("the owner ID is negative or does not fit into 32 bits")
}

/// Parses a number in a header: octal digits between spaces and NULs, or base-256 if the first bit
/// is set.
fn number(field: &[u8]) -> Result<i64> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        return base_256(field);
    }
    let is_fill = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_fill(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !is_fill(byte)).map_or(start, |last| last + 1);
    let digits = &field[start..end];
    ensure!(
        digits.iter().all(|digit| (b'0'..=b'7').contains(digit)),
        "the number '{}' is not octal",
        escape(digits)
    );
    // At most twelve digits fit into a field: 36 bits.
    Ok(digits.iter().fold(0, |sum, digit| sum << 3 | i64::from(digit - b'0')))
}

/// Parses a base-256 number: two's complement, big-endian; the first bit is the marker, the second
/// the sign.
fn base_256(field: &[u8]) -> Result<i64> {
    let first = if field[0] & 0x40 == 0 { field[0] & 0x7f } else { field[0] };
    let mut value = i128::from(first.cast_signed());
    for byte in &field[1..] {
        value = value << 8 | i128::from(*byte);
    }
    i64::try_from(value).context("the number is too large")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TarBuilder, pax_record};

    fn read(archive: &[u8]) -> Result<Vec<TarEntry>> {
        let mut tar = TarReader::new(archive);
        let mut entries = Vec::new();
        while let Some(entry) = tar.next()? {
            ensure!(tar.source.len() as u64 >= entry.stored, "truncated");
            tar.source = &tar.source[entry.stored as usize..];
            entries.push(entry);
        }
        Ok(entries)
    }

    fn error(archive: &[u8]) -> String {
        format!("{:#}", read(archive).unwrap_err())
    }

    #[test]
    fn every_kind_of_entry_is_read() {
        let archive = TarBuilder::new()
            .directory("d/", 0o755)
            .file("d/f", b"hello")
            .symlink("d/s", "f")
            .hard_link("d/h", "d/f")
            .device("d/c", b'3', 1, 3)
            .device("d/b", b'4', 259, 70_000)
            .fifo("d/p")
            .finish();
        let entries = read(&archive).unwrap();
        let kinds: Vec<EntryKind> = entries.iter().map(|entry| entry.kind).collect();
        use EntryKind::{BlockDevice, CharDevice, Directory, Fifo, File, HardLink, Symlink};
        assert_eq!(kinds, [Directory, File, Symlink, HardLink, CharDevice, BlockDevice, Fifo]);
        assert_eq!(entries[1].size, 5);
        assert_eq!(entries[3].link, b"d/f");
        assert_eq!(entries[5].device, (259, 70_000));
    }

    #[test]
    fn long_names_come_in_three_ways() {
        let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
        let gnu = TarBuilder::new().long_name(&long).file("short", b"x").finish();
        assert_eq!(read(&gnu).unwrap()[0].path, long.as_bytes());
        let pax = TarBuilder::new().pax(&[("path", long.as_bytes())]).file("short", b"x").finish();
        assert_eq!(read(&pax).unwrap()[0].path, long.as_bytes());
        let mut header = TarBuilder::header("name", b'0', 0);
        header[345..351].copy_from_slice(b"prefix");
        let ustar = TarBuilder::new().raw_header(header).finish();
        assert_eq!(read(&ustar).unwrap()[0].path, b"prefix/name");
        // PAX overrides GNU, and a name need not be UTF-8.
        let both = TarBuilder::new()
            .long_name("gnu")
            .pax(&[("path", b"p\xff\xfe")])
            .file("short", b"x")
            .finish();
        assert_eq!(read(&both).unwrap()[0].path, b"p\xff\xfe");
    }

    #[test]
    fn numbers_may_be_base_256_but_not_negative_or_too_large() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0").unwrap(), 0o644);
        assert_eq!(number(&[0; 8]).unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).unwrap(), 0xffff_ffff);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        assert!(number(b"00008\0").is_err());
        assert!(number(b"-1\0\0").is_err());
        assert!(number(b"1 1\0").is_err());
        let mut large = [0; 12];
        large[0] = 0x80;
        large[3] = 1;
        assert!(number(&large).is_err());
        let mut header = TarBuilder::header("f", b'0', 0);
        header[124..136].copy_from_slice(&[0xff; 12]);
        assert!(error(&TarBuilder::new().raw_header(header).finish()).contains("negative"));
        let mut header = TarBuilder::header("f", b'0', 0);
        header[108..116].copy_from_slice(&[0x80, 0, 0, 1, 0, 0, 0, 0]);
        assert!(error(&TarBuilder::new().raw_header(header).finish()).contains("32 bits"));
    }

    #[test]
    fn a_time_may_be_before_1970() {
        let mut header = TarBuilder::header("f", b'0', 0);
        header[136..148].copy_from_slice(&[0xff; 12]);
        assert_eq!(
            read(&TarBuilder::new().raw_header(header).finish()).unwrap()[0].mtime,
            TarTime { seconds: -1, nanos: 0 }
        );
    }

    #[test]
    fn both_checksums_are_accepted_and_wrong_ones_are_not() {
        let mut header = TarBuilder::header("n\u{fc}", b'0', 0);
        let signed: i64 =
            (0..512)
                .map(|at| {
                    if (148..156).contains(&at) { 32 } else { i64::from(header[at].cast_signed()) }
                })
                .sum();
        header[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
        assert_eq!(read(&header).unwrap().len(), 1);
        header[0] = b'm';
        assert!(error(&header).contains("checksum"));
    }

    #[test]
    fn the_size_of_the_extended_header_is_the_size() {
        // A reader that used the header's size (0) would see the file of the inner archive instead.
        let inner = TarBuilder::new().file("smuggled", b"x").finish_without_end();
        let size = inner.len().to_string();
        let archive = TarBuilder::new()
            .pax(&[("size", size.as_bytes())])
            .raw_header(TarBuilder::header("outer", b'0', 0))
            .raw(&inner)
            .file("next", b"")
            .finish();
        let names: Vec<_> = read(&archive).unwrap().into_iter().map(|entry| entry.path).collect();
        assert_eq!(names, [b"outer".to_vec(), b"next".to_vec()]);
    }

    #[test]
    fn only_files_have_contents_and_hard_links_may_repeat_a_size() {
        let sized = |kind| {
            let mut header = TarBuilder::header("d", kind, 4096);
            header[157] = b't';
            TarBuilder::new().raw_header(header).file("f", b"x").finish()
        };
        assert_eq!(read(&sized(b'1')).unwrap().len(), 2);
        for kind in *b"23456" {
            assert!(error(&sized(kind)).contains("not a regular file"));
        }
        let pax = TarBuilder::new().pax(&[("size", b"512")]).directory("d", 0);
        assert!(error(&pax.finish()).contains("not a regular file"));
    }

    #[test]
    fn a_global_header_holds_for_all_that_follows() {
        let archive = TarBuilder::new()
            .extension(b'g', &pax_record("uid", b"7"))
            .file("a", b"")
            .pax(&[("uid", b"8")])
            .file("b", b"")
            .file("c", b"")
            .finish();
        let owners: Vec<u32> = read(&archive).unwrap().iter().map(|entry| entry.uid).collect();
        assert_eq!(owners, [7, 8, 7]);
    }

    #[test]
    fn sparse_files_come_in_four_forms() {
        let expected =
            Some(vec![SparsePiece { offset: 0, length: 2 }, SparsePiece { offset: 10, length: 3 }]);
        let check = |archive: Vec<u8>| {
            let entry = read(&archive).unwrap().remove(0);
            assert_eq!((entry.size, entry.stored, &entry.pieces), (20, 5, &expected));
            assert_eq!(entry.path, b"sparse");
        };
        check(
            TarBuilder::new()
                .old_gnu_sparse("sparse", &[(0, 2), (10, 3), (20, 0)], 20, b"aabbb")
                .finish(),
        );
        let map = [
            ("GNU.sparse.size", &b"20"[..]),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.map", b"0,2,10,3,20,0"),
        ];
        check(TarBuilder::new().pax(&map).file("x", b"aabbb").finish());
        let pairs = [
            ("GNU.sparse.size", &b"20"[..]),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"2"),
            ("GNU.sparse.offset", b"10"),
            ("GNU.sparse.numbytes", b"3"),
        ];
        check(TarBuilder::new().pax(&pairs).file("sparse", b"aabbb").finish());
        let mut contents = b"2\n0\n2\n10\n3\n".to_vec();
        contents.resize(512, 0);
        contents.extend_from_slice(b"aabbb");
        let newest = [
            ("GNU.sparse.major", &b"1"[..]),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"20"),
        ];
        check(TarBuilder::new().pax(&newest).file("x", &contents).finish());
    }

    #[test]
    fn an_old_sparse_file_may_have_a_long_map() {
        let pieces: Vec<(u64, u64)> = (0..60).map(|at| (at * 100, 1)).collect();
        let archive = TarBuilder::new()
            .old_gnu_sparse("s", &pieces, 6000, &[b'x'; 60])
            .file("next", b"")
            .finish();
        let entries = read(&archive).unwrap();
        assert_eq!(entries[0].pieces.as_ref().unwrap().len(), 60);
        assert_eq!(entries[1].path, b"next");
    }

    #[test]
    fn the_error_of_a_truncated_archive_names_its_end() {
        let archive = TarBuilder::new().pax(&[("path", b"p")]).file("f", &[b'x'; 700]).finish();
        let contents_end = 3 * 512 + 700;
        for end in 1..contents_end {
            let whole = read(&archive[..end]);
            assert!(whole.is_err(), "{end}");
        }
        // Missing padding after the contents is not part of any file.
        for end in contents_end..=contents_end.next_multiple_of(512) {
            let whole = read(&archive[..end]);
            assert_eq!(whole.map(|entries| entries.len()).unwrap(), 1, "{end}");
        }
        assert!(
            error(&archive[..1100]).contains("truncated: it ends after 1100 bytes"),
            "{}",
            error(&archive[..1100])
        );
        assert!(error(&archive[..1024]).contains("after an extended header"));
    }

    #[test]
    fn the_end_is_two_blocks_of_zeros_or_a_boundary() {
        let plain = TarBuilder::new().file("f", b"x").finish_without_end();
        assert_eq!(read(&plain).unwrap().len(), 1);
        let tail = [plain.clone(), vec![0; 1024], b"rubbish".to_vec()].concat();
        assert_eq!(read(&tail).unwrap().len(), 1);
        let gap = [plain.clone(), vec![0; 512], plain].concat();
        assert!(error(&gap).contains("single block of zeros"));
        assert_eq!(read(&[]).unwrap().len(), 0);
    }

    #[test]
    fn entries_that_readers_could_parse_differently_are_rejected() {
        let two =
            TarBuilder::new().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("f", b"").finish();
        assert!(error(&two).contains("two extended headers"));
        assert!(
            error(&TarBuilder::new().raw_header(TarBuilder::header("v", b'V', 0)).finish())
                .contains("type 'V'")
        );
        assert!(
            error(&TarBuilder::new().raw_header(TarBuilder::header("", b'0', 0)).finish())
                .contains("empty path")
        );
        assert!(
            error(&TarBuilder::new().raw_header(TarBuilder::header("s", b'2', 0)).finish())
                .contains("empty link")
        );
    }

    #[test]
    fn names_and_headers_have_limits() {
        let long = "a".repeat(PATH_BYTES_MAX);
        assert!(
            read(&TarBuilder::new().pax(&[("path", long.as_bytes())]).file("f", b"").finish())
                .is_ok()
        );
        let longer = "a".repeat(PATH_BYTES_MAX + 1);
        assert!(
            error(&TarBuilder::new().pax(&[("path", longer.as_bytes())]).file("f", b"").finish())
                .contains("4095")
        );
        let huge = vec![b'x'; PAX_BYTES_MAX as usize];
        assert!(
            error(&TarBuilder::new().pax(&[("comment", &huge)]).file("f", b"").finish())
                .contains("extended header of")
        );
    }
}
