//! `msb image load`.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use libmsb::cli::error::Failure;
use libmsb::cli::output;
use libmsb::digest::Digest;
use libmsb::jsonl;
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::images::{RefRecord, Store};
use libmsb::state::write;
use serde::Serialize;

use crate::archive::{self, Archive, Image};
use crate::arguments::{Format, Load, Output};
use crate::disk::{self, merge};
use crate::document::{manifest_for, references};
use crate::input::Input;
use crate::layer::index::Summary;
use crate::store::{self, NewLayers};
use crate::stream::digest_of;

/// An image that is in the store now, as programs are told.
#[derive(Debug, Serialize)]
pub(crate) struct Loaded {
    pub(crate) reference: String,
    pub(crate) digest: Digest,
    pub(crate) image_id: Digest,
    pub(crate) layers: usize,
    pub(crate) size_bytes: u64,
}

pub(crate) fn run(home: &Home, args: Load) -> Result<()> {
    let tags = references(&args.tags)?;
    let name = args
        .input
        .as_ref()
        .map_or("standard input".to_owned(), |path| {
            path.display().to_string()
        });
    let loaded = load(home, &args, tags).with_context(|| format!("cannot load '{name}'"))?;
    report("Loaded", &loaded, args.output)
}

fn load(home: &Home, args: &Load, tags: Vec<Reference>) -> Result<Vec<Loaded>> {
    let input = Input::open(args.input.as_deref(), !args.output.quiet)?;
    let (store, _lock) = store::open_for_adding(home)?;
    let mut archive = Archive::open(input, &store, args.keep_blobs)?;
    let mut images = archive::images(&mut archive)?;
    if let Some(first) = images.first_mut() {
        first.references.extend(tags);
    }
    if images.iter().any(|image| image.references.is_empty()) {
        return Err(Failure::failed("the archive gives its image no name")
            .hint("choose one: msb image load --tag NAME")
            .into());
    }
    let mut loaded = Vec::new();
    for image in &images {
        loaded.extend(add(&store, &mut archive, image)?);
    }
    Ok(loaded)
}

/// Brings one image into the store, layers first and references last.
pub(crate) fn add(store: &Store, archive: &mut Archive<'_>, image: &Image) -> Result<Vec<Loaded>> {
    let layers = archive.layers(&image.layers)?;
    put_image(store, image, &layers, &mut archive.new_layers)
}

/// Brings an image whose layers are converted into the store: layers first and references last.
pub(crate) fn put_image(
    store: &Store,
    image: &Image,
    layers: &[Summary],
    new_layers: &mut NewLayers,
) -> Result<Vec<Loaded>> {
    let config_digest = digest_of(&image.config);
    let manifest = match &image.manifest {
        Some(manifest) => manifest.clone(),
        None => manifest_for(&config_digest, image.config.len() as u64, layers)?,
    };
    let digest = digest_of(&manifest);
    check_pins(&image.references, &digest)?;
    let merged = if disk::is_there(store, &digest) {
        None
    } else {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        Some(merge::merge(&diff_ids, |diff_id| {
            new_layers.index_path(store, diff_id)
        })?)
    };
    // From here on nothing of the image can be wrong any more: the disk is planned.
    new_layers.commit(store)?;
    put_documents(store, &image.config, &manifest)?;
    if let Some(merged) = merged {
        disk::write(store, &digest, &merged)?;
    }
    put_references(store, &image.references, &digest, &config_digest, layers)
}

/// Stores the configuration and the manifest, in this order.
pub(crate) fn put_documents(store: &Store, config: &[u8], manifest: &[u8]) -> Result<()> {
    store::put_document(&store.config_path(&digest_of(config)), config)?;
    store::put_document(&store.manifest_path(&digest_of(manifest)), manifest)
}

/// Lets references name a manifest whose disk is there.
pub(crate) fn put_references(
    store: &Store,
    references: &[Reference],
    digest: &Digest,
    image_id: &Digest,
    layers: &[Summary],
) -> Result<Vec<Loaded>> {
    let mut loaded = Vec::new();
    for reference in references {
        put_reference(store, reference, digest)?;
        loaded.push(Loaded {
            reference: reference.to_string(),
            digest: *digest,
            image_id: *image_id,
            layers: layers.len(),
            size_bytes: layers.iter().map(|layer| layer.tar_bytes).sum(),
        });
    }
    Ok(loaded)
}

/// Lets a reference name a manifest. When it names it already it keeps its time.
pub(crate) fn put_reference(store: &Store, reference: &Reference, digest: &Digest) -> Result<()> {
    let there = store.record(reference).ok().flatten();
    if there.is_some_and(|record| record.manifest_digest == *digest) {
        return Ok(());
    }
    let record = RefRecord {
        reference: reference.to_string(),
        manifest_digest: *digest,
        created_at: jiff::Timestamp::now(),
        other: serde_json::Map::new(),
    };
    write::replace_json(&store.ref_path(reference), &record)
}

/// A reference that pins a digest cannot name another manifest.
pub(crate) fn check_pins(references: &[Reference], digest: &Digest) -> Result<()> {
    for reference in references {
        let fits = reference.digest().is_none_or(|pinned| pinned == digest);
        ensure!(
            fits,
            "'{reference}' cannot name an image with the manifest {digest}"
        );
    }
    Ok(())
}

/// Says what has come: names for people, JSON lines for programs.
pub(crate) fn report(verb: &str, loaded: &[Loaded], options: Output) -> Result<()> {
    for image in loaded {
        if options.format == Some(Format::Json) {
            output::print(&jsonl::to_string(image)?)?;
        }
        if !options.quiet {
            note(&format!("{verb} {}", image.reference));
        }
    }
    Ok(())
}

/// A line on standard error. Where nobody reads it there is nobody to tell, and that is no failure.
pub(crate) fn note(line: &str) {
    drop(std::io::stderr().write_all(format!("{line}\n").as_bytes()));
}
