//! Images of msb: pulls, loads, saves, imports and removes them, and keeps the image store.
//!
//! Each layer is converted while it is read ([`layer`]). The layers of an image are merged into the
//! metadata of a read-only disk ([`disk`]). The store in the state directory holds both
//! ([`store`]). An entry of an untrusted archive never becomes a file on the host.
//!
//! The library is for the program `msb-image`, its fuzz targets and its benchmarks. Its interface
//! may change with every release.

/// Image archives: docker-archive and OCI.
mod archive;
/// Command-line arguments.
mod args;
/// Limits on what the layers of an image may expand to, against decompression bombs.
mod budget;
/// Read-only disks made of layers.
mod disk;
/// JSON documents of images: manifests, indexes and configurations.
mod document;
/// Entry points of fuzz targets and benchmarks.
#[cfg(any(test, feature = "testing"))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
pub mod entry_points;
/// Error types that callers distinguish.
mod error;
/// Conditions that select images: `--filter`.
mod filter;
/// The row of an image in tables.
mod image_row;
/// Archive input from a file or standard input, with progress.
mod input;
/// Layers: a tar stored as two files.
mod layer;
/// Limits on untrusted input.
mod limits;
/// The registry client.
mod registry;
/// Reports of the verbs.
mod report;
/// The image store.
mod store;
/// Decompression and hashing of input streams.
mod stream;
/// Archives and stores for tests.
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::unwrap_used, reason = "a test fails by a panic")]
pub mod testing;
/// The verbs, a file for each.
mod verbs;

pub use args::Args;

/// Name of the program in messages.
pub const TOOL: &str = "msb-image";

/// Runs the program.
pub fn run(args: Args) -> anyhow::Result<()> {
    verbs::run(args.command)
}
