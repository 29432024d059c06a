//! `msb image list`, and what it shares with `inspect`.

use anyhow::{Context, Result};
use libmsb::cli::{error as cli_error, output, style};
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::images::{RefRecord, Store};
use serde::Serialize;

use crate::TOOL;
use crate::arguments::{Format, List};
use crate::document::{Config, Document};
use crate::load::note;
use crate::store::{layer, read_document};

/// An image as programs see it.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) reference: String,
    pub(crate) digest: Digest,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) architecture: Option<String>,
    pub(crate) os: Option<String>,
    pub(crate) layer_count: Option<usize>,
    pub(crate) created_at: String,
}

/// The documents of an image.
#[derive(Debug)]
pub(crate) struct Documents {
    pub(crate) manifest: Document,
    pub(crate) config_digest: Digest,
    pub(crate) config: Config,
}

impl Documents {
    pub(crate) fn read(store: &Store, manifest: &Digest) -> Result<Documents> {
        let document = Document::parse(&read_document(&store.manifest_path(manifest), manifest)?)?;
        let config_digest = document
            .config
            .as_ref()
            .context("the manifest has no configuration")?
            .digest;
        let config = Config::parse(&read_document(
            &store.config_path(&config_digest),
            &config_digest,
        )?)?;
        Ok(Documents {
            manifest: document,
            config_digest,
            config,
        })
    }
}

impl Row {
    /// A row; an image whose documents cannot be read has one too, with gaps.
    pub(crate) fn new(store: &Store, record: &RefRecord, documents: Option<&Documents>) -> Row {
        let diff_ids = documents.map(|documents| &documents.config.rootfs.diff_ids);
        let size = |diff_id: &Digest| layer(store, diff_id).map(|summary| summary.tar_bytes);
        Row {
            reference: record.reference.clone(),
            digest: record.manifest_digest,
            size_bytes: diff_ids.and_then(|ids| ids.iter().map(size).sum()),
            architecture: documents.map(|documents| documents.config.platform.architecture.clone()),
            os: documents.map(|documents| documents.config.platform.os.clone()),
            layer_count: diff_ids.map(Vec::len),
            created_at: utc(record.created_at),
        }
    }
}

/// As JSON has times: in UTC, with its offset in digits.
fn utc(moment: jiff::Timestamp) -> String {
    moment.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

pub(crate) fn run(home: &Home, args: List) -> Result<()> {
    let store = home.images();
    let records = store.records()?;
    if args.quiet {
        let names: Vec<&str> = records
            .iter()
            .map(|record| record.reference.as_str())
            .collect();
        return if names.is_empty() {
            Ok(())
        } else {
            Ok(output::print(&names.join("\n"))?)
        };
    }
    let mut rows = Vec::new();
    for record in &records {
        let documents = Documents::read(&store, &record.manifest_digest);
        if let Err(error) = &documents {
            let message = format!(
                "image '{}' is broken: {}",
                record.reference,
                cli_error::message(error)
            );
            cli_error::print_warning(TOOL, &message);
        }
        rows.push(Row::new(&store, record, documents.ok().as_ref()));
    }
    if args.format == Some(Format::Json) {
        return Ok(output::print_json(&rows)?);
    }
    if rows.is_empty() {
        note("No images. `msb image load` and `msb image import` bring some.");
        return Ok(());
    }
    print_table(&rows, &records)
}

fn print_table(rows: &[Row], records: &[RefRecord]) -> Result<()> {
    let mut table =
        style::Table::new(&["IMAGE", "DIGEST", "PLATFORM", ">LAYERS", ">SIZE", "CREATED"]);
    for (row, record) in rows.iter().zip(records) {
        let name = row
            .reference
            .parse::<Reference>()
            .map_or(row.reference.clone(), |reference| reference.familiar());
        let dash = || "-".to_owned();
        let platform = row
            .os
            .as_ref()
            .zip(row.architecture.as_ref())
            .map(|(os, machine)| format!("{os}/{machine}"));
        table.row([
            name,
            row.digest.short(),
            platform.unwrap_or_else(|| "broken".to_owned()),
            row.layer_count.map_or_else(dash, |count| count.to_string()),
            row.size_bytes.map_or_else(dash, size),
            style::local_time(&std::time::SystemTime::from(record.created_at)),
        ]);
    }
    Ok(table.print()?)
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 {
        format!("{mib:.1} MiB")
    } else {
        format!("{:.2} GiB", mib / 1024.0)
    }
}
