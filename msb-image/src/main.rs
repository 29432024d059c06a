//! `msb-image`: pulls, loads, saves, imports and removes images, and keeps the image store.
//!
//! Each layer is converted while it is read ([`layer`]). The layers of an image are merged into the
//! metadata of a read-only disk ([`disk`]). The store in the state directory holds both
//! ([`store`]). An entry of an untrusted archive never becomes a file on the host.

#![cfg_attr(fuzzing, no_main, allow(dead_code, reason = "the fuzzer has a main of its own"))]

use std::process::ExitCode;

use clap::CommandFactory;
use libmsb::cli::{args as cli_args, error as cli_error};
use libmsb::complete;
use libmsb::state::config::apply_log_level;

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
/// Error types that callers distinguish.
mod error;
/// Conditions that select images: `--filter`.
mod filter;
/// Fuzz targets: entry points that take any bytes.
#[cfg(any(test, fuzzing))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
mod fuzz;
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
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, reason = "a test fails by a panic")]
mod testing;
/// The verbs, a file for each.
mod verbs;

use args::Args;

/// Name of the program in messages.
const TOOL: &str = "msb-image";

fn main() -> ExitCode {
    cli_error::catch_bugs(TOOL);
    if let Some(code) = complete::serve(TOOL, Args::command) {
        return code;
    }
    let parsed = cli_args::parse::<Args>(TOOL, std::env::args_os());
    apply_log_level();
    match parsed {
        Ok(args) => cli_error::exit_code(TOOL, verbs::run(args.command)),
        Err(code) => code,
    }
}
