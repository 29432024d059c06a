//! Starts that fail, and `run` with the name of a sandbox that exists.

use std::net::TcpListener;

use crate::support::Home;

#[test]
fn a_start_that_fails_before_the_boot_leaves_nothing_behind() {
    let home = Home::with_busybox();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("{}:80", listener.local_addr().unwrap().port());
    for words in [
        &["run", "-d", "--name", "web", "-p", &port, "busybox:test"][..],
        &["run", "--name", "web", "-p", &port, "busybox:test", "true"],
        &["create", "--name", "web", "-p", &port, "busybox:test"],
        &["create", "-p", &port, "busybox:test"],
    ] {
        let outcome = home.run(words);
        let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert!(outcome.code != 0 && text.contains("address already in use"), "{outcome:?}");
        assert_eq!(outcome.stdout, b"", "{outcome:?}");
        assert_eq!(home.sandboxes(), [], "{words:?}");
    }
    // The hint names logs only where they are.
    let outcome = home.run(["run", "-m", "1M", "--name", "small", "busybox:test", "true"]);
    let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert_eq!(outcome.code, 125, "{text}");
    assert_eq!(text.contains("console.log"), !home.sandboxes().is_empty(), "{text}");
    home.run(["rm", "-q", "-f", "small"]);
    // The corrected line starts what it says.
    drop(listener);
    let corrected = ["run", "-d", "--name", "web", "busybox:test"];
    home.run(corrected).is(0, "web\n", "");
    home.run(["rm", "-q", "-f", "web"]).done();
    // A sandbox that was there stays, also if it does not start.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("{}:80", listener.local_addr().unwrap().port());
    home.run(["create", "--no-start", "--name", "old", "-p", &port, "busybox:test"]).done();
    assert_eq!(home.run(["run", "--name", "old", "busybox:test", "true"]).code, 125);
    assert_eq!(home.run(["ls", "-q"]).done(), "old\n");
}

#[test]
fn another_port_mount_or_command_of_an_existing_sandbox_is_an_error() {
    let home = Home::with_busybox();
    let made = ["--name", "web", "-p", "18080:80", "--tmpfs", "/t", "--label", "a=b"];
    home.run([&["create", "--no-start"], &made[..], &["busybox:test", "sleep", "600"]].concat())
        .done();
    for (typed, error, hint) in [
        (
            &["-p", "18081:80"][..],
            "without the port 127.0.0.1:18081:80/tcp",
            "--port 127.0.0.1:18081:80/tcp",
        ),
        (&["-v", "data:/d"], "without this mount at '/d'", "-v SOURCE:/d"),
    ] {
        let outcome = home.run([&["run", "--name", "web"], typed, &["busybox:test"]].concat());
        outcome.is(
            125,
            "",
            &format!(
                "msb run: error: the sandbox 'web' already exists {error}\n\
                 msb run: hint: add it: msb modify web {hint}; or replace the sandbox: \
                 msb run --replace --name web\n"
            ),
        );
    }
    assert_eq!(home.run(["volume", "ls", "-q"]).done(), "");
    home.run(["run", "-d", "--name", "web", "busybox:test", "sleep", "5"]).is(
        125,
        "",
        "msb run: error: the sandbox 'web' already exists with another command, which -d starts \
         again\nmsb run: hint: run the command in it: msb start web && msb exec -d web COMMAND; \
         or replace the sandbox: msb run --replace --name web\n",
    );
    // What it has already is no difference; what is ignored is named.
    let same = [&["run", "-d"], &made[..], &["busybox:test", "sleep", "600"]].concat();
    home.run(same).is(0, "web\n", "");
    home.run(["stop", "-q", "web"]).done();
    let typed = ["run", "--name", "web", "--cpus", "2", "-m", "512M", "--hostname", "other"];
    home.run([&typed[..], &["busybox:test", "echo", "hi"]].concat()).is(
        0,
        "hi\n",
        "msb run: warning: the sandbox 'web' already exists: ignored: --cpus, --hostname\n\
         msb run: hint: change it with 'msb modify web', or replace it with --replace\n",
    );
}

#[test]
fn a_reserved_label_of_an_image_is_ignored_with_a_warning() {
    let home = Home::with_busybox();
    home.shell(
        "mkdir root && echo x >root/x && tar -C root -c . \
         | msb image import -q --label sandbox.name=evil --label team=ml labelled",
    )
    .done();
    home.run(["create", "--no-start", "--name", "x", "labelled"]).is(
        0,
        "x\n",
        "msb create: warning: labels of the image with a reserved prefix are ignored: \
         'sandbox.name'\n",
    );
    assert_eq!(home.list()[0]["labels"], serde_json::json!({"team": "ml"}));
    home.run(["create", "-q", "--no-start", "--name", "y", "labelled"]).is(0, "y\n", "");
}

#[test]
fn logs_name_the_job_of_each_line() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test", "sh", "-c", "echo one; sleep 600"])
        .done();
    let job = home.run(["exec", "-d", "x", "echo", "two"]).done();
    let job = job.trim();
    home.run(["wait", "--job", job, "x"]).done();
    let text = home.run(["logs", "--show-id", "x"]).done();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_by_key(|line| line.ends_with("two"));
    assert_eq!(lines, ["main one", &format!("{job} two")]);
    let colored = home.run(["logs", "--color", "always", "--color-sessions", "x"]).done();
    assert_eq!(colored.matches("\x1b[3").count(), 2, "{colored}");
    home.run(["rm", "-q", "-f", "x"]).done();
}
