//! `msb-image`: images of msb. Loads and saves archives, imports root file systems, keeps the store and cleans it.
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
/// What all layers of an image may take on the disk.
mod budget;
/// `msb image check`.
mod check;
/// `msb image df`.
mod df;
/// Disks made of layers.
mod disk;
/// The JSON documents of images.
mod document;
/// Errors that must be told apart.
mod error;
/// Which images a command is about.
mod filter;
/// Doors for any bytes.
#[cfg(any(test, fuzzing))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
mod fuzz;
/// What nobody needs any more.
mod garbage;
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
/// `msb image registry`: login, logout, list.
mod login;
/// `msb image prune`.
mod prune;
/// `msb image pull`.
mod pull;
/// Registries.
mod registry;
/// `msb image remove`.
mod remove;
/// `msb image save`.
mod save;
/// Writing the image store.
mod store;
/// Compression and digests of what streams in.
mod stream;
/// `msb image tag`.
mod tag;
/// Archives for tests.
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, reason = "a test fails by a panic")]
mod testing;
/// Who needs what.
mod uses;

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
        Command::Save(args) => save::run(&home, args),
        Command::Pull(args) => pull::run(&home, args),
        Command::Registry(args) => login::run(&home, args),
        Command::Import(args) => import::run(&home, args),
        Command::List(args) => list::run(&home, args),
        Command::Inspect(args) => inspect::run(&home, args),
        Command::Tag(args) => tag::run(&home, args),
        Command::Remove(args) => remove::run(&home, args),
        Command::Prune(args) => prune::run(&home, args),
        Command::Df(args) => df::run(&home, args),
        Command::Check(args) => check::run(&home, args),
    }
}
