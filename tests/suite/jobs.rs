//! Jobs: commands that go on without a client, and outlive it.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Guests, Home, Terminal, wait_until};

/// Starts a job in the sandbox `x` and gives its id.
fn start(home: &Home, options: &[&str], script: &str) -> String {
    let command = [&["exec", "-d"], options, &["x", "--", "sh", "-c", script]].concat();
    let id = home.run(command).done();
    let id = id.strip_suffix('\n').unwrap().to_owned();
    assert!(id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    id
}

fn jobs(home: &Home) -> Vec<Value> {
    let text = home.run(["jobs", "x", "--format", "json"]).done();
    serde_json::from_str(&text).unwrap()
}

fn job(home: &Home, id: &str) -> Value {
    let all = jobs(home);
    all.into_iter().find(|job| job["id"] == id).unwrap()
}

#[test]
fn a_job_goes_on_without_its_client_and_its_end_is_known_also_when_the_sandbox_is_stopped() {
    let home = Guests::one();
    let id = start(&home, &["-e", "A=b c"], "echo to $A; echo err >&2; sleep 1; exit 7");
    let other = start(&home, &[], "sleep 1000");
    assert_eq!(job(&home, &id)["status"], "Running");
    home.run(["wait", "x", "--job", &id]).is(0, "7 completed\n", "");
    let ended = job(&home, &id);
    assert_eq!((&ended["status"], &ended["exit_code"]), (&"Exited".into(), &7.into()));
    assert!(ended["started_at"].as_str() < ended["ended_at"].as_str(), "{ended}");
    assert_eq!(ended["command"][2], "echo to $A; echo err >&2; sleep 1; exit 7");
    home.run(["logs", "x", "--job", &id]).is(0, "to b c\n", "err\n");
    home.run(["jobs", "-q", "--running", "x"]).is(0, &format!("{other}\n"), "");
    home.run(["stop", "x"]).done();
    home.run(["wait", "x", "--job", &id]).is(0, "7 completed\n", "");
    // It was ended as all are, by SIGTERM.
    home.run(["wait", "x", "--job", &other]).is(0, "143 completed\n", "");
    home.run(["start", "x"]).done();
    assert_eq!(job(&home, &other)["status"], "Exited");
    assert_eq!(jobs(&home).len(), 2);
}

#[test]
fn a_job_whose_supervisor_was_killed_is_lost() {
    let home = Guests::one();
    let id = start(&home, &[], "sleep 1000");
    home.kill_all();
    home.run(["wait", "x", "--job", &id]).is(0, "- sandbox_ended\n", "");
    assert_eq!(job(&home, &id)["ended_at"], Value::Null);
    home.run(["start", "x"]).done();
    assert!(job(&home, &id)["ended_at"].is_string());
}

#[test]
fn a_signal_goes_to_all_processes_of_a_job() {
    let home = Guests::one();
    let id = start(&home, &[], "sleep 1000 & sleep 1000");
    home.run(["signal", "x", &id]).is(0, "", "");
    home.run(["wait", "x", "--job", &id, "--format", "json"]).done();
    assert_eq!(job(&home, &id)["exit_code"], 143);
    let left = "cat /proc/[0-9]*/comm | grep -c sleep";
    home.run(["exec", "x", "--", "sh", "-c", left]).is(1, "0\n", "");
    home.run(["signal", "x", &id]).is(
        4,
        "",
        &format!(
            "msb signal: error: the job '{id}' has ended\n\
             msb signal: hint: show how it ended: msb jobs x {id}\n"
        ),
    );
    assert_eq!(home.run(["signal", "-s", "NONE", "x", &id]).code, 2);
    for verb in [&["signal", "x", "nope"][..], &["wait", "x", "--job", "nope"]] {
        let tool = format!("msb {}", verb[0]);
        home.run(verb).is(
            3,
            "",
            &format!(
                "{tool}: error: there is no job 'nope' in the sandbox 'x'\n\
                 {tool}: hint: list the jobs: msb jobs x\n"
            ),
        );
    }
}

#[test]
fn a_job_has_the_limits_and_the_time_that_were_asked_for() {
    let home = Guests::one();
    let id = start(&home, &["--rlimit", "nofile=64", "--timeout", "10s"], "ulimit -n; sleep 1000");
    home.run(["wait", "x", "--job", &id]).is(0, "124 timed_out\n", "");
    home.run(["logs", "x", "--job", &id]).is(0, "64\n", "");
    let known = job(&home, &id);
    assert_eq!((&known["timed_out"], &known["exit_code"]), (&true.into(), &124.into()));
    // One that was never started is no job.
    let outcome = home.run(["exec", "-d", "x", "--", "/nowhere"]);
    outcome.is(127, "", "msb exec: error: cannot execute '/nowhere': no such file or directory\n");
    assert_eq!(jobs(&home).len(), 1);
}

#[test]
fn who_is_attached_sees_the_output_sends_input_and_ends_as_the_job_does() {
    let home = Guests::shared();
    let script = "echo begin; while read line; do echo got $line; done; echo end; exit 5";
    let id = start(&home, &["-i"], script);
    wait_until("the job prints", || home.run(["logs", "x", "--job", &id]).done() == "begin\n");
    let attach = ["attach", "--logs", "x", &id];
    let mut one = home.start(attach);
    one.write("a\n");
    assert_eq!(one.read_until("got a\n"), "begin\ngot a\n");
    // One client at a time sends input; others may look on.
    let mut two = home.start(["attach", "--no-stdin", "--logs", "x", &id]);
    two.read_until("got a\n");
    let third = home.run_with(["attach", "x", &id], b"b\n");
    third.is(125, "", "msb attach: error: another client already sends the job's input\n");
    // The job does not notice that a client is killed.
    drop(one);
    let last = home.run_with(attach, b"c\n");
    last.is(5, "begin\ngot a\ngot c\nend\n", "");
    let seen = two.finish();
    assert_eq!((seen.code, &seen.stdout[..]), (5, &b"got c\nend\n"[..]));
    home.run(attach).is(5, "begin\ngot a\ngot c\nend\n", "");
}

#[test]
fn much_input_of_a_client_that_is_killed_does_not_keep_out_that_of_the_next() {
    let home = Guests::shared();
    let script = "until [ -e /go ]; do sleep 0.1; done; wc -c";
    let id = start(&home, &["-i"], script);
    let mut first = home.start(["attach", "x", &id]);
    let mut stdin = first.stdin.take().unwrap();
    let (taken, total) = (AtomicUsize::new(0), 4_000_000);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let part = [b'x'; 10_000];
            while taken.load(Ordering::Relaxed) < total && stdin.write_all(&part).is_ok() {
                taken.fetch_add(part.len(), Ordering::Relaxed);
            }
        });
        // The job does not read: the windows fill, and then it waits.
        let (mut before, mut since) = (0, Instant::now());
        wait_until("the windows are full", || {
            let now = taken.load(Ordering::Relaxed);
            if now != before {
                (before, since) = (now, Instant::now());
            }
            now > 200_000 && since.elapsed() > Duration::from_secs(2)
        });
        drop(first);
    });
    assert!(taken.load(Ordering::Relaxed) < total);
    let mut second = home.start(["attach", "x", &id]);
    home.run(["exec", "x", "--", "touch", "/go"]).done();
    second.write(&"y".repeat(600_000));
    let count: usize = second.finish().done().trim().parse().unwrap();
    assert!((600_000..600_000 + total).contains(&count), "{count}");
}

#[test]
fn a_job_on_a_terminal_is_left_by_keys_and_goes_on() {
    let home = Guests::one();
    let id = start(&home, &["-t"], "echo ready; read a; echo \"got $a $(stty size)\"; sleep 1000");
    let terminal = Terminal::open(&home);
    terminal.enter(&format!("msb attach --logs x {id}; echo left with $?"));
    terminal.wait_for("ready\n");
    terminal.enter("key");
    terminal.wait_for("got key 24 80");
    terminal.press("C-]");
    terminal.wait_for("continues to run");
    terminal.wait_for("left with 0");
    assert_eq!(job(&home, &id)["status"], "Running");
}

#[test]
fn a_detached_main_command_has_limits_and_a_time() {
    let home = Home::with_busybox();
    let bounds = ["--rlimit", "nofile=77", "--timeout", "10s"];
    let run = [&["run", "-d", "--name", "x"], &bounds[..], &["busybox:test", "--"]].concat();
    let run = [&run[..], &["sh", "-c", "ulimit -n; sleep 1000"]].concat();
    home.run(run).is(0, "x\n", "");
    home.run(["wait", "x"]).is(0, "124 completed\n", "");
    home.run(["logs", "x"]).is(0, "77\n", "");
    let remarks = home.run(["logs", "--source", "system", "x"]).done();
    assert!(remarks.contains("main command ended with 124, killed at its timeout\n"), "{remarks}");
}

#[test]
fn a_sandbox_is_drained_when_its_last_command_has_ended() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test"]).is(0, "x\n", "");
    let running = "echo began; while [ ! -e /go ]; do sleep 0.1; done; echo ended; exit 3";
    let id = start(&home, &[], running);
    let mut command = home.start(["exec", "x", "--", "sh", "-c", running]);
    command.read_until("began\n");
    let drain = home.start(["stop", "--drain", "x"]);
    let refused = || {
        let outcome = home.run(["exec", "x", "--", "true"]);
        let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
        outcome.code == 125 && text.contains("the sandbox is stopping")
    };
    wait_until("new commands are refused", refused);
    assert_eq!(home.sandboxes(), [("x".to_owned(), "Running".to_owned())]);
    // Files are still copied: the commands that run may wait for one.
    home.shell("touch go; msb cp -q go x:/go").done();
    command.finish().is(3, "ended\n", "");
    drain.finish().is(0, "x\n", "");
    assert_eq!(job(&home, &id)["exit_code"], 3);
    assert_eq!(home.sandboxes(), [("x".to_owned(), "Stopped".to_owned())]);
    home.run(["stop", "--drain", "x"]).done();
}

#[test]
fn a_running_job_keeps_an_idle_sandbox_up() {
    let home = Home::with_busybox();
    home.run([
        "create",
        "--name",
        "x",
        "--idle-timeout",
        // Long enough for a command to come, on a busy host too.
        "8s",
        "busybox:test",
    ])
    .done();
    let id = start(&home, &[], "sleep 11");
    home.run(["wait", "x", "--job", &id]).is(0, "0 completed\n", "");
    home.run(["wait", "x"]).is(0, "0 idle_timeout\n", "");
}
