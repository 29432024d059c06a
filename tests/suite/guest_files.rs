//! Changes of a guest's files before anything of its image runs: copies, directories, removals,
//! scripts.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::Home;

/// A directory of the host with a file, a program and a link.
fn source(home: &Home) -> String {
    let directory = home.directory.join("source");
    fs::create_dir_all(directory.join("inner")).unwrap();
    fs::write(directory.join("inner/file"), "from the host\n").unwrap();
    fs::write(directory.join("program"), "#!/bin/sh\necho runs\n").unwrap();
    fs::set_permissions(directory.join("program"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("inner/file", directory.join("link")).unwrap();
    directory.to_str().unwrap().to_owned()
}

#[test]
fn files_are_changed_before_the_main_command_runs() {
    let home = Home::with_busybox();
    let source = source(&home);
    let script = "cat /srv/deep/tree/link /etc/one; /srv/deep/tree/program; \
                  stat -c '%U %a %F' /srv/deep/tree/program /made/by/us; ls /bin/busybox /home /bin/vi";
    let outcome = home.run([
        "run",
        "--copy",
        &format!("{source}:/srv/deep/tree"),
        "--copy-file",
        &format!("{source}/inner/file:/etc/one"),
        "--copy-dir",
        &format!("{source}/inner:/home/"),
        "--mkdir",
        "/made/by/us",
        "--rm",
        "/bin/vi",
        "--rm",
        "/home/alice",
        "--rm",
        "/not/there",
        "busybox:test",
        "--",
        "sh",
        "-c",
        script,
    ]);
    outcome.is(
        1,
        "from the host\nfrom the host\nruns\nroot 755 regular file\nroot 755 directory\n/bin/busybox\n\n/home:\ninner\n",
        "ls: /bin/vi: No such file or directory\n",
    );
}

#[test]
fn the_first_boot_changes_files_and_later_ones_leave_them_alone() {
    let home = Home::with_busybox();
    let source = source(&home);
    home.run([
        "create",
        "--name",
        "x",
        "--no-start",
        "--copy",
        &format!("{source}/inner/file:/etc/one"),
        "--rm",
        "/home",
        "busybox:test",
    ])
    .done();
    home.run(["start", "x"]).done();
    let change = "cat /etc/one; echo changed >/etc/one; ls /home";
    home.run(["exec", "x", "--", "sh", "-c", change]).is(
        1,
        "from the host\n",
        "ls: /home: No such file or directory\n",
    );
    fs::remove_dir_all(&source).unwrap();
    home.run(["restart", "x"]).done();
    home.run(["exec", "x", "--", "cat", "/etc/one"]).is(0, "changed\n", "");
    home.run(["stop", "x"]).done();
    assert!(home.leftovers().is_empty());
}

#[test]
fn a_change_that_fails_stops_the_making_and_leaves_nothing() {
    let home = Home::with_busybox();
    let source = source(&home);
    let copy = format!("{source}/inner/file:/bin/busybox/below");
    for args in [
        &["create", "--name", "x", "--copy", &copy, "busybox:test"][..],
        &["run", "-d", "--name", "x", "--rm", "/proc", "busybox:test"],
        &["run", "--name", "x", "--copy", &copy, "busybox:test", "--", "true"],
        &["run", "--copy", &copy, "busybox:test", "--", "true"],
    ] {
        let outcome = home.run(args);
        let error = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert_ne!(outcome.code, 0, "{args:?}");
        assert!(error.contains("'/bin/busybox") || error.contains("'/proc'"), "{error}");
        assert_eq!(home.sandboxes(), [], "{args:?}");
        assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new(), "{args:?}");
    }
}

#[test]
fn a_source_that_vanished_before_the_first_start_is_told_and_the_sandbox_stays() {
    let home = Home::with_busybox();
    let source = source(&home);
    let copy = format!("{source}/program:/p");
    home.run(["create", "--name", "x", "--no-start", "--copy", &copy, "busybox:test"]).done();
    fs::remove_dir_all(&source).unwrap();
    let outcome = home.run(["start", "x"]);
    let error = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert_eq!(outcome.code, 1, "{error}");
    assert!(
        error.contains(&format!("cannot copy '{source}/program' to '/p' in the guest")),
        "{error}"
    );
    assert_eq!(home.sandboxes(), [("x".to_owned(), "Crashed".to_owned())]);
}

#[test]
fn a_mistake_in_a_change_is_found_before_anything_is_made() {
    let home = Home::with_busybox();
    let source = source(&home);
    let cases = [
        (["--copy-file", &source], "is not of the form SRC:DST"),
        (["--copy-file", &format!("{source}:/x")], "not a regular file"),
        (["--copy-dir", "/etc/passwd:/x"], "not a directory"),
        (["--mkdir", "relative"], "not absolute"),
        (["--rm", "/.."], "contains '..'"),
        (["--script", "a/b=x"], "invalid script name"),
    ];
    for (option, why) in cases {
        let args = [&["run"][..], &option, &["busybox:test", "--", "true"]].concat();
        let outcome = home.run(args);
        let error = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert_eq!(outcome.code, 125, "{option:?}: {error}");
        assert!(error.contains(why), "{option:?}: {error}");
    }
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

#[test]
fn scripts_are_found_by_name_and_before_other_programs() {
    let home = Home::with_busybox();
    let file = home.directory.join("from-file");
    fs::write(&file, "#!/bin/sh\necho \"file $*\"\n").unwrap();
    let outcome = home.run([
        "run",
        "--script",
        r#"greet=echo "hello\t$1"\nexit 3"#,
        "--script-path",
        &format!("told:{}", file.display()),
        "busybox:test",
        "--",
        "sh",
        "-c",
        "told a b; cat /.msb/scripts/greet; greet you",
    ]);
    outcome.is(3, "file a b\n#!/bin/sh\necho \"hello\t$1\"\nexit 3\nhello\tyou\n", "");
    let script = "ls=#!/bin/sh\necho mine\n";
    home.run(["run", "--script-raw", script, "busybox:test", "--", "ls"]).is(0, "mine\n", "");
}

#[test]
fn a_script_is_nowhere_on_the_host_but_in_the_specification() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "--script", "s=echo 4711-0815", "busybox:test"]).done();
    home.run(["exec", "x", "--", "s"]).is(0, "4711-0815\n", "");
    let found = home.shell("grep -rl 4711-0815 state | sort");
    let lines = found.done();
    // The guest's disk holds it too, as blocks of its file system.
    let others: Vec<&str> = lines.lines().filter(|line| !line.ends_with("upper.img")).collect();
    assert_eq!(others, ["state/sandboxes/x/spec.json"]);
    home.run(["stop", "x"]).done();
}
