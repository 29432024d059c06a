//! What users type.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args as Options, Parser, Subcommand, ValueEnum};
use libmsb::cli::args::SandboxName;
use libmsb::net::args::NetArgs;
use libmsb::net::name::HostName;

use crate::serve::ServeArgs;

/// The network of sandboxes: what their policies allow, and why
#[derive(Debug, Parser)]
#[command(
    name = "msb-net",
    version,
    about,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    after_help = "Example:\n  msb net explain --net-rule allow@example.com tcp 93.184.216.34:443 --found example.com"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Be the network of one guest: frames on a descriptor or a socket, under a policy
    Serve(Box<ServeArgs>),
    Explain(Explain),
    Replay(Replay),
}

/// How things are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// JSON, one object a line
    Json,
}

/// Which policy it is about.
#[derive(Debug, Options)]
pub(crate) struct PolicyArgs {
    /// The network of this sandbox; what else is said changes it
    #[arg(long, value_name = "NAME", conflicts_with = "policy")]
    pub(crate) sandbox: Option<SandboxName>,
    /// The network in this file: a spec.json, its part 'net', or the part 'policy' of that
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// An address by which the guest reaches the host: its gateway
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) gateway: Vec<IpAddr>,
    /// An address of the host's own (with --sandbox, by default: those of this host)
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) own: Vec<IpAddr>,
    #[command(flatten)]
    pub(crate) net: NetArgs,
}

/// Say what becomes of a connection, or of a question for a name, and why
///
/// Nothing is connected, and nobody is asked: the verdict is that of a running sandbox, made of the policy and of what is
/// said here.
#[derive(Debug, Options)]
#[command(
    after_help = "Examples:\n  msb net explain --sandbox web tcp 10.0.0.5:5432\n  msb net explain --net public dns example.com 192.168.0.7\n  msb net explain --net-rule allow@example.com tcp 1.2.3.4:443 --found example.com --sni evil.test"
)]
pub(crate) struct Explain {
    /// tcp or udp with ADDRESS:PORT; icmpv4 or icmpv6 with ADDRESS; or dns with a NAME and the addresses in the answer
    #[arg(value_name = "WHAT", required_unless_present = "lines")]
    pub(crate) what: Vec<String>,
    /// Explain each JSON object on standard input, with the fields that net.log has
    #[arg(long, conflicts_with = "what")]
    pub(crate) lines: bool,
    /// It comes in: the address is who connects, and the port is the guest's
    #[arg(long)]
    pub(crate) ingress: bool,
    /// The guest asked for this name, and the address was in the answer
    #[arg(long, value_name = "NAME")]
    pub(crate) found: Vec<HostName>,
    /// The guest's first bytes are TLS, and ask for this name
    #[arg(long, value_name = "NAME")]
    pub(crate) sni: Option<HostName>,
    /// The guest's first bytes are TLS, and ask for no name
    #[arg(long, conflicts_with = "sni")]
    pub(crate) no_sni: bool,
    /// The guest's first bytes are TLS, with an encrypted name
    #[arg(long)]
    pub(crate) ech: bool,
    /// The guest's first bytes are not TLS
    #[arg(long, conflicts_with_all = ["sni", "no_sni", "ech"])]
    pub(crate) plain: bool,
    /// How to print it
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
}

/// Hold what a sandbox did against another policy, and print what would differ
#[derive(Debug, Options)]
#[command(
    after_help = "Example:\n  msb net replay ~/.msb/sandboxes/web/net.log --net-rule allow@*.example.com"
)]
pub(crate) struct Replay {
    /// The net.log of a sandbox; - is standard input
    #[arg(value_name = "LOG")]
    pub(crate) log: PathBuf,
    /// Print what stays the same, too
    #[arg(long)]
    pub(crate) all: bool,
    /// How to print it
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
}
