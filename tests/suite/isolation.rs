//! Confinement of the host's processes of a sandbox, seen from outside, and tried from inside.

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

/// Returns whether a process has no_new_privs set and a system call filter.
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
    for pid in [home.machine().pid, one(&home, "msb-supervisor"), one(&home, "msb-net")] {
        assert!(is_confined(pid), "{pid}");
    }
    let json = home.run(["inspect", "--format", "json", "x"]).done();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let steps = json["state"]["isolation"].as_array().unwrap();
    let names: Vec<String> = steps
        .iter()
        .map(|step| format!("{}:{}", step["process"], step["step"]).replace('"', ""))
        .collect();
    let expected = [
        "vmm:network",
        "vmm:core",
        "vmm:privileges",
        "vmm:paths",
        "vmm:capabilities",
        "vmm:calls",
        "net:privileges",
        "net:core",
        "net:capabilities",
        "net:paths",
        "net:calls",
        "supervisor:cgroup",
        "supervisor:privileges",
        "supervisor:capabilities",
        "supervisor:paths",
        "supervisor:calls",
    ];
    let machine = home.machine();
    let none = "0000000000000000";
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status_line(machine.pid, set).as_deref(), Some(none), "{set}");
    }
    assert_eq!(names, expected);
    for step in steps {
        // What a host cannot do has a reason.
        assert!(step["holds"] == true || step["reason"].is_string(), "{step}");
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
    let canary = home.directory.join("canary");
    fs::write(&canary, "secret").unwrap();
    let programs = home.directory.join("programs");
    fs::create_dir(&programs).unwrap();
    let probe = programs.join("qemu-system-x86_64");
    let canary = canary.to_str().unwrap();
    let state = home.state();
    let script = format!(
        "#!/bin/sh\nexec >&2 2>/dev/null\necho began\ncat {canary} && echo read\necho x >{canary} && echo wrote\n\
         ls {directory} && echo listed\ncat /etc/passwd && echo passwd\ntouch {state}/made && echo made\n\
         cat {state}/version && echo version\ncat /proc/$PPID/environ && echo environ\n\
         touch /tmp/msb-$$ /var/tmp/msb-$$ && echo touched\nunshare -r true && echo namespace\n\
         grep -c : /proc/$$/net/dev\nulimit -c\necho ended\n",
        directory = home.directory.display(),
        state = state.display(),
    );
    fs::write(&probe, script).unwrap();
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o755)).unwrap();
    home.run(["create", "--no-start", "--name", "x", "busybox:test"]).done();
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

/// Tries all that is promised to be refused to a machine's process, and says what of it could be
/// done.
const PROBE: &str = r#"#!/usr/bin/python3 -I
import os, socket, sys
sys.stdout = sys.stderr
directory = '@DIRECTORY@'
def attempt(what, act):
    try:
        act()
        print('could', what, flush=True)
    except (OSError, ImportError):
        pass
def connect(kind):
    s = socket.socket(socket.AF_UNIX, kind)
    s.connect(directory + '/socket')
print('began', flush=True)
attempt('read', lambda: open(directory + '/canary').read())
attempt('write', lambda: open(directory + '/canary', 'a'))
attempt('list', lambda: os.listdir(directory))
attempt('chmod', lambda: os.chmod(directory + '/canary', 0o777))
attempt('chown', lambda: os.chown(directory + '/canary', os.getuid(), os.getgid()))
attempt('utime', lambda: os.utime(directory + '/canary', (1, 1)))
attempt('setxattr', lambda: os.setxattr(directory + '/canary', 'user.x', b'x'))
attempt('unlink', lambda: os.unlink(directory + '/canary'))
attempt('unix stream', lambda: connect(socket.SOCK_STREAM))
attempt('unix datagram', lambda: connect(socket.SOCK_DGRAM))
for family in ('INET', 'INET6', 'PACKET', 'NETLINK', 'VSOCK', 'UNIX'):
    attempt(family, lambda: socket.socket(getattr(socket, 'AF_' + family), socket.SOCK_STREAM if family != 'NETLINK' else socket.SOCK_RAW))
attempt('signal', lambda: os.kill(os.getppid(), 0))
attempt('environ', lambda: open('/proc/%d/environ' % os.getppid()).read())
attempt('setuid', lambda: os.setuid(12345))
attempt('chroot', lambda: os.chroot('/'))
for line in open('/proc/self/status'):
    if line.startswith('Cap') and line.split()[1].strip('0'):
        print('could', line.strip(), flush=True)
for name in sorted(os.environ):
    if name in ('CANARY', 'AWS_SECRET_ACCESS_KEY'):
        print('could see', name, flush=True)
print('ended', flush=True)
"#;

#[test]
fn a_probe_in_the_machines_place_can_do_nothing_that_is_promised_to_be_refused() {
    let home = Home::with_busybox();
    let directory = &home.directory;
    fs::write(directory.join("canary"), "secret").unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(directory.join("socket")).unwrap();
    let programs = directory.join("programs");
    fs::create_dir(&programs).unwrap();
    let probe = programs.join("qemu-system-x86_64");
    fs::write(&probe, PROBE.replace("@DIRECTORY@", directory.to_str().unwrap())).unwrap();
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o755)).unwrap();
    home.run(["create", "--no-start", "--name", "x", "busybox:test"]).done();
    let mut start = home.msb(["start", "x"]);
    start.env("PATH", format!("{}:{}", programs.display(), home.path()));
    start.env("CANARY", "secret").env("AWS_SECRET_ACCESS_KEY", "secret");
    let outcome = Running::start(start).finish();
    assert_ne!(outcome.code, 0);
    let log = fs::read_to_string(home.state().join("sandboxes/x/supervisor.log")).unwrap();
    let said = &log[log.find("began").unwrap()..=log.find("ended").unwrap()];
    assert_eq!(said, "began\ne", "{log}");
}

#[test]
fn no_process_of_a_sandbox_has_the_callers_secrets_in_its_environment() {
    let home = Home::with_busybox();
    let shared = home.directory.join("shared");
    fs::create_dir(&shared).unwrap();
    let share = format!("{}:/shared", shared.display());
    let mut run = home.msb(["run", "-d", "--name", "x", "-v", &share, "busybox:test"]);
    run.env("CANARY", "c4n4ry");
    Running::start(run).finish().is(0, "x\n", "");
    let processes = home.processes();
    assert!(processes.len() >= 4 || home.machine().name == "msb-vmm", "{processes:?}");
    for process in processes {
        let environment = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        let text = String::from_utf8_lossy(&environment).into_owned();
        assert!(!text.contains("c4n4ry"), "{}: {text}", process.name);
    }
    home.run(["rm", "-f", "x"]).done();
}

/// Actions that the user's other processes can take fail in the network's process: see
/// msb-net/src/isolate.rs for attempts.
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
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"]);
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
    assert_eq!(fs::metadata(home.directory.join("big")).unwrap().len(), 48 << 20);
}
