//! `msb snapshot create`.

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use libmsb::cli::args::{SandboxName, parse_label};
use libmsb::cli::error::Failure;
use libmsb::cli::output;
use libmsb::state::Home;
use libmsb::state::snapshot_manifest::RESERVED_PREFIX;

use crate::snapshot::create::{SnapshotRequest, create_snapshot};
use crate::snapshot::digest_of;
use crate::snapshot::reference::{SnapshotArg, parse_snapshot};

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Name of the snapshot, or the path of its new directory
    ///
    /// A name is made of letters, digits, `.`, `_` and `-`, starts with a letter or digit, and has
    /// at most 128 bytes. A path contains `/`. A snapshot in another place is listed, too.
    #[arg(
        value_name = "DEST",
        value_parser = OsStringValueParser::new().try_map(parse_snapshot)
    )]
    destination: SnapshotArg,
    /// Name of the sandbox
    ///
    /// Its root must be an image, and its disk one that msb manages. The guest of a running sandbox
    /// is frozen for the copy; see **Running sandboxes**.
    #[arg(long, value_name = "SANDBOX")]
    from: SandboxName,
    /// Attach a label; labels that start with `msb.` are reserved
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// Replace a snapshot of that name
    #[arg(short, long)]
    force: bool,
    /// Record the digest of the data on the disk
    ///
    /// All data of the disk is read.
    #[arg(long)]
    integrity: bool,
    /// Save the memory of the running sandbox too
    ///
    /// A sandbox from the snapshot continues where this one was. The guest stands while its memory
    /// and its disk are copied; see **Memory**.
    #[arg(long)]
    memory: bool,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn run(home: &Home, args: CreateArgs) -> anyhow::Result<()> {
    if let Some((key, _)) = args.label.iter().find(|(key, _)| key.starts_with(RESERVED_PREFIX)) {
        let message = format!("the label '{key}' is reserved");
        return Err(Failure::usage(message).into());
    }
    let target = args.destination.target(home)?;
    let sandbox = home.sandboxes().find(&args.from)?;
    let request = SnapshotRequest {
        target: &target,
        labels: args.label.into_iter().collect(),
        force: args.force,
        integrity: args.integrity,
        memory: args.memory,
    };
    let snapshot = create_snapshot(home, &sandbox, request)?;
    if !args.quiet {
        output::print(&digest_of(&snapshot.manifest)?)?;
        output::print(&snapshot.dir.display())?;
    }
    Ok(())
}
