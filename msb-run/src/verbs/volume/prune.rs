//! `msb volume prune`: removes the volumes that no sandbox mounts.

use std::io::{self, BufRead, IsTerminal};

use anyhow::Context;
use clap::Args;
use libmsb::cli::error::{Failure, print_note};
use libmsb::cli::output;
use libmsb::cli::style::bytes;
use libmsb::state::Home;
use libmsb::state::volumes::{Volume, VolumeKind};
use serde::Serialize;

use super::format::{TOOL, VolumeFormat};
use super::usage::used_bytes;
use crate::mounts::users;

#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    /// Do not ask for confirmation
    ///
    /// Without a terminal this option is required.
    #[arg(short, long, alias = "force", short_alias = 'f')]
    yes: bool,
    /// Print a JSON object
    ///
    /// It has `volumes`, an array of objects with `name` and `kind`, and `bytes_reclaimed`.
    #[arg(long, value_enum)]
    format: Option<VolumeFormat>,
    /// Print nothing
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
}

/// A volume that no sandbox mounts.
#[derive(Serialize)]
struct UnusedVolume {
    #[serde(skip)]
    volume: Volume,
    name: String,
    kind: VolumeKind,
    #[serde(skip)]
    bytes: u64,
}

#[derive(Serialize)]
struct PruneReport {
    volumes: Vec<UnusedVolume>,
    bytes_reclaimed: u64,
}

pub(super) fn run(home: &Home, args: &PruneArgs) -> anyhow::Result<()> {
    let found = unused(home)?;
    if !args.yes && !confirm(&found)? {
        return Ok(());
    }
    let mut volumes = Vec::new();
    for unused in found {
        let is_unused = || Ok(users(home, &unused.volume.name)?.is_empty());
        // A sandbox may have been created for it meanwhile.
        if unused.volume.remove_if(is_unused)? {
            volumes.push(unused);
        }
    }
    let bytes_reclaimed = total(&volumes);
    if args.format == Some(VolumeFormat::Json) {
        return Ok(output::print_json(&PruneReport { volumes, bytes_reclaimed })?);
    }
    if args.quiet {
        return Ok(());
    }
    for unused in &volumes {
        print_note(TOOL, &format!("removed the {} volume '{}'", unused.kind.name(), unused.name));
    }
    let summary = match volumes.as_slice() {
        [] => "nothing to remove".to_owned(),
        volumes => format!("removed {}", counted(volumes)),
    };
    print_note(TOOL, &summary);
    Ok(())
}

/// Returns the volumes that no sandbox mounts. Volumes that cannot be read are kept.
fn unused(home: &Home) -> anyhow::Result<Vec<UnusedVolume>> {
    let volumes = home.volumes();
    let mut unused = Vec::new();
    for entry in volumes.list()? {
        let Ok(record) = entry.record else { continue };
        let volume = volumes.named(&record.name);
        if volume.is_in_use()? || !users(home, &record.name)?.is_empty() {
            continue;
        }
        let bytes = used_bytes(&volume, record.kind);
        unused.push(UnusedVolume { volume, name: entry.name, kind: record.kind, bytes });
    }
    Ok(unused)
}

/// Lists the volumes and asks for confirmation.
fn confirm(found: &[UnusedVolume]) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage("cannot ask for confirmation without a terminal")
            .hint("to remove without confirmation, add --yes")
            .into());
    }
    if found.is_empty() {
        print_note(TOOL, "nothing to remove");
        return Ok(false);
    }
    for unused in found {
        eprintln!("  {} ({}, {})", unused.name, unused.kind.name(), bytes(unused.bytes));
    }
    eprintln!("This removes {}. Continue? [y/N]", counted(found));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    let yes = ["y", "yes"].contains(&answer.trim().to_lowercase().as_str());
    if !yes {
        print_note(TOOL, "nothing was removed");
    }
    Ok(yes)
}

fn counted(volumes: &[UnusedVolume]) -> String {
    let s = if volumes.len() == 1 { "" } else { "s" };
    format!("{} volume{s}, {} on the disk", volumes.len(), bytes(total(volumes)))
}

fn total(volumes: &[UnusedVolume]) -> u64 {
    volumes.iter().map(|unused| unused.bytes).sum()
}
