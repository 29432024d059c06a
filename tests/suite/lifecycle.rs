//! Sandboxes that last: started, used, listed, stopped, removed.

use crate::support::Home;

fn states(home: &Home) -> Vec<(String, String)> {
    home.sandboxes()
}

fn one(name: &str, state: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), state.to_owned())]
}

#[test]
fn a_detached_sandbox_is_used_listed_stopped_and_removed() {
    let home = Home::with_busybox();
    home.run(["run", "--detach", "--name", "worker", "busybox:test"]).is(0, "worker\n", "");
    assert_eq!(states(&home), one("worker", "Running"));
    home.run(["ls", "-q"]).is(0, "worker\n", "");
    home.run(["exec", "worker", "--", "sh", "-c", "echo kept >/root/note; hostname"])
        .is(0, "worker\n", "");
    home.run(["exec", "worker", "--", "cat", "/root/note"]).is(0, "kept\n", "");
    home.run(["stop", "worker"]).done();
    assert_eq!(states(&home), one("worker", "Stopped"));
    assert!(home.leftovers().is_empty());
    home.run(["rm", "worker"]).done();
    assert_eq!(states(&home), []);
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

#[test]
fn an_attached_sandbox_is_gone_when_its_command_ends() {
    let home = Home::with_busybox();
    let mut running = home.start(["run", "-i", "busybox:test", "--", "sh", "-c", "echo up; cat"]);
    running.read_until("up\n");
    let during = states(&home);
    assert_eq!(during.len(), 1);
    assert_eq!(during[0].1, "Running");
    running.finish().is(0, "", "");
    assert_eq!(states(&home), []);
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

#[test]
fn a_named_sandbox_stays_and_a_later_run_finds_its_disk_as_it_was() {
    let home = Home::with_busybox();
    home.run([
        "run",
        "--name",
        "x",
        "busybox:test",
        "--",
        "sh",
        "-c",
        "echo kept >/root/note; exit 3",
    ])
    .is(3, "", "");
    assert_eq!(states(&home), one("x", "Stopped"));
    assert_eq!(home.list()[0]["exit_code"], 3);
    home.run(["run", "--name", "x", "busybox:test", "--", "cat", "/root/note"]).is(0, "kept\n", "");
    let other = home.run(["run", "--name", "x", "other", "--", "true"]);
    assert_eq!(other.code, 125, "{other:?}");
    assert_eq!(states(&home), one("x", "Stopped"));
}

#[test]
fn two_sandboxes_live_side_by_side() {
    let home = Home::with_busybox();
    for name in ["a", "b"] {
        home.run(["run", "-d", "--name", name, "busybox:test"]).done();
        home.run(["exec", name, "--", "sh", "-c", &format!("echo {name} >/mine")]).done();
    }
    for name in ["a", "b"] {
        home.run(["exec", name, "--", "cat", "/mine"]).is(0, &format!("{name}\n"), "");
    }
    home.run(["stop", "a", "b"]).done();
    home.run(["rm", "a", "b"]).done();
    assert_eq!(states(&home), []);
}

#[test]
fn a_name_is_given_once() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test"]).done();
    let before = home.snapshot("sandboxes/x/spec.json");
    let outcome = home.run(["run", "-d", "--name", "x", "busybox:test"]);
    assert_eq!(outcome.code, 125, "{outcome:?}");
    assert_eq!(before, home.snapshot("sandboxes/x/spec.json"));
    assert_eq!(states(&home), one("x", "Running"));
    home.run(["stop", "x"]).done();
}

#[test]
fn a_sandbox_with_the_longest_name_lives_as_any() {
    let home = Home::with_busybox();
    let name = "n".repeat(128);
    home.run(["run", "-d", "--name", &name, "busybox:test"]).is(0, &format!("{name}\n"), "");
    home.run(["exec", &name, "--", "echo", "here"]).is(0, "here\n", "");
    home.run(["stop", &name]).done();
    assert_eq!(states(&home), one(&name, "Stopped"));
    home.run(["rm", &name]).is(0, &format!("{name}\n"), "");
    let longer = "n".repeat(129);
    let outcome = home.run(["run", "--name", &longer, "busybox:test", "--", "true"]);
    assert_eq!(outcome.code, 125, "{outcome:?}");
    assert_eq!(states(&home), []);
}

#[test]
fn of_many_starts_under_one_name_one_wins() {
    let home = Home::with_busybox();
    let starts: Vec<_> =
        (0..4).map(|_| home.start(["run", "-d", "--name", "x", "busybox:test"])).collect();
    let codes: Vec<i32> = starts.into_iter().map(|start| start.finish().code).collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert_eq!(states(&home), one("x", "Running"));
    home.run(["stop", "x"]).done();
}

#[test]
fn a_running_sandbox_is_removed_by_force_only() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test"]).done();
    let outcome = home.run(["rm", "x"]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert_eq!(states(&home), one("x", "Running"));
    home.run(["rm", "--force", "x"]).done();
    assert_eq!(states(&home), []);
    assert!(home.leftovers().is_empty());
}

#[test]
fn stop_by_force_does_not_ask_the_guest() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test"]).done();
    home.run(["stop", "--force", "x"]).done();
    assert_eq!(states(&home), one("x", "Stopped"));
}

#[test]
fn stop_of_a_stopped_sandbox_and_of_none_say_so() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test"]).done();
    home.run(["stop", "x"]).done();
    home.run(["stop", "x"]).is(0, "x\n", "msb stop: warning: the sandbox 'x' is not running\n");
    home.run(["stop", "--quiet", "x"]).is(0, "", "");
    let none = "there is no sandbox 'nobody'\n";
    let hint = "hint: `msb ls` lists them\n";
    home.run(["stop", "nobody"]).is(3, "", &format!("msb stop: error: {none}msb stop: {hint}"));
    home.run(["rm", "nobody"]).is(3, "", &format!("msb rm: error: {none}msb rm: {hint}"));
    home.run(["exec", "nobody", "--", "true"]).is(
        125,
        "",
        &format!("msb exec: error: {none}msb exec: {hint}"),
    );
    home.run(["exec", "x", "--", "true"]).is(
        125,
        "",
        "msb exec: error: the sandbox 'x' is not running\nmsb exec: hint: start it: msb start x\n",
    );
}

#[test]
fn a_stop_flushes_what_was_written() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test"]).done();
    home.run(["exec", "x", "--", "sh", "-c", "yes | head -c 5000000 >/big"]).done();
    home.run(["stop", "x"]).done();
    let upper = home.state().join("sandboxes/x/upper.img");
    let mut check = home.program("e2fsck");
    let output = check.args(["-f", "-n"]).arg(&upper).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut look = home.program("debugfs");
    let output = look.args(["-R", "ls -p /upper"]).arg(&upper).output().unwrap();
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(listing.contains("/big/5000000/"), "{listing}");
}

#[test]
fn ls_of_nothing_prints_nothing() {
    let home = Home::new();
    assert_eq!(home.run(["ls", "--format", "json"]).done().trim(), "[]");
    home.run(["ls", "-q"]).is(0, "", "");
    assert!(!home.state().exists(), "a reader made the state directory");
}

#[test]
fn one_broken_sandbox_is_one_row() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "good", "busybox:test"]).done();
    home.run(["stop", "good"]).done();
    let directory = home.state().join("sandboxes/bad");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("spec.json"), "{").unwrap();
    let outcome = home.run(["ls", "--format", "json"]);
    let list: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let rows: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["name"].as_str(), row["status"].as_str()))
        .collect();
    assert_eq!(rows, [(Some("bad"), Some("Broken")), (Some("good"), Some("Stopped"))]);
}

#[test]
fn the_time_of_a_run_is_split_into_its_parts() {
    let home = Home::with_busybox();
    let outcome = home.run(["run", "--time", "busybox:test", "--", "true"]);
    assert_eq!(outcome.code, 0);
    let text = String::from_utf8_lossy(&outcome.stderr).to_lowercase();
    for part in ["image", "vmm", "kernel", "agent", "command"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(outcome.done(), "");
}

#[test]
fn a_run_that_has_no_command_makes_nothing_and_takes_nothing_away() {
    let home = Home::new();
    home.shell("mkdir root").done();
    let run = |more: &[&str]| {
        let outcome = home.run([&["run", "--name", "x"], more, &["./root"]].concat());
        let stderr = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert_eq!(outcome.code, 125, "{outcome:?}");
        assert!(stderr.contains("has no default command"), "{stderr}");
    };
    run(&[]);
    assert_eq!(home.sandboxes(), []);
    home.run(["create", "--name", "x", "--no-start", "./root"]).done();
    run(&["--replace"]);
    assert_eq!(home.sandboxes(), [("x".into(), "Created".into())]);
}
