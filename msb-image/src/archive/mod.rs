//! Archives of images: a tar that holds documents and layers.
//!
//! From a pipe it is read once. Layers may come before the documents that say which of them are needed, so every member
//! that looks like a layer is converted as it passes, into files without a name that go away unless a document asks
//! for them. Documents are small and kept in memory. A file is read by its table of members instead, and layers
//! that the store has are not read at all.

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
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use libmsb::state::images::Store;

use crate::budget::Budget;
use crate::document::{Descriptor, digest_in_path};
use crate::error::{ArchiveRead, is_fatal};
use crate::input::{Input, Meter, decompressed};
use crate::layer::convert::{Converted, convert_within};
use crate::layer::index::Summary;
use crate::layer::tar::{Entry, Kind, Raw, TarReader, looks_like_tar};
use crate::limits::{
    ARCHIVE_ENTRIES_MAX, ARCHIVE_NAMES_BYTES_MAX, DOCUMENTS_BYTES_MAX, DOCUMENTS_READ_BYTES_MAX,
    LAYERS_AT_ONCE, STREAMED_LAYERS_MAX,
};
use crate::store::{self, NewLayer, NewLayers};
use crate::stream::{self, BlobFacts, HashingReader, Packing, read_head};

/// docker-archive: `manifest.json` and what it names.
pub(crate) mod docker;
/// OCI archives: `index.json` and blobs by digest.
pub(crate) mod oci;

/// An image of an archive, before its layers are looked at.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) references: Vec<Reference>,
    pub(crate) config: Vec<u8>,
    /// Its manifest, if the archive has one.
    pub(crate) manifest: Option<Vec<u8>>,
    pub(crate) layers: Vec<LayerSource>,
}

/// A layer of an image.
#[derive(Clone, Debug)]
pub(crate) struct LayerSource {
    /// Where it is in the archive.
    pub(crate) path: String,
    /// What its tar must be.
    pub(crate) diff_id: Digest,
    /// What the blob must be, if a manifest says so.
    pub(crate) blob: Option<Descriptor>,
}

impl fmt::Display for LayerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer '{}'", escape(&self.path))
    }
}

/// An archive.
pub(crate) struct Archive<'a> {
    store: &'a Store,
    members: HashMap<String, Member>,
    /// The file, when members can be read from it at any time.
    file: Option<Shelf>,
    /// Bytes of the documents in memory.
    document_bytes: u64,
    /// Bytes of the documents that were looked at.
    document_bytes_read: u64,
    names_bytes: usize,
    streamed_layers: usize,
    /// Whether compressed layers are kept as they came.
    keep_blobs: bool,
    /// What all layers together may become.
    budget: Arc<Budget>,
    /// Layers that images need and the store does not have yet.
    pub(crate) new_layers: NewLayers,
}

enum Member {
    Document(Vec<u8>),
    /// Converted, without a name yet.
    Converted(Box<Converted>),
    /// In the store; what the blob was.
    Stored(Summary, Option<BlobFacts>),
    /// In the file.
    At {
        offset: u64,
        bytes: u64,
    },
    Link(String),
    /// Why it cannot be used.
    Useless(String),
}

impl<'a> Archive<'a> {
    /// Reads a file's table of members, or the whole of a stream.
    pub(crate) fn open(input: Input, store: &'a Store, keep_blobs: bool) -> Result<Archive<'a>> {
        let mut archive = Archive {
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
            let head = read_head(&mut input.file).map_err(ArchiveRead)?;
            input.file.seek(SeekFrom::Start(0)).map_err(ArchiveRead)?;
            if looks_like_tar(&head) {
                archive.scan(&input.file, length)?;
                let meter = input.meter().map(Mutex::new);
                archive.file = Some(Shelf {
                    file: input.file,
                    meter,
                });
                return Ok(archive);
            }
        }
        let budget = Arc::clone(&archive.budget);
        let (reader, head) = decompressed(budget.reader(input.reader()))?;
        if !looks_like_tar(&head) {
            let reason = stream::describe_unknown(&head);
            let reason = if head.is_empty() {
                "it is empty"
            } else {
                reason
            };
            bail!(not_an_archive(reason));
        }
        archive.read(reader)?;
        Ok(archive)
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.find(path).is_some()
    }

    /// Names at the top of the archive, for messages.
    pub(crate) fn looks_like_root(&self) -> bool {
        ["bin", "usr", "etc"].iter().any(|name| {
            let folder = format!("{name}/");
            self.members
                .keys()
                .any(|path| path.starts_with(&folder) || path == name)
        })
    }

    /// A document, or `None` if it is not there.
    pub(crate) fn document(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.find(path) else {
            return Ok(None);
        };
        let document = match &self.members[&path] {
            Member::Document(bytes) => bytes.clone(),
            Member::At { offset, bytes } => {
                let (offset, bytes) = (*offset, *bytes);
                self.count_document(bytes)?;
                let mut document = Vec::new();
                self.shelf()?
                    .member(offset, bytes)
                    .read_to_end(&mut document)
                    .map_err(ArchiveRead)?;
                self.members
                    .insert(path, Member::Document(document.clone()));
                document
            }
            Member::Useless(reason) => bail!("'{}': {reason}", escape(&path)),
            _ => bail!("'{}' is no document", escape(&path)),
        };
        self.document_bytes_read += document.len() as u64;
        ensure!(
            self.document_bytes_read <= DOCUMENTS_READ_BYTES_MAX,
            "the documents of the archive name each other too often"
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

    /// A blob that is a document; its digest is checked.
    pub(crate) fn blob(&mut self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let path = blob_path(digest);
        let Some(bytes) = self.document(&path)? else {
            return Ok(None);
        };
        let found = stream::digest_of(&bytes);
        ensure!(found == *digest, "blob {digest} has the digest {found}");
        Ok(Some(bytes))
    }

    /// Converts the layers of an image and checks them, but those that the store has.
    pub(crate) fn layers(&mut self, sources: &[LayerSource]) -> Result<Vec<Summary>> {
        self.convert_ahead(sources)?;
        sources.iter().map(|source| self.layer(source)).collect()
    }

    fn layer(&mut self, source: &LayerSource) -> Result<Summary> {
        let path = self.find_layer(source)?;
        if let Some(Member::At { .. }) = self.members.get(&path)
            && let Some(summary) = self.stored(source)
        {
            return Ok(summary);
        }
        let member = self.members.remove(&path).context("the layer is missing")?;
        let (summary, blob) = self
            .bring(member, source)
            .with_context(|| source.to_string())?;
        self.members.insert(path, Member::Stored(summary, blob));
        Ok(summary)
    }

    /// The layer in the store, unless something of it is missing there.
    fn stored(&self, source: &LayerSource) -> Option<Summary> {
        let summary = store::layer(self.store, &source.diff_id)?;
        let has_blob = source.blob.as_ref().is_none_or(|blob| {
            blob.digest == source.diff_id || self.store.blob_path(&blob.digest).exists()
        });
        (has_blob || !self.keep_blobs).then_some(summary)
    }

    fn find_layer(&self, source: &LayerSource) -> Result<String> {
        self.find(&source.path)
            .with_context(|| format!("{source} is missing in the archive"))
    }

    /// Converts those that lie in a file, several at once.
    fn convert_ahead(&mut self, sources: &[LayerSource]) -> Result<()> {
        let mut jobs = Vec::new();
        for source in sources {
            let path = self.find_layer(source)?;
            let is_new = jobs.iter().all(|job: &Job| job.path != path);
            if let Some(Member::At { offset, bytes }) = self.members.get(&path)
                && is_new
                && self.stored(source).is_none()
            {
                jobs.push(Job {
                    path,
                    label: source.to_string(),
                    offset: *offset,
                    bytes: *bytes,
                });
            }
        }
        // The longest first, so that at the end no processor waits for it alone.
        jobs.sort_by_key(|job| Reverse(job.bytes));
        for (path, converted) in self.convert_all(&jobs)? {
            self.members
                .insert(path, Member::Converted(Box::new(converted)));
        }
        Ok(())
    }

    /// Does all jobs, or stops at the first that fails.
    fn convert_all(&self, jobs: &[Job]) -> Result<Vec<(String, Converted)>> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let shelf = self.shelf()?;
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(String, Converted)>> {
            let mut done = Vec::new();
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let member = shelf.member(job.offset, job.bytes);
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
            let workers: Vec<_> = (0..workers().min(jobs.len()))
                .map(|_| scope.spawn(work))
                .collect();
            let mut converted = Vec::new();
            for worker in workers {
                let done = worker
                    .join()
                    .map_err(|_| anyhow!("a thread that converts layers failed"))?;
                converted.extend(done?);
            }
            Ok(converted)
        })
    }

    fn bring(
        &mut self,
        member: Member,
        source: &LayerSource,
    ) -> Result<(Summary, Option<BlobFacts>)> {
        let mut converted = match member {
            Member::Converted(converted) => *converted,
            Member::At { .. } => bail!("it was not converted"),
            Member::Stored(summary, blob) => {
                check(source, &summary.diff_id, blob.as_ref())?;
                return Ok((summary, blob));
            }
            Member::Useless(reason) => bail!("{reason}"),
            Member::Document(_) => bail!("it is JSON, not a tar"),
            Member::Link(_) => bail!("it is a link"),
        };
        check(
            source,
            &converted.summary.diff_id,
            Some(&converted.unpacked.blob),
        )?;
        if source.blob.is_none() {
            // No manifest names the blob: nobody could ask for it.
            converted.files.forget_blob();
        }
        self.new_layers
            .add(self.store, &source.diff_id, converted.files);
        Ok((converted.summary, Some(converted.unpacked.blob)))
    }

    fn shelf(&self) -> Result<&Shelf> {
        self.file
            .as_ref()
            .context("the archive cannot be read again")
    }

    /// The path of a member, links followed.
    fn find(&self, path: &str) -> Option<String> {
        let mut path = clean(path)?;
        for _ in 0..8 {
            match self.members.get(&path)? {
                Member::Link(target) => path.clone_from(target),
                _ => return Some(path),
            }
        }
        None
    }

    fn scan(&mut self, file: &File, length: u64) -> Result<()> {
        let source = FileSource {
            reader: io::BufReader::with_capacity(64 << 10, file),
            position: 0,
        };
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
            self.note(
                &entry,
                Member::At {
                    offset,
                    bytes: entry.stored,
                },
            )?;
        }
        Ok(())
    }

    fn read(&mut self, reader: Box<dyn Read + Send + '_>) -> Result<()> {
        let mut tar = TarReader::new(StreamSource(reader));
        while let Some(entry) = tar.next()? {
            let mut member = Read::take(&mut tar.source.0, entry.stored);
            let contents = if entry.kind == Kind::File && entry.pieces.is_none() {
                self.member(&entry, &mut member)?
            } else {
                Member::Useless("it is no regular file".to_owned())
            };
            io::copy(&mut member, &mut io::sink()).map_err(ArchiveRead)?;
            ensure!(
                member.limit() == 0,
                "the archive is truncated: it ends in '{}'",
                escape(&entry.path)
            );
            self.note(&entry, contents)?;
        }
        // Whoever writes into the pipe must not be told that nobody reads.
        io::copy(&mut tar.source.0, &mut io::sink()).map_err(ArchiveRead)?;
        Ok(())
    }

    /// Puts a member into the table.
    fn note(&mut self, entry: &Entry, contents: Member) -> Result<()> {
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
            Kind::File if entry.pieces.is_none() => Some(contents),
            Kind::HardLink => clean(&link).map(Member::Link),
            Kind::Symlink => {
                let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                clean(&format!("{folder}/{link}")).map(Member::Link)
            }
            _ => Some(Member::Useless("it is no regular file".to_owned())),
        };
        if let Some(member) = member {
            self.members.insert(path, member);
        }
        Ok(())
    }

    /// Looks at a member of a stream and uses it as it passes.
    fn member(&mut self, entry: &Entry, member: &mut (impl Read + Send)) -> Result<Member> {
        let head = read_head(member).map_err(ArchiveRead)?;
        let whole = Cursor::new(head.clone()).chain(member);
        match Packing::of(&head) {
            Some(packing) if !head.is_empty() => self.streamed_layer(entry, packing, whole),
            _ => self.streamed_document(entry, &head, whole),
        }
    }

    fn streamed_document(
        &mut self,
        entry: &Entry,
        head: &[u8],
        whole: impl Read,
    ) -> Result<Member> {
        let first = head.iter().find(|byte| !byte.is_ascii_whitespace());
        if !matches!(first, None | Some(b'{' | b'[')) {
            return Ok(Member::Useless(stream::describe_unknown(head).to_owned()));
        }
        self.count_document(entry.stored)?;
        let mut bytes = Vec::new();
        whole
            .take(entry.stored)
            .read_to_end(&mut bytes)
            .map_err(ArchiveRead)?;
        Ok(Member::Document(bytes))
    }

    fn streamed_layer(
        &mut self,
        entry: &Entry,
        packing: Packing,
        whole: impl Read + Send,
    ) -> Result<Member> {
        // A layer that is there need not be converted once more, only compared.
        let known = std::str::from_utf8(&entry.path)
            .ok()
            .and_then(clean)
            .and_then(|path| digest_in_path(&path));
        if packing == Packing::Plain
            && let Some(digest) = known
            && let Some(summary) = store::layer(self.store, &digest)
        {
            let mut hashing = HashingReader::new(whole);
            io::copy(&mut hashing, &mut io::sink()).map_err(ArchiveRead)?;
            let blob = hashing.facts();
            if blob.digest == digest {
                return Ok(Member::Stored(summary, Some(blob)));
            }
            return Ok(Member::Useless(format!(
                "it has the digest {}",
                blob.digest
            )));
        }
        self.streamed_layers += 1;
        ensure!(
            self.streamed_layers <= STREAMED_LAYERS_MAX,
            "the archive has more than {STREAMED_LAYERS_MAX} layers"
        );
        // What is plain is made again from its layer.
        let keep_blobs = self.keep_blobs && packing != Packing::Plain;
        let files = NewLayer::create_keeping(self.store, keep_blobs)?;
        // What it is read from was counted where the archive is read, which may be compressed as a whole.
        match convert_within(whole, files, &self.budget) {
            Ok(converted) => Ok(Member::Converted(Box::new(converted))),
            Err(error) if is_fatal(&error) => Err(error),
            // Perhaps nobody asks for it.
            Err(error) => Ok(Member::Useless(libmsb::cli::error::message(&error))),
        }
    }
}

/// Compares what a layer is with what it must be.
pub(crate) fn check(
    source: &LayerSource,
    diff_id: &Digest,
    blob: Option<&BlobFacts>,
) -> Result<()> {
    if let (Some(expected), Some(found)) = (&source.blob, blob) {
        let same = expected.digest == found.digest;
        ensure!(
            same,
            "the blob has the digest {}, and the manifest says {}",
            found.digest,
            expected.digest
        );
        let same = expected.size == 0 || expected.size == found.bytes;
        ensure!(
            same,
            "the blob has {} bytes, and the manifest says {}",
            found.bytes,
            expected.size
        );
    }
    ensure!(
        source.diff_id == *diff_id,
        "its tar has the digest {diff_id}, and the configuration says {}",
        source.diff_id
    );
    Ok(())
}

/// Where a blob is in an archive.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The images of an archive, in whichever form it has.
pub(crate) fn images(archive: &mut Archive<'_>) -> Result<Vec<Image>> {
    if archive.has("oci-layout") && archive.has("index.json") {
        return oci::images(archive);
    }
    if archive.has("manifest.json") {
        return docker::images(archive);
    }
    if archive.looks_like_root() {
        return Err(Failure::failed(
            "the archive holds no image, but it looks like a root file system",
        )
        .hint("to make an image of it, use: msb image import NAME")
        .into());
    }
    Err(not_an_archive(
        "it has neither 'manifest.json' nor 'oci-layout' and 'index.json'",
    ))
}

fn not_an_archive(reason: &str) -> anyhow::Error {
    anyhow!(
        Failure::failed(format!("it is no archive of images: {reason}")).hint(
            "what `docker save`, `podman save` and `skopeo copy … oci-archive:` write can be loaded"
        )
    )
}

/// A path without `.`, `..` and double slashes; `None` if it is nothing or leads out of the archive.
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

/// The members of a file.
struct FileSource<'a> {
    reader: io::BufReader<&'a File>,
    position: u64,
}

impl FileSource<'_> {
    fn skip(&mut self, bytes: u64) -> Result<()> {
        self.position += bytes;
        let bytes = i64::try_from(bytes).context("the archive is too large")?;
        Ok(self.reader.seek_relative(bytes).map_err(ArchiveRead)?)
    }
}

impl Raw for FileSource<'_> {
    fn read_raw(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = stream::fill(&mut self.reader, buffer).map_err(ArchiveRead)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// An archive from front to back.
struct StreamSource<'a>(Box<dyn Read + Send + 'a>);

impl Raw for StreamSource<'_> {
    fn read_raw(&mut self, buffer: &mut [u8]) -> Result<usize> {
        Ok(stream::fill(&mut self.0, buffer).map_err(ArchiveRead)?)
    }
}

/// A file whose members can be read in any order, and at the same time.
struct Shelf {
    file: File,
    meter: Option<Mutex<Meter>>,
}

impl Shelf {
    fn member(&self, offset: u64, bytes: u64) -> MemberReader<'_> {
        MemberReader {
            shelf: self,
            at: offset,
            left: bytes,
        }
    }
}

struct MemberReader<'a> {
    shelf: &'a Shelf,
    at: u64,
    left: u64,
}

impl Read for MemberReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.shelf.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        if let Some(Ok(mut meter)) = self.shelf.meter.as_ref().map(Mutex::lock) {
            meter.advance(count as u64);
        }
        Ok(count)
    }
}

/// A layer in a file that is to be converted.
struct Job {
    path: String,
    /// For messages.
    label: String,
    offset: u64,
    bytes: u64,
}

/// How many layers are converted at once.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(LAYERS_AT_ONCE))
}
