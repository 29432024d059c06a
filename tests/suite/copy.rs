//! Files into and out of sandboxes.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::{Guests, Home, wait_until};

#[track_caller]
fn in_guest(home: &Guests, script: &str) -> String {
    home.run(["exec", "x", "--", "sh", "-c", script]).done()
}

/// A tree with everything that is kept, and what find says of it.
const MAKE_TREE: &str = r"
    mkdir -p tree/sub/deep tree/closed; echo one >tree/one; ln tree/one tree/sub/two
    ln -s /etc/passwd tree/link; ln -s nowhere/at/all tree/sub/dangling; : >tree/empty
    head -c 300000 /bin/bash >tree/large; truncate -s 20000000 tree/sparse; echo x >>tree/sparse
    echo name >'tree/sub/with space and ü'; printf deep >tree/sub/deep/file; chmod 600 tree/sub/deep/file
    touch -d '2001-02-03 04:05:06.789' tree/one tree/large tree/sub/deep tree/sub; chmod 555 tree/closed
";

/// Returns the attributes and contents that a copy keeps of a tree, in a form that can be compared.
fn described(home: &Guests, tree: &str) -> String {
    home.shell(&format!(
        "cd {tree} && find . -type l -printf '%p %y %l\\n' -o -printf '%p %y %m %n %T@ %s\\n' | sed 's/ d \\(.*\\) .*/ d \\1/' | sort
         find . -type f -exec sha256sum {{}} + | sort"
    ))
    .done()
}

#[test]
fn a_tree_goes_in_and_comes_out_as_it_was() {
    let home = Guests::one();
    home.shell(MAKE_TREE).done();
    home.run(["cp", "tree", "x:/root"]).is(0, "", "");
    home.run(["cp", "x:/root/tree", "back"]).is(0, "", "");
    let described_once = described(&home, "tree");
    assert!(described_once.contains("./sub/two f 644 2 981173106.7890"));
    assert_eq!(described_once, described(&home, "back"));
    let blocks = fs::metadata(home.directory.join("back/sparse")).unwrap().blocks();
    assert!(blocks < 100, "{blocks} blocks");
    let owners =
        in_guest(&home, "cd /root/tree; stat -c '%u %g' . one link; du -k sparse | cut -f 1");
    assert_eq!(owners, "0 0\n0 0\n0 0\n4\n");
    // Once more, over what is there. Directories that are there stay as they are, but for what
    // happens in them.
    home.run(["cp", "tree/.", "x:/root/tree"]).is(0, "", "");
    home.run(["copy", "x:/root/tree/.", "back"]).is(0, "", "");
    let files = |tree: &str| -> Vec<String> {
        let described = described(&home, tree);
        let files = described.lines().filter(|line| !line.contains(" d "));
        files.map(str::to_owned).collect()
    };
    assert_eq!(files("tree"), files("back"));
}

#[test]
fn where_a_copy_goes_is_decided_as_by_cp() {
    let home = Guests::one();
    home.shell("mkdir d; echo f >f; echo g >d/g").done();
    in_guest(&home, "mkdir /root/there; echo old >/root/file");
    for (source, destination, found) in [
        ("f", "x:/root/new", "/root/new"),
        ("f", "x:/root/there", "/root/there/f"),
        ("f", "x:/root/there/", "/root/there/f"),
        ("f", "x:/root/file", "/root/file"),
    ] {
        home.run(["cp", source, destination]).is(0, "", "");
        assert_eq!(in_guest(&home, &format!("cat {found}")), "f\n", "{destination}");
    }
    for (source, destination, found) in [
        ("d", "x:/root/d1", "/root/d1/g"),
        ("d", "x:/root/there", "/root/there/d/g"),
        ("d/.", "x:/root/there", "/root/there/g"),
        ("d/", "x:/root/d1", "/root/d1/d/g"),
        ("d/.", "x:/root/d2", "/root/d2/g"),
    ] {
        home.run(["cp", source, destination]).is(0, "", "");
        assert_eq!(in_guest(&home, &format!("cat {found}")), "g\n", "{destination}");
    }
    home.run(["cp", "x:/root/there/d/g", "."]).is(0, "", "");
    home.run(["cp", "x:/root/there/.", "out"]).is(0, "", "");
    assert_eq!(home.shell("cat g; cd out; echo *").done(), "g\nd f g\n");

    let guest = "msb cp: error: in the guest: cannot";
    for (source, destination, error) in [
        ("f", "x:/none/f", format!("{guest} write to '/none/f': no such file or directory")),
        (
            "f",
            "x:/root/none/",
            format!("{guest} write to '/root/none/': no such file or directory"),
        ),
        (
            "d",
            "x:/root/file",
            format!("{guest} create the directory '/root/file': it exists and is not a directory"),
        ),
        (
            "x:/none",
            ".",
            "msb cp: error: cannot read '/none': no such file or directory".to_owned(),
        ),
        ("none", "x:/", "msb cp: error: cannot read 'none': no such file or directory".to_owned()),
        (
            "x:/root/file",
            "none/f",
            "msb cp: error: cannot write to 'none/f': no such file or directory".to_owned(),
        ),
    ] {
        home.run(["cp", source, destination]).is(1, "", &format!("{error}\n"));
    }
}

#[test]
fn archives_go_through_the_standard_streams() {
    let home = Guests::one();
    home.shell(MAKE_TREE).done();
    home.shell("tar c tree | msb cp - x:/root && msb cp x:/root/tree - >out.tar && mkdir out && tar x -C out -f out.tar").is(0, "", "");
    // The time of an archive's entry is in whole seconds.
    home.shell("find tree -exec touch -h -d '2001-02-03 04:05:06' {} +; find out -exec touch -h -d '2001-02-03 04:05:06' {} +").done();
    assert_eq!(described(&home, "tree"), described(&home, "out/tree"));
    assert_eq!(home.shell("msb cp x:/etc/passwd - | tar t").done(), "passwd\n");
    assert_eq!(home.shell("msb cp x:/etc/. - | tar t | head -1").done(), "./\n");
    home.shell("tar cP /etc/hostname ../$(basename $PWD)/tree/one 2>/dev/null | msb cp - x:/tmp")
        .is(1, "", &format!(
            "msb cp: error: archive entry '../{}/tree/one' has a path outside the destination\nmsb cp: error: not everything was copied\n",
            home.directory.file_name().unwrap().to_str().unwrap()
        ));
    assert_eq!(in_guest(&home, "ls /tmp/etc"), "hostname\n");
    let none = "in the guest: cannot write to '/none': no such file or directory";
    home.shell("tar c tree | msb cp - x:/none").is(1, "", &format!("msb cp: error: {none}\n"));
}

#[test]
fn files_go_from_one_sandbox_to_another() {
    let home = Guests::one();
    home.run(["run", "-d", "--name", "y", "busybox:test"]).done();
    home.shell(MAKE_TREE).done();
    home.run(["cp", "tree", "x:/a"]).is(0, "", "");
    home.run(["cp", "x:/a", "y:/b"]).is(0, "", "");
    home.run(["cp", "y:/b", "back"]).is(0, "", "");
    assert_eq!(described(&home, "tree"), described(&home, "back"));
    home.run(["cp", "x:/none", "y:/b"]).is(
        1,
        "",
        "msb cp: error: in the guest: cannot read '/none': no such file or directory\n",
    );
}

#[test]
fn owners_and_special_bits_are_kept_when_asked_for() {
    let home = Guests::one();
    in_guest(&home, "cd /root; echo x >f; chown 1000:10 f; chmod 4755 f; mkdir d; chmod 1777 d");
    home.run(["run", "-d", "--name", "y", "busybox:test"]).done();
    let seen = |path: &str| {
        let path = format!("cd {path}; stat -c '%u:%g %a' f d");
        home.run(["exec", "y", "--", "sh", "-c", &path]).done()
    };
    home.run(["cp", "x:/root", "y:/plain"]).is(0, "", "");
    assert_eq!(seen("/plain"), "0:0 755\n0:0 777\n");
    home.run(["cp", "-a", "x:/root", "y:/same"]).is(0, "", "");
    assert_eq!(seen("/same"), "1000:10 4755\n0:0 1777\n");
    home.run(["cp", "--user", "alice", "x:/etc/passwd", "y:/home/alice"]).is(0, "", "");
    let owner = home.run(["exec", "y", "--", "stat", "-c", "%U %G", "/home/alice/passwd"]);
    owner.is(0, "alice alice\n", "");
    // A guest's program does not become one that runs as us.
    home.run(["cp", "x:/root/f", "."]).is(0, "", "");
    assert_eq!(fs::metadata(home.directory.join("f")).unwrap().mode() & 0o7777, 0o755);
    home.run(["cp", "-u", "alice", "x:/root", "none"]).is(
        1,
        "",
        "msb cp: error: cannot read '/root': permission denied\n",
    );
}

#[test]
fn a_guest_plants_no_program_that_runs_as_the_caller() {
    let home = Guests::one();
    let own = home.shell("echo $(id -u):$(id -g)").done();
    let script = format!(
        "mkdir /root/d; cd /root/d; cp /bin/busybox theirs; cp theirs ours; chown {} ours; \
         chmod 6777 theirs ours; chmod 1777 .",
        own.trim()
    );
    in_guest(&home, &script);
    let seen = |path: &str| {
        let modes = "stat -c '%a %n' . theirs ours";
        home.shell(&format!("cd {path} && {modes}")).done()
    };
    // An owner that the guest has chosen to be the caller is set by nobody.
    let copied = home.run(["cp", "--archive", "x:/root/d", "archive"]);
    if own.starts_with("0:") {
        let warning = "2 files run as their owner or group";
        assert!(String::from_utf8_lossy(&copied.stderr).contains(warning), "{copied:?}");
        assert_eq!(seen("archive"), "1777 .\n6777 theirs\n6777 ours\n");
    } else {
        copied.is(0, "", "");
        assert_eq!(seen("archive"), "1777 .\n777 theirs\n777 ours\n");
    }
    home.shell("umask 027; msb cp x:/root/d plain").is(0, "", "");
    assert_eq!(seen("plain"), "750 .\n750 theirs\n750 ours\n");
    let listed = |options: &str| {
        let tar = format!("msb cp {options} x:/root/d - | tar tv | cut -c 1-10 | sort -u");
        home.shell(&tar).done()
    };
    assert_eq!(listed(""), "-rwxrwxrwx\ndrwxrwxrwx\n");
    assert_eq!(listed("-a"), "-rwsrwsrwx\ndrwxrwxrwt\n");
}

#[test]
fn what_is_neither_file_nor_directory_nor_link_is_left_out() {
    let home = Guests::one();
    in_guest(&home, "mkdir /root/d; cd /root/d; mkfifo fifo; mknod null c 1 3; echo x >f");
    let warnings = "msb cp: warning: skipped: '/root/d/fifo' is a fifo\nmsb cp: warning: skipped: '/root/d/null' is a device\n";
    home.run(["cp", "x:/root/d", "d"]).is(0, "", warnings);
    home.run(["cp", "--quiet", "x:/root/d", "e"]).is(0, "", "");
    assert_eq!(home.shell("cd d; echo *").done(), "f\n");
    home.run(["cp", "x:/root/d/fifo", "."]).is(
        1,
        "",
        "msb cp: error: '/root/d/fifo' is a fifo, which cannot be copied\n",
    );
    assert_eq!(
        home.shell("msb cp x:/proc/version - | tar xO | cut -c 1-14").done(),
        "Linux version \n"
    );
}

/// The hole of microsandbox 0.5.5, GHSA-4vq3-cjpp-v7fg: a guest's links led the copy to any file of
/// the user.
#[test]
fn links_of_a_guest_lead_nowhere() {
    let home = Guests::one();
    let canary = home.directory.join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("bird"), "sings").unwrap();
    let path = canary.display();
    in_guest(
        &home,
        &format!("mkdir -p /out; cd /out; ln -s {path} directory; ln -s {path}/bird file"),
    );
    home.run(["cp", "x:/out", "out"]).is(0, "", "");
    in_guest(
        &home,
        "cd /out; rm directory file; mkdir directory; echo dead >directory/bird; echo dead >file",
    );
    let outcome = home.run(["cp", "x:/out/.", "out"]);
    outcome.is(
        1,
        "",
        "msb cp: error: cannot create the directory 'out/directory': it exists and is not a directory\n\
         msb cp: error: not everything was copied\n",
    );
    assert_eq!(fs::read_to_string(canary.join("bird")).unwrap(), "sings");
    assert!(fs::symlink_metadata(home.directory.join("out/file")).unwrap().is_file());
    // The same in the guest, whose own user may have laid the links.
    in_guest(&home, "mkdir -p /in; ln -s /etc /in/sub; ln -s /etc/passwd /in/file");
    home.shell("mkdir -p src/sub; echo dead | tee src/sub/passwd >src/file").done();
    assert_eq!(home.run(["cp", "src/.", "x:/in"]).code, 1);
    assert_eq!(in_guest(&home, "grep -c dead /etc/passwd; cat /in/file; true"), "0\ndead\n");
}

#[test]
fn directories_that_become_links_during_a_copy_lead_nowhere() {
    let home = Guests::one();
    home.shell("for i in $(seq 40); do mkdir -p src/$i; for j in 1 2 3 4 5; do echo dead >src/$i/passwd$j; done; done").done();
    in_guest(&home, "mkdir /in /in/real; for i in $(seq 40); do mkdir /in/$i; done");
    let mut swapper = home.start(["exec", "x", "--", "sh", "-c",
        "echo go; cd /in; while :; do for i in $(seq 40); do mv $i real/$i; ln -s /etc $i; rm $i; mv real/$i $i; done; done"]);
    swapper.read_until("go\n");
    for _ in 0..3 {
        // Directories that are away are made, or refused: whatever comes of it, it is not in /etc.
        let outcome = home.run(["cp", "src/.", "x:/in"]);
        let error = String::from_utf8_lossy(&outcome.stderr).into_owned();
        match outcome.code {
            0 => assert_eq!(error, ""),
            1 => assert!(error.ends_with("msb cp: error: not everything was copied\n"), "{error}"),
            other => panic!("{other}: {error}"),
        }
    }
    drop(swapper);
    wait_until("the swapper is gone", || {
        in_guest(&home, "ps | grep -c '[e]cho go' || true") == "0\n"
    });
    // Where nobody swaps, all of it arrives.
    in_guest(&home, "rm -rf /in; mkdir /in");
    home.run(["cp", "src/.", "x:/in"]).is(0, "", "");
    assert_eq!(in_guest(&home, "cat /in/*/passwd* | grep -c dead"), "200\n");
    assert_eq!(in_guest(&home, "cd /etc; echo passwd*"), "passwd\n");
}

#[test]
fn a_copy_whose_client_dies_leaves_no_half_file_and_no_process() {
    let home = Guests::one();
    let mut copy = home.start(["cp", "-", "x:/root"]);
    home.shell("truncate -s 3000000 big; tar cf big.tar big").done();
    let archive = fs::read(home.directory.join("big.tar")).unwrap();
    std::io::Write::write_all(copy.stdin.as_mut().unwrap(), &archive[..2_000_000]).unwrap();
    wait_until("the file is being written", || in_guest(&home, "ls -A /root").contains(".msb-cp"));
    assert!(in_guest(&home, "ps").contains("msb-agent files"));
    drop(copy);
    wait_until("the process is gone", || !in_guest(&home, "ps").contains("msb-agent files"));
    assert_eq!(in_guest(&home, "ls -A /root"), "");
}

#[test]
fn a_full_disk_ends_the_copy_and_says_so() {
    let home = Guests::one();
    in_guest(&home, "dd if=/dev/zero of=/root/zeros bs=1M count=8");
    let full = crate::support::ground("full");
    let outcome = home.run(["cp", "x:/root/zeros", full.to_str().unwrap()]);
    let path = full.join("zeros");
    outcome.is(
        1,
        "",
        &format!("msb cp: error: cannot write '{}': no space left on device\n", path.display()),
    );
    assert!(!path.exists());
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let home = Home::with_busybox();
    let hint =
        "msb cp: hint: give a path in a sandbox as NAME:/PATH, for example worker:/etc/hosts\n";
    home.run(["cp", "a", "b"]).is(
        2,
        "",
        &format!("msb cp: error: neither end of the copy is in a sandbox\n{hint}"),
    );
    home.run(["cp", "x:etc", "."]).is(2, "", "msb cp: error: the path 'etc' in 'x' is not absolute\nmsb cp: hint: use x:/etc, or ./x:etc for a file of the host\n");
    home.run(["cp", "x:/etc", "."]).is(
        3,
        "",
        "msb cp: error: there is no sandbox 'x'\nmsb cp: hint: `msb ls` lists them\n",
    );
    home.run(["run", "--name", "x", "busybox:test", "--", "true"]).done();
    assert_eq!(home.run(["cp", "x:/etc", "."]).code, 4);
}
