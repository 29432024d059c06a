//! `msb image save`: writes images as an archive for docker, podman, skopeo and `msb image load`.
//!
//! The format `docker` is that of Docker since version 25: blobs by digest, `manifest.json` for
//! readers of the older format, and `index.json` for readers of OCI, so a manifest is preserved
//! too. The format `oci` omits `manifest.json`. The same images give the same bytes.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result};
use libmsb::cli::error::{self as cli_error, Failure};
use libmsb::cli::progress::ProgressMeter;
use libmsb::digest::Digest;
use libmsb::state::Home;
use libmsb::state::images::Store;
use libmsb::state::lock::Lock;
use serde_json::json;

use crate::archive::blob_path;
use crate::args::{OutputFormat, ReportArgs, Save, SaveFormat};
use crate::document::{Descriptor, MANIFEST_TYPE, image_names};
use crate::layer::rebuild::{GapCheck, rebuild};
use crate::report::{StoredImage, report};
use crate::stream::BlobCompression;

/// Images to save.
mod image;
/// Compression of layers.
mod pack;
/// Tar output.
mod tar;
/// Destination of the archive.
mod target;

use image::{BlobSource, SavedImage, SavedLayer};
use pack::LayerCompressor;
use tar::TarWriter;
use target::OutputTarget;

/// Options of `msb image save`.
struct SaveOptions {
    with_docker: bool,
    json: bool,
    compression: BlobCompression,
}

pub(crate) fn run(home: &Home, args: Save) -> Result<()> {
    let choice = choice(&args)?;
    let label = || format!("cannot save '{}'", args.references.join("', '"));
    let saved = save(home, &args, &choice).with_context(label)?;
    let format = choice.json.then_some(OutputFormat::Json);
    // Without JSON it prints nothing: standard output is the archive.
    report(&saved, ReportArgs { format, quiet: true })
}

fn choice(args: &Save) -> Result<SaveOptions> {
    let has = |format| args.formats.contains(&format);
    if has(SaveFormat::Docker) && has(SaveFormat::Oci) {
        return Err(Failure::usage("an archive has one format, 'docker' or 'oci'").into());
    }
    if has(SaveFormat::Json) && args.output.is_none() {
        return Err(Failure::usage("JSON and the archive cannot both go to standard output")
            .hint("write the archive to a file with --output")
            .into());
    }
    Ok(SaveOptions {
        with_docker: !has(SaveFormat::Oci),
        json: has(SaveFormat::Json),
        compression: args.compress.map_or(BlobCompression::Uncompressed, BlobCompression::from),
    })
}

fn save(home: &Home, args: &Save, choice: &SaveOptions) -> Result<Vec<StoredImage>> {
    let store = home.images();
    // A reader creates nothing: without a store there is nothing to lock.
    let _lock = store.root().is_dir().then(|| Lock::shared(&store.lock())).transpose()?;
    let mut images = find(&store, args)?;
    let target = OutputTarget::open(args.output.as_deref())?;
    let mut archive = ArchiveWriter {
        store: &store,
        tar: TarWriter::new(target),
        written: HashSet::new(),
        meter: ProgressMeter::start(Some(bytes_to_read(&images)), !args.quiet),
    };
    archive.directories()?;
    if choice.compression != BlobCompression::Uncompressed {
        archive.packed_layers(&mut images, choice.compression)?;
    }
    archive.documents(&images, choice.with_docker)?;
    archive.layers(&images)?;
    drop(archive.meter);
    archive.tar.finish()?.commit()?;
    Ok(images.iter().flat_map(stored_images).collect())
}

/// Reads every requested image once, whatever its names, and checks what can be checked before the
/// first byte is written.
fn find(store: &Store, args: &Save) -> Result<Vec<SavedImage>> {
    let mut images: Vec<SavedImage> = Vec::new();
    for name in image_names(&args.references)? {
        let record = store.named(&name)?.into_iter().next().ok_or_else(|| name.not_found())?;
        // An archive names the image, so an ID stands for one of its names.
        let reference = match name.reference().digest() {
            Some(_) => name.reference().clone(),
            None => record.reference.parse()?,
        };
        let digest = record.manifest_digest;
        match images.iter_mut().find(|image| image.stored == digest) {
            Some(image) if image.references.contains(&reference) => {}
            Some(image) => image.references.push(reference),
            None => images.push(SavedImage::read(store, reference, &digest)?),
        }
    }
    Ok(images)
}

fn bytes_to_read(images: &[SavedImage]) -> u64 {
    let layers = images.iter().flat_map(|image| &image.layers);
    let sizes: HashMap<Digest, u64> =
        layers.map(|layer| (layer.diff_id, layer.tar_bytes)).collect();
    sizes.values().sum()
}

/// Returns the rows of JSON output. The digest is that of the manifest in the archive.
fn stored_images(image: &SavedImage) -> impl Iterator<Item = StoredImage> {
    image.references.iter().map(|reference| StoredImage {
        reference: reference.to_string(),
        digest: image.digest,
        image_id: image.config_digest,
        layers: image.layers.len(),
        size_bytes: image.layers.iter().map(|layer| layer.tar_bytes).sum(),
    })
}

/// The archive being written.
struct ArchiveWriter<'a> {
    store: &'a Store,
    tar: TarWriter,
    /// Blobs already written.
    written: HashSet<Digest>,
    meter: Option<ProgressMeter>,
}

impl ArchiveWriter<'_> {
    /// Writes the documents. They come first unless layers are compressed, so that a reader of a
    /// stream knows which layers follow.
    fn documents(&mut self, images: &[SavedImage], with_docker: bool) -> Result<()> {
        self.document("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))?;
        self.document("index.json", &index(images))?;
        if with_docker {
            let items: Vec<_> = images.iter().map(docker_item).collect();
            self.document("manifest.json", &json!(items))?;
        }
        for image in images {
            for (digest, bytes) in
                [(&image.config_digest, &image.config), (&image.digest, &image.manifest)]
            {
                if self.written.insert(*digest) {
                    self.tar.member(&blob_path(digest), bytes)?;
                }
            }
        }
        Ok(())
    }

    fn document(&mut self, name: &str, json: &serde_json::Value) -> Result<()> {
        self.tar.member(name, &serde_json::to_vec(json)?)
    }

    fn directories(&mut self) -> Result<()> {
        self.tar.directory("blobs/")?;
        self.tar.directory("blobs/sha256/")
    }

    fn layers(&mut self, images: &[SavedImage]) -> Result<()> {
        for layer in images.iter().flat_map(|image| &image.layers) {
            if self.written.insert(layer.blob.digest) {
                self.layer(layer).with_context(|| format!("layer {}", layer.diff_id))?;
            }
        }
        Ok(())
    }

    fn layer(&mut self, layer: &SavedLayer) -> Result<()> {
        self.tar.header(&blob_path(&layer.blob.digest), layer.blob.size)?;
        let (tar, meter) = (&mut self.tar, &mut self.meter);
        let write = |bytes: &[u8]| {
            advance(meter, bytes);
            tar.contents(bytes)
        };
        match layer.source {
            BlobSource::Tar => drop(rebuild(self.store, &layer.diff_id, GapCheck::Ignore, write)?),
            BlobSource::Kept => image::read_kept(self.store, &layer.blob, write)?,
        }
        self.tar.pad(layer.blob.size)
    }

    /// Writes compressed layers. They precede the documents, which name their digests.
    fn packed_layers(
        &mut self,
        images: &mut [SavedImage],
        compression: BlobCompression,
    ) -> Result<()> {
        let mut known: HashMap<Digest, Descriptor> = HashMap::new();
        for image in images {
            for layer in &mut image.layers {
                layer.blob = match known.get(&layer.diff_id) {
                    Some(blob) => blob.clone(),
                    None => self.packed_layer(layer, compression)?,
                };
                known.insert(layer.diff_id, layer.blob.clone());
            }
            image.rebuild_manifest()?;
        }
        Ok(())
    }

    fn packed_layer(
        &mut self,
        layer: &SavedLayer,
        compression: BlobCompression,
    ) -> Result<Descriptor> {
        let mut packed = LayerCompressor::new(self.store, compression)?;
        let meter = &mut self.meter;
        rebuild(self.store, &layer.diff_id, GapCheck::Ignore, |bytes| {
            advance(meter, bytes);
            packed.write(bytes)
        })
        .with_context(|| format!("layer {}", layer.diff_id))?;
        let (mut file, blob) = packed.finish()?;
        // Equal compressed layers have equal tars.
        if self.written.insert(blob.digest) {
            self.tar.header(&blob_path(&blob.digest), blob.size)?;
            pack::copy(&mut file, |bytes| self.tar.contents(bytes))?;
            self.tar.pad(blob.size)?;
        }
        Ok(blob)
    }
}

fn advance(meter: &mut Option<ProgressMeter>, bytes: &[u8]) {
    if let Some(meter) = meter {
        meter.advance(bytes.len() as u64);
    }
}

/// Builds `index.json`: one entry for each name.
fn index(images: &[SavedImage]) -> serde_json::Value {
    let mut manifests = Vec::new();
    for image in images {
        let names = image.names();
        for reference in image.dropped_names() {
            cli_error::warn(&format!(
                "the archive omits the name '{reference}': its manifest there is {}",
                image.digest
            ));
        }
        let descriptor = |name: Option<String>| image.descriptor(name);
        if names.is_empty() {
            manifests.push(descriptor(None));
        }
        manifests.extend(names.into_iter().map(|name| descriptor(Some(name))));
    }
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    })
}

/// Builds the entry of an image in `manifest.json`, which has tags but no digests.
fn docker_item(image: &SavedImage) -> serde_json::Value {
    let layers = image.layers.iter();
    json!({
        "Config": blob_path(&image.config_digest),
        "RepoTags": image.tags(),
        "Layers": layers.map(|layer| blob_path(&layer.blob.digest)).collect::<Vec<_>>(),
    })
}

/// Returns the media type of a manifest; a manifest may omit it.
fn manifest_type(image: &SavedImage) -> String {
    image.media_type.clone().unwrap_or_else(|| MANIFEST_TYPE.to_owned())
}
