//! `msb-image`: images of msb. Loads archives, imports root file systems, lists, inspects, removes.
//!
//! A layer is converted while it streams in ([`layer`]), the layers of an image are merged into the metadata of a disk
//! ([`disk`]), and all of it is kept in the store of the state directory ([`store`]). An untrusted archive never becomes
//! files on the host.

#![cfg_attr(
    fuzzing,
    no_main,
    allow(dead_code, reason = "the fuzzer has a main of its own")
)]

use std::process::ExitCode;

use clap::CommandFactory;
use libmsb::cli::{args, completions, error as cli_error};

/// Archives of images.
mod archive;
/// The command line.
#[path = "args.rs"]
mod arguments;
/// Disks made of layers.
mod disk;
/// The JSON documents of images.
mod document;
/// Errors that must be told apart.
mod error;
/// Doors for any bytes.
#[cfg(any(test, fuzzing))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
mod fuzz;
/// `msb image import`.
mod import;
/// Where archives come from: a file or standard input, with progress.
mod input;
/// `msb image inspect`.
mod inspect;
/// Layers: tar to two files.
mod layer;
/// Every limit.
mod limits;
/// `msb image list`.
mod list;
/// `msb image load`.
mod load;
/// `msb image remove`.
mod remove;
/// Writing the image store.
mod store;
/// Compression and digests of what streams in.
mod stream;
/// Archives for tests.
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, reason = "a test fails by a panic")]
mod testing;

use arguments::{Args, Command};

/// The program's name in messages.
const TOOL: &str = "msb-image";

fn main() -> ExitCode {
    cli_error::catch_bugs(TOOL);
    if let Some(code) = completions::serve(TOOL, Args::command) {
        return code;
    }
    match args::parse::<Args>(TOOL, std::env::args_os()) {
        Ok(args) => cli_error::exit_code(TOOL, run(args.command)),
        Err(code) => code,
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let home = libmsb::state::Home::from_env()?;
    match command {
        Command::Load(args) => load::run(&home, args),
        Command::Import(args) => import::run(&home, args),
        Command::List(args) => list::run(&home, args),
        Command::Inspect(args) => inspect::run(&home, args),
        Command::Remove(args) => remove::run(&home, args),
    }
}
