//! Programs that are replaced under a sandbox that runs: each command does its work, or says `UnsupportedOperation`.

use std::path::Path;

use crate::support::{Home, Outcome, stage};

/// The programs of an earlier commit; see tests/older-programs. They come from the history of the repository, which a shallow
/// clone has not: that is told of, since it must not pass for a test that was run.
fn older() -> Option<std::path::PathBuf> {
    let older = stage("older");
    if older.is_dir() {
        return Some(older);
    }
    eprintln!("NOT TESTED: upgrades, since this clone has no history");
    None
}

/// Puts programs into the test's own installation, in place of those that are there: old files go, and new ones come under
/// their names, so that what runs goes on with the old ones.
fn install(home: &Home, programs: &Path) {
    let script = format!(
        "rm -rf '{prefix}' && cp -R '{}' '{prefix}'",
        programs.display(),
        prefix = home.prefix.display()
    );
    home.shell(&script).is(0, "", "");
}

/// A sandbox `web` that was started by some programs, and now is met by others.
fn replaced(from: &Path, to: &Path) -> Home {
    let mut home = Home::new();
    home.prefix = home.folder.join("prefix");
    install(&home, from);
    home.load("busybox.docker.tar");
    home.run([
        "run",
        "--detach",
        "--name",
        "web",
        "busybox:test",
        "--",
        "sh",
        "-c",
        "echo begun; echo kept >/note; sync; sleep 100000",
    ])
    .done();
    // The main command has said all that it says.
    home.run([
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "until [ -s /note ]; do sleep 0.1; done",
    ])
    .is(0, "", "");
    install(&home, to);
    home
}

/// It worked, with this on standard output, or was refused with the name of the error.
#[track_caller]
fn works_or_is_unsupported(outcome: &Outcome, stdout: &str) {
    if outcome.code == 0 {
        assert_eq!(String::from_utf8_lossy(&outcome.stdout), stdout);
        return;
    }
    let error = String::from_utf8_lossy(&outcome.stderr);
    let refused = error.contains("\"code\":\"UnsupportedOperation\"")
        || error.contains("does not know the operation");
    assert!(refused, "{outcome:?}");
}

fn every_command_is_served_or_refused(home: &Home) {
    for (script, stdout) in [
        ("msb ls --quiet --running", "web\n"),
        ("msb exec web -- cat /note", "kept\n"),
        (
            "echo there >file && msb cp file web:/file && msb cp web:/file back && cat back",
            "there\n",
        ),
        ("msb logs web", "begun\n"),
        ("msb ping --quiet web", ""),
        ("msb exec -d web -- true >/dev/null", ""),
        ("msb modify web --label upgraded >/dev/null", ""),
        ("msb stop web", ""),
    ] {
        let outcome = home.shell(&format!("export MSB_ERRORS=json; {script}"));
        works_or_is_unsupported(&outcome, stdout);
    }
    assert_eq!(home.sandboxes(), [("web".into(), "Stopped".into())]);
}

#[test]
fn what_older_programs_have_started_is_served_by_newer_ones_and_started_again() {
    let Some(older) = older() else { return };
    let home = replaced(&older, &stage("prefix"));
    every_command_is_served_or_refused(&home);
    home.run(["start", "web"]).is(0, "", "");
    home.run(["exec", "web", "--", "cat", "/note"])
        .is(0, "kept\n", "");
    home.run(["stop", "--force", "web"]).is(0, "", "");
    home.run(["rm", "web"]).is(0, "", "");
}

#[test]
fn what_newer_programs_have_started_is_served_by_older_ones() {
    let Some(older) = older() else { return };
    every_command_is_served_or_refused(&replaced(&stage("prefix"), &older));
}
