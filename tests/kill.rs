//! Programs that are killed at any moment: what they leave is right, and nothing stays behind.
//!
//! strace kills a program with SIGKILL as it enters the Nth call that changes the state directory, for every N that
//! there is. After each kill the sandboxes are listed, no process may be left, and the same is done again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{Home, Random, Running, fixture, open_files, wait_until};

/// Calls that change what is on the disk.
const CALLS: &str = "rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat,\
                     fsync,fdatasync,ftruncate";

/// The last call of a run is never further away than this; a program with more changes its habits for the worse.
const CALLS_MAX: usize = 60;

/// Arguments of strace: those that kill at the Nth call, or that count calls.
fn strace(log: &str, kill_at: Option<usize>) -> Vec<String> {
    let mut args = vec![
        "-qq".to_owned(),
        "-o".to_owned(),
        log.to_owned(),
        format!("--trace={CALLS}"),
    ];
    if let Some(number) = kill_at {
        args.push(format!("--inject={CALLS}:signal=KILL:when={number}"));
    }
    args
}

/// `msb` with arguments under strace.
fn traced(home: &Home, kill_at: Option<usize>, args: &[&str]) -> Command {
    let log = home.folder.join("strace.log");
    let mut command = home.program("strace");
    command
        .args(strace(log.to_str().unwrap(), kill_at))
        .arg(home.prefix.join("bin/msb"))
        .args(args);
    command
}

/// The calls that the last traced program made.
fn traced_calls(home: &Home) -> usize {
    let log = fs::read_to_string(home.folder.join("strace.log")).unwrap_or_default();
    let calls = log.lines().filter(|line| line.contains('(')).count();
    assert!(calls <= CALLS_MAX, "{calls} calls:\n{log}");
    calls
}

/// Puts a script in the place of the supervisor, which starts the real one under strace. `kill_at` in the test's
/// folder holds the arguments of strace. The tracer is no parent of the supervisor, and holds none of its files.
fn trace_the_supervisor(home: &mut Home) {
    home.own_prefix();
    let program = home.prefix.join("lib/msb/msb-supervisor");
    let real = home.prefix.join("lib/msb/msb-supervisor.real");
    fs::rename(&program, &real).unwrap();
    let script = format!(
        "#!/bin/bash\nexec strace -DDD $(cat {options}) bash -c 'exec -a msb-supervisor \"$0\" \"$@\"' {real} \"$@\"\n",
        options = home.folder.join("options").display(),
        real = real.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
}

fn set_supervisor_options(home: &Home, kill_at: Option<usize>) {
    let log = home.folder.join("strace.log");
    let _ = fs::remove_file(&log);
    fs::write(
        home.folder.join("options"),
        strace(log.to_str().unwrap(), kill_at).join(" "),
    )
    .unwrap();
}

const NAMED: [&str; 6] = ["run", "--name", "x", "busybox:test", "--", "echo"];

/// Everything that must hold after a kill.
#[track_caller]
fn all_is_well(home: &Home, what: &str) {
    let left = home.leftovers();
    assert!(left.is_empty(), "{what}: processes are left: {left:#?}");
    for (name, state) in home.sandboxes() {
        assert!(
            ["Created", "Stopped", "Crashed"].contains(&state.as_str()),
            "{what}: {name} is {state}, and nothing runs"
        );
    }
}

/// A run under the same name, by programs that nobody kills.
#[track_caller]
fn a_second_run_works(home: &Home, what: &str) {
    let outcome = home.run([&NAMED[..], &["again"]].concat());
    assert!(outcome.code == 0, "{what}: the second run: {outcome:?}");
    assert_eq!(outcome.done(), "again\n", "{what}");
    assert_eq!(
        home.sandboxes(),
        [("x".to_owned(), "Stopped".to_owned())],
        "{what}"
    );
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
            for process in self
                .home
                .processes()
                .iter()
                .filter(|process| process.program.starts_with("qemu"))
            {
                for file in open_files(process)
                    .into_iter()
                    .filter(|file| file.to_string_lossy().contains("upper"))
                {
                    holders.entry(file).or_default().insert(process.pid);
                }
            }
            let shared = holders.iter().find(|(_, holders)| holders.len() > 1);
            assert!(
                shared.is_none(),
                "two machines have one disk open: {shared:?}"
            );
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
    let home = Home::with_busybox();
    let run = |kill_at| {
        Running::start(traced(&home, kill_at, &[&NAMED[..], &["first"]].concat())).finish()
    };
    run(None).is(0, "first\n", "");
    home.run(["rm", "x"]).done();
    let calls = traced_calls(&home);
    assert!(calls > 5, "{calls}");
    watching_disks(&home, || {
        for number in 1..=calls {
            let what = format!("the client killed at call {number} of {calls}");
            let outcome = run(Some(number));
            assert_eq!(outcome.code, 137, "{what}: {outcome:?}");
            all_is_well(&home, &what);
            a_second_run_works(&home, &what);
        }
    });
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

#[test]
fn a_supervisor_killed_at_any_change_of_the_disk_leaves_nothing_behind() {
    let mut home = Home::with_busybox();
    trace_the_supervisor(&mut home);
    set_supervisor_options(&home, None);
    home.run([&NAMED[..], &["first"]].concat())
        .is(0, "first\n", "");
    home.run(["rm", "x"]).done();
    let calls = traced_calls(&home);
    assert!(calls > 0, "the supervisor changes nothing");
    watching_disks(&home, || {
        for number in 1..=calls {
            let what = format!("the supervisor killed at call {number} of {calls}");
            set_supervisor_options(&home, Some(number));
            let outcome = home.run([&NAMED[..], &["x"]].concat());
            // Killed after the command's end it may have said how that was.
            assert!([0, 125].contains(&outcome.code), "{what}: {outcome:?}");
            all_is_well(&home, &what);
            set_supervisor_options(&home, None);
            a_second_run_works(&home, &what);
        }
    });
}

#[test]
fn a_supervisor_of_an_unnamed_run_killed_at_any_change_of_the_disk_is_forgotten() {
    let mut home = Home::with_busybox();
    let run = ["run", "busybox:test", "--", "true"];
    trace_the_supervisor(&mut home);
    set_supervisor_options(&home, None);
    home.run(run).is(0, "", "");
    let calls = traced_calls(&home);
    for number in 1..=calls {
        let what = format!("the supervisor killed at call {number} of {calls}");
        set_supervisor_options(&home, Some(number));
        let outcome = home.run(run);
        assert!([0, 125].contains(&outcome.code), "{what}: {outcome:?}");
        all_is_well(&home, &what);
        assert_eq!(home.sandboxes(), [], "{what}");
    }
    set_supervisor_options(&home, None);
    home.run(run).is(0, "", "");
    // What the kills have left went with the next run.
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

#[test]
fn a_detached_supervisor_killed_at_any_change_of_the_disk_leaves_a_sandbox_that_can_go() {
    let mut home = Home::with_busybox();
    trace_the_supervisor(&mut home);
    set_supervisor_options(&home, None);
    let start = ["run", "-d", "--name", "x", "busybox:test"];
    home.run(start).done();
    home.run(["stop", "x"]).done();
    home.run(["rm", "x"]).done();
    let calls = traced_calls(&home);
    for number in 1..=calls {
        let what = format!("the supervisor killed at call {number} of {calls}");
        set_supervisor_options(&home, Some(number));
        home.run(start);
        home.run(["stop", "x"]);
        all_is_well(&home, &what);
        if !home.sandboxes().is_empty() {
            home.run(["rm", "x"]).done();
        }
        assert_eq!(home.sandboxes(), [], "{what}");
    }
    set_supervisor_options(&home, None);
    a_second_run_works(&home, "after all of them");
}

/// Who is killed at random moments, by the name of the program.
fn killed_at_random_moments(program: &str, seed: u64) {
    let home = Home::with_busybox();
    let mut random = Random::new(seed);
    watching_disks(&home, || {
        for round in 0..6 {
            let mut command = home.msb(
                [
                    &NAMED[..4],
                    &["--", "sh", "-c", "sleep 1; echo slept >/note; sync"],
                ]
                .concat(),
            );
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let running = Running::start_as_is(command);
            let victims = || -> Vec<_> {
                home.processes()
                    .into_iter()
                    .filter(|p| p.program.starts_with(program))
                    .collect()
            };
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
    killed_at_random_moments("msb-run", 11);
}

#[test]
fn a_supervisor_killed_at_random_moments_leaves_nothing_behind() {
    killed_at_random_moments("msb-supervisor", 22);
}

#[test]
fn a_machine_killed_at_random_moments_leaves_nothing_behind() {
    killed_at_random_moments("qemu", 33);
}

#[test]
fn a_killed_machine_ends_the_run_with_a_reason() {
    let home = Home::with_busybox();
    let mut running = home.start([
        "run",
        "-i",
        "busybox:test",
        "--",
        "sh",
        "-c",
        "echo up; cat",
    ]);
    running.read_until("up\n");
    for machine in home
        .processes()
        .iter()
        .filter(|process| process.program.starts_with("qemu"))
    {
        machine.signal(Signal::KILL);
    }
    let outcome = running.finish();
    assert_eq!(outcome.code, 125, "{outcome:?}");
    assert!(
        String::from_utf8_lossy(&outcome.stderr).starts_with("msb-run: error: "),
        "{outcome:?}"
    );
}

#[test]
fn of_many_runs_under_one_name_no_two_machines_share_its_disk() {
    let home = Home::with_busybox();
    watching_disks(&home, || {
        for _ in 0..3 {
            let runs: Vec<_> = (0..3)
                .map(|_| home.start([&NAMED[..], &["one"]].concat()))
                .collect();
            let outcomes: Vec<_> = runs.into_iter().map(Running::finish).collect();
            assert!(
                outcomes.iter().any(|outcome| outcome.code == 0),
                "{outcomes:?}"
            );
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
    Running::start(traced(&counted, None, &args))
        .finish()
        .done();
    let calls = traced_calls(&counted);
    assert!(calls > 5, "{calls}");
    for number in 1..=calls {
        let home = Home::new();
        let outcome = Running::start(traced(&home, Some(number), &args)).finish();
        assert_eq!(outcome.code, 137, "{outcome:?}");
        // What is listed is whole.
        let listed = home.run(["images", "-q"]).done();
        assert!(
            ["", "docker.io/library/busybox:test\n"].contains(&listed.as_str()),
            "call {number}: {listed}"
        );
        home.run(args).done();
        assert_eq!(
            home.run(["images", "-q"]).done(),
            "docker.io/library/busybox:test\n"
        );
        assert_eq!(
            home.snapshot("images").len(),
            expected,
            "call {number}: {:#?}",
            home.snapshot("images")
        );
    }
}

#[test]
fn an_image_that_was_listed_after_a_killed_load_runs() {
    let archive = fixture("busybox.docker.tar");
    let args = ["load", "-q", "-i", archive.to_str().unwrap()];
    let counted = Home::new();
    Running::start(traced(&counted, None, &args))
        .finish()
        .done();
    // The last change is the one that makes the image appear, or its fsync.
    let home = Home::new();
    Running::start(traced(&home, Some(traced_calls(&counted)), &args)).finish();
    if home.run(["images", "-q"]).done().is_empty() {
        home.run(args).done();
    }
    home.run(["run", "busybox:test", "--", "echo", "whole"])
        .is(0, "whole\n", "");
}
