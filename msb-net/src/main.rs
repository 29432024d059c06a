//! `msb-net`: Ethernet frames on a descriptor, sockets of the host, and a policy between them.

#![cfg_attr(
    fuzzing,
    no_main,
    allow(dead_code, reason = "the fuzzer has a main of its own")
)]

use std::process::ExitCode;

use clap::CommandFactory;
use libmsb::cli::{args, completions, error as cli_error};

/// What an address is.
mod address;
/// The command line.
#[path = "args.rs"]
mod arguments;
/// The Internet checksum.
mod checksum;
mod control;
/// The frame stream.
mod device;
/// The guest's way to find names.
mod dns;
/// `msb net explain`.
mod explain;
/// Who speaks with whom.
mod flow;
/// Packets in pieces.
mod fragments;
/// Doors for any bytes.
#[cfg(any(test, fuzzing))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
mod fuzz;
/// Judges connections.
mod gate;
/// Sockets of the host.
mod host;
/// A guest that means harm.
#[cfg(test)]
mod hostile;
/// Echoes and errors.
mod icmp;
/// Ethernet and IP.
mod ip;
/// What this process gives up.
mod isolate;
/// What connections were judged by.
mod kept;
/// What a guest can make us hold.
mod limits;
/// Events.
mod log;
/// ARP, neighbour discovery, DHCP.
mod neighbours;
/// Addresses that the host gets and loses.
mod own;
mod patience;
/// Verdicts.
mod policy;
/// Published ports.
mod ports;
/// `msb net replay`.
mod replay;
/// Sockets of the name server.
mod resolver;
/// `msb-net serve`.
mod serve;
/// Things by numbers.
mod slab;
/// The loop.
mod stack;
/// Connections.
mod tcp;
/// A guest made of tests.
#[cfg(any(test, fuzzing))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
mod testing;
/// Deadlines.
mod timers;
/// The name that TLS asks for.
mod tls;
/// Datagrams.
mod udp;
mod world;

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
        Command::Serve(args) => serve::serve(&args),
        Command::Explain(args) => explain::run(args),
        Command::Replay(args) => replay::run(args),
    }
}
