//! The environment, user, directory, name and labels of a command.

use crate::support::{Home, Outcome};

fn run(home: &Home, args: &[&str]) -> Outcome {
    home.run([&["run"], args].concat())
}

#[test]
fn an_images_entrypoint_command_user_and_directory_are_used() {
    let home = Home::with(&["configured.docker.tar"]);
    let image = "localhost/msb-test/configured:v1";
    run(&home, &[image]).is(0, "entry cmd\n", "");
    run(&home, &[image, "--", "one", "two"]).is(0, "entry one two\n", "");
    run(
        &home,
        &["--entrypoint", "/bin/sh", image, "--", "-c", "id -un; pwd; echo $HOME $FROM_IMAGE"],
    )
    .is(0, "alice\n/home/alice\n/home/alice configured\n", "");
}

#[test]
fn an_images_command_is_run_when_none_is_given() {
    let home = Home::with_busybox();
    home.run_with(["run", "-i", "busybox:test"], b"echo from the image\n").is(
        0,
        "from the image\n",
        "",
    );
}

#[test]
fn options_may_come_after_the_image() {
    let home = Home::with_busybox();
    run(
        &home,
        &["busybox:test", "-e", "A=1", "--hostname", "h", "--", "sh", "-c", "echo $A; hostname"],
    )
    .is(0, "1\nh\n", "");
}

#[test]
fn a_variable_of_exec_wins_over_that_of_run_and_that_over_the_images() {
    let home = Home::with_busybox();
    let print = ["--", "sh", "-c", "echo $FROM_IMAGE $A $B"];
    home.run([&["run", "busybox:test"], &print[..]].concat()).is(0, "image\n", "");
    home.run(["run", "-d", "--name", "x", "-e", "FROM_IMAGE=run", "-e", "A=a=b c", "busybox:test"])
        .done();
    home.run([&["exec", "x"], &print[..]].concat()).is(0, "run a=b c\n", "");
    home.run([&["exec", "-e", "FROM_IMAGE=exec", "-e", "B=", "x"], &print[..]].concat()).is(
        0,
        "exec a=b c\n",
        "",
    );
    home.run(["stop", "x"]).done();
}

#[test]
fn a_home_that_was_said_wins_over_that_of_the_user() {
    let home = Home::with_busybox();
    let print = ["--", "sh", "-c", "echo $HOME"];
    let run = ["run", "-d", "--name", "x", "busybox:test"];
    home.run(run).done();
    home.run([&["exec", "x"], &print[..]].concat()).is(0, "/root\n", "");
    for user in ["root", "alice"] {
        let exec = ["exec", "-u", user, "-e", "HOME=/x", "x"];
        home.run([&exec[..], &print].concat()).is(0, "/x\n", "");
    }
    home.run(["stop", "--force", "x"]).done();
    home.run([&["run", "-e", "HOME=/y", "busybox:test"], &print[..]].concat()).is(0, "/y\n", "");
}

#[test]
fn a_variable_without_a_value_has_that_of_the_host() {
    let home = Home::with_busybox();
    let mut command =
        home.msb(["run", "-e", "FROM_HOST", "busybox:test", "--", "sh", "-c", "echo $FROM_HOST"]);
    let output = command.env("FROM_HOST", "v w").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "v w\n");
}

#[test]
fn the_environment_is_the_images_and_ours_and_nothing_of_the_host() {
    let home = Home::with_busybox();
    let names = "env | cut -d= -f1 | grep -vx -e PWD -e SHLVL | sort | tr '\\n' ' '";
    run(&home, &["busybox:test", "--", "sh", "-c", names]).is(
        0,
        "FROM_IMAGE HOME HOSTNAME PATH ",
        "",
    );
}

#[test]
fn a_user_is_a_name_or_a_number_with_or_without_group() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test"]).done();
    let cases = [
        (None, "0:0:/root:0\n"),
        (Some("alice"), "1000:1000:/home/alice:1000 10\n"),
        (Some("1000"), "1000:1000:/home/alice:1000 10\n"),
        (Some("alice:wheel"), "1000:10:/home/alice:10\n"),
        (Some("alice:7"), "1000:7:/home/alice:7\n"),
        (Some("4321:8765"), "4321:8765:/:8765\n"),
    ];
    for (user, expected) in cases {
        let option = user.map(|user| ["-u", user]).unwrap_or(["-e", "X=1"]);
        let command = "echo $(id -u):$(id -g):$HOME:$(id -G)";
        let args = [&["exec"], &option[..], &["x", "--", "sh", "-c", command]].concat();
        let found = home.run(args).done();
        assert_eq!(found, expected, "user {user:?}");
    }
    home.run(["stop", "x"]).done();
}

#[test]
fn a_directory_is_where_the_command_starts() {
    let home = Home::with_busybox();
    run(&home, &["busybox:test", "--", "pwd"]).is(0, "/\n", "");
    run(&home, &["-w", "/home/alice", "busybox:test", "--", "pwd"]).is(0, "/home/alice\n", "");
    // As docker does: run makes it, since the image is of others and the wish is the user's; exec
    // does not.
    run(&home, &["-w", "/new/place", "busybox:test", "--", "pwd"]).is(0, "/new/place\n", "");
    home.run(["run", "-d", "--name", "x", "busybox:test"]).done();
    let outcome = home.run(["exec", "-w", "/nowhere", "x", "--", "pwd"]);
    assert_eq!(outcome.code, 125, "{outcome:?}");
    let text = String::from_utf8_lossy(&outcome.stderr);
    assert!(
        text.ends_with(
            "cannot enter the working directory '/nowhere': no such file or directory\n"
        ),
        "{text}"
    );
    home.run(["stop", "x"]).done();
}

#[test]
fn a_guest_has_the_name_the_cpus_and_the_memory_that_were_asked_for() {
    let home = Home::with_busybox();
    // libkrun puts its kernel beside the memory that was asked for, QEMU into it.
    let command = "hostname; cat /etc/hostname; ping -c 1 -w 9 boxy >/dev/null && echo reached; nproc; free -m | awk '/Mem/ { print ($2 > 200 && $2 < 280) }'";
    run(&home, &["-H", "boxy", "-c", "2", "-m", "256M", "busybox:test", "--", "sh", "-c", command])
        .is(0, "boxy\nboxy\nreached\n2\n1\n", "");
}

#[test]
fn a_megabyte_of_environment_boots() {
    let home = Home::with_busybox();
    let mut args = vec!["run".to_owned()];
    for number in 0..10 {
        args.extend(["-e".to_owned(), format!("BIG{number}={}", "x".repeat(100_000))]);
    }
    args.extend(["busybox:test", "--", "sh", "-c", "env | grep ^BIG | wc -c"].map(str::to_owned));
    let bytes = 10 * ("BIG0=\n".len() + 100_000);
    home.run(args).is(0, &format!("{bytes}\n"), "");
}

#[test]
fn ten_thousand_variables_boot() {
    let home = Home::with_busybox();
    let mut args = vec!["run".to_owned()];
    for number in 0..10_000 {
        args.extend(["-e".to_owned(), format!("V{number}=value {number}")]);
    }
    args.extend(
        ["busybox:test", "--", "sh", "-c", "env | grep -c ^V; echo $V9999"].map(str::to_owned),
    );
    home.run(args).is(0, "10000\nvalue 9999\n", "");
}

#[test]
fn arguments_arrive_as_they_are() {
    let home = Home::with_busybox();
    let arguments =
        ["a b", "", "*", "$HOME", "\"q\"", "gr\u{fc}n", "new\nline", "-x", "--", "--help"];
    let expected: String = arguments.iter().map(|argument| format!("<{argument}>")).collect();
    let args = [&["run", "busybox:test", "--", "printf", "<%s>"], &arguments[..]].concat();
    home.run(args).is(0, &expected, "");
    home.shell("msb run busybox:test -- printf %s $'\\xff\\xfe' | od -An -tx1")
        .is(0, " ff fe\n", "");
}

#[test]
fn labels_are_kept_and_listed() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "--label", "team=ml", "--label", "gpu", "busybox:test"])
        .done();
    let list = home.list();
    assert_eq!(list[0]["labels"]["team"], "ml");
    assert_eq!(list[0]["labels"]["gpu"], "");
    // The image's own are there as well, as in docker.
    assert_eq!(list[0]["labels"]["purpose"], "test");
    home.run(["ls", "-q", "--label", "team=ml", "--label", "gpu"]).is(0, "x\n", "");
    home.run(["ls", "-q", "--label", "team=other"]).is(0, "", "");
    assert_eq!(list[0]["image"], "docker.io/library/busybox:test");
    home.run(["stop", "x"]).done();
}

#[test]
fn labels_of_a_file_are_attached_and_options_override_them() {
    let home = Home::with_busybox();
    std::fs::write(home.directory.join("labels"), "# a comment\n\nteam=ml\r\n  gpu\ntext=a = b\n")
        .unwrap();
    let line = "create --no-start --name x --label-file labels --label team=web busybox:test";
    home.run(line.split(' ')).is(0, "x\n", "");
    let list = home.list();
    let labels = ["team", "gpu", "text"].map(|key| list[0]["labels"][key].as_str().unwrap());
    assert_eq!(labels, ["web", "", "a = b"]);
    // The labels of a sandbox that exists stay, which is said only if they differ.
    let run = "run --name x --label-file labels --label team=web busybox:test true";
    home.run(run.split(' ')).is(0, "", "");
    let run = home.run("run --name x --label-file labels busybox:test true".split(' '));
    assert_eq!(run.code, 0);
    assert!(String::from_utf8_lossy(&run.stderr).contains("ignored: --label"), "{run:?}");
    std::fs::write(home.directory.join("labels"), "ok\nsandbox.x=1\n").unwrap();
    home.run(["create", "--label-file", "labels", "busybox:test"]).is(
        2,
        "",
        "msb create: error: in 'labels': line 2: 'sandbox.x' cannot be a label: its prefix is \
         reserved\nmsb create: hint: reserved are sandbox., microsandbox., service.; choose \
         another prefix\n",
    );
    assert_eq!(home.run(["create", "--label-file", "nosuch", "busybox:test"]).code, 3);
}

#[test]
fn a_guest_has_what_programs_expect_of_a_machine() {
    let home = Home::with_busybox();
    let mounted = "awk '{ print $2 }' /proc/mounts | grep -x -e / -e /dev -e /dev/pts -e /dev/shm -e /proc -e /sys | sort | tr '\\n' ' '";
    let command = format!(
        "{mounted}; echo x >/dev/null; readlink /dev/fd; ip addr show lo | grep -c 'inet 127.0.0.1'; ulimit -n"
    );
    run(&home, &["busybox:test", "--", "sh", "-c", &command]).is(
        0,
        "/ /dev /dev/pts /dev/shm /proc /sys /proc/self/fd\n1\n1048576\n",
        "",
    );
}

#[test]
fn settings_do_not_travel_on_the_kernels_command_line() {
    let home = Home::with_busybox();
    let args =
        ["run", "-e", "SECRET=hunter2", "-H", "boxy", "busybox:test", "--", "cat", "/proc/cmdline"];
    let line = home.run(args).done();
    for word in ["hunter2", "boxy", "FROM_IMAGE"] {
        assert!(!line.contains(word), "{line}");
    }
}

#[test]
fn no_dead_process_stays_in_a_guest() {
    let home = Home::with_busybox();
    // Orphans become children of process 1.
    let command = "(sh -c 'sleep 0.1 & sleep 0.2 &') ; sleep 1; ps -o stat | grep -c Z";
    run(&home, &["busybox:test", "--", "sh", "-c", command]).is(1, "0\n", "");
}

fn write_configuration(home: &Home, configuration: &serde_json::Value) {
    std::fs::write(home.state().join("config.json"), configuration.to_string()).unwrap();
}

#[test]
fn defaults_of_the_configuration_file_hold_for_new_sandboxes_unless_an_option_is_given() {
    let home = Home::with_busybox();
    write_configuration(
        &home,
        &serde_json::json!({
            "sandbox_defaults": {
                "cpus": 2,
                "memory_mib": 640,
                "workdir": "/tmp",
                "shell": "/bin/ash",
                "oci": {"upper_size_mib": 64},
            },
            "paths": {"cache": "/x"},
            "sandbox_default": {},
        }),
    );
    let create =
        |words: &[&str]| home.run([&["create", "--no-start"], words, &["busybox:test"]].concat());
    create(&["--name", "x"]).is(
        0,
        "x\n",
        "msb create: warning: 'config.json' has fields without a meaning in msb: 'paths', \
         'sandbox_default'\n",
    );
    // The warning is given once.
    let options = ["-c", "1", "-m", "512M", "-w", "/", "--shell", "/bin/sh"];
    create(&[&["--name", "y", "--oci-upper-size", "32M"], &options[..]].concat()).is(0, "y\n", "");
    let config = |name: &str| {
        let text = home.run(["inspect", name, "--format", "json"]).done();
        let config = serde_json::from_str::<serde_json::Value>(&text).unwrap()["config"].take();
        ["/cpus", "/memory_mib", "/workdir", "/guest/shell", "/upper_mib"]
            .map(|field| config.pointer(field).cloned().unwrap_or_default().to_string())
    };
    assert_eq!(config("x"), ["2", "640", "\"/tmp\"", "\"/bin/ash\"", "64"]);
    assert_eq!(config("y"), ["1", "512", "\"/\"", "\"/bin/sh\"", "32"]);
    home.run(["start", "x"]).done();
    home.run(["exec", "x", "--", "sh", "-c", "nproc; pwd"]).is(0, "2\n/tmp\n", "");
    home.run(["rm", "-f", "x", "y"]).done();

    write_configuration(&home, &serde_json::json!({"sandbox_defaults": {"cpus": 0}}));
    let refused = create(&["--name", "z"]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.code == 1 && error.contains("config.json"), "{refused:?}");
    assert_eq!(home.sandboxes(), []);
}

#[test]
fn the_log_level_of_the_configuration_file_holds_unless_an_option_is_given() {
    let home = Home::with_busybox();
    home.run(["create", "--name", "x", "busybox:test"]).done();
    let said = |words: &[&str]| {
        String::from_utf8(home.run([&["start", "x"], words].concat()).stderr).unwrap()
    };
    let plain = said(&[]);
    assert!(plain.contains("warning: "), "{plain}");
    write_configuration(&home, &serde_json::json!({"log_level": "error"}));
    assert_eq!(said(&[]), "");
    assert_eq!(said(&["--warn"]), plain);
    write_configuration(&home, &serde_json::json!({"log_level": "debug"}));
    home.run(["stop", "x"]).done();
    let started = said(&[]);
    assert!(started.contains("debug: started the supervisor of 'x'"), "{started}");
    home.run(["rm", "-f", "x"]).done();
}

/// The file of the guest with its name servers.
fn resolv_conf(home: &Home, words: &[&str]) -> Vec<String> {
    let command = ["busybox:test", "--", "cat", "/etc/resolv.conf"];
    let text = home.run([&["run"], words, &command].concat()).done();
    text.lines().filter(|line| !line.starts_with("nameserver ")).map(str::to_owned).collect()
}

#[test]
fn search_domains_reach_the_guest_on_request_only() {
    let home = Home::with_busybox();
    let hosts: Vec<String> = std::fs::read_to_string("/etc/resolv.conf")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.strip_prefix("search "))
        .map(|domains| format!("search {}", domains.trim()))
        .collect();
    assert_eq!(resolv_conf(&home, &[]), [""; 0]);
    assert_eq!(
        resolv_conf(&home, &["--dns-search", "Corp.Example", "--dns-search", "b.example."]),
        ["search corp.example b.example"]
    );
    assert_eq!(resolv_conf(&home, &["--dns-search", "host"]), hosts);
    write_configuration(
        &home,
        &serde_json::json!({"sandbox_defaults": {"dns_search": ["c.example"]}}),
    );
    assert_eq!(resolv_conf(&home, &[]), ["search c.example"]);
    assert_eq!(resolv_conf(&home, &["--dns-search", "."]), [""; 0]);
    let refused = run(&home, &["--dns-search", "a b", "busybox:test"]);
    assert_eq!(refused.code, 125, "{refused:?}");
    home.run(["create", "--name", "x", "--no-start", "busybox:test"]).done();
    home.run(["modify", "x", "--dns-search", "d.example"]).done();
    home.run(["start", "x"]).done();
    home.run(["exec", "x", "--", "grep", "search", "/etc/resolv.conf"]).is(
        0,
        "search d.example\n",
        "",
    );
    home.run(["rm", "-f", "x"]).done();
}
