//! Durability of data that a guest has written.

use std::fs;

use crate::support::{Home, Running, wait_until};

/// In the guest: a file that was synced, and one that was not.
const WRITE: &str = "cd /root; dd if=/dev/urandom of=synced bs=64k count=3 conv=fsync 2>/dev/null; \
                     head -c 100000 /dev/urandom >unsynced; sha256sum synced unsynced";

fn create(home: &Home, options: &[&str]) {
    let command = [&["create", "--name", "x"], options, &["busybox:test"]].concat();
    home.run(command).is(0, "x\n", "");
}

/// Writes the files and gives their hashes.
fn write(home: &Home) -> String {
    let sums = home.run(["exec", "x", "--", "sh", "-c", WRITE]).done();
    assert_eq!(sums.lines().count(), 2, "{sums}");
    sums
}

/// Starts the sandbox again, compares a file, and stops it for good.
#[track_caller]
fn is_there(home: &Home, files: &str, sums: &str) {
    home.run(["start", "x"]).done();
    let check = format!("cd /root; sha256sum {files}");
    let expected: String = sums
        .lines()
        .filter(|line| files.split(' ').any(|file| line.ends_with(&format!(" {file}"))))
        .map(|line| format!("{line}\n"))
        .collect();
    home.run(["exec", "x", "--", "sh", "-c", &check]).is(0, &expected, "");
    home.run(["stop", "--force", "x"]).done();
}

#[test]
fn what_was_written_is_there_after_a_stop_in_order() {
    let home = Home::with_busybox();
    create(&home, &[]);
    let sums = write(&home);
    home.run(["stop", "x"]).done();
    is_there(&home, "synced unsynced", &sums);
}

#[test]
fn what_was_written_is_there_after_the_stop_of_an_idle_sandbox() {
    let home = Home::with_busybox();
    // Long enough for a command to come, on a busy host too.
    create(&home, &["--idle-timeout", "8s"]);
    let sums = write(&home);
    home.run(["wait", "x"]).is(0, "0 idle_timeout\n", "");
    home.run(["modify", "x", "--idle-timeout", "0"]).done();
    is_there(&home, "synced unsynced", &sums);
}

#[test]
fn what_was_written_is_there_after_the_longest_time_that_a_sandbox_may_run() {
    let home = Home::with_busybox();
    create(&home, &["--max-duration", "15s"]);
    let sums = write(&home);
    home.run(["wait", "x"]).is(0, "0 max_duration\n", "");
    home.run(["modify", "x", "--max-duration", "0"]).done();
    is_there(&home, "synced unsynced", &sums);
}

#[test]
fn what_was_synced_is_there_after_the_machine_was_killed() {
    let home = Home::with_busybox();
    create(&home, &[]);
    let sums = write(&home);
    for process in home.processes().iter().filter(|process| process.is_machine()) {
        process.signal(rustix::process::Signal::KILL);
    }
    home.run(["wait", "x"]).is(0, "0 vmm_failed\n", "");
    is_there(&home, "synced", &sums);
    let sums = {
        home.run(["start", "x"]).done();
        write(&home)
    };
    home.run(["stop", "--force", "x"]).done();
    is_there(&home, "synced", &sums);
}

#[test]
fn a_sync_in_the_guest_is_one_on_the_host() {
    let home = Home::with_busybox();
    home.run(["create", "--no-start", "--name", "x", "busybox:test"]).done();
    let trace = home.directory.join("trace");
    let mut command = home.program("strace");
    command.args(["-f", "-qq", "--seccomp-bpf", "-e", "trace=fdatasync,fsync"]);
    command.arg("-o").arg(&trace).arg(home.prefix.join("bin/msb"));
    command.args(["start", "x"]);
    // It goes on as long as anything of what it started does.
    let tracer = Running::start(command);
    wait_until("the guest is up", || home.sandboxes() == [("x".to_owned(), "Running".to_owned())]);
    let syncs = || {
        let text = fs::read_to_string(&trace).unwrap_or_default();
        let whole = text.lines().filter(|line| line.contains("fdatasync("));
        whole.filter(|line| line.ends_with("= 0")).count()
    };
    for round in 0..3 {
        let before = syncs();
        let sync = format!("dd if=/dev/zero of=/root/{round} bs=4k count=1 conv=fsync 2>&1");
        home.run(["exec", "x", "--", "sh", "-c", &sync]).done();
        assert!(syncs() > before, "{round}: nothing was synced");
    }
    home.run(["stop", "x"]).done();
    assert_eq!(tracer.finish().code, 0);
}
