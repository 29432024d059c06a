//! `msb image pull`: pulls an image from a registry.
//!
//! Several layers are downloaded at the same time, and each is converted while it arrives. The
//! store gets nothing of the image before all of it has been validated. Partial downloads stay for
//! the next attempt.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use libmsb::cli::error::{self as cli_error, Code, ErrorKind, Failure};
use libmsb::cli::output;
use libmsb::cli::verbosity::{self, Verbosity};
use libmsb::digest::Digest;
use libmsb::jsonl;
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::images::Store;
use serde::Serialize;

use crate::archive::{self, ArchiveImage, LayerSource};
use crate::args::{OutputFormat, Pull, ReportArgs};
use crate::budget::Budget;
use crate::disk::{self, merge};
use crate::document::{Descriptor, ImageConfig, ImageNames};
use crate::error::is_fatal;
use crate::layer::convert::{ConvertedLayer, convert_within};
use crate::layer::index::LayerSummary;
use crate::limits::INDEX_DEPTH_MAX;
use crate::registry::client::RegistryClient;
use crate::registry::credentials::{self, Credentials};
use crate::registry::download::{BlobDownload, DownloadError, remove_finished};
use crate::registry::manifest::{self, ImageManifest, IndexChoice, ParsedManifest, WantedPlatform};
use crate::registry::progress::{LayerProgress, LayerStage, PullProgress};
use crate::registry::settings::RegistrySettings;
use crate::report::StoredImage;
use crate::store::find::{self, read_document};
use crate::store::layers::{NewLayer, NewLayers};
use crate::store::open::open_for_adding;
use crate::store::put::{put_image, put_references};
use crate::stream::{BlobFacts, digest_of};
use crate::verbs::login;

/// Layers downloaded at the same time, as many as Docker does.
const LAYERS_AT_ONCE: usize = 3;
/// Documents fetched while nested indexes are resolved.
const INDEXES_MAX: usize = 16;

pub(crate) fn run(home: &Home, args: Pull) -> Result<()> {
    let reference: Reference = args.reference.parse()?;
    let platform = match &args.platform {
        Some(platform) => platform.parse()?,
        None => WantedPlatform::host(),
    };
    if args.quiet && verbosity::is_enabled(Verbosity::Info) {
        verbosity::set(Verbosity::Warn);
    }
    let pulled =
        pull(home, &reference, &platform, &args).map_err(|error| failed_pull(&reference, error))?;
    report(&pulled, args.output())
}

/// Adds to the error of a pull its name, its code, and a hint if it has none.
fn failed_pull(reference: &Reference, error: anyhow::Error) -> anyhow::Error {
    let kind = cli_error::kind(&error).unwrap_or(ErrorKind::Failed);
    let failure = Failure::new(kind, format!("cannot pull '{}'", reference.familiar()));
    // Another registry or network would not help.
    if is_fatal(&error) || kind == ErrorKind::Usage {
        return error.context(failure);
    }
    let failure = failure.code(Code::PullFailed);
    if cli_error::hint(&error).is_some() || cli_error::find_hint(&error).is_some() {
        return error.context(failure);
    }
    let load = "to load an archive instead: msb image load -i FILE";
    let failure = failure.hint(match kind {
        ErrorKind::NotFound => format!(
            "check the spelling; for a private image log in: msb registry login {}; {load}",
            reference.registry()
        ),
        _ => format!("check the name of the registry and the network; {load}"),
    });
    error.context(failure)
}

impl Pull {
    fn output(&self) -> ReportArgs {
        ReportArgs { format: self.format, quiet: self.quiet }
    }

    /// Returns the credentials on the command line, with the password from standard input.
    fn credentials(&self) -> Result<Option<Credentials>> {
        let Some(username) = self.username.clone() else {
            return Ok(None);
        };
        let password = login::password_from(&mut std::io::stdin().lock())?;
        login::check(&username, &password)?;
        Ok(Some(Credentials::Password { username, password }))
    }
}

/// Result of a pull.
struct PullOutcome {
    image: StoredImage,
    /// The store had all of it.
    unchanged: bool,
}

fn pull(
    home: &Home,
    reference: &Reference,
    platform: &WantedPlatform,
    args: &Pull,
) -> Result<PullOutcome> {
    let may_skip = !args.force && !args.keep_blobs && args.platform.is_none();
    if may_skip && reference.digest().is_some() {
        // A manifest named by its digest cannot have changed.
        if let Some(image) = present(home, reference)? {
            return Ok(PullOutcome { image, unchanged: true });
        }
    }
    let settings = RegistrySettings::read(home, reference.registry(), &args.connection)?;
    let credentials = match args.credentials()? {
        Some(given) => Some(given),
        None => credentials::find(reference.registry(), &settings.host)?,
    };
    if args.format.is_none() {
        cli_error::print_note(cli_error::program(), &format!("pulling '{}'", reference.familiar()));
    }
    let client = RegistryClient::open(reference.registry(), &settings.options, credentials)?;
    let found = resolve(&client, reference, platform)?;
    let (store, _lock) = open_for_adding(home)?;
    let before = store.record(reference).ok().flatten();
    let puller = ImagePuller {
        client: &client,
        store: &store,
        reference,
        force: args.force,
        keep_blobs: args.keep_blobs,
        budget: Budget::of(&store),
        stop: AtomicBool::new(false),
    };
    let (image, is_new) = puller.pull_image(found, platform, args.output())?;
    let known = before.is_some_and(|record| record.manifest_digest == image.digest);
    Ok(PullOutcome { unchanged: known && !is_new, image })
}

/// Returns the image of a reference if the store has all of it.
fn present(home: &Home, reference: &Reference) -> Result<Option<StoredImage>> {
    let store = home.images();
    let Some(record) = store.record(reference)? else {
        return Ok(None);
    };
    let Ok(image) = store.open(reference, &record.manifest_digest) else {
        return Ok(None);
    };
    let config = ImageConfig::parse(&read_document(
        &store.config_path(&image.config_digest),
        &image.config_digest,
    )?)?;
    let diff_ids = &config.rootfs.diff_ids;
    let layers: Vec<LayerSummary> =
        diff_ids.iter().filter_map(|id| find::layer(&store, id)).collect();
    if layers.len() < diff_ids.len() {
        return Ok(None);
    }
    Ok(Some(StoredImage {
        reference: reference.to_string(),
        digest: record.manifest_digest,
        image_id: image.config_digest,
        layers: layers.len(),
        size_bytes: layers.iter().map(|layer| layer.tar_bytes).sum(),
    }))
}

/// The manifest of the requested platform.
struct ResolvedManifest {
    bytes: Vec<u8>,
    manifest: ImageManifest,
}

/// Resolves a reference to a manifest, through indexes if necessary.
fn resolve(
    client: &RegistryClient,
    reference: &Reference,
    platform: &WantedPlatform,
) -> Result<ResolvedManifest> {
    let bytes = client.manifest(reference, reference.digest())?;
    if let Some(digest) = reference.digest() {
        manifest::check_document(&bytes, digest, None)?;
    }
    let mut open = match resolve_step(bytes, platform)? {
        ResolveStep::ResolvedManifest(found) => return Ok(found),
        ResolveStep::Next(next) => next,
    };
    // Each entry has its depth. The entries of an index come before the rest of its parent.
    let mut seen = 0;
    let mut refused = None;
    while let Some((descriptor, depth)) = open.pop() {
        seen += 1;
        ensure!(seen <= INDEXES_MAX, "the image has more than {INDEXES_MAX} indexes");
        ensure!(depth <= INDEX_DEPTH_MAX, "indexes are nested more than {INDEX_DEPTH_MAX} deep");
        let bytes = client.manifest(reference, Some(&descriptor.digest))?;
        manifest::check_document(&bytes, &descriptor.digest, Some(descriptor.size))?;
        match resolve_step(bytes, platform) {
            Ok(ResolveStep::ResolvedManifest(found)) => return Ok(found),
            Ok(ResolveStep::Next(next)) => {
                open.extend(next.into_iter().map(|(inner, _)| (inner, depth + 1)));
            }
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| anyhow!("there is no image for {platform}")))
}

enum ResolveStep {
    ResolvedManifest(ResolvedManifest),
    /// Documents to fetch, the last one first.
    Next(Vec<(Descriptor, usize)>),
}

fn resolve_step(bytes: Vec<u8>, platform: &WantedPlatform) -> Result<ResolveStep> {
    Ok(match manifest::parse(&bytes)? {
        ParsedManifest::Image(manifest) => {
            ResolveStep::ResolvedManifest(ResolvedManifest { bytes, manifest })
        }
        ParsedManifest::Index(manifests) => {
            ResolveStep::Next(match manifest::choose(manifests, platform)? {
                IndexChoice::Manifest(descriptor) => vec![(descriptor, 1)],
                IndexChoice::Indexes(indexes) => {
                    indexes.into_iter().rev().map(|index| (index, 1)).collect()
                }
            })
        }
    })
}

/// A pull of one image.
struct ImagePuller<'a> {
    client: &'a RegistryClient,
    store: &'a Store,
    reference: &'a Reference,
    force: bool,
    /// Keep compressed layers as they are received.
    keep_blobs: bool,
    /// Limit on what all layers together may expand to.
    budget: Budget,
    /// A layer failed, so the others stop.
    stop: AtomicBool,
}

/// The first event of a pull: the manifest is known.
#[derive(Serialize)]
#[serde(tag = "type", rename = "resolved")]
struct ResolvedEvent {
    reference: String,
    digest: Digest,
    /// Number of layers.
    layers: usize,
    /// Size of the compressed layers.
    size_bytes: u64,
}

/// A layer that the store has, or that was downloaded and converted.
struct LayerResult {
    blob: Digest,
    summary: LayerSummary,
    facts: Option<BlobFacts>,
    files: Option<NewLayer>,
}

impl ImagePuller<'_> {
    /// Pulls the image. Returns it, and whether the store lacked any of it.
    fn pull_image(
        &self,
        found: ResolvedManifest,
        platform: &WantedPlatform,
        output: ReportArgs,
    ) -> Result<(StoredImage, bool)> {
        let config_bytes = self.config(&found.manifest.config)?;
        let sources = sources(&found, &config_bytes, platform)?;
        if output.format == Some(OutputFormat::Json) && !output.quiet {
            output::print(&jsonl::to_string(&self.resolved(&found, &sources))?)?;
        }
        let results = self.layers(&sources, output)?;
        let (layers, mut new_layers, is_new) = self.join(&sources, results)?;
        let digest = digest_of(&found.bytes);
        let is_new = is_new || !disk::exists(self.store, &digest);
        let image = ArchiveImage {
            // A digest in the reference may be that of an index, which `resolve` has checked. The
            // references are written below.
            names: ImageNames::default(),
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

    fn resolved(&self, found: &ResolvedManifest, sources: &[LayerSource]) -> ResolvedEvent {
        let blobs = sources.iter().filter_map(|layer| layer.blob.as_ref());
        ResolvedEvent {
            reference: self.reference.to_string(),
            digest: digest_of(&found.bytes),
            layers: sources.len(),
            size_bytes: blobs.fold(0, |sum: u64, blob| sum.saturating_add(blob.size)),
        }
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let there = read_document(&self.store.config_path(&descriptor.digest), &descriptor.digest);
        let bytes = match there {
            Ok(bytes) if !self.force => bytes,
            _ => self.client.document(self.reference, &descriptor.digest, descriptor.size)?,
        };
        manifest::check_document(&bytes, &descriptor.digest, Some(descriptor.size))
            .context("the configuration")?;
        Ok(bytes)
    }

    fn write_disk(&self, manifest: &Digest, layers: &[LayerSummary]) -> Result<()> {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        let merged = merge::merge(&diff_ids, |diff_id| self.store.layer_index_path(diff_id))?;
        disk::write(self.store, manifest, &merged)
    }

    /// Downloads every distinct blob, several at the same time.
    fn layers(&self, sources: &[LayerSource], output: ReportArgs) -> Result<Vec<LayerResult>> {
        let mut different: Vec<(&LayerSource, &Descriptor)> = Vec::new();
        for source in sources {
            let blob = source.blob.as_ref().context("a layer without a blob")?;
            if different.iter().all(|(_, other)| other.digest != blob.digest) {
                different.push((source, blob));
            }
        }
        let blobs = different.iter().map(|(_, blob)| (blob.digest, blob.size));
        let progress = PullProgress::new(output, blobs);
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Ok(Vec::new()));
        std::thread::scope(|scope| {
            let reporter = scope.spawn(|| progress.run());
            let worker = || {
                while let Some((source, blob)) = different.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let results = self
                        .layer(source, blob, &progress.of(blob.digest))
                        .with_context(|| format!("layer {}", blob.digest));
                    if !self.record_result(&done, results) {
                        return;
                    }
                }
            };
            let workers: Vec<_> =
                (0..LAYERS_AT_ONCE.min(different.len())).map(|_| scope.spawn(worker)).collect();
            for worker in workers {
                if worker.join().is_err() {
                    self.record_result(&done, Err(anyhow!("a downloading thread failed")));
                }
            }
            progress.finish();
            drop(reporter.join());
        });
        done.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a worker's result. The first failure wins and stops the others. Returns whether to
    /// go on.
    fn record_result(
        &self,
        done: &Mutex<Result<Vec<LayerResult>>>,
        results: Result<LayerResult>,
    ) -> bool {
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *done, results) {
            (Ok(all), Ok(results)) => all.push(results),
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
    ) -> Result<LayerResult> {
        if let Some(results) = self.present(source, blob, progress) {
            return Ok(results);
        }
        let download = BlobDownload::open(self.store, &blob.digest, blob.size)?;
        // The process that held the lock may have added the layer.
        if let Some(results) = self.present(source, blob, progress) {
            download.discard();
            return Ok(results);
        }
        if self.force {
            download.restart()?;
        }
        progress.set_stage(LayerStage::Downloading);
        let converted = self.convert(source, blob, download, progress)?;
        progress.set_stage(LayerStage::Done);
        Ok(LayerResult {
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
    ) -> Option<LayerResult> {
        if self.force {
            return None;
        }
        let summary = find::layer(self.store, &source.diff_id)?;
        let has_blob = blob.digest == source.diff_id || self.store.blob_path(&blob.digest).exists();
        if self.keep_blobs && !has_blob {
            return None;
        }
        progress.set_stage(LayerStage::Present);
        Some(LayerResult { blob: blob.digest, summary, facts: None, files: None })
    }

    /// Converts a layer while it is downloaded. If an earlier partial download turns out to be
    /// damaged, the whole blob is downloaded again.
    fn convert(
        &self,
        source: &LayerSource,
        blob: &Descriptor,
        download: BlobDownload,
        progress: &LayerProgress<'_>,
    ) -> Result<ConvertedLayer> {
        let request = |offset| self.client.blob(self.reference, &blob.digest, offset);
        let mut is_second = download.length()? == 0;
        loop {
            let converted =
                download.consume(&request, self.client.backoff(), progress, &self.stop, |reader| {
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
                });
            match converted {
                Ok(converted) => return Ok(converted),
                Err(DownloadError::Transfer(error)) => return Err(error),
                Err(DownloadError::Contents(error)) if is_second => {
                    download.discard();
                    return Err(error);
                }
                Err(DownloadError::Contents(_)) => download.restart()?,
            }
            is_second = true;
        }
    }

    /// Puts the layers in manifest order and checks each against its source.
    fn join(
        &self,
        sources: &[LayerSource],
        results: Vec<LayerResult>,
    ) -> Result<(Vec<LayerSummary>, NewLayers, bool)> {
        let mut layers = Vec::new();
        for source in sources {
            let layer = results
                .iter()
                .find(|layer| source.blob.as_ref().is_some_and(|blob| blob.digest == layer.blob))
                .context("a layer is missing")?;
            archive::check(source, &layer.summary.diff_id, layer.facts.as_ref())?;
            layers.push(layer.summary);
        }
        let mut new_layers = NewLayers::default();
        let mut is_new = false;
        for layer in results {
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

/// Returns the layers that the manifest and the configuration require.
fn sources(
    found: &ResolvedManifest,
    config_bytes: &[u8],
    platform: &WantedPlatform,
) -> Result<Vec<LayerSource>> {
    let config = ImageConfig::parse(config_bytes)?;
    if !platform.fits(&config.platform) {
        bail!("the image is for {}, not for {platform}", config.platform);
    }
    let (blobs, diff_ids) = (&found.manifest.layers, &config.rootfs.diff_ids);
    ensure!(
        blobs.len() == diff_ids.len(),
        "the manifest names {} layers, but the configuration {}",
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

/// The last event of a pull, as JSON.
#[derive(Serialize)]
#[serde(tag = "type", rename = "pulled")]
struct PulledEvent<'a> {
    #[serde(flatten)]
    image: &'a StoredImage,
    unchanged: bool,
}

fn report(pulled: &PullOutcome, options: ReportArgs) -> Result<()> {
    if options.format == Some(OutputFormat::Json) {
        let event = PulledEvent { image: &pulled.image, unchanged: pulled.unchanged };
        return Ok(output::print(&jsonl::to_string(&event)?)?);
    }
    if options.quiet {
        return Ok(());
    }
    let name = &pulled.image.reference;
    if pulled.unchanged {
        cli_error::print_note(cli_error::program(), &format!("'{name}' is up to date"));
    }
    Ok(output::print(name)?)
}
