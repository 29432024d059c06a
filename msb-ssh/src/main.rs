//! `msb-ssh`: a sandbox as an SSH host.
//!
//! The server runs on the host and speaks SSH to the client ([`server`]); whatever a client asks for is a call to the
//! guest's agent ([`guest`]): a session is a command ([`session`]), SFTP a server of the agent's own, a forwarded
//! connection one that the agent makes ([`forward`]). So there is no sshd in the image, and what a client reaches is
//! the guest and never the host.

#![cfg_attr(
    fuzzing,
    no_main,
    allow(dead_code, reason = "the fuzzer has a main of its own")
)]

use std::process::ExitCode;

use clap::CommandFactory;
use libmsb::cli::{args, completions, error};

/// Whether anything passes for a client.
mod activity;
/// The command line.
#[path = "args.rs"]
mod arguments;
/// Authorizing keys, and listing them.
mod authorize;
/// Who may come in, and what they may do: files of authorized keys.
mod authorized;
/// A session from here, by the system's client.
mod connect;
/// What a client says about a running command besides its input.
mod controls;
/// Forwarded connections.
mod forward;
/// Doors for any bytes.
#[cfg(any(test, fuzzing))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
mod fuzz;
/// Calls to a sandbox, many over one connection.
mod guest;
/// One client: what it asks for.
mod handler;
/// The keys of a sandbox and of its owner.
mod identity;
/// What a client sends and the guest has not taken yet.
mod input;
/// The client's SSH agent, for the guest.
mod key_agent;
/// Every limit.
mod limits;
/// Names to log in with.
mod login;
/// Connections from which nobody has logged in yet.
mod pending;
/// Who listens, and for how long.
mod server;
/// Commands, shells and file transfer.
mod session;
/// What a session will have, until it begins.
mod setting;
/// The stream under a client's connection.
mod transport;

const TOOL: &str = "msb-ssh";

fn main() -> ExitCode {
    error::catch_bugs(TOOL);
    if let Some(code) = completions::serve(TOOL, arguments::Args::command) {
        return code;
    }
    let parsed: arguments::Args = match args::parse(TOOL, std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    error::exit_code(TOOL, run(parsed))
}

fn run(args: arguments::Args) -> anyhow::Result<()> {
    use arguments::Verb;
    match args.verb {
        None => connect::run(&args.connect),
        Some(Verb::Connect(connect)) => connect::run(&connect),
        Some(Verb::Serve(serve)) => server::run(&serve),
        Some(Verb::Config(config)) => connect::print_config(&config),
        Some(Verb::Authorize(key)) => authorize::run(&key),
        Some(Verb::Keys(keys)) => authorize::keys(&keys),
    }
}
