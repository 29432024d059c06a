//! What `run` and `exec` end with: the command's own status, or 125 to 127 when there was no command.

use crate::support::{Guests, Home, Outcome};

/// Arguments after `run IMAGE --` or `exec NAME --`, and what must come of them.
const CASES: [(&[&str], i32, &str); 5] = [
    (&["true"], 0, ""),
    (&["sh", "-c", "exit 3"], 3, ""),
    (&["sh", "-c", "exit 255"], 255, ""),
    (&["sh", "-c", "kill -9 $$"], 137, ""),
    (&["sh", "-c", "kill -TERM $$"], 143, ""),
];

#[test]
fn run_ends_with_the_status_of_its_command() {
    let home = Home::with_busybox();
    for (command, code, stdout) in CASES {
        home.run([&["run", "busybox:test", "--"], command].concat())
            .is(code, stdout, "");
    }
}

#[test]
fn exec_ends_with_the_status_of_its_command() {
    let home = Guests::shared();
    for (command, code, stdout) in CASES {
        home.run([&["exec", "x", "--"], command].concat())
            .is(code, stdout, "");
    }
    not_started(&home.run(["exec", "x", "--", "no-such"]), 127, NO_PROGRAM);
    not_started(
        &home.run(["exec", "x", "--", "/etc/passwd"]),
        126,
        NO_PERMISSION,
    );
    not_started(
        &home.run(["exec", "x", "-u", "nobody-here", "--", "true"]),
        125,
        NO_USER,
    );
}

const NO_PROGRAM: &str = "cannot execute 'no-such': no such program in the PATH\n";
const NO_PERMISSION: &str = "cannot execute '/etc/passwd': permission denied\n";
const NO_USER: &str = "no user 'nobody-here' in the guest's /etc/passwd\n";

/// The command was not started, and one line ends with the reason.
#[track_caller]
fn not_started(outcome: &Outcome, code: i32, reason: &str) {
    assert_eq!(outcome.code, code, "{outcome:?}");
    let text = String::from_utf8_lossy(&outcome.stderr);
    let first = text.split_inclusive('\n').next().unwrap_or_default();
    assert!(
        first.contains(": error: ") && first.ends_with(reason),
        "{text}"
    );
    assert_eq!(outcome.stdout, b"");
}

#[test]
fn run_ends_with_127_when_there_is_no_such_program() {
    let home = Home::with_busybox();
    not_started(
        &home.run(["run", "busybox:test", "--", "no-such"]),
        127,
        NO_PROGRAM,
    );
}

#[test]
fn run_ends_with_126_when_the_program_cannot_be_executed() {
    let home = Home::with_busybox();
    not_started(
        &home.run(["run", "busybox:test", "--", "/etc/passwd"]),
        126,
        NO_PERMISSION,
    );
    let folder = "cannot execute '/etc': is a directory\n";
    not_started(
        &home.run(["run", "busybox:test", "--", "/etc"]),
        126,
        folder,
    );
}

#[test]
fn run_ends_with_125_when_the_failure_is_ours() {
    let home = Home::with_busybox();
    not_started(
        &home.run(["run", "-u", "nobody-here", "busybox:test", "--", "true"]),
        125,
        NO_USER,
    );
    not_started(
        &home.run(["run", "--pull", "never", "no-such-image"]),
        125,
        "there is no image 'no-such-image:latest'\n",
    );
}

#[test]
fn a_command_without_its_dashes_is_told_where_they_go() {
    let outcome = Home::new().run(["run", "busybox", "uname"]);
    assert_eq!(outcome.code, 125, "{outcome:?}");
    let hint = "msb-run: hint: a command goes after '--', as in: msb run IMAGE -- COMMAND\n";
    let stderr = String::from_utf8_lossy(&outcome.stderr);
    assert!(stderr.ends_with(hint), "{stderr}");
}

#[test]
fn run_of_an_unknown_option_is_wrong_usage() {
    let home = Home::new();
    let outcome = home.run(["run", "--no-such-option", "busybox"]);
    assert_eq!(outcome.code, 125, "{outcome:?}");
}
