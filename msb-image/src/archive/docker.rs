//! docker-archive: `manifest.json` names the configuration, layers and references of each image.

use anyhow::{Context, Result, ensure};
use libmsb::cli::escape::escape;
use libmsb::state::image_json::{self, DocumentKind};
use serde::Deserialize;

use super::{ArchiveImage, ImageArchive, LayerSource};
use crate::document::{ImageConfig, ImageNames, digest_in_path};
use crate::limits::IMAGES_MAX;
use crate::stream::digest_of;

/// An image in `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ManifestItem {
    pub(super) config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl ManifestItem {
    /// Returns the names of the image.
    pub(super) fn tags(&self) -> impl Iterator<Item = &str> {
        self.repo_tags.iter().flatten().map(String::as_str)
    }
}

/// Reads and parses `manifest.json`.
pub(super) fn items(archive: &mut ImageArchive<'_>) -> Result<Vec<ManifestItem>> {
    let bytes = archive.document("manifest.json")?.context("'manifest.json' is missing")?;
    parse(&bytes)
}

/// Parses the bytes of a `manifest.json`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<ManifestItem>> {
    let items: Vec<ManifestItem> = image_json::parse(bytes, DocumentKind::DockerManifest)
        .context("cannot parse 'manifest.json'")?;
    ensure!(!items.is_empty(), "'manifest.json' names no image");
    ensure!(items.len() <= IMAGES_MAX, "the archive has more than {IMAGES_MAX} images");
    Ok(items)
}

pub(super) fn images(archive: &mut ImageArchive<'_>) -> Result<Vec<ArchiveImage>> {
    let items = items(archive)?;
    items.iter().map(|item| image(archive, item)).collect()
}

fn image(archive: &mut ImageArchive<'_>, item: &ManifestItem) -> Result<ArchiveImage> {
    let label = || format!("configuration '{}'", escape(&item.config));
    let config = archive
        .document(&item.config)?
        .with_context(|| format!("{} is missing from the archive", label()))?;
    if let Some(expected) = digest_in_path(&item.config) {
        let found = digest_of(&config);
        ensure!(found == expected, "{} has the digest {found}", label());
    }
    let parsed = ImageConfig::parse(&config).with_context(label)?;
    parsed.check_platform()?;
    let (layers, diff_ids) = (item.layers.as_deref().unwrap_or_default(), &parsed.rootfs.diff_ids);
    ensure!(
        layers.len() == diff_ids.len(),
        "'manifest.json' names {} layers, but {} names {}",
        layers.len(),
        label(),
        diff_ids.len()
    );
    let source = |(path, diff_id): (&String, &_)| LayerSource {
        path: path.clone(),
        diff_id: *diff_id,
        blob: None,
    };
    Ok(ArchiveImage {
        names: ImageNames::parse(item.tags())?,
        config,
        manifest: None,
        layers: layers.iter().zip(diff_ids).map(source).collect(),
    })
}
