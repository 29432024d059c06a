//! The TypeScript SDK: its own tests, run as a user of the programs runs them. Types, archives and
//! other run-times are checked by tests/typescript-check.

use std::fs;

use crate::support::{Home, stage};

/// Runs files of the SDK's tests with the programs and state directory of a home. Prints the counts,
/// and fails with the output of the tests.
fn run(home: &Home, files: &str) {
    let sdk = stage("source/libmsb/typescript");
    let outcome = home.shell(&format!(
        "cd '{}' && MSB_TEST_IMAGE=busybox:test node --test --test-reporter=tap {files}",
        sdk.display()
    ));
    let text = String::from_utf8_lossy(&outcome.stdout);
    for line in text.lines().filter(|line| line.starts_with("# pass") || line.contains("names:")) {
        println!("typescript: {files}: {line}");
    }
    assert_eq!(outcome.code, 0, "{text}{}", String::from_utf8_lossy(&outcome.stderr));
    assert!(text.contains("\n# skipped 0\n"), "{text}");
}

#[test]
fn the_typescript_sdk_has_every_name_and_speaks_with_old_hostile_and_dying_peers() {
    run(&Home::new(), "tests/names.test.js tests/wire.test.js");
}

#[test]
fn the_typescript_sdk_runs_commands_and_copies_files_in_one_sandbox() {
    run(&Home::with_busybox(), "tests/shared.test.js");
}

#[test]
fn the_typescript_sdk_creates_aborts_and_outlives_sandboxes() {
    run(&Home::with_busybox(), "tests/lifecycle.test.js");
}

#[test]
fn the_examples_of_the_typescript_sdk_run() {
    run(&Home::with_busybox(), "tests/examples.test.js");
}

#[test]
fn the_typescript_sdk_has_no_dependency_and_its_files_are_small() {
    let sdk = stage("source/libmsb/typescript");
    let package = fs::read_to_string(sdk.join("package.json")).unwrap();
    assert!(!package.to_lowercase().contains("dependencies"), "{package}");
    let mut count = 0;
    for directory in ["src", "tests", "examples"] {
        for entry in fs::read_dir(sdk.join(directory)).unwrap().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap();
            assert!(text.lines().count() <= 650, "{}", entry.path().display());
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}
