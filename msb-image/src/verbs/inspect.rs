//! `msb image inspect`: prints the configuration and layers of an image.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use libmsb::cli::escape::escape;
use libmsb::cli::{output, style};
use libmsb::digest::Digest;
use libmsb::state::Home;
use libmsb::state::image_name::ImageName;
use libmsb::state::images::Store;
use serde::Serialize;

use crate::args::{Inspect, OutputFormat};
use crate::document::ProcessConfig;
use crate::image_row::{ImageRow, size};
use crate::store::find::{ImageDocuments, layer};

/// An image with its configuration and layers, as JSON.
#[derive(Debug, Serialize)]
struct ImageDetails {
    #[serde(flatten)]
    row: ImageRow,
    config: ConfigDetails,
    layers: Vec<LayerDetails>,
}

#[derive(Debug, Serialize)]
struct ConfigDetails {
    digest: Digest,
    env: Vec<String>,
    cmd: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    labels: BTreeMap<String, String>,
    stop_signal: Option<String>,
}

#[derive(Debug, Serialize)]
struct LayerDetails {
    diff_id: Digest,
    blob_digest: Digest,
    media_type: String,
    compressed_size_bytes: u64,
    /// Bytes of the layer's files on the disk.
    erofs_size_bytes: Option<u64>,
    position: usize,
}

pub(crate) fn run(home: &Home, args: Inspect) -> Result<()> {
    let name: ImageName = args.reference.parse()?;
    let store = home.images();
    let record = store.named(&name)?.into_iter().next().ok_or_else(|| name.not_found())?;
    let documents = ImageDocuments::read(&store, &record.manifest_digest)
        .with_context(|| format!("image '{}' is broken", name.familiar()))?;
    let details = ImageDetails {
        row: ImageRow::new(&store, &record, Some(&documents)),
        config: config(&documents),
        layers: layers(&store, &documents),
    };
    if args.format == Some(OutputFormat::Json) {
        return Ok(output::print_json(&details)?);
    }
    let used_at = store.last_used(&record);
    let [created, used] = [Some(record.created_at), used_at]
        .map(|time| time.map(|time| style::local_time(&std::time::SystemTime::from(time))));
    let text = text(&details, &created.unwrap_or_default(), &used.unwrap_or("-".to_owned()));
    Ok(output::print(text.trim_end())?)
}

fn config(documents: &ImageDocuments) -> ConfigDetails {
    let process: ProcessConfig = documents.config.config.clone().unwrap_or_default();
    let present = |text: Option<String>| text.filter(|text| !text.is_empty());
    ConfigDetails {
        digest: documents.config_digest,
        env: process.env.unwrap_or_default(),
        cmd: process.cmd,
        entrypoint: process.entrypoint,
        working_dir: present(process.working_dir),
        user: present(process.user),
        labels: process.labels.unwrap_or_default(),
        stop_signal: present(process.stop_signal),
    }
}

fn layers(store: &Store, documents: &ImageDocuments) -> Vec<LayerDetails> {
    let blobs = documents.manifest.layers.iter().flatten();
    let pairs = blobs.zip(&documents.config.rootfs.diff_ids).enumerate();
    pairs
        .map(|(position, (blob, diff_id))| LayerDetails {
            diff_id: *diff_id,
            blob_digest: blob.digest,
            media_type: blob.media_type.clone(),
            compressed_size_bytes: blob.size,
            erofs_size_bytes: layer(store, diff_id).map(|summary| summary.data_bytes),
            position,
        })
        .collect()
}

fn text(details: &ImageDetails, created: &str, used: &str) -> String {
    let config = &details.config;
    let words = |words: &Option<Vec<String>>| {
        words.as_ref().map_or("-".to_owned(), |words| format!("{words:?}"))
    };
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut lines = vec![
        ("Image", details.row.reference.clone()),
        ("Digest", details.row.digest.to_string()),
        ("Image ID", config.digest.to_string()),
        (
            "Platform",
            format!("{}/{}", or_dash(&details.row.os), or_dash(&details.row.architecture)),
        ),
        ("Size", details.row.size_bytes.map_or("-".to_owned(), size)),
        ("Created", created.to_owned()),
        ("Last used", used.to_owned()),
        ("Entrypoint", words(&config.entrypoint)),
        ("Command", words(&config.cmd)),
        ("Directory", or_dash(&config.working_dir)),
        ("User", or_dash(&config.user)),
    ];
    lines.extend(config.env.iter().map(|variable| ("Environment", variable.clone())));
    lines.extend(config.labels.iter().map(|(key, value)| ("Label", format!("{key}={value}"))));
    lines.extend(details.layers.iter().map(|layer| ("Layer", layer.diff_id.to_string())));
    lines.iter().map(|(name, value)| format!("{name:<12} {}\n", escape(value))).collect()
}
