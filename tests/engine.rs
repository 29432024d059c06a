//! Which engine runs a sandbox, and what is said about it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{Home, Outcome, Running};

/// `msb` with arguments, in an environment that `set` has changed.
#[track_caller]
fn run(home: &Home, args: &[&str], set: impl FnOnce(&mut Command)) -> Outcome {
    let mut command = home.msb(args);
    set(&mut command);
    Running::start(command).finish()
}

/// One of the files of a sandbox.
#[track_caller]
fn file(home: &Home, sandbox: &str, name: &str) -> Value {
    let path = home.state().join("sandboxes").join(sandbox).join(name);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn configure(home: &Home, config: &str) {
    fs::write(home.state().join("config.json"), config).unwrap();
}

#[test]
fn an_engine_that_does_not_exist_is_refused_wherever_it_is_named() {
    let home = Home::with_busybox();
    let request = ["run", "busybox:test", "--", "true"];
    run(&home, &request, |command| {
        command.env("MSB_ENGINE", "xen");
    })
    .is(
        125,
        "",
        "msb-run: error: MSB_ENGINE names no engine: 'xen'\nmsb-run: hint: engines are auto, krun and qemu\n",
    );
    let outcome = run(&home, &["run", "--engine", "xen", "busybox:test"], |_| {});
    assert_eq!(outcome.code, 125, "{outcome:?}");
    configure(&home, r#"{"engine":"xen"}"#);
    let outcome = run(&home, &request, |command| {
        command.env_remove("MSB_ENGINE");
    });
    assert_eq!(outcome.code, 125, "{outcome:?}");
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert!(
        said.contains("config.json") && said.contains("xen"),
        "{said}"
    );
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

#[test]
fn the_command_line_counts_more_than_the_environment_and_that_more_than_the_configuration() {
    let home = Home::with_busybox();
    configure(&home, r#"{"engine":"krun","registries":{}}"#);
    let named = std::env::var("MSB_ENGINE").unwrap_or("qemu".into());
    let args = [
        "run",
        "-d",
        "--name",
        "x",
        "--engine",
        &named,
        "busybox:test",
    ];
    run(&home, &args, |command| {
        command.env("MSB_ENGINE", "auto");
    })
    .is(0, "x\n", "");
    assert_eq!(file(&home, "x", "spec.json")["engine"], named.as_str());
    assert_eq!(file(&home, "x", "status.json")["engine"], named.as_str());
    home.run(["stop", "x"]).done();
    // What it was made with stays, whatever is said later.
    run(
        &home,
        &["run", "-d", "--name", "x", "busybox:test"],
        |command| {
            command.env("MSB_ENGINE", "auto");
        },
    )
    .is(0, "x\n", "");
    assert_eq!(file(&home, "x", "status.json")["engine"], named.as_str());
    home.run(["stop", "x"]).done();
}

#[test]
fn that_it_is_qemu_and_why_is_said_once() {
    let home = Home::with_busybox();
    let start = |name: &str| {
        run(
            &home,
            &["run", "-d", "--name", name, "busybox:test"],
            |command| {
                command.env("MSB_ENGINE", "auto");
            },
        )
    };
    let first = start("a");
    let engine = file(&home, "a", "status.json")["engine"].clone();
    let note = fs::read_to_string(home.state().join("engine.note"));
    let expected = match engine.as_str().unwrap() {
        "krun" => String::new(),
        "qemu" => format!("msb-run: note: {}\n", note.unwrap()),
        other => panic!("{other}"),
    };
    first.is(0, "a\n", &expected);
    assert!(
        expected.is_empty()
            || expected.starts_with("msb-run: note: the engine is qemu, not krun: "),
        "{expected}"
    );
    home.run(["stop", "a"]).done();
    start("b").is(0, "b\n", "");
    home.run(["stop", "b"]).done();
    // Another reason is told again.
    fs::write(home.state().join("engine.note"), "another").unwrap();
    start("c").is(0, "c\n", &expected);
    home.run(["stop", "c"]).done();
}

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

#[test]
fn krun_where_the_host_cannot_is_refused_with_the_reason_and_a_hint() {
    let home = Home::with_busybox();
    let outcome = home.run([
        "run",
        "--engine",
        "krun",
        "busybox:test",
        "--",
        "echo",
        "ran",
    ]);
    if host_can_run_krun() {
        return outcome.is(0, "ran\n", "");
    }
    assert_eq!((outcome.code, &outcome.stdout[..]), (125, &b""[..]));
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    let reasons = ["/dev/kvm", "processor", "libkrunfw"];
    let reason = lines[0].strip_prefix("msb-run: error: ").unwrap();
    assert!(reasons.iter().any(|word| reason.contains(word)), "{said}");
    assert!(lines[1].starts_with("msb-run: hint: "), "{said}");
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
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
