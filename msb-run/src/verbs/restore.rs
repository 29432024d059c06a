//! `msb restore`: sets a sandbox back to a snapshot.

use clap::Parser;
use clap::builder::{OsStringValueParser, TypedValueParser};
use libmsb::cli::args::SandboxName;
use libmsb::state::Home;

use crate::snapshot::reference::{SnapshotArg, parse_snapshot};
use crate::snapshot::restore::restore;

const TOOL: &str = "msb-restore";

/// Set a stopped sandbox back to a snapshot
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Example:\n  msb stop web && msb restore web before-upgrade && msb start web"
)]
pub(crate) struct RestoreArgs {
    /// Name of the sandbox
    ///
    /// The sandbox keeps its configuration.
    sandbox: SandboxName,
    /// Snapshot: a name, a path that contains `/`, or a digest
    ///
    /// It must be of the same image as the sandbox.
    #[arg(value_parser = OsStringValueParser::new().try_map(parse_snapshot))]
    snapshot: SnapshotArg,
    /// Restore the disk alone, even if the snapshot has memory
    ///
    /// The guest boots at the next start.
    #[arg(long)]
    cold: bool,
}

pub(crate) fn run(args: RestoreArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let sandbox = home.sandboxes().find(&args.sandbox)?;
    let snapshot = args.snapshot.open(&home)?;
    restore(&home, &sandbox, &snapshot, !args.cold)
}
