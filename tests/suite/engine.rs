//! Selection of the engine, and its messages.

use std::fs;
use std::os::unix::fs::PermissionsExt;
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
        "msb run: error: invalid value of MSB_ENGINE: 'xen'\nmsb run: hint: values are auto, krun and qemu\n",
    );
    let outcome = run(&home, &["run", "--engine", "xen", "busybox:test"], |_| {});
    assert_eq!(outcome.code, 125, "{outcome:?}");
    configure(&home, r#"{"engine":"xen"}"#);
    let outcome = run(&home, &request, |command| {
        command.env_remove("MSB_ENGINE");
    });
    assert_eq!(outcome.code, 125, "{outcome:?}");
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert!(said.contains("config.json") && said.contains("xen"), "{said}");
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

#[test]
fn the_command_line_counts_more_than_the_environment_and_that_more_than_the_configuration() {
    let home = Home::with_busybox();
    configure(&home, r#"{"engine":"krun","registries":{}}"#);
    let named = std::env::var("MSB_ENGINE").unwrap_or("qemu".into());
    let args = ["run", "-d", "--name", "x", "--engine", &named, "busybox:test"];
    run(&home, &args, |command| {
        command.env("MSB_ENGINE", "auto");
    })
    .is(0, "x\n", "");
    assert_eq!(file(&home, "x", "spec.json")["engine"], named.as_str());
    assert_eq!(file(&home, "x", "status.json")["engine"], named.as_str());
    home.run(["stop", "x"]).done();
    // What it was made with stays, whatever is said later.
    run(&home, &["run", "-d", "--name", "x", "busybox:test"], |command| {
        command.env("MSB_ENGINE", "auto");
    })
    .is(0, "x\n", "");
    assert_eq!(file(&home, "x", "status.json")["engine"], named.as_str());
    home.run(["stop", "x"]).done();
}

#[test]
fn that_it_is_qemu_and_why_is_said_once() {
    let home = Home::with_busybox();
    let start = |name: &str| {
        run(&home, &["run", "-d", "--name", name, "busybox:test"], |command| {
            command.env("MSB_ENGINE", "auto");
        })
    };
    let first = start("a");
    let engine = file(&home, "a", "status.json")["engine"].clone();
    let note = fs::read_to_string(home.state().join("engine.note"));
    let expected = match engine.as_str().unwrap() {
        "krun" => String::new(),
        "qemu" => format!("msb run: note: {}\n", note.unwrap()),
        other => panic!("{other}"),
    };
    first.is(0, "a\n", &expected);
    assert!(
        expected.is_empty()
            || expected.starts_with("msb run: note: the engine is qemu, not krun: "),
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

/// Directories in which a library is installed.
const LIBRARIES: [&str; 5] =
    ["/usr/local/lib", "/usr/local/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"];

/// Returns whether libkrun works here, without asking msb: an open `/dev/kvm` alone proves nothing.
fn host_can_run_krun() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap();
    let virtualizes = cpu.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    let opens = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let has_kernel =
        LIBRARIES.iter().any(|directory| Path::new(directory).join("libkrunfw.so.5").exists());
    virtualizes && opens && has_kernel
}

/// The engine that a sandbox has, as its status says.
fn engine(home: &Home, name: &str) -> String {
    let path = home.state().join("sandboxes").join(name).join("status.json");
    let status: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    status["engine"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn auto_takes_krun_where_the_host_can_and_qemu_elsewhere() {
    let home = Home::with_busybox();
    home.run(["run", "--engine", "auto", "--detach", "--name", "x", "busybox:test"]).done();
    let expected = if host_can_run_krun() { "krun" } else { "qemu" };
    assert_eq!(engine(&home, "x"), expected);
    home.run(["stop", "x"]).done();
}

#[test]
fn krun_where_the_host_cannot_is_refused_with_the_reason_and_a_hint() {
    let home = Home::with_busybox();
    let outcome = home.run(["run", "--engine", "krun", "busybox:test", "--", "echo", "ran"]);
    if host_can_run_krun() {
        return outcome.is(0, "ran\n", "");
    }
    assert_eq!((outcome.code, &outcome.stdout[..]), (125, &b""[..]));
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    let reasons = ["/dev/kvm", "processor", "libkrunfw"];
    let reason = lines[0].strip_prefix("msb run: error: ").unwrap();
    assert!(reasons.iter().any(|word| reason.contains(word)), "{said}");
    assert!(lines[1].starts_with("msb run: hint: "), "{said}");
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

/// Runs a command where another file stands in for one of the system, and root has no rights over
/// files of others.
fn where_it_is_replaced(home: &Home, file: &str, by: &Path, args: &[&str]) -> Outcome {
    let script = "mount --bind \"$1\" \"$2\" && shift 2 && exec setpriv --bounding-set=-all --inh-caps=-all \"$@\"";
    let msb = home.msb(args);
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .args([by.as_os_str(), file.as_ref(), msb.get_program()])
        .args(msb.get_args())
        .envs(msb.get_envs().filter_map(|(key, value)| Some((key, value?))));
    Running::start(command).finish()
}

/// One error with these words, and one hint with those.
#[track_caller]
fn is_refused(outcome: &Outcome, words: &str, hint: &str) {
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert_eq!(outcome.code, 125, "{said}");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].starts_with("msb run: error: ") && lines[0].contains(words), "{said}");
    assert!(lines[1].starts_with("msb run: hint: ") && lines[1].contains(hint), "{said}");
}

#[test]
fn each_lack_of_virtualization_has_its_own_words_and_hint() {
    let home = Home::with_busybox();
    let run = ["run", "--engine", "krun", "busybox:test", "--", "true"];
    let plain = home.directory.join("cpuinfo");
    fs::write(&plain, "processor\t: 0\nflags\t\t: fpu lm\n").unwrap();
    let outcome = where_it_is_replaced(&home, "/proc/cpuinfo", &plain, &run);
    is_refused(&outcome, "neither vmx nor svm", "nested virtualization");
    // What is wrong with a device can be tried only where there is one.
    if !host_can_run_krun() {
        assert_ne!(std::env::var("MSB_ENGINE").unwrap(), "krun");
        return;
    }
    let closed = home.directory.join("closed");
    fs::write(&closed, "").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let outcome = where_it_is_replaced(&home, "/dev/kvm", &closed, &run);
    is_refused(&outcome, "no permission to open '/dev/kvm'", "group");
    let outcome = where_it_is_replaced(&home, "/dev/kvm", Path::new("/dev/null"), &run);
    is_refused(&outcome, "does not work", "dmesg");
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

#[test]
fn a_kernel_that_krun_cannot_boot_is_refused_with_what_would_do() {
    let home = Home::with_busybox();
    let bootable = fs::read_dir("/boot").unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name()?.to_str()?.starts_with("vmlinuz-");
        name.then_some(path)
    });
    let compressed = bootable.expect("the tests need a kernel of the distribution");
    let cases: [(&str, &Path, &str, &str); 5] = [
        ("MSB_KERNEL", Path::new("/nowhere/vmlinux"), "'/nowhere/vmlinux'", "unset MSB_KERNEL"),
        ("MSB_KERNEL", &compressed, "is a compressed kernel", "extract-vmlinux"),
        ("MSB_KERNEL", Path::new("/etc/passwd"), "is not a kernel for x86-64", "libkrunfw"),
        ("MSB_KRUNFW", Path::new("/nowhere/libkrunfw.so.5"), "MSB_KRUNFW", "MSB_KRUNFW"),
        ("MSB_KRUNFW", Path::new("/etc/passwd"), "/etc/passwd", "MSB_KRUNFW"),
    ];
    for (variable, file, words, hint) in cases {
        let args = ["run", "--engine", "krun", "busybox:test", "--", "true"];
        let outcome = run(&home, &args, |command| {
            command.env(variable, file);
        });
        if host_can_run_krun() {
            is_refused(&outcome, words, hint);
        } else {
            // The processor is looked at first.
            assert_ne!(std::env::var("MSB_ENGINE").unwrap(), "krun");
            assert_eq!(outcome.code, 125, "{outcome:?}");
        }
    }
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

#[test]
fn more_disks_than_krun_has_room_for_are_refused_before_anything_starts() {
    let home = Home::with_busybox();
    home.run(["volume", "create", "v", "--size", "24M"]).done();
    let volume = home.state().join("volumes/v/disk.img");
    let mut args = vec!["run".to_owned()];
    for number in 0..5 {
        let disk = home.directory.join(format!("disk{number}.img"));
        fs::copy(&volume, &disk).unwrap();
        args.push("--mount-disk".to_owned());
        args.push(format!("{}:/d{number}", disk.display()));
    }
    args.extend(["busybox:test", "--", "ls", "/d4"].map(str::to_owned));
    let outcome = home.run(&args);
    if std::env::var("MSB_ENGINE").unwrap() == "qemu" {
        return outcome.is(0, "lost+found\n", "");
    }
    is_refused(&outcome, "together: 8 requested", "--engine qemu");
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

/// tests/run names the engine that the whole suite is about. Without this test a suite that ran
/// with another one would be as green.
#[test]
fn the_suite_runs_with_the_engine_that_it_is_told() {
    let told = std::env::var("MSB_ENGINE").expect("tests/run names the engine");
    let home = Home::with_busybox();
    home.run(["run", "--detach", "--name", "x", "busybox:test"]).done();
    assert_eq!(engine(&home, "x"), told);
    let is_qemu = home.machine().name.starts_with("qemu-system");
    assert_eq!(is_qemu, told == "qemu", "{:?}", home.machine());
    home.run(["stop", "x"]).done();
}
