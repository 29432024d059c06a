//! One sandbox: the verbs that people type, and the supervisor that they start.
//!
//! This is one program under several names, as links: what it does is told by the name it is called by.

#![cfg_attr(
    fuzzing,
    no_main,
    allow(dead_code, reason = "the fuzzer has a main of its own")
)]

/// Start from memory.
mod boot_state;
mod copy;
mod doctor;
mod engine;
/// Doors for any bytes.
#[cfg(any(test, fuzzing))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
mod fuzz;
mod guest;
mod isolate;
mod launch;
mod make;
mod metrics;
mod microsandbox;
mod mounts;
mod net;
mod plan;
mod pull;
mod root;
mod session;
mod slots;
mod startup;
mod supervisor;
mod terminal;
mod verbs;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, Parser};
use libmsb::cli::{args, completions, error, exit};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let name = arguments
        .first()
        .and_then(|path| Path::new(path).file_name())
        .and_then(|name| name.to_str());
    match name {
        Some("msb-attach") => verb("msb-attach", arguments, verbs::attach::run),
        Some("msb-cp") => tool("msb-cp", arguments, verbs::cp::run),
        Some("msb-create") => tool("msb-create", arguments, verbs::create::run),
        Some("msb-events") => tool("msb-events", arguments, verbs::events::run),
        Some("msb-exec") => verb("msb-exec", arguments, verbs::exec::run),
        Some("msb-doctor") => tool("msb-doctor", arguments, verbs::doctor::run),
        Some("msb-inspect") => tool("msb-inspect", arguments, verbs::inspect::run),
        Some("msb-jobs") => tool("msb-jobs", arguments, verbs::jobs::run),
        Some("msb-logs") => tool("msb-logs", arguments, verbs::logs::run),
        Some("msb-ls") => tool("msb-ls", arguments, verbs::ls::run),
        Some("msb-modify") => tool("msb-modify", arguments, verbs::modify::run),
        Some("msb-pause") => tool("msb-pause", arguments, verbs::pause::pause),
        Some("msb-ping") => tool("msb-ping", arguments, verbs::ping::run),
        Some("msb-ps") => tool("msb-ps", arguments, verbs::ps::run),
        Some("msb-restart") => tool("msb-restart", arguments, verbs::restart::run),
        Some("msb-resume") => tool("msb-resume", arguments, verbs::pause::resume),
        Some("msb-rm") => tool("msb-rm", arguments, verbs::rm::run),
        Some("msb-signal") => tool("msb-signal", arguments, verbs::signal::run),
        Some("msb-start") => tool("msb-start", arguments, verbs::start::run),
        Some("msb-stop") => tool("msb-stop", arguments, verbs::stop::run),
        Some("msb-volume") => tool("msb-volume", arguments, verbs::volume::run),
        Some("msb-wait") => tool("msb-wait", arguments, verbs::wait::run),
        Some("msb-supervisor") => tool("msb-supervisor", arguments, supervisor::run),
        _ => verb("msb-run", arguments, verbs::run::run),
    }
}

/// A program with the exit codes that all tools have.
fn tool<P: Parser + CommandFactory>(
    name: &'static str,
    arguments: Vec<OsString>,
    run: impl FnOnce(P) -> anyhow::Result<()>,
) -> ExitCode {
    match parse(name, arguments) {
        Ok(parsed) => error::exit_code(name, run(parsed)),
        Err(code) => code,
    }
}

/// A program that passes on the exit code of a command in the guest: 125 stands for everything that went wrong here.
fn verb<P: Parser + CommandFactory>(
    name: &'static str,
    arguments: Vec<OsString>,
    run: impl FnOnce(P) -> anyhow::Result<u8>,
) -> ExitCode {
    let parsed = match parse(name, arguments.clone()) {
        Ok(parsed) => parsed,
        Err(code) if code == ExitCode::SUCCESS => return code,
        Err(_) => {
            if lacks_dashes::<P>(arguments) {
                error::print_hint(
                    name,
                    "a command goes after '--', as in: msb run IMAGE -- COMMAND",
                );
            }
            return ExitCode::from(exit::COMMAND_NOT_STARTED);
        }
    };
    match run(parsed) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            error::report(name, &error);
            ExitCode::from(exit::COMMAND_NOT_STARTED)
        }
    }
}

/// Whether a word too many is why the arguments were refused: with docker a command needs no `--` before it.
fn lacks_dashes<P: Parser>(arguments: Vec<OsString>) -> bool {
    let Err(error) = P::try_parse_from(arguments) else {
        return false;
    };
    let word = error.get(ContextKind::InvalidArg).map(ToString::to_string);
    error.kind() == ErrorKind::UnknownArgument && word.is_some_and(|word| !word.starts_with('-'))
}

fn parse<P: Parser + CommandFactory>(
    name: &'static str,
    arguments: Vec<OsString>,
) -> Result<P, ExitCode> {
    error::catch_bugs(name);
    if let Some(code) = completions::serve(name, P::command) {
        return Err(code);
    }
    args::parse(name, arguments)
}
