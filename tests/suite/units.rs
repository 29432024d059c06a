//! Units of systemd: what systemd finds in them, and a sandbox as a service.

use std::fs;

use crate::support::{Home, stage};

/// Units that are installed, each with a program of msb.
const UNITS: [&str; 6] = [
    "msb@.service",
    "msb-ssh@.service",
    "msb-ssh@.socket",
    "msb-metrics.service",
    "msb-image-prune.service",
    "msb-image-prune.timer",
];

#[test]
fn systemd_has_no_remark_on_the_units_of_both_managers() {
    let home = Home::new();
    let directory = stage("prefix/share/systemd/user");
    let page = fs::read_to_string(stage("source/man/msb-systemd.7")).unwrap();
    for unit in UNITS {
        assert!(directory.join(unit).exists(), "{unit} is not installed");
        assert!(page.contains(unit), "{unit} is not in msb-systemd(7)");
    }
    let units = UNITS.map(|unit| format!("./{unit}")).join(" ");
    let verify = "systemd-analyze verify --man=no";
    home.shell(&format!(
        "cd '{}' && XDG_RUNTIME_DIR=$HOME {verify} --user {units}",
        directory.display()
    ))
    .is(0, "", "");
    // Those of the system manager have drop-ins, which the package installs.
    let drop_ins = stage("source/libmsb/packaging/systemd");
    home.shell(&format!(
        "mkdir units && cp '{}'/* units && cp -r '{}'/*.d units && cd units && \
         SYSTEMD_UNIT_PATH=$PWD: {verify} {units}",
        directory.display(),
        drop_ins.display()
    ))
    .is(0, "", "");
}

/// Starts `msb start --foreground` with a socket as that of a service manager. Prints the messages,
/// and the exit code.
const MANAGER: &str = r#"
import os, signal, socket, subprocess, sys
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind("notify")
environment = dict(os.environ, NOTIFY_SOCKET=os.path.abspath("notify"))
service = subprocess.Popen(["msb", "start", "--foreground", "x"], env=environment, stderr=subprocess.PIPE, text=True)
print(manager.recv(4096).decode().splitlines()[0], flush=True)
if sys.argv[1] == "stop":
    service.send_signal(signal.SIGTERM)
    print(manager.recv(4096).decode().splitlines()[0], flush=True)
elif sys.argv[1] == "kill":
    service.kill()
else:
    subprocess.run(["msb", "exec", "x", "--", "sh", "-c", sys.argv[1]], stderr=subprocess.DEVNULL)
error = service.communicate()[1]
print(service.returncode, error.splitlines()[0] if error else "-")
os.unlink("notify")
"#;

#[test]
fn a_sandbox_is_a_service_that_is_ready_with_its_guest_and_fails_with_a_reason() {
    let home = Home::with_busybox();
    fs::write(home.directory.join("manager.py"), MANAGER).unwrap();
    home.run(["create", "--no-start", "--name", "x", "busybox:test"]).done();
    let service = |event: &str| {
        let outcome = home.shell(&format!("python3 manager.py '{event}'")).done();
        home.run(["wait", "x"]).done();
        outcome
    };
    assert_eq!(service("stop"), "READY=1\nSTOPPING=1\n0 -\n");
    let reason = |name: &str| {
        let text = home.run(["inspect", name, "--format", "json"]).done();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        document["state"]["reason"].as_str().unwrap().to_owned()
    };
    assert_eq!(reason("x"), "stop_requested");
    let crashed = service("echo c > /proc/sysrq-trigger; sleep 100");
    let panicked =
        "READY=1\n1 msb start: error: the guest's kernel panicked: sysrq triggered crash\n";
    assert_eq!(crashed, panicked);
    // The sandbox does not outlive a service that was killed.
    assert_eq!(service("kill"), "READY=1\n-9 -\n");
    assert!(!home.run(["ls", "-q", "--running"]).done().contains('x'));
    let two = home.run(["start", "--foreground", "x", "y"]);
    assert_eq!(two.code, 2, "{two:?}");
}
