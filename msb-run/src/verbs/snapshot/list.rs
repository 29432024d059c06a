//! `msb snapshot list`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use clap::Args;
use libmsb::cli::error::{message, print_remark, print_warning};
use libmsb::cli::escape::escape;
use libmsb::cli::output;
use libmsb::cli::style::{Table, bytes, local_time, when};
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::snapshots::Snapshot;
use serde::Serialize;

use super::format::{SnapshotFormat, TOOL};
use crate::snapshot::digest_of;

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print an array of JSON objects
    ///
    /// Each object has `name`, `digest`, `image_ref`, `parent_digest`, `format`, `size_bytes`,
    /// `used_bytes` (on the host, blocks that it shares with other files included), `labels`,
    /// `created_at`, `artifact_path` and, for a snapshot with memory, `memory_bytes`, the part of
    /// `used_bytes` that its memory takes.
    #[arg(long, value_enum)]
    format: Option<SnapshotFormat>,
    /// Print local times instead of ages
    #[arg(long)]
    absolute: bool,
    /// Print digests only, one per line
    #[arg(short, long)]
    quiet: bool,
}

/// A snapshot as JSON. The fields of microsandbox are there with their names.
#[derive(Debug, Serialize)]
pub(super) struct SnapshotRow {
    pub(super) name: String,
    pub(super) digest: Digest,
    pub(super) image_ref: String,
    pub(super) parent_digest: Option<Digest>,
    pub(super) format: String,
    pub(super) size_bytes: u64,
    pub(super) used_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory_bytes: Option<u64>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) created_at: String,
    pub(super) artifact_path: String,
}

impl SnapshotRow {
    pub(super) fn of(name: &str, snapshot: &Snapshot) -> anyhow::Result<SnapshotRow> {
        let manifest = &snapshot.manifest;
        let used = std::fs::symlink_metadata(snapshot.disk());
        let memory_bytes = snapshot
            .memory()
            .map(|path| std::fs::symlink_metadata(path).map_or(0, |file| file.blocks() * 512));
        let labels = manifest.user_labels().map(|(key, value)| (key.clone(), value.clone()));
        Ok(SnapshotRow {
            name: name.to_owned(),
            digest: digest_of(manifest)?,
            image_ref: manifest.image.reference.clone(),
            parent_digest: manifest.parent,
            format: manifest.format.clone(),
            size_bytes: manifest.upper.size_bytes,
            used_bytes: used.map_or(0, |file| file.blocks() * 512) + memory_bytes.unwrap_or(0),
            memory_bytes,
            labels: labels.collect(),
            created_at: manifest.created_at.clone(),
            artifact_path: snapshot.dir.to_string_lossy().into_owned(),
        })
    }
}

/// Returns the reference of an image as people type it.
pub(super) fn familiar(reference: &str) -> String {
    let parsed: Result<Reference, _> = reference.parse();
    parsed.map_or_else(|_| escape(reference).into_owned(), |parsed| parsed.familiar())
}

/// Returns the time of a snapshot, in the local time zone.
pub(super) fn shown_time(snapshot: &Snapshot) -> String {
    let time = snapshot.manifest.created();
    time.map(|time| local_time(&SystemTime::from(time))).unwrap_or_default()
}

/// Returns the age of a snapshot, or its time in the local time zone.
fn shown_age(snapshot: &Snapshot, absolute: bool) -> String {
    snapshot.manifest.created().map(|time| when(time, absolute)).unwrap_or_default()
}

pub(super) fn run(home: &Home, args: &ListArgs) -> anyhow::Result<()> {
    let mut snapshots: Vec<(String, Snapshot)> = Vec::new();
    for entry in home.snapshots().list()? {
        match entry.snapshot {
            Ok(snapshot) => snapshots.push((entry.name, snapshot)),
            Err(error) => print_warning(TOOL, &message(&error)),
        }
    }
    snapshots.sort_by_key(|(_, snapshot)| std::cmp::Reverse(snapshot.manifest.created().ok()));
    let rows: anyhow::Result<Vec<SnapshotRow>> =
        snapshots.iter().map(|(name, snapshot)| SnapshotRow::of(name, snapshot)).collect();
    let rows = rows?;
    if args.quiet {
        for row in &rows {
            output::print(&row.digest)?;
        }
        return Ok(());
    }
    if args.format == Some(SnapshotFormat::Json) {
        return Ok(output::print_json(&rows)?);
    }
    if rows.is_empty() {
        print_remark(TOOL, "no snapshots");
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "IMAGE", ">SIZE", ">USED", "CREATED", "DIGEST"]);
    for (row, (_, snapshot)) in rows.iter().zip(&snapshots) {
        table.row([
            escape(&row.name).into_owned(),
            familiar(&row.image_ref),
            bytes(row.size_bytes),
            bytes(row.used_bytes),
            shown_age(snapshot, args.absolute),
            row.digest.short(),
        ]);
    }
    Ok(table.print()?)
}
