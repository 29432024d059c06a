//! Control groups of sandboxes. In the lab a group is delegated to the user; on other hosts there
//! may be none.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::support::{Home, wait_until};

/// The group of version 2 that a process is in, as a directory. `None` where the host has no such
/// hierarchy.
fn group(pid: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(mount).join(path))
}

/// Returns whether this user may make groups with the limits of a sandbox.
fn is_delegated() -> bool {
    let Some(own) = group("self") else { return false };
    let candidates = own.ancestors().take(2);
    let mut candidates = candidates.filter(|path| {
        let controllers = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
        let is_writable =
            rustix::fs::access(path.join("cgroup.subtree_control"), rustix::fs::Access::WRITE_OK);
        controllers.contains("pids") && controllers.contains("memory") && is_writable.is_ok()
    });
    candidates.next().is_some()
}

/// The step `cgroup` that `msb inspect` reports: whether it holds, and the reason if not.
fn reported(home: &Home) -> (bool, String) {
    let json = home.run(["inspect", "--format", "json", "x"]).done();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let steps = json["state"]["isolation"].as_array().unwrap();
    let step = steps.iter().find(|step| step["step"] == "cgroup").unwrap();
    (step["holds"] == true, step["reason"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_sandbox_is_in_a_control_group_where_one_is_delegated_and_elsewhere_the_reason_is_shown() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "-m", "256M", "busybox:test"]).done();
    let (holds, reason) = reported(&home);
    assert_eq!(holds, is_delegated(), "{reason}");
    let doctor = home.run(["doctor", "--format", "json"]);
    let doctor: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let checks = doctor["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "control group").unwrap();
    assert_eq!(check["status"] == "ok", holds, "{check}");
    if !holds {
        assert!(!reason.is_empty());
        home.run(["rm", "-f", "x"]).done();
        return;
    }
    let processes = home.processes();
    let groups = processes.iter().map(|process| group(&process.pid.to_string()).unwrap());
    let groups: BTreeSet<PathBuf> = groups.collect();
    assert_eq!(groups.len(), 1, "{groups:?}");
    let group = groups.first().unwrap();
    assert_ne!(Some(group), self::group("self").as_ref());
    let limit = |file: &str| fs::read_to_string(group.join(file)).unwrap();
    assert_eq!(limit("pids.max"), "512\n");
    assert_eq!(limit("memory.max"), format!("{}\n", (256 + 1536) << 20));
    assert_eq!(limit("cpu.max"), "300000 100000\n");
    // What metrics report is what the group has used.
    home.run(["exec", "x", "--", "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"])
        .done();
    let metrics = home.run(["metrics", "--format", "json", "x"]).done();
    assert!(metrics.contains("cpu"), "{metrics}");
    // A supervisor that is killed leaves an empty group, and the next start uses it.
    for process in home.processes().iter().filter(|process| process.name == "msb-supervisor") {
        process.signal(Signal::KILL);
    }
    wait_until("the sandbox is over", || home.processes().is_empty());
    home.run(["start", "x"]).done();
    assert!(reported(&home).0);
    home.run(["rm", "-f", "x"]).done();
    wait_until("the group is removed", || !group.exists());
}
