//! The output format and the name that the commands of `msb snapshot` share.

use clap::ValueEnum;

/// Name of the program in error messages.
pub(super) const TOOL: &str = "msb-snapshot";

/// Output format of a command that lists or shows snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum SnapshotFormat {
    Json,
}
