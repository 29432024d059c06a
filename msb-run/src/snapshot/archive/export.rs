//! Writing archives of snapshots.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, ensure};
use libmsb::cli::error::{Code, Failure, ReportedExit};
use libmsb::digest::Digest;
use libmsb::state::snapshot_manifest::SnapshotImage;
use libmsb::state::snapshots::Snapshot;
use libmsb::state::{Home, layout, write};
use libmsb::tools;
use serde::Deserialize;

use super::tar::{ArchiveEntry, FilePiece, write_end, write_file, write_padding, write_sparse};
use super::{BASE, BLOCK_BYTES, DATA_DIGEST, IMAGE};
use crate::snapshot::data_digest::{data_digest, verify};
use crate::snapshot::digest_of;
use crate::snapshot::disk_copy::DataRanges;
use crate::snapshot::saved_memory::{open_memory, verify_memory};

/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 20;

/// The request for an archive.
#[derive(Debug)]
pub(crate) struct ExportRequest {
    /// The snapshots, ancestors first.
    pub(crate) snapshots: Vec<Snapshot>,
    /// The snapshot that the receiver has, from which the only snapshot differs.
    pub(crate) base: Option<Snapshot>,
    /// Adds the image of each snapshot.
    pub(crate) with_image: bool,
    /// Adds the memory of each snapshot that has one.
    pub(crate) with_memory: bool,
    /// Compresses the archive.
    pub(crate) compressed: bool,
}

/// Writes an archive.
pub(crate) fn export(home: &Home, request: &ExportRequest, out: impl Write) -> anyhow::Result<()> {
    if !request.compressed {
        let mut out = out;
        write_archive(home, request, &mut out)?;
        return Ok(out.flush()?);
    }
    let mut encoder = zstd::stream::write::Encoder::new(out, 0)?;
    encoder.include_checksum(true)?;
    write_archive(home, request, &mut encoder)?;
    let mut out = encoder.finish()?;
    Ok(out.flush()?)
}

fn write_archive(home: &Home, request: &ExportRequest, out: &mut impl Write) -> anyhow::Result<()> {
    let mut images: Vec<Digest> = Vec::new();
    for snapshot in &request.snapshots {
        write_snapshot(snapshot, request.base.as_ref(), out)
            .with_context(|| format!("cannot export the snapshot '{}'", snapshot.name))?;
        if request.with_memory {
            write_memory(snapshot, out)?;
        }
        let image = snapshot.manifest.image.manifest_digest;
        if request.with_image && !images.contains(&image) {
            write_image(home, snapshot, out)?;
            images.push(image);
        }
    }
    write_end(out)
}

fn write_snapshot(
    snapshot: &Snapshot,
    base: Option<&Snapshot>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let manifest = snapshot.manifest.to_bytes()?;
    let disk = snapshot.open_disk()?;
    verify(&snapshot.manifest, &disk)?;
    let mtime = mtime(snapshot)?;
    let name = |file: &str| format!("{}/{file}", snapshot.name);
    small_file(out, &name(layout::SNAPSHOT_MANIFEST), &manifest, mtime)?;
    let base_disk = base.map(Snapshot::open_disk).transpose()?;
    if let Some(base) = base {
        let digest = format!("{}\n", digest_of(&base.manifest)?);
        small_file(out, &name(BASE), digest.as_bytes(), mtime)?;
    }
    let pieces = changed_pieces(&disk, base_disk.as_ref())?;
    let size = snapshot.manifest.upper.size_bytes;
    let entry = ArchiveEntry { path: name(&snapshot.manifest.upper.file), size, pieces };
    write_sparse(out, &entry, mtime)?;
    for piece in &entry.pieces {
        copy_range(&disk, *piece, out)?;
    }
    write_padding(out, entry.stored())?;
    let digest = format!("{}\n", data_digest(&disk)?);
    small_file(out, &name(DATA_DIGEST), digest.as_bytes(), mtime)
}

/// Adds the memory of a snapshot, if it has one.
fn write_memory(snapshot: &Snapshot, out: &mut impl Write) -> anyhow::Result<()> {
    let Some(state) = open_memory(snapshot)? else {
        return Ok(());
    };
    verify_memory(snapshot, &state)?;
    let bytes = state.file.metadata()?.len();
    let path = format!("{}/{}", snapshot.name, layout::MEMORY);
    write_file(out, &path, bytes, mtime(snapshot)?)?;
    copy_range(&state.file, FilePiece { offset: 0, bytes }, out)?;
    write_padding(out, bytes)
}

/// Returns the time of a snapshot, in seconds since 1970.
fn mtime(snapshot: &Snapshot) -> anyhow::Result<u64> {
    Ok(snapshot.manifest.created()?.as_second().max(0) as u64)
}

fn small_file(out: &mut impl Write, path: &str, bytes: &[u8], mtime: u64) -> anyhow::Result<()> {
    write_file(out, path, bytes.len() as u64, mtime)?;
    out.write_all(bytes)?;
    write_padding(out, bytes.len() as u64)
}

fn copy_range(file: &File, piece: FilePiece, out: &mut impl Write) -> anyhow::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let (mut at, end) = (piece.offset, piece.offset + piece.bytes);
    while at < end {
        let count = (end - at).min(READ_BYTES as u64) as usize;
        file.read_exact_at(&mut buffer[..count], at).context("cannot read the file")?;
        out.write_all(&buffer[..count])?;
        at += count as u64;
    }
    Ok(())
}

/// Returns the blocks of a disk that are not zero or, with a base, that differ from the base's.
fn changed_pieces(disk: &File, base: Option<&File>) -> anyhow::Result<Vec<FilePiece>> {
    let size = disk.metadata()?.len();
    let mut pieces = PieceList::default();
    let mut ranges = block_ranges(disk, size)?;
    if let Some(base) = base {
        ranges.extend(block_ranges(base, size)?);
        ranges = merged(ranges);
    }
    let (mut ours, mut theirs) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    for (start, end) in ranges {
        let mut at = start;
        while at < end {
            let count = (end - at).min(READ_BYTES as u64) as usize;
            disk.read_exact_at(&mut ours[..count], at).context("cannot read the disk")?;
            match base {
                Some(base) => read_padded(base, &mut theirs[..count], at)?,
                None => theirs[..count].fill(0),
            }
            let blocks = ours[..count]
                .chunks(BLOCK_BYTES as usize)
                .zip(theirs[..count].chunks(BLOCK_BYTES as usize));
            for (index, (our, their)) in blocks.enumerate() {
                if our != their {
                    pieces.push(at + index as u64 * BLOCK_BYTES, our.len() as u64);
                }
            }
            at += count as u64;
        }
    }
    Ok(pieces.0)
}

/// Returns the data ranges of a file, extended to whole blocks, up to a size.
fn block_ranges(file: &File, size: u64) -> anyhow::Result<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    for range in DataRanges::of(file) {
        let (start, end) = range?;
        let start = start - start % BLOCK_BYTES;
        let end = end.next_multiple_of(BLOCK_BYTES).min(size);
        if start < end {
            ranges.push((start, end));
        }
    }
    Ok(merged(ranges))
}

fn merged(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

/// Reads a range of a file; beyond its end are zeros.
fn read_padded(file: &File, buffer: &mut [u8], at: u64) -> anyhow::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("cannot read the disk of the base"),
        }
    }
    buffer[done..].fill(0);
    Ok(())
}

/// Pieces in order; adjacent ones are joined.
#[derive(Debug, Default)]
struct PieceList(Vec<FilePiece>);

impl PieceList {
    fn push(&mut self, offset: u64, bytes: u64) {
        match self.0.last_mut() {
            Some(last) if last.offset + last.bytes == offset => last.bytes += bytes,
            _ => self.0.push(FilePiece { offset, bytes }),
        }
    }
}

/// Adds the image of a snapshot. Its size precedes it, so it is saved to a file first.
fn write_image(home: &Home, snapshot: &Snapshot, out: &mut impl Write) -> anyhow::Result<()> {
    let image = &snapshot.manifest.image;
    let mut file = save_image(home, image)?;
    let bytes = file.metadata()?.len();
    write_file(out, &format!("{}/{IMAGE}", snapshot.name), bytes, mtime(snapshot)?)?;
    file.seek(SeekFrom::Start(0))?;
    let copied = std::io::copy(&mut file, out)?;
    ensure!(copied == bytes, "the saved image has changed");
    write_padding(out, bytes)
}

/// Saves an image to an unnamed file. Its manifest must be the pinned one.
fn save_image(home: &Home, image: &SnapshotImage) -> anyhow::Result<File> {
    let reference = &image.reference;
    let path = temporary_path(home)?;
    let mut command = tools::command("msb-image")?;
    command.args(["save", "--quiet", "--format", "oci", "--format", "json", "--output"]);
    command.arg(&path).arg(reference).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().context("cannot start msb-image")?;
    let file = File::options().read(true).open(&path);
    let _ = std::fs::remove_file(&path);
    if !output.status.success() {
        return Err(ReportedExit(output.status.code().unwrap_or(1) as u8).into());
    }
    let saved: SavedImage =
        serde_json::from_slice(&output.stdout).context("cannot understand msb-image")?;
    if saved.digest != image.manifest_digest {
        let message = format!("the image '{reference}' cannot be saved under its digest");
        return Err(Failure::wrong_state(message)
            .code(Code::SnapshotImageMissing)
            .hint(
                "omit --with-image; the receiver pulls the image by its digest. An image that was \
                 pulled with --keep-blobs keeps its digest",
            )
            .into());
    }
    file.context("cannot open the saved image")
}

/// A row of `msb image save --format json`.
#[derive(Debug, Deserialize)]
struct SavedImage {
    digest: Digest,
}

fn temporary_path(home: &Home) -> anyhow::Result<PathBuf> {
    let root = home.snapshots().root().to_owned();
    write::create_dir(&root)?;
    Ok(root.join(format!("{}{}", layout::NEW_PREFIX, write::random_hex()?)))
}

/// Creates a file without a name in the directory of snapshots.
pub(super) fn unnamed_file(home: &Home) -> anyhow::Result<File> {
    let path = temporary_path(home)?;
    let file = write::create_file(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
