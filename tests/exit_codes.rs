//! What `run` and `exec` end with: the command's own status, or 125 to 127 when there was no command.

use crate::support::Home;

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
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test"])
        .done();
    for (command, code, stdout) in CASES {
        home.run([&["exec", "x", "--"], command].concat())
            .is(code, stdout, "");
    }
    home.run(["exec", "x", "--", "no-such"]).is(
        127,
        "",
        "msb-exec: error: cannot execute 'no-such': no such program in the PATH\n",
    );
    home.run(["exec", "x", "--", "/etc/passwd"]).is(
        126,
        "",
        "msb-exec: error: cannot execute '/etc/passwd': permission denied\n",
    );
    home.run(["exec", "x", "-u", "nobody-here", "--", "true"])
        .is(
            125,
            "",
            "msb-exec: error: no user 'nobody-here' in the guest's /etc/passwd\n",
        );
    home.run(["stop", "x"]).done();
}

#[test]
fn run_ends_with_127_when_there_is_no_such_program() {
    let home = Home::with_busybox();
    home.run(["run", "busybox:test", "--", "no-such"]).is(
        127,
        "",
        "msb-run: error: cannot execute 'no-such': no such program in the PATH\n",
    );
}

#[test]
fn run_ends_with_126_when_the_program_cannot_be_executed() {
    let home = Home::with_busybox();
    home.run(["run", "busybox:test", "--", "/etc/passwd"]).is(
        126,
        "",
        "msb-run: error: cannot execute '/etc/passwd': permission denied\n",
    );
    home.run(["run", "busybox:test", "--", "/etc"]).is(
        126,
        "",
        "msb-run: error: cannot execute '/etc': is a directory\n",
    );
}

#[test]
fn run_ends_with_125_when_the_failure_is_ours() {
    let home = Home::with_busybox();
    home.run(["run", "no-such-image", "--", "true"]).is(
        125,
        "",
        "msb-run: error: no such image: 'docker.io/library/no-such-image:latest'\n",
    );
    home.run(["run", "-u", "nobody-here", "busybox:test", "--", "true"])
        .is(
            125,
            "",
            "msb-run: error: no user 'nobody-here' in the guest's /etc/passwd\n",
        );
}

#[test]
fn run_of_an_unknown_option_is_wrong_usage() {
    let home = Home::new();
    let outcome = home.run(["run", "--no-such-option", "busybox"]);
    assert_eq!(outcome.code, 125, "{outcome:?}");
}
