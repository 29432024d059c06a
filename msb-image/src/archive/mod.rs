//! Image archives: a tar of documents and layers.
//!
//! A pipe is read once. Layers may come before the documents that name them, so every member that
//! looks like a layer is converted as it is read, into temporary files that are dropped unless a
//! document names them. Documents are small and kept in memory. A file is read by its table of
//! members instead, and layers that the store has are not read at all.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow, bail, ensure};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::cli::progress::ProgressMeter;
use libmsb::digest::Digest;
use libmsb::state::images::Store;

use crate::budget::Budget;
use crate::document::{Descriptor, ImageNames, digest_in_path};
use crate::error::{ArchiveReadError, is_fatal};
use crate::input::{ArchiveInput, decompressed};
use crate::layer::convert::{ConvertedLayer, convert_within};
use crate::layer::index::LayerSummary;
use crate::layer::tar::{EntryKind, RawSource, TarEntry, TarReader, looks_like_tar};
use crate::limits::{
    ARCHIVE_ENTRIES_MAX, ARCHIVE_NAMES_BYTES_MAX, DOCUMENTS_BYTES_MAX, DOCUMENTS_READ_BYTES_MAX,
    LAYERS_AT_ONCE, STREAMED_LAYERS_MAX,
};
use crate::store::find;
use crate::store::layers::{NewLayer, NewLayers};
use crate::stream::{self, BlobCompression, BlobFacts, HashingReader, read_head};

/// docker-archive: `manifest.json` and the members that it names.
pub(crate) mod docker;
/// OCI archives: `index.json` and blobs named by digest.
pub(crate) mod oci;

/// An image of an archive, before its layers are read.
#[derive(Debug)]
pub(crate) struct ArchiveImage {
    pub(crate) names: ImageNames,
    pub(crate) config: Vec<u8>,
    /// Its manifest, if the archive has one.
    pub(crate) manifest: Option<Vec<u8>>,
    pub(crate) layers: Vec<LayerSource>,
}

/// A layer of an image.
#[derive(Clone, Debug)]
pub(crate) struct LayerSource {
    /// Path of its member in the archive.
    pub(crate) path: String,
    /// Expected digest of its tar.
    pub(crate) diff_id: Digest,
    /// Expected digest and size of its blob, from a manifest.
    pub(crate) blob: Option<Descriptor>,
}

impl fmt::Display for LayerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer '{}'", escape(&self.path))
    }
}

/// An open image archive.
pub(crate) struct ImageArchive<'a> {
    store: &'a Store,
    members: HashMap<String, ArchiveMember>,
    /// The file, if members can be read from it in any order.
    file: Option<SeekableArchive>,
    /// Bytes of the documents in memory.
    document_bytes: u64,
    /// Bytes of the documents returned so far.
    document_bytes_read: u64,
    names_bytes: usize,
    streamed_layers: usize,
    /// Keep compressed layers as they are received.
    keep_blobs: bool,
    /// Limit on what all layers together may expand to.
    budget: Arc<Budget>,
    /// Layers that images need and the store does not have yet.
    pub(crate) new_layers: NewLayers,
}

enum ArchiveMember {
    Document(Vec<u8>),
    /// Converted into temporary files.
    Converted(Box<ConvertedLayer>),
    /// In the store, with the digest and size of its blob.
    Stored(LayerSummary, Option<BlobFacts>),
    /// Range of the file.
    At {
        offset: u64,
        bytes: u64,
    },
    Link(String),
    /// Reason why it cannot be used.
    Unusable(String),
}

impl<'a> ImageArchive<'a> {
    /// Reads the table of members of a file, or a whole stream.
    pub(crate) fn open(
        input: ArchiveInput,
        store: &'a Store,
        keep_blobs: bool,
    ) -> Result<ImageArchive<'a>> {
        let mut archive = ImageArchive {
            store,
            members: HashMap::new(),
            file: None,
            document_bytes: 0,
            document_bytes_read: 0,
            names_bytes: 0,
            streamed_layers: 0,
            keep_blobs,
            budget: Arc::new(Budget::of(store)),
            new_layers: NewLayers::default(),
        };
        let mut input = input;
        if let Some(length) = input.length {
            let head = read_head(&mut input.file).map_err(ArchiveReadError)?;
            input.file.seek(SeekFrom::Start(0)).map_err(ArchiveReadError)?;
            if looks_like_tar(&head) {
                archive.scan(&input.file, length)?;
                let meter = input.meter().map(Mutex::new);
                archive.file = Some(SeekableArchive { file: input.file, meter });
                return Ok(archive);
            }
        }
        let budget = Arc::clone(&archive.budget);
        let (reader, head) = decompressed(budget.reader(input.reader()))?;
        if !looks_like_tar(&head) {
            let reason = stream::describe_unknown(&head);
            let reason = if head.is_empty() { "it is empty" } else { reason };
            bail!(not_an_archive(reason));
        }
        archive.read(reader)?;
        Ok(archive)
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.find(path).is_some()
    }

    /// Returns whether the archive looks like a root file system, for messages.
    pub(crate) fn looks_like_root(&self) -> bool {
        ["bin", "usr", "etc"].iter().any(|name| {
            let directory = format!("{name}/");
            self.members.keys().any(|path| path.starts_with(&directory) || path == name)
        })
    }

    /// Returns a document, or `None` if the archive does not have it.
    pub(crate) fn document(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.find(path) else {
            return Ok(None);
        };
        let document = match &self.members[&path] {
            ArchiveMember::Document(bytes) => bytes.clone(),
            ArchiveMember::At { offset, bytes } => {
                let (offset, bytes) = (*offset, *bytes);
                self.count_document(bytes)?;
                let mut document = Vec::new();
                self.seekable()?
                    .member(offset, bytes)
                    .read_to_end(&mut document)
                    .map_err(ArchiveReadError)?;
                self.members.insert(path, ArchiveMember::Document(document.clone()));
                document
            }
            ArchiveMember::Unusable(reason) => bail!("'{}': {reason}", escape(&path)),
            _ => bail!("'{}' is not a document", escape(&path)),
        };
        self.document_bytes_read += document.len() as u64;
        ensure!(
            self.document_bytes_read <= DOCUMENTS_READ_BYTES_MAX,
            "the documents of the archive refer to each other too often"
        );
        Ok(Some(document))
    }

    fn count_document(&mut self, bytes: u64) -> Result<()> {
        self.document_bytes = self.document_bytes.saturating_add(bytes);
        ensure!(
            self.document_bytes <= DOCUMENTS_BYTES_MAX,
            "the documents of the archive are larger than {DOCUMENTS_BYTES_MAX} bytes"
        );
        Ok(())
    }

    /// Returns a blob that is a document, after checking its digest.
    pub(crate) fn blob(&mut self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let path = blob_path(digest);
        let Some(bytes) = self.document(&path)? else {
            return Ok(None);
        };
        let found = stream::digest_of(&bytes);
        ensure!(found == *digest, "blob {digest} has the digest {found}");
        Ok(Some(bytes))
    }

    /// Converts and checks the layers of an image. Layers in the store are not read.
    pub(crate) fn layers(&mut self, sources: &[LayerSource]) -> Result<Vec<LayerSummary>> {
        self.convert_ahead(sources)?;
        sources.iter().map(|source| self.layer(source)).collect()
    }

    fn layer(&mut self, source: &LayerSource) -> Result<LayerSummary> {
        let path = self.find_layer(source)?;
        if let Some(ArchiveMember::At { .. }) = self.members.get(&path)
            && let Some(summary) = self.stored(source)
        {
            return Ok(summary);
        }
        let member = self.members.remove(&path).context("the layer is missing")?;
        let (summary, blob) =
            self.take_layer(member, source).with_context(|| source.to_string())?;
        self.members.insert(path, ArchiveMember::Stored(summary, blob));
        Ok(summary)
    }

    /// Returns the layer in the store, unless its blob is required and missing there.
    fn stored(&self, source: &LayerSource) -> Option<LayerSummary> {
        let summary = find::layer(self.store, &source.diff_id)?;
        let has_blob = source.blob.as_ref().is_none_or(|blob| {
            blob.digest == source.diff_id || self.store.blob_path(&blob.digest).exists()
        });
        (has_blob || !self.keep_blobs).then_some(summary)
    }

    fn find_layer(&self, source: &LayerSource) -> Result<String> {
        self.find(&source.path).with_context(|| format!("{source} is missing from the archive"))
    }

    /// Converts layers of a file, several at the same time.
    fn convert_ahead(&mut self, sources: &[LayerSource]) -> Result<()> {
        let mut jobs = Vec::new();
        for source in sources {
            let path = self.find_layer(source)?;
            let is_new = jobs.iter().all(|job: &ConvertJob| job.path != path);
            if let Some(ArchiveMember::At { offset, bytes }) = self.members.get(&path)
                && is_new
                && self.stored(source).is_none()
            {
                jobs.push(ConvertJob {
                    path,
                    label: source.to_string(),
                    offset: *offset,
                    bytes: *bytes,
                });
            }
        }
        // The largest layers first, so that at the end no processor waits for one of them.
        jobs.sort_by_key(|job| Reverse(job.bytes));
        for (path, converted) in self.convert_all(&jobs)? {
            self.members.insert(path, ArchiveMember::Converted(Box::new(converted)));
        }
        Ok(())
    }

    /// Runs all jobs, or stops at the first failure.
    fn convert_all(&self, jobs: &[ConvertJob]) -> Result<Vec<(String, ConvertedLayer)>> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let seekable = self.seekable()?;
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(String, ConvertedLayer)>> {
            let mut done = Vec::new();
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let member = seekable.member(job.offset, job.bytes);
                let converted = NewLayer::create_keeping(self.store, self.keep_blobs)
                    .and_then(|files| {
                        convert_within(self.budget.reader(member), files, &self.budget)
                    })
                    .inspect_err(|_| next.store(jobs.len(), Ordering::Relaxed))
                    .with_context(|| job.label.clone())?;
                done.push((job.path.clone(), converted));
            }
            Ok(done)
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..workers().min(jobs.len())).map(|_| scope.spawn(work)).collect();
            let mut converted = Vec::new();
            for worker in workers {
                let done =
                    worker.join().map_err(|_| anyhow!("a thread that converts layers failed"))?;
                converted.extend(done?);
            }
            Ok(converted)
        })
    }

    fn take_layer(
        &mut self,
        member: ArchiveMember,
        source: &LayerSource,
    ) -> Result<(LayerSummary, Option<BlobFacts>)> {
        let mut converted = match member {
            ArchiveMember::Converted(converted) => *converted,
            ArchiveMember::At { .. } => bail!("it was not converted"),
            ArchiveMember::Stored(summary, blob) => {
                check(source, &summary.diff_id, blob.as_ref())?;
                return Ok((summary, blob));
            }
            ArchiveMember::Unusable(reason) => bail!("{reason}"),
            ArchiveMember::Document(_) => bail!("it is JSON, not a tar"),
            ArchiveMember::Link(_) => bail!("it is a link"),
        };
        check(source, &converted.summary.diff_id, Some(&converted.unpacked.blob))?;
        if source.blob.is_none() {
            // No manifest names the blob, so no later save can use it.
            converted.files.discard_blob();
        }
        self.new_layers.add(self.store, &source.diff_id, converted.files);
        Ok((converted.summary, Some(converted.unpacked.blob)))
    }

    fn seekable(&self) -> Result<&SeekableArchive> {
        self.file.as_ref().context("the archive cannot be read again")
    }

    /// Resolves the path of a member through links.
    fn find(&self, path: &str) -> Option<String> {
        let mut path = clean(path)?;
        for _ in 0..8 {
            match self.members.get(&path)? {
                ArchiveMember::Link(target) => path.clone_from(target),
                _ => return Some(path),
            }
        }
        None
    }

    fn scan(&mut self, file: &File, length: u64) -> Result<()> {
        let source =
            FileSource { reader: io::BufReader::with_capacity(64 << 10, file), position: 0 };
        let mut tar = TarReader::new(source);
        while let Some(entry) = tar.next()? {
            let offset = tar.source.position;
            let end = offset.saturating_add(entry.stored);
            ensure!(
                end <= length,
                "the archive is truncated: it ends in '{}'",
                escape(&entry.path)
            );
            tar.source.skip(entry.stored)?;
            self.add_member(&entry, ArchiveMember::At { offset, bytes: entry.stored })?;
        }
        Ok(())
    }

    fn read(&mut self, reader: Box<dyn Read + Send + '_>) -> Result<()> {
        let mut tar = TarReader::new(StreamSource(reader));
        while let Some(entry) = tar.next()? {
            let mut member = Read::take(&mut tar.source.0, entry.stored);
            let contents = if entry.kind == EntryKind::File && entry.pieces.is_none() {
                self.member(&entry, &mut member)?
            } else {
                ArchiveMember::Unusable("it is not a regular file".to_owned())
            };
            io::copy(&mut member, &mut io::sink()).map_err(ArchiveReadError)?;
            ensure!(
                member.limit() == 0,
                "the archive is truncated: it ends in '{}'",
                escape(&entry.path)
            );
            self.add_member(&entry, contents)?;
        }
        // A program that writes into the pipe must not get SIGPIPE.
        io::copy(&mut tar.source.0, &mut io::sink()).map_err(ArchiveReadError)?;
        Ok(())
    }

    /// Adds a member to the table.
    fn add_member(&mut self, entry: &TarEntry, contents: ArchiveMember) -> Result<()> {
        ensure!(
            self.members.len() < ARCHIVE_ENTRIES_MAX,
            "the archive has more than {ARCHIVE_ENTRIES_MAX} entries"
        );
        self.names_bytes += entry.path.len() + entry.link.len();
        ensure!(
            self.names_bytes <= ARCHIVE_NAMES_BYTES_MAX,
            "the archive has more than {ARCHIVE_NAMES_BYTES_MAX} bytes of names"
        );
        let Some(path) = std::str::from_utf8(&entry.path).ok().and_then(clean) else {
            return Ok(());
        };
        let link = String::from_utf8_lossy(&entry.link).into_owned();
        let member = match entry.kind {
            EntryKind::File if entry.pieces.is_none() => Some(contents),
            EntryKind::HardLink => clean(&link).map(ArchiveMember::Link),
            EntryKind::Symlink => {
                let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
                clean(&format!("{directory}/{link}")).map(ArchiveMember::Link)
            }
            _ => Some(ArchiveMember::Unusable("it is not a regular file".to_owned())),
        };
        if let Some(member) = member {
            self.members.insert(path, member);
        }
        Ok(())
    }

    /// Reads a member of a stream as a layer or a document.
    fn member(
        &mut self,
        entry: &TarEntry,
        member: &mut (impl Read + Send),
    ) -> Result<ArchiveMember> {
        let head = read_head(member).map_err(ArchiveReadError)?;
        let whole = Cursor::new(head.clone()).chain(member);
        match BlobCompression::of(&head) {
            Some(compression) if !head.is_empty() => self.streamed_layer(entry, compression, whole),
            _ => self.streamed_document(entry, &head, whole),
        }
    }

    fn streamed_document(
        &mut self,
        entry: &TarEntry,
        head: &[u8],
        whole: impl Read,
    ) -> Result<ArchiveMember> {
        let first = head.iter().find(|byte| !byte.is_ascii_whitespace());
        if !matches!(first, None | Some(b'{' | b'[')) {
            return Ok(ArchiveMember::Unusable(stream::describe_unknown(head).to_owned()));
        }
        self.count_document(entry.stored)?;
        let mut bytes = Vec::new();
        whole.take(entry.stored).read_to_end(&mut bytes).map_err(ArchiveReadError)?;
        Ok(ArchiveMember::Document(bytes))
    }

    fn streamed_layer(
        &mut self,
        entry: &TarEntry,
        compression: BlobCompression,
        whole: impl Read + Send,
    ) -> Result<ArchiveMember> {
        // A layer that the store has is not converted again, only compared.
        let known = std::str::from_utf8(&entry.path)
            .ok()
            .and_then(clean)
            .and_then(|path| digest_in_path(&path));
        if compression == BlobCompression::Uncompressed
            && let Some(digest) = known
            && let Some(summary) = find::layer(self.store, &digest)
        {
            let mut hashing = HashingReader::new(whole);
            io::copy(&mut hashing, &mut io::sink()).map_err(ArchiveReadError)?;
            let blob = hashing.facts();
            if blob.digest == digest {
                return Ok(ArchiveMember::Stored(summary, Some(blob)));
            }
            return Ok(ArchiveMember::Unusable(format!("it has the digest {}", blob.digest)));
        }
        self.streamed_layers += 1;
        ensure!(
            self.streamed_layers <= STREAMED_LAYERS_MAX,
            "the archive has more than {STREAMED_LAYERS_MAX} layers"
        );
        // An uncompressed layer is rebuilt from its two files.
        let keep_blobs = self.keep_blobs && compression != BlobCompression::Uncompressed;
        let files = NewLayer::create_keeping(self.store, keep_blobs)?;
        // The input bytes were counted where the archive is read, because the archive as a whole
        // may be compressed.
        match convert_within(whole, files, &self.budget) {
            Ok(converted) => Ok(ArchiveMember::Converted(Box::new(converted))),
            Err(error) if is_fatal(&error) => Err(error),
            // The image may not need this layer.
            Err(error) => Ok(ArchiveMember::Unusable(libmsb::cli::error::message(&error))),
        }
    }
}

/// Checks the digests and size of a layer against those expected.
pub(crate) fn check(
    source: &LayerSource,
    diff_id: &Digest,
    blob: Option<&BlobFacts>,
) -> Result<()> {
    if let (Some(expected), Some(found)) = (&source.blob, blob) {
        let same = expected.digest == found.digest;
        ensure!(
            same,
            "the blob has the digest {}, but the manifest says {}",
            found.digest,
            expected.digest
        );
        let same = expected.size == 0 || expected.size == found.bytes;
        ensure!(
            same,
            "the blob has {} bytes, but the manifest says {}",
            found.bytes,
            expected.size
        );
    }
    ensure!(
        source.diff_id == *diff_id,
        "its tar has the digest {diff_id}, but the configuration says {}",
        source.diff_id
    );
    Ok(())
}

/// Returns the path of a blob in an archive.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Reads the images of an archive in either format.
pub(crate) fn images(archive: &mut ImageArchive<'_>) -> Result<Vec<ArchiveImage>> {
    if archive.has("oci-layout") && archive.has("index.json") {
        return oci::images(archive);
    }
    if archive.has("manifest.json") {
        return docker::images(archive);
    }
    if archive.looks_like_root() {
        return Err(Failure::failed(
            "the archive contains no image, but looks like a root file system",
        )
        .hint("import it: msb image import NAME")
        .into());
    }
    Err(not_an_archive("it has neither 'manifest.json' nor 'oci-layout' and 'index.json'"))
}

fn not_an_archive(reason: &str) -> anyhow::Error {
    anyhow!(Failure::failed(format!("not an image archive: {reason}")).hint(
        "create an archive with `docker save`, `podman save` or `skopeo copy … oci-archive:`"
    ))
}

/// Removes `.`, `..` and double slashes from a path. Returns `None` if nothing is left or the path
/// leads out of the archive.
fn clean(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// Members of a file.
struct FileSource<'a> {
    reader: io::BufReader<&'a File>,
    position: u64,
}

impl FileSource<'_> {
    fn skip(&mut self, bytes: u64) -> Result<()> {
        self.position += bytes;
        let bytes = i64::try_from(bytes).context("the archive is too large")?;
        Ok(self.reader.seek_relative(bytes).map_err(ArchiveReadError)?)
    }
}

impl RawSource for FileSource<'_> {
    fn read_raw(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = stream::fill(&mut self.reader, buffer).map_err(ArchiveReadError)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// An archive read as a stream.
struct StreamSource<'a>(Box<dyn Read + Send + 'a>);

impl RawSource for StreamSource<'_> {
    fn read_raw(&mut self, buffer: &mut [u8]) -> Result<usize> {
        Ok(stream::fill(&mut self.0, buffer).map_err(ArchiveReadError)?)
    }
}

/// A file whose members can be read in any order and concurrently.
struct SeekableArchive {
    file: File,
    meter: Option<Mutex<ProgressMeter>>,
}

impl SeekableArchive {
    fn member(&self, offset: u64, bytes: u64) -> MemberReader<'_> {
        MemberReader { seekable: self, at: offset, left: bytes }
    }
}

struct MemberReader<'a> {
    seekable: &'a SeekableArchive,
    at: u64,
    left: u64,
}

impl Read for MemberReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.seekable.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        if let Some(Ok(mut meter)) = self.seekable.meter.as_ref().map(Mutex::lock) {
            meter.advance(count as u64);
        }
        Ok(count)
    }
}

/// A layer of a file to convert.
struct ConvertJob {
    path: String,
    /// Name of the layer in messages.
    label: String,
    offset: u64,
    bytes: u64,
}

/// Returns the number of layers converted at the same time.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(LAYERS_AT_ONCE))
}
