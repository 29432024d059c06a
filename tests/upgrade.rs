//! Programs that are replaced under a sandbox that runs: each command does its work, or says `UnsupportedOperation`.

use std::path::{Path, PathBuf};

use crate::support::{Home, Outcome, stage};

/// The programs of an earlier commit; see tests/older-programs.
fn older() -> PathBuf {
    stage("older")
}

/// Puts programs into the test's own installation, in place of those that are there: old files go, and new ones come under
/// their names, so that what runs goes on with the old ones.
fn install(home: &Home, programs: &Path) {
    let script = format!(
        "rm -rf '{prefix}' && cp -R '{}/.' '{prefix}'",
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
        "echo begun; [ -s /note ] || echo kept >/note; sync; sleep 100000",
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

/// What all programs since the older ones have in common works, whoever meets whom; the rest may be refused by its name.
fn every_command_is_served_or_refused(home: &Home) {
    let run = |script: &str| home.shell(&format!("export MSB_ERRORS=json; {script}"));
    for (script, stdout) in [
        ("msb ls --quiet --running", "web\n"),
        ("msb exec web -- cat /note", "kept\n"),
        ("msb exec web -- sh -c 'exit 9' || echo $?", "9\n"),
        ("echo typed | msb exec -i web -- cat", "typed\n"),
        (
            "echo there >file && msb cp file web:/file && msb cp web:/file back && cat back",
            "there\n",
        ),
        ("msb logs web", "begun\n"),
    ] {
        run(script).is(0, stdout, "");
    }
    for script in [
        "msb ping --quiet web",
        "msb exec -d web -- true >/dev/null",
        "msb modify web --label upgraded >/dev/null",
    ] {
        works_or_is_unsupported(&run(script), "");
    }
    run("msb stop web").is(0, "", "");
    assert_eq!(home.sandboxes(), [("web".into(), "Stopped".into())]);
}

#[test]
fn what_older_programs_have_started_is_served_by_newer_ones_and_started_again() {
    let home = replaced(&older(), &stage("prefix"));
    every_command_is_served_or_refused(&home);
    home.run(["start", "web"]).is(0, "", "");
    home.run(["exec", "web", "--", "cat", "/note"])
        .is(0, "kept\n", "");
    home.run(["stop", "--force", "web"]).is(0, "", "");
    home.run(["rm", "web"]).is(0, "", "");
}

#[test]
fn what_newer_programs_have_started_is_served_by_older_ones() {
    every_command_is_served_or_refused(&replaced(&stage("prefix"), &older()));
}
