//! Logs of the output of commands.

use crate::support::{Home, wait_until};

/// Runs the main command of a sandbox `x` to its end, its input and output not a terminal.
fn ran(script: &str) -> Home {
    let home = Home::with_busybox();
    let outcome = home.run(["run", "--name", "x", "busybox:test", "--", "sh", "-c", script]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    home
}

#[test]
fn a_stopped_and_a_broken_sandbox_show_what_was_printed_byte_for_byte() {
    let home =
        ran(r"printf 'no end'; printf '\377\376\n\0x' >&2; sleep 0.2; printf ' gr\303\274n'");
    let outcome = home.run(["logs", "x"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(outcome.stdout, "no end grün".as_bytes());
    assert_eq!(outcome.stderr, b"\xff\xfe\n\0x");
    home.run(["logs", "--source", "stdout", "x"]).is(0, "no end grün", "");
    std::fs::write(home.state().join("sandboxes/x/spec.json"), "{").unwrap();
    home.run(["logs", "--source", "stdout", "x"]).is(0, "no end grün", "");
    home.run(["logs", "y"]).is(
        3,
        "",
        "msb logs: error: there is no sandbox 'y'\nmsb logs: hint: `msb ls` lists them\n",
    );
}

#[test]
fn lines_are_chosen_by_number_time_and_pattern() {
    let home = ran("for i in $(seq 20); do echo line $i; done; echo oops >&2; printf 'line last'");
    home.run(["logs", "-n", "2", "--source", "stdout", "x"]).is(0, "line 20\nline last", "");
    home.run(["logs", "--tail", "all", "--grep", "1[15]$", "x"]).is(0, "line 11\nline 15\n", "");
    home.run(["logs", "--grep", "^oops$", "x"]).is(0, "", "oops\n");
    home.run(["logs", "--since", "1h", "--source", "stderr", "x"]).is(0, "", "oops\n");
    home.run(["logs", "--until", "1h", "x"]).is(0, "", "");
    home.run(["logs", "--since", "2100-01-01", "x"]).is(0, "", "");
    let outcome = home.run(["logs", "--grep", "(", "x"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
}

#[test]
fn a_time_in_the_middle_parts_what_was_before_from_what_came_after() {
    let home = Home::with_busybox();
    for text in ["one", "two", "three"] {
        home.run(["run", "--name", "x", "busybox:test", "--", "echo", text]).done();
    }
    let lines = home.run(["logs", "--json", "x"]).done();
    let second: serde_json::Value = serde_json::from_str(lines.lines().nth(1).unwrap()).unwrap();
    assert_eq!(second["d"], "two\n");
    // The begin is part of what is meant, and the end is not.
    let time = second["t"].as_str().unwrap();
    home.run(["logs", "--since", time, "x"]).is(0, "two\nthree\n", "");
    home.run(["logs", "--until", time, "x"]).is(0, "one\n", "");
    home.run(["logs", "--since", time, "--until", time, "x"]).is(0, "", "");
}

#[test]
fn remarks_and_the_kernel_are_sources_of_their_own() {
    let home = ran("echo out");
    assert_eq!(
        home.run(["logs", "--source", "system", "x"]).done(),
        "sandbox started\nmain command ended with 0\nsandbox stopped\n"
    );
    let all = home.run(["logs", "--source", "all", "x"]).done();
    assert!(all.ends_with("out\nmain command ended with 0\nsandbox stopped\n"), "{all}");
    assert_eq!(home.run(["logs", "--source", "bad", "x"]).code, 2);
}

#[test]
fn json_and_times_are_for_programs_and_people() {
    let home = ran(r"echo out; printf '\377' >&2");
    let lines = home.run(["logs", "--json", "x"]).done();
    let mut rows: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    rows.sort_by_key(|row| row["s"].to_string());
    assert_eq!(
        (&rows[0]["s"], &rows[0]["d"], &rows[0]["e"]),
        (&"stderr".into(), &"/w==".into(), &"b64".into())
    );
    assert_eq!(
        (&rows[1]["s"], &rows[1]["d"], rows[1].get("e")),
        (&"stdout".into(), &"out\n".into(), None)
    );
    assert!(rows[0]["t"].as_str().unwrap().ends_with("+00:00"));
    assert_eq!(lines, home.run(["logs", "--format", "json", "x"]).done());
    let local = home.shell("TZ=Asia/Kolkata msb logs -t --source stdout x").done();
    assert!(local.trim_end().ends_with("+05:30 out"), "{local}");
    let colored = home.run(["logs", "--color", "always", "--source", "system", "--tail", "1", "x"]);
    colored.is(0, "\x1b[2msandbox stopped\x1b[0m\n", "");
    home.run(["logs", "--no-color", "--source", "stdout", "x"]).is(0, "out\n", "");
}

#[test]
fn following_goes_on_over_rotations_and_ends_with_the_sandbox() {
    let home = Home::with_busybox();
    // The log is rotated at ten megabytes.
    let script = "echo first; cat /dev/zero | tr '\\0' a | fold -w 99 | head -n 150000; echo last; sleep 1000";
    home.shell(&format!("msb run -d --name x busybox:test -- sh -c \"{script}\"")).done();
    let follower = home.start(["logs", "-f", "x"]);
    wait_until("everything is printed", || home.run(["logs", "-n", "1", "x"]).done() == "last\n");
    assert!(home.state().join("sandboxes/x/exec.log.1").exists());
    home.run(["stop", "-t", "1", "x"]).done();
    let outcome = follower.finish();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(outcome.stdout.len(), 6 + 150_000 * 100 + 5);
    assert!(outcome.stdout.starts_with(b"first\naaa") && outcome.stdout.ends_with(b"a\nlast\n"));
}

#[test]
fn a_cursor_goes_on_where_it_was_and_says_when_that_is_gone() {
    let home = Home::with_busybox();
    let run = |text: &str| {
        home.run(["run", "--name", "x", "busybox:test", "--", "echo", text]).done();
    };
    run("one");
    let shown = home.run(["logs", "--show-cursor", "x"]).done();
    let cursor = shown.strip_prefix("one\n-- cursor: ").unwrap().trim_end();
    run("two");
    home.run(["logs", "--after-cursor", cursor, "x"]).is(0, "two\n", "");
    let directory = home.state().join("sandboxes/x");
    std::fs::rename(directory.join("exec.log"), directory.join("exec.log.1")).unwrap();
    run("three");
    home.run(["logs", "--after-cursor", cursor, "x"]).is(0, "two\nthree\n", "");
    std::fs::remove_file(directory.join("exec.log.1")).unwrap();
    home.run(["logs", "--after-cursor", cursor, "x"]).is(
        1,
        "",
        "msb logs: error: the log entries after the cursor were rotated away (MissedRotation)\nmsb logs: hint: read from the start: omit --after-cursor\n",
    );
    let json = home.run(["logs", "--json", "--show-cursor", "x"]).done();
    assert!(json.lines().last().unwrap().starts_with("{\"cursor\":\""), "{json}");
}
