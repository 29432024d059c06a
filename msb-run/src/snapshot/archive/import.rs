//! Reading archives of snapshots.
//!
//! An archive is not trusted. Its snapshots are written to directories that are not valid yet, and
//! appear together when the archive was read to its end and every digest agrees. Space is taken for
//! blocks that are not zero only, so an archive takes as much space as it has data.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail, ensure};
use libmsb::cli::error::{Code, Failure, print_warning, print_warning_with_hint};
use libmsb::cli::escape::escape;
use libmsb::digest::Digest;
use libmsb::state::snapshot_manifest::{LABEL_MEMORY, MANIFEST_BYTES_MAX, SnapshotManifest};
use libmsb::state::snapshots::{NewSnapshot, Snapshot, SnapshotName};
use libmsb::state::{Home, layout, write};
use libmsb::tools;

use super::export::unnamed_file;
use super::tar::{ArchiveEntry, EntryReader};
use super::{BASE, BLOCK_BYTES, DATA_DIGEST, IMAGE};
use crate::boot_state::BootState;
use crate::snapshot::data_digest::{Verification, data_digest, verify};
use crate::snapshot::digest_of;
use crate::snapshot::disk_copy::copy_disk;
use crate::snapshot::reference::SnapshotArg;

/// Maximum number of snapshots in an archive.
const SNAPSHOTS_MAX: usize = 1024;
/// Largest window of a compressed archive, as a power of two.
const WINDOW_LOG_MAX: u32 = 27;
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Directory of microsandbox's archives with files of its image cache.
const FOREIGN_CACHE: &str = "cache/";
/// Longest text file in an archive: a digest.
const DIGEST_BYTES_MAX: u64 = 128;
/// Bytes that are read at once, a multiple of a block.
const READ_BYTES: usize = 1 << 20;

/// A snapshot of an archive.
#[derive(Debug)]
struct ArchivedSnapshot {
    /// Name of its directory in the archive.
    name: String,
    /// Its new directory.
    new: NewSnapshot,
    manifest: SnapshotManifest,
    base: Option<Digest>,
    disk: Option<File>,
    digest: Option<Digest>,
}

/// Reads an archive into a directory. Returns its snapshots in the order of the archive.
pub(crate) fn import(
    home: &Home,
    source: impl Read,
    directory: &Path,
    tool: &str,
    trusts_memory: bool,
) -> anyhow::Result<Vec<Snapshot>> {
    let mut source = BufReader::with_capacity(READ_BYTES, source);
    let is_zstd = source.fill_buf().context("cannot read the archive")?.starts_with(&ZSTD_MAGIC);
    let mut importer = ArchiveImporter {
        home,
        directory,
        tool,
        trusts_memory,
        snapshots: Vec::new(),
        images: Vec::new(),
    };
    if is_zstd {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
        decoder.window_log_max(WINDOW_LOG_MAX)?;
        importer.read(decoder)?;
    } else {
        importer.read(source)?;
    }
    importer.publish()
}

struct ArchiveImporter<'a> {
    home: &'a Home,
    directory: &'a Path,
    tool: &'a str,
    trusts_memory: bool,
    snapshots: Vec<ArchivedSnapshot>,
    images: Vec<File>,
}

impl ArchiveImporter<'_> {
    fn read(&mut self, source: impl Read) -> anyhow::Result<()> {
        let mut reader = EntryReader::new(source);
        while let Some(entry) = reader.next()? {
            if entry.path.starts_with(FOREIGN_CACHE) {
                continue;
            }
            let (directory, file) = split(&entry.path)?;
            self.entry(directory, file, &entry, &mut reader)
                .with_context(|| format!("in the archive's '{}'", escape(&entry.path)))?;
        }
        // The end of the stream carries the checksum of the compression.
        let mut rest = reader.into_source();
        std::io::copy(&mut rest, &mut std::io::sink()).context("the archive is damaged")?;
        ensure!(!self.snapshots.is_empty(), "the archive has no snapshot");
        for snapshot in &self.snapshots {
            ensure!(snapshot.disk.is_some(), "the snapshot '{}' has no disk", snapshot.name);
        }
        Ok(())
    }

    fn entry<R: Read>(
        &mut self,
        directory: &str,
        file: &str,
        entry: &ArchiveEntry,
        reader: &mut EntryReader<R>,
    ) -> anyhow::Result<()> {
        if file == layout::SNAPSHOT_MANIFEST {
            return self.manifest(directory, entry, reader);
        }
        let Some(current) = self.snapshots.last_mut().filter(|last| last.name == directory) else {
            bail!("it does not follow its manifest");
        };
        if file == current.manifest.upper.file {
            ensure!(current.disk.is_none(), "it is there twice");
            let base = current.base.map(|digest| open_base(self.home, &digest)).transpose()?;
            let path = current.new.path().join(&current.manifest.upper.file);
            let disk = write::create_file(&path)?;
            write_disk(&disk, &current.manifest, base, entry, reader)?;
            current.disk = Some(disk);
            return Ok(());
        }
        match file {
            BASE => {
                ensure!(current.disk.is_none() && current.base.is_none(), "it is out of order");
                current.base = Some(text(entry, reader, DIGEST_BYTES_MAX)?.trim().parse()?);
            }
            DATA_DIGEST => {
                ensure!(current.digest.is_none(), "it is there twice");
                current.digest = Some(text(entry, reader, DIGEST_BYTES_MAX)?.trim().parse()?);
            }
            layout::MEMORY => {
                ensure!(current.manifest.has_memory(), "the snapshot has no memory");
                ensure!(entry.stored() == entry.size, "it is sparse");
                if self.trusts_memory {
                    let path = current.new.path().join(layout::MEMORY);
                    let mut file = write::create_file(&path)?;
                    std::io::copy(reader, &mut file).context("cannot copy the memory")?;
                    file.sync_all().context("cannot copy the memory")?;
                } else {
                    let message = format!("the memory of '{directory}' was not imported");
                    let hint = "if you trust its source, import it with --trust-memory";
                    print_warning_with_hint(self.tool, &message, hint);
                }
            }
            IMAGE => {
                let mut image = unnamed_file(self.home)?;
                std::io::copy(reader, &mut image).context("cannot copy the image")?;
                image.seek(SeekFrom::Start(0))?;
                self.images.push(image);
            }
            _ => bail!("no snapshot has such a file"),
        }
        Ok(())
    }

    fn manifest<R: Read>(
        &mut self,
        directory: &str,
        entry: &ArchiveEntry,
        reader: &mut EntryReader<R>,
    ) -> anyhow::Result<()> {
        ensure!(self.snapshots.len() < SNAPSHOTS_MAX, "more than {SNAPSHOTS_MAX} snapshots");
        let is_known = self.snapshots.iter().any(|known| known.name == directory);
        ensure!(!is_known, "it is there twice");
        let bytes = text(entry, reader, MANIFEST_BYTES_MAX)?;
        let manifest = SnapshotManifest::parse(bytes.as_bytes())?;
        self.snapshots.push(ArchivedSnapshot {
            name: directory.to_owned(),
            new: NewSnapshot::create(self.directory)?,
            manifest,
            base: None,
            disk: None,
            digest: None,
        });
        Ok(())
    }

    /// Checks the disks, loads the images, and lets the snapshots appear.
    fn publish(self) -> anyhow::Result<Vec<Snapshot>> {
        for snapshot in &self.snapshots {
            self.check(snapshot).with_context(|| {
                let message = format!("the snapshot '{}' in the archive is damaged", snapshot.name);
                Failure::failed(message).code(Code::SnapshotIntegrity)
            })?;
        }
        for image in self.images {
            load_image(image)?;
        }
        let mut published = Vec::new();
        for snapshot in self.snapshots {
            published.push(publish(self.home, self.directory, snapshot)?);
        }
        Ok(published)
    }

    fn check(&self, snapshot: &ArchivedSnapshot) -> anyhow::Result<()> {
        let disk = snapshot.disk.as_ref().context("it has no disk")?;
        if let Some(stated) = snapshot.digest {
            let found = data_digest(disk)?;
            ensure!(
                found == stated,
                "the disk has the digest {found}, and the archive says {stated}"
            );
        } else {
            ensure!(snapshot.base.is_none(), "the archive has no digest of the disk");
        }
        let memory = snapshot.new.path().join(layout::MEMORY);
        if let Some(state) = BootState::open_saved(&memory)? {
            let stated = snapshot.manifest.labels.get(LABEL_MEMORY).map(String::as_str);
            ensure!(
                stated == Some(state.digest()?.to_string().as_str()),
                "the header of the memory does not match the manifest"
            );
            state.verify().context("the memory is damaged")?;
        }
        if let Verification::Unsupported(integrity) = verify(&snapshot.manifest, disk)? {
            print_warning(
                self.tool,
                &format!(
                    "the digest '{}' of '{}' depends on the layout of the file and is not checked",
                    escape(&integrity.algorithm),
                    snapshot.name
                ),
            );
        }
        Ok(disk.sync_all()?)
    }
}

/// Splits the path of an entry: a plain name of a directory, and a file.
fn split(path: &str) -> anyhow::Result<(&str, &str)> {
    let path = path.strip_prefix("./").unwrap_or(path);
    let parts = path.split_once('/').filter(|(directory, file)| {
        directory.parse::<SnapshotName>().is_ok() && !file.contains('/') && !file.is_empty()
    });
    parts.with_context(|| format!("the archive has the unexpected entry '{}'", escape(path)))
}

fn text<R: Read>(
    entry: &ArchiveEntry,
    reader: &mut EntryReader<R>,
    bytes_max: u64,
) -> anyhow::Result<String> {
    ensure!(entry.size <= bytes_max, "it is longer than {bytes_max} bytes");
    ensure!(entry.stored() == entry.size, "it is sparse");
    let mut text = String::new();
    reader.read_to_string(&mut text).context("cannot read it")?;
    Ok(text)
}

fn open_base(home: &Home, digest: &Digest) -> anyhow::Result<Snapshot> {
    SnapshotArg::Digest(digest.hex()).open(home).with_context(|| {
        Failure::not_found(format!("the archive is incremental, and its base {digest} is missing"))
            .code(Code::SnapshotNotFound)
            .hint("import the base first, or export without --since")
    })
}

/// Writes a disk: the base, if there is one, then the pieces of the archive.
fn write_disk<R: Read>(
    disk: &File,
    manifest: &SnapshotManifest,
    base: Option<Snapshot>,
    entry: &ArchiveEntry,
    reader: &mut EntryReader<R>,
) -> anyhow::Result<()> {
    let size = manifest.upper.size_bytes;
    ensure!(entry.size == size, "it has {} bytes, and the manifest says {size}", entry.size);
    if let Some(base) = &base {
        copy_disk(&base.open_disk()?, disk)?;
    }
    disk.set_len(size).context("cannot write the disk")?;
    let keeps_zeros = base.is_some();
    let mut buffer = vec![0; READ_BYTES];
    for piece in &entry.pieces {
        let (mut at, end) = (piece.offset, piece.offset + piece.bytes);
        while at < end {
            // Up to the next multiple, so that blocks of the disk stay whole.
            let stop = (at + 1).next_multiple_of(READ_BYTES as u64).min(end);
            let bytes = &mut buffer[..(stop - at) as usize];
            reader.read_exact(bytes).context("the archive is truncated")?;
            write_blocks(disk, bytes, at, keeps_zeros)?;
            at = stop;
        }
    }
    Ok(())
}

/// Writes bytes to a disk. Leaves holes where it is zero already.
fn write_blocks(disk: &File, bytes: &[u8], at: u64, keeps_zeros: bool) -> anyhow::Result<()> {
    let mut run: Option<(usize, usize)> = None;
    let write = |run: Option<(usize, usize)>| {
        run.map_or(Ok(()), |(start, end)| disk.write_all_at(&bytes[start..end], at + start as u64))
            .context("cannot write the disk")
    };
    for (index, block) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
        let start = index * BLOCK_BYTES as usize;
        let end = start + block.len();
        if keeps_zeros || block.iter().any(|byte| *byte != 0) {
            run = Some((run.map_or(start, |(first, _)| first), end));
        } else {
            write(run.take())?;
        }
    }
    write(run)
}

/// Loads an image as `msb image load` does.
fn load_image(image: File) -> anyhow::Result<()> {
    let mut command = tools::command("msb-image")?;
    let to_stderr = std::io::stderr();
    let to_stderr = std::os::fd::AsFd::as_fd(&to_stderr).try_clone_to_owned()?;
    command.args(["load", "--quiet"]).stdin(Stdio::from(image)).stdout(to_stderr);
    let status = command.status().context("cannot start msb-image")?;
    ensure!(status.success(), "cannot load the image of the archive");
    Ok(())
}

/// Lets a snapshot appear under its name in the archive, or under one of its digest if that is
/// taken. A snapshot that is there already stays as it is.
fn publish(home: &Home, directory: &Path, new: ArchivedSnapshot) -> anyhow::Result<Snapshot> {
    let digest = digest_of(&new.manifest)?;
    if let Ok(known) = SnapshotArg::Digest(digest.hex()).open(home) {
        return Ok(known);
    }
    let named = directory.join(&new.name);
    let target: PathBuf = if named.symlink_metadata().is_ok() {
        directory.join(format!("sha256-{}", &digest.hex()[..16]))
    } else {
        named
    };
    home.snapshots().publish(new.new, &target, false, &new.manifest)
}
