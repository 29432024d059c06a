//! Resource usage of sandboxes.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::address::Address;
use super::error::Error;
use super::lines::Lines;
use super::tool;
use crate::state::Home;

const TOOL: &str = "msb-metrics";

/// A sample of the resource usage of a sandbox. Values that are not known are `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Processor time since the sample before, in percent of one processor.
    pub cpu_percent: Option<f64>,
    /// Memory that the machine uses.
    pub memory_bytes: Option<u64>,
    /// Memory of the guest.
    pub memory_limit_bytes: Option<u64>,
    /// Bytes read from disks.
    pub disk_read_bytes: Option<u64>,
    /// Bytes written to disks.
    pub disk_write_bytes: Option<u64>,
    /// Bytes received.
    pub net_rx_bytes: Option<u64>,
    /// Bytes sent.
    pub net_tx_bytes: Option<u64>,
    /// Time since the start, in seconds.
    pub uptime_secs: Option<f64>,
    /// Time of the sample, RFC 3339.
    pub timestamp: String,
}

/// Samples of a sandbox at an interval, until it ends.
///
/// ```no_run
/// # use std::time::Duration;
/// # use libmsb::sdk::Sandbox;
/// # fn main() -> Result<(), libmsb::sdk::Error> {
/// for sample in Sandbox::get("worker")?.metrics_stream(Duration::from_secs(1))?.take(10) {
///     println!("{:?}", sample?.cpu_percent);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MetricsStream {
    lines: Lines,
}

/// A line of `msb metrics show --watch` and `msb metrics jsonl`.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(flatten)]
    rest: serde_json::Value,
}

impl MetricsStream {
    pub(super) fn open(sandbox: &Address, interval: Duration) -> Result<MetricsStream, Error> {
        // The first call reports a sandbox without samples.
        read(sandbox)?;
        let interval = format!("--interval={}ms", interval.as_millis());
        let args = ["show", "--watch", &interval, "--format=json", "--", sandbox.name()];
        let lines = Lines::start(&sandbox.home, TOOL, args.map(str::to_owned))?;
        Ok(MetricsStream { lines })
    }

    /// Waits for the next sample; `None` after the end of the sandbox.
    pub fn recv(&mut self) -> Result<Option<Metrics>, Error> {
        loop {
            let Some(line) = self.lines.next::<Line>()? else { return Ok(None) };
            match line.kind.as_str() {
                "exit" => return Ok(None),
                "sample" => return tool::value(TOOL, line.rest).map(Some),
                _ => {}
            }
        }
    }
}

impl Iterator for MetricsStream {
    type Item = Result<Metrics, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.recv().transpose()
    }
}

pub(super) fn read(sandbox: &Address) -> Result<Metrics, Error> {
    let args = ["show", "--format=json", "--", sandbox.name()];
    tool::parse(TOOL, &tool::run(&sandbox.home, TOOL, args)?)
}

/// Returns the last sample of each running sandbox that has one, by name.
pub fn all_sandbox_metrics() -> Result<BTreeMap<String, Metrics>, Error> {
    let args = ["jsonl", "--count=1"].map(str::to_owned);
    let mut lines = Lines::start(&Home::from_env()?, TOOL, args)?;
    let mut all = BTreeMap::new();
    while let Some(line) = lines.next::<Line>()? {
        if line.kind == "sample" {
            all.insert(line.name, tool::value(TOOL, line.rest)?);
        }
    }
    Ok(all)
}
