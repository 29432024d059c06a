//! Commands that change the image store, at once and killed: the store passes its own check
//! afterwards.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use crate::kill::{run_traced, traced_calls};
use crate::support::{Home, Random, Registry, Running, fixture};

const BUSYBOX: &str = "docker.io/library/busybox:test";
const ROUNDS: u32 = 200;
/// In these rounds a sandbox runs as well, which takes seconds.
const RUN_EVERY: u32 = 20;

#[track_caller]
fn the_store_is_whole(home: &Home, what: &str) {
    let outcome = home.run(["image", "check", "-q"]);
    assert!(outcome.code == 0, "{what}: {outcome:?}");
    // Whatever is listed can be used.
    for name in home.run(["images", "-q"]).done().lines() {
        home.run(["image", "inspect", name]).done();
    }
}

fn start(home: &Home, args: &[&str]) -> Running {
    let mut command = home.msb(args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Running::start_as_is(command)
}

#[test]
fn loads_pulls_saves_runs_and_prunes_at_once_and_killed_leave_a_whole_store() {
    let home = Home::new();
    let registry = Registry::plain(&home);
    let layers = format!("oci-archive:{}", fixture("layers.oci-gzip.tar").display());
    registry.push(&home, &layers, "layers", "");
    let remote = format!("{}/layers", registry.host());
    let path = |name: &str| fixture(name).to_str().unwrap().to_owned();
    let (busybox, configured) = (path("busybox.docker.tar"), path("configured.docker.tar"));
    let saved = home.directory.join("saved.tar");
    let commands: [&[&str]; 9] = [
        &["pull", "-q", &remote],
        &["pull", "-q", "--force", &remote],
        &["load", "-q", "-i", &busybox],
        &["load", "-q", "-i", &configured],
        &["load", "-q", "-i", &busybox, "--tag", "also"],
        &["image", "tag", "-q", BUSYBOX, "tagged"],
        &["save", "-q", "-o", saved.to_str().unwrap(), BUSYBOX],
        &["rmi", "-q", BUSYBOX],
        &["image", "prune", "--yes", "-q"],
    ];
    let mut random = Random::new(4);
    for round in 0..ROUNDS {
        let what = format!("round {round}");
        let sandbox = (round % RUN_EVERY == 0)
            .then(|| start(&home, &["run", "--pull", "never", BUSYBOX, "--", "true"]));
        let mut running = Vec::new();
        for _ in 0..4 {
            let command = commands[random.below(commands.len() as u64) as usize];
            running.push((command, start(&home, command)));
            std::thread::sleep(Duration::from_millis(random.below(20)));
        }
        // Half of them come to their end.
        for (_, process) in running.iter().filter(|(_, process)| process.pid() % 2 == 0) {
            std::thread::sleep(Duration::from_millis(random.below(30)));
            let pid = rustix::process::Pid::from_raw(process.pid()).unwrap();
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        for (command, process) in running {
            let outcome = process.finish();
            // Done; no such image; in use; or killed. Never a failure of the store itself.
            let fine = [0, 3, 4, 137].contains(&outcome.code);
            assert!(fine, "{what}: {command:?}: {outcome:?}");
        }
        if let Some(sandbox) = sandbox {
            let outcome = sandbox.finish();
            let no_image = String::from_utf8_lossy(&outcome.stderr).contains("there is no image");
            assert!(outcome.code == 0 || no_image, "{what}: {outcome:?}");
        }
        the_store_is_whole(&home, &what);
    }
    home.run(["load", "-q", "-i", &busybox]).done();
    home.run(["run", BUSYBOX, "--", "echo", "whole"]).is(0, "whole\n", "");
    home.run(["image", "prune", "--yes", "-q"]).is(0, "", "");
    let left: Vec<String> =
        home.snapshot("images").into_iter().filter(|line| line.split(' ').count() == 3).collect();
    assert_eq!(left, Vec::<String>::new());
}

/// Kills a command at each of its changes of the disk, one after the other; the store is whole each
/// time, and the same command then does what is left to do.
fn killed_at_each_change(args: &[&str], prepare: impl Fn() -> Home, done: impl Fn(&Home)) {
    let home = prepare();
    run_traced(&home, None, args).done();
    done(&home);
    for call in traced_calls(&home) {
        let home = prepare();
        let what = format!("{args:?} {call}");
        let outcome = run_traced(&home, Some(&call), args);
        assert_eq!(outcome.code, 137, "{what}: {outcome:?}");
        the_store_is_whole(&home, &what);
        let again = home.run(args);
        assert!([0, 3].contains(&again.code), "{what}: {again:?}");
        home.run(["image", "prune", "--yes", "--dangling", "-q"]).is(0, "", "");
        the_store_is_whole(&home, &what);
        done(&home);
    }
}

#[test]
fn a_prune_killed_at_any_change_of_the_disk_is_finished_by_the_next() {
    killed_at_each_change(&["image", "prune", "--yes", "-q"], Home::with_busybox, |home| {
        let files = home.snapshot("images");
        assert!(!files.iter().any(|line| line.split(' ').count() == 3), "{files:#?}");
    });
}

#[test]
fn a_removal_killed_at_any_change_of_the_disk_spares_what_others_need() {
    killed_at_each_change(
        &["rmi", "-q", BUSYBOX],
        || Home::with(&["busybox.docker.tar", "configured.docker.tar"]),
        |home| {
            assert_eq!(home.run(["images", "-q"]).done(), "localhost/msb-test/configured:v1\n");
        },
    );
}

#[test]
fn a_tag_killed_at_any_change_of_the_disk_is_there_or_not() {
    killed_at_each_change(&["image", "tag", "-q", BUSYBOX, "mine"], Home::with_busybox, |home| {
        assert_eq!(
            home.run(["images", "-q"]).done(),
            "docker.io/library/busybox:test\ndocker.io/library/mine:latest\n"
        );
    });
}

#[test]
fn a_load_killed_at_any_change_of_the_disk_leaves_a_whole_store() {
    let archive = fixture("configured.docker.tar");
    killed_at_each_change(
        &["load", "-q", "-i", archive.to_str().unwrap()],
        Home::with_busybox,
        |home| {
            assert_eq!(
                home.run(["images", "-q"]).done(),
                "docker.io/library/busybox:test\nlocalhost/msb-test/configured:v1\n"
            );
        },
    );
}

#[test]
fn a_pull_killed_at_any_change_of_the_disk_leaves_a_whole_store() {
    let server = Home::new();
    let registry = Registry::plain(&server);
    let archive = format!("docker-archive:{}", fixture("busybox.docker.tar").display());
    registry.push(&server, &archive, "busybox", "");
    let image = format!("{}/busybox", registry.host());
    killed_at_each_change(&["pull", "-q", &image], Home::new, |home| {
        assert_eq!(home.run(["images", "-q"]).done(), format!("{image}:latest\n"));
    });
}

#[test]
fn a_save_killed_at_any_change_of_the_disk_leaves_the_old_archive_or_the_new_one() {
    killed_at_each_change(
        &["save", "-q", "-o", "saved.tar", "--compress", "gzip", BUSYBOX],
        || {
            let home = Home::with_busybox();
            std::fs::write(home.directory.join("saved.tar"), "old").unwrap();
            home
        },
        |home| {
            let there = std::fs::read(home.directory.join("saved.tar")).unwrap();
            assert!(there.len() > 1 << 20, "{} bytes", there.len());
        },
    );
}
