//! `msb-metrics`: what every sandbox costs.
//!
//! A collection is the samples of all sandboxes at one moment, read from their sample files ([`collect`]), and what happened
//! to sandboxes since the one before ([`exits`]). It is shown to people ([`show`]), written as JSON lines ([`lines`]),
//! offered to Prometheus ([`prom`]) or exported by OTLP ([`otel`]); each of these can read the lines of another process
//! in place of the files. What a figure is called, and its unit, stands in one table ([`metrics`]).

use std::process::ExitCode;

use clap::CommandFactory;
use libmsb::cli::{args as parser, completions, error as cli_error};
use libmsb::state::Home;

/// The command line.
mod args;
/// The samples of all sandboxes, from their files.
mod collect;
/// How sandboxes ended.
mod exits;
/// Collections as JSON lines.
mod lines;
/// Messages of a program that runs for long.
mod log;
/// What a figure is called: one table.
mod metrics;
/// The names of sandboxes that may live.
mod names;
/// `msb-metrics otel`.
mod otel;
/// `msb-metrics prom`.
mod prom;
/// What is known of one sandbox at one moment.
mod sample;
/// `msb metrics`.
mod show;
/// Collections at an interval, until a signal comes.
mod ticks;
/// Asking supervisors to look more often.
mod watch;

use args::{Args, Command};

/// The program's name in messages.
const TOOL: &str = "msb-metrics";

fn main() -> ExitCode {
    cli_error::catch_bugs(TOOL);
    if let Some(code) = completions::serve(TOOL, Args::command) {
        return code;
    }
    match parser::parse::<Args>(TOOL, std::env::args_os()) {
        Ok(args) => cli_error::exit_code(TOOL, run(args)),
        Err(code) => code,
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    log::begin(args.log_level, args.log_format)?;
    match args.command {
        None => show::run(&Home::from_env()?, args.show),
        Some(Command::Show(args)) => show::run(&Home::from_env()?, args),
        Some(Command::Otel(args)) => otel::run(*args),
        Some(Command::Prom(args)) => prom::run(args),
        Some(Command::Jsonl(args)) => lines::run(args),
        Some(Command::Stdout(args)) => show::run_stdout(args),
    }
}
