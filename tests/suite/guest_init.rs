//! The image's own init as the first process of a guest.

use std::fs;

use crate::support::Home;

/// The status file of a sandbox.
fn status(home: &Home, name: &str) -> serde_json::Value {
    let path = home.state().join("sandboxes").join(name).join("status.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Waits for the end of a sandbox.
fn wait(home: &Home, name: &str) {
    home.run(["wait", name]);
    assert!(home.leftovers().is_empty());
}

#[test]
fn an_init_is_the_first_process_and_commands_run_beside_it() {
    let home = Home::with_busybox();
    let inittab = home.directory.join("inittab");
    fs::write(&inittab, "::sysinit:/bin/touch /started\n::respawn:/bin/sleep 1000\n").unwrap();
    let copy = format!("{}:/etc/inittab", inittab.display());
    home.run([
        "create",
        "--name",
        "x",
        "--init",
        "/bin/init",
        "--init-env",
        "A=b",
        "--copy",
        &copy,
        "busybox:test",
    ])
    .done();
    let script = "cat /proc/1/comm; readlink /proc/1/exe; tr '\\0' '\\n' </proc/1/environ | grep '^A='; \
                  while ! [ -e /started ]; do sleep 0.1; done; ps | grep -c '[s]leep 1000'; \
                  kill -9 1; kill -0 1 && echo lives; ls -d /proc/$$";
    let outcome = home.run(["exec", "x", "--", "sh", "-c", script]);
    let lines = outcome.done();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines[..3], ["init", "/bin/busybox", "A=b"], "{lines:?}");
    assert_eq!(lines[4], "lives", "{lines:?}");
    home.run(["cp", "x:/etc/inittab", "copied"]).done();
    // The init of busybox waits a second after each signal, more on a busy machine.
    home.run(["stop", "--timeout", "60s", "x"]).done();
    let status = status(&home, "x");
    assert_eq!((&status["reason"], &status["clean"]), (&"stop_requested".into(), &true.into()));
}

#[test]
fn an_init_ends_the_machine_in_its_own_way() {
    let home = Home::with_busybox();
    for (signal, reason) in [("USR2", "guest_powered_off"), ("TERM", "guest_rebooted")] {
        home.run(["run", "-d", "--name", "x", "--init", "/bin/init", "busybox:test"]).done();
        // The command is killed with everything else, or the sandbox ends under it.
        let script = format!("kill -{signal} 1; sleep 100");
        home.run(["exec", "x", "--", "sh", "-c", &script]);
        wait(&home, "x");
        assert_eq!(status(&home, "x")["reason"], reason);
        home.run(["rm", "x"]).done();
    }
}

#[test]
fn an_init_that_is_none_fails_the_start_with_its_reason() {
    let home = Home::with_busybox();
    for (init, why) in [
        ("auto", "the image has no init"),
        ("/nowhere", "cannot execute '/nowhere': no such file or directory"),
        ("/etc/passwd", "cannot execute '/etc/passwd': permission denied"),
    ] {
        let outcome = home.run(["run", "--init", init, "busybox:test", "--", "true"]);
        let error = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert_eq!(outcome.code, 125, "{error}");
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn an_init_that_dies_is_a_crash_and_the_console_says_how() {
    let home = Home::with_busybox();
    home.run([
        "run",
        "-d",
        "--name",
        "x",
        "--script",
        "die=sleep 1; exit 3",
        "--init",
        "/.msb/scripts/die",
        "busybox:test",
    ])
    .done();
    wait(&home, "x");
    let status = status(&home, "x");
    assert_eq!((&status["state"], &status["reason"]), (&"Crashed".into(), &"agent_failed".into()));
    let console = fs::read_to_string(home.state().join("sandboxes/x/console.log")).unwrap();
    assert!(console.contains("the init ended with exit status 3"), "{console}");
}

#[test]
fn systemd_reaches_its_login_target_and_shuts_down_in_order() {
    let home = Home::new();
    let image = crate::support::fixture("systemd.tar");
    home.run(["image", "import", "--quiet", "--input", image.to_str().unwrap(), "systemd:test"])
        .done();
    home.run(["create", "--name", "x", "--init", "auto", "systemd:test"]).done();
    // Each question costs the processor that systemd starts its units with.
    let script = "for i in $(seq 150); do systemctl is-active --quiet multi-user.target 2>/dev/null && break; sleep 1; done; \
                  systemctl is-active multi-user.target getty.target; cat /proc/1/comm; readlink /proc/1/exe";
    home.run(["exec", "x", "--", "sh", "-c", script]).is(
        0,
        "active\nactive\nsystemd\n/usr/lib/systemd/systemd\n",
        "",
    );
    // In software, on a host that does much else, its shutdown takes longer than the 10 seconds of
    // the default.
    home.run(["stop", "--timeout", "120", "x"]).done();
    assert_eq!(status(&home, "x")["clean"], true);
    home.run(["start", "x"]).done();
    // A signal that comes before it listens would be lost: so are all that a first process has no
    // handler for.
    let script =
        "until systemctl show-environment >/dev/null 2>&1; do sleep 0.2; done; kill -s RTMIN+4 1";
    home.run(["exec", "x", "--", "sh", "-c", script]);
    wait(&home, "x");
    assert_eq!(status(&home, "x")["reason"], "guest_powered_off");
}
