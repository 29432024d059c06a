//! From a collection to the bytes of `ExportMetricsServiceRequest` (opentelemetry-proto 1.x; the field numbers beside each
//! function are its). All is put in the reverse of its order: [`Backwards`].
//!
//! The attributes of a sandbox are encoded once for all its points. A collection of many sandboxes makes several requests,
//! since collectors take 4 MiB at the most by default.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::buffer::Waiting;
use super::protobuf::Backwards;
use crate::args::OtelArgs;
use crate::metrics::{EXITS, Kind, Metric, Value, by_name};
use crate::sample::{Identity, Sample};

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
    attributes: Box<[u8]>,
}

/// The requests of a collection, none too large for a collector. There is always one, which has the exporter's own figures.
pub(super) struct Requests<'a> {
    resource: &'a Resource,
    own: &'a Own,
    waiting: &'a Waiting,
    samples: Vec<Encoded<'a>>,
    /// The first sample of the next request.
    next: usize,
    begun: bool,
}

impl<'a> Requests<'a> {
    /// Of one collection. `memory` is that of the requests, too; what is in it is lost.
    pub(super) fn of(
        resource: &'a Resource,
        own: &'a Own,
        waiting: &'a Waiting,
        memory: &mut Backwards,
    ) -> Requests<'a> {
        let samples = waiting.collection.samples.iter();
        let samples = samples.map(|sample| {
            memory.clear();
            put_attributes(memory, resource, &sample.identity);
            let attributes = memory.written().into();
            Encoded { sample, attributes }
        });
        Requests {
            samples: samples.collect(),
            resource,
            own,
            waiting,
            next: 0,
            begun: false,
        }
    }

    /// The next one, in the memory that is lent for it.
    pub(super) fn next<'m>(&mut self, memory: &'m mut Backwards) -> Option<&'m [u8]> {
        let rest = self.samples.get(self.next..).unwrap_or_default();
        if rest.is_empty() && self.begun {
            return None;
        }
        let part = part(rest);
        self.next += part.len();
        let own = (!std::mem::replace(&mut self.begun, true)).then_some(self.own);
        memory.clear();
        put_request(memory, self.resource, self.waiting, part, own);
        Some(memory.written())
    }
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
fn put_request(
    out: &mut Backwards,
    resource: &Resource,
    waiting: &Waiting,
    samples: &[Encoded<'_>],
    own: Option<&Own>,
) {
    out.put_message(1, |out| {
        out.put_message(2, |out| {
            if let Some(own) = own {
                put_exits(out, own, waiting);
                put_own(out, own, waiting.collection.at);
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

/// The metric of one name, if any sandbox has it.
fn put_metric(out: &mut Backwards, metrics: &[Metric], samples: &[Encoded<'_>], at: Timestamp) {
    let has = |metric: &Metric| samples.iter().any(|one| metric.of(one.sample).is_some());
    let Some(first) = metrics.first().filter(|_| metrics.iter().any(has)) else {
        return;
    };
    let mut more = Backwards::default();
    put_points(
        out,
        (first.name, first.about, first.unit),
        first.kind,
        |out| {
            for metric in metrics.iter().rev() {
                more.clear();
                for (key, value) in metric.attributes.iter().rev() {
                    put_text(&mut more, ATTRIBUTES, key, value);
                }
                for Encoded { sample, attributes } in samples.iter().rev() {
                    if let Some(value) = metric.of(sample) {
                        let since = sample.identity.started_at;
                        let since = (first.kind == Kind::Counter).then_some(since);
                        put_point(out, &[attributes, more.written()], since, at, value);
                    }
                }
            }
        },
    );
}

/// ScopeMetrics: metrics 2. Metric: name 1, description 2, unit 3, gauge 5, sum 7. Gauge and Sum: data_points 1; Sum:
/// aggregation_temporality 2, is_monotonic 3.
fn put_points(
    out: &mut Backwards,
    (name, about, unit): (&str, &str, &str),
    kind: Kind,
    fill: impl FnOnce(&mut Backwards),
) {
    out.put_message(2, |out| {
        match kind {
            Kind::Gauge => out.put_message(5, fill),
            Kind::Counter => out.put_message(7, |out| {
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

/// Gauge, Sum: data_points 1. NumberDataPoint: start_time_unix_nano 2, time_unix_nano 3, as_double 4, as_int 6.
fn put_point(
    out: &mut Backwards,
    attributes: &[&[u8]],
    since: Option<Timestamp>,
    at: Timestamp,
    value: Value,
) {
    out.put_message(1, |out| {
        for part in attributes.iter().rev() {
            out.put_encoded(part);
        }
        match value {
            Value::Float(value) => out.put_fixed(4, value.to_bits()),
            // The type is signed: what is beyond it is a guest's nonsense.
            Value::Int(value) => out.put_fixed(6, value.min(i64::MAX as u64)),
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

/// KeyValue: key 1, value 2. AnyValue: string_value 1, int_value 3.
fn put_text(out: &mut Backwards, field: u64, key: &str, value: &str) {
    out.put_message(field, |out| {
        out.put_message(2, |out| out.put_text(1, value));
        out.put_text(1, key);
    });
}

fn put_integer(out: &mut Backwards, field: u64, key: &str, value: u64) {
    out.put_message(field, |out| {
        out.put_message(2, |out| out.put_number(3, value.min(i64::MAX as u64)));
        out.put_text(1, key);
    });
}

/// A label never takes the place of an attribute that says which sandbox it is.
fn put_attributes(out: &mut Backwards, resource: &Resource, identity: &Identity) {
    let reserved = [
        "sandbox.name",
        "sandbox.id",
        "sandbox.run_id",
        "sandbox.pid",
    ];
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

/// What the exporter counts of itself.
fn put_own(out: &mut Backwards, own: &Own, at: Timestamp) {
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
        put_points(out, (name, about, "1"), Kind::Counter, |out| {
            put_point(out, &[], Some(own.since), at, Value::Int(value));
        });
    }
    if let Some(time) = own.last_success {
        let seconds = time.as_nanosecond() as f64 / 1e9;
        let title = (
            "microsandbox.collector.last_success_timestamp",
            "When the last export succeeded: seconds since 1970",
            "s",
        );
        put_points(out, title, Kind::Gauge, |out| {
            put_point(out, &[], None, at, Value::Float(seconds));
        });
    }
}

/// How sandboxes ended, if any did.
fn put_exits(out: &mut Backwards, own: &Own, waiting: &Waiting) {
    if waiting.exits.iter().next().is_none() {
        return;
    }
    let mut attributes = Backwards::default();
    put_points(out, (EXITS.0, EXITS.2, "1"), Kind::Counter, |out| {
        for (name, reason, count) in waiting.exits.iter() {
            attributes.clear();
            put_text(&mut attributes, ATTRIBUTES, "reason", reason);
            if let Some(name) = name {
                put_text(&mut attributes, ATTRIBUTES, "sandbox.name", name);
            }
            let (since, at) = (Some(own.since), waiting.collection.at);
            put_point(out, &[attributes.written()], since, at, Value::Int(count));
        }
    });
}

#[cfg(test)]
mod tests;
