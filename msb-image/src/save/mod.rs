//! `msb image save`: images become one archive, which docker, podman, skopeo and `msb image load` read.
//!
//! The form `docker` is what Docker writes since version 25: blobs by digest, with `manifest.json` for readers of the
//! old form and `index.json` for those of OCI, so a manifest survives as well. The form `oci` leaves `manifest.json` out.
//! The same images give the same bytes.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result};
use libmsb::cli::error::{self as cli_error, Failure};
use libmsb::digest::Digest;
use libmsb::state::Home;
use libmsb::state::images::Store;
use libmsb::state::lock::Lock;
use serde_json::json;

use crate::TOOL;
use crate::archive::blob_path;
use crate::arguments::{Format, Output, Save, SaveFormat};
use crate::document::{Descriptor, MANIFEST_TYPE, references};
use crate::input::Meter;
use crate::layer::rebuild::{Gaps, rebuild};
use crate::load::{Loaded, report};
use crate::remove::no_such_image;
use crate::stream::Packing;

/// Images on their way out.
mod image;
/// Layers that are compressed anew.
mod pack;
/// Writing a tar.
mod tar;
/// Where the archive goes.
mod target;

use image::{Layer, Saved, Source};
use pack::Packed;
use tar::TarWriter;
use target::Target;

/// What was asked for.
struct Choice {
    with_docker: bool,
    json: bool,
    packing: Packing,
}

pub(crate) fn run(home: &Home, args: Save) -> Result<()> {
    let choice = choice(&args)?;
    let label = || format!("cannot save '{}'", args.references.join("', '"));
    let saved = save(home, &args, &choice).with_context(label)?;
    let format = choice.json.then_some(Format::Json);
    let quiet = args.quiet;
    report("Saved", &saved, Output { format, quiet })
}

fn choice(args: &Save) -> Result<Choice> {
    let has = |format| args.formats.contains(&format);
    if has(SaveFormat::Docker) && has(SaveFormat::Oci) {
        return Err(Failure::usage("an archive has one form, 'docker' or 'oci'").into());
    }
    if has(SaveFormat::Json) && args.output.is_none() {
        return Err(
            Failure::usage("JSON and the archive cannot both go to standard output")
                .hint("name a file for the archive with --output")
                .into(),
        );
    }
    Ok(Choice {
        with_docker: !has(SaveFormat::Oci),
        json: has(SaveFormat::Json),
        packing: args.compress.map_or(Packing::Plain, Packing::from),
    })
}

fn save(home: &Home, args: &Save, choice: &Choice) -> Result<Vec<Loaded>> {
    let store = home.images();
    // A reader makes nothing: without a store there is nothing to guard.
    let _lock = store
        .root()
        .is_dir()
        .then(|| Lock::shared(&store.lock()))
        .transpose()?;
    let mut images = find(&store, args)?;
    let target = Target::open(args.output.as_deref())?;
    let mut archive = Archive {
        store: &store,
        tar: TarWriter::new(target),
        written: HashSet::new(),
        meter: Meter::start(bytes_to_read(&images), !args.quiet),
    };
    archive.folders()?;
    if choice.packing != Packing::Plain {
        archive.packed_layers(&mut images, choice.packing)?;
    }
    archive.documents(&images, choice.with_docker)?;
    archive.layers(&images)?;
    drop(archive.meter);
    archive.tar.finish()?.commit()?;
    Ok(images.iter().flat_map(told).collect())
}

/// Every image that is asked for, once, whatever its names; with all that can be checked before the first byte.
fn find(store: &Store, args: &Save) -> Result<Vec<Saved>> {
    let mut images: Vec<Saved> = Vec::new();
    for reference in references(&args.references)? {
        let record = store
            .record(&reference)?
            .ok_or_else(|| no_such_image(&reference))?;
        let digest = record.manifest_digest;
        match images.iter_mut().find(|image| image.stored == digest) {
            Some(image) => image.references.push(reference),
            None => images.push(Saved::read(store, reference, &digest)?),
        }
    }
    Ok(images)
}

fn bytes_to_read(images: &[Saved]) -> u64 {
    let layers = images.iter().flat_map(|image| &image.layers);
    let sizes: HashMap<Digest, u64> = layers
        .map(|layer| (layer.diff_id, layer.tar_bytes))
        .collect();
    sizes.values().sum()
}

/// What programs are told. The digest is that of the manifest in the archive.
fn told(image: &Saved) -> impl Iterator<Item = Loaded> {
    image.references.iter().map(|reference| Loaded {
        reference: reference.to_string(),
        digest: image.digest,
        image_id: image.config_digest,
        layers: image.layers.len(),
        size_bytes: image.layers.iter().map(|layer| layer.tar_bytes).sum(),
    })
}

/// The archive that is being written.
struct Archive<'a> {
    store: &'a Store,
    tar: TarWriter,
    /// Blobs that are in it.
    written: HashSet<Digest>,
    meter: Option<Meter>,
}

impl Archive<'_> {
    /// The documents, first of all where that can be: so a reader of a stream knows what will come.
    fn documents(&mut self, images: &[Saved], with_docker: bool) -> Result<()> {
        self.document("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))?;
        self.document("index.json", &index(images))?;
        if with_docker {
            let items: Vec<_> = images.iter().map(docker_item).collect();
            self.document("manifest.json", &json!(items))?;
        }
        for image in images {
            for (digest, bytes) in [
                (&image.config_digest, &image.config),
                (&image.digest, &image.manifest),
            ] {
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

    fn folders(&mut self) -> Result<()> {
        self.tar.folder("blobs/")?;
        self.tar.folder("blobs/sha256/")
    }

    fn layers(&mut self, images: &[Saved]) -> Result<()> {
        for layer in images.iter().flat_map(|image| &image.layers) {
            if self.written.insert(layer.blob.digest) {
                self.layer(layer)
                    .with_context(|| format!("layer {}", layer.diff_id))?;
            }
        }
        Ok(())
    }

    fn layer(&mut self, layer: &Layer) -> Result<()> {
        self.tar
            .header(&blob_path(&layer.blob.digest), layer.blob.size)?;
        let (tar, meter) = (&mut self.tar, &mut self.meter);
        let write = |bytes: &[u8]| {
            advance(meter, bytes);
            tar.contents(bytes)
        };
        match layer.source {
            Source::Tar => drop(rebuild(self.store, &layer.diff_id, Gaps::Ignore, write)?),
            Source::Kept => image::read_kept(self.store, &layer.blob, write)?,
        }
        self.tar.pad(layer.blob.size)
    }

    /// Layers that are compressed anew come first: before that their digests, which the documents name, are not known.
    fn packed_layers(&mut self, images: &mut [Saved], packing: Packing) -> Result<()> {
        let mut known: HashMap<Digest, Descriptor> = HashMap::new();
        for image in images {
            for layer in &mut image.layers {
                layer.blob = match known.get(&layer.diff_id) {
                    Some(blob) => blob.clone(),
                    None => self.packed_layer(layer, packing)?,
                };
                known.insert(layer.diff_id, layer.blob.clone());
            }
            image.describe_anew()?;
        }
        Ok(())
    }

    fn packed_layer(&mut self, layer: &Layer, packing: Packing) -> Result<Descriptor> {
        let mut packed = Packed::new(self.store, packing)?;
        let meter = &mut self.meter;
        rebuild(self.store, &layer.diff_id, Gaps::Ignore, |bytes| {
            advance(meter, bytes);
            packed.write(bytes)
        })
        .with_context(|| format!("layer {}", layer.diff_id))?;
        let (mut file, blob) = packed.finish()?;
        // Two tars may be the same when packed only if they are the same.
        if self.written.insert(blob.digest) {
            self.tar.header(&blob_path(&blob.digest), blob.size)?;
            pack::copy(&mut file, |bytes| self.tar.contents(bytes))?;
            self.tar.pad(blob.size)?;
        }
        Ok(blob)
    }
}

fn advance(meter: &mut Option<Meter>, bytes: &[u8]) {
    if let Some(meter) = meter {
        meter.advance(bytes.len() as u64);
    }
}

/// `index.json`: each name leads to a manifest.
fn index(images: &[Saved]) -> serde_json::Value {
    let mut manifests = Vec::new();
    for image in images {
        let names = image.names();
        for reference in image.dropped_names() {
            cli_error::print_warning(
                TOOL,
                &format!(
                    "the archive does not name '{reference}': its manifest is {} there",
                    image.digest
                ),
            );
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

/// What `manifest.json` says of an image. It knows tags only.
fn docker_item(image: &Saved) -> serde_json::Value {
    let layers = image.layers.iter();
    json!({
        "Config": blob_path(&image.config_digest),
        "RepoTags": image.tags(),
        "Layers": layers.map(|layer| blob_path(&layer.blob.digest)).collect::<Vec<_>>(),
    })
}

/// The type of a manifest that does not say its own.
fn manifest_type(image: &Saved) -> String {
    image
        .media_type
        .clone()
        .unwrap_or_else(|| MANIFEST_TYPE.to_owned())
}
