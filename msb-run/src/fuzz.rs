//! Fuzz targets: one function for each parser of untrusted bytes. Every input is valid; a panic is
//! a bug.
//!
//! `cargo test` runs every input of `tests/corpus`; `tests/fuzz` searches for new inputs with
//! libFuzzer.

use crate::snapshot;
use crate::supervisor::relay;

/// A fuzz target. Its name is that of its directory in `tests/corpus`.
pub(crate) type FuzzTarget = fn(&[u8]);

/// All fuzz targets by name.
pub(crate) const FUZZ_TARGETS: [(&str, FuzzTarget); 3] = [
    ("relay", relay::tests::fuzz_agent_frames),
    ("snapshot-archive", snapshot::fuzz::archive),
    ("snapshot-manifest", snapshot::fuzz::manifest),
];

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static TARGET: std::sync::LazyLock<FuzzTarget> = std::sync::LazyLock::new(|| {
        let name = std::env::var("MSB_FUZZ").expect("MSB_FUZZ names a fuzz target");
        let found = FUZZ_TARGETS.iter().find(|(target, _)| *target == name);
        found.expect("MSB_FUZZ names an unknown fuzz target").1
    });
    TARGET(bytes);
});

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    #[test]
    fn every_input_of_the_corpus_passes_its_target() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
        for (name, target) in FUZZ_TARGETS {
            let mut count = 0;
            for input in fs::read_dir(corpus.join(name)).unwrap() {
                target(&fs::read(input.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count >= 10, "{name}: {count} inputs");
        }
    }
}
