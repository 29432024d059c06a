//! `msb image load`: loads images from an archive.

use anyhow::{Context, Result};
use libmsb::cli::error::{self as cli_error, Failure};
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::images::Store;

use crate::archive::{self, ArchiveImage, ImageArchive};
use crate::args::Load;
use crate::document::{ImageNames, references};
use crate::input::ArchiveInput;
use crate::report::{StoredImage, report};
use crate::store::open::open_for_adding;
use crate::store::put::put_image;

pub(crate) fn run(home: &Home, args: Load) -> Result<()> {
    let tags = references(&args.tags)?;
    let name =
        args.input.as_ref().map_or("standard input".to_owned(), |path| path.display().to_string());
    let loaded = load(home, &args, tags).with_context(|| format!("cannot load '{name}'"))?;
    report(&loaded, args.output)
}

fn load(home: &Home, args: &Load, tags: Vec<Reference>) -> Result<Vec<StoredImage>> {
    let input = ArchiveInput::open(args.input.as_deref(), !args.output.quiet)?;
    let (store, _lock) = open_for_adding(home)?;
    let mut archive = ImageArchive::open(input, &store, args.keep_blobs)?;
    let mut images = archive::images(&mut archive)?;
    if let Some(first) = images.first_mut() {
        first.names.extend(ImageNames { references: tags, rejected: Vec::new() })?;
    }
    if let Some(image) = images.iter().find(|image| image.names.is_empty()) {
        return Err(no_name(image).into());
    }
    for (_, reason) in images.iter().flat_map(|image| &image.names.rejected) {
        cli_error::warn(&format!("the archive's name is ignored: {reason}"));
    }
    let mut loaded = Vec::new();
    for image in &images {
        loaded.extend(add(&store, &mut archive, image)?);
    }
    Ok(loaded)
}

/// Builds the error for an image without a usable name.
fn no_name(image: &ArchiveImage) -> Failure {
    let reason = match image.names.rejected.first() {
        Some((_, reason)) => format!("the image in the archive has no usable name: {reason}"),
        None => "the image in the archive has no name".to_owned(),
    };
    Failure::failed(reason).hint("choose one: msb image load --tag NAME")
}

/// Adds one image of an archive to the store, layers first and references last.
fn add(
    store: &Store,
    archive: &mut ImageArchive<'_>,
    image: &ArchiveImage,
) -> Result<Vec<StoredImage>> {
    let layers = archive.layers(&image.layers)?;
    put_image(store, image, &layers, &mut archive.new_layers)
}
