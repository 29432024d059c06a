//! `msb snapshot remove` and `reindex`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use libmsb::cli::error::{Failure, message, print_warning};
use libmsb::cli::output;
use libmsb::state::Home;
use libmsb::state::snapshots::Snapshots;

use super::format::TOOL;
use crate::snapshot::digest_of;
use crate::snapshot::reference::{SnapshotArg, children, parse_snapshot};
use crate::verbs::selection::for_each;

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// Snapshots: names, paths that contain `/`, or digests
    #[arg(
        required = true,
        value_name = "SNAPSHOT",
        value_parser = OsStringValueParser::new().try_map(parse_snapshot)
    )]
    snapshots: Vec<SnapshotArg>,
    /// Remove a snapshot even if it is the parent of others, or damaged
    ///
    /// The others stay complete.
    #[arg(short, long)]
    force: bool,
    /// Do not print the names
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct ReindexArgs {
    /// Directory to search [default: the directory of snapshots]
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(super) fn remove(home: &Home, args: &RemoveArgs) -> anyhow::Result<()> {
    // Parents may go together with their children, in any order.
    let going: Vec<String> =
        args.snapshots.iter().filter_map(|typed| Some(typed.open(home).ok()?.name)).collect();
    for_each(TOOL, &args.snapshots, |typed| {
        remove_one(home, typed, args.force, &going)?;
        Ok((!args.quiet).then(|| typed.to_string()))
    })
}

fn remove_one(
    home: &Home,
    typed: &SnapshotArg,
    force: bool,
    going: &[String],
) -> anyhow::Result<()> {
    let snapshots = home.snapshots();
    let snapshot = match (typed.open(home), typed) {
        (Ok(snapshot), _) => snapshot,
        (Err(_), SnapshotArg::Name(name)) if force && snapshots.path(name).is_dir() => {
            return snapshots.remove_damaged(name);
        }
        (Err(error), _) => return Err(error),
    };
    let entries = snapshots.list()?;
    let children = children(&entries, digest_of(&snapshot.manifest)?);
    let child = children.iter().find(|child| !going.iter().any(|name| name == *child));
    if !force && let Some(child) = child {
        let message = format!("the snapshot '{typed}' is the parent of '{child}'");
        return Err(Failure::wrong_state(message)
            .hint(format!("remove it anyway: msb snapshot remove --force {typed}"))
            .into());
    }
    snapshots.remove(&snapshot)
}

pub(super) fn reindex(home: &Home, args: &ReindexArgs) -> anyhow::Result<()> {
    let own = home.snapshots();
    own.sweep();
    let directory = match &args.directory {
        None => own.root().to_owned(),
        Some(directory) => directory.canonicalize().with_context(|| {
            Failure::not_found(format!("cannot open '{}'", directory.display()))
        })?,
    };
    let mut count = 0;
    for entry in Snapshots::at(directory.clone()).list_valid()? {
        match entry.snapshot {
            Ok(snapshot) => {
                if args.directory.is_some() && snapshot.dir.parent() != Some(own.root()) {
                    own.index(&snapshot.dir)?;
                }
                count += 1;
            }
            Err(error) => print_warning(TOOL, &message(&error)),
        }
    }
    let shown = directory.display();
    Ok(output::print(&format!("indexed {count} snapshot(s) from {shown}"))?)
}
