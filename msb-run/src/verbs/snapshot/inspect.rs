//! `msb snapshot inspect` and `verify`.

use anyhow::Context;
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use libmsb::cli::error::{Code, Failure, message};
use libmsb::cli::escape::escape;
use libmsb::cli::output;
use libmsb::cli::style::bytes;
use libmsb::digest::Digest;
use libmsb::state::Home;
use libmsb::state::snapshot_manifest::DiskIntegrity;
use libmsb::state::snapshots::Snapshot;
use serde::Serialize;

use super::format::SnapshotFormat;
use super::list::{SnapshotRow, familiar, shown_time};
use crate::boot_state::BootState;
use crate::snapshot::data_digest::{self, Verification};
use crate::snapshot::digest_of;
use crate::snapshot::reference::{SnapshotArg, parse_snapshot};
use crate::snapshot::saved_memory::{open_memory, verify_memory};

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// Snapshot: a name, a path that contains `/`, or a digest
    #[arg(value_parser = OsStringValueParser::new().try_map(parse_snapshot))]
    snapshot: SnapshotArg,
    /// Compare the disk with its recorded digest
    #[arg(long)]
    verify: bool,
    /// Print a JSON object
    ///
    /// It has the fields of `msb snapshot list`, and `image_manifest_digest`, `fstype`,
    /// `source_sandbox`, `integrity` and, with `--verify`, `verification`.
    #[arg(long, value_enum)]
    format: Option<SnapshotFormat>,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Snapshot: a name, a path that contains `/`, or a digest
    #[arg(value_parser = OsStringValueParser::new().try_map(parse_snapshot))]
    snapshot: SnapshotArg,
}

#[derive(Debug, Serialize)]
struct SnapshotDocument {
    #[serde(flatten)]
    row: SnapshotRow,
    image_manifest_digest: Digest,
    fstype: String,
    source_sandbox: Option<String>,
    integrity: Option<DiskIntegrity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verification: Option<&'static str>,
}

pub(super) fn inspect(home: &Home, args: &InspectArgs) -> anyhow::Result<()> {
    let snapshot = args.snapshot.open(home)?;
    let verification = args.verify.then(|| check(&snapshot)).transpose()?;
    if args.format == Some(SnapshotFormat::Json) {
        return print_document(&snapshot, verification.as_ref());
    }
    let manifest = &snapshot.manifest;
    let parent = manifest.parent.map_or_else(|| "-".to_owned(), |parent| parent.to_string());
    let labels: Vec<String> =
        manifest.user_labels().map(|(key, value)| format!("{key}={value}")).collect();
    let mut rows = vec![
        ("Digest", digest_of(manifest)?.to_string()),
        ("Path", snapshot.dir.to_string_lossy().into_owned()),
        ("Image", familiar(&manifest.image.reference)),
        ("Image Manifest", manifest.image.manifest_digest.to_string()),
        ("Format", manifest.format.clone()),
        ("Filesystem", manifest.fstype.clone()),
        ("Parent", parent),
        ("Created", shown_time(&snapshot)),
        ("Upper File", manifest.upper.file.clone()),
        ("Upper Size", bytes(manifest.upper.size_bytes)),
        ("Integrity", integrity_text(data_digest::recorded(manifest).as_ref())),
    ];
    rows.extend(memory_text(&snapshot).map(|text| ("Memory", text)));
    rows.extend(verification.as_ref().map(|found| ("Verification", verification_text(found))));
    rows.extend(manifest.source_sandbox.clone().map(|name| ("Source Sandbox", name)));
    if !labels.is_empty() {
        rows.push(("Labels", labels.join(", ")));
    }
    print_rows(&rows)
}

fn print_document(snapshot: &Snapshot, verification: Option<&Verification>) -> anyhow::Result<()> {
    let manifest = &snapshot.manifest;
    Ok(output::print_json(&SnapshotDocument {
        row: SnapshotRow::of(&snapshot.name, snapshot)?,
        image_manifest_digest: manifest.image.manifest_digest,
        fstype: manifest.fstype.clone(),
        source_sandbox: manifest.source_sandbox.clone(),
        integrity: data_digest::recorded(manifest),
        verification: verification.map(|found| match found {
            Verification::NotRecorded => "not_recorded",
            Verification::Unsupported(_) => "unsupported",
            Verification::Verified(_) => "verified",
        }),
    })?)
}

pub(super) fn verify(home: &Home, args: &VerifyArgs) -> anyhow::Result<()> {
    let snapshot = args.snapshot.open(home)?;
    let verification = check(&snapshot)?;
    print_rows(&[
        ("Digest", digest_of(&snapshot.manifest)?.to_string()),
        ("Path", snapshot.dir.to_string_lossy().into_owned()),
        ("Verification", verification_text(&verification)),
    ])
}

/// Describes the memory of a snapshot that has one.
fn memory_text(snapshot: &Snapshot) -> Option<String> {
    let path = snapshot.memory()?;
    Some(match BootState::open_saved(&path) {
        Ok(Some(state)) => {
            let guest = state.header.guest.unwrap_or_default();
            let (memory, cpus) = (bytes(state.header.memory_bytes), guest.cpus);
            let used = std::fs::metadata(&path).map_or(0, |file| file.len());
            let net = if guest.net { "with a network" } else { "without a network" };
            format!("{memory} of a guest with {cpus} CPU(s), {net}; {} in the file", bytes(used))
        }
        Ok(None) => "missing (use --cold, or import it with --trust-memory)".to_owned(),
        Err(error) => format!("damaged: {}", message(&error)),
    })
}

/// Compares the disk with its digest, and the memory with its checksums.
fn check(snapshot: &Snapshot) -> anyhow::Result<Verification> {
    let is_missing = snapshot.memory().is_some_and(|path| !path.exists());
    if !is_missing && let Some(state) = open_memory(snapshot)? {
        verify_memory(snapshot, &state)?;
    }
    data_digest::verify(&snapshot.manifest, &snapshot.open_disk()?).with_context(|| {
        Failure::failed(format!("the snapshot '{}' is damaged", escape(&snapshot.name)))
            .code(Code::SnapshotIntegrity)
    })
}

fn integrity_text(integrity: Option<&DiskIntegrity>) -> String {
    integrity.map_or_else(
        || "not recorded".to_owned(),
        |integrity| format!("{} {}", integrity.algorithm, integrity.digest),
    )
}

fn verification_text(verification: &Verification) -> String {
    match verification {
        Verification::NotRecorded => "not recorded (metadata checks only)".to_owned(),
        Verification::Unsupported(integrity) => {
            format!("not checked ({} depends on the layout of the file)", integrity.algorithm)
        }
        Verification::Verified(integrity) => {
            format!("verified ({} {})", integrity.algorithm, integrity.digest)
        }
    }
}

fn print_rows(rows: &[(&str, String)]) -> anyhow::Result<()> {
    for (name, value) in rows {
        output::print(&format!("{:<15} {}", format!("{name}:"), escape(value)))?;
    }
    Ok(())
}
