//! Snapshots with the memory of a running guest, and sandboxes that go on from them.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Home, Outcome, wait_until};

/// Counts in memory, and prints the numbers.
const COUNTER: &str = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done";

fn stderr(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stderr).into_owned()
}

/// Starts a sandbox whose main command counts in memory, with a job, a file in memory, a file on
/// the disk, and a clock that is wrong.
fn warm(home: &Home, name: &str) {
    let start = ["run", "-d", "--name", name, "--engine", "qemu", "busybox:test", "--"];
    home.run([&start[..], &["sh", "-c", COUNTER]].concat()).done();
    home.run(["exec", "-d", name, "--", "sh", "-c", "sleep 1000"]).done();
    let prepare = "echo memory >/dev/shm/x; echo disk >/x; sync; date -s 2001-01-01 >/dev/null";
    home.run(["exec", name, "--", "sh", "-c", prepare]).is(0, "", "");
    wait_until("the counter counts", || numbers(home, name).len() > 2);
}

/// The numbers that the main command has printed.
fn numbers(home: &Home, name: &str) -> Vec<u64> {
    let text = home.run(["logs", name]).done();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The main command goes on: the sandbox's log starts behind 1 and has no gap.
#[track_caller]
fn goes_on(home: &Home, name: &str) {
    wait_until("the counter goes on", || numbers(home, name).len() > 2);
    let numbers = numbers(home, name);
    assert!(numbers[0] > 1, "{numbers:?}");
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
}

/// Runs a script in a sandbox, and returns its output.
#[track_caller]
fn guest(home: &Home, name: &str, script: &str) -> String {
    home.run(["exec", name, "--", "sh", "-c", script]).done()
}

fn memory(home: &Home, directory: &str) -> PathBuf {
    home.state().join(directory).join("memory.state")
}

fn names(home: &Home) -> Vec<String> {
    let list = home.run(["snapshot", "list", "--format", "json"]).done();
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    list.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
}

/// Files of a save that has not ended, in the directory of a sandbox.
fn unfinished(home: &Home, name: &str) -> usize {
    let entries = fs::read_dir(home.state().join("sandboxes").join(name)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".new-memory.state")).count()
}

/// The files of all sandboxes, with their inodes, sizes and times of change.
fn files(home: &Home) -> Vec<(PathBuf, u64, u64, i64, i64)> {
    let mut files = Vec::new();
    for directory in fs::read_dir(home.state().join("sandboxes")).unwrap() {
        for entry in fs::read_dir(directory.unwrap().path()).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::metadata(&path).unwrap();
            files.push((path, meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()));
        }
    }
    files.sort();
    files
}

/// A state directory with a running sandbox `warm` and its snapshot `mem`.
fn home() -> Home {
    let home = Home::with_busybox();
    warm(&home, "warm");
    home.run(["snapshot", "create", "-q", "mem", "--from", "warm", "--memory"]).is(0, "", "");
    home
}

#[test]
fn processes_go_on_in_a_new_sandbox_with_an_identity_of_its_own() {
    let home = home();
    let before = numbers(&home, "warm").len();
    wait_until("the original goes on", || numbers(&home, "warm").len() > before + 2);
    assert_eq!(guest(&home, "warm", "cat /dev/shm/x /x"), "memory\ndisk\n");
    let shown = home.run(["snapshot", "inspect", "mem"]).done();
    assert!(shown.contains("Memory:") && shown.contains("512.0 MiB of a guest"), "{shown}");
    home.run(["snapshot", "verify", "mem"]).done();

    home.run(["run", "-d", "--name", "two", "--snapshot", "mem"]).is(0, "two\n", "");
    goes_on(&home, "two");
    assert_eq!(guest(&home, "two", "cat /dev/shm/x /x; hostname"), "memory\ndisk\ntwo\n");
    // The clock is that of the host again.
    let year: u32 = guest(&home, "two", "date +%Y").trim().parse().unwrap();
    assert!(year > 2020, "{year}");
    // The job goes on, and can be ended.
    let jobs: Vec<Value> =
        serde_json::from_str(&home.run(["jobs", "two", "--format", "json"]).done()).unwrap();
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    let job = jobs[0]["id"].as_str().unwrap().to_owned();
    home.run(["signal", "-s", "KILL", "two", &job]).is(0, "", "");
    home.run(["wait", "--job", &job, "two"]);
    assert_eq!(guest(&home, "two", "ps | grep -q '[s]leep 1000' || echo none"), "none\n");

    home.run(["fork", "two", "--memory", "--names", "a,b"]).is(0, "a\nb\n", "");
    home.run(["start", "-q", "a", "b"]).done();
    for name in ["a", "b"] {
        goes_on(&home, name);
        assert!(!memory(&home, &format!("sandboxes/{name}")).exists());
    }
    for what in [
        "hostname",
        "cat /etc/machine-id",
        "cat /sys/class/net/eth0/address",
        "ip -4 addr show eth0 | grep inet",
        "cat /etc/resolv.conf",
        "head -c 16 /dev/urandom | md5sum",
    ] {
        let answers = ["two", "a", "b"].map(|name| guest(&home, name, what));
        assert!(answers[0] != answers[1] && answers[1] != answers[2], "{what}: {answers:?}");
    }
    // The network works with its new addresses, and there are no others.
    let gateway = "ping -c 1 -w 10 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p')";
    guest(&home, "a", gateway);
    assert_eq!(guest(&home, "a", "ip -4 addr show eth0 | grep -c inet"), "1\n");
    // They do not see each other.
    guest(&home, "a", "echo a >/x; echo a >/dev/shm/x");
    assert_eq!(guest(&home, "b", "cat /dev/shm/x /x"), "memory\ndisk\n");

    // A sandbox goes on from memory once.
    home.run(["stop", "a"]).done();
    home.run(["start", "a"]).done();
    assert_eq!(guest(&home, "a", "cat /x; ls /dev/shm"), "a\n");
    home.run(["rm", "-f", "-q", "warm", "two", "a", "b"]).done();
}

#[test]
fn a_restored_sandbox_goes_on_and_damage_is_found_before_anything_changes() {
    let home = home();
    guest(&home, "warm", "echo later >/x; echo later >/dev/shm/x; sync");
    home.run(["kill", "warm"]).done();
    let refused = |args: &[&str], code: i32, words: &str| {
        let outcome = home.run(args);
        assert_eq!(outcome.code, code, "{outcome:?}");
        assert!(stderr(&outcome).contains(words), "{outcome:?}");
    };

    // Damage at the start, in the memory, in the devices, and in the header.
    let path = memory(&home, "snapshots/mem");
    let whole = fs::metadata(&path).unwrap().len();
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let mut end = [0; 8];
    file.read_exact_at(&mut end, 16).unwrap();
    let header = u64::from_le_bytes(end);
    let before = files(&home);
    for place in [3, 4096 + 100, whole / 2, header - 10, header + 10, whole - 2] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 1], place).unwrap();
        refused(&["snapshot", "verify", "mem"], 1, "the memory of the snapshot 'mem' is damaged");
        refused(&["restore", "warm", "mem"], 1, "the memory of the snapshot 'mem' is damaged");
        refused(&["run", "-d", "--name", "x", "--snapshot", "mem"], 125, "is damaged");
        assert_eq!(files(&home), before, "at {place}");
        file.write_all_at(&byte, place).unwrap();
    }
    // Another machine, and what cannot be.
    let run = ["run", "-d", "--snapshot", "mem"];
    refused(&[&run[..], &["--memory", "1G"]].concat(), 125, "it has 512 MiB");
    refused(&[&run[..], &["--cpus", "2"]].concat(), 125, "it is of 1 virtual CPUs");
    refused(&[&run[..], &["--net", "none"]].concat(), 125, "the sandbox has no network");
    refused(&[&run[..], &["--", "true"]].concat(), 125, "no command can be given");
    refused(&["run", "--snapshot", "mem"], 125, "no command can be attached to");
    refused(&["snapshot", "create", "x", "--from", "warm", "--memory"], 4, "is not running");
    assert_eq!(files(&home), before);
    home.run(["run", "--cold", "--snapshot", "mem", "--", "cat", "/x"]).is(0, "disk\n", "");

    // Its log goes on with the numbers of the snapshot.
    let log = numbers(&home, "warm");
    home.run(["restore", "warm", "mem"]).is(0, "", "");
    assert!(memory(&home, "sandboxes/warm").exists());
    home.run(["start", "warm"]).done();
    assert_eq!(guest(&home, "warm", "cat /dev/shm/x /x"), "memory\ndisk\n");
    wait_until("the counter goes on", || numbers(&home, "warm").len() > log.len() + 2);
    let first = numbers(&home, "warm")[log.len()];
    assert!(first > 1 && first <= log[log.len() - 1] + 1, "{first} after {log:?}");
    home.run(["kill", "warm"]).done();

    // Without its memory, a sandbox boots from the disk.
    home.run(["restore", "--cold", "warm", "mem"]).is(0, "", "");
    assert!(!memory(&home, "sandboxes/warm").exists());
    home.run(["restore", "warm", "mem"]).is(0, "", "");
    home.run(["modify", "warm", "--memory", "1G"]).done();
    refused(&["start", "warm"], 1, "msb start --cold warm");
    assert!(memory(&home, "sandboxes/warm").exists());
    home.run(["start", "--cold", "warm"]).done();
    assert_eq!(guest(&home, "warm", "cat /x; ls /dev/shm"), "disk\n");

    // An archive has the memory on request, and it is imported on request.
    let archive = home.state().join("mem.tar.zst");
    let archive = archive.to_str().unwrap();
    home.run(["snapshot", "export", "--with-memory", "mem", archive]).done();
    home.run(["snapshot", "rm", "-q", "mem"]).done();
    let outcome = home.run(["snapshot", "import", archive]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(stderr(&outcome).contains("the memory of 'mem' was not imported"), "{outcome:?}");
    refused(
        &["run", "-d", "--snapshot", "mem"],
        125,
        "the memory of the snapshot 'mem' is missing",
    );
    home.run(["snapshot", "rm", "-q", "mem"]).done();
    home.run(["snapshot", "import", "--trust-memory", archive]).done();
    home.run(["snapshot", "verify", "mem"]).done();
    home.run(["rm", "-f", "-q", "warm"]).done();
}

#[test]
fn a_kill_in_the_middle_leaves_the_guest_running_or_the_memory_whole() {
    let home = home();
    // A client that is killed: the guest goes on.
    for pause_ms in [20, 100, 300] {
        let create = ["snapshot", "create", "-q", "-f", "x", "--from", "warm", "--memory"];
        let mut running = home.msb(create).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        let _ = running.kill();
        running.wait().unwrap();
        let before = numbers(&home, "warm").len();
        wait_until("the guest goes on", || numbers(&home, "warm").len() > before + 2);
        wait_until("the save has ended", || unfinished(&home, "warm") == 0);
    }
    // A supervisor that is killed.
    let mut running =
        home.msb(["snapshot", "create", "-q", "y", "--from", "warm", "--memory"]).spawn().unwrap();
    wait_until("the memory is being saved", || unfinished(&home, "warm") > 0);
    supervisor(&home).signal(Signal::KILL);
    assert!(!running.wait().unwrap().success());
    home.run(["snapshot", "reindex"]).done();
    assert!(!names(&home).contains(&"y".to_owned()));
    home.run(["snapshot", "verify", "mem"]).done();

    // One that is killed while it goes on: the memory is there for another start, or it was used.
    wait_until("the sandbox has ended", || home.processes().is_empty());
    home.run(["restore", "warm", "mem"]).is(0, "", "");
    // What it had written of the memory is gone.
    assert_eq!(unfinished(&home, "warm"), 0);
    let mut starting = home.msb(["start", "-q", "warm"]).spawn().unwrap();
    wait_until("there is a machine", || !home.machines().is_empty());
    supervisor(&home).signal(Signal::KILL);
    starting.wait().unwrap();
    wait_until("the sandbox has ended", || home.processes().is_empty());
    let is_there = memory(&home, "sandboxes/warm").exists();
    home.run(["start", "warm"]).done();
    let found = guest(&home, "warm", "cat /x; ls /dev/shm");
    assert_eq!(found, if is_there { "disk\nx\n" } else { "disk\n" });
    home.run(["snapshot", "verify", "mem"]).done();
    home.run(["rm", "-f", "-q", "warm"]).done();
}

/// The only supervisor.
fn supervisor(home: &Home) -> crate::support::Process {
    let mut processes = home.processes();
    processes.retain(|process| process.name.starts_with("msb-supervisor"));
    processes.remove(0)
}
