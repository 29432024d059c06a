//! msb-run: the commands that work on one sandbox, and the supervisor process.
//!
//! This is one multi-call program: links give it several names, and the name it is called by
//! selects the command.

#![cfg_attr(fuzzing, no_main, allow(dead_code, reason = "the fuzzer has a main of its own"))]

mod boot_slots;
/// Boot states: saved VM states that a sandbox starts from.
mod boot_state;
mod command_words;
mod copy;
mod detach_keys;
mod doctor;
mod engine;
/// Fuzz targets: parsers of untrusted bytes.
#[cfg(any(test, fuzzing))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
mod fuzz;
mod guest;
mod host_file;
mod intercept;
mod isolate;
mod launch;
mod metrics;
mod microsandbox;
mod mounts;
mod net;
mod new_sandbox;
/// Processes on the host.
mod process;
mod pull;
mod root;
mod sandbox_file;
mod secrets;
mod session;
mod snapshot;
mod spec_builder;
mod startup;
mod supervisor;
mod terminal;
mod verbs;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let program =
        words.first().and_then(|path| Path::new(path).file_name()).and_then(|name| name.to_str());
    verbs::table::run_program(program.map(str::to_owned).as_deref(), words)
}
