//! Sampling interval of a sandbox's metrics: the options and the configuration.

use std::time::Duration;

use clap::Args;
use libmsb::cli::args::parse_duration;
use libmsb::state::config::SandboxDefaults;
use libmsb::state::spec::MetricsSpec;

use crate::spec_builder::milliseconds;

/// Options for the sampling of metrics.
#[derive(Debug, Default, Args)]
pub(crate) struct MetricsArgs {
    /// Set the interval of metric samples; 0 disables them [default: 10s]
    ///
    /// Without this option, samples are taken more often while a client requests it; see
    /// msb-metrics(1).
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Resources")]
    metrics_sample_interval: Option<Duration>,
    /// Disable metric samples
    #[arg(long, conflicts_with = "metrics_sample_interval", help_heading = "Resources")]
    disable_metrics_sample: bool,
}

impl MetricsArgs {
    /// Returns the typed options, if any.
    pub(crate) fn given(&self) -> Option<MetricsSpec> {
        let interval = self.metrics_sample_interval.map(milliseconds);
        let off = self.disable_metrics_sample.then_some(0);
        Some(MetricsSpec { sample_interval_ms: Some(off.or(interval)?) })
    }

    /// Returns the typed options, else the configured ones.
    pub(crate) fn choice(&self, defaults: &SandboxDefaults) -> MetricsSpec {
        self.given().unwrap_or_else(|| {
            let off = defaults.disable_metrics_sample.then_some(0);
            MetricsSpec { sample_interval_ms: off.or(defaults.metrics_sample_interval_ms) }
        })
    }
}
