//! Fuzz targets of msb-metrics: parsers of untrusted bytes. Any input is valid; a panic is a bug.

#![cfg_attr(fuzzing, no_main)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use msb_metrics::lines::{CollectionReader, write};

msb_test_fuzz::fuzz_targets! { "lines" => lines }

/// Reads collections and writes them as lines again.
fn rewritten(bytes: &[u8]) -> Vec<u8> {
    let (mut reader, mut out) = (CollectionReader::new(bytes), Vec::new());
    while let Some(collection) = reader.next_collection().unwrap() {
        write(&mut out, &collection).unwrap();
    }
    out
}

/// Reads lines of another process. What was read is the same after writing it and reading it again.
fn lines(bytes: &[u8]) {
    let once = rewritten(bytes);
    assert_eq!(rewritten(&once), once);
}
