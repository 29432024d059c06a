//! Guests and machines that end without being asked to: each end has its own reason.

use serde_json::Value;

use crate::support::{Home, Outcome, wait_until};

/// Returns the state and the reason of the sandbox `x` in `msb ls`.
#[track_caller]
fn end(home: &Home) -> (String, String) {
    let list = home.list();
    let text = |field: &str| list[0][field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

fn stderr(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stderr).into_owned()
}

/// Runs a script in the sandbox `x`, which does not survive it, and looks at what is said and left.
#[track_caller]
fn ends_by(script: &str, says: &str, state: &str, reason: &str) {
    let home = Home::with_busybox();
    let outcome = home.run([
        "run",
        "--name",
        "x",
        "--memory",
        "192M",
        "busybox:test",
        "--",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(outcome.code, 125, "{outcome:?}");
    let said = stderr(&outcome);
    let first = said.lines().next().unwrap_or_default();
    assert!(first.starts_with(&format!("msb run: error: {says}")), "{said}");
    assert!(said.contains("\nmsb run: hint: "), "{said}");
    assert_eq!(end(&home), (state.to_owned(), reason.to_owned()), "{said}");
    // It says the same to those who come later, and it can be started again.
    assert!(
        says.starts_with(home.list()[0]["message"].as_str().unwrap().split(": ").next().unwrap())
    );
    home.run(["run", "--name", "x", "busybox:test", "--", "echo", "again"]).is(0, "again\n", "");
    assert_eq!(end(&home), ("Stopped".to_owned(), "completed".to_owned()));
}

#[test]
fn a_kernel_that_panics_is_told_with_its_words() {
    ends_by(
        "echo c >/proc/sysrq-trigger; sleep 60",
        "the guest's kernel panicked: sysrq triggered crash",
        "Crashed",
        "guest_panicked",
    );
}

#[test]
fn a_kernel_that_panics_for_lack_of_memory_is_told_apart() {
    ends_by(
        "echo 1 >/proc/sys/vm/panic_on_oom; tail /dev/zero",
        "the guest's kernel ran out of memory and panicked: Out of memory",
        "Crashed",
        "out_of_memory",
    );
}

#[test]
fn a_guest_that_powers_itself_off_has_done_so() {
    let (says, reason) = ("the guest powered itself off", "guest_powered_off");
    ends_by("poweroff -f; sleep 60", says, "Stopped", reason);
}

/// The keys of the kernel (SysRq), which libkrunfw's has not.
#[test]
fn a_guest_that_is_ended_by_the_keys_of_its_kernel_is_told_the_same() {
    for (key, says, reason) in [
        ("o", "the guest powered itself off", "guest_powered_off"),
        ("b", "the guest restarted itself", "guest_rebooted"),
    ] {
        let script = format!("echo {key} >/proc/sysrq-trigger; sleep 60");
        ends_by(&script, says, "Stopped", reason);
    }
}

#[test]
fn a_guest_that_halts_does_not_hang_for_ever() {
    ends_by("halt -f; sleep 60", "the guest halted", "Stopped", "guest_powered_off");
}

#[test]
fn a_guest_that_restarts_itself_has_done_so() {
    let (says, reason) = ("the guest restarted itself", "guest_rebooted");
    ends_by("reboot -f; sleep 60", says, "Stopped", reason);
}

/// Overwrites the code of the guest's first process, as only root can.
const BREAK_AGENT: &str = "
set -- $(grep -m1 'r-xp.* /' /proc/1/maps | cut -d' ' -f1 | tr - ' ')
dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$((0x$1 / 4096)) count=$(((0x$2 - 0x$1) / 4096)) conv=notrunc 2>/dev/null
sleep 60";

#[test]
fn an_agent_that_dies_is_told_apart_from_other_panics() {
    ends_by(BREAK_AGENT, "the guest's agent ended", "Crashed", "agent_failed");
}

#[test]
fn a_machine_whose_process_is_killed_is_told_apart_from_its_guest() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test"]).done();
    home.machine().signal(rustix::process::Signal::KILL);
    assert!(home.leftovers().is_empty());
    assert_eq!(end(&home), ("Crashed".to_owned(), "vmm_failed".to_owned()));
    let table = home.run(["ls"]).done();
    assert!(table.contains("Crashed (VMM failed)"), "{table}");
}

const KILLED: &str = "warning: the guest ran out of memory and its kernel killed the command\n";
const MORE: &str = "hint: give the sandbox more memory: msb run --memory SIZE\n";

#[test]
fn a_command_that_is_killed_for_lack_of_memory_says_so() {
    let home = Home::with_busybox();
    let run = ["run", "--name", "x", "-m", "192M", "busybox:test", "--"];
    let said = format!("msb run: {KILLED}msb run: {MORE}");
    // By itself, and by a shell that waits for it.
    for command in [&["tail", "/dev/zero"][..], &["sh", "-c", "tail /dev/zero; exit $?"]] {
        let outcome = home.run([&run, command].concat());
        assert_eq!(outcome.code, 137, "{outcome:?}");
        assert!(outcome.stderr.ends_with(said.as_bytes()), "{outcome:?}");
        assert_eq!(end(&home), ("Stopped".to_owned(), "out_of_memory".to_owned()));
        assert_eq!(home.list()[0]["oom_killed"], true);
        assert_eq!(home.list()[0]["exit_code"], 137);
        home.run(["rm", "x"]).done();
    }
}

#[test]
fn a_command_that_somebody_kills_is_not_told_to_lack_memory() {
    let home = Home::with_busybox();
    // There is one that was: long before, or in another command.
    let script = "tail /dev/zero; sleep 1; exec sh -c 'kill -9 $$'";
    home.run(["run", "--name", "x", "-m", "192M", "busybox:test", "--", "sh", "-c", script])
        .is(137, "", "Killed\n");
    assert_eq!(end(&home), ("Stopped".to_owned(), "completed".to_owned()));
    assert_eq!(home.list()[0]["oom_killed"], Value::Null);
}

#[test]
fn a_sandbox_outlives_a_command_of_exec_that_lacked_memory() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "-m", "192M", "busybox:test"]).done();
    home.run(["exec", "x", "--", "tail", "/dev/zero"]).is(
        137,
        "",
        &format!("msb exec: {KILLED}msb exec: {MORE}"),
    );
    home.run(["exec", "x", "--", "echo", "alive"]).is(0, "alive\n", "");
    home.run(["stop", "x"]).done();
    assert_eq!(end(&home), ("Stopped".to_owned(), "stop_requested".to_owned()));
}

#[test]
fn a_detached_command_that_lacked_memory_leaves_its_reason() {
    let home = Home::with_busybox();
    let command = ["tail", "/dev/zero"];
    home.run(
        [&["run", "-d", "--name", "x", "-m", "192M", "busybox:test", "--"], &command[..]].concat(),
    )
    .done();
    wait_until("the sandbox is over", || end(&home).0 == "Stopped");
    assert_eq!(end(&home), ("Stopped".to_owned(), "out_of_memory".to_owned()));
    let table = home.run(["ls"]).done();
    assert!(table.contains("Stopped (out of memory)"), "{table}");
}

#[test]
fn what_somebody_writes_to_the_console_ends_nothing() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test"]).done();
    let script = "echo '[    1.000000] reboot: Power down' >/dev/console; sleep 8; echo alive";
    home.run(["exec", "x", "--", "sh", "-c", script]).is(0, "alive\n", "");
    // The same words do not become the reason of a later end.
    home.machine().signal(rustix::process::Signal::KILL);
    assert!(home.leftovers().is_empty());
    assert_eq!(end(&home), ("Crashed".to_owned(), "vmm_failed".to_owned()));
}
