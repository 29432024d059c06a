//! Benchmarks of the encodings of a collection of a hundred sandboxes.
//!
//! `cargo bench -p msb-metrics --features testing [NAME]`; `-- --save-baseline before` and
//! `-- --baseline before` compare two builds. tests/bench/metrics measures the whole program.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark fails by a panic"
)]

use std::fmt::Write;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use msb_metrics::lines::{CollectionReader, write};
use msb_metrics::sample::Collection;

/// Number of sandboxes.
const SANDBOXES: usize = 100;

fn lines() -> String {
    let mut text = String::new();
    for number in 0..SANDBOXES {
        writeln!(
            text,
            r#"{{"type":"sample","name":"worker-{number}","id":{number},"run_id":7,"pid":9,"timestamp":"2026-11-23T14:00:00Z","cpu_percent":25.5,"memory_bytes":104857600,"cpu_secs":12.5,"labels":{{"team":"ml","stage":"production"}}}}"#
        )
        .unwrap();
    }
    writeln!(
        text,
        r#"{{"type":"collected","timestamp":"2026-11-23T14:00:00Z","sandboxes":{SANDBOXES}}}"#
    )
    .unwrap();
    text
}

fn collection(text: &str) -> Collection {
    CollectionReader::new(text.as_bytes()).next_collection().unwrap().unwrap()
}

fn encodings(criterion: &mut Criterion) {
    let text = lines();
    let read = collection(&text);
    let mut group = criterion.benchmark_group("100 sandboxes");
    group.bench_function("JSON lines, read", |bencher| {
        bencher.iter(|| collection(black_box(&text)))
    });
    group.bench_function("JSON lines, written", |bencher| {
        let mut out = Vec::new();
        bencher.iter(|| {
            out.clear();
            write(&mut out, &read).unwrap();
            assert!(out.len() > SANDBOXES * 100);
        });
    });
    group.bench_function("OTLP requests", |bencher| {
        let encoder = msb_metrics::testing::OtlpEncoder::new(collection(&text));
        bencher.iter(|| assert!(encoder.encoded_len() > SANDBOXES * 100));
    });
    group.finish();
}

criterion_group!(encoding, encodings);
criterion_main!(encoding);
