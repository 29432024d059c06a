//! `msb image pull`: an image from a registry.
//!
//! Layers come several at a time, each converted while it arrives. Nothing of the image is in the store before all of it
//! is known to be good; what has been downloaded by then stays for the next attempt.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use libmsb::cli::output;
use libmsb::digest::Digest;
use libmsb::jsonl;
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::images::Store;
use serde::Serialize;

use crate::archive::{self, Image, LayerSource};
use crate::arguments::{Format, Output, Pull};
use crate::budget::Budget;
use crate::disk::{self, merge};
use crate::document::{Config, Descriptor};
use crate::layer::convert::{Converted, convert_within};
use crate::layer::index::Summary;
use crate::limits::INDEX_DEPTH_MAX;
use crate::load::{Loaded, note, put_image, put_references};
use crate::registry::client::Client;
use crate::registry::credentials;
use crate::registry::download::{Download, Failed, remove_finished};
use crate::registry::manifest::{self, Choice, ImageManifest, Parsed, WantedPlatform};
use crate::registry::progress::{LayerProgress, Progress, Stage};
use crate::registry::settings::Settings;
use crate::store::{self, NewLayer, NewLayers, read_document};
use crate::stream::{BlobFacts, digest_of};

/// Layers that are fetched at the same time, as many as Docker does.
const LAYERS_AT_ONCE: usize = 3;
/// Documents that are looked at on the way through nested indexes.
const INDEXES_MAX: usize = 16;

pub(crate) fn run(home: &Home, args: Pull) -> Result<()> {
    let reference: Reference = args.reference.parse()?;
    let wanted = match &args.platform {
        Some(platform) => platform.parse()?,
        None => WantedPlatform::host(),
    };
    let pulled = pull(home, &reference, &wanted, &args)
        .with_context(|| format!("cannot pull '{}'", reference.familiar()))?;
    report(&pulled, args.output())
}

impl Pull {
    fn output(&self) -> Output {
        Output {
            format: self.format,
            quiet: self.quiet,
        }
    }
}

/// What came of it.
struct Pulled {
    image: Loaded,
    /// Nothing had to be brought.
    unchanged: bool,
}

fn pull(
    home: &Home,
    reference: &Reference,
    wanted: &WantedPlatform,
    args: &Pull,
) -> Result<Pulled> {
    let may_be_there = !args.force && !args.keep_blobs && args.platform.is_none();
    if may_be_there && reference.digest().is_some() {
        // What a digest names cannot have changed.
        if let Some(image) = present(home, reference)? {
            return Ok(Pulled {
                image,
                unchanged: true,
            });
        }
    }
    let settings = Settings::read(home, reference.registry(), &args.way)?;
    let credentials = credentials::find(reference.registry(), &settings.host)?;
    let client = Client::open(reference.registry(), &settings.options, credentials)?;
    let found = resolve(&client, reference, wanted)?;
    let (store, _lock) = store::open_for_adding(home)?;
    let before = store.record(reference).ok().flatten();
    let puller = Puller {
        client: &client,
        store: &store,
        reference,
        force: args.force,
        keep_blobs: args.keep_blobs,
        budget: Budget::of(&store),
        stop: AtomicBool::new(false),
    };
    let (image, is_new) = puller.bring(found, wanted, args.output())?;
    let known = before.is_some_and(|record| record.manifest_digest == image.digest);
    Ok(Pulled {
        unchanged: known && !is_new,
        image,
    })
}

/// The image of a reference that is there already, all of it.
fn present(home: &Home, reference: &Reference) -> Result<Option<Loaded>> {
    let store = home.images();
    let Some(record) = store.record(reference)? else {
        return Ok(None);
    };
    let Ok(image) = store.open(reference, &record.manifest_digest) else {
        return Ok(None);
    };
    let config = Config::parse(&read_document(
        &store.config_path(&image.config_digest),
        &image.config_digest,
    )?)?;
    let diff_ids = &config.rootfs.diff_ids;
    let layers: Vec<Summary> = diff_ids
        .iter()
        .filter_map(|id| store::layer(&store, id))
        .collect();
    if layers.len() < diff_ids.len() {
        return Ok(None);
    }
    Ok(Some(Loaded {
        reference: reference.to_string(),
        digest: record.manifest_digest,
        image_id: image.config_digest,
        layers: layers.len(),
        size_bytes: layers.iter().map(|layer| layer.tar_bytes).sum(),
    }))
}

/// A manifest that is the wanted one.
struct Found {
    bytes: Vec<u8>,
    manifest: ImageManifest,
}

/// Finds the manifest that a reference leads to, through indexes if there are any.
fn resolve(client: &Client, reference: &Reference, wanted: &WantedPlatform) -> Result<Found> {
    let bytes = client.manifest(reference, reference.digest())?;
    if let Some(digest) = reference.digest() {
        manifest::check_document(&bytes, digest, None)?;
    }
    let mut open = match look(bytes, wanted)? {
        Looked::Found(found) => return Ok(found),
        Looked::Next(next) => next,
    };
    // Each with how deep it lies. Those of an index come before what was to follow it.
    let mut seen = 0;
    let mut refused = None;
    while let Some((descriptor, depth)) = open.pop() {
        seen += 1;
        ensure!(
            seen <= INDEXES_MAX,
            "there are more than {INDEXES_MAX} indexes"
        );
        ensure!(
            depth <= INDEX_DEPTH_MAX,
            "indexes lie more than {INDEX_DEPTH_MAX} deep within each other"
        );
        let bytes = client.manifest(reference, Some(&descriptor.digest))?;
        manifest::check_document(&bytes, &descriptor.digest, Some(descriptor.size))?;
        match look(bytes, wanted) {
            Ok(Looked::Found(found)) => return Ok(found),
            Ok(Looked::Next(next)) => {
                open.extend(next.into_iter().map(|(inner, _)| (inner, depth + 1)));
            }
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| anyhow!("there is no image for {wanted}")))
}

enum Looked {
    Found(Found),
    /// Documents to look at, the last one first.
    Next(Vec<(Descriptor, usize)>),
}

fn look(bytes: Vec<u8>, wanted: &WantedPlatform) -> Result<Looked> {
    Ok(match manifest::parse(&bytes)? {
        Parsed::Image(manifest) => Looked::Found(Found { bytes, manifest }),
        Parsed::Index(manifests) => Looked::Next(match manifest::choose(manifests, wanted)? {
            Choice::Manifest(descriptor) => vec![(descriptor, 1)],
            Choice::Indexes(indexes) => indexes.into_iter().rev().map(|index| (index, 1)).collect(),
        }),
    })
}

/// Brings the layers of one image.
struct Puller<'a> {
    client: &'a Client,
    store: &'a Store,
    reference: &'a Reference,
    force: bool,
    /// Blobs are kept as they came too.
    keep_blobs: bool,
    /// What all layers together may become.
    budget: Budget,
    /// One layer has failed: the others need not go on.
    stop: AtomicBool,
}

/// A layer that is there or on its way into the store.
struct Brought {
    blob: Digest,
    summary: Summary,
    facts: Option<BlobFacts>,
    files: Option<NewLayer>,
}

impl Puller<'_> {
    /// Gives the image, and whether anything had to be brought for it.
    fn bring(
        &self,
        found: Found,
        wanted: &WantedPlatform,
        output: Output,
    ) -> Result<(Loaded, bool)> {
        let config_bytes = self.config(&found.manifest.config)?;
        let sources = sources(&found, &config_bytes, wanted)?;
        let brought = self.layers(&sources, output)?;
        let (layers, mut new_layers, is_new) = self.join(&sources, brought)?;
        let digest = digest_of(&found.bytes);
        let is_new = is_new || !disk::is_there(self.store, &digest);
        let image = Image {
            // A digest in the reference may be that of an index, and was checked there; so references follow below.
            references: Vec::new(),
            config: config_bytes,
            manifest: Some(found.bytes),
            layers: sources,
        };
        put_image(self.store, &image, &layers, &mut new_layers)?;
        if self.force {
            self.write_disk(&digest, &layers)?;
        }
        let references = std::slice::from_ref(self.reference);
        let image_id = digest_of(&image.config);
        let loaded = put_references(self.store, references, &digest, &image_id, &layers)?;
        let blobs = image.layers.iter().filter_map(|layer| layer.blob.as_ref());
        remove_finished(self.store, blobs.map(|blob| &blob.digest));
        let loaded = loaded.into_iter().next().context("the image has no name")?;
        Ok((loaded, is_new))
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let there = read_document(
            &self.store.config_path(&descriptor.digest),
            &descriptor.digest,
        );
        let bytes = match there {
            Ok(bytes) if !self.force => bytes,
            _ => self
                .client
                .document(self.reference, &descriptor.digest, descriptor.size)?,
        };
        manifest::check_document(&bytes, &descriptor.digest, Some(descriptor.size))
            .context("the configuration")?;
        Ok(bytes)
    }

    fn write_disk(&self, manifest: &Digest, layers: &[Summary]) -> Result<()> {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        let merged = merge::merge(&diff_ids, |diff_id| self.store.layer_index_path(diff_id))?;
        disk::write(self.store, manifest, &merged)
    }

    /// Brings every blob once, a few at a time.
    fn layers(&self, sources: &[LayerSource], output: Output) -> Result<Vec<Brought>> {
        let mut different: Vec<(&LayerSource, &Descriptor)> = Vec::new();
        for source in sources {
            let blob = source.blob.as_ref().context("a layer without a blob")?;
            if different
                .iter()
                .all(|(_, other)| other.digest != blob.digest)
            {
                different.push((source, blob));
            }
        }
        let progress = Progress::new(
            output,
            different.iter().map(|(_, blob)| (blob.digest, blob.size)),
        );
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Ok(Vec::new()));
        std::thread::scope(|scope| {
            let teller = scope.spawn(|| progress.run());
            let worker = || {
                while let Some((source, blob)) = different.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let brought = self
                        .layer(source, blob, &progress.of(blob.digest))
                        .with_context(|| format!("layer {}", blob.digest));
                    if !self.note(&done, brought) {
                        return;
                    }
                }
            };
            let workers: Vec<_> = (0..LAYERS_AT_ONCE.min(different.len()))
                .map(|_| scope.spawn(worker))
                .collect();
            for worker in workers {
                if worker.join().is_err() {
                    self.note(&done, Err(anyhow!("a downloading thread failed")));
                }
            }
            progress.finish();
            drop(teller.join());
        });
        done.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what one worker has; the first failure counts and stops the others.
    fn note(&self, done: &Mutex<Result<Vec<Brought>>>, brought: Result<Brought>) -> bool {
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *done, brought) {
            (Ok(all), Ok(brought)) => all.push(brought),
            (Ok(_), Err(error)) => {
                self.stop.store(true, Ordering::Relaxed);
                *done = Err(error);
            }
            (Err(_), _) => {}
        }
        done.is_ok()
    }

    fn layer(
        &self,
        source: &LayerSource,
        blob: &Descriptor,
        progress: &LayerProgress<'_>,
    ) -> Result<Brought> {
        if let Some(brought) = self.present(source, blob, progress) {
            return Ok(brought);
        }
        let download = Download::open(self.store, &blob.digest, blob.size)?;
        // Whoever held the file may have brought the layer.
        if let Some(brought) = self.present(source, blob, progress) {
            download.discard();
            return Ok(brought);
        }
        if self.force {
            download.restart()?;
        }
        progress.is(Stage::Downloading);
        let converted = self.convert(source, blob, download, progress)?;
        progress.is(Stage::Done);
        Ok(Brought {
            blob: blob.digest,
            summary: converted.summary,
            facts: Some(converted.unpacked.blob),
            files: Some(converted.files),
        })
    }

    fn present(
        &self,
        source: &LayerSource,
        blob: &Descriptor,
        progress: &LayerProgress<'_>,
    ) -> Option<Brought> {
        if self.force {
            return None;
        }
        let summary = store::layer(self.store, &source.diff_id)?;
        let has_blob = blob.digest == source.diff_id || self.store.blob_path(&blob.digest).exists();
        if self.keep_blobs && !has_blob {
            return None;
        }
        progress.is(Stage::Present);
        Some(Brought {
            blob: blob.digest,
            summary,
            facts: None,
            files: None,
        })
    }

    /// Converts a layer as it comes. What an earlier pull left may be damaged: then all of it is fetched once more.
    fn convert(
        &self,
        source: &LayerSource,
        blob: &Descriptor,
        download: Download,
        progress: &LayerProgress<'_>,
    ) -> Result<Converted> {
        let ask = |offset| self.client.blob(self.reference, &blob.digest, offset);
        let mut is_second = download.length()? == 0;
        loop {
            let converted = download.consume(
                &ask,
                self.client.patience(),
                progress,
                &self.stop,
                |reader| {
                    let converted = convert_within(
                        self.budget.reader(reader),
                        NewLayer::create_keeping(self.store, self.keep_blobs)?,
                        &self.budget,
                    )?;
                    archive::check(
                        source,
                        &converted.summary.diff_id,
                        Some(&converted.unpacked.blob),
                    )?;
                    Ok(converted)
                },
            );
            match converted {
                Ok(converted) => return Ok(converted),
                Err(Failed::Underway(error)) => return Err(error),
                Err(Failed::Contents(error)) if is_second => {
                    download.discard();
                    return Err(error);
                }
                Err(Failed::Contents(_)) => download.restart()?,
            }
            is_second = true;
        }
    }

    /// Puts the layers in their order, each compared with what its place says.
    fn join(
        &self,
        sources: &[LayerSource],
        brought: Vec<Brought>,
    ) -> Result<(Vec<Summary>, NewLayers, bool)> {
        let mut layers = Vec::new();
        for source in sources {
            let layer = brought
                .iter()
                .find(|layer| {
                    source
                        .blob
                        .as_ref()
                        .is_some_and(|blob| blob.digest == layer.blob)
                })
                .context("a layer is missing")?;
            archive::check(source, &layer.summary.diff_id, layer.facts.as_ref())?;
            layers.push(layer.summary);
        }
        let mut new_layers = NewLayers::default();
        let mut is_new = false;
        for layer in brought {
            let Some(files) = layer.files else { continue };
            is_new = true;
            if self.force {
                new_layers.replace(&layer.summary.diff_id, files);
            } else {
                new_layers.add(self.store, &layer.summary.diff_id, files);
            }
        }
        Ok((layers, new_layers, is_new))
    }
}

/// What each layer must be, by manifest and configuration.
fn sources(
    found: &Found,
    config_bytes: &[u8],
    wanted: &WantedPlatform,
) -> Result<Vec<LayerSource>> {
    let config = Config::parse(config_bytes)?;
    if !wanted.fits(&config.platform) {
        bail!(
            "the image is for {}, and wanted is {wanted}",
            config.platform
        );
    }
    let (blobs, diff_ids) = (&found.manifest.layers, &config.rootfs.diff_ids);
    ensure!(
        blobs.len() == diff_ids.len(),
        "the manifest names {} layers, and the configuration {}",
        blobs.len(),
        diff_ids.len()
    );
    let source = |(blob, diff_id): (&Descriptor, &Digest)| LayerSource {
        path: blob.digest.to_string(),
        diff_id: *diff_id,
        blob: Some(blob.clone()),
    };
    Ok(blobs.iter().zip(diff_ids).map(source).collect())
}

/// The last event of a pull.
#[derive(Serialize)]
#[serde(tag = "type", rename = "pulled")]
struct PulledEvent<'a> {
    #[serde(flatten)]
    image: &'a Loaded,
    unchanged: bool,
}

fn report(pulled: &Pulled, options: Output) -> Result<()> {
    if options.format == Some(Format::Json) {
        let event = PulledEvent {
            image: &pulled.image,
            unchanged: pulled.unchanged,
        };
        output::print(&jsonl::to_string(&event)?)?;
    }
    if !options.quiet {
        let name = &pulled.image.reference;
        note(&match pulled.unchanged {
            true => format!("{name} is up to date"),
            false => format!("Pulled {name}"),
        });
    }
    Ok(())
}
