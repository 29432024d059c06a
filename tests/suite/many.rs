//! Many sandboxes at once: they boot as processors are free, and none is lost over it.

use std::fs::File;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Home, Running, wait_until};

/// Number of sandboxes that are started at once.
const MANY: usize = 30;

#[test]
fn of_many_that_are_started_at_once_none_fails() {
    let home = Home::with_busybox();
    let names: Vec<String> = (0..MANY).map(|number| format!("s{number}")).collect();
    for name in &names {
        let create = ["create", "--no-start", "--memory", "128M", "--name", name, "busybox:test"];
        home.run(create).done();
    }
    let starts: Vec<Running> = names.iter().map(|name| home.start(["start", name])).collect();
    for (start, name) in starts.into_iter().zip(&names) {
        start.finish().is(0, &format!("{name}\n"), "");
    }
    for (name, state) in home.sandboxes() {
        assert_eq!(state, "Running", "{name}");
    }
    let stop = [&["stop", "--force"], &names.iter().map(String::as_str).collect::<Vec<_>>()[..]];
    home.run(stop.concat()).done();
}

/// All slots, held as long as the files are open.
fn hold_slots(home: &Home) -> Vec<File> {
    let slots = std::thread::available_parallelism().unwrap().get();
    let directory: PathBuf = home.state().join("run/.slots");
    std::fs::create_dir_all(&directory).unwrap();
    let files = (0..slots).map(|slot| {
        let file = File::create(directory.join(slot.to_string())).unwrap();
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        file
    });
    files.collect()
}

#[test]
fn a_sandbox_that_waits_for_its_turn_has_no_machine_and_can_be_given_up() {
    let home = Home::with_busybox();
    home.run(["create", "--no-start", "--name", "a", "busybox:test"]).done();
    let slots = hold_slots(&home);
    let run = home.start(["run", "busybox:test", "--", "true"]);
    let start = home.start(["start", "a"]);
    wait_until("both are starting", || {
        let states = home.sandboxes();
        states.len() == 2 && states.iter().all(|(_, state)| state == "Starting")
    });
    assert!(home.processes().iter().all(|process| !process.is_machine()));
    kill_process(Pid::from_raw(run.pid()).unwrap(), Signal::INT).unwrap();
    assert_eq!(run.finish().code, 130);
    // It can be reached: a command waits for it, and one that is stopped goes without having had a
    // machine.
    let exec = home.start(["exec", "a", "--", "echo", "at last"]);
    home.run(["create", "--no-start", "--name", "b", "busybox:test"]).done();
    let other = home.start(["start", "b"]);
    wait_until("the other one is starting", || {
        home.sandboxes()[1] == ("b".to_owned(), "Starting".to_owned())
    });
    home.run(["stop", "b"]).is(0, "b\n", "");
    let outcome = other.finish();
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let error = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert!(error.contains("stopped before the guest was up"), "{error}");
    assert_eq!(
        home.sandboxes(),
        [("a", "Starting"), ("b", "Stopped")].map(|(name, state)| (name.into(), state.into()))
    );
    assert!(home.processes().iter().all(|process| !process.is_machine()));
    drop(slots);
    exec.finish().is(0, "at last\n", "");
    start.finish().is(0, "a\n", "");
    home.run(["exec", "a", "--", "true"]).is(0, "", "");
    home.run(["stop", "--force", "a"]).done();
}
