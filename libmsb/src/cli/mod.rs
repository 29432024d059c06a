//! One voice in every tool.
//!
//! A tool's `main` is a page:
//!
//! ```no_run
//! use std::process::ExitCode;
//! use clap::{CommandFactory, Parser};
//! use libmsb::cli::{args, completions, error, output};
//!
//! /// Prints its argument.
//! #[derive(Parser)]
//! struct Args {
//!     /// What to print
//!     text: String,
//! }
//!
//! fn main() -> ExitCode {
//!     error::catch_bugs("msb-say");
//!     if let Some(code) = completions::serve("msb-say", Args::command) {
//!         return code;
//!     }
//!     let args: Args = match args::parse("msb-say", std::env::args_os()) {
//!         Ok(args) => args,
//!         Err(code) => return code,
//!     };
//!     error::exit_code("msb-say", run(&args))
//! }
//!
//! fn run(args: &Args) -> anyhow::Result<()> {
//!     Ok(output::print(&args.text)?)
//! }
//! ```
//!
//! **A closed pipe.** Rust programs start with SIGPIPE ignored, and so do our tools: a client of a running sandbox must
//! not be killed in the middle of its clean-up because somebody typed `| head`. A write to a pipe that nobody reads
//! fails with an error instead; written through [`output`], that error ends the tool quietly and with success.
//! (`println!` would panic.) Programs that we start get the default action back: `std::process::Command` sees to it.

/// What users type: memory sizes, durations, names, variables, labels; and parsing with our own words for mistakes.
pub mod args;
/// Shell completions and the command tree, made from a tool's own arguments.
pub mod completions;
/// The one form of an error, and its way to standard error and the exit code.
pub mod error;
/// Text from outside, made safe for a terminal.
pub mod escape;
/// Exit codes.
pub mod exit;
/// Standard output: data only, and quiet when nobody reads it any more.
pub mod output;
/// Tables, times, ages and sizes for people.
pub mod style;
/// How much is said on standard error.
pub mod verbosity;
