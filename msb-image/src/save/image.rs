//! An image on its way out: its documents as they were stored where that can be, and from where each layer comes.

use std::collections::BTreeMap;
use std::fs::File;

use anyhow::{Context, Result, ensure};
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use libmsb::state::images::Store;

use crate::archive::oci::{IMAGE_NAME, REF_NAME};
use crate::document::{Config, Descriptor, Document, LAYER_TYPE, manifest_of};
use crate::layer::index::Summary;
use crate::store::{self, read_document};
use crate::stream::{HashingReader, digest_of};

use super::manifest_type;
use super::pack::copy;

/// An image with all that the archive says of it.
pub(super) struct Saved {
    pub(super) references: Vec<Reference>,
    /// The manifest in the store.
    pub(super) stored: Digest,
    /// The manifest in the archive: the same one, unless its layers are packed in another way.
    pub(super) digest: Digest,
    pub(super) manifest: Vec<u8>,
    pub(super) media_type: Option<String>,
    pub(super) config_digest: Digest,
    pub(super) config: Vec<u8>,
    pub(super) layers: Vec<Layer>,
}

/// A layer in the archive.
pub(super) struct Layer {
    pub(super) diff_id: Digest,
    pub(super) tar_bytes: u64,
    pub(super) blob: Descriptor,
    pub(super) source: Source,
}

/// From what a layer is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Its tar is rebuilt.
    Tar,
    /// The blob was kept as it came.
    Kept,
}

impl Saved {
    /// Reads the documents, and sees that the layers are there.
    pub(super) fn read(store: &Store, reference: Reference, stored: &Digest) -> Result<Saved> {
        let broken = || format!("image '{}' is broken", reference.familiar());
        let manifest = read_document(&store.manifest_path(stored), stored).with_context(broken)?;
        let document = Document::parse(&manifest).with_context(broken)?;
        let config_digest = document
            .config
            .as_ref()
            .context("the manifest has no configuration")
            .with_context(broken)?
            .digest;
        let config = read_document(&store.config_path(&config_digest), &config_digest)
            .with_context(broken)?;
        let diff_ids = Config::parse(&config).with_context(broken)?.rootfs.diff_ids;
        let blobs = document.layers.unwrap_or_default();
        let summaries: Vec<Summary> = diff_ids
            .iter()
            .map(|diff_id| whole_layer(store, diff_id))
            .collect::<Result<_>>()
            .with_context(broken)?;
        let mut image = Saved {
            references: vec![reference.clone()],
            stored: *stored,
            digest: *stored,
            manifest,
            media_type: document.media_type,
            config_digest,
            config,
            layers: Vec::new(),
        };
        image.choose(store, blobs, &summaries)?;
        Ok(image)
    }

    /// If each of the manifest's blobs can be had, the archive has the manifest as it is; else all layers go as tars.
    fn choose(
        &mut self,
        store: &Store,
        blobs: Vec<Descriptor>,
        summaries: &[Summary],
    ) -> Result<()> {
        let source = |(blob, summary): (&Descriptor, &Summary)| {
            if blob.digest == summary.diff_id {
                Some(Source::Tar)
            } else {
                let kept = std::fs::metadata(store.blob_path(&blob.digest)).ok()?;
                (kept.len() == blob.size).then_some(Source::Kept)
            }
        };
        let sources: Option<Vec<Source>> = (blobs.len() == summaries.len())
            .then(|| blobs.iter().zip(summaries).map(source).collect())
            .flatten();
        let as_tar =
            |summary: &Summary| Descriptor::new(LAYER_TYPE, summary.diff_id, summary.tar_bytes);
        let Some(sources) = sources else {
            self.layers = summaries
                .iter()
                .map(|summary| Layer::new(summary, as_tar(summary), Source::Tar))
                .collect();
            return self.describe_anew();
        };
        self.layers = blobs
            .into_iter()
            .zip(summaries)
            .zip(sources)
            .map(|((mut blob, summary), source)| {
                if source == Source::Tar {
                    blob.size = summary.tar_bytes;
                }
                Layer::new(summary, blob, source)
            })
            .collect();
        Ok(())
    }

    /// Makes a manifest for the layers as they are packed now.
    pub(super) fn describe_anew(&mut self) -> Result<()> {
        let blobs = self.layers.iter().map(|layer| layer.blob.clone());
        self.manifest = manifest_of(
            &self.config_digest,
            self.config.len() as u64,
            blobs.collect(),
        )?;
        self.media_type = None;
        self.digest = digest_of(&self.manifest);
        Ok(())
    }

    /// The names that the archive can give: one that pins another manifest would contradict it.
    pub(super) fn names(&self) -> Vec<String> {
        let fitting = self
            .references
            .iter()
            .filter(|reference| self.fits(reference));
        fitting.map(Reference::to_string).collect()
    }

    /// Names that the archive cannot give.
    pub(super) fn dropped_names(&self) -> impl Iterator<Item = &Reference> {
        self.references
            .iter()
            .filter(|reference| !self.fits(reference))
    }

    fn fits(&self, reference: &Reference) -> bool {
        reference
            .digest()
            .is_none_or(|digest| *digest == self.digest)
    }

    /// The names without a digest.
    pub(super) fn tags(&self) -> Vec<String> {
        let tags = self
            .references
            .iter()
            .filter(|reference| reference.digest().is_none());
        tags.map(Reference::to_string).collect()
    }

    /// What `index.json` says of the image. The name stands where containerd and where podman look for it.
    pub(super) fn descriptor(&self, name: Option<String>) -> Descriptor {
        let mut descriptor = Descriptor::new(
            &manifest_type(self),
            self.digest,
            self.manifest.len() as u64,
        );
        descriptor.annotations = name.map(|name| {
            BTreeMap::from([IMAGE_NAME, REF_NAME].map(|key| (key.to_owned(), name.clone())))
        });
        descriptor
    }
}

impl Layer {
    fn new(summary: &Summary, blob: Descriptor, source: Source) -> Layer {
        Layer {
            diff_id: summary.diff_id,
            tar_bytes: summary.tar_bytes,
            blob,
            source,
        }
    }
}

/// A layer that the store has, whole as far as its sizes tell: better said before the archive is half written.
fn whole_layer(store: &Store, diff_id: &Digest) -> Result<Summary> {
    let path = store.layer_index_path(diff_id);
    let damaged = || format!("'{}' or its data is missing or damaged", path.display());
    store::layer(store, diff_id).with_context(damaged)
}

/// Gives a kept blob to `write`, and checks it.
pub(super) fn read_kept(
    store: &Store,
    blob: &Descriptor,
    write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let path = store.blob_path(&blob.digest);
    let file = File::open(&path).with_context(|| format!("cannot open '{}'", path.display()))?;
    let mut hashing = HashingReader::new(file);
    copy(&mut hashing, write).with_context(|| format!("cannot read '{}'", path.display()))?;
    let found = hashing.facts();
    ensure!(
        found.digest == blob.digest && found.bytes == blob.size,
        "'{}' is damaged: it has the digest {}",
        path.display(),
        found.digest
    );
    Ok(())
}
