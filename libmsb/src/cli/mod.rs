//! The command line of every tool: arguments, errors, output.
//!
//! A tool's `main` is a page:
//!
//! ```no_run
//! use std::process::ExitCode;
//! use clap::Parser;
//! use libmsb::cli::output;
//!
//! /// Prints its argument.
//! #[derive(Parser)]
//! struct Args {
//!     /// What to print
//!     text: String,
//! }
//!
//! fn main() -> ExitCode {
//!     libmsb::cli::main("msb-say", |args| run(&args))
//! }
//!
//! fn run(args: &Args) -> anyhow::Result<()> {
//!     Ok(output::print(&args.text)?)
//! }
//! ```
//!
//! **A closed pipe.** Rust programs start with SIGPIPE ignored, and so do these tools: a client of
//! a running sandbox must not be killed in the middle of its clean-up because the user typed `|
//! head`. A write to a pipe without a reader fails with an error instead. Written through
//! [`output`], that error ends the tool silently and with success. (`println!` would panic.) Child
//! processes get the default action: `std::process::Command` restores it.

use std::process::ExitCode;

use crate::complete;
use crate::state::config::apply_log_level;

/// Parsers of arguments: memory sizes, durations, names, environment variables, labels; and usage
/// errors.
pub mod args;
/// The command tree and man page sections, generated from a tool's arguments.
pub mod command_tree;
/// Errors in one form, with hints and exit codes.
pub mod error;
/// Escaping of untrusted text for a terminal.
pub mod escape;
/// Exit codes.
pub mod exit;
/// The generated part of a man page.
pub(crate) mod mdoc;
/// Standard output: data only. A broken pipe is not an error.
pub mod output;
/// Progress of long steps.
pub mod progress;
/// Quoting for a shell.
pub mod quote;
/// Tables, times, ages and sizes for people.
pub mod style;
/// Name of a command as it was typed.
pub mod typed;
/// Verbosity of messages on standard error.
pub mod verbosity;

/// Runs a tool: serves completions, parses the arguments, and prints the error of `run`. Returns the
/// exit code.
pub fn main<P: clap::Parser>(
    tool: &'static str,
    run: impl FnOnce(P) -> anyhow::Result<()>,
) -> ExitCode {
    error::catch_bugs(tool);
    if let Some(code) = complete::serve(tool, P::command) {
        return code;
    }
    let parsed = args::parse(tool, std::env::args_os());
    apply_log_level();
    match parsed {
        Ok(args) => error::exit_code(tool, run(args)),
        Err(code) => code,
    }
}
