//! The command line.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use libmsb::cli::args::{SandboxName, parse_duration};
use libmsb::cli::error::Failure;

use crate::limits;

/// Open an SSH session in a sandbox, or serve SSH clients
#[derive(Debug, Parser)]
#[command(
    name = "msb-ssh",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = "msb ssh [OPTIONS] NAME [-- COMMAND...]\n       msb ssh VERB ...",
    after_help = "Examples:\n  msb ssh worker\n  msb ssh authorize --file ~/.ssh/id_ed25519.pub\n  msb ssh serve worker --port 2222     # then: ssh -p 2222 root@127.0.0.1\n  msb ssh config worker >> ~/.ssh/config"
)]
pub struct Args {
    #[command(subcommand)]
    pub(crate) verb: Option<SshVerb>,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// Commands of `msb ssh`; the default is connect.
#[derive(Debug, Subcommand)]
pub(crate) enum SshVerb {
    /// Open a session (the default; needed if a sandbox has the name of a command)
    ///
    /// The program executes ssh(1) of the system with all settings that it needs: the server is
    /// `msb ssh serve --stdio`, the host key is pinned, and the key is that of the owner. The
    /// configuration of the user for ssh(1) is not read. The exit status is that of the command, or
    /// 255 if no session was opened.
    Connect(ConnectArgs),
    /// Serve SSH clients
    ///
    /// The server runs until it receives a signal or the sandbox ends. At the end of the sandbox
    /// every client is disconnected, with the reason. At least one key must have been authorized,
    /// with `msb ssh authorize`. Sockets that systemd passes (see sd_listen_fds(3)) take the place
    /// of --host and --port.
    Serve(ServeArgs),
    /// Print a Host block for ssh_config(5)
    ///
    /// The host name is `msb-NAME`. With it, ssh(1), scp(1), sftp(1), rsync(1), git(1) and editors
    /// reach the sandbox. No port is opened.
    Config(ConfigArgs),
    /// Authorize a public key
    ///
    /// The key may then log in to every sandbox of this user. A key that is already authorized gets
    /// the new options if they allow nothing more than its present options. Otherwise it is refused
    /// with exit status 4; remove the key first, with `msb ssh keys --remove`.
    Authorize(AuthorizeArgs),
    /// List the authorized keys, or remove one
    Keys(KeysArgs),
}

/// Options of `connect`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConnectArgs {
    /// Name of the sandbox
    #[arg(required_unless_present = "name_option")]
    name: Option<SandboxName>,
    /// Name of the sandbox; same as NAME
    #[arg(long = "name", value_name = "NAME", conflicts_with = "name")]
    name_option: Option<SandboxName>,
    /// Log in as this user of the guest [default: the user of the sandbox]
    ///
    /// The user of the sandbox is that of --user of msb-run(1), or root.
    #[arg(short, long, value_name = "USER")]
    pub(crate) login: Option<String>,
    /// Forward a local port into the guest: [ADDRESS:]PORT:HOST:HOSTPORT
    #[arg(short = 'L', value_name = "SPEC")]
    pub(crate) local: Vec<String>,
    /// Run a local SOCKS server that connects from the guest: [ADDRESS:]PORT
    #[arg(short = 'D', value_name = "SPEC")]
    pub(crate) dynamic: Vec<String>,
    /// Forward the SSH agent to the guest for the duration of the session
    ///
    /// See **AGENT FORWARDING**.
    #[arg(short = 'A')]
    pub(crate) agent: bool,
    /// Run no command; forward ports only
    #[arg(short = 'N')]
    pub(crate) no_command: bool,
    /// Allocate a terminal, even for a command
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Command to run [default: a login shell]
    ///
    /// A single argument is a command line for the user's shell. Several arguments are a command
    /// and its arguments, which are passed unchanged.
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

impl ConnectArgs {
    /// Returns the name of the sandbox, typed in either form.
    pub(crate) fn sandbox(&self) -> Option<&SandboxName> {
        self.name.as_ref().or(self.name_option.as_ref())
    }
}

/// Options of `serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Name of the sandbox
    pub(crate) name: SandboxName,
    /// Listen on this address
    #[arg(long, default_value = "127.0.0.1", conflicts_with = "stdio")]
    pub(crate) host: IpAddr,
    /// Listen on this port; 0 selects a free port
    ///
    /// A free port is printed on standard error.
    #[arg(long, default_value_t = 2222, conflicts_with = "stdio")]
    pub(crate) port: u16,
    /// Serve one client over standard input and output, for ProxyCommand and inetd
    #[arg(long)]
    pub(crate) stdio: bool,
    /// Close a connection after this time without traffic [default: never]
    ///
    /// Keepalive messages do not count as traffic. The client receives the reason.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) idle_timeout: Option<Duration>,
    /// Close a connection after this total time [default: never]
    ///
    /// The client receives the reason.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) max_time: Option<Duration>,
    /// Set the interval of keepalive messages to silent clients; 0 disables them
    ///
    /// A client that leaves three messages unanswered is disconnected. So is a client that accepts
    /// no data for that time.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub(crate) keep_alive: Duration,
    /// Set the timeout for logging in
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_time)]
    pub(crate) login_grace: Duration,
    /// Limit the number of clients that are logged in
    ///
    /// A further client is disconnected with this reason.
    #[arg(long, value_name = "N", default_value_t = limits::CLIENTS)]
    pub(crate) max_clients: usize,
    /// Limit the number of open sessions and forwarded connections per client
    #[arg(long, value_name = "N", default_value_t = limits::CHANNELS)]
    pub(crate) max_channels: usize,
    /// Accept only post-quantum key exchange, which OpenSSH has since 9.9
    ///
    /// The only key exchange is then `mlkem768x25519-sha256`, and older clients cannot connect; see
    /// **CRYPTOGRAPHY**.
    #[arg(long)]
    pub(crate) quantum_safe: bool,
    /// Refuse changes of files over SFTP
    ///
    /// This does not restrict commands.
    #[arg(long)]
    pub(crate) sftp_read_only: bool,
}

/// Parses a duration and refuses zero.
fn parse_time(text: &str) -> Result<Duration, Failure> {
    let time = parse_duration(text)?;
    if time.is_zero() {
        return Err(Failure::usage("the time must be greater than 0"));
    }
    Ok(time)
}

/// Options of `config`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArgs {
    /// Name of the sandbox
    pub(crate) name: SandboxName,
    /// Log in as this user of the guest [default: the user of the sandbox]
    ///
    /// The user of the sandbox is that of --user of msb-run(1), or root.
    #[arg(short, long, value_name = "USER")]
    pub(crate) login: Option<String>,
}

/// Options of `authorize`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("source").required(true)))]
pub(crate) struct AuthorizeArgs {
    /// Authorize the public keys in this file, one per line
    #[arg(long, value_name = "PATH", group = "source")]
    pub(crate) file: Option<PathBuf>,
    /// Authorize this public key; options may precede it: 'restrict ssh-ed25519 AAAA... comment'
    ///
    /// See **AUTHORIZED KEYS** for the options.
    #[arg(long, value_name = "LINE", group = "source")]
    pub(crate) key: Option<String>,
    /// Authorize the public keys on standard input
    #[arg(long, group = "source")]
    pub(crate) stdin: bool,
}

/// Options of `keys`.
#[derive(Debug, clap::Args)]
pub(crate) struct KeysArgs {
    /// Print JSON
    ///
    /// The output is an array of objects with `algorithm`, `fingerprint`, `comment` and, if the key
    /// has any, `options`.
    #[arg(long, value_enum)]
    pub(crate) format: Option<KeysFormat>,
    /// Remove this key: a public key, or a fingerprint as listed
    ///
    /// All lines of the key are removed. New sessions are refused; open sessions continue. If there
    /// is no such key, the exit status is 3.
    #[arg(long, value_name = "KEY|FINGERPRINT", conflicts_with = "format")]
    pub(crate) remove: Option<String>,
}

/// Output format for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeysFormat {
    Json,
}
