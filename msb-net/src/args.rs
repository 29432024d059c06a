//! Command-line arguments of `msb-net`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args as Options, Parser, Subcommand, ValueEnum};
use libmsb::cli::args::SandboxName;
use libmsb::net::args::NetArgs;
use libmsb::net::name::HostName;

use crate::serve::ServeArgs;

/// Explain the network policy of a sandbox, replay a log, or serve a network
#[derive(Debug, Parser)]
#[command(
    name = "msb-net",
    version,
    about,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    after_help = "Example:\n  msb net explain --net-rule allow@example.com tcp 93.184.216.34:443 --found example.com"
)]
pub struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the network of one guest: Ethernet frames on a socket, under a policy
    ///
    /// msb-run(1) starts this program once per sandbox. It also serves any other virtual machine or
    /// network namespace whose Ethernet frames come over a stream socket, each preceded by its
    /// length in four bytes, big-endian. It ends when the socket is closed. See **SERVING A
    /// NETWORK**.
    Serve(Box<ServeArgs>),
    Explain(ExplainArgs),
    Replay(ReplayArgs),
}

/// Output format for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    Json,
}

/// Options that select and change a policy.
#[derive(Debug, Options)]
pub(crate) struct PolicyArgs {
    /// Use the network of this sandbox; other options change it
    ///
    /// Without --sandbox and --policy, the policy is that of a new sandbox.
    #[arg(long, value_name = "NAME", conflicts_with = "policy", help_heading = "Policy")]
    pub(crate) sandbox: Option<SandboxName>,
    /// Use the network in this file: a spec.json, or its field net or net.policy
    ///
    /// See msb-spec(5).
    #[arg(long, value_name = "FILE", help_heading = "Policy")]
    pub(crate) policy: Option<PathBuf>,
    /// Set an address of the gateway, by which the guest reaches the host
    #[arg(long, value_name = "ADDRESS", help_heading = "Policy")]
    pub(crate) gateway: Vec<IpAddr>,
    /// Set an address of the host
    ///
    /// With --sandbox, the default is the addresses of this host.
    #[arg(long, value_name = "ADDRESS", help_heading = "Policy")]
    pub(crate) own: Vec<IpAddr>,
    #[command(flatten)]
    pub(crate) net: NetArgs,
}

/// Explain whether a connection or a DNS query is allowed or denied, and why
///
/// The verdict is that of a running sandbox with the same policy. No connection is opened and no
/// name is resolved: the options describe the connection and the DNS answers.
#[derive(Debug, Options)]
#[command(
    after_help = "Examples:\n  msb net explain --sandbox web tcp 10.0.0.5:5432\n  msb net explain --net public dns example.com 192.168.0.7\n  msb net explain --net-rule allow@example.com tcp 1.2.3.4:443 --found example.com --sni evil.test"
)]
pub(crate) struct ExplainArgs {
    /// Connection or query: tcp|udp ADDRESS:PORT, icmpv4|icmpv6 ADDRESS, or dns NAME [ANSWER...]
    #[arg(value_name = "CONNECTION", required_unless_present = "lines")]
    pub(crate) what: Vec<String>,
    /// Explain each JSON object on standard input, with the fields of net.log
    ///
    /// The fields of a connection are `direction`, `protocol`, `address`, `port`, `names` and
    /// `tls`. Those of a query are `name` and `answers`. See **EVENTS**.
    #[arg(long, conflicts_with = "what")]
    pub(crate) lines: bool,
    /// Explain an inbound connection to a published port
    ///
    /// The address is that of the client, and the port is that of the guest.
    #[arg(long)]
    pub(crate) ingress: bool,
    /// Assume that the guest resolved this name to the address
    #[arg(long, value_name = "NAME")]
    pub(crate) found: Vec<HostName>,
    /// Assume a TLS ClientHello with this server name
    #[arg(long, value_name = "NAME")]
    pub(crate) sni: Option<HostName>,
    /// Assume a TLS ClientHello without a server name
    #[arg(long, conflicts_with = "sni")]
    pub(crate) no_sni: bool,
    /// Assume a TLS ClientHello with an encrypted server name (ECH)
    #[arg(long)]
    pub(crate) ech: bool,
    /// Assume that the first bytes of the guest are not TLS
    #[arg(long, conflicts_with_all = ["sni", "no_sni", "ech"])]
    pub(crate) plain: bool,
    /// Print JSON, one object per line
    ///
    /// The objects have the fields of the connection or query, and `action`, `rule`, `rule_text`,
    /// `reason`, `text` and `look` (true if the first bytes of the guest can change the verdict).
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<OutputFormat>,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
}

/// Compare the connections in a net.log with another policy
///
/// The output is the connections and DNS queries of a sandbox whose verdict would differ.
#[derive(Debug, Options)]
#[command(
    after_help = "Example:\n  msb net replay ~/.msb/sandboxes/web/net.log --net-rule allow@*.example.com"
)]
pub(crate) struct ReplayArgs {
    /// Log to replay: the net.log of a sandbox, or - for standard input
    #[arg(value_name = "LOG")]
    pub(crate) log: PathBuf,
    /// Print unchanged verdicts too
    #[arg(long)]
    pub(crate) all: bool,
    /// Print JSON, one object per line
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<OutputFormat>,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
}
