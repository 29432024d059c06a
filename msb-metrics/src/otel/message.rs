//! Encoder from a collection to `ExportMetricsServiceRequest` (opentelemetry-proto 1.x; the doc of
//! each function lists the field numbers). Fields are put in reverse order: [`ReverseBuffer`].
//!
//! The attributes of a sandbox are encoded once for all of its points. A collection of many
//! sandboxes is split into several requests, because collectors accept at most 4 MiB by default.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::protobuf::ReverseBuffer;
use super::queue::QueuedCollection;
use crate::args::OtelArgs;
use crate::metrics::{EXITS, Metric, MetricKind, MetricValue, by_name};
use crate::sample::{Sample, SandboxIdentity};

/// Name of the instrumentation scope, the same as microsandbox's.
const SCOPE: &str = "microsandbox-metrics-collector";
/// Service name, the same as microsandbox's.
const SERVICE: &str = "microsandbox";
/// Size in bytes after which a request is full.
const REQUEST_BYTES: usize = 2 << 20;
/// Approximate size of a point without attributes.
const POINT_BYTES: usize = 40;
/// `AGGREGATION_TEMPORALITY_CUMULATIVE`.
const CUMULATIVE: u64 = 2;

/// Attributes of the OTLP resource, and optional attributes of sandboxes.
#[derive(Debug, Default)]
pub(super) struct ExportResource {
    attributes: BTreeMap<String, String>,
    run_id: bool,
    pid: bool,
}

impl ExportResource {
    /// Returns the resource for the command line and the environment.
    pub(super) fn new(args: &OtelArgs) -> ExportResource {
        let mut attributes = BTreeMap::from([("service.name".to_owned(), SERVICE.to_owned())]);
        let host = ["HOSTNAME", "COMPUTERNAME"];
        let host = host.iter().find_map(|name| std::env::var(name).ok());
        if let Some(host) = host.filter(|host| !host.is_empty()) {
            attributes.insert("service.instance.id".to_owned(), host);
        }
        attributes.extend(args.resource.iter().cloned());
        ExportResource { attributes, run_id: args.emit_run_id, pid: args.emit_pid }
    }
}

/// Statistics of the exporter about itself.
#[derive(Clone, Debug)]
pub(super) struct ExporterStats {
    since: Timestamp,
    pub(super) success: u64,
    pub(super) failure: u64,
    pub(super) dropped: u64,
    pub(super) last_success: Option<Timestamp>,
}

impl ExporterStats {
    /// Returns statistics that start at zero.
    pub(super) fn new(since: Timestamp) -> ExporterStats {
        ExporterStats { since, success: 0, failure: 0, dropped: 0, last_success: None }
    }
}

/// A sample with its attributes encoded.
struct EncodedSample<'a> {
    sample: &'a Sample,
    attributes: Box<[u8]>,
}

/// Requests of a collection, split by size. There is always at least one, which carries the
/// exporter's own statistics.
pub(super) struct ExportRequests<'a> {
    resource: &'a ExportResource,
    stats: &'a ExporterStats,
    waiting: &'a QueuedCollection,
    samples: Vec<EncodedSample<'a>>,
    /// Index of the first sample of the next request.
    next: usize,
    started: bool,
}

impl<'a> ExportRequests<'a> {
    /// Prepares the requests of a collection. `memory` is used as a scratch buffer; its contents
    /// are lost.
    pub(super) fn of(
        resource: &'a ExportResource,
        stats: &'a ExporterStats,
        waiting: &'a QueuedCollection,
        memory: &mut ReverseBuffer,
    ) -> ExportRequests<'a> {
        let samples = waiting.collection.samples.iter();
        let samples = samples.map(|sample| {
            memory.clear();
            put_attributes(memory, resource, &sample.identity);
            let attributes = memory.written().into();
            EncodedSample { sample, attributes }
        });
        ExportRequests {
            samples: samples.collect(),
            resource,
            stats,
            waiting,
            next: 0,
            started: false,
        }
    }

    /// Encodes the next request into `memory`.
    pub(super) fn next<'m>(&mut self, memory: &'m mut ReverseBuffer) -> Option<&'m [u8]> {
        let rest = self.samples.get(self.next..).unwrap_or_default();
        if rest.is_empty() && self.started {
            return None;
        }
        let chunk = next_chunk(rest);
        self.next += chunk.len();
        let stats = (!std::mem::replace(&mut self.started, true)).then_some(self.stats);
        memory.clear();
        put_request(memory, self.resource, self.waiting, chunk, stats);
        Some(memory.written())
    }
}

/// Returns the samples that fit into one request, at least one.
fn next_chunk<'a, 'b>(samples: &'b [EncodedSample<'a>]) -> &'b [EncodedSample<'a>] {
    let mut bytes = 0;
    let count = samples.iter().take_while(|encoded| {
        let fits = bytes < REQUEST_BYTES;
        bytes += crate::metrics::METRICS.len() * (encoded.attributes.len() + POINT_BYTES);
        fits
    });
    &samples[..count.count()]
}

/// Puts the request. ExportMetricsServiceRequest: resource_metrics 1. ResourceMetrics: resource 1,
/// scope_metrics 2. Resource: attributes 1. ScopeMetrics: scope 1, metrics 2. InstrumentationScope:
/// name 1, version 2.
fn put_request(
    out: &mut ReverseBuffer,
    resource: &ExportResource,
    waiting: &QueuedCollection,
    samples: &[EncodedSample<'_>],
    stats: Option<&ExporterStats>,
) {
    out.put_message(1, |out| {
        out.put_message(2, |out| {
            if let Some(stats) = stats {
                put_exits(out, stats, waiting);
                put_stats(out, stats, waiting.collection.at);
            }
            for metrics in by_name().rev() {
                put_metric(out, metrics, samples, waiting.collection.at);
            }
            out.put_message(1, |out| {
                out.put_text(2, env!("CARGO_PKG_VERSION"));
                out.put_text(1, SCOPE);
            });
        });
        out.put_message(1, |out| {
            for (key, value) in resource.attributes.iter().rev() {
                put_text(out, 1, key, value);
            }
        });
    });
}

/// Puts the metric of one name, if any sandbox has it.
fn put_metric(
    out: &mut ReverseBuffer,
    metrics: &[Metric],
    samples: &[EncodedSample<'_>],
    at: Timestamp,
) {
    let has = |metric: &Metric| samples.iter().any(|one| metric.of(one.sample).is_some());
    let Some(first) = metrics.first().filter(|_| metrics.iter().any(has)) else {
        return;
    };
    let mut more = ReverseBuffer::default();
    put_points(out, (first.name, first.about, first.unit), first.kind, |out| {
        for metric in metrics.iter().rev() {
            more.clear();
            for (key, value) in metric.attributes.iter().rev() {
                put_text(&mut more, ATTRIBUTES, key, value);
            }
            for EncodedSample { sample, attributes } in samples.iter().rev() {
                if let Some(value) = metric.of(sample) {
                    let since = sample.identity.started_at;
                    let since = (first.kind == MetricKind::Counter).then_some(since);
                    put_point(out, &[attributes, more.written()], since, at, value);
                }
            }
        }
    });
}

/// Puts a metric with its points. ScopeMetrics: metrics 2. Metric: name 1, description 2, unit 3,
/// gauge 5, sum 7. Gauge and Sum: data_points 1; Sum: aggregation_temporality 2, is_monotonic 3.
fn put_points(
    out: &mut ReverseBuffer,
    (name, about, unit): (&str, &str, &str),
    kind: MetricKind,
    fill: impl FnOnce(&mut ReverseBuffer),
) {
    out.put_message(2, |out| {
        match kind {
            MetricKind::Gauge => out.put_message(5, fill),
            MetricKind::Counter => out.put_message(7, |out| {
                out.put_number(3, 1);
                out.put_number(2, CUMULATIVE);
                fill(out);
            }),
        }
        out.put_text(3, unit);
        out.put_text(2, about);
        out.put_text(1, name);
    });
}

/// NumberDataPoint: attributes.
const ATTRIBUTES: u64 = 7;

/// Puts a point. Gauge, Sum: data_points 1. NumberDataPoint: start_time_unix_nano 2, time_unix_nano
/// 3, as_double 4, as_int 6.
fn put_point(
    out: &mut ReverseBuffer,
    attributes: &[&[u8]],
    since: Option<Timestamp>,
    at: Timestamp,
    value: MetricValue,
) {
    out.put_message(1, |out| {
        for part in attributes.iter().rev() {
            out.put_encoded(part);
        }
        match value {
            MetricValue::Float(value) => out.put_fixed(4, value.to_bits()),
            // The field is signed; a larger value is an error of the guest.
            MetricValue::Int(value) => out.put_fixed(6, value.min(i64::MAX as u64)),
        }
        out.put_fixed(3, nanoseconds(at));
        if let Some(since) = since {
            out.put_fixed(2, nanoseconds(since));
        }
    });
}

fn nanoseconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}

/// Puts a string attribute. KeyValue: key 1, value 2. AnyValue: string_value 1, int_value 3.
fn put_text(out: &mut ReverseBuffer, field: u64, key: &str, value: &str) {
    out.put_message(field, |out| {
        out.put_message(2, |out| out.put_text(1, value));
        out.put_text(1, key);
    });
}

fn put_integer(out: &mut ReverseBuffer, field: u64, key: &str, value: u64) {
    out.put_message(field, |out| {
        out.put_message(2, |out| out.put_number(3, value.min(i64::MAX as u64)));
        out.put_text(1, key);
    });
}

/// Puts the attributes of a sandbox. A label never replaces an attribute that identifies the
/// sandbox.
fn put_attributes(out: &mut ReverseBuffer, resource: &ExportResource, identity: &SandboxIdentity) {
    let reserved = ["sandbox.name", "sandbox.id", "sandbox.run_id", "sandbox.pid"];
    for (key, value) in identity.labels.iter().rev() {
        if !reserved.contains(&key.as_str()) {
            put_text(out, ATTRIBUTES, key, value);
        }
    }
    if resource.pid {
        put_integer(out, ATTRIBUTES, "sandbox.pid", identity.pid);
    }
    if resource.run_id {
        put_integer(out, ATTRIBUTES, "sandbox.run_id", identity.run_id);
    }
    put_integer(out, ATTRIBUTES, "sandbox.id", identity.id);
    put_text(out, ATTRIBUTES, "sandbox.name", &identity.name);
}

/// Puts the exporter's own statistics.
fn put_stats(out: &mut ReverseBuffer, stats: &ExporterStats, at: Timestamp) {
    for (name, about, value) in [
        ("microsandbox.collector.exports.success", "Collections that were exported", stats.success),
        ("microsandbox.collector.exports.failure", "Exports that failed", stats.failure),
        (
            "microsandbox.collector.collections.dropped",
            "Collections that were lost: the line was full, or they were refused",
            stats.dropped,
        ),
    ] {
        put_points(out, (name, about, "1"), MetricKind::Counter, |out| {
            put_point(out, &[], Some(stats.since), at, MetricValue::Int(value));
        });
    }
    if let Some(time) = stats.last_success {
        let seconds = time.as_nanosecond() as f64 / 1e9;
        let title = (
            "microsandbox.collector.last_success_timestamp",
            "When the last export succeeded: seconds since 1970",
            "s",
        );
        put_points(out, title, MetricKind::Gauge, |out| {
            put_point(out, &[], None, at, MetricValue::Float(seconds));
        });
    }
}

/// Puts the exit counters, if there are any.
fn put_exits(out: &mut ReverseBuffer, stats: &ExporterStats, waiting: &QueuedCollection) {
    if waiting.exits.iter().next().is_none() {
        return;
    }
    let mut attributes = ReverseBuffer::default();
    put_points(out, (EXITS.0, EXITS.2, "1"), MetricKind::Counter, |out| {
        for (name, reason, count) in waiting.exits.iter() {
            attributes.clear();
            put_text(&mut attributes, ATTRIBUTES, "reason", reason);
            if let Some(name) = name {
                put_text(&mut attributes, ATTRIBUTES, "sandbox.name", name);
            }
            let (since, at) = (Some(stats.since), waiting.collection.at);
            put_point(out, &[attributes.written()], since, at, MetricValue::Int(count));
        }
    });
}

#[cfg(test)]
mod tests;
