//! `msb volume`: manages named volumes.

use std::collections::BTreeMap;
use std::time::SystemTime;

use clap::{Args, Parser, Subcommand};
use libmsb::cli::args::parse_label;
use libmsb::cli::error::{Failure, message, print_remark};
use libmsb::cli::output;
use libmsb::cli::style::{Table, bytes, local_time, when};
use libmsb::state::Home;
use libmsb::state::volumes::{VolumeEntry, VolumeKind, VolumeName, Volumes};
use serde::Serialize;

use super::selection::for_each;
use crate::engine::upper;
use crate::mounts::{create_volume, parse_size_mib, users};

/// Output of the commands.
mod format;
/// `msb volume prune`.
mod prune;
/// Disk usage of volumes.
mod usage;

use self::format::{TOOL, VolumeFormat};
use self::prune::PruneArgs;
use self::usage::used_bytes;

/// Default size of a disk in MiB, that of a sandbox's own disk. The disk is a sparse file.
const SIZE_MIB: u64 = 4096;

/// Create, list, inspect, remove and prune named volumes
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    arg_required_else_help = true,
    after_help = "Example:\n  msb volume create pg --size 10G && msb run -v pg:/var/lib/postgresql postgres"
)]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    verb: VolumeVerb,
}

#[derive(Debug, Subcommand)]
enum VolumeVerb {
    /// Create a volume and print its name
    ///
    /// The kind is `dir`, or with `--size` it is `disk`. A volume of the kind `dir` is also created
    /// when a sandbox mounts a name that does not exist.
    Create(CreateArgs),
    /// List the volumes
    ///
    /// The columns are the name, the kind, the size, the disk space that it takes on the host, and the
    /// age.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show a volume and the sandboxes that mount it
    Inspect(InspectArgs),
    /// Remove volumes and their contents
    ///
    /// A volume that a running sandbox uses is not removed. A stopped sandbox that mounts a removed
    /// volume fails to start.
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
    /// Remove all volumes that no sandbox mounts, with their contents
    ///
    /// Stopped sandboxes count as well. The volumes are listed, and removed after a confirmation.
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// Name of the volume
    ///
    /// A name is made of letters, digits, `.`, `_` and `-`, starts with a letter or digit, and has at
    /// most 128 bytes.
    name: VolumeName,
    /// Create a disk of this size, such as 512M or 10G
    ///
    /// A number without a unit is in MiB. The minimum is 24 MiB. A volume of the kind `dir` has no
    /// limit.
    #[arg(long, value_parser = parse_size_mib, value_name = "SIZE")]
    size: Option<u64>,
    /// Set the kind of storage [default: dir, or disk with --size]
    ///
    /// The default size of a disk is 4 GiB.
    #[arg(long, value_enum)]
    kind: Option<VolumeKind>,
    /// Attach a label
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// Do not print the name
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Print an array of JSON objects
    ///
    /// Each object has `name`, `kind`, `quota_mib` (`null` for a volume of the kind `dir`),
    /// `used_bytes`, `in_use`, `created_at`, `labels`, and `error` for a volume that cannot be read.
    #[arg(long, value_enum)]
    format: Option<VolumeFormat>,
    /// Print local times instead of ages
    #[arg(long)]
    absolute: bool,
    /// Print names only, one per line
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Name of the volume
    name: VolumeName,
    /// Print a JSON object
    ///
    /// It has the fields of `msb volume list`, and `path` and `sandboxes`.
    #[arg(short, long, value_enum)]
    format: Option<VolumeFormat>,
}

#[derive(Debug, Args)]
struct RemoveArgs {
    /// Names of the volumes
    #[arg(required = true, value_name = "NAME")]
    names: Vec<VolumeName>,
    /// Do not print the names
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct VolumeRow<'a> {
    name: &'a str,
    kind: Option<VolumeKind>,
    quota_mib: Option<u64>,
    used_bytes: Option<u64>,
    in_use: Option<bool>,
    #[serde(with = "libmsb::time::optional")]
    created_at: Option<jiff::Timestamp>,
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct VolumeDocument<'a> {
    #[serde(flatten)]
    row: VolumeRow<'a>,
    /// Path of the contents on the host.
    path: String,
    /// Sandboxes that mount the volume.
    sandboxes: Vec<String>,
}

pub(crate) fn run(args: VolumeArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    match args.verb {
        VolumeVerb::Create(args) => create(&home, &args),
        VolumeVerb::List(args) => list(&home, &args),
        VolumeVerb::Inspect(args) => inspect(&home, &args),
        VolumeVerb::Remove(args) => remove(&home, &args),
        VolumeVerb::Prune(args) => prune::run(&home, &args),
    }
}

fn create(home: &Home, args: &CreateArgs) -> anyhow::Result<()> {
    let default_kind = if args.size.is_some() { VolumeKind::Disk } else { VolumeKind::Dir };
    let kind = args.kind.unwrap_or(default_kind);
    let size_mib = match (kind, args.size) {
        (VolumeKind::Dir, Some(_)) => {
            return Err(Failure::usage("a volume of the kind dir cannot have a size")
                .hint("omit --size, or omit --kind for a disk")
                .into());
        }
        (VolumeKind::Dir, None) => None,
        (VolumeKind::Disk, Some(size)) if size < upper::SIZE_MIB_MIN => {
            return Err(Failure::usage(format!(
                "the size of a volume must be at least {} MiB",
                upper::SIZE_MIB_MIN
            ))
            .into());
        }
        (VolumeKind::Disk, size) => Some(size.unwrap_or(SIZE_MIB)),
    };
    home.prepare()?;
    let labels = args.label.iter().cloned().collect();
    create_volume(&home.volumes(), &args.name, (kind, size_mib), labels)?;
    if !args.quiet {
        output::print(&args.name)?;
    }
    Ok(())
}

fn list(home: &Home, args: &ListArgs) -> anyhow::Result<()> {
    let volumes = home.volumes();
    let entries = volumes.list()?;
    if args.quiet {
        for entry in &entries {
            output::print(&entry.name)?;
        }
        return Ok(());
    }
    let rows: Vec<VolumeRow<'_>> = entries.iter().map(|entry| row(&volumes, entry)).collect();
    if args.format == Some(VolumeFormat::Json) {
        return Ok(output::print_json(&rows)?);
    }
    if rows.is_empty() {
        print_remark(TOOL, "no volumes");
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "KIND", "SIZE", "USED", "CREATED"]);
    rows.iter().for_each(|row| table.row(cells(row, args.absolute)));
    Ok(table.print()?)
}

fn row<'a>(volumes: &Volumes, entry: &'a VolumeEntry) -> VolumeRow<'a> {
    let name = entry.name.as_str();
    match &entry.record {
        Ok(record) => {
            let volume = volumes.named(&record.name);
            VolumeRow {
                name,
                kind: Some(record.kind),
                quota_mib: record.size_mib,
                used_bytes: Some(used_bytes(&volume, record.kind)),
                in_use: volume.is_in_use().ok(),
                created_at: Some(record.created_at),
                labels: record.labels.clone(),
                error: None,
            }
        }
        Err(error) => VolumeRow {
            name,
            kind: None,
            quota_mib: None,
            used_bytes: None,
            in_use: None,
            created_at: None,
            labels: BTreeMap::new(),
            error: Some(message(error)),
        },
    }
}

fn cells(row: &VolumeRow<'_>, absolute: bool) -> [String; 5] {
    let name = row.name.to_owned();
    if let Some(error) = &row.error {
        return [name, error.clone(), String::new(), String::new(), String::new()];
    }
    [
        name,
        row.kind.map(VolumeKind::name).unwrap_or_default().to_owned(),
        row.quota_mib.map_or("-".to_owned(), |mib| bytes(mib << 20)),
        row.used_bytes.map(bytes).unwrap_or_default(),
        row.created_at.map(|time| when(time, absolute)).unwrap_or_default(),
    ]
}

fn inspect(home: &Home, args: &InspectArgs) -> anyhow::Result<()> {
    let volumes = home.volumes();
    let volume = volumes.find(&args.name)?;
    let entry = VolumeEntry { name: args.name.to_string(), record: Ok(volume.record()?) };
    let row = row(&volumes, &entry);
    let path = match row.kind {
        Some(VolumeKind::Dir) => volume.data(),
        _ => volume.disk(),
    };
    let document = VolumeDocument {
        row,
        path: path.to_string_lossy().into_owned(),
        sandboxes: users(home, &args.name)?,
    };
    if args.format == Some(VolumeFormat::Json) {
        return Ok(output::print_json(&document)?);
    }
    for (name, value) in document_rows(&document) {
        output::print(&format!("{name:<12} {}", libmsb::cli::escape::escape(&value)))?;
    }
    Ok(())
}

fn document_rows(document: &VolumeDocument<'_>) -> Vec<(&'static str, String)> {
    let row = &document.row;
    let in_use = row.in_use.unwrap_or(false);
    let created = row.created_at.map(|time| local_time(&SystemTime::from(time)));
    let mut rows = vec![
        ("Name", row.name.to_owned()),
        ("Kind", row.kind.map(VolumeKind::name).unwrap_or_default().to_owned()),
        ("Size", row.quota_mib.map(|mib| bytes(mib << 20)).unwrap_or_default()),
        ("Used", row.used_bytes.map(bytes).unwrap_or_default()),
        ("In use", if in_use { "yes" } else { "no" }.to_owned()),
        ("Created", created.unwrap_or_default()),
        ("Path", document.path.clone()),
    ];
    rows.extend(row.labels.iter().map(|(key, value)| ("Label", format!("{key}={value}"))));
    rows.extend(document.sandboxes.iter().map(|name| ("Sandbox", name.clone())));
    rows.retain(|(_, value)| !value.is_empty());
    rows
}

fn remove(home: &Home, args: &RemoveArgs) -> anyhow::Result<()> {
    for_each(TOOL, &args.names, |name| {
        home.volumes().find(name)?.remove()?;
        Ok((!args.quiet).then(|| name.to_string()))
    })
}
