//! Tests that decode the requests with OpenTelemetry's own definitions.

use super::*;
use crate::exits::ExitCounters;
use crate::sample::Collection;
use crate::sample::{Labels, SampleValues};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{Metric as Decoded, NumberDataPoint, metric::Data};
use prost::Message;
use std::sync::Arc;

fn sample(name: &str) -> Sample {
    Sample {
        timestamp: Timestamp::from_second(100).unwrap(),
        values: SampleValues {
            cpu_percent: Some(25.0),
            memory_bytes: Some(0),
            cpu_secs: Some(1.5),
            pressure_io_some_secs: Some(2.0),
            pressure_io_full_secs: Some(1.0),
            processes: Some(u64::MAX),
            ..SampleValues::default()
        },
        identity: Arc::new(SandboxIdentity {
            name: name.to_owned(),
            id: 7,
            run_id: 8,
            pid: 9,
            started_at: Timestamp::from_second(60).unwrap(),
            labels: Labels::from([
                ("team".into(), "ml".into()),
                ("sandbox.name".into(), "another".into()),
            ]),
        }),
    }
}

fn decode(resource: &ExportResource, samples: Vec<Sample>) -> Vec<ExportMetricsServiceRequest> {
    let waiting = QueuedCollection {
        number: 0,
        collection: Collection {
            at: Timestamp::from_second(100).unwrap(),
            samples,
            exits: Vec::new(),
        },
        exits: ExitCounters::default(),
    };
    let mut stats = ExporterStats::new(Timestamp::from_second(50).unwrap());
    stats.dropped = 4;
    let mut memory = ReverseBuffer::default();
    let mut requests = ExportRequests::of(resource, &stats, &waiting, &mut memory);
    std::iter::from_fn(|| {
        let bytes = requests.next(&mut memory)?;
        Some(ExportMetricsServiceRequest::decode(bytes).unwrap())
    })
    .collect()
}

fn metrics(requests: &[ExportMetricsServiceRequest]) -> Vec<Decoded> {
    let all = requests.iter().flat_map(|request| &request.resource_metrics);
    all.flat_map(|resource| &resource.scope_metrics)
        .flat_map(|scope| scope.metrics.clone())
        .collect()
}

fn points(metrics: &[Decoded], name: &str) -> Vec<NumberDataPoint> {
    let named = metrics.iter().filter(|metric| metric.name == name);
    named
        .flat_map(|metric| match metric.data.clone().unwrap() {
            Data::Gauge(gauge) => gauge.data_points,
            Data::Sum(sum) => {
                assert!(sum.is_monotonic && sum.aggregation_temporality == 2);
                sum.data_points
            }
            other => panic!("{other:?}"),
        })
        .collect()
}

fn attributes(point: &NumberDataPoint) -> Vec<(String, String)> {
    let text = |value: Any| match value {
        Any::StringValue(text) => text,
        Any::IntValue(number) => format!("#{number}"),
        other => panic!("{other:?}"),
    };
    point
        .attributes
        .iter()
        .map(|pair| {
            let value = pair.value.clone().unwrap().value.unwrap();
            (pair.key.clone(), text(value))
        })
        .collect()
}

#[test]
fn a_point_has_value_times_and_attributes_and_missing_values_have_none() {
    let resource = ExportResource { run_id: true, ..ExportResource::default() };
    let metrics = metrics(&decode(&resource, vec![sample("web")]));
    let [cpu] = &points(&metrics, "microsandbox.cpu.utilization")[..] else {
        panic!("one sandbox has one point");
    };
    assert_eq!(cpu.value, Some(Number::AsDouble(0.25)));
    assert_eq!(cpu.time_unix_nano, 100_000_000_000);
    assert_eq!(cpu.start_time_unix_nano, 0);
    let expected =
        [("sandbox.name", "web"), ("sandbox.id", "#7"), ("sandbox.run_id", "#8"), ("team", "ml")];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(attributes(cpu), expected);
    let zero = &points(&metrics, "microsandbox.memory.usage")[0];
    assert_eq!(zero.value, Some(Number::AsInt(0)));
    assert_eq!(points(&metrics, "microsandbox.memory.limit"), []);
}

#[test]
fn counters_have_a_start_time_and_values_of_one_name_differ_in_attributes() {
    let metrics = metrics(&decode(&ExportResource::default(), vec![sample("web")]));
    let [time] = &points(&metrics, "microsandbox.cpu.time")[..] else {
        panic!("one sandbox has one point");
    };
    assert_eq!(time.start_time_unix_nano, 60_000_000_000);
    let pressure = points(&metrics, "microsandbox.pressure.time");
    let last: Vec<_> = pressure.iter().map(|point| attributes(point).split_off(3)).collect();
    let pairs = |stalled: &str| {
        [("resource", "io"), ("stalled", stalled)].map(|(k, v)| (k.to_owned(), v.to_owned()))
    };
    assert_eq!(last, [pairs("some"), pairs("full")]);
    let named = metrics.iter().filter(|metric| metric.name == "microsandbox.pressure.time");
    assert_eq!(named.count(), 1);
    let nonsense = &points(&metrics, "microsandbox.processes")[0];
    assert_eq!(nonsense.value, Some(Number::AsInt(i64::MAX)));
}

#[test]
fn exporter_statistics_are_sent_without_sandboxes_too() {
    let metrics = metrics(&decode(&ExportResource::default(), Vec::new()));
    let dropped = &points(&metrics, "microsandbox.collector.collections.dropped")[0];
    assert_eq!(dropped.value, Some(Number::AsInt(4)));
    assert_eq!(dropped.start_time_unix_nano, 50_000_000_000);
    assert_eq!(points(&metrics, "microsandbox.collector.last_success_timestamp"), []);
}

#[test]
fn a_thousand_sandboxes_are_split_into_requests_below_the_limit() {
    let mut all: Vec<Sample> = (0..1000).map(|number| sample(&format!("s{number}"))).collect();
    for sample in &mut all {
        let identity = Arc::make_mut(&mut sample.identity);
        identity.labels.insert("long".into(), "x".repeat(500));
    }
    let requests = decode(&ExportResource::default(), all);
    assert!(requests.len() > 1);
    assert!(requests.iter().all(|request| request.encoded_len() < 4 << 20));
    let metrics = metrics(&requests);
    assert_eq!(points(&metrics, "microsandbox.memory.usage").len(), 1000);
    let stats = points(&metrics, "microsandbox.collector.exports.success");
    assert_eq!(stats.len(), 1);
}
