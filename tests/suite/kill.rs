//! Programs that are killed at any moment: what they leave is right, and nothing stays behind.
//!
//! strace kills a program with SIGKILL as it enters a call that changes the state directory: each
//! such call of a run, one after the other. After each kill the sandboxes are listed, no process
//! may be left, and the same is done again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    Guests, Home, Outcome, Process, Random, Running, fixture, open_files, stage, wait_until,
};

/// Calls that change what is on the disk.
const CALLS: &str = "rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat,\
                     fsync,fdatasync,ftruncate";

/// A program with more calls changes its habits for the worse.
const CALLS_MAX: usize = 60;

/// One of a program's calls: the how manyth of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    name: String,
    number: usize,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "killed at {} number {}", self.name, self.number)
    }
}

/// Arguments of strace: they kill at a call, or list the calls.
fn strace(home: &Home, kill_at: Option<&Call>) -> Vec<String> {
    let log = home.directory.join("strace.log");
    let _ = fs::remove_file(&log);
    let mut args = vec!["-q".to_owned(), "-o".to_owned(), log.to_str().unwrap().to_owned()];
    args.push(format!("--trace={CALLS}"));
    if let Some(Call { name, number }) = kill_at {
        args.push(format!("--inject={name}:signal=KILL:when={number}"));
    }
    args
}

/// The calls that the last traced program made.
pub(crate) fn traced_calls(home: &Home) -> Vec<Call> {
    let path = home.directory.join("strace.log");
    // The tracer may be slower than what it traces.
    wait_until("the end of the trace", || {
        fs::read_to_string(&path)
            .is_ok_and(|log| log.contains("+++ exited") || log.contains("+++ killed"))
    });
    let log = fs::read_to_string(&path).unwrap();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut calls = Vec::new();
    for name in log.lines().filter_map(|line| line.split_once('(')).map(|(name, _)| name) {
        let number = counts.entry(name).or_default();
        *number += 1;
        calls.push(Call { name: name.to_owned(), number: *number });
    }
    assert!((3..=CALLS_MAX).contains(&calls.len()), "{} calls:\n{log}", calls.len());
    println!("{calls:#?}");
    calls
}

/// Runs `msb` under strace.
pub(crate) fn run_traced(home: &Home, kill_at: Option<&Call>, args: &[&str]) -> Outcome {
    let mut command = home.program("strace");
    command.args(strace(home, kill_at)).arg(home.prefix.join("bin/msb")).args(args);
    Running::start(command).finish()
}

/// Runs `msb`, and the supervisor that it starts under strace. The tracer is no parent of the
/// supervisor, and holds none of its files.
pub(crate) fn run_with_traced_supervisor(
    home: &Home,
    kill_at: Option<&Call>,
    args: &[&str],
) -> Outcome {
    let mut command = home.program(stage("attach"));
    command
        .arg("msb-supervisor")
        .arg(home.prefix.join("bin/msb"))
        .args(args)
        .env("TRACE_OPTIONS", strace(home, kill_at).join(" "));
    Running::start(command).finish()
}

/// A state directory in which a sandbox has run: directories that are made once and stay are there,
/// and the next run makes the same calls as any after it.
fn used_home() -> Home {
    let home = Home::with_busybox();
    home.run(["run", "busybox:test", "--", "true"]).is(0, "", "");
    home
}

const NAMED: [&str; 6] = ["run", "--name", "x", "busybox:test", "--", "echo"];

/// Checks the conditions that hold after a kill.
#[track_caller]
pub(crate) fn all_is_well(home: &Home, what: &str) {
    let left = home.leftovers();
    assert!(left.is_empty(), "{what}: processes are left: {left:#?}");
    // A machine that is dying has no name any more, but its disks; as long as it has, its sandbox
    // is not over.
    wait_until(&format!("the sandboxes are over: {what}"), || {
        home.sandboxes()
            .iter()
            .all(|(_, state)| ["Created", "Stopped", "Crashed"].contains(&state.as_str()))
    });
}

/// A run under the same name, by programs that nobody kills.
#[track_caller]
fn a_second_run_works(home: &Home, what: &str) {
    let outcome = home.run([&NAMED[..], &["again"]].concat());
    assert!(outcome.code == 0, "{what}: the second run: {outcome:?}");
    assert_eq!(outcome.done(), "again\n", "{what}");
    assert_eq!(home.sandboxes(), [("x".to_owned(), "Stopped".to_owned())], "{what}");
    assert!(home.leftovers().is_empty(), "{what}");
    home.run(["rm", "x"]).done();
}

/// Looks at `upper.img` all the time: how many machines had one open at once.
struct UpperWatch<'a> {
    home: &'a Home,
    done: &'a AtomicBool,
}

impl UpperWatch<'_> {
    fn watch(&self) {
        while !self.done.load(Ordering::Relaxed) {
            let mut holders: BTreeMap<PathBuf, BTreeSet<i32>> = BTreeMap::new();
            for process in &self.home.machines() {
                for file in open_files(process)
                    .into_iter()
                    .filter(|file| file.to_string_lossy().contains("upper"))
                {
                    holders.entry(file).or_default().insert(process.pid);
                }
            }
            let shared = holders.iter().find(|(_, holders)| holders.len() > 1);
            assert!(shared.is_none(), "two machines have one disk open: {shared:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Does something while the disks are watched.
fn watching_disks<T>(home: &Home, body: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    struct Finish<'a>(&'a AtomicBool);
    impl Drop for Finish<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let watch = UpperWatch { home, done: &done };
        scope.spawn(move || watch.watch());
        let _finish = Finish(&done);
        body()
    })
}

#[test]
fn a_client_killed_at_any_change_of_the_disk_leaves_nothing_behind() {
    let home = used_home();
    let args = [&NAMED[..], &["first"]].concat();
    run_traced(&home, None, &args).is(0, "first\n", "");
    let calls = traced_calls(&home);
    home.run(["rm", "x"]).done();
    watching_disks(&home, || {
        for call in calls {
            let what = format!("the client {call}");
            let outcome = run_traced(&home, Some(&call), &args);
            assert_eq!(outcome.code, 137, "{what}: {outcome:?}");
            all_is_well(&home, &what);
            a_second_run_works(&home, &what);
        }
    });
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

#[test]
fn a_supervisor_killed_at_any_change_of_the_disk_leaves_nothing_behind() {
    let home = used_home();
    let args = [&NAMED[..], &["first"]].concat();
    run_with_traced_supervisor(&home, None, &args).is(0, "first\n", "");
    let calls = traced_calls(&home);
    home.run(["rm", "x"]).done();
    watching_disks(&home, || {
        for call in calls {
            let what = format!("the supervisor {call}");
            let outcome = run_with_traced_supervisor(&home, Some(&call), &args);
            // Killed after the command's end it may have said how that was.
            assert!([0, 125].contains(&outcome.code), "{what}: {outcome:?}");
            all_is_well(&home, &what);
            a_second_run_works(&home, &what);
        }
    });
}

#[test]
fn a_supervisor_of_an_unnamed_run_killed_at_any_change_of_the_disk_is_forgotten() {
    let home = used_home();
    let args = ["run", "busybox:test", "--", "true"];
    run_with_traced_supervisor(&home, None, &args).is(0, "", "");
    for call in traced_calls(&home) {
        let what = format!("the supervisor {call}");
        let outcome = run_with_traced_supervisor(&home, Some(&call), &args);
        assert!([0, 125].contains(&outcome.code), "{what}: {outcome:?}");
        all_is_well(&home, &what);
        assert_eq!(home.sandboxes(), [], "{what}");
    }
    home.run(args).is(0, "", "");
    // What the kills have left went with the next run.
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

#[test]
fn a_detached_supervisor_killed_at_any_change_of_the_disk_leaves_a_sandbox_that_can_go() {
    let home = used_home();
    let start = ["run", "-d", "--name", "x", "busybox:test"];
    run_with_traced_supervisor(&home, None, &start).done();
    home.run(["stop", "x"]).done();
    let calls = traced_calls(&home);
    home.run(["rm", "x"]).done();
    for call in calls {
        let what = format!("the supervisor {call}");
        run_with_traced_supervisor(&home, Some(&call), &start);
        home.run(["stop", "x"]);
        all_is_well(&home, &what);
        if !home.sandboxes().is_empty() {
            home.run(["rm", "x"]).done();
        }
        assert_eq!(home.sandboxes(), [], "{what}");
    }
    a_second_run_works(&home, "after all of them");
}

/// Some processes are killed at random moments.
fn killed_at_random_moments(program: &str, is_victim: fn(&Process) -> bool, seed: u64) {
    let home = Home::with_busybox();
    let mut random = Random::new(seed);
    watching_disks(&home, || {
        for round in 0..6 {
            let mut command = home.msb(
                [&NAMED[..4], &["--", "sh", "-c", "sleep 1; echo slept >/note; sync"]].concat(),
            );
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let running = Running::start_as_is(command);
            let victims = || -> Vec<_> { home.processes().into_iter().filter(is_victim).collect() };
            wait_until("the program to kill", || !victims().is_empty());
            let moment = Duration::from_millis(random.below(3500));
            std::thread::sleep(moment);
            for victim in victims() {
                if program != "msb-run" || victim.pid == running.pid() {
                    victim.signal(Signal::KILL);
                }
            }
            running.finish();
            all_is_well(
                &home,
                &format!("{program} killed in round {round}, {moment:?} after its start"),
            );
        }
        a_second_run_works(&home, "after all of them");
    });
}

#[test]
fn a_client_killed_at_random_moments_leaves_nothing_behind() {
    killed_at_random_moments("msb-run", |process| process.name == "msb-run", 11);
}

#[test]
fn a_supervisor_killed_at_random_moments_leaves_nothing_behind() {
    killed_at_random_moments(
        "msb-supervisor",
        |process| process.name.starts_with("msb-supervisor"),
        22,
    );
}

#[test]
fn a_machine_killed_at_random_moments_leaves_nothing_behind() {
    killed_at_random_moments("the machine", Process::is_machine, 33);
}

#[test]
fn a_killed_machine_ends_the_run_with_a_reason() {
    let home = Home::with_busybox();
    let mut running = home.start(["run", "-i", "busybox:test", "--", "sh", "-c", "echo up; cat"]);
    running.read_until("up\n");
    home.machine().signal(Signal::KILL);
    let outcome = running.finish();
    assert_eq!(outcome.code, 125, "{outcome:?}");
    assert!(
        String::from_utf8_lossy(&outcome.stderr).starts_with("msb run: error: "),
        "{outcome:?}"
    );
}

#[test]
fn a_supervisor_that_does_not_answer_is_killed_by_who_stops_the_sandbox() {
    let home = Home::with_busybox();
    home.run(["create", "--name", "web", "busybox:test"]).done();
    let supervisor =
        home.processes().into_iter().find(|process| process.name == "msb-supervisor").unwrap();
    supervisor.signal(Signal::STOP);
    home.run(["stop", "--force", "web"]).is(
        0,
        "web\n",
        "msb stop: warning: killing the supervisor of the sandbox 'web': it does not respond\n",
    );
    assert_eq!(home.sandboxes(), [("web".into(), "Crashed".into())]);
    assert!(home.processes().is_empty(), "{:?}", home.processes());
}

#[test]
fn a_creator_that_is_killed_takes_its_sandbox_down_and_that_is_a_stop() {
    let home = Home::with_busybox();
    let script = "echo kept >/root/note; sync; echo up; sleep 1000";
    let mut creator = home.start(["run", "--name", "x", "busybox:test", "--", "sh", "-c", script]);
    creator.read_until("up\n");
    kill_process(Pid::from_raw(creator.pid()).unwrap(), Signal::KILL).unwrap();
    assert_eq!(creator.finish().code, 137);
    wait_until("it has ended", || home.processes().is_empty());
    assert_eq!(home.sandboxes(), [("x".to_owned(), "Stopped".to_owned())]);
    home.run(["run", "--name", "x", "busybox:test", "--", "cat", "/root/note"]).is(0, "kept\n", "");
}

#[test]
fn a_command_whose_client_is_killed_is_killed_in_the_guest() {
    let home = Guests::one();
    let mut client =
        home.start(["exec", "x", "--", "sh", "-c", "echo up; sleep 4321 & sleep 4321"]);
    client.read_until("up\n");
    let count =
        || home.run(["exec", "x", "--", "sh", "-c", "ps | grep -c '[s]leep 4321' || true"]).done();
    wait_until("they run", || count() != "0\n");
    kill_process(Pid::from_raw(client.pid()).unwrap(), Signal::KILL).unwrap();
    assert_eq!(client.finish().code, 137);
    wait_until("they are gone", || count() == "0\n");
}

#[test]
fn of_many_runs_under_one_name_no_two_machines_share_its_disk() {
    let home = Home::with_busybox();
    watching_disks(&home, || {
        for _ in 0..3 {
            let runs: Vec<_> =
                (0..3).map(|_| home.start([&NAMED[..], &["one"]].concat())).collect();
            let outcomes: Vec<_> = runs.into_iter().map(Running::finish).collect();
            assert!(outcomes.iter().any(|outcome| outcome.code == 0), "{outcomes:?}");
        }
        all_is_well(&home, "three runs under one name at once");
    });
}

#[test]
fn a_load_killed_at_any_change_of_the_disk_leaves_a_store_that_the_next_load_completes() {
    let expected = Home::with_busybox().snapshot("images").len();
    let archive = fixture("busybox.docker.tar");
    let args = ["load", "-q", "-i", archive.to_str().unwrap()];
    let counted = Home::new();
    run_traced(&counted, None, &args).done();
    for call in traced_calls(&counted) {
        let home = Home::new();
        let outcome = run_traced(&home, Some(&call), &args);
        assert_eq!(outcome.code, 137, "{call}: {outcome:?}");
        let listed = home.run(["images", "-q"]).done();
        assert!(
            ["", "docker.io/library/busybox:test\n"].contains(&listed.as_str()),
            "{call}: {listed}"
        );
        if !listed.is_empty() {
            // What is listed is whole.
            home.run(["run", "busybox:test", "--", "echo", "whole"]).is(0, "whole\n", "");
        }
        home.run(args).done();
        assert_eq!(home.run(["images", "-q"]).done(), "docker.io/library/busybox:test\n");
        assert_eq!(
            home.snapshot("images").len(),
            expected,
            "{call}: {:#?}",
            home.snapshot("images")
        );
    }
}
