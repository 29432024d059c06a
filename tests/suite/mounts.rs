//! Directories and files of the host, and memory, in a guest.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::{Home, Outcome, Running, stage, wait_until};

fn stderr(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stderr).into_owned()
}

/// A directory of the test with a file in it.
fn source(home: &Home) -> PathBuf {
    let directory = home.directory.join("src");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("f"), "from the host\n").unwrap();
    directory
}

/// Runs a script in a guest with mounts, `-v` each.
#[track_caller]
fn run(home: &Home, mounts: &[String], script: &str) -> Outcome {
    let mut args = vec!["run"];
    for mount in mounts {
        args.extend(["-v", mount.as_str()]);
    }
    args.extend(["busybox:test", "--", "sh", "-c", script]);
    home.run(args)
}

fn bind(from: &Path, to: &str) -> String {
    format!("{}:{to}", from.display())
}

/// The program of the tests in a guest, as a mount.
fn guest() -> String {
    bind(&stage("msb-test-guest"), "/guest:ro")
}

/// Error of the guest's program when it may not set a file's capabilities.
const REFUSED_GRANT: &str = "msb-test-guest: error: Operation not permitted (os error 1)\n";

fn has_capabilities(path: &Path) -> bool {
    let mut value = [0_u8; 64];
    match rustix::fs::getxattr(path, "security.capability", &mut value) {
        Ok(_) => true,
        Err(rustix::io::Errno::NODATA) => false,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

#[test]
fn a_directory_is_the_same_on_both_sides_and_what_root_makes_is_the_users() {
    let home = Home::with_busybox();
    let directory = source(&home);
    let script = "stat -c %u:%g /src/f; cat /src/f; echo new >/src/n; mkdir /src/d; ln -s n /src/l; mv /src/f /src/d/g";
    run(&home, &[bind(&directory, "/src")], script).is(0, "0:0\nfrom the host\n", "");
    assert_eq!(fs::read_to_string(directory.join("n")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(directory.join("d/g")).unwrap(), "from the host\n");
    assert_eq!(fs::read_link(directory.join("l")).unwrap(), Path::new("n"));
    let me = fs::metadata(&directory).unwrap().uid();
    for made in ["n", "d", "d/g"] {
        assert_eq!(fs::metadata(directory.join(made)).unwrap().uid(), me, "{made}");
    }
}

#[test]
fn a_user_of_the_guest_has_files_of_its_own_which_are_no_users_of_the_host() {
    let home = Home::with_busybox();
    let directory = source(&home);
    let script = "touch /src/theirs && chown 1000:1000 /src/theirs && stat -c %u:%g /src/theirs && su -s /bin/sh nobody -c 'echo x >/src/f' 2>&1";
    let outcome = run(&home, &[bind(&directory, "/src")], script);
    assert_eq!(
        String::from_utf8_lossy(&outcome.stdout).lines().next(),
        Some("1000:1000"),
        "{outcome:?}"
    );
    let theirs = fs::metadata(directory.join("theirs")).unwrap().uid();
    let me = fs::metadata(&directory).unwrap().uid();
    assert!(theirs >= 100_000 && theirs != me, "{theirs}");
    assert_eq!(fs::read_to_string(directory.join("f")).unwrap(), "from the host\n");
}

/// Root of a namespace stands for the host's: what it may map, and must have mapped by another
/// process, is the same.
#[test]
fn roots_directories_are_shared_with_every_user_as_itself() {
    let home = Home::with_busybox();
    let directory = source(&home);
    let mut command = home.program("unshare");
    command
        .args(["--map-root-user", "--map-auto", "--"])
        .arg(home.prefix.join("bin/msb"))
        .args(["run", "-v", &bind(&directory, "/src"), "-v", &guest()])
        .args(["busybox:test", "--"])
        .args(["sh", "-c"])
        .arg(
            "cat /src/f; /guest grant /src/f; \
             touch /src/n && chown 1000:1001 /src/n && stat -c %u:%g /src/n",
        );
    let outcome = Running::start(command).finish();
    outcome.is(0, "from the host\n1000:1001\n", REFUSED_GRANT);
    // For a true root they would be the host's.
    assert!(!has_capabilities(&directory.join("f")));
    let theirs = fs::metadata(directory.join("n")).unwrap();
    assert!(theirs.uid() >= 100_000 && theirs.gid() >= 100_000);
}

#[test]
fn a_single_file_is_mounted_alone() {
    let home = Home::with_busybox();
    let directory = source(&home);
    fs::write(directory.join("secret"), "no").unwrap();
    let mount = bind(&directory.join("f"), "/etc/deep/er/f:ro");
    run(&home, &[mount], "ls -A /etc/deep/er; cat /etc/deep/er/f").is(0, "f\nfrom the host\n", "");
}

#[test]
fn what_is_read_only_stays_so_whatever_the_guests_root_does() {
    let home = Home::with_busybox();
    let directory = source(&home);
    let script = "echo a >/src/f; mount -o remount,rw /src && echo b >/src/f; \
        mkdir /x; mount -t virtiofs msb-mounts /x && { echo mounted again; echo c >/x/0/f; rm /x/0/f; chmod 777 /x/0; }; cat /src/f";
    let outcome = run(&home, &[bind(&directory, "/src:ro")], script);
    assert_eq!(outcome.stdout, b"mounted again\nfrom the host\n", "{outcome:?}");
    assert_eq!(fs::read_to_string(directory.join("f")).unwrap(), "from the host\n");
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn parents_are_mounted_before_children_whatever_their_order() {
    let home = Home::with_busybox();
    let directory = source(&home);
    fs::create_dir(directory.join("inner")).unwrap();
    let other = home.directory.join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("o"), "o").unwrap();
    let outcome = home.run([
        "run",
        "-v",
        &bind(&other, "/a/inner"),
        "-v",
        &bind(&directory, "/a"),
        "--tmpfs",
        "/a/inner/t:1M",
        "busybox:test",
        "--",
        "sh",
        "-c",
        "ls /a /a/inner; stat -f -c %T /a/inner/t",
    ]);
    outcome.is(0, "/a:\nf\ninner\n\n/a/inner:\no\nt\ntmpfs\n", "");
}

/// One guest has them all: what an engine cannot do shows here.
#[test]
fn every_kind_of_mount_is_there_in_one_guest() {
    let home = Home::with_busybox();
    let directory = source(&home);
    for name in ["image", "disk"] {
        home.run(["volume", "create", name, "--size", "24M"]).done();
    }
    let image = home.directory.join("image.img");
    fs::rename(home.state().join("volumes/image/disk.img"), &image).unwrap();
    let script = "for d in /hosted /volume /disk /image /memory; do echo $d >$d/made; cat $d/made; done; \
        cat /fixed/f /one; for f in /fixed/f /one; do echo x >$f || echo refused; done; \
        grep -E ' /(hosted|fixed|one|volume|disk|image|memory) ' /proc/mounts | cut -d' ' -f2,3 | sort";
    let outcome = home.run([
        "run",
        "-v",
        &bind(&directory, "/hosted"),
        "-v",
        &bind(&directory, "/fixed:ro"),
        "-v",
        &bind(&directory.join("f"), "/one:ro"),
        "-v",
        "data:/volume",
        "-v",
        "disk:/disk",
        "--mount-disk",
        &format!("{}:/image:format=raw", image.display()),
        "--tmpfs",
        "/memory:1M",
        "busybox:test",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let written = "/hosted\n/volume\n/disk\n/image\n/memory\n";
    let refused = "refused\nrefused\n";
    let kinds = "/disk ext4\n/fixed virtiofs\n/hosted virtiofs\n/image ext4\n/memory tmpfs\n/one virtiofs\n/volume virtiofs\n";
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let expected = format!("{written}from the host\nfrom the host\n{refused}{kinds}");
    assert_eq!(said, expected, "{outcome:?}");
    assert_eq!(fs::read_to_string(directory.join("made")).unwrap(), "/hosted\n");
    assert_eq!(fs::read_to_string(directory.join("f")).unwrap(), "from the host\n");
}

#[test]
fn options_hold_in_the_guest_and_are_shown_by_inspect() {
    let home = Home::with_busybox();
    let directory = source(&home);
    fs::write(directory.join("p"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(directory.join("p"), fs::Permissions::from_mode(0o755)).unwrap();
    let mount = bind(&directory, "/src:ro,noexec,nosuid,nodev");
    home.run(["create", "--name", "x", "-v", &mount, "--tmpfs", "/t:2M:noexec", "busybox:test"])
        .done();
    let script = "/src/p; grep -E ' (/src|/t) ' /proc/mounts | cut -d' ' -f2-4";
    let outcome = home.run(["exec", "x", "--", "sh", "-c", script]);
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(said.contains("/src virtiofs ro,nosuid,nodev,noexec,relatime"), "{said}");
    assert!(said.contains("/t tmpfs rw,noexec,relatime,size=2048k"), "{said}");
    assert!(stderr(&outcome).contains("Permission denied"), "{outcome:?}");
    let inspected = home.run(["inspect", "x"]).done();
    let wanted = format!("bind {} at /src (ro,noexec,nosuid,nodev)", directory.display());
    assert!(inspected.contains(&wanted), "{inspected}");
    assert!(inspected.contains("tmpfs 2.0 MiB at /t (rw,noexec)"), "{inspected}");
    home.run(["rm", "-f", "x"]).done();
}

#[test]
fn memory_is_bounded() {
    let home = Home::with_busybox();
    let outcome = home.run([
        "run", "--tmpfs", "/t:1M", "busybox:test", "--", "sh", "-c",
        "dd if=/dev/zero of=/t/x bs=64k count=64 2>&1 | grep -c 'No space'; stat -c %s /t/x; stat -c %a /t",
    ]);
    outcome.is(0, "1\n1048576\n1777\n", "");
}

#[test]
fn a_source_that_is_not_there_or_vanished_is_told_before_anything_starts() {
    let home = Home::with_busybox();
    let directory = source(&home);
    let gone = home.directory.join("none");
    let outcome = run(&home, &[bind(&gone, "/x")], "true");
    outcome.is(
        125,
        "",
        &format!("msb run: error: cannot find '{}': no such file or directory\n", gone.display()),
    );
    home.run([
        "create",
        "--no-start",
        "--name",
        "x",
        "-v",
        &bind(&directory, "/x"),
        "busybox:test",
    ])
    .done();
    fs::rename(&directory, home.directory.join("moved")).unwrap();
    let outcome = home.run(["start", "x"]);
    outcome.is(
        1,
        "",
        &format!(
            "msb start: error: cannot mount '{}' at '/x': it no longer exists\n\
             msb start: hint: restore it, or create the sandbox again with another mount\n",
            directory.display()
        ),
    );
    // A symbolic link in its place leads nowhere.
    symlink(home.directory.join("moved"), &directory).unwrap();
    let outcome = home.run(["start", "x"]);
    assert!(stderr(&outcome).contains("the path now contains a symbolic link"), "{outcome:?}");
    assert!(home.leftovers().is_empty());
}

#[test]
fn the_old_word_for_read_only_in_a_specification_is_read() {
    let home = Home::with_busybox();
    let directory = source(&home);
    home.run([
        "create",
        "--no-start",
        "--name",
        "x",
        "-v",
        &bind(&directory, "/x:ro"),
        "busybox:test",
    ])
    .done();
    let path = home.state().join("sandboxes/x/spec.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"read_only\":true"), "{text}");
    fs::write(&path, text.replace("\"read_only\":true", "\"readonly\":true")).unwrap();
    home.run(["start", "x"]).done();
    let outcome = home.run(["exec", "x", "--", "sh", "-c", "echo a >/x/f; cat /x/f"]);
    assert_eq!(outcome.stdout, b"from the host\n", "{outcome:?}");
    home.run(["rm", "-f", "x"]).done();
}

#[test]
fn a_mount_that_cannot_be_is_refused_with_its_reason() {
    let home = Home::with_busybox();
    let directory = source(&home);
    let cases = [
        ("/", "it is the root directory"),
        ("/proc/x", "reserved for a file system of the guest's kernel"),
        ("relative", "not an absolute path"),
        ("/a/../b", "the path contains '..'"),
        ("/x:suid", "unknown mount option 'suid'"),
        ("/x:stat-virt=off", "unknown mount option 'stat-virt=off'"),
        ("/x:ro,ro", "'ro' is given twice"),
        ("/x,ro", "the target contains ','"),
    ];
    for (rest, why) in cases {
        let outcome = run(&home, &[bind(&directory, rest)], "true");
        assert_eq!(outcome.code, 125);
        assert!(stderr(&outcome).contains(why), "{rest}: {outcome:?}");
    }
    let twice = [bind(&directory, "/x"), bind(&directory, "/x/")];
    let outcome = run(&home, &twice, "true");
    assert!(stderr(&outcome).contains("duplicate mount target '/x'"), "{outcome:?}");
    assert!(home.sandboxes().is_empty());
}

#[test]
fn a_kind_that_is_said_must_be_that() {
    let home = Home::with_busybox();
    let directory = source(&home);
    let refused = |option: &str, mount: String| {
        let outcome = home.run(["run", option, &mount, "busybox:test", "--", "true"]);
        assert_eq!(outcome.code, 125);
        stderr(&outcome)
    };
    assert!(refused("--mount-file", bind(&directory, "/x")).contains("is a directory"));
    assert!(
        refused("--mount-dir", bind(&directory.join("f"), "/x")).contains("is not a directory")
    );
    assert!(refused("--mount-named", "none:/x".to_owned()).contains("there is no volume 'none'"));
    let outcome = home.run([
        "run",
        "--mount-dir",
        "src:/d",
        "--mount-file",
        "src/f:/f",
        "busybox:test",
        "--",
        "cat",
        "/d/f",
        "/f",
    ]);
    outcome.is(0, "from the host\nfrom the host\n", "");
}

/// Programs of the user on the host must not come out of a guest.
#[test]
fn a_guests_root_makes_neither_setuid_files_nor_devices_on_the_host() {
    let home = Home::with_busybox();
    let directory = source(&home);
    // It can where the file system is its own; in the shared directory nobody can.
    let script = "cp /bin/busybox /src/b; chmod 4755 /src/b; chmod 2755 /src/b; chmod 6755 /src/f; \
        mknod /src/null c 1 3; mknod /src/disk b 8 0; mkfifo /src/p; \
        cp /bin/busybox /b; /guest grant /b && echo granted; /guest grant /src/b; /guest grant /src; echo done";
    let outcome = run(&home, &[bind(&directory, "/src"), guest()], script);
    assert_eq!(outcome.stdout, b"granted\ndone\n", "{outcome:?}");
    assert_eq!(stderr(&outcome).matches(REFUSED_GRANT).count(), 2, "{outcome:?}");
    assert!(!has_capabilities(&directory.join("b")) && !has_capabilities(&directory));
    let mode =
        |name: &str| fs::symlink_metadata(directory.join(name)).unwrap().permissions().mode();
    assert_eq!(mode("b") & 0o6000, 0);
    assert_eq!(mode("f") & 0o6000, 0);
    assert!(!directory.join("null").exists() && !directory.join("disk").exists());
    assert_eq!(mode("p") & 0o170000, 0o010000);
}

/// The guest's links are resolved by the guest.
#[test]
fn a_link_in_a_shared_directory_leads_nowhere_on_the_host() {
    let home = Home::with_busybox();
    let directory = source(&home);
    let canary = home.directory.join("canary");
    fs::write(&canary, "untouched").unwrap();
    symlink(&canary, directory.join("out")).unwrap();
    symlink("../canary", directory.join("up")).unwrap();
    symlink("/", directory.join("root")).unwrap();
    let script = "for l in out up; do cat /src/$l; echo x >/src/$l; chmod 777 /src/$l; done; \
        ls /src/root | grep -c canary; cat /src/root/../src/../canary; echo end";
    let outcome = run(&home, &[bind(&directory, "/src")], script);
    // The root that the links lead to is the guest's, where one of them has made a canary of the
    // guest's own.
    assert_eq!(outcome.stdout, b"1\nx\nend\n", "{outcome:?}");
    assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched");
    assert_eq!(fs::metadata(&canary).unwrap().permissions().mode() & 0o777, 0o644);
}

/// A target whose way leads through links of the image is where these lead in the guest, and
/// nowhere else.
#[test]
fn a_target_behind_a_link_of_the_image_is_mounted_where_the_guest_finds_it() {
    let home = Home::with_busybox();
    let directory = source(&home);
    let canary = home.directory.join("canary");
    fs::write(&canary, "untouched").unwrap();
    let tree = home.directory.join("tree");
    fs::create_dir_all(tree.join("bin")).unwrap();
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    for applet in ["cat", "cut", "grep", "ls", "sh", "sort"] {
        symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    fs::create_dir_all(tree.join("real/inner")).unwrap();
    symlink("/real", tree.join("absolute")).unwrap();
    symlink("../../../real/inner", tree.join("up")).unwrap();
    symlink(&home.directory, tree.join("host")).unwrap();
    home.shell("tar -C tree -cf tree.tar . && msb image import -q -i tree.tar links:test").done();
    let run = |targets: &[&str]| {
        let script =
            "cat /real/a/f /real/inner/f; grep virtiofs /proc/mounts | cut -d' ' -f2 | sort";
        let mut args = vec!["run".to_owned()];
        for target in targets {
            args.extend(["-v".to_owned(), bind(&directory, target)]);
        }
        args.extend(["links:test", "--", "sh", "-c", script].map(str::to_owned));
        home.run(args)
    };
    let said = "from the host\nfrom the host\n/real/a\n/real/inner\n";
    run(&["/absolute/a", "/up"]).is(0, said, "");
    // What is there on the host is not there in the guest.
    let outcome = run(&["/host/made"]);
    assert_eq!(outcome.code, 125);
    let why = "cannot mount '/host/made': cannot create '/host/made'";
    assert!(stderr(&outcome).contains(why), "{outcome:?}");
    assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched");
    assert!(!home.directory.join("made").exists());
}

/// A directory that leaves the share while the guest is in it takes the guest nowhere.
#[test]
fn a_directory_that_is_moved_out_of_the_share_shows_nothing_above_it() {
    let home = Home::with_busybox();
    let directory = source(&home);
    fs::create_dir_all(directory.join("a/b")).unwrap();
    fs::create_dir(home.directory.join("outside")).unwrap();
    fs::write(home.directory.join("outside/canary"), "untouched").unwrap();
    home.run(["create", "--name", "x", "-v", &bind(&directory, "/src"), "busybox:test"]).done();
    let script = "cd /src/a/b && echo in && read go; ls -a .. ../..; cat ../canary; cat ../../outside/canary; \
        echo x >../canary; echo end";
    let mut inside = home.start(["exec", "x", "--", "sh", "-c", script]);
    inside.read_until("in\n");
    fs::rename(directory.join("a/b"), home.directory.join("outside/b")).unwrap();
    inside.write("go\n");
    let said = inside.read_until("end\n");
    assert!(!said.contains("untouched") && !said.contains("canary"), "{said}");
    assert_eq!(fs::read_to_string(home.directory.join("outside/canary")).unwrap(), "untouched");
    drop(inside);
    home.run(["rm", "-f", "x"]).done();
}

/// Pids of the processes that serve shares for this test's user.
fn servers() -> Vec<i32> {
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("msb-vmm\0--share\0")
    })
    .collect()
}

/// The server of the sandbox whose supervisor says that it is its child.
fn server_of(supervisor: i32) -> Option<i32> {
    servers().into_iter().find(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        parent == Some(supervisor)
    })
}

fn supervisor(home: &Home) -> i32 {
    let found = home.processes();
    found.iter().find(|process| process.name == "msb-supervisor").unwrap().pid
}

#[test]
fn a_sandbox_whose_share_is_lost_ends_and_says_so() {
    let home = Home::with_busybox();
    let directory = source(&home);
    home.run(["create", "--name", "x", "-v", &bind(&directory, "/src"), "busybox:test"]).done();
    let server = server_of(supervisor(&home)).unwrap();
    let pid = rustix::process::Pid::from_raw(server).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait_until("the sandbox ends", || home.list()[0]["status"] == "Crashed");
    let row = &home.list()[0];
    assert_eq!(row["reason"], "share_failed", "{row}");
    assert_eq!(row["message"], "the share server failed: killed by signal 9", "{row}");
}

/// Returns the capabilities that the server still has, as the kernel reports them.
#[test]
fn the_server_of_a_share_has_given_up_its_rights_and_sees_no_other_files() {
    let home = Home::with_busybox();
    let directory = source(&home);
    home.run(["create", "--name", "x", "-v", &bind(&directory, "/src"), "busybox:test"]).done();
    let server = server_of(supervisor(&home)).unwrap();
    let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    // chown, dac_override, dac_read_search, fowner, fsetid, setgid, setuid.
    let kept = [0, 1, 2, 3, 4, 6, 7].iter().fold(0_u64, |set, bit| set | 1 << bit);
    for set in ["CapPrm:", "CapBnd:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16).unwrap(), kept, "{set}");
    }
    let mounts = fs::read_to_string(format!("/proc/{server}/mountinfo")).unwrap();
    let mut places: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    places.sort_unstable();
    assert_eq!(places, ["/", "/msb-share/0", "/proc/self/fd"]);
    let seen = |directory: &str| {
        let entries = fs::read_dir(format!("/proc/{server}/root/{directory}")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(seen(""), ["msb-share", "proc"]);
    assert_eq!(seen("proc"), ["self"]);
    assert_eq!(seen("proc/self"), ["fd", "mountinfo"]);
    let mountinfo = fs::read(format!("/proc/{server}/root/proc/self/mountinfo")).unwrap();
    assert_eq!(mountinfo, b"");
    let json = home.run(["inspect", "--format", "json", "x"]).done();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let steps = json["state"]["isolation"].as_array().unwrap().iter();
    let told: Vec<&str> = steps
        .filter(|step| step["process"] == "share" && step["holds"] == true)
        .filter_map(|step| step["step"].as_str())
        .collect();
    let expected = ["network", "paths", "privileges", "core", "capabilities", "setid", "calls"];
    assert_eq!(told, expected);
    let text = home.run(["inspect", "x"]).done();
    assert!(text.contains("share:setid"), "{text}");
    home.run(["rm", "-f", "x"]).done();
    wait_until("the server is gone", || !Path::new(&format!("/proc/{server}")).exists());
}

#[test]
fn modify_changes_what_is_mounted_at_the_next_start() {
    let home = Home::with_busybox();
    let directory = source(&home);
    let other = home.directory.join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("f"), "from another\n").unwrap();
    let (first, second) = (bind(&directory, "/a"), bind(&other, "/a"));
    home.run([
        "create",
        "--name",
        "x",
        "--no-start",
        "-v",
        &first,
        "--tmpfs",
        "/t",
        "busybox:test",
    ])
    .done();
    let plan = home.run(["modify", "x", "-v", "data:/b", "--dry-run"]).done();
    assert!(plan.starts_with("mounts: "), "{plan}");
    assert_eq!(home.snapshot("volumes"), Vec::<String>::new());
    home.run(["modify", "x", "-v", &second, "-v", "data:/b", "--mount-rm", "/t"]).done();
    home.run(["start", "x"]).is(0, "x\n", "");
    let script = "cat /a/f; grep -c ' /t ' /proc/mounts; echo kept >/b/f && cat /b/f";
    home.run(["exec", "x", "--", "sh", "-c", script]).is(0, "from another\n0\nkept\n", "");
    home.run(["rm", "-f", "x"]).done();
    home.run(["create", "--name", "y", "--no-start", "-v", "data:/b", "busybox:test"]).done();
    let refused = home.run(["modify", "y", "-v", "data:/c"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(stderr(&refused).contains("'data' is mounted twice"), "{refused:?}");
}
