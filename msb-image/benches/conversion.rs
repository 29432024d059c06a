//! Benchmarks of image conversion: a layer to its two files, and layers to the metadata of a disk.
//!
//! `cargo bench -p msb-image --features testing [NAME]`; `-- --save-baseline before` and
//! `-- --baseline before` compare two builds. tests/bench/image measures the whole program.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark fails by a panic"
)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use libmsb::digest::Digest;
use msb_image::entry_points::{disk_of, put_layer, store};
use msb_image::testing::{TarBuilder, gzip, zstd};

/// Number of files of a layer.
const FILES: usize = 2000;
/// Size of each file, in bytes.
const FILE_BYTES: usize = 5000;

/// Builds the tar of a layer with text-like contents.
fn tar(layer: usize) -> Vec<u8> {
    let mut tar = TarBuilder::new();
    for number in 0..FILES {
        if number % 50 == 0 {
            tar = tar.directory(&format!("usr/lib/part{}", number / 50), 0o755);
        }
        let line = format!("file {number} of layer {layer}: some words that repeat\n");
        let contents: Vec<u8> = line.bytes().cycle().take(FILE_BYTES).collect();
        tar = tar.file(&format!("usr/lib/part{}/file{number}", number / 50), &contents);
    }
    tar.finish()
}

fn layers(criterion: &mut Criterion) {
    let plain = tar(0);
    let mut group = criterion.benchmark_group("layer");
    group.throughput(Throughput::Bytes(plain.len() as u64)).sample_size(20);
    let (_directory, store) = store();
    for (name, bytes) in [("tar", plain.clone()), ("gzip", gzip(&plain)), ("zstd", zstd(&plain))] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(put_layer(&store, &bytes)));
        });
    }
}

fn disks(criterion: &mut Criterion) {
    let (_directory, store) = store();
    let layers: Vec<Digest> = (0..4).map(|number| put_layer(&store, &tar(number))).collect();
    criterion.bench_function("disk of four layers", |bencher| {
        bencher.iter(|| black_box(disk_of(&store, &layers)));
    });
}

criterion_group!(benches, layers, disks);
criterion_main!(benches);
