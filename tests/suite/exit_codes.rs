//! Exit codes of `run` and `exec`: the command's own status, or 125 to 127 when there was no
//! command.

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
        home.run([&["run", "busybox:test", "--"], command].concat()).is(code, stdout, "");
    }
}

#[test]
fn exec_ends_with_the_status_of_its_command() {
    let home = Guests::shared();
    for (command, code, stdout) in CASES {
        home.run([&["exec", "x", "--"], command].concat()).is(code, stdout, "");
    }
    not_started(&home.run(["exec", "x", "--", "no-such"]), 127, NO_PROGRAM);
    not_started(&home.run(["exec", "x", "--", "/etc/passwd"]), 126, NO_PERMISSION);
    not_started(&home.run(["exec", "x", "-u", "nobody-here", "--", "true"]), 125, NO_USER);
}

const NO_PROGRAM: &str = "cannot execute 'no-such': not found in PATH\n";
const NO_PERMISSION: &str = "cannot execute '/etc/passwd': permission denied\n";
const NO_USER: &str = "no user 'nobody-here' in the guest's /etc/passwd\n";

/// The command was not started, and one line ends with the reason.
#[track_caller]
fn not_started(outcome: &Outcome, code: i32, reason: &str) {
    assert_eq!(outcome.code, code, "{outcome:?}");
    let text = String::from_utf8_lossy(&outcome.stderr);
    let first = text.split_inclusive('\n').next().unwrap_or_default();
    assert!(first.contains(": error: ") && first.ends_with(reason), "{text}");
    assert_eq!(outcome.stdout, b"");
}

#[test]
fn run_ends_with_127_when_there_is_no_such_program() {
    let home = Home::with_busybox();
    not_started(&home.run(["run", "busybox:test", "--", "no-such"]), 127, NO_PROGRAM);
}

#[test]
fn run_ends_with_126_when_the_program_cannot_be_executed() {
    let home = Home::with_busybox();
    not_started(&home.run(["run", "busybox:test", "--", "/etc/passwd"]), 126, NO_PERMISSION);
    let directory = "cannot execute '/etc': is a directory\n";
    not_started(&home.run(["run", "busybox:test", "--", "/etc"]), 126, directory);
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
fn a_command_needs_no_dashes_and_its_options_are_its_own() {
    let home = Home::with_busybox();
    home.run(["run", "busybox:test", "sh", "-c", "echo got $0 $*; exit 7", "-n", "--rm"]).is(
        7,
        "got -n --rm\n",
        "",
    );
    home.run(["run", "busybox:test", "-e", "A=b", "--", "sh", "-c", "echo $A"]).is(0, "b\n", "");
    home.run(["run", "busybox:test", "--name", "x", "-d"]).is(0, "x\n", "");
    home.run(["exec", "-e", "A=b", "x", "-w", "/bin", "sh", "-c", "echo $A $PWD"])
        .is(0, "b /bin\n", "");
    home.run(["exec", "x", "echo", "--", "-e"]).is(0, "-- -e\n", "");
    home.run(["rm", "-f", "x"]).done();
}

#[test]
fn run_of_an_unknown_option_is_wrong_usage() {
    let home = Home::new();
    let outcome = home.run(["run", "--no-such-option", "busybox"]);
    assert_eq!(outcome.code, 125, "{outcome:?}");
}
