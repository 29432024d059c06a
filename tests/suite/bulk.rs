//! Commands for several objects, and the names that they print.

use crate::support::Home;

#[test]
fn a_command_does_what_it_can_in_the_order_typed() {
    let home = Home::with_busybox();
    for name in ["a", "b", "c"] {
        home.run(["create", "--no-start", "--name", name, "busybox:test"]).is(
            0,
            &format!("{name}\n"),
            "",
        );
        home.run(["volume", "create", name]).is(0, &format!("{name}\n"), "");
        home.run(["image", "tag", "busybox:test", name]).is(
            0,
            &format!("docker.io/library/{name}:latest\n"),
            "",
        );
    }
    let none = |tool: &str, kind: &str, hint: &str| {
        ["y", "x"].map(|name| {
            format!("msb {tool}: error: there is no {kind} '{name}'\nmsb {tool}: hint: {hint}\n")
        })
    };
    let list = "`msb ls` lists them";
    home.run(["rm", "c", "y", "a", "x"]).is(1, "c\na\n", &none("rm", "sandbox", list).concat());
    home.run(["volume", "rm", "c", "y", "a", "x"]).is(
        1,
        "c\na\n",
        &none("volume", "volume", "`msb volume list` lists them").concat(),
    );
    let outcome = home.run(["image", "rm", "c", "y", "a", "x"]);
    let names = "docker.io/library/c:latest\ndocker.io/library/a:latest\n";
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), names);
    let stderr = String::from_utf8_lossy(&outcome.stderr).into_owned();
    let errors: Vec<&str> = stderr.lines().filter(|line| line.contains(": error: ")).collect();
    assert_eq!(
        (outcome.code, &errors[..]),
        (
            1,
            &[
                "msb image: error: there is no image 'y:latest'",
                "msb image: error: there is no image 'x:latest'"
            ][..]
        )
    );
    // What was not named is there.
    home.run(["ls", "-q"]).is(0, "b\n", "");
    home.run(["volume", "ls", "-q"]).is(0, "b\n", "");
    home.run(["images", "-q"]).is(
        0,
        "docker.io/library/b:latest\ndocker.io/library/busybox:test\n",
        "",
    );
}

#[test]
fn every_command_that_changes_sandboxes_prints_their_names() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test"]).is(0, "x\n", "");
    home.run(["create", "--name", "y", "busybox:test"]).is(0, "y\n", "");
    for verb in ["pause", "resume", "restart", "stop", "start", "kill"] {
        let outcome = home.run([verb, "y", "x"]);
        assert_eq!((outcome.code, &outcome.stdout[..]), (0, &b"y\nx\n"[..]), "{verb}: {outcome:?}");
        assert_eq!(outcome.stderr, b"", "{verb}: {outcome:?}");
    }
    home.run(["stop", "x", "nosuch", "y"]).is(
        1,
        "x\ny\n",
        "msb stop: warning: the sandbox 'x' is not running\n\
         msb stop: error: there is no sandbox 'nosuch'\nmsb stop: hint: `msb ls` lists them\n\
         msb stop: warning: the sandbox 'y' is not running\n",
    );
    home.run(["start", "-q", "x"]).is(0, "", "");
    home.run(["rm", "-q", "-f", "x", "y"]).is(0, "", "");
}

#[test]
fn an_image_in_use_is_kept_and_the_others_go() {
    let home = Home::with_busybox();
    home.run(["image", "tag", "-q", "busybox:test", "free"]).done();
    home.run(["create", "--no-start", "--name", "x", "busybox:test"]).done();
    home.run(["rmi", "free", "busybox:test"]).is(
        1,
        "docker.io/library/free:latest\n",
        "msb rmi: error: image 'busybox:test' is used by: x\n\
         msb rmi: hint: remove these sandboxes first (`msb rm`), or use --force\n",
    );
    home.run(["images", "-q"]).is(0, "docker.io/library/busybox:test\n", "");
}

#[test]
fn modify_prints_a_line_for_each_changed_value() {
    let home = Home::with_busybox();
    home.run(["create", "--no-start", "--name", "web", "-p", "18080:80", "busybox:test"]).done();
    home.run(["modify", "web", "-p", "18081:80", "--cpus", "2", "--label", "a=b"]).is(
        0,
        "cpus: 1 -> 2\nlabels.a: - -> b\nnet.ports: 127.0.0.1:18081:80/tcp added\n",
        "",
    );
}
