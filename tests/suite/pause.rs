//! Sandboxes that are paused and resumed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Guests, Home, wait_until};

/// Prints numbers in order, five a second.
const COUNTER: &str = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.2; done";

fn state(home: &Home) -> String {
    home.sandboxes().into_iter().find(|(name, _)| name == "x").map(|(_, state)| state).unwrap()
}

fn status(home: &Home) -> Value {
    let text = home.run(["inspect", "x", "--format", "json"]).done();
    serde_json::from_str::<Value>(&text).unwrap()["state"].clone()
}

fn events(home: &Home) -> Vec<String> {
    let lines = home.run(["events", "--no-follow", "x"]).done();
    let types = lines.lines().map(|line| {
        let event: Value = serde_json::from_str(line).unwrap();
        event["type"].as_str().unwrap().to_owned()
    });
    types.collect()
}

/// The numbers that a job has printed.
fn numbers(home: &Home, job: &str) -> Vec<u64> {
    let text = home.run(["logs", "--job", job, "x"]).done();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn host_seconds() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

#[test]
fn a_paused_guest_stands_still_and_goes_on_where_it_was() {
    let home = Guests::one();
    let job = home.run(["exec", "-d", "x", "--", "sh", "-c", COUNTER]);
    let job = job.done().trim().to_owned();
    wait_until("the counter counts", || numbers(&home, &job).len() > 2);
    home.run(["pause", "x"]).is(0, "x\n", "");
    assert_eq!(state(&home), "Paused");
    assert_eq!(status(&home)["state"], "Paused");
    let running = home.run(["ls", "--running", "--quiet"]);
    running.is(0, "x\n", "");
    // What it printed before has arrived by then.
    thread::sleep(Duration::from_secs(1));
    let before = numbers(&home, &job).len();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(numbers(&home, &job).len(), before);
    home.run(["resume", "x"]).is(0, "x\n", "");
    assert_eq!(state(&home), "Running");
    wait_until("the counter goes on", || numbers(&home, &job).len() > before + 2);
    let all = numbers(&home, &job);
    assert!(all.iter().copied().eq(1..=all.len() as u64), "numbers are missing: {all:?}");
    assert_eq!(events(&home), ["created", "starting", "running", "paused", "resumed"]);
}

#[test]
fn the_clock_is_right_after_a_pause_and_no_clock_goes_back() {
    let home = Guests::one();
    let uptime = || {
        let text = home.run(["exec", "x", "--", "cat", "/proc/uptime"]).done();
        let number = text.split(' ').next().unwrap();
        number.parse::<f64>().unwrap()
    };
    for _ in 0..2 {
        let before = uptime();
        home.run(["pause", "x"]).done();
        thread::sleep(Duration::from_secs(4));
        home.run(["resume", "x"]).done();
        let earliest = host_seconds();
        let guest = home.run(["exec", "x", "--", "date", "+%s"]).done();
        let guest: i64 = guest.trim().parse().unwrap();
        assert!((earliest - 1..=host_seconds() + 1).contains(&guest), "{guest} and not {earliest}");
        assert!(uptime() >= before);
    }
}

#[test]
fn requests_for_the_guest_are_refused_while_it_is_paused() {
    let home = Guests::one();
    let job = home.run(["exec", "-d", "x", "--", "sleep", "1000"]);
    let job = job.done().trim().to_owned();
    home.run(["resume", "x"]).is(4, "", "msb resume: error: the sandbox 'x' is not paused\n");
    home.run(["pause", "x"]).done();
    let refused = |tool: &str| {
        format!("{tool}: error: the sandbox 'x' is paused\n{tool}: hint: resume it: msb resume x\n")
    };
    home.run(["exec", "x", "--", "true"]).is(125, "", &refused("msb exec"));
    home.run(["exec", "-d", "x", "--", "true"]).is(125, "", &refused("msb exec"));
    home.run(["exec", "--format", "json", "x", "--", "true"]).is(125, "", &refused("msb exec"));
    let never = home.directory.join("never");
    home.run(["cp", "x:/etc/passwd", never.to_str().unwrap()]).is(4, "", &refused("msb cp"));
    home.run(["cp", "/etc/passwd", "x:/root/"]).is(4, "", &refused("msb cp"));
    home.run(["ping", "x"]).is(4, "", &refused("msb ping"));
    home.run(["signal", "x", &job]).is(4, "", &refused("msb signal"));
    home.run(["start", "x"]).is(4, "", &refused("msb start"));
    home.run(["pause", "x"]).is(4, "", "msb pause: error: the sandbox 'x' is already paused\n");
    home.run(["resume", "x"]).done();
    home.run(["exec", "x", "--", "echo", "up"]).is(0, "up\n", "");
    home.run(["stop", "x"]).done();
    for tool in ["pause", "resume"] {
        let refused = format!(
            "msb {tool}: error: the sandbox 'x' is not running\nmsb {tool}: hint: start it: msb start x\n"
        );
        home.run([tool, "x"]).is(4, "", &refused);
    }
}

#[test]
fn a_client_of_a_command_waits_with_it() {
    let home = Guests::one();
    let mut cat = home.start(["exec", "x", "--", "cat"]);
    cat.write("before\n");
    cat.read_until("before\n");
    home.run(["pause", "x"]).done();
    cat.write("during\n");
    home.run(["resume", "x"]).done();
    cat.read_until("during\n");
    drop(cat.stdin.take());
    assert_eq!(cat.finish().code, 0);
}

#[test]
fn a_paused_sandbox_is_stopped_in_order_restarted_and_removed() {
    let home = Guests::one();
    home.run(["exec", "x", "--", "sh", "-c", "echo kept >/root/note"]).done();
    home.run(["pause", "x"]).done();
    home.run(["stop", "x"]).is(0, "x\n", "");
    let stopped = status(&home);
    assert_eq!((&stopped["state"], &stopped["clean"]), (&"Stopped".into(), &true.into()));
    home.run(["start", "x"]).done();
    home.run(["pause", "x"]).done();
    home.run(["restart", "x"]).is(0, "x\n", "");
    home.run(["exec", "x", "--", "cat", "/root/note"]).is(0, "kept\n", "");
    home.run(["pause", "x"]).done();
    home.run(["rm", "--force", "x"]).is(0, "x\n", "");
    assert!(home.leftovers().is_empty());
}

#[test]
fn the_idle_time_stands_still_during_a_pause_and_the_longest_time_does_not() {
    // Long enough for the pause to begin on a host that does much else.
    let home = Guests::with(&["--idle-timeout", "10s"]);
    home.run(["pause", "x"]).done();
    thread::sleep(Duration::from_secs(13));
    assert_eq!(state(&home), "Paused");
    home.run(["resume", "x"]).done();
    home.run(["wait", "x"]);
    assert_eq!(status(&home)["reason"], "idle_timeout");

    let home = Guests::with(&["--max-duration", "15s"]);
    home.run(["pause", "x"]).done();
    home.run(["wait", "x"]);
    let ended = status(&home);
    assert_eq!((&ended["reason"], &ended["clean"]), (&"max_duration".into(), &true.into()));
}

#[test]
fn a_paused_sandbox_that_is_killed_has_crashed() {
    let home = Guests::one();
    home.run(["pause", "x"]).done();
    home.machine().signal(Signal::KILL);
    wait_until("the supervisor has seen it", || state(&home) == "Crashed");
    assert_eq!(status(&home)["reason"], "vmm_failed");

    home.run(["start", "x"]).done();
    home.run(["pause", "x"]).done();
    let processes = home.processes();
    let supervisor =
        processes.iter().find(|process| process.name.contains("msb-supervisor")).unwrap();
    supervisor.signal(Signal::KILL);
    wait_until("nobody holds its lock", || state(&home) == "Crashed");
    home.run(["start", "x"]).done();
    home.run(["exec", "x", "--", "echo", "up"]).is(0, "up\n", "");
}

#[test]
fn a_guest_that_has_booted_is_paused_as_one_from_memory_is() {
    let home = Guests::with(&["--cold"]);
    home.run(["pause", "x"]).is(0, "x\n", "");
    assert_eq!(state(&home), "Paused");
    home.run(["resume", "x"]).is(0, "x\n", "");
    home.run(["exec", "x", "--", "echo", "up"]).is(0, "up\n", "");
}

#[test]
fn connections_through_a_published_port_outlive_a_pause() {
    let any = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = any.local_addr().unwrap().port();
    drop(any);
    let published = format!("{port}:8080");
    let home = Guests::of(
        Home::with_busybox(),
        &["-p", &published, "busybox:test", "--", "nc", "-ll", "-p", "8080", "-e", "cat"],
    );
    let echo = |socket: &mut TcpStream, byte: u8| {
        let mut back = [0];
        let said = socket.write_all(&[byte]).and_then(|()| socket.read_exact(&mut back));
        said.map(|()| back[0])
    };
    let mut open = None;
    wait_until("the server serves", || {
        open = TcpStream::connect(("127.0.0.1", port))
            .ok()
            .filter(|socket| matches!(echo(&mut socket.try_clone().unwrap(), 1), Ok(1)));
        open.is_some()
    });
    let mut open = open.unwrap();
    home.run(["pause", "x"]).done();
    open.write_all(&[2]).unwrap();
    let mut new = TcpStream::connect(("127.0.0.1", port)).unwrap();
    new.write_all(&[3]).unwrap();
    open.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut back = [0];
    assert!(open.read(&mut back).is_err(), "a paused guest has answered");
    home.run(["resume", "x"]).done();
    for (socket, byte) in [(&mut open, 2), (&mut new, 3)] {
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.read_exact(&mut back).unwrap();
        assert_eq!(back, [byte]);
    }
}

#[test]
fn the_engine_krun_refuses_a_pause_and_its_guest_goes_on() {
    if std::env::var("MSB_ENGINE").as_deref() != Ok("krun") {
        return;
    }
    let home = Guests::one();
    home.run(["pause", "x"]).is(
        1,
        "",
        "msb pause: error: the engine 'krun' cannot pause a sandbox\n\
         msb pause: hint: create the sandbox with the engine qemu: --engine qemu\n",
    );
    assert_eq!(state(&home), "Running");
    home.run(["exec", "x", "--", "echo", "up"]).is(0, "up\n", "");
}
