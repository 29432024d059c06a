//! `msb-metrics`: resource usage of sandboxes, as tables, JSON lines, OTLP and Prometheus metrics.

use std::process::ExitCode;

fn main() -> ExitCode {
    libmsb::cli::main(msb_metrics::TOOL, msb_metrics::run)
}
