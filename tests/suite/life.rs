//! The life of a sandbox, verb by verb: create, start, restart, modify, wait, ping; and what is
//! told of it.

use serde_json::Value;

use crate::support::{Home, Running, open_files, wait_until};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn inspect(home: &Home, name: &str) -> Value {
    json(&home.run(["inspect", name, "--format", "json"]).done())
}

/// The types of the events of a sandbox, in their order.
fn events(home: &Home, name: &str) -> Vec<String> {
    let lines = home.run(["events", "--no-follow", name]).done();
    let types = lines.lines().map(|line| json(line)["type"].as_str().unwrap().to_owned());
    types.collect()
}

fn create(home: &Home, name: &str, more: &[&str]) {
    let mut args = vec!["create", "--name", name];
    args.extend(more);
    args.push("busybox:test");
    home.run(args).is(0, &format!("{name}\n"), "");
}

/// Waits until a program has something open: the begin of its name in /proc.
fn wait_until_open(home: &Home, program: &Running, kind: &str) {
    wait_until(kind, || {
        let processes = home.processes();
        let own = processes.iter().find(|process| process.pid == program.pid());
        let files = own.map(open_files).unwrap_or_default();
        files.iter().any(|file| file.to_string_lossy().starts_with(kind))
    });
}

#[test]
fn a_created_sandbox_runs_and_prints_its_name_only_when_nobody_chose_it() {
    let home = Home::with_busybox();
    create(&home, "web", &[]);
    home.run(["exec", "web", "--", "hostname"]).is(0, "web\n", "");
    let name = home.run(["create", "--no-start", "busybox:test"]).done();
    let name = name.trim_end();
    assert!(name.starts_with("msb-") && name.len() == 12, "{name}");
    let states = home.sandboxes();
    assert!(states.contains(&(name.to_owned(), "Created".to_owned())), "{states:?}");
    home.run(["create", "--name", "web", "busybox:test"]).is(
        4,
        "",
        "msb create: error: there is a sandbox 'web' already\n\
         msb create: hint: choose another name, or remove it: msb rm web\n",
    );
    home.run(["rm", "--force", "web", name]).done();
}

#[test]
fn a_stopped_sandbox_starts_again_with_its_disk() {
    let home = Home::with_busybox();
    create(&home, "web", &[]);
    home.run(["exec", "web", "--", "sh", "-c", "echo kept >/root/note"]).done();
    home.run(["start", "web"]).is(
        0,
        "web\n",
        "msb start: warning: the sandbox 'web' is already running\n",
    );
    home.run(["stop", "web"]).done();
    home.run(["start", "web"]).is(0, "web\n", "");
    home.run(["exec", "web", "--", "cat", "/root/note"]).is(0, "kept\n", "");
    let before = home.run(["exec", "web", "--", "cat", "/proc/sys/kernel/random/boot_id"]).done();
    home.run(["restart", "web"]).is(0, "web\n", "");
    let after = home.run(["exec", "web", "--", "cat", "/proc/sys/kernel/random/boot_id"]).done();
    assert_ne!(before, after);
    home.run(["exec", "web", "--", "cat", "/root/note"]).is(0, "kept\n", "");
    home.run(["rm", "--force", "web"]).done();
    assert_eq!(
        events(&home, "web"),
        [
            "created", "starting", "running", "stopping", "stopped", "starting", "running",
            "stopping", "stopped", "starting", "running", "stopped", "removed"
        ]
    );
}

#[test]
fn start_of_what_is_not_there_says_so() {
    let home = Home::with_busybox();
    home.run(["start", "nope"]).is(
        3,
        "",
        "msb start: error: there is no sandbox 'nope'\nmsb start: hint: `msb ls` lists them\n",
    );
}

#[test]
fn sandboxes_are_meant_by_label_and_by_names_on_standard_input() {
    let home = Home::with_busybox();
    for (name, label) in [("a", "team=ml"), ("b", "team=ml"), ("c", "team=web")] {
        create(&home, name, &["--no-start", "--label", label]);
    }
    home.run(["ls", "-q", "--label", "team"]).is(0, "a\nb\nc\n", "");
    home.run(["ls", "-q", "--label", "team=ml"]).is(0, "a\nb\n", "");
    home.run(["rm", "--label", "team=sales"]).is(
        0,
        "",
        "msb rm: warning: no sandbox has these labels\n",
    );
    home.run(["rm", "--label", "team=ml", "a"]).is(0, "a\nb\n", "");
    home.run_with(["rm", "-"], b"c\n\n").is(0, "c\n", "");
    assert_eq!(home.sandboxes(), []);
}

#[test]
fn of_several_sandboxes_the_good_ones_are_done_and_the_bad_ones_told() {
    let home = Home::with_busybox();
    create(&home, "a", &["--no-start"]);
    let outcome = home.run(["rm", "a", "nope"]);
    outcome.is(
        1,
        "a\n",
        "msb rm: error: there is no sandbox 'nope'\nmsb rm: hint: `msb ls` lists them\n",
    );
    assert_eq!(home.sandboxes(), []);
}

#[test]
fn ps_shows_what_runs_in_running_sandboxes() {
    let home = Home::with_busybox();
    home.run(["create", "--name", "web", "busybox:test", "--", "sleep", "a b"]).done();
    create(&home, "idle", &["--no-start"]);
    let rows = json(&home.run(["ps", "--format", "json"]).done());
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["name"], "web");
    assert_eq!(rows[0]["command"], "sleep 'a b'");
    assert_eq!(rows[0]["ports"], json("[]"));
    let all = json(&home.run(["ps", "-a", "--format", "json"]).done());
    assert_eq!(all.as_array().unwrap().len(), 2);
    let one = json(&home.run(["ps", "idle", "--format", "json"]).done());
    assert_eq!(one["status"], "Created");
    home.run(["rm", "-f", "web", "idle"]).done();
}

#[test]
fn inspect_tells_the_specification_the_state_and_the_disk() {
    let home = Home::with_busybox();
    create(&home, "web", &["--label", "team=ml", "-e", "A=1"]);
    let seen = inspect(&home, "web");
    assert_eq!(seen["name"], "web");
    assert_eq!(seen["status"], "Running");
    assert_eq!(seen["config"]["labels"]["team"], "ml");
    assert_eq!(seen["state"]["engine"], Value::from(engine()));
    assert!(seen["disk"]["allocated_bytes"].as_u64().unwrap() > 0);
    assert!(seen["created_at"].as_str().unwrap() <= seen["updated_at"].as_str().unwrap());
    let text = home.run(["inspect", "web"]).done();
    assert!(text.contains("\nVariable     A=1\n") && text.contains("team=ml"), "{text}");
    home.run(["rm", "-f", "web"]).done();
}

/// The engine that the suite runs with.
fn engine() -> String {
    std::env::var("MSB_ENGINE").unwrap_or_else(|_| "qemu".to_owned())
}

#[test]
fn wait_tells_the_exit_code_and_the_reason() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "job", "busybox:test", "--", "sh", "-c", "sleep 1; exit 7"])
        .done();
    home.run(["wait", "job"]).is(0, "7 completed\n", "");
    let again = json(&home.run(["wait", "job", "--format", "json"]).done());
    assert_eq!(again["exit_code"], 7);
    assert_eq!(again["status"], "Stopped");
    create(&home, "new", &["--no-start"]);
    home.run(["wait", "new"]).is(
        4,
        "",
        "msb wait: error: the sandbox 'new' was never started\nmsb wait: hint: start it: msb start new\n",
    );
}

/// `msb wait` that the supervisor has heard of: it was asked, and then asked something else, which it has answered.
fn wait_for(home: &Home, name: &str) -> Running {
    let waiting = home.shell_in_background(&format!("exec msb-wait --debug {name} 2>said"));
    wait_until("msb wait has asked", || home.shell("grep -q 'waiting for the end' said").code == 0);
    home.run(["ping", "--quiet", name]).is(0, "", "");
    waiting
}

#[test]
fn wait_tells_the_end_of_a_sandbox_that_goes_with_its_command() {
    let home = Home::with_busybox();
    let mut running =
        home.start(["run", "-i", "busybox:test", "--", "sh", "-c", "echo up; read x; exit 3"]);
    running.read_until("up\n");
    let name = home.run(["ls", "-q"]).done();
    let waiting = wait_for(&home, name.trim_end());
    running.write("\n");
    running.finish().is(3, "", "");
    waiting.finish().is(0, "3 completed\n", "");
}

#[test]
fn wait_tells_that_a_supervisor_was_killed_and_the_next_start_writes_it_down() {
    let home = Home::with_busybox();
    home.run(["create", "--name", "web", "busybox:test", "--", "sleep", "1000"]).done();
    let waiting = wait_for(&home, "web");
    let supervisor =
        home.processes().into_iter().find(|process| process.name == "msb-supervisor").unwrap();
    supervisor.signal(rustix::process::Signal::KILL);
    waiting.finish().is(0, "- supervisor_gone\n", "");
    home.run(["start", "web"]).is(0, "web\n", "");
    home.run(["rm", "-f", "web"]).done();
    assert_eq!(
        events(&home, "web"),
        ["created", "starting", "running", "crashed", "starting", "running", "stopped", "removed"]
    );
}

#[test]
fn ping_asks_the_guest_itself() {
    let home = Home::with_busybox();
    create(&home, "web", &[]);
    let answer = json(&home.run(["ping", "web", "--format", "json"]).done());
    assert!(answer["milliseconds"].as_f64().unwrap() > 0.0);
    home.run(["ping", "-q", "web"]).is(0, "", "");
    let machine = home
        .processes()
        .into_iter()
        .find(|process| process.name.starts_with("qemu") || process.name == "msb-vmm")
        .unwrap();
    machine.signal(rustix::process::Signal::STOP);
    let frozen = home.run(["ping", "--timeout", "300ms", "web"]);
    machine.signal(rustix::process::Signal::CONT);
    frozen.is(
        1,
        "",
        "msb ping: error: the guest of 'web' does not respond\n\
         msb ping: hint: read the guest's console: msb logs --source kernel web\n",
    );
    home.run(["rm", "-f", "web"]).done();
    home.run(["ping", "web"]).is(
        3,
        "",
        "msb ping: error: there is no sandbox 'web'\nmsb ping: hint: `msb ls` lists them\n",
    );
}

#[test]
fn modify_counts_from_the_next_start_and_labels_at_once() {
    let home = Home::with_busybox();
    create(&home, "web", &["-e", "OLD=1", "--label", "a=1"]);
    home.run(["modify", "web", "--memory", "300", "--dry-run"]).is(
        0,
        "memory_mib: 512 -> 300\n",
        "",
    );
    assert_eq!(inspect(&home, "web")["config"]["memory_mib"], 512);
    let changed = home.run([
        "modify",
        "web",
        "--cpus",
        "2",
        "--label",
        "b=2",
        "--label-rm",
        "a",
        "-e",
        "NEW=x",
        "--env-rm",
        "OLD",
        "--format",
        "json",
    ]);
    let report = json(&changed.done());
    assert_eq!(report["restart_needed"], true);
    assert_eq!(report["changes"].as_array().unwrap().len(), 3);
    home.run(["ls", "-q", "--label", "b=2"]).is(0, "web\n", "");
    home.run(["exec", "web", "--", "nproc"]).is(0, "1\n", "");
    home.run(["restart", "web"]).done();
    home.run(["exec", "web", "--", "sh", "-c", "nproc; echo $NEW-$OLD"]).is(0, "2\nx-\n", "");
    home.run(["modify", "web", "--cpus", "2"]).is(0, "", "no changes\n");
    home.run(["rm", "-f", "web"]).done();
}

#[test]
fn variables_come_from_files_too_and_the_command_line_has_the_last_word() {
    let home = Home::with_busybox();
    std::fs::write(home.directory.join("vars"), "# remark\nA=1\nB='2' 3\n").unwrap();
    home.run([
        "run",
        "--env-file",
        "vars",
        "-e",
        "A=9",
        "busybox:test",
        "--",
        "sh",
        "-c",
        "echo $A $B",
    ])
    .is(0, "9 '2' 3\n", "");
    std::fs::write(home.directory.join("vars"), "A=1\n=x\n").unwrap();
    home.run(["run", "--env-file", "vars", "busybox:test", "--", "true"]).is(
        125,
        "",
        "msb run: error: in 'vars': line 2: '=x' has no variable name\n",
    );
}

#[test]
fn replace_removes_the_sandbox_of_that_name_first() {
    let home = Home::with_busybox();
    create(&home, "web", &[]);
    home.run(["exec", "web", "--", "touch", "/root/note"]).done();
    create(&home, "web", &["--replace"]);
    home.run(["exec", "web", "--", "ls", "/root"]).is(0, "", "");
    let missing = home.run(["create", "--name", "web", "--replace", "--pull", "never", "nope:1"]);
    assert_eq!(missing.code, 3);
    home.run(["exec", "web", "--", "true"]).is(0, "", "");
    create(&home, "web", &["--replace-with-timeout", "0", "--no-start"]);
    assert_eq!(home.sandboxes(), [("web".to_owned(), "Created".to_owned())]);
}

#[test]
fn an_idle_sandbox_is_stopped_with_its_data_and_use_keeps_it_up() {
    let home = Home::with_busybox();
    // Long enough for a command to come, on a busy host too.
    create(&home, "web", &["--idle-timeout", "8s"]);
    // A session without any output is use.
    home.run(["exec", "web", "--", "sleep", "10"]).is(0, "", "");
    home.run(["exec", "web", "--", "sh", "-c", "echo kept >/root/note"]).is(0, "", "");
    home.run(["wait", "web"]).is(0, "0 idle_timeout\n", "");
    assert_eq!(inspect(&home, "web")["state"]["clean"], true);
    // The clock of the last life does not count.
    home.run(["start", "web"]).done();
    home.run(["exec", "web", "--", "cat", "/root/note"]).is(0, "kept\n", "");
    home.run(["rm", "-f", "web"]).done();
}

#[test]
fn a_sandbox_lives_as_long_as_it_may_and_is_flushed() {
    let home = Home::with_busybox();
    // Long enough for a command to come, on a busy host too.
    create(&home, "web", &["--max-duration", "15s"]);
    let busy = home.start(["exec", "web", "--", "sh", "-c", "echo kept >/root/note; sleep 1000"]);
    home.run(["wait", "web"]).is(0, "0 max_duration\n", "");
    assert_ne!(busy.finish().code, 0);
    assert_eq!(inspect(&home, "web")["state"]["clean"], true);
    home.run(["start", "web"]).done();
    home.run(["exec", "web", "--", "cat", "/root/note"]).is(0, "kept\n", "");
    home.run(["rm", "-f", "web"]).done();
}

#[test]
fn events_are_followed_while_they_happen_and_when_the_file_is_set_aside() {
    let home = Home::with_busybox();
    let mut following = home.start(["events", "web"]);
    wait_until_open(&home, &following, "anon_inode:inotify");
    create(&home, "web", &["--no-start"]);
    following.read_until("\"created\"");
    let log = home.state().join("events.log");
    std::fs::rename(&log, home.state().join("events.log.1")).unwrap();
    home.run(["rm", "web"]).done();
    following.read_until("\"removed\"");
    wait_until("the new file", || log.exists());
    assert_eq!(events(&home, "web"), ["created", "removed"]);
    let removed = home.run(["events", "--no-follow", "--type", "removed", "web"]);
    let removed = json(&removed.done());
    assert_eq!((&removed["type"], &removed["sandbox"]), (&"removed".into(), &"web".into()));
    home.run(["events", "--no-follow", "--since", "2999-01-01T00:00:00Z"]).is(0, "", "");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(following.pid()).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
}
