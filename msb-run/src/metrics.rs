//! Whether and how often samples are taken of what a sandbox costs.

use std::time::Duration;

use clap::Args;
use libmsb::cli::args::parse_duration;
use libmsb::state::spec::MetricsSpec;
use libmsb::state::{Home, write};
use serde::Deserialize;

use crate::plan::milliseconds;

/// Longest configuration, in bytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// What is typed about it.
#[derive(Debug, Default, Args)]
pub(crate) struct MetricsArgs {
    /// Take samples of what it costs this often, whoever watches; 0: none (default: 10s, or as who watches wants it)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    metrics_sample_interval: Option<Duration>,
    /// Take no samples of what it costs
    #[arg(long, conflicts_with = "metrics_sample_interval")]
    disable_metrics_sample: bool,
}

/// The part of the user's configuration that is about it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    sandbox_defaults: Defaults,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Defaults {
    metrics_sample_interval_ms: Option<u64>,
    disable_metrics_sample: bool,
}

impl MetricsArgs {
    /// What was typed, if anything was.
    pub(crate) fn given(&self) -> Option<MetricsSpec> {
        let interval = self.metrics_sample_interval.map(milliseconds);
        let off = self.disable_metrics_sample.then_some(0);
        Some(MetricsSpec {
            sample_interval_ms: Some(off.or(interval)?),
        })
    }

    /// What was typed, else what is configured.
    pub(crate) fn choice(&self, home: &Home) -> anyhow::Result<MetricsSpec> {
        if let Some(given) = self.given() {
            return Ok(given);
        }
        let config: Option<Config> = write::read_json(&home.config(), CONFIG_BYTES_MAX)?;
        let defaults = config.unwrap_or_default().sandbox_defaults;
        let off = defaults.disable_metrics_sample.then_some(0);
        Ok(MetricsSpec {
            sample_interval_ms: off.or(defaults.metrics_sample_interval_ms),
        })
    }
}
