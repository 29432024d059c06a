//! Reports of `msb doctor` on hosts with prepared defects.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::support::{Home, Outcome, Running};

/// Runs the doctor, in an environment that `set` has changed, and reads what it says to programs.
#[track_caller]
fn examine(home: &Home, set: impl FnOnce(&mut Command)) -> (Outcome, Value) {
    let mut command = home.msb(["doctor", "--format", "json"]);
    set(&mut command);
    let outcome = Running::start(command).finish();
    let report = serde_json::from_slice(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{error}: {outcome:?}"));
    (outcome, report)
}

/// The look of a name: its status, what was found, how to mend it.
#[track_caller]
fn look<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str, &'a str) {
    let checks = report["checks"].as_array().unwrap();
    let check = checks
        .iter()
        .find(|check| check["name"] == name)
        .unwrap_or_else(|| panic!("there is no look at '{name}': {report:#}"));
    let text = |field: &str| check[field].as_str().unwrap_or_default();
    (text("status"), text("found"), text("mend"))
}

/// It fails exactly when there is a problem, and says so.
#[track_caller]
fn is_consistent(outcome: &Outcome, report: &Value) {
    let checks = report["checks"].as_array().unwrap();
    let problems = checks.iter().any(|check| check["status"] == "problem");
    assert_eq!(report["ready"], !problems, "{report:#}");
    assert_eq!(outcome.code, i32::from(problems), "{report:#}");
    assert!(problems || report["engine"].is_string(), "{report:#}");
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    let expected = if problems {
        "msb doctor: error: no sandbox can start until the problems above are fixed\n"
    } else {
        ""
    };
    assert_eq!(said, expected);
    for check in checks {
        let wrong = check["status"] == "warning" || check["status"] == "problem";
        assert!(!wrong || check["mend"].is_string(), "no way out of {check:#}");
    }
}

#[test]
fn the_engine_it_names_is_the_one_that_a_sandbox_gets() {
    let home = Home::with_busybox();
    let (outcome, report) = examine(&home, |_| {});
    is_consistent(&outcome, &report);
    assert_eq!(outcome.code, 0, "{report:#}");
    home.run(["run", "-d", "--name", "x", "busybox:test"]).done();
    let status = fs::read(home.state().join("sandboxes/x/status.json")).unwrap();
    let status: Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["engine"], report["engine"], "{report:#}");
    let (_, during) = examine(&home, |_| {});
    assert_eq!(look(&during, "sandboxes").1, "1, 1 of them running");
    home.run(["stop", "x"]).done();
}

#[test]
fn emulation_is_said_to_be_no_security_boundary() {
    let home = Home::new();
    let (outcome, report) = examine(&home, |_| {});
    is_consistent(&outcome, &report);
    let checks = report["checks"].as_array().unwrap();
    let said = checks.iter().any(|check| check["name"] == "isolation");
    assert_eq!(said, report["accelerator"] == "tcg", "{report:#}");
    if said {
        let (status, found, mend) = look(&report, "isolation");
        assert_eq!(status, "warning");
        assert!(found.contains("not treat as a security boundary"), "{found}");
        assert!(mend.contains("hardware virtualization"), "{mend}");
    }
}

#[test]
fn a_directory_of_others_is_refused_and_a_foreign_runtime_directory_is_not_used() {
    let home = Home::new();
    let open = home.directory.join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
    let shown = open.display();
    for command in ["volume ls", "ls", "image ls", "doctor", "run busybox -- true"] {
        let refused = home.shell(&format!("MSB_HOME={shown} msb {command}"));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(matches!(refused.code, 1 | 125), "{command}: {refused:?}");
        assert!(
            said.contains(&format!("other users can write to '{shown}' (mode 1777)"))
                && said.contains(&format!("chmod go-w '{shown}'")),
            "{command}: {said}"
        );
    }
    assert_eq!(fs::read_dir(&open).unwrap().count(), 0);
    // Mended as it says, it serves.
    home.shell(&format!("chmod go-w '{shown}' && MSB_HOME={shown} msb volume ls")).done();
    // What su(1) has left of another user: here a directory that others can write to, and root's.
    for foreign in [shown.to_string() + "/x", "/".to_owned()] {
        let script = format!(
            "mkdir -p {shown}/x; chmod 777 {shown}/x; unset MSB_HOME; export XDG_RUNTIME_DIR={foreign}
            msb load -q -i {} && msb run -d --name x busybox:test && ls .msb/run/x && msb stop x",
            crate::support::fixture("busybox.docker.tar").display()
        );
        let ran = home.shell(&script).done();
        assert!(ran.contains("agent.sock"), "{ran}");
    }
}

#[test]
fn it_makes_and_changes_nothing() {
    let home = Home::new();
    let (outcome, report) = examine(&home, |_| {});
    is_consistent(&outcome, &report);
    assert!(!home.state().exists(), "the doctor made the state directory");
    home.load("busybox.docker.tar");
    let before = home.snapshot("");
    examine(&home, |_| {});
    assert_eq!(before, home.snapshot(""));
}

#[test]
fn people_read_a_table_and_the_verdict() {
    let home = Home::new();
    let said = home.run(["doctor"]).done();
    for words in ["engines\n", "programs\n", "state\n", "host\n"] {
        assert!(said.contains(words), "{said}");
    }
    let verdict = said.lines().last().unwrap_or_default();
    assert!(verdict.starts_with("Sandboxes run with the engine "), "{said}");
}

#[test]
fn without_qemu_it_says_how_to_install_it() {
    let home = Home::new();
    let (outcome, report) = examine(&home, |command| {
        command.env("PATH", "").env_remove("MSB_ENGINE");
    });
    is_consistent(&outcome, &report);
    let (status, found, mend) = look(&report, "qemu");
    assert_ne!(status, "ok");
    assert_eq!(found, "cannot find 'qemu-system-x86_64' in PATH");
    assert!(mend.starts_with("install QEMU: "), "{mend}");
    // Our own programs are found all the same.
    assert_eq!(look(&report, "programs").0, "ok");
    let (outcome, report) = examine(&home, |command| {
        command.env("PATH", "").env("MSB_ENGINE", "qemu");
    });
    is_consistent(&outcome, &report);
    assert_eq!(outcome.code, 1, "{report:#}");
    assert_eq!(report["engine"], Value::Null);
}

#[test]
fn a_qemu_that_does_not_work_is_not_taken_for_one_that_does() {
    let home = Home::new();
    let program = home.directory.join("qemu-system-x86_64");
    fs::write(&program, "#!/bin/sh\necho 'libfdt.so.1: no such file' >&2\nexit 127\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let (outcome, report) = examine(&home, |command| {
        command.env("PATH", format!("{}:/usr/bin:/bin", home.directory.display()));
        command.env("MSB_ENGINE", "qemu");
    });
    assert_eq!(outcome.code, 1, "{report:#}");
    let (status, found, _) = look(&report, "qemu");
    assert_eq!(status, "problem");
    assert!(found.contains("libfdt.so.1"), "{found}");
}

#[test]
fn without_a_kernel_it_says_where_one_was_looked_for() {
    let home = Home::new();
    let empty = home.directory.join("no kernels");
    fs::create_dir(&empty).unwrap();
    let (outcome, report) = examine(&home, |command| {
        command.env("MSB_KERNEL", &empty).env("MSB_ENGINE", "qemu");
    });
    is_consistent(&outcome, &report);
    assert_eq!(outcome.code, 1, "{report:#}");
    let (status, found, mend) = look(&report, "kernel");
    assert_eq!(status, "problem");
    assert!(found.contains("no kernels"), "{found}");
    assert!(mend.contains("MSB_KERNEL="), "{mend}");
}

#[test]
fn virtualization_is_what_this_machine_has() {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap();
    let capable = processor
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split(' ').any(|flag| flag == "vmx" || flag == "svm"));
    let mut open = fs::File::options();
    let opened = open.read(true).write(true).open("/dev/kvm");
    let home = Home::new();
    let (_, report) = examine(&home, |_| {});
    let (status, found, mend) = look(&report, "virtualization");
    match (capable, opened.map_err(|error| error.kind())) {
        (false, _) => assert!(found.contains("neither vmx nor svm"), "{found}"),
        (true, Err(std::io::ErrorKind::PermissionDenied)) => {
            assert!(found.contains("no permission"), "{found}");
            assert!(mend.contains("usermod") || mend.contains("chgrp"), "{mend}");
        }
        (true, Err(_)) => assert!(mend.contains("modprobe"), "{mend}"),
        (true, Ok(_)) => return assert!(["ok", "warning"].contains(&status), "{found}"),
    }
    assert_eq!(status, "warning");
}

#[test]
fn a_state_directory_that_cannot_be_used_is_a_problem_with_a_way_out() {
    let home = Home::new();
    let is_problem = |path: &std::path::Path, words: &str| {
        let (outcome, report) = examine(&home, |command| {
            command.env("MSB_HOME", path);
        });
        is_consistent(&outcome, &report);
        assert_eq!(outcome.code, 1, "{report:#}");
        let (status, found, mend) = look(&report, "folder");
        assert_eq!(status, "problem");
        assert!(found.contains(words), "{found}");
        assert!(mend.contains("MSB_HOME"), "{mend}");
    };
    is_problem("/proc/no/such".as_ref(), "no permission to write to");
    let file = home.directory.join("file");
    fs::write(&file, "").unwrap();
    is_problem(&file, "is not a directory");
    let closed = home.directory.join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    is_problem(&closed, "no permission to read and write");
    is_problem(&closed.join("inner"), "no permission to write to");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    is_problem(&closed.join("inner"), "permission denied");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_state_directory_of_another_version_is_a_problem() {
    let home = Home::with_busybox();
    fs::write(home.state().join("version"), "7\n").unwrap();
    let (outcome, report) = examine(&home, |_| {});
    is_consistent(&outcome, &report);
    assert_eq!(outcome.code, 1, "{report:#}");
    let (status, found, _) = look(&report, "version");
    assert_eq!(status, "problem");
    assert!(found.contains("has version '7'"), "{found}");
}

#[test]
fn a_full_disk_an_open_directory_and_a_broken_sandbox_are_found() {
    let home = Home::with_busybox();
    // A file system of four megabytes, which tests/run has mounted.
    let full = crate::support::ground("full").join(format!("{}-doctor", std::process::id()));
    fs::create_dir(&full).unwrap();
    let (outcome, report) = examine(&home, |command| {
        command.env("MSB_HOME", &full);
    });
    fs::remove_dir(&full).unwrap();
    is_consistent(&outcome, &report);
    assert_eq!(look(&report, "disk").0, "problem");
    let directory = home.state().join("sandboxes/bad");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("spec.json"), "{").unwrap();
    fs::set_permissions(home.state(), fs::Permissions::from_mode(0o755)).unwrap();
    let (outcome, report) = examine(&home, |_| {});
    is_consistent(&outcome, &report);
    assert_eq!(outcome.code, 0, "{report:#}");
    let (status, found, mend) = look(&report, "broken");
    assert_eq!(status, "warning");
    assert!(found.contains("sandboxes/bad/spec.json"), "{found}");
    assert!(mend.ends_with("msb rm bad"), "{mend}");
    let (status, found, _) = look(&report, "folder");
    assert_eq!(status, "warning");
    assert!(found.contains("0755"), "{found}");
}

#[test]
fn programs_of_another_version_are_told() {
    let home = Home::new();
    let copy = home.directory.join("bin");
    fs::create_dir(&copy).unwrap();
    for name in ["msb-run", "msb-image", "msb"] {
        fs::copy(home.prefix.join("bin").join(name), copy.join(name)).unwrap();
    }
    fs::rename(copy.join("msb-run"), copy.join("msb-doctor")).unwrap();
    let old = copy.join("msb-vmm");
    fs::write(&old, "#!/bin/sh\necho msb-vmm 0.0.1\n").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = home.program(copy.join("msb-doctor"));
    command.args(["--format", "json"]).env("PATH", "/usr/bin:/bin");
    let outcome = Running::start(command).finish();
    let report: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!(outcome.code, 1, "{report:#}");
    let (status, found, _) = look(&report, "msb-vmm");
    assert_eq!(status, "warning");
    assert!(found.contains("'msb-vmm 0.0.1'"), "{found}");
    let (status, found, mend) = look(&report, "msb-agent");
    assert_eq!(status, "problem");
    assert!(found.contains("cannot find the program 'msb-agent'"), "{found}");
    assert!(mend.contains("libmsb/install"), "{mend}");
}
