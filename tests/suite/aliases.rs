//! Commands of the user's own: `msb install`, `msb uninstall`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::support::Home;

/// The shell line that puts the directory of aliases into `PATH`.
fn with_path(home: &Home, script: &str) -> String {
    format!("PATH={}/bin:$PATH; {script}", home.state().display())
}

#[test]
fn an_alias_passes_its_arguments_streams_and_exit_code_on() {
    let home = Home::with_busybox();
    let outcome = home.run(["install", "--tmp", "-n", "count", "busybox:test", "--", "sh", "-c"]);
    let bin = home.state().join("bin");
    outcome.is(
        0,
        "count\n",
        &format!(
            "msb install: note: add to the profile of your shell: export PATH={}:\"$PATH\"\n",
            bin.display()
        ),
    );
    let script = r#"printf 'a b\n' | count 'cat; echo "$2"; exit 3' _ '$HOME' "it's
x"; echo $?"#;
    home.shell(&with_path(&home, script)).is(0, "a b\nit's\nx\n3\n", "");
    assert_eq!(home.sandboxes(), []);
    home.shell(&with_path(&home, "msb uninstall count; command -v count || echo gone")).is(
        0,
        "count\ngone\n",
        "",
    );
}

#[test]
fn an_alias_without_tmp_keeps_its_disk_and_its_options() {
    let home = Home::with_busybox();
    fs::create_dir(home.directory.join("files")).unwrap();
    let line = "msb install -c 2 -m 640M -e 'A=b c' -v ./files:/files -w /files --shell /bin/sh \
                --name keep busybox:test -- sh -c 2>&1";
    home.shell(&with_path(&home, line)).is(0, "keep\n", "");
    let script =
        "keep 'echo $A >>/note; nproc; pwd; echo x >y'; keep 'cat /note; echo $A'; cat files/y";
    home.shell(&with_path(&home, script)).is(0, "2\n/files\nb c\nb c\nx\n", "");
    assert_eq!(home.sandboxes(), [("keep".to_owned(), "Stopped".to_owned())]);
}

#[test]
fn calls_of_an_alias_at_the_same_time_share_its_sandbox_which_ends_with_the_last() {
    let home = Home::with_busybox();
    home.shell(&with_path(&home, "msb install -n share busybox:test -- sh -c 2>&1")).done();
    // The second and third start while the first creates the sandbox, and go on when it has ended;
    // a killed caller takes its own command with it only.
    let script = "cd /tmp
        share 'echo one; touch /one; while [ ! -e /two ]; do sleep 0.1; done; exit 11' >one & one=$!
        share 'touch /two; while [ ! -e /go ]; do sleep 0.1; done; cat /note; exit 12' >two & two=$!
        share 'while :; do date >/alive; sleep 0.1; done' & three=$!
        wait $one; echo $? $(cat one)
        share 'while [ ! -e /alive ]; do sleep 0.1; done; echo kept >/note'
        kill -9 $three; wait $three 2>/dev/null
        share 'rm /alive; sleep 0.5; ls /alive 2>/dev/null; touch /go'
        wait $two; echo $? $(cat two)
        msb ls --format json | grep -o '\"status\":\"[^\"]*\"' || msb ls";
    let outcome = home.shell(&with_path(&home, &script.replace("/tmp\n", "\"$PWD\"\n")));
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(text.starts_with("11 one\n12 kept\n"), "{outcome:?}");
    assert_eq!(home.sandboxes(), [("share".to_owned(), "Stopped".to_owned())], "{outcome:?}");
    // Another image or option is an error, whether the sandbox runs or not.
    let differs = "msb run --join --name share -p 1:1 busybox:test -- true";
    assert_eq!(home.shell(differs).code, 125);
}

#[test]
fn aliases_are_listed_and_only_files_of_msb_are_replaced_or_removed() {
    let home = Home::with_busybox();
    home.run(["install", "--list"]).is(0, "", "no installed commands\n");
    home.run(["install", "--list", "--format", "json"]).is(0, "[]\n", "");
    home.shell(&with_path(
        &home,
        "msb install busybox:test && msb install --tmp -n two busybox:test sh -c 'a\nb'",
    ))
    .is(0, "busybox\ntwo\n", "");
    let bin = home.state().join("bin");
    let mode = fs::metadata(bin.join("two")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    fs::write(bin.join("mine"), "#!/bin/sh\necho mine\n").unwrap();
    symlink("two", bin.join("link")).unwrap();
    home.run(["install", "-l"]).is(
        0,
        "NAME      IMAGE                            MODE        COMMAND\n\
         busybox   docker.io/library/busybox:test   persisted\n\
         two       docker.io/library/busybox:test   tmp         sh -c 'a\\nb'\n",
        "",
    );
    let before = home.snapshot("bin");
    let taken = home.run(["install", "busybox:test"]);
    assert_eq!(taken.code, 4, "{taken:?}");
    for name in ["mine", "link"] {
        assert_eq!(home.run(["install", "--force", "-n", name, "busybox:test"]).code, 4);
        assert_eq!(home.run(["uninstall", name]).code, 4);
    }
    for name in ["msb", "msb-run", "../x", "a/b", "-x", ""] {
        let name = format!("--name={name}");
        assert_eq!(home.run(["install", &name, "busybox:test"]).code, 2, "{name}");
    }
    assert_eq!(home.run(["install", "-n", "x", "nosuch:1", "-e", "=1"]).code, 2);
    assert_eq!(home.run(["install", "-n", "x", "-v", "/a", "busybox:test"]).code, 2);
    assert_eq!(home.snapshot("bin"), before);
    assert_eq!(home.run(["uninstall", "nosuch"]).code, 3);

    let line = "msb install --force --no-pull -n two other:1; msb uninstall busybox nosuch two";
    let outcome = home.shell(&with_path(&home, line));
    assert_eq!((outcome.code, outcome.stdout.as_slice()), (1, &b"two\nbusybox\ntwo\n"[..]));
    assert_eq!(home.snapshot("bin").len(), 2);
}

#[test]
fn self_says_where_msb_is_and_what_updates_it() {
    let home = Home::new();
    let outcome = home.run(["self", "update"]);
    let text = String::from_utf8(outcome.stderr).unwrap();
    assert_eq!(outcome.code, 2);
    assert!(text.contains("libmsb/install --prefix ") || text.contains("cargo build"), "{text}");
}
