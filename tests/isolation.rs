//! What the host's processes of a sandbox have given up, seen from outside, and tried from inside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::support::{Guests, Home, Running};

/// A line of `/proc/PID/status`.
fn status_line(pid: i32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start_matches(':').trim().to_owned())
}

/// Whether a process takes no privileges from programs, and has a filter of system calls.
fn is_confined(pid: i32) -> bool {
    let is = |name, value: &str| status_line(pid, name).as_deref() == Some(value);
    is("NoNewPrivs", "1") && is("Seccomp", "2")
}

/// The one process of this name.
fn one(home: &Home, name: &str) -> i32 {
    let mut found = home.processes();
    found.retain(|process| process.name == name);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].pid
}

#[test]
fn machine_and_supervisor_are_confined_and_inspect_tells_it() {
    let home = Guests::one();
    for pid in [
        home.machine().pid,
        one(&home, "msb-supervisor"),
        one(&home, "msb-net"),
    ] {
        assert!(is_confined(pid), "{pid}");
    }
    let json = home.run(["inspect", "--format", "json", "x"]).done();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let steps = json["state"]["isolation"].as_array().unwrap();
    let names: Vec<String> = steps
        .iter()
        .map(|step| format!("{}:{}", step["process"], step["step"]).replace('"', ""))
        .collect();
    let mut expected = vec![
        "vmm:network",
        "vmm:core",
        "vmm:privileges",
        "vmm:paths",
        "vmm:calls",
        "net:privileges",
        "net:core",
        "net:capabilities",
        "net:paths",
        "net:calls",
        "supervisor:privileges",
        "supervisor:paths",
        "supervisor:calls",
    ];
    let machine = home.machine();
    if json["state"]["engine"] == "krun" {
        // QEMU loses them by being executed.
        expected.insert(4, "vmm:capabilities");
        let none = "0000000000000000";
        assert_eq!(status_line(machine.pid, "CapEff").as_deref(), Some(none));
    }
    assert_eq!(names, expected);
    for step in steps {
        // What a host cannot do has a reason.
        assert!(
            step["holds"] == true || step["reason"].is_string(),
            "{step}"
        );
    }
    if steps[0]["holds"] == true {
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_ne!(network(&home.machine().pid.to_string()), network("self"));
    }
    let text = home.run(["inspect", "x"]).done();
    assert!(text.contains("vmm:privileges"), "{text}");
}

#[test]
fn a_program_in_the_machines_place_reaches_neither_files_nor_network() {
    let home = Home::with_busybox();
    let canary = home.folder.join("canary");
    fs::write(&canary, "secret").unwrap();
    let programs = home.folder.join("programs");
    fs::create_dir(&programs).unwrap();
    let probe = programs.join("qemu-system-x86_64");
    let canary = canary.to_str().unwrap();
    let state = home.state();
    let script = format!(
        "#!/bin/sh\nexec >&2 2>/dev/null\necho began\ncat {canary} && echo read\necho x >{canary} && echo wrote\n\
         ls {folder} && echo listed\ncat /etc/passwd && echo passwd\ntouch {state}/made && echo made\n\
         cat {state}/version && echo version\ncat /proc/$PPID/environ && echo environ\n\
         touch /tmp/msb-$$ /var/tmp/msb-$$ && echo touched\nunshare -r true && echo namespace\n\
         grep -c : /proc/$$/net/dev\nulimit -c\necho ended\n",
        folder = home.folder.display(),
        state = state.display(),
    );
    fs::write(&probe, script).unwrap();
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o755)).unwrap();
    home.run(["create", "--no-start", "--name", "x", "busybox:test"])
        .done();
    let mut start = home.msb(["start", "x"]);
    start.env("PATH", format!("{}:{}", programs.display(), home.path()));
    let outcome = Running::start(start).finish();
    assert_ne!(outcome.code, 0);
    let log = fs::read_to_string(state.join("sandboxes/x/supervisor.log")).unwrap();
    let said = &log[log.find("began").unwrap()..=log.find("ended").unwrap()];
    // One device, the loopback of its own network, and no core dumps.
    assert_eq!(said, "began\n1\n0\ne", "{log}");
    assert_eq!(fs::read_to_string(canary).unwrap(), "secret");
}

/// What others could do as this user cannot be done in the network's process: see msb-net/src/isolate.rs for attempts.
#[test]
fn the_networks_process_has_no_rights_no_files_and_no_other_sockets() {
    let home = Guests::one();
    let pid = one(&home, "msb-net");
    let none = "0000000000000000";
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status_line(pid, set).as_deref(), Some(none), "{set}");
    }
    assert_eq!(status_line(pid, "Threads").as_deref(), Some("1"));
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().collect::<Vec<_>>(),
        ["0", "0", "bytes"]
    );
    // What it has open is the wire, the pipes, the counters and nothing that has a name.
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        let target = target.to_string_lossy();
        let nameless = ["socket:", "pipe:", "anon_inode:", "/memfd:", "/dev/null"];
        let is_nameless = nameless.iter().any(|kind| target.starts_with(kind));
        assert!(
            is_nameless || target.ends_with("/samples") || target.ends_with("/supervisor.log"),
            "{target}"
        );
    }
}

#[test]
fn a_copy_out_of_a_guest_is_written_by_a_confined_process() {
    let home = Guests::one();
    let fill = "dd if=/dev/urandom of=/big bs=1M count=48 2>/dev/null";
    home.run(["exec", "x", "--", "sh", "-c", fill]).done();
    let copy = home.start(["cp", "x:/big", "."]);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_confined(copy.pid()) {
        assert!(Instant::now() < deadline, "it never was");
        assert!(
            status_line(copy.pid(), "State").is_some_and(|state| !state.starts_with('Z')),
            "it has ended"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    copy.finish().is(0, "", "");
    assert_eq!(
        fs::metadata(home.folder.join("big")).unwrap().len(),
        48 << 20
    );
}
