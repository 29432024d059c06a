//! OCI archives: `index.json` leads to manifests, perhaps through further indexes; blobs are named by their digest.
//!
//! Of an image for several platforms the one for this machine is taken. Notes about builds (attestations) are no images.

use anyhow::{Context, Result, ensure};
use libmsb::digest::Digest;
use libmsb::reference::Reference;

use super::{Archive, Image, LayerSource, blob_path, docker};
use crate::document::{Config, Descriptor, Document, Platform, digest_in_path, references};
use crate::limits::{IMAGES_MAX, INDEX_DEPTH_MAX};

/// Full name of an image, as containerd and BuildKit write it.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";
/// A tag, or with some tools a whole reference.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A manifest that was found.
#[derive(Debug)]
struct Found {
    references: Vec<Reference>,
    digest: Digest,
    bytes: Vec<u8>,
    document: Document,
    config_bytes: Vec<u8>,
    platform: Platform,
}

pub(super) fn images(archive: &mut Archive<'_>) -> Result<Vec<Image>> {
    let bytes = archive
        .document("index.json")?
        .context("'index.json' is missing")?;
    let index = Document::parse(&bytes).context("'index.json'")?;
    let mut found = Vec::new();
    let mut missing = None;
    for descriptor in index.manifests.context("'index.json' is no index")? {
        let references = references_of(&descriptor)?;
        collect(
            archive,
            &descriptor,
            &references,
            0,
            &mut found,
            &mut missing,
        )?;
    }
    let chosen = choose(found, missing)?;
    let has_tags = chosen.iter().any(|found| found.references.is_empty());
    let items = if has_tags && archive.has("manifest.json") {
        docker::items(archive)?
    } else {
        Vec::new()
    };
    chosen
        .into_iter()
        .map(|found| image(found, &items))
        .collect()
}

fn collect(
    archive: &mut Archive<'_>,
    descriptor: &Descriptor,
    references: &[Reference],
    depth: usize,
    found: &mut Vec<Found>,
    missing: &mut Option<Digest>,
) -> Result<()> {
    if descriptor.is_attestation() {
        return Ok(());
    }
    ensure!(
        depth <= INDEX_DEPTH_MAX,
        "indexes lie more than {INDEX_DEPTH_MAX} deep within each other"
    );
    ensure!(
        found.len() < IMAGES_MAX,
        "the archive has more than {IMAGES_MAX} images"
    );
    let Some(bytes) = archive.blob(&descriptor.digest)? else {
        // Tools keep an index whole and leave out the platforms that were not asked for.
        missing.get_or_insert(descriptor.digest);
        return Ok(());
    };
    let document =
        Document::parse(&bytes).with_context(|| format!("manifest {}", descriptor.digest))?;
    if let Some(manifests) = &document.manifests {
        for inner in manifests {
            collect(archive, inner, references, depth + 1, found, missing)?;
        }
        return Ok(());
    }
    let config = document
        .config
        .as_ref()
        .with_context(|| format!("manifest {} has no configuration", descriptor.digest))?;
    let Some(config_bytes) = archive.blob(&config.digest)? else {
        missing.get_or_insert(config.digest);
        return Ok(());
    };
    // What has no platform is something else than an image: a chart, a signature.
    let Ok(platform) = serde_json::from_slice::<Platform>(&config_bytes) else {
        return Ok(());
    };
    if platform == Platform::default() {
        return Ok(());
    }
    let references = references.to_vec();
    found.push(Found {
        references,
        digest: descriptor.digest,
        bytes,
        document,
        config_bytes,
        platform,
    });
    Ok(())
}

/// Those for this machine: of each name one, and all that have no name.
fn choose(found: Vec<Found>, missing: Option<Digest>) -> Result<Vec<Found>> {
    let host = Platform::host();
    let mut others: Vec<String> = Vec::new();
    let mut chosen: Vec<Found> = Vec::new();
    for item in found {
        if !item.platform.is_of_host() {
            others.push(item.platform.to_string());
            continue;
        }
        if let Some(same) = chosen.iter_mut().find(|same| same.digest == item.digest) {
            same.references.extend(item.references);
            same.references.dedup();
        } else if item.references.is_empty()
            || chosen
                .iter()
                .all(|other| other.references != item.references)
        {
            chosen.push(item);
        }
    }
    if let (true, Some(digest)) = (chosen.is_empty() && others.is_empty(), missing) {
        anyhow::bail!("blob {digest} is missing in the archive");
    }
    others.sort();
    others.dedup();
    let others = if others.is_empty() {
        "none".to_owned()
    } else {
        others.join(", ")
    };
    ensure!(
        !chosen.is_empty(),
        "the archive has no image for {host}; it has: {others}"
    );
    Ok(chosen)
}

fn image(found: Found, items: &[docker::Item]) -> Result<Image> {
    let label = || format!("manifest {}", found.digest);
    // Whoever runs the image reads it this way.
    serde_json::from_slice::<oci_spec::image::ImageManifest>(&found.bytes)
        .with_context(|| format!("cannot understand {}", label()))?;
    let config = Config::parse(&found.config_bytes).with_context(label)?;
    let layers = found.document.layers.clone().unwrap_or_default();
    let diff_ids = &config.rootfs.diff_ids;
    ensure!(
        layers.len() == diff_ids.len(),
        "{} names {} layers, and its configuration {}",
        label(),
        layers.len(),
        diff_ids.len()
    );
    let source = |(layer, diff_id): (Descriptor, &Digest)| LayerSource {
        path: blob_path(&layer.digest),
        diff_id: *diff_id,
        blob: Some(layer),
    };
    let mut references = found.references;
    if references.is_empty() {
        references = docker_tags(items, found.document.config.as_ref())?;
    }
    let layers = layers.into_iter().zip(diff_ids).map(source).collect();
    Ok(Image {
        references,
        config: found.config_bytes,
        manifest: Some(found.bytes),
        layers,
    })
}

/// The references that an index gives to what it names.
fn references_of(descriptor: &Descriptor) -> Result<Vec<Reference>> {
    if let Some(name) = descriptor.annotation(IMAGE_NAME) {
        return references([&name.to_owned()]);
    }
    match descriptor.annotation(REF_NAME) {
        // A tag alone names nothing.
        Some(name) if name.contains(['/', ':']) => references([&name.to_owned()]),
        _ => Ok(Vec::new()),
    }
}

/// docker writes both forms into one archive; the references may be in the other one only.
fn docker_tags(items: &[docker::Item], config: Option<&Descriptor>) -> Result<Vec<Reference>> {
    let same = items
        .iter()
        .filter(|item| digest_in_path(&item.config) == config.map(|config| config.digest));
    references(same.flat_map(|item| item.repo_tags.iter().flatten()))
}
