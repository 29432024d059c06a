//! The command-line option to start from a snapshot.

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use libmsb::cli::error::Failure;

use super::reference::{SnapshotArg, parse_snapshot};
use crate::root::RootArg;

/// The option to start from a snapshot in place of an image.
#[derive(Debug, Args)]
pub(crate) struct SnapshotOption {
    /// Start from a snapshot instead of an image
    ///
    /// SNAPSHOT is a name, a path that contains `/`, or a digest, see msb-snapshot(1). The sandbox
    /// has the pinned image of the snapshot and a copy of its disk. The first word after the options
    /// starts the command.
    #[arg(
        long,
        value_name = "SNAPSHOT",
        value_parser = OsStringValueParser::new().try_map(parse_snapshot),
        conflicts_with = "image",
        help_heading = "Storage"
    )]
    snapshot: Option<SnapshotArg>,
}

impl SnapshotOption {
    /// Returns the root: the snapshot, else the image.
    pub(crate) fn root(&self, image: Option<&RootArg>) -> anyhow::Result<RootArg> {
        let snapshot = self.snapshot.clone().map(RootArg::Snapshot);
        let root = snapshot.or_else(|| image.cloned());
        Ok(root.ok_or_else(|| Failure::usage("the file of --file names no image"))?)
    }

    /// Returns whether a snapshot was given.
    pub(crate) fn is_given(&self) -> bool {
        self.snapshot.is_some()
    }
}
