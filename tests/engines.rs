//! Which engine runs a sandbox.

use std::fs;
use std::path::Path;

use crate::support::Home;

/// Where a library is looked for by those who install it.
const LIBRARIES: [&str; 5] = [
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
];

/// Whether libkrun can work here, told by the host and not by msb: an open `/dev/kvm` alone proves nothing.
fn host_can_run_krun() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap();
    let virtualizes = cpu
        .split_whitespace()
        .any(|flag| flag == "vmx" || flag == "svm");
    let opens = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    let has_kernel = LIBRARIES
        .iter()
        .any(|folder| Path::new(folder).join("libkrunfw.so.5").exists());
    virtualizes && opens && has_kernel
}

/// The engine that a sandbox has, as its status says.
fn engine(home: &Home, name: &str) -> String {
    let path = home
        .state()
        .join("sandboxes")
        .join(name)
        .join("status.json");
    let status: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    status["engine"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn auto_takes_krun_where_the_host_can_and_qemu_elsewhere() {
    let home = Home::with_busybox();
    home.run([
        "run",
        "--engine",
        "auto",
        "--detach",
        "--name",
        "x",
        "busybox:test",
    ])
    .done();
    let expected = if host_can_run_krun() { "krun" } else { "qemu" };
    assert_eq!(engine(&home, "x"), expected);
    home.run(["stop", "x"]).done();
}

/// tests/run names the engine that the whole suite is about. Without this test a suite that ran with another one would
/// be as green.
#[test]
fn the_suite_runs_with_the_engine_that_it_is_told() {
    let told = std::env::var("MSB_ENGINE").expect("tests/run names the engine");
    let home = Home::with_busybox();
    home.run(["run", "--detach", "--name", "x", "busybox:test"])
        .done();
    assert_eq!(engine(&home, "x"), told);
    let is_qemu = home.machine().name.starts_with("qemu-system");
    assert_eq!(is_qemu, told == "qemu", "{:?}", home.machine());
    home.run(["stop", "x"]).done();
}
