//! From a collection to the bytes of `ExportMetricsServiceRequest` (opentelemetry-proto 1.x; the field numbers beside each
//! function are its).
//!
//! The attributes of a sandbox are encoded once for all its points. A collection of many sandboxes makes several requests,
//! since collectors take 4 MiB at the most by default.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::buffer::Waiting;
use super::protobuf::{Bytes, put_bytes, put_fixed, put_message, put_number};
use crate::args::OtelArgs;
use crate::metrics::{EXITS, Kind, Metric, Value, by_name};
use crate::sample::{Collection, Identity, Sample};

/// Name of the scope, which is the reference's.
const SCOPE: &str = "microsandbox-metrics-collector";
/// Name of the service, likewise.
const SERVICE: &str = "microsandbox";
/// Bytes after which a request is full.
const REQUEST_BYTES: usize = 2 << 20;
/// Bytes of a point besides its attributes, about.
const POINT_BYTES: usize = 40;
/// `AGGREGATION_TEMPORALITY_CUMULATIVE`.
const CUMULATIVE: u64 = 2;

/// Who exports, and which attributes sandboxes have.
#[derive(Debug, Default)]
pub(super) struct Resource {
    attributes: BTreeMap<String, String>,
    run_id: bool,
    pid: bool,
}

impl Resource {
    /// As the command line and the environment have it.
    pub(super) fn new(args: &OtelArgs) -> Resource {
        let mut attributes = BTreeMap::from([("service.name".to_owned(), SERVICE.to_owned())]);
        let host = ["HOSTNAME", "COMPUTERNAME"];
        let host = host.iter().find_map(|name| std::env::var(name).ok());
        if let Some(host) = host.filter(|host| !host.is_empty()) {
            attributes.insert("service.instance.id".to_owned(), host);
        }
        attributes.extend(args.resource.iter().cloned());
        Resource {
            attributes,
            run_id: args.emit_run_id,
            pid: args.emit_pid,
        }
    }
}

/// What the exporter counts of itself.
#[derive(Clone, Debug)]
pub(super) struct Own {
    since: Timestamp,
    pub(super) success: u64,
    pub(super) failure: u64,
    pub(super) dropped: u64,
    pub(super) last_success: Option<Timestamp>,
}

impl Own {
    /// Nothing yet.
    pub(super) fn since(since: Timestamp) -> Own {
        Own {
            since,
            success: 0,
            failure: 0,
            dropped: 0,
            last_success: None,
        }
    }
}

/// A sandbox with its attributes encoded.
struct Encoded<'a> {
    sample: &'a Sample,
    attributes: Bytes,
}

/// The requests of a collection, none too large for a collector. There is always one, which has the exporter's own figures.
pub(super) fn requests<'a>(
    resource: &'a Resource,
    own: &'a Own,
    waiting: &'a Waiting,
) -> impl Iterator<Item = Vec<u8>> + 'a {
    let samples: Vec<Encoded<'a>> = waiting
        .collection
        .samples
        .iter()
        .map(|sample| Encoded {
            sample,
            attributes: attributes(resource, &sample.identity),
        })
        .collect();
    let mut next = 0;
    let mut first = true;
    std::iter::from_fn(move || {
        let rest = samples.get(next..).unwrap_or_default();
        if rest.is_empty() && !first {
            return None;
        }
        let part = part(rest);
        next += part.len();
        let own = std::mem::take(&mut first).then_some((own, waiting));
        Some(request(resource, &waiting.collection, part, own))
    })
}

/// As many as one request holds, and one at least.
fn part<'a, 'b>(samples: &'b [Encoded<'a>]) -> &'b [Encoded<'a>] {
    let mut bytes = 0;
    let count = samples.iter().take_while(|encoded| {
        let fits = bytes < REQUEST_BYTES;
        bytes += crate::metrics::METRICS.len() * (encoded.attributes.len() + POINT_BYTES);
        fits
    });
    &samples[..count.count()]
}

/// ExportMetricsServiceRequest: resource_metrics 1. ResourceMetrics: resource 1, scope_metrics 2. Resource: attributes 1.
/// ScopeMetrics: scope 1, metrics 2. InstrumentationScope: name 1, version 2.
fn request(
    resource: &Resource,
    collection: &Collection,
    samples: &[Encoded<'_>],
    own: Option<(&Own, &Waiting)>,
) -> Vec<u8> {
    let mut scope = Bytes::new();
    put_message(&mut scope, 1, |out| {
        put_bytes(out, 1, SCOPE.as_bytes());
        put_bytes(out, 2, env!("CARGO_PKG_VERSION").as_bytes());
    });
    for metrics in by_name() {
        put_metric(&mut scope, metrics, samples, collection.at);
    }
    if let Some((own, waiting)) = own {
        put_own(&mut scope, own, waiting);
    }
    let mut out = Bytes::with_capacity(scope.len() + 1024);
    put_message(&mut out, 1, |out| {
        put_message(out, 1, |out| {
            for (key, value) in &resource.attributes {
                put_text(out, 1, key, value);
            }
        });
        put_bytes(out, 2, &scope);
    });
    out
}

/// The metric of one name, if any sandbox has it.
fn put_metric(scope: &mut Bytes, metrics: &[Metric], samples: &[Encoded<'_>], at: Timestamp) {
    let Some(first) = metrics.first() else { return };
    let mut points = Bytes::new();
    for metric in metrics {
        let mut more = Bytes::new();
        for (key, value) in metric.attributes {
            put_text(&mut more, ATTRIBUTES, key, value);
        }
        for encoded in samples {
            if let Some(value) = metric.of(encoded.sample) {
                let since = encoded.sample.identity.started_at;
                let since = (first.kind == Kind::Counter).then_some(since);
                put_point(&mut points, &[&encoded.attributes, &more], since, at, value);
            }
        }
    }
    if !points.is_empty() {
        put_points(
            scope,
            (first.name, first.about, first.unit),
            first.kind,
            &points,
        );
    }
}

/// ScopeMetrics: metrics 2. Metric: name 1, description 2, unit 3, gauge 5, sum 7. Gauge and Sum: data_points 1; Sum:
/// aggregation_temporality 2, is_monotonic 3.
fn put_points(
    scope: &mut Bytes,
    (name, about, unit): (&str, &str, &str),
    kind: Kind,
    points: &[u8],
) {
    put_message(scope, 2, |out| {
        put_bytes(out, 1, name.as_bytes());
        put_bytes(out, 2, about.as_bytes());
        put_bytes(out, 3, unit.as_bytes());
        match kind {
            Kind::Gauge => put_bytes(out, 5, points),
            Kind::Counter => put_message(out, 7, |out| {
                out.extend_from_slice(points);
                put_number(out, 2, CUMULATIVE);
                put_number(out, 3, 1);
            }),
        }
    });
}

/// NumberDataPoint: attributes.
const ATTRIBUTES: u64 = 7;

/// Gauge, Sum: data_points 1. NumberDataPoint: start_time_unix_nano 2, time_unix_nano 3, as_double 4, as_int 6.
fn put_point(
    points: &mut Bytes,
    attributes: &[&[u8]],
    since: Option<Timestamp>,
    at: Timestamp,
    value: Value,
) {
    put_message(points, 1, |out| {
        out.reserve(POINT_BYTES + attributes.iter().map(|part| part.len()).sum::<usize>());
        for part in attributes {
            out.extend_from_slice(part);
        }
        if let Some(since) = since {
            put_fixed(out, 2, nanoseconds(since));
        }
        put_fixed(out, 3, nanoseconds(at));
        match value {
            Value::Float(value) => put_fixed(out, 4, value.to_bits()),
            // The type is signed: what is beyond it is a guest's nonsense.
            Value::Int(value) => put_fixed(out, 6, value.min(i64::MAX as u64)),
        }
    });
}

fn nanoseconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}

/// KeyValue: key 1, value 2. AnyValue: string_value 1, int_value 3.
fn put_text(out: &mut Bytes, field: u64, key: &str, value: &str) {
    put_message(out, field, |out| {
        put_bytes(out, 1, key.as_bytes());
        put_message(out, 2, |out| put_bytes(out, 1, value.as_bytes()));
    });
}

fn put_integer(out: &mut Bytes, field: u64, key: &str, value: u64) {
    put_message(out, field, |out| {
        put_bytes(out, 1, key.as_bytes());
        put_message(out, 2, |out| put_number(out, 3, value.min(i64::MAX as u64)));
    });
}

/// A label never takes the place of an attribute that says which sandbox it is.
fn attributes(resource: &Resource, identity: &Identity) -> Bytes {
    let mut out = Bytes::new();
    put_text(&mut out, ATTRIBUTES, "sandbox.name", &identity.name);
    put_integer(&mut out, ATTRIBUTES, "sandbox.id", identity.id);
    if resource.run_id {
        put_integer(&mut out, ATTRIBUTES, "sandbox.run_id", identity.run_id);
    }
    if resource.pid {
        put_integer(&mut out, ATTRIBUTES, "sandbox.pid", identity.pid);
    }
    let reserved = [
        "sandbox.name",
        "sandbox.id",
        "sandbox.run_id",
        "sandbox.pid",
    ];
    for (key, value) in &identity.labels {
        if !reserved.contains(&key.as_str()) {
            put_text(&mut out, ATTRIBUTES, key, value);
        }
    }
    out
}

/// What the exporter counts of itself, and how sandboxes ended.
fn put_own(scope: &mut Bytes, own: &Own, waiting: &Waiting) {
    let at = waiting.collection.at;
    for (name, about, value) in [
        (
            "microsandbox.collector.exports.success",
            "Collections that were exported",
            own.success,
        ),
        (
            "microsandbox.collector.exports.failure",
            "Exports that failed",
            own.failure,
        ),
        (
            "microsandbox.collector.collections.dropped",
            "Collections that were lost: the line was full, or they were refused",
            own.dropped,
        ),
    ] {
        let mut points = Bytes::new();
        put_point(&mut points, &[], Some(own.since), at, Value::Int(value));
        put_points(scope, (name, about, "1"), Kind::Counter, &points);
    }
    if let Some(time) = own.last_success {
        let mut points = Bytes::new();
        let seconds = time.as_nanosecond() as f64 / 1e9;
        put_point(&mut points, &[], None, at, Value::Float(seconds));
        let title = (
            "microsandbox.collector.last_success_timestamp",
            "When the last export succeeded: seconds since 1970",
            "s",
        );
        put_points(scope, title, Kind::Gauge, &points);
    }
    put_exits(scope, own, waiting);
}

fn put_exits(scope: &mut Bytes, own: &Own, waiting: &Waiting) {
    let mut points = Bytes::new();
    for (name, reason, count) in waiting.exits.iter() {
        let mut attributes = Bytes::new();
        if let Some(name) = name {
            put_text(&mut attributes, ATTRIBUTES, "sandbox.name", name);
        }
        put_text(&mut attributes, ATTRIBUTES, "reason", reason);
        let (since, at) = (Some(own.since), waiting.collection.at);
        put_point(&mut points, &[&attributes], since, at, Value::Int(count));
    }
    if !points.is_empty() {
        put_points(scope, (EXITS.0, EXITS.2, "1"), Kind::Counter, &points);
    }
}

#[cfg(test)]
mod tests;
