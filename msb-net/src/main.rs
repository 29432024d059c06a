//! `msb-net`: Ethernet frames on a descriptor, sockets of the host, and a policy between them.

use std::process::ExitCode;

use clap::CommandFactory;
use libmsb::cli::{args, completions, error as cli_error};

/// What an address is.
mod address;
/// The command line.
#[path = "args.rs"]
mod arguments;
/// The guest's way to find names.
#[allow(dead_code, unused_imports, reason = "the data plane is to use it")]
mod dns;
/// `msb net explain`.
mod explain;
/// Verdicts.
mod policy;
/// `msb net replay`.
mod replay;
/// The name that TLS asks for.
#[allow(dead_code, reason = "the data plane is to use it")]
mod tls;

use arguments::{Args, Command};

/// The program's name in messages.
const TOOL: &str = "msb-net";

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
    match command {
        Command::Explain(args) => explain::run(args),
        Command::Replay(args) => replay::run(args),
    }
}
