//! Programs that are replaced under a sandbox that runs: each command does its work, or says
//! `UnsupportedOperation`.

use std::path::{Path, PathBuf};

use crate::support::{Home, Outcome, stage};

/// The programs of an earlier commit; see tests/parts/older-programs.
fn older() -> PathBuf {
    stage("older")
}

/// Puts programs into the test's own installation, in place of those that are there: old files go,
/// and new ones come under their names, so that what runs goes on with the old ones.
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
    home.prefix = home.directory.join("prefix");
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
    home.run(["exec", "web", "--", "sh", "-c", "until [ -s /note ]; do sleep 0.1; done"])
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

/// Checks that operations common to both versions work in every combination; others may be refused
/// by name.
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
    run("msb stop -q web").is(0, "", "");
    assert_eq!(home.sandboxes(), [("web".into(), "Stopped".into())]);
}

#[test]
fn what_older_programs_have_started_is_served_by_newer_ones_and_started_again() {
    let home = replaced(&older(), &stage("prefix"));
    every_command_is_served_or_refused(&home);
    home.run(["start", "web"]).is(0, "web\n", "");
    home.run(["exec", "web", "--", "cat", "/note"]).is(0, "kept\n", "");
    home.run(["stop", "--force", "web"]).is(0, "web\n", "");
    home.run(["rm", "web"]).is(0, "web\n", "");
}

#[test]
fn volumes_of_older_programs_stay_what_they_are() {
    let mut home = Home::new();
    home.prefix = home.directory.join("prefix");
    install(&home, &older());
    home.load("busybox.docker.tar");
    home.run(["volume", "create", "sized", "--size", "64M"]).is(0, "sized\n", "");
    home.run(["volume", "create", "shared", "--kind", "dir"]).is(0, "shared\n", "");
    let mounts = ["-v", "made:/made", "-v", "sized:/sized", "-v", "shared:/shared"];
    let run = |script: &str| {
        let command = ["busybox:test", "--", "sh", "-c", script];
        home.run([&["run"][..], &mounts, &command].concat())
    };
    run("for d in made sized shared; do echo $d >/$d/f; done; sync").is(0, "", "");
    let kinds = "made disk 4096\nshared dir null\nsized disk 64\n";
    for programs in [&stage("prefix"), &older()] {
        install(&home, programs);
        let list = "msb volume list --format json | python3 -c \"import json, sys
for v in json.load(sys.stdin): print(v['name'], v['kind'], str(v['quota_mib']).replace('None', 'null'))\"";
        home.shell(list).is(0, kinds, "");
        run("cat /made/f /sized/f /shared/f; grep -c -E ' /(made|sized) ext4 rw' /proc/mounts").is(
            0,
            "made\nsized\nshared\n2\n",
            "",
        );
    }
    // A volume that newer programs made is a directory to older ones as well.
    install(&home, &stage("prefix"));
    home.run(["run", "-v", "new:/n", "busybox:test", "--", "sh", "-c", "echo new >/n/f"])
        .is(0, "", "");
    install(&home, &older());
    home.run(["run", "-v", "new:/n", "busybox:test", "--", "cat", "/n/f"]).is(0, "new\n", "");
}

#[test]
fn what_newer_programs_have_started_is_served_by_older_ones() {
    every_command_is_served_or_refused(&replaced(&stage("prefix"), &older()));
}
