//! The Python SDK: its own tests, run as a user of the programs runs them. Types, archives and other
//! interpreters are checked by tests/python-check.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::{Home, stage};

/// Runs modules of the SDK's tests with the programs and state directory of a home. Prints the
/// counts, and fails with the output of the tests.
fn run(home: &Home, modules: &str) {
    let sdk = stage("source/libmsb/python");
    let outcome = home.shell(&format!(
        "cd '{}' && PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=src MSB_TEST_IMAGE=busybox:test \
         python3 -m unittest {modules}",
        sdk.display()
    ));
    let text = String::from_utf8_lossy(&outcome.stderr);
    let printed = String::from_utf8_lossy(&outcome.stdout);
    let counts = text.lines().chain(printed.lines());
    for line in counts.filter(|line| {
        line.starts_with("Ran ") || line.starts_with("names:") || line.starts_with("documented:")
    }) {
        println!("python: {modules}: {line}");
    }
    assert_eq!(outcome.code, 0, "{text}");
    assert!(!text.contains("skipped"), "{text}");
}

#[test]
fn the_python_sdk_speaks_the_wire_protocol_with_old_hostile_and_dying_peers() {
    run(&Home::new(), "tests.test_wire");
}

#[test]
fn the_python_sdk_has_every_name_parameter_and_default() {
    run(&Home::new(), "tests.test_names");
}

#[test]
fn the_python_sdk_runs_commands_and_copies_files_in_a_shared_sandbox() {
    run(&Home::with_busybox(), "tests.test_shared");
}

#[test]
fn the_python_sdk_creates_cancels_and_outlives_sandboxes() {
    run(&Home::with_busybox(), "tests.test_lifecycle");
}

#[test]
fn the_python_sdk_serves_ports_snapshots_volumes_and_images() {
    run(&Home::with_busybox(), "tests.test_resources");
}

#[test]
fn calls_as_the_documentation_of_microsandbox_shows_them_run_unchanged() {
    run(&Home::with_busybox(), "tests.test_documented");
}

#[test]
fn the_python_sdk_works_without_await_in_threads_loops_and_after_a_fork() {
    run(&Home::with_busybox(), "tests.test_sync");
}

#[test]
fn the_examples_of_the_python_sdk_run() {
    run(&Home::with_busybox(), "tests.test_examples");
}

#[test]
fn the_python_sdk_has_no_dependency_and_its_files_are_small() {
    let sdk = stage("source/libmsb/python");
    let project = fs::read_to_string(sdk.join("pyproject.toml")).unwrap();
    assert!(project.contains("dependencies = []"));
    let mut lines = BTreeMap::new();
    for directory in ["src/microsandbox", "tests", "examples"] {
        count_lines(&sdk.join(directory), &mut lines);
    }
    assert!(lines.len() > 40, "{lines:?}");
    let long: Vec<_> = lines.iter().filter(|(_, lines)| **lines > 500).collect();
    assert!(long.is_empty(), "{long:?}");
}

fn count_lines(directory: &Path, lines: &mut BTreeMap<String, usize>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        // The generated module has a line for each signature.
        if name.ends_with(".py") && name != "sync.py" {
            lines.insert(name, fs::read_to_string(entry.path()).unwrap().lines().count());
        }
    }
}
