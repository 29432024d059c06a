//! `msb snapshot`: manages snapshots.

/// `msb snapshot create`.
mod create;
/// The output format and the name that the commands share.
mod format;
/// `msb snapshot inspect` and `verify`.
mod inspect;
/// `msb snapshot list`.
mod list;
/// `msb snapshot remove` and `reindex`.
mod manage;
/// `msb snapshot export` and `import`.
mod transfer;

use clap::{Parser, Subcommand};
use libmsb::state::Home;

use format::TOOL;

/// Create, list, inspect, verify, remove, export and import snapshots
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    arg_required_else_help = true,
    after_help = "Examples:\n  msb snapshot create ready --from worker && msb run --snapshot ready bash\n  msb snapshot export ready | ssh host msb snapshot import"
)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    verb: SnapshotVerb,
}

#[derive(Debug, Subcommand)]
enum SnapshotVerb {
    /// Create a snapshot of a sandbox
    ///
    /// Its digest and its path are printed.
    Create(create::CreateArgs),
    /// List the snapshots, the newest first
    ///
    /// The columns are the name, the image, the size of the disk, the time, and the first digits of
    /// the digest.
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Show a snapshot
    Inspect(inspect::InspectArgs),
    /// Compare the disk of a snapshot with its recorded digest
    ///
    /// All data of the disk is read. Without a recorded digest only the manifest, and the type and
    /// size of the disk are checked.
    Verify(inspect::VerifyArgs),
    /// Remove snapshots
    ///
    /// Sandboxes that were created from them are not affected.
    #[command(visible_alias = "rm")]
    Remove(manage::RemoveArgs),
    /// Index the snapshots of a directory, so that they are listed
    ///
    /// Files of interrupted commands are deleted.
    Reindex(manage::ReindexArgs),
    /// Write snapshots as one archive
    Export(transfer::ExportArgs),
    /// Read the snapshots of an archive
    ///
    /// The digest and the path of each are printed. A snapshot that is there already stays as it
    /// is. If its name is taken by another one, the new one is named after its digest. No snapshot
    /// appears before the whole archive has been checked.
    Import(transfer::ImportArgs),
}

pub(crate) fn run(args: SnapshotArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    match args.verb {
        SnapshotVerb::Create(args) => create::run(&home, args),
        SnapshotVerb::List(args) => list::run(&home, &args),
        SnapshotVerb::Inspect(args) => inspect::inspect(&home, &args),
        SnapshotVerb::Verify(args) => inspect::verify(&home, &args),
        SnapshotVerb::Remove(args) => manage::remove(&home, &args),
        SnapshotVerb::Reindex(args) => manage::reindex(&home, &args),
        SnapshotVerb::Export(args) => transfer::export(&home, &args),
        SnapshotVerb::Import(args) => transfer::import(&home, &args),
    }
}
