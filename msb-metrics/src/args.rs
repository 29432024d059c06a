//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use libmsb::cli::args::{SandboxName, parse_duration};
use libmsb::cli::error::Failure;
use libmsb::selector::Selector;

use crate::log::{Format as LogFormat, Level};
use crate::show::Column;

/// Show what running sandboxes cost, or pass it on
#[derive(Debug, Parser)]
#[command(
    name = "msb-metrics",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  msb metrics --watch --sort memory\n  msb metrics web --format json | jq .cpu_percent\n  msb-metrics otel --endpoint https://otlp.example.com/v1/metrics --protocol http\n  msb-metrics prom --listen 127.0.0.1:9464"
)]
pub(crate) struct Args {
    /// How much is said on standard error; RUST_LOG has the last word
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "info",
        hide_possible_values = true,
        value_name = "LEVEL"
    )]
    pub(crate) log_level: Level,
    /// The form of what is said
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "text",
        value_name = "FORM"
    )]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show a table, as without a command: for sandboxes that are called like one
    Show(ShowArgs),
    /// Export to a collector of OpenTelemetry
    Otel(Box<OtelArgs>),
    /// Offer to Prometheus, at an address or in a file
    Prom(PromArgs),
    /// Print JSON lines, for pipes
    Jsonl(JsonlArgs),
    /// Print a line for each sandbox, for people; its form may change
    Stdout(CollectArgs),
}

/// What is shown.
#[derive(Debug, ClapArgs)]
pub(crate) struct ShowArgs {
    /// Sandboxes; without one, all that run
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<SandboxName>,
    /// Go on, until it is interrupted
    #[arg(short, long, visible_alias = "follow")]
    pub(crate) watch: bool,
    /// Time between two looks
    #[arg(long, value_name = "DURATION", value_parser = parse_interval, default_value = "1s", requires = "watch")]
    pub(crate) interval: Duration,
    /// Order by a column
    #[arg(long, value_enum, value_name = "COLUMN", default_value = "name")]
    pub(crate) sort: Column,
    /// Only sandboxes with this label; several must all be there
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub(crate) label: Vec<Selector>,
    /// How to print them
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// JSON: one object for one name, else an array; with --watch, lines
    Json,
}

/// What is collected, and how often.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct CollectArgs {
    /// Time between two collections; below 10s, sandboxes are sampled more often for it
    #[arg(long, value_name = "DURATION", value_parser = parse_interval, default_value = "1s")]
    pub(crate) collect_interval: Duration,
    /// State directory (default: $MSB_HOME, else ~/.msb)
    #[arg(long, value_name = "DIR")]
    pub(crate) msb_home: Option<PathBuf>,
    /// Only sandboxes with this label; several must all be there
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub(crate) label: Vec<Selector>,
    /// Leave labels out
    #[arg(long)]
    pub(crate) no_labels: bool,
    /// Leave this label out
    #[arg(long, value_name = "KEY")]
    pub(crate) exclude_label_key: Vec<String>,
}

/// What is exported, and where to.
#[derive(Debug, ClapArgs)]
pub(crate) struct OtelArgs {
    /// The collector; for http, the whole address, which is used as it is
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: String,
    /// How it is spoken to
    #[arg(long, value_enum, default_value = "grpc")]
    pub(crate) protocol: Protocol,
    /// Compress what is sent
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) compression: Compression,
    /// Trust this authority, in PEM, in place of the system's
    #[arg(long, value_name = "PATH")]
    pub(crate) ca_cert: Option<PathBuf>,
    /// Send this header; $OTEL_EXPORTER_OTLP_HEADERS keeps secrets off the command line
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) header: Vec<(String, String)>,
    /// Set this attribute of the resource
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) resource: Vec<(String, String)>,
    /// Add the attribute sandbox.run_id, another one for each start
    #[arg(long)]
    pub(crate) emit_run_id: bool,
    /// Add the attribute sandbox.pid, the process of the virtual machine
    #[arg(long)]
    pub(crate) emit_pid: bool,
    #[command(flatten)]
    pub(crate) collect: CollectArgs,
    /// Time between two exports
    #[arg(long, value_name = "DURATION", value_parser = parse_interval, default_value = "10s")]
    pub(crate) flush_interval: Duration,
    /// Collections that are kept while they cannot be exported; the oldest go first
    #[arg(long, value_name = "N", value_parser = parse_count, default_value = "60")]
    pub(crate) max_buffered: usize,
    /// Time for one export
    #[arg(long, value_name = "DURATION", value_parser = parse_interval, default_value = "30s")]
    pub(crate) export_timeout: Duration,
    /// Take the JSON lines of msb-metrics jsonl from standard input
    #[arg(long)]
    pub(crate) stdin: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// OTLP over gRPC
    Grpc,
    /// OTLP over HTTP, as protobuf
    Http,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compression {
    /// As it is
    None,
    /// With gzip
    Gzip,
}

/// How Prometheus gets it.
#[derive(Debug, ClapArgs)]
#[group(id = "way", required = true, multiple = false, args = ["listen", "textfile"])]
pub(crate) struct PromArgs {
    /// Listen at this address, and collect when /metrics is asked for
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Replace this file at each interval, for the textfile collector of node_exporter
    #[arg(long, value_name = "FILE")]
    pub(crate) textfile: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) collect: CollectArgs,
}

/// Which lines are printed.
#[derive(Debug, ClapArgs)]
pub(crate) struct JsonlArgs {
    #[command(flatten)]
    pub(crate) collect: CollectArgs,
    /// Stop after so many collections
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
}

/// A time between two looks: not so short that looking is all that is done, and none that clocks and libraries cannot add up.
fn parse_interval(text: &str) -> Result<Duration, Failure> {
    let duration = parse_duration(text)?;
    if duration < Duration::from_millis(100) {
        return Err(Failure::usage("it must be 100ms at least"));
    }
    if duration > INTERVAL_MAX {
        return Err(Failure::usage("it must be 7d at most"));
    }
    Ok(duration)
}

/// Longest time between two looks, and for an export.
const INTERVAL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

fn parse_count(text: &str) -> Result<usize, Failure> {
    match text.parse() {
        Ok(count) if (1..=BUFFERED_MAX).contains(&count) => Ok(count),
        _ => Err(Failure::usage(format!("a number from 1 to {BUFFERED_MAX}"))),
    }
}

/// Collections that may be kept: those of a day, one a second.
const BUFFERED_MAX: usize = 86_400;

/// `KEY=VALUE`; the value may be empty, and may be secret, so it is not repeated in the error.
fn parse_pair(text: &str) -> Result<(String, String), Failure> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.to_owned()))
        }
        _ => Err(Failure::usage("it must have the form KEY=VALUE")),
    }
}
