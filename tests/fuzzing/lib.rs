//! The harness of fuzz targets. A package `fuzz/` of a crate declares its targets with
//! [`fuzz_targets!`]: functions that take any bytes and must not panic.
//!
//! `cargo test` runs every input of the crate's `tests/corpus` through its target. `tests/fuzz`
//! searches for new inputs with libFuzzer: it builds with `--cfg fuzzing` and names the target in
//! `MSB_FUZZ`. Built as usual, the program runs a target once for each file: `msb-net-fuzz TARGET
//! FILE...`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a harness of tests fails by a panic"
)]

use std::path::Path;
use std::process::ExitCode;

#[cfg(fuzzing)]
pub use libfuzzer_sys;

/// A fuzz target: takes one input.
pub type FuzzTarget = fn(&[u8]);

/// Fuzz targets by name: that of their directory in `tests/corpus`.
pub type FuzzTargets = [(&'static str, FuzzTarget)];

/// Fewest inputs of a target in the corpus.
const INPUTS_MIN: usize = 10;

/// Declares the fuzz targets of a package, its `main`, and the test that replays the corpus of the
/// crate one directory above.
#[macro_export]
macro_rules! fuzz_targets {
    ($($name:literal => $target:path),+ $(,)?) => {
        const FUZZ_TARGETS: &[(&str, $crate::FuzzTarget)] = &[$(($name, $target)),+];

        #[cfg(fuzzing)]
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
            static TARGET: std::sync::LazyLock<$crate::FuzzTarget> =
                std::sync::LazyLock::new(|| $crate::chosen(FUZZ_TARGETS));
            TARGET(bytes);
        });

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            $crate::run_files(FUZZ_TARGETS)
        }

        #[cfg(test)]
        #[test]
        fn every_input_of_the_corpus_passes_its_fuzz_target() {
            $crate::replay_corpus(env!("CARGO_MANIFEST_DIR"), FUZZ_TARGETS);
        }
    };
}

/// Returns the target of a name.
fn find(targets: &FuzzTargets, name: &str) -> Option<FuzzTarget> {
    targets.iter().find(|(target, _)| *target == name).map(|(_, target)| *target)
}

/// Returns the target that `MSB_FUZZ` names.
pub fn chosen(targets: &FuzzTargets) -> FuzzTarget {
    let name = std::env::var("MSB_FUZZ").expect("MSB_FUZZ must name a fuzz target");
    find(targets, &name).expect("MSB_FUZZ names an unknown fuzz target")
}

/// Runs the target of the first argument once for each further argument, a file.
pub fn run_files(targets: &FuzzTargets) -> ExitCode {
    let mut args = std::env::args().skip(1);
    let target = args.next().and_then(|name| find(targets, &name));
    let Some(target) = target else {
        let names: Vec<&str> = targets.iter().map(|(name, _)| *name).collect();
        eprintln!("usage: TARGET FILE...\ntargets: {}", names.join(" "));
        return ExitCode::from(2);
    };
    for file in args {
        target(&std::fs::read(&file).expect("the input cannot be read"));
    }
    ExitCode::SUCCESS
}

/// Runs every input in `tests/corpus` of the crate above a fuzz package through its target.
pub fn replay_corpus(package: &str, targets: &FuzzTargets) {
    let corpus = Path::new(package).join("../tests/corpus");
    for (name, target) in targets {
        let mut count = 0;
        for input in std::fs::read_dir(corpus.join(name)).expect("a target has a corpus") {
            let input = input.unwrap().path();
            target(&std::fs::read(&input).unwrap());
            count += 1;
        }
        assert!(count >= INPUTS_MIN, "{name}: {count} inputs");
    }
}
