//! Resource usage of sandboxes, as tables, JSON lines, OTLP and Prometheus metrics.
//!
//! A collection holds the samples of all sandboxes at one time, read from their sample files
//! ([`collect`]), and the exits since the previous collection ([`exits`]). It is shown as a table
//! ([`show`]), written as JSON lines ([`lines`]), served to Prometheus ([`prom`]) or exported by
//! OTLP ([`otel`]); the exporter can also read the JSON lines of another process instead of the
//! files. One table holds the name and unit of each metric ([`metrics`]).
//!
//! The library is for the program `msb-metrics`, its fuzz targets and its benchmarks. Its interface
//! may change with every release.

use libmsb::state::Home;

mod args;
/// Collector: reads the sample files of all sandboxes.
mod collect;
/// Exits of sandboxes, from the event log.
mod exits;
/// Timer for collections, with signals.
mod interval;
/// Collections as JSON lines.
pub mod lines;
/// Log messages on standard error.
mod log;
/// Table of metrics: names, units, kinds.
mod metrics;
/// Names of sandboxes that may be running.
mod names;
/// `msb metrics otel`.
mod otel;
/// `msb metrics prom`.
mod prom;
/// Sample of one sandbox, and collection of all.
pub mod sample;
/// `msb metrics`.
mod show;
/// Subscriptions for more frequent samples.
mod subscriptions;
/// Access to encoders, for benchmarks.
#[cfg(feature = "testing")]
pub mod testing {
    pub use crate::otel::OtlpEncoder;
}

pub use args::Args;
use args::MetricsCommand;
pub use log::TOOL;

/// Runs the program.
pub fn run(args: Args) -> anyhow::Result<()> {
    log::init(args.log_level, args.log_format)?;
    match args.command {
        None => show::run(&Home::from_env()?, args.show),
        Some(MetricsCommand::Show(args)) => show::run(&Home::from_env()?, args),
        Some(MetricsCommand::Otel(args)) => otel::run(*args),
        Some(MetricsCommand::Prom(args)) => prom::run(args),
        Some(MetricsCommand::Jsonl(args)) => lines::run(args),
        Some(MetricsCommand::Stdout(args)) => show::run_stdout(args),
    }
}
