//! Commands with limits, in time, and as records; the clock that they see.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::{Guests, Home, wait_until};

#[test]
fn a_command_has_the_limits_that_were_asked_for() {
    let home = Guests::shared();
    let script = "ulimit -Sn; ulimit -Hn; ulimit -c";
    let limits = ["--rlimit", "nofile=64:128", "--rlimit", "CORE=0"];
    let command = [&["exec"], &limits[..], &["x", "--", "sh", "-c", script]].concat();
    home.run(&command).is(0, "64\n128\n0\n", "");
    // Also for somebody who could not raise them.
    let raised = "msb exec -u alice --rlimit nofile=1048577 x -- sh -c 'ulimit -n'";
    home.shell(raised).is(
        125,
        "",
        "msb exec: error: in the guest: cannot set a resource limit: operation not permitted\n",
    );
    for wrong in ["nofile", "nofile=x", "pages=1", "nofile=2:1", "nofile=unlimited:5"] {
        let outcome = home.run(["exec", "--rlimit", wrong, "x", "--", "true"]);
        assert_eq!(outcome.code, 125, "{wrong}: {outcome:?}");
    }
    home.run(["run", "--rlimit", "stack=1048576", "busybox:test", "--", "sh", "-c", "ulimit -s"])
        .is(0, "1024\n", "");
}

#[test]
fn a_command_that_does_not_end_in_time_is_killed_with_all_its_processes() {
    let home = Guests::shared();
    let late = "msb exec: error: the command exceeded its timeout and was killed\n";
    let script = "echo begun; sleep 4321 & sleep 4321";
    // Long enough for it to begin on a machine that does much else.
    let begin = Instant::now();
    home.run(["exec", "--timeout", "10s", "x", "--", "sh", "-c", script]).is(124, "begun\n", late);
    assert!(begin.elapsed() < Duration::from_secs(60));
    wait_until("all of it is gone", || {
        !home.run(["exec", "x", "--", "ps"]).done().contains("sleep 4321")
    });
    home.run(["exec", "--timeout", "1h", "x", "--", "sh", "-c", "exit 7"]).is(7, "", "");
    let outcome = home.run(["run", "--timeout", "500ms", "busybox:test", "--", "sleep", "1000"]);
    assert_eq!(outcome.code, 124, "{outcome:?}");
}

#[test]
fn a_record_says_all_of_a_result() {
    let home = Guests::shared();
    let record = |arguments: &[&str]| -> (i32, serde_json::Value) {
        let outcome = home.run([&["exec", "--format", "json"], arguments].concat());
        (outcome.code, serde_json::from_slice(&outcome.stdout).unwrap())
    };
    let script = r"echo out; printf '\377' >&2; exit 3";
    let (code, row) = record(&["x", "--", "sh", "-c", script]);
    assert_eq!(
        (code, &row["exit_code"], &row["type"], &row["sandbox"]),
        (3, &3.into(), &"exec".into(), &"x".into())
    );
    assert_eq!((&row["stdout"], &row["stderr_b64"]), (&"out\n".into(), &"/w==".into()));
    assert_eq!(
        (row.get("stderr"), row.get("signal"), &row["timed_out"]),
        (None, None, &false.into())
    );
    assert!(row["duration_ms"].is_u64());
    let (code, row) =
        record(&["--timeout", "10s", "x", "--", "sh", "-c", "echo a; exec sleep 100"]);
    assert_eq!((code, &row["exit_code"], &row["signal"]), (124, &124.into(), &9.into()));
    assert_eq!((&row["timed_out"], &row["stdout"]), (&true.into(), &"a\n".into()));
    assert_eq!(row["truncated"], false);
    let (code, row) = record(&["x", "--", "nothing-like-it"]);
    assert_eq!((code, &row["exit_code"]), (127, &127.into()));
    assert!(row["error"].as_str().unwrap().contains("nothing-like-it"), "{row}");
}

/// Most memory of a client that keeps 8 MiB of either stream, in KiB.
const CAPTURING_KIB_MAX: u64 = 48 * 1024;

#[test]
fn a_record_keeps_the_start_of_long_output_in_bounded_memory() {
    let home = Guests::one();
    let flood = "yes a | head -c 9000000; printf '\\377' >&2; yes a | head -c 9000000 >&2; exit 3";
    let script = format!(
        "/usr/bin/python3 -c 'import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)' msb exec --format json x -- sh -c \"{flood}\""
    );
    let outcome = home.shell(&script).done();
    let (line, usage) = outcome.trim_end().rsplit_once('\n').unwrap();
    let row: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!((&row["truncated"], &row["exit_code"]), (&true.into(), &3.into()));
    assert_eq!(row["stdout"].as_str().unwrap().len(), 8 << 20);
    assert_eq!(row["stderr_b64"].as_str().unwrap().len(), (8_usize << 20).div_ceil(3) * 4);
    let (code, peak) = usage.split_once(' ').unwrap();
    let peak: u64 = peak.parse().unwrap();
    eprintln!("memory of a client that was flooded: at most {peak} KiB");
    assert!(code == "3" && peak < CAPTURING_KIB_MAX, "{usage}");
    let small = ["exec", "--format", "json", "--capture-max", "1", "x", "--", "sh", "-c"];
    let outcome = home.run([&small[..], &["yes a | head -c 1048577"]].concat());
    let row: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!(row["truncated"], true);
    assert_eq!(row["stdout"].as_str().unwrap().len(), 1 << 20);
    let refused = home.run(["exec", "--capture-max", "1", "x", "--", "true"]);
    assert_eq!(refused.code, 125, "{refused:?}");
}

#[test]
fn a_session_is_logged_when_asked_for_under_an_id_of_its_own() {
    let home = Guests::one();
    home.run(["exec", "x", "--", "echo", "unseen"]).done();
    home.run(["exec", "--log", "x", "--", "sh", "-c", "echo seen; echo bad >&2"])
        .is(0, "seen\n", "bad\n");
    home.run(["exec", "--log", "x", "--", "echo", "other"]).done();
    wait_until("it is in the log", || home.run(["logs", "x"]).done().contains("other"));
    home.run(["logs", "x"]).is(0, "seen\nother\n", "bad\n");
    let rows = home.run(["logs", "--json", "x"]).done();
    let first: serde_json::Value = serde_json::from_str(rows.lines().next().unwrap()).unwrap();
    let id = first["id"].as_str().unwrap();
    home.run(["logs", "--job", id, "x"]).is(0, "seen\n", "bad\n");
}

#[test]
fn many_commands_run_at_once() {
    let home = Guests::shared();
    let script = "for i in $(seq 24); do msb exec x -- sh -c \"sleep 0.5; echo $i\" & done; wait";
    let mut numbers: Vec<u32> =
        home.shell(script).done().lines().map(|line| line.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=24).collect::<Vec<u32>>());
}

/// Returns the difference between a guest's clock and the host's, in seconds.
fn off(home: &Home) -> f64 {
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let printed = home.run(["exec", "x", "--", "date", "+%s"]).done();
    let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let guest: f64 = printed.trim().parse().unwrap();
    // Within the call, and the second that was cut off.
    (before - 1.0 - guest).max(guest - after).max(0.0)
}

#[test]
fn a_machine_that_was_stopped_for_a_while_knows_what_time_it_is() {
    let home = Guests::one();
    assert!(off(&home) < 0.5, "{} s off at first", off(&home));
    // Whether or not this machine's clock goes on by itself while it is stopped: this one does not.
    home.run(["exec", "x", "--", "date", "-s", "2001-02-03 04:05:06"]).done();
    assert!(off(&home) > 1e6);
    let machine = home.processes();
    let machine = machine
        .iter()
        .find(|process| process.name.contains("qemu") || process.name.contains("msb-vmm"))
        .unwrap();
    machine.signal(rustix::process::Signal::STOP);
    std::thread::sleep(Duration::from_secs(5));
    machine.signal(rustix::process::Signal::CONT);
    wait_until("the guest was told the time", || off(&home) < 0.5);
}
