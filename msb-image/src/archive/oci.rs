//! OCI archives: `index.json` leads to manifests, possibly through nested indexes. Blobs are named
//! by digest.
//!
//! Of a multi-platform image the one for the host is used. Attestations (build metadata) are not
//! images.

use anyhow::{Context, Result, ensure};
use libmsb::digest::Digest;
use libmsb::state::images;
use serde::Deserialize;

use super::{ArchiveImage, ImageArchive, LayerSource, blob_path, docker};
use crate::document::{
    Descriptor, ImageConfig, ImageNames, ManifestDocument, Platform, digest_in_path,
};
use crate::limits::{IMAGES_MAX, INDEX_DEPTH_MAX};

/// Full name of an image, as containerd and BuildKit write it.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";
/// A tag, or with some tools a whole reference.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A manifest with its configuration and platform.
#[derive(Debug)]
struct OciImage {
    names: ImageNames,
    digest: Digest,
    bytes: Vec<u8>,
    document: ManifestDocument,
    config_bytes: Vec<u8>,
    platform: Platform,
}

pub(super) fn images(archive: &mut ImageArchive<'_>) -> Result<Vec<ArchiveImage>> {
    let bytes = archive.document("index.json")?.context("'index.json' is missing")?;
    let index = ManifestDocument::parse(&bytes).context("'index.json'")?;
    let mut found = Vec::new();
    let mut missing = None;
    for descriptor in index.manifests.context("'index.json' is not an index")? {
        let names = names_of(&descriptor)?;
        collect(archive, &descriptor, &names, 0, &mut found, &mut missing)?;
    }
    let chosen = choose(found, missing)?;
    let is_unnamed = chosen.iter().any(|found| found.names.is_empty());
    let items = if is_unnamed && archive.has("manifest.json") {
        docker::items(archive)?
    } else {
        Vec::new()
    };
    chosen.into_iter().map(|found| image(found, &items)).collect()
}

fn collect(
    archive: &mut ImageArchive<'_>,
    descriptor: &Descriptor,
    names: &ImageNames,
    depth: usize,
    found: &mut Vec<OciImage>,
    missing: &mut Option<Digest>,
) -> Result<()> {
    if descriptor.is_attestation() {
        return Ok(());
    }
    ensure!(depth <= INDEX_DEPTH_MAX, "indexes are nested more than {INDEX_DEPTH_MAX} deep");
    ensure!(found.len() < IMAGES_MAX, "the archive has more than {IMAGES_MAX} images");
    let Some(bytes) = archive.blob(&descriptor.digest)? else {
        // Tools keep an index complete and leave out the platforms that were not requested.
        missing.get_or_insert(descriptor.digest);
        return Ok(());
    };
    let document = ManifestDocument::parse(&bytes)
        .with_context(|| format!("manifest {}", descriptor.digest))?;
    if let Some(manifests) = &document.manifests {
        for inner in manifests {
            collect(archive, inner, names, depth + 1, found, missing)?;
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
    // A document without a platform is not an image but, for example, a chart or a signature.
    let Ok(platform) = serde_json::from_slice::<ConfigPlatform>(&config_bytes) else {
        return Ok(());
    };
    let platform = platform.into_platform();
    if platform == Platform::default() {
        return Ok(());
    }
    found.push(OciImage {
        names: names.clone(),
        digest: descriptor.digest,
        bytes,
        document,
        config_bytes,
        platform,
    });
    Ok(())
}

/// Chooses the images for the host: one for each name, and all without a name.
fn choose(found: Vec<OciImage>, missing: Option<Digest>) -> Result<Vec<OciImage>> {
    let host = Platform::host();
    let mut others: Vec<String> = Vec::new();
    let mut chosen: Vec<OciImage> = Vec::new();
    for item in found {
        if !item.platform.is_of_host() {
            others.push(item.platform.to_string());
            continue;
        }
        if let Some(same) = chosen.iter_mut().find(|same| same.digest == item.digest) {
            same.names.extend(item.names)?;
        } else if item.names == ImageNames::default()
            || chosen.iter().all(|other| other.names != item.names)
        {
            chosen.push(item);
        }
    }
    if let (true, Some(digest)) = (chosen.is_empty() && others.is_empty(), missing) {
        anyhow::bail!("blob {digest} is missing from the archive");
    }
    others.sort();
    others.dedup();
    let others = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
    ensure!(!chosen.is_empty(), "the archive has no image for {host}; it has: {others}");
    Ok(chosen)
}

fn image(found: OciImage, items: &[docker::ManifestItem]) -> Result<ArchiveImage> {
    let label = || format!("manifest {}", found.digest);
    images::check_manifest(&found.bytes).with_context(label)?;
    let config = ImageConfig::parse(&found.config_bytes).with_context(label)?;
    let layers = found.document.layers.clone().unwrap_or_default();
    let diff_ids = &config.rootfs.diff_ids;
    ensure!(
        layers.len() == diff_ids.len(),
        "{} names {} layers, but its configuration {}",
        label(),
        layers.len(),
        diff_ids.len()
    );
    let source = |(layer, diff_id): (Descriptor, &Digest)| LayerSource {
        path: blob_path(&layer.digest),
        diff_id: *diff_id,
        blob: Some(layer),
    };
    let mut names = found.names;
    if names.is_empty() {
        names.extend(docker_tags(items, found.document.config.as_ref())?)?;
    }
    let layers = layers.into_iter().zip(diff_ids).map(source).collect();
    Ok(ArchiveImage { names, config: found.config_bytes, manifest: Some(found.bytes), layers })
}

/// The platform in a configuration of any kind: fields may be missing or null.
#[derive(Deserialize)]
struct ConfigPlatform {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
}

impl ConfigPlatform {
    fn into_platform(self) -> Platform {
        Platform {
            architecture: self.architecture.unwrap_or_default(),
            os: self.os.unwrap_or_default(),
            variant: self.variant,
        }
    }
}

/// Returns the names that an index gives to a manifest.
fn names_of(descriptor: &Descriptor) -> Result<ImageNames> {
    let mut names = ImageNames::parse(descriptor.annotation(IMAGE_NAME))?;
    if names.is_empty() {
        // A tag alone is not a reference.
        let reference = descriptor.annotation(REF_NAME).filter(|name| name.contains(['/', ':']));
        names.extend(ImageNames::parse(reference)?)?;
    }
    Ok(names)
}

/// Returns the tags in `manifest.json`. docker writes both formats into one archive, and the
/// references may be only there.
fn docker_tags(items: &[docker::ManifestItem], config: Option<&Descriptor>) -> Result<ImageNames> {
    let same = items
        .iter()
        .filter(|item| digest_in_path(&item.config) == config.map(|config| config.digest));
    ImageNames::parse(same.flat_map(docker::ManifestItem::tags))
}
