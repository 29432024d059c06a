//! Output of the commands of volumes.

use clap::ValueEnum;

/// Name of the program in messages.
pub(super) const TOOL: &str = "msb-volume";

/// A format for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum VolumeFormat {
    Json,
}
