//! A reader and a writer of the tar entries that archives of snapshots have: regular files, plain or
//! sparse in the old GNU format. Everything else is an error: links, devices, extended headers.

use std::io::{Read, Write};

use anyhow::{Context, bail, ensure};

/// Size of a tar block, in bytes.
pub(crate) const RECORD_BYTES: usize = 512;
/// Maximum number of pieces of a sparse file: each has 4 KiB at least, and 64 Mi of them are 24
/// times 64 MiB of map. 4 Mi pieces describe any real disk.
const PIECES_MAX: usize = 4 << 20;
/// Pieces in a header, and in each further block of the map.
const PIECES_IN_HEADER: usize = 4;
const PIECES_IN_BLOCK: usize = 21;
/// Size of a piece in the map: two numbers of 12 bytes.
const PIECE_BYTES: usize = 24;

/// A range of a file that the archive contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FilePiece {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// An entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ArchiveEntry {
    /// Path, as in the archive.
    pub(crate) path: String,
    /// Size of the file.
    pub(crate) size: u64,
    /// Ranges that the archive contains, in order. The rest is zeros.
    pub(crate) pieces: Vec<FilePiece>,
}

impl ArchiveEntry {
    /// Returns the number of bytes that the archive contains.
    pub(crate) fn stored(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }
}

/// A reader of entries.
#[derive(Debug)]
pub(crate) struct EntryReader<R> {
    source: R,
    /// Bytes of the current entry that were not read.
    left: u64,
    /// Bytes after them that fill the last block.
    padding: u64,
}

impl<R: Read> EntryReader<R> {
    pub(crate) fn new(source: R) -> EntryReader<R> {
        EntryReader { source, left: 0, padding: 0 }
    }

    /// Returns the next regular file; `None` at the end mark. Skips directories, and the rest of the
    /// current entry.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<ArchiveEntry>> {
        loop {
            self.skip()?;
            let header = self.block().context("the archive is truncated")?;
            if header.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            check_sum(&header)?;
            let path = path(&header)?;
            let stored = number(&header[124..136])?;
            self.padding = stored.next_multiple_of(RECORD_BYTES as u64) - stored;
            match header[156] {
                b'0' | 0 => {
                    self.left = stored;
                    let pieces = vec![FilePiece { offset: 0, bytes: stored }];
                    return Ok(Some(ArchiveEntry { path, size: stored, pieces }));
                }
                b'S' => {
                    let entry = self.sparse(path, &header)?;
                    ensure!(
                        entry.stored() == stored,
                        "the map of '{}' does not match its size",
                        entry.path
                    );
                    self.left = stored;
                    return Ok(Some(entry));
                }
                b'5' => ensure!(stored == 0, "the directory '{path}' has contents"),
                b'1' | b'2' => bail!("'{path}' is a link"),
                kind => bail!("'{path}' has the unsupported type {kind}"),
            }
        }
    }

    /// Returns the source, at the end mark.
    pub(crate) fn into_source(self) -> R {
        self.source
    }

    fn sparse(&mut self, path: String, header: &Record) -> anyhow::Result<ArchiveEntry> {
        let size = number(&header[483..495])?;
        let mut pieces = Vec::new();
        read_map(&header[386..386 + PIECES_IN_HEADER * PIECE_BYTES], size, &mut pieces)?;
        let mut more = header[482] != 0;
        while more {
            let block = self.block().context("the map of a sparse file is truncated")?;
            read_map(&block[..PIECES_IN_BLOCK * PIECE_BYTES], size, &mut pieces)?;
            more = block[504] != 0;
        }
        Ok(ArchiveEntry { path, size, pieces })
    }

    fn skip(&mut self) -> anyhow::Result<()> {
        let rest = self.left + self.padding;
        let skipped = std::io::copy(&mut (&mut self.source).take(rest), &mut std::io::sink())?;
        ensure!(skipped == rest, "the archive is truncated");
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    fn block(&mut self) -> std::io::Result<Record> {
        let mut block = [0; RECORD_BYTES];
        self.source.read_exact(&mut block)?;
        Ok(block)
    }
}

/// Reads the contents of the current entry that the archive contains.
impl<R: Read> Read for EntryReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.left.min(buffer.len() as u64) as usize;
        if count == 0 {
            // A decoder takes an empty buffer for an error.
            return Ok(0);
        }
        let read = self.source.read(&mut buffer[..count])?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

type Record = [u8; RECORD_BYTES];

/// Reads a part of a map: ascending pieces within the file.
fn read_map(fields: &[u8], size: u64, pieces: &mut Vec<FilePiece>) -> anyhow::Result<()> {
    for field in fields.chunks_exact(PIECE_BYTES) {
        if field[0] == 0 {
            break;
        }
        let (offset, bytes) = (number(&field[..12])?, number(&field[12..])?);
        let floor = pieces.last().map_or(0, |last: &FilePiece| last.offset + last.bytes);
        let end = offset.checked_add(bytes).context("a piece of a sparse file is too long")?;
        ensure!(offset >= floor, "the pieces of a sparse file overlap");
        ensure!(end <= size, "a piece of a sparse file lies beyond its end");
        ensure!(pieces.len() < PIECES_MAX, "a sparse file has more than {PIECES_MAX} pieces");
        if bytes > 0 {
            pieces.push(FilePiece { offset, bytes });
        }
    }
    Ok(())
}

fn path(header: &Record) -> anyhow::Result<String> {
    let name = header[..100].split(|byte| *byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(name).context("a name in the archive is not UTF-8")?;
    let is_ustar = &header[257..263] == b"ustar\0";
    ensure!(!is_ustar || header[345] == 0, "the name '{text}' is too long");
    ensure!(!text.chars().any(char::is_control), "a name has control characters");
    Ok(text.to_owned())
}

fn check_sum(header: &Record) -> anyhow::Result<()> {
    let stated = number(&header[148..156])?;
    ensure!(stated == sum(header), "a header has a wrong checksum: not a snapshot archive");
    Ok(())
}

/// Returns an archive with correct checksums, which a fuzzer would not find.
#[cfg(any(test, fuzzing))]
pub(crate) fn repair_sums(bytes: &[u8]) -> Vec<u8> {
    let mut repaired = bytes.to_vec();
    for record in repaired.as_chunks_mut::<RECORD_BYTES>().0 {
        if record.iter().any(|byte| *byte != 0) {
            *record = finished(*record);
        }
    }
    repaired
}

fn sum(header: &Record) -> u64 {
    let bytes = header.iter().enumerate();
    bytes.map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte })).sum()
}

/// Reads a number: octal digits, or the binary form of GNU.
fn number(field: &[u8]) -> anyhow::Result<u64> {
    if field[0] & 0x80 != 0 {
        let (first, rest) = field.split_at(field.len() - 8);
        // A field of 8 bytes, such as the checksum, has no room for a mark before the number.
        let is_marked = first
            .split_first()
            .is_some_and(|(mark, high)| *mark == 0x80 && high.iter().all(|byte| *byte == 0));
        ensure!(is_marked, "a number is out of range");
        let value = u64::from_be_bytes(rest.try_into()?);
        ensure!(value <= i64::MAX as u64, "a number is out of range");
        return Ok(value);
    }
    let text = std::str::from_utf8(field).context("a number is not octal")?;
    let digits = text.trim_matches(|c| c == ' ' || c == '\0');
    let octal = digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    ensure!(octal, "a number is not octal");
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(digits, 8).context("a number is out of range")
}

/// Writes the header of a plain file. Its contents and [`write_padding`] follow.
pub(crate) fn write_file(
    out: &mut impl Write,
    path: &str,
    bytes: u64,
    mtime: u64,
) -> anyhow::Result<()> {
    let header = header(path, bytes, b'0', mtime)?;
    out.write_all(&finished(header))?;
    Ok(())
}

/// Writes the header of a sparse file. The contents of its pieces and [`write_padding`] follow.
pub(crate) fn write_sparse(
    out: &mut impl Write,
    entry: &ArchiveEntry,
    mtime: u64,
) -> anyhow::Result<()> {
    let mut pieces = entry.pieces.clone();
    if pieces.last().is_none_or(|last| last.offset + last.bytes < entry.size) {
        // GNU tar and microsandbox want an empty piece at the end of the file.
        pieces.push(FilePiece { offset: entry.size, bytes: 0 });
    }
    ensure!(pieces.len() <= PIECES_MAX, "the disk has too many fragments");
    let mut header = header(&entry.path, entry.stored(), b'S', mtime)?;
    let (first, rest) = pieces.split_at(pieces.len().min(PIECES_IN_HEADER));
    write_map(&mut header[386..482], first);
    header[482] = u8::from(!rest.is_empty());
    write_number(&mut header[483..495], entry.size);
    out.write_all(&finished(header))?;
    let blocks = rest.chunks(PIECES_IN_BLOCK);
    let last = blocks.len();
    for (number, pieces) in blocks.enumerate() {
        let mut block = [0; RECORD_BYTES];
        write_map(&mut block[..504], pieces);
        block[504] = u8::from(number + 1 < last);
        out.write_all(&block)?;
    }
    Ok(())
}

/// Writes the bytes that fill the last block of an entry.
pub(crate) fn write_padding(out: &mut impl Write, bytes: u64) -> anyhow::Result<()> {
    let rest = bytes.next_multiple_of(RECORD_BYTES as u64) - bytes;
    out.write_all(&[0; RECORD_BYTES][..rest as usize])?;
    Ok(())
}

/// Writes the end mark.
pub(crate) fn write_end(out: &mut impl Write) -> anyhow::Result<()> {
    out.write_all(&[0; 2 * RECORD_BYTES])?;
    Ok(())
}

fn header(path: &str, bytes: u64, kind: u8, mtime: u64) -> anyhow::Result<Record> {
    ensure!(path.len() <= 100, "the name '{path}' is too long for an archive");
    let mut header = [0; RECORD_BYTES];
    header[..path.len()].copy_from_slice(path.as_bytes());
    header[100..108].copy_from_slice(b"0000600\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    write_number(&mut header[124..136], bytes);
    write_number(&mut header[136..148], mtime);
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar  \0");
    Ok(header)
}

fn finished(mut header: Record) -> Record {
    let sum = format!("{:06o}\0 ", sum(&header));
    header[148..156].copy_from_slice(sum.as_bytes());
    header
}

fn write_map(fields: &mut [u8], pieces: &[FilePiece]) {
    for (field, piece) in fields.chunks_exact_mut(PIECE_BYTES).zip(pieces) {
        write_number(&mut field[..12], piece.offset);
        write_number(&mut field[12..], piece.bytes);
    }
}

/// Writes a number of 12 bytes: octal, or binary if it is too large.
fn write_number(field: &mut [u8], value: u64) {
    const OCTAL_MAX: u64 = (1 << 33) - 1;
    if value <= OCTAL_MAX {
        field[..11].copy_from_slice(format!("{value:011o}").as_bytes());
        field[11] = 0;
    } else {
        field.fill(0);
        field[0] = 0x80;
        field[4..].copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(pieces: usize) -> ArchiveEntry {
        let piece = |number: usize| FilePiece { offset: number as u64 * (5 << 30), bytes: 3 };
        ArchiveEntry {
            path: "a/upper.ext4".to_owned(),
            size: 1 << 45,
            pieces: (0..pieces).map(piece).collect(),
        }
    }

    fn archive(entry: &ArchiveEntry) -> Vec<u8> {
        let mut out = Vec::new();
        write_sparse(&mut out, entry, 7).unwrap();
        out.extend(vec![9; entry.stored() as usize]);
        write_padding(&mut out, entry.stored()).unwrap();
        write_file(&mut out, "a/last", 2, 7).unwrap();
        out.extend(b"hi");
        write_padding(&mut out, 2).unwrap();
        write_end(&mut out).unwrap();
        out
    }

    #[test]
    fn a_sparse_file_of_any_number_of_pieces_is_read_as_written() {
        for pieces in [0, 1, 4, 5, 25, 26, 1000] {
            let entry = entry(pieces);
            let bytes = archive(&entry);
            let mut reader = EntryReader::new(&bytes[..]);
            assert_eq!(reader.next().unwrap().unwrap(), entry);
            let last = reader.next().unwrap().unwrap();
            assert_eq!((last.path.as_str(), last.size), ("a/last", 2));
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hi");
            assert!(reader.next().unwrap().is_none());
        }
    }

    #[test]
    fn a_truncated_archive_is_an_error_at_every_length() {
        let bytes = archive(&entry(6));
        for length in (0..bytes.len() - 512).step_by(100) {
            let mut reader = EntryReader::new(&bytes[..length]);
            let read = (|| loop {
                match reader.next()? {
                    Some(_) => {}
                    None => return anyhow::Ok(()),
                }
            })();
            assert!(read.is_err(), "{length} of {}", bytes.len());
        }
    }

    #[test]
    fn links_and_wrong_maps_are_refused() {
        let valid = archive(&entry(2));
        let changed = |change: &dyn Fn(&mut Record)| {
            let mut bytes = valid.clone();
            let mut header: Record = bytes[..512].try_into().unwrap();
            change(&mut header);
            bytes[..512].copy_from_slice(&finished(header));
            EntryReader::new(&bytes[..]).next()
        };
        assert!(changed(&|_| {}).is_ok());
        for kind in [b'1', b'2', b'3', b'4', b'6', b'x', b'g', b'L', b'K'] {
            assert!(changed(&|header| header[156] = kind).is_err(), "{kind}");
        }
        // Pieces that overlap, lie beyond the end, or do not add up.
        assert!(changed(&|h| write_number(&mut h[410..422], 0)).is_err());
        assert!(changed(&|h| write_number(&mut h[410..422], 1 << 50)).is_err());
        assert!(changed(&|h| write_number(&mut h[422..434], 4)).is_err());
        assert!(changed(&|h| h[386] = b'9').is_err());
        let mut bytes = valid.clone();
        bytes[148] = 0x80;
        assert!(EntryReader::new(&bytes[..]).next().is_err());
        let mut bytes = valid.clone();
        bytes[0] ^= 1;
        assert!(EntryReader::new(&bytes[..]).next().is_err());
    }
}
