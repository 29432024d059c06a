//! The command line.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use libmsb::cli::args::{SandboxName, parse_duration};
use libmsb::cli::error::Failure;

use crate::limits;

/// Reach a sandbox by SSH
#[derive(Debug, Parser)]
#[command(
    name = "msb-ssh",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = "msb ssh [OPTIONS] NAME [-- COMMAND...]\n       msb ssh VERB ...",
    after_help = "Examples:\n  msb ssh worker\n  msb ssh authorize --file ~/.ssh/id_ed25519.pub\n  msb ssh serve worker --port 2222     # then: ssh -p 2222 root@127.0.0.1\n  msb ssh config worker >> ~/.ssh/config"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// What to do; without one: connect.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Open a session (as without a verb; for sandboxes that are called like one)
    Connect(ConnectArgs),
    /// Let SSH clients in
    Serve(ServeArgs),
    /// Print a Host block for the configuration of ssh(1)
    Config(ConfigArgs),
    /// Let the owner of a public key in
    Authorize(AuthorizeArgs),
    /// List the keys that are let in, or remove one
    Keys(KeysArgs),
}

/// A session from here.
#[derive(Debug, clap::Args)]
pub(crate) struct ConnectArgs {
    /// The sandbox
    #[arg(required = true)]
    pub(crate) name: Option<SandboxName>,
    /// Log in as this user of the guest (default: the sandbox's own)
    #[arg(short, long, value_name = "USER")]
    pub(crate) login: Option<String>,
    /// Forward a port from here into the guest: [ADDRESS:]PORT:HOST:PORT, as ssh(1) has it
    #[arg(short = 'L', value_name = "SPEC")]
    pub(crate) local: Vec<String>,
    /// Be a SOCKS server here, whose connections begin in the guest: [ADDRESS:]PORT
    #[arg(short = 'D', value_name = "SPEC")]
    pub(crate) dynamic: Vec<String>,
    /// Let the guest use the keys of the SSH agent here, for the length of the session
    #[arg(short = 'A')]
    pub(crate) agent: bool,
    /// Run no command: forward ports only
    #[arg(short = 'N')]
    pub(crate) no_command: bool,
    /// Ask for a terminal, even for a command
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// The command, for the user's shell (default: a login shell)
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// A server.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// The sandbox
    pub(crate) name: SandboxName,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1", conflicts_with = "stdio")]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0 takes one that is free
    #[arg(long, default_value_t = 2222, conflicts_with = "stdio")]
    pub(crate) port: u16,
    /// Serve one client over standard input and output: for ProxyCommand and inetd
    #[arg(long)]
    pub(crate) stdio: bool,
    /// Close connections over which nothing has passed for so long (default: never)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) idle_timeout: Option<Duration>,
    /// Close connections that have lasted so long (default: never)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) max_time: Option<Duration>,
    /// Ask silent clients for a sign of life this often; 0 for never
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub(crate) keep_alive: Duration,
    /// Time for a client to log in
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_time)]
    pub(crate) login_grace: Duration,
    /// Clients that may be logged in at a time
    #[arg(long, value_name = "N", default_value_t = limits::CLIENTS)]
    pub(crate) max_clients: usize,
    /// Sessions and forwarded connections that one client may have open at a time
    #[arg(long, value_name = "N", default_value_t = limits::CHANNELS)]
    pub(crate) max_channels: usize,
    /// Agree on keys only in ways that hold against quantum computers: for OpenSSH 9.9 and newer
    #[arg(long)]
    pub(crate) quantum_safe: bool,
    /// Let nobody change files by SFTP
    #[arg(long)]
    pub(crate) sftp_read_only: bool,
}

/// Time that must not be none.
fn parse_time(text: &str) -> Result<Duration, Failure> {
    let time = parse_duration(text)?;
    if time.is_zero() {
        return Err(Failure::usage("there must be some time"));
    }
    Ok(time)
}

/// A Host block.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArgs {
    /// The sandbox
    pub(crate) name: SandboxName,
    /// Log in as this user of the guest (default: the sandbox's own)
    #[arg(short, long, value_name = "USER")]
    pub(crate) login: Option<String>,
}

/// A key to be let in.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("source").required(true)))]
pub(crate) struct AuthorizeArgs {
    /// A file of public keys, one a line
    #[arg(long, value_name = "PATH", group = "source")]
    pub(crate) file: Option<PathBuf>,
    /// A public key, perhaps with options before it: 'restrict ssh-ed25519 AAAA... comment'
    #[arg(long, value_name = "LINE", group = "source")]
    pub(crate) key: Option<String>,
    /// Read public keys from standard input
    #[arg(long, group = "source")]
    pub(crate) stdin: bool,
}

/// A list of keys.
#[derive(Debug, clap::Args)]
pub(crate) struct KeysArgs {
    /// Print an array of objects
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// Remove this key; new sessions with it are refused
    #[arg(long, value_name = "KEY|FINGERPRINT", conflicts_with = "format")]
    pub(crate) remove: Option<String>,
}

/// A form for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// JSON
    Json,
}
