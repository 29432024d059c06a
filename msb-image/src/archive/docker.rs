//! docker-archive: `manifest.json` names for each image its configuration, its layers and its references.

use anyhow::{Context, Result, ensure};
use libmsb::cli::escape::escape;
use serde::Deserialize;

use super::{Archive, Image, LayerSource};
use crate::document::{Config, digest_in_path, references};
use crate::limits::IMAGES_MAX;
use crate::stream::digest_of;

/// An image in `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Item {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// What `manifest.json` says.
pub(super) fn items(archive: &mut Archive<'_>) -> Result<Vec<Item>> {
    let bytes = archive
        .document("manifest.json")?
        .context("'manifest.json' is missing")?;
    parse(&bytes)
}

/// What the bytes of a `manifest.json` say.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<Item>> {
    let items: Vec<Item> =
        serde_json::from_slice(bytes).context("cannot understand 'manifest.json'")?;
    ensure!(!items.is_empty(), "'manifest.json' names no image");
    ensure!(
        items.len() <= IMAGES_MAX,
        "the archive has more than {IMAGES_MAX} images"
    );
    Ok(items)
}

pub(super) fn images(archive: &mut Archive<'_>) -> Result<Vec<Image>> {
    let items = items(archive)?;
    items.iter().map(|item| image(archive, item)).collect()
}

fn image(archive: &mut Archive<'_>, item: &Item) -> Result<Image> {
    let label = || format!("configuration '{}'", escape(&item.config));
    let config = archive
        .document(&item.config)?
        .with_context(|| format!("{} is missing in the archive", label()))?;
    if let Some(expected) = digest_in_path(&item.config) {
        let found = digest_of(&config);
        ensure!(found == expected, "{} has the digest {found}", label());
    }
    let parsed = Config::parse(&config).with_context(label)?;
    parsed.check_platform()?;
    let (layers, diff_ids) = (
        item.layers.as_deref().unwrap_or_default(),
        &parsed.rootfs.diff_ids,
    );
    ensure!(
        layers.len() == diff_ids.len(),
        "'manifest.json' names {} layers, and {} names {}",
        layers.len(),
        label(),
        diff_ids.len()
    );
    let source = |(path, diff_id): (&String, &_)| LayerSource {
        path: path.clone(),
        diff_id: *diff_id,
        blob: None,
    };
    Ok(Image {
        references: references(item.repo_tags.iter().flatten())?,
        config,
        manifest: None,
        layers: layers.iter().zip(diff_ids).map(source).collect(),
    })
}
