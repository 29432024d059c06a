//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use libmsb::cli::args::{SandboxName, parse_duration};
use libmsb::cli::error::Failure;
use libmsb::selector::Selector;

use crate::log::{LogFormat, LogLevel};

/// Show the resource usage of running sandboxes, or export it
#[derive(Debug, Parser)]
#[command(
    name = "msb-metrics",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  msb metrics --watch --sort memory\n  msb metrics web --format json | jq .cpu_percent\n  msb metrics otel --endpoint https://otlp.example.com/v1/metrics --protocol http\n  msb metrics prom --listen 127.0.0.1:9464"
)]
pub struct Args {
    /// Set the log level of standard error; RUST_LOG overrides it
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "info",
        hide_possible_values = true,
        value_name = "LEVEL"
    )]
    pub(crate) log_level: LogLevel,
    /// Set the log format
    #[arg(long, global = true, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Option<MetricsCommand>,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MetricsCommand {
    /// Show a table (the default; needed if a sandbox has the name of a command)
    ///
    /// It is an error if a named sandbox does not exist, is not running or has no samples, or if
    /// its samples cannot be read.
    Show(ShowArgs),
    /// Export metrics to an OpenTelemetry collector (OTLP)
    ///
    /// See **OPENTELEMETRY EXPORT**.
    Otel(Box<OtelArgs>),
    /// Export metrics to Prometheus, at an address or in a file
    ///
    /// At an address, each request for `/metrics` collects the metrics. 16 clients are served at a
    /// time; a further client replaces the oldest.
    ///
    /// A file is replaced at each interval and removed at the end. It is made for the textfile
    /// collector of node_exporter.
    Prom(PromArgs),
    /// Print JSON lines, for pipes
    ///
    /// See **JSON LINES**.
    Jsonl(JsonlArgs),
    /// Print a line of text for each sandbox; its format may change
    Stdout(CollectArgs),
}

/// Options of `show`.
#[derive(Debug, ClapArgs)]
pub(crate) struct ShowArgs {
    /// Names of sandboxes [default: all running sandboxes]
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<SandboxName>,
    /// Update the output until interrupted
    ///
    /// Bytes are then per second.
    #[arg(short, long, visible_alias = "follow")]
    pub(crate) watch: bool,
    /// Set the time between two updates
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_interval,
        default_value = "1s",
        requires = "watch"
    )]
    pub(crate) interval: Duration,
    /// Sort by this column, largest value first
    ///
    /// Names are sorted in ascending order.
    #[arg(long, value_enum, value_name = "COLUMN", default_value = "name")]
    pub(crate) sort: SortColumn,
    /// Select sandboxes with this label; several labels must all match
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub(crate) label: Vec<Selector>,
    /// Set the output format
    #[arg(long, value_enum)]
    pub(crate) format: Option<ShowFormat>,
}

/// Sort columns of a table. Numbers are sorted with the largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortColumn {
    /// Name
    Name,
    /// CPU usage
    Cpu,
    /// Memory in use
    Memory,
    /// Bytes read from and written to disks
    Disk,
    /// Bytes received and sent over the network
    Net,
    /// Processes
    Processes,
    /// Time since the start
    Uptime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShowFormat {
    /// One object for one name, otherwise an array sorted by name; lines with --watch
    Json,
}

/// Options of all exporters: selection and interval of collections.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct CollectArgs {
    /// Set the time between two collections
    ///
    /// Sandboxes are sampled at this interval if it is shorter than 10 seconds.
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_interval,
        default_value = "1s",
        help_heading = "Collection"
    )]
    pub(crate) collect_interval: Duration,
    /// Set the state directory [default: $MSB_HOME or ~/.msb]
    #[arg(long, value_name = "DIR", help_heading = "Collection")]
    pub(crate) msb_home: Option<PathBuf>,
    /// Select sandboxes with this label; several labels must all match
    #[arg(long, value_name = "KEY[=VALUE]", help_heading = "Collection")]
    pub(crate) label: Vec<Selector>,
    /// Omit all labels
    #[arg(long, help_heading = "Collection")]
    pub(crate) no_labels: bool,
    /// Omit this label
    #[arg(long, value_name = "KEY", help_heading = "Collection")]
    pub(crate) exclude_label_key: Vec<String>,
}

/// Options of `otel`.
#[derive(Debug, ClapArgs)]
pub(crate) struct OtelArgs {
    /// Export to the collector at URL; http needs the full address of its metrics endpoint
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: String,
    /// Set the transport protocol
    #[arg(long, value_enum, default_value = if cfg!(feature = "grpc") { "grpc" } else { "http" })]
    pub(crate) protocol: Protocol,
    /// Set the compression of requests
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) compression: Compression,
    /// Trust only the certificate authorities in this file (PEM)
    ///
    /// They replace those of the system. If the certificate of the collector fails the
    /// verification, nothing is sent: collections wait, and the reason is logged.
    #[arg(long, value_name = "PATH")]
    pub(crate) ca_cert: Option<PathBuf>,
    /// Send this header; use $OTEL_EXPORTER_OTLP_HEADERS for secrets
    ///
    /// All users of the host can read a command line.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) header: Vec<(String, String)>,
    /// Set a resource attribute
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) resource: Vec<(String, String)>,
    /// Add the attribute sandbox.run_id, a number that differs for each start
    #[arg(long)]
    pub(crate) emit_run_id: bool,
    /// Add the attribute sandbox.pid, the PID of the VMM process
    #[arg(long)]
    pub(crate) emit_pid: bool,
    #[command(flatten)]
    pub(crate) collect: CollectArgs,
    /// Set the time between two exports
    #[arg(long, value_name = "DURATION", value_parser = parse_interval, default_value = "10s")]
    pub(crate) flush_interval: Duration,
    /// Limit the number of collections that wait for export; the oldest are dropped
    #[arg(long, value_name = "N", value_parser = parse_count, default_value = "60")]
    pub(crate) max_buffered: usize,
    /// Set the timeout of an export
    #[arg(long, value_name = "DURATION", value_parser = parse_interval, default_value = "30s")]
    pub(crate) export_timeout: Duration,
    /// Read JSON lines from standard input in place of sample files
    ///
    /// The lines are those of `msb metrics jsonl`. Other lines are skipped: the first one is
    /// logged, and their number at the end. A last collection without its end is exported as far as
    /// it goes.
    #[arg(long)]
    pub(crate) stdin: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// OTLP over gRPC
    #[cfg(feature = "grpc")]
    Grpc,
    /// OTLP over HTTP, with protocol buffers
    Http,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compression {
    None,
    Gzip,
}

/// Options of `prom`.
#[derive(Debug, ClapArgs)]
#[group(id = "way", required = true, multiple = false, args = ["listen", "textfile"])]
pub(crate) struct PromArgs {
    /// Listen on this address and serve /metrics
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Write this file at each interval, for the textfile collector of node_exporter
    #[arg(long, value_name = "FILE")]
    pub(crate) textfile: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) collect: CollectArgs,
}

/// Options of `jsonl`.
#[derive(Debug, ClapArgs)]
pub(crate) struct JsonlArgs {
    #[command(flatten)]
    pub(crate) collect: CollectArgs,
    /// Stop after this number of collections
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
}

/// Parses an interval: at least 100 ms, so that collecting is not all that is done, and at most
/// [`INTERVAL_MAX`], so that clocks and libraries can add it.
fn parse_interval(text: &str) -> Result<Duration, Failure> {
    let duration = parse_duration(text)?;
    if duration < Duration::from_millis(100) {
        return Err(Failure::usage("must be at least 100ms"));
    }
    if duration > INTERVAL_MAX {
        return Err(Failure::usage("must be at most 7d"));
    }
    Ok(duration)
}

/// Longest interval, and longest timeout of an export.
const INTERVAL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

fn parse_count(text: &str) -> Result<usize, Failure> {
    match text.parse() {
        Ok(count) if (1..=BUFFERED_MAX).contains(&count) => Ok(count),
        _ => Err(Failure::usage(format!("must be a number from 1 to {BUFFERED_MAX}"))),
    }
}

/// Maximum number of waiting collections: those of a day, one per second.
const BUFFERED_MAX: usize = 86_400;

/// Parses `KEY=VALUE`. The value may be empty. It may be secret, so the error does not contain it.
fn parse_pair(text: &str) -> Result<(String, String), Failure> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.to_owned()))
        }
        _ => Err(Failure::usage("expected KEY=VALUE")),
    }
}
