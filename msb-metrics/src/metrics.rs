//! Table of metrics for OpenTelemetry and Prometheus: names, units, kinds.
//!
//! Names, units and kinds of the first eight are those of microsandbox: totals that it declares as
//! gauges stay gauges. All other totals are counters. Values with the same name are adjacent, and
//! differ in an attribute.

use crate::sample::{Sample, SampleValues};

/// Value of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum MetricValue {
    /// An integer.
    Int(u64),
    /// A floating-point number.
    Float(f64),
}

impl From<u64> for MetricValue {
    fn from(value: u64) -> MetricValue {
        MetricValue::Int(value)
    }
}

impl From<f64> for MetricValue {
    fn from(value: f64) -> MetricValue {
        MetricValue::Float(value)
    }
}

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetricKind {
    /// A value that can go up and down.
    Gauge,
    /// A total that only grows, from zero at the start of the sandbox.
    Counter,
}

/// A metric and its names.
pub(crate) struct Metric {
    /// Name in OpenTelemetry.
    pub(crate) name: &'static str,
    /// Name in Prometheus, including the unit.
    pub(crate) prom: &'static str,
    /// Description.
    pub(crate) about: &'static str,
    /// Unit in UCUM.
    pub(crate) unit: &'static str,
    /// Kind in OpenTelemetry. In Prometheus, a name that ends in `_total` is a counter.
    pub(crate) kind: MetricKind,
    /// Attributes that distinguish metrics of the same name.
    pub(crate) attributes: &'static [(&'static str, &'static str)],
    /// Function that returns the value.
    pub(crate) value: fn(&SampleValues) -> Option<MetricValue>,
}

macro_rules! metric {
    ($kind:ident $name:literal $prom:literal $unit:literal $about:literal, [$($key:literal = $value:literal),*], $get:expr) => {
        Metric {
            name: $name,
            prom: $prom,
            about: $about,
            unit: $unit,
            kind: MetricKind::$kind,
            attributes: &[$(($key, $value)),*],
            value: |values| { let get: fn(&SampleValues) -> Option<_> = $get; get(values).map(MetricValue::from) },
        }
    };
}

/// All metrics of a sandbox, those with the same name adjacent.
pub(crate) const METRICS: &[Metric] = &[
    metric!(Gauge "microsandbox.cpu.utilization" "microsandbox_cpu_utilization_ratio" "1"
        "CPU time of the virtual processors, by time: 1 is one processor", [], |f| f.cpu_percent.map(|percent| percent / 100.0)),
    metric!(Gauge "microsandbox.memory.usage" "microsandbox_memory_usage_bytes" "By"
        "Memory in use in the guest", [], |f| f.memory_bytes),
    metric!(Gauge "microsandbox.memory.limit" "microsandbox_memory_limit_bytes" "By"
        "Memory limit of the guest", [], |f| f.memory_limit_bytes),
    metric!(Gauge "microsandbox.disk.bytes_read" "microsandbox_disk_read_bytes_total" "By"
        "Bytes that the guest read from its disks", [], |f| f.disk_read_bytes),
    metric!(Gauge "microsandbox.disk.bytes_written" "microsandbox_disk_written_bytes_total" "By"
        "Bytes that the guest wrote to its disks", [], |f| f.disk_write_bytes),
    metric!(Gauge "microsandbox.network.bytes_received" "microsandbox_network_received_bytes_total" "By"
        "Bytes that the guest received", [], |f| f.net_rx_bytes),
    metric!(Gauge "microsandbox.network.bytes_sent" "microsandbox_network_sent_bytes_total" "By"
        "Bytes that the guest sent", [], |f| f.net_tx_bytes),
    metric!(Gauge "microsandbox.uptime" "microsandbox_uptime_seconds" "s"
        "Time since the sandbox was started", [], |f| f.uptime_secs),
    metric!(Gauge "microsandbox.cpu.count" "microsandbox_cpus" "{cpu}"
        "Virtual processors", [], |f| f.cpus),
    metric!(Counter "microsandbox.cpu.time" "microsandbox_cpu_seconds_total" "s"
        "CPU time of the virtual processors, as the host counts it", [], |f| f.cpu_secs),
    metric!(Counter "microsandbox.guest.cpu.time" "microsandbox_guest_cpu_seconds_total" "s"
        "CPU time of the virtual processors, as the guest counts it", [], |f| f.guest_cpu_secs),
    metric!(Counter "microsandbox.host.cpu.time" "microsandbox_host_cpu_seconds_total" "s"
        "CPU time of all processes of the sandbox on the host", [], |f| f.host_cpu_secs),
    metric!(Counter "microsandbox.host.wakeups" "microsandbox_host_wakeups_total" "{wakeup}"
        "Times that a thread of the sandbox woke up on the host", [], |f| f.wakeups),
    metric!(Gauge "microsandbox.memory.available" "microsandbox_memory_available_bytes" "By"
        "Memory available to programs in the guest", [], |f| f.memory_available_bytes),
    metric!(Gauge "microsandbox.memory.resident" "microsandbox_memory_resident_bytes" "By"
        "Memory of the sandbox's processes that is resident on the host", [], |f| f.memory_resident_bytes),
    metric!(Gauge "microsandbox.disk.size" "microsandbox_disk_size_bytes" "By"
        "Size of the file system on the writable disk", [], |f| f.disk_size_bytes),
    metric!(Gauge "microsandbox.disk.used" "microsandbox_disk_used_bytes" "By"
        "Used space of the file system on the writable disk", [], |f| f.disk_used_bytes),
    metric!(Gauge "microsandbox.disk.allocated" "microsandbox_disk_allocated_bytes" "By"
        "Space allocated on the host for the writable disk", [], |f| f.disk_allocated_bytes),
    metric!(Counter "microsandbox.network.packets_received" "microsandbox_network_received_packets_total" "{packet}"
        "Packets that the guest received", [], |f| f.net_rx_packets),
    metric!(Counter "microsandbox.network.packets_sent" "microsandbox_network_sent_packets_total" "{packet}"
        "Packets that the guest sent", [], |f| f.net_tx_packets),
    metric!(Counter "microsandbox.network.connections" "microsandbox_network_connections_total" "{connection}"
        "Connections that were opened", [], |f| f.net_connections),
    metric!(Counter "microsandbox.network.denied" "microsandbox_network_denied_total" "{connection}"
        "Connections that the policy refused", [], |f| f.net_denied),
    metric!(Gauge "microsandbox.network.open" "microsandbox_network_open_connections" "{connection}"
        "Connections that are open", [], |f| f.net_open),
    metric!(Counter "microsandbox.pressure.time" "microsandbox_pressure_seconds_total" "s"
        "Time in which some or all tasks of the guest waited for a resource", ["resource" = "cpu", "stalled" = "some"],
        |f| f.pressure_cpu_some_secs),
    metric!(Counter "microsandbox.pressure.time" "microsandbox_pressure_seconds_total" "s"
        "Time in which some or all tasks of the guest waited for a resource", ["resource" = "memory", "stalled" = "some"],
        |f| f.pressure_memory_some_secs),
    metric!(Counter "microsandbox.pressure.time" "microsandbox_pressure_seconds_total" "s"
        "Time in which some or all tasks of the guest waited for a resource", ["resource" = "memory", "stalled" = "full"],
        |f| f.pressure_memory_full_secs),
    metric!(Counter "microsandbox.pressure.time" "microsandbox_pressure_seconds_total" "s"
        "Time in which some or all tasks of the guest waited for a resource", ["resource" = "io", "stalled" = "some"],
        |f| f.pressure_io_some_secs),
    metric!(Counter "microsandbox.pressure.time" "microsandbox_pressure_seconds_total" "s"
        "Time in which some or all tasks of the guest waited for a resource", ["resource" = "io", "stalled" = "full"],
        |f| f.pressure_io_full_secs),
    metric!(Gauge "microsandbox.processes" "microsandbox_processes" "{process}"
        "Processes in the guest, its kernel's own not counted", [], |f| f.processes),
    metric!(Counter "microsandbox.oom_kills" "microsandbox_oom_kills_total" "{process}"
        "Processes that the guest's kernel killed for lack of memory", [], |f| f.oom_kills),
];

/// Exit counter: counts since the start of the collector.
pub(crate) const EXITS: (&str, &str, &str) = (
    "microsandbox.exits",
    "microsandbox_exits_total",
    "Times that a sandbox ended, by reason, since the collector was started",
);

/// Returns the metrics in groups of the same name.
pub(crate) fn by_name() -> impl DoubleEndedIterator<Item = &'static [Metric]> {
    METRICS.chunk_by(|one, next| one.name == next.name)
}

impl Metric {
    /// Returns the value in a sample.
    pub(crate) fn of(&self, sample: &Sample) -> Option<MetricValue> {
        (self.value)(&sample.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn metrics_of_one_name_are_adjacent_and_consistent() {
        let groups: Vec<_> = by_name().collect();
        let names: HashSet<_> = groups.iter().map(|group| group[0].name).collect();
        assert_eq!(names.len(), groups.len());
        for group in groups {
            let attributes: HashSet<_> = group.iter().map(|metric| metric.attributes).collect();
            assert_eq!(attributes.len(), group.len(), "{}", group[0].name);
            let first = &group[0];
            assert!(group.iter().all(|metric| (metric.prom, metric.unit, metric.kind)
                == (first.prom, first.unit, first.kind)));
        }
    }

    #[test]
    fn every_counter_is_a_counter_in_prometheus() {
        for metric in METRICS.iter().filter(|metric| metric.kind == MetricKind::Counter) {
            assert!(metric.prom.ends_with("_total"), "{}", metric.prom);
        }
    }
}
