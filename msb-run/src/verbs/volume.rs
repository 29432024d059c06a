//! `msb volume`: named volumes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use libmsb::cli::error::{Failure, message};
use libmsb::cli::output;
use libmsb::cli::style::{Table, age, bytes, local_time};
use libmsb::state::Home;
use libmsb::state::mounts::Source;
use libmsb::state::volumes::{
    Entry, VOLUME_VERSION, Volume, VolumeKind, VolumeName, VolumeRecord, Volumes,
};
use serde::Serialize;

use super::selection::for_each;
use crate::engine::upper;
use crate::mounts::parse_size_mib;

const TOOL: &str = "msb-volume";

/// Size of a volume when nobody says another, in MiB; that of a sandbox's own disk. It is sparse.
const SIZE_MIB: u64 = 4096;

/// Named volumes: storage that outlives sandboxes
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    arg_required_else_help = true,
    after_help = "Example:\n  msb volume create pg --size 10G && msb run -v pg:/var/lib/postgresql postgres"
)]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a volume
    Create(CreateArgs),
    /// List volumes
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show all that is known of a volume
    Inspect(InspectArgs),
    /// Remove volumes, with what is in them
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// Its name
    name: VolumeName,
    /// How much fits, as 512M or 1.5G: nothing that a guest does takes more (default: 4G; a dir has no limit)
    #[arg(long, value_parser = parse_size_mib, value_name = "SIZE")]
    size: Option<u64>,
    /// How it is kept
    #[arg(long, value_enum, default_value = "disk")]
    kind: VolumeKind,
    /// Do not print its name
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// How to print them
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Names only, one a line
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// The volume
    name: VolumeName,
    /// How to print it
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(Debug, Args)]
struct RemoveArgs {
    /// The volumes
    #[arg(required = true, value_name = "NAME")]
    names: Vec<VolumeName>,
    /// Do not print their names
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// JSON
    Json,
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    kind: Option<VolumeKind>,
    quota_mib: Option<u64>,
    used_bytes: Option<u64>,
    in_use: Option<bool>,
    created_at: Option<jiff::Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    row: Row<'a>,
    /// Where its contents are on the host.
    path: String,
    /// Sandboxes that mount it.
    sandboxes: Vec<String>,
}

pub(crate) fn run(args: VolumeArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    match args.verb {
        Verb::Create(args) => create(&home, &args),
        Verb::List(args) => list(&home, &args),
        Verb::Inspect(args) => inspect(&home, &args),
        Verb::Remove(args) => remove(&home, &args),
    }
}

/// Makes a volume of that name, of the default kind and size, unless there is one.
pub(crate) fn ensure(home: &Home, name: &VolumeName) -> anyhow::Result<()> {
    let volumes = home.volumes();
    if volumes.named(name).dir.is_dir() {
        return Ok(());
    }
    match make(&volumes, name, VolumeKind::Disk, Some(SIZE_MIB)) {
        // Somebody else was faster.
        Err(_) if volumes.named(name).dir.is_dir() => Ok(()),
        made => made.map(drop),
    }
}

fn make(
    volumes: &Volumes,
    name: &VolumeName,
    kind: VolumeKind,
    size_mib: Option<u64>,
) -> anyhow::Result<Volume> {
    let record = VolumeRecord {
        version: VOLUME_VERSION,
        name: name.clone(),
        kind,
        size_mib,
        created_at: jiff::Timestamp::now(),
        other: serde_json::Map::new(),
    };
    volumes.create(&record, |file| {
        upper::format(file, size_mib.unwrap_or(SIZE_MIB))
            .with_context(|| format!("cannot make the disk of the volume '{name}'"))
    })
}

fn create(home: &Home, args: &CreateArgs) -> anyhow::Result<()> {
    let size_mib = match (args.kind, args.size) {
        (VolumeKind::Dir, Some(_)) => {
            return Err(Failure::usage("a volume of the kind dir has no size")
                .hint("only one of the kind disk can be held to a size")
                .into());
        }
        (VolumeKind::Dir, None) => None,
        (VolumeKind::Disk, Some(size)) if size < upper::SIZE_MIB_MIN => {
            return Err(Failure::usage(format!(
                "a volume cannot be smaller than {} MiB",
                upper::SIZE_MIB_MIN
            ))
            .into());
        }
        (VolumeKind::Disk, size) => Some(size.unwrap_or(SIZE_MIB)),
    };
    home.prepare()?;
    make(&home.volumes(), &args.name, args.kind, size_mib)?;
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
    let rows: Vec<Row<'_>> = entries.iter().map(|entry| row(&volumes, entry)).collect();
    if args.format == Some(Format::Json) {
        return Ok(output::print_json(&rows)?);
    }
    if rows.is_empty() {
        eprintln!("no volumes");
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "KIND", "SIZE", "USED", "CREATED"]);
    rows.iter().for_each(|row| table.row(cells(row)));
    Ok(table.print()?)
}

fn row<'a>(volumes: &Volumes, entry: &'a Entry) -> Row<'a> {
    let name = entry.name.as_str();
    match &entry.record {
        Ok(record) => {
            let volume = volumes.named(&record.name);
            Row {
                name,
                kind: Some(record.kind),
                quota_mib: record.size_mib,
                used_bytes: Some(used_bytes(&volume, record.kind)),
                in_use: volume.is_in_use().ok(),
                created_at: Some(record.created_at),
                error: None,
            }
        }
        Err(error) => Row {
            name,
            kind: None,
            quota_mib: None,
            used_bytes: None,
            in_use: None,
            created_at: None,
            error: Some(message(error)),
        },
    }
}

fn cells(row: &Row<'_>) -> [String; 5] {
    let name = row.name.to_owned();
    if let Some(error) = &row.error {
        return [
            name,
            error.clone(),
            String::new(),
            String::new(),
            String::new(),
        ];
    }
    let now = SystemTime::now();
    [
        name,
        row.kind
            .map(VolumeKind::word)
            .unwrap_or_default()
            .to_owned(),
        row.quota_mib.map_or("-".to_owned(), |mib| bytes(mib << 20)),
        row.used_bytes.map(bytes).unwrap_or_default(),
        row.created_at
            .map(|time| age(&SystemTime::from(time), now))
            .unwrap_or_default(),
    ]
}

fn inspect(home: &Home, args: &InspectArgs) -> anyhow::Result<()> {
    let volumes = home.volumes();
    let volume = volumes.find(&args.name)?;
    let entry = Entry {
        name: args.name.to_string(),
        record: Ok(volume.record()?),
    };
    let row = row(&volumes, &entry);
    let path = match row.kind {
        Some(VolumeKind::Dir) => volume.data(),
        _ => volume.disk(),
    };
    let document = Document {
        row,
        path: path.to_string_lossy().into_owned(),
        sandboxes: users(home, &args.name)?,
    };
    if args.format == Some(Format::Json) {
        return Ok(output::print_json(&document)?);
    }
    for (name, value) in described(&document) {
        output::print(&format!(
            "{name:<12} {}",
            libmsb::cli::escape::escape(&value)
        ))?;
    }
    Ok(())
}

fn described(document: &Document<'_>) -> Vec<(&'static str, String)> {
    let row = &document.row;
    let in_use = row.in_use.unwrap_or(false);
    let created = row
        .created_at
        .map(|time| local_time(&SystemTime::from(time)));
    let mut rows = vec![
        ("Name", row.name.to_owned()),
        (
            "Kind",
            row.kind
                .map(VolumeKind::word)
                .unwrap_or_default()
                .to_owned(),
        ),
        (
            "Size",
            row.quota_mib
                .map(|mib| bytes(mib << 20))
                .unwrap_or_default(),
        ),
        ("Used", row.used_bytes.map(bytes).unwrap_or_default()),
        ("In use", if in_use { "yes" } else { "no" }.to_owned()),
        ("Created", created.unwrap_or_default()),
        ("Path", document.path.clone()),
    ];
    rows.extend(
        document
            .sandboxes
            .iter()
            .map(|name| ("Sandbox", name.clone())),
    );
    rows.retain(|(_, value)| !value.is_empty());
    rows
}

fn remove(home: &Home, args: &RemoveArgs) -> anyhow::Result<()> {
    for_each(TOOL, &args.names, |name| {
        home.volumes().find(name)?.remove()?;
        if !args.quiet {
            output::print(name)?;
        }
        Ok(())
    })
}

/// The sandboxes whose specification names the volume. One that cannot be read is not among them.
fn users(home: &Home, name: &VolumeName) -> anyhow::Result<Vec<String>> {
    let entries = home.sandboxes().list()?;
    let mounts_it = |entry: &libmsb::state::sandboxes::Entry| {
        entry.seen.as_ref().is_ok_and(|seen| {
            let of = |source: &Source| matches!(source, Source::Volume { name: of } if of == name);
            seen.spec.mounts.iter().any(|mount| of(&mount.source))
        })
    };
    let users = entries.into_iter().filter(mounts_it);
    Ok(users.map(|entry| entry.name).collect())
}

/// What a volume takes on the host now.
fn used_bytes(volume: &Volume, kind: VolumeKind) -> u64 {
    match kind {
        VolumeKind::Disk => allocated(&volume.disk()),
        VolumeKind::Dir => tree(&volume.data()),
    }
}

fn allocated(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |file| file.blocks() * 512)
}

/// All that lies below a folder. What vanishes meanwhile counts nothing.
fn tree(folder: &Path) -> u64 {
    let mut open = vec![folder.to_owned()];
    let mut sum = 0;
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
            sum += allocated(&entry.path());
        }
    }
    sum
}
