//! The root of a guest: its size, its writable layer, and its lifetime.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use crate::support::Home;

/// Size of the guest's root in MiB, as it sees it.
fn size(home: &Home, name: &str) -> u64 {
    let output = home.run(["exec", name, "--", "df", "-m", "/"]).done();
    let line = output.lines().last().unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn error_of(home: &Home, args: &[&str], code: i32) -> String {
    let outcome = home.run(args);
    let error = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert_eq!(outcome.code, code, "{args:?}: {error}");
    error
}

/// Runs a program of the host.
fn host(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).output().unwrap();
    assert!(status.status.success(), "{program} {args:?}: {status:?}");
}

/// Bytes of a disk as a qcow2 of version 2 (qemu: docs/interop/qcow2.txt), every cluster of 64 KiB
/// there.
pub(crate) fn qcow2(disk: &[u8]) -> Vec<u8> {
    const CLUSTER: usize = 1 << 16;
    const COPIED: u64 = 1 << 63;
    let clusters = disk.len().div_ceil(CLUSTER);
    // Header, table and block of reference counts, and the two tables of clusters; then the
    // content.
    let [counts, block, level_1, level_2, content] = [1, 2, 3, 4, 5].map(|at| at * CLUSTER);
    let mut file = vec![0; content + clusters * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x02");
    put(20, &16_u32.to_be_bytes());
    put(24, &(disk.len() as u64).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(level_1 as u64).to_be_bytes());
    put(48, &(counts as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(counts, &(block as u64).to_be_bytes());
    for cluster in 0..5 + clusters {
        put(block + 2 * cluster, &1_u16.to_be_bytes());
    }
    put(level_1, &(level_2 as u64 | COPIED).to_be_bytes());
    for cluster in 0..clusters {
        let at = (content + cluster * CLUSTER) as u64;
        put(level_2 + 8 * cluster, &(at | COPIED).to_be_bytes());
    }
    put(content, disk);
    file
}

#[test]
fn a_root_has_the_size_that_was_asked_for_and_grows_with_its_next_start() {
    let home = Home::with_busybox();
    home.run(["create", "--name", "x", "--oci-upper-size", "64M", "busybox:test"]).done();
    assert!((40..=64).contains(&size(&home, "x")), "{}", size(&home, "x"));
    home.run(["exec", "x", "--", "sh", "-c", "echo kept >/root/note"]).done();
    home.run(["modify", "x", "--oci-upper-size", "200M"]).is(
        0,
        "upper_mib: 64 -> 200\n",
        "the sandbox is running: restart it to apply the changes (msb restart x)\n",
    );
    assert!(size(&home, "x") <= 64);
    home.run(["restart", "x"]).done();
    let grown = size(&home, "x");
    assert!((150..=200).contains(&grown), "{grown}");
    home.run(["exec", "x", "--", "cat", "/root/note"]).is(0, "kept\n", "");
    let error = error_of(&home, &["modify", "x", "--oci-upper-size", "100M"], 2);
    assert!(error.contains("cannot shrink the disk: it has 200 MiB"), "{error}");
    home.run(["stop", "x"]).done();
    let length = fs::metadata(home.state().join("sandboxes/x/upper.img")).unwrap().len();
    assert_eq!(length, 200 << 20);
}

#[test]
fn a_root_in_memory_takes_what_it_was_given_and_forgets_it() {
    let home = Home::with_busybox();
    home.run(["create", "--name", "x", "--root-disk", "tmpfs:16M", "busybox:test"]).done();
    assert!(!home.state().join("sandboxes/x/upper.img").exists());
    let fill = "echo forgotten >/root/note; chown 1000 /root/note; dd if=/dev/zero of=/big bs=1M count=20 2>&1 | grep -o 'No space left.*'; rm /big";
    home.run(["exec", "x", "--", "sh", "-c", fill]).is(0, "No space left on device\n", "");
    home.run(["restart", "x"]).done();
    let error = error_of(&home, &["exec", "x", "--", "cat", "/root/note"], 1);
    assert!(error.contains("No such file"), "{error}");
    let error = error_of(&home, &["modify", "x", "--oci-upper-size", "1G"], 2);
    assert!(error.contains("no managed disk"), "{error}");
    home.run(["stop", "x"]).done();
    let status = fs::read_to_string(home.state().join("sandboxes/x/status.json")).unwrap();
    assert!(status.contains("\"clean\":true"), "{status}");
}

#[test]
fn a_disk_of_the_user_keeps_what_was_written_when_the_sandbox_goes() {
    let home = Home::with_busybox();
    for format in ["raw", "qcow2"] {
        let raw = home.directory.join("disk.raw");
        let disk = home.directory.join(format!("disk.{format}"));
        let (raw, disk) = (raw.to_str().unwrap(), disk.to_str().unwrap());
        host("truncate", &["-s", "64M", raw]);
        host("/sbin/mke2fs", &["-q", "-F", "-t", "ext4", raw]);
        if format == "qcow2" {
            fs::write(disk, qcow2(&fs::read(raw).unwrap())).unwrap();
        }
        let root = format!("{disk}:{format}");
        let run = |script: &str| {
            home.run(["run", "--root-disk", &root, "busybox:test", "--", "sh", "-c", script])
        };
        run(&format!("echo {format} >/root/note; sync")).done();
        run("cat /root/note").is(0, &format!("{format}\n"), "");
    }
}

/// A path of the user at creation could lead to a file of another user when the sandbox is
/// started.
#[test]
fn a_disk_that_became_a_link_is_not_followed() {
    let home = Home::with_busybox();
    let [disk, link, moved] = ["disk.raw", "link", "moved"].map(|name| home.directory.join(name));
    host("truncate", &["-s", "64M", disk.to_str().unwrap()]);
    let mke2fs = ["-q", "-F", "-t", "ext4", disk.to_str().unwrap()];
    host("/sbin/mke2fs", &mke2fs);
    symlink(&disk, &link).unwrap();
    // One that is there before is resolved at once: where it leads later makes no difference.
    let typed = format!("{}:raw", link.display());
    home.run(["create", "--no-start", "--name", "x", "--root-disk", &typed, "busybox:test"]).done();
    fs::remove_file(&link).unwrap();
    symlink("nowhere", &link).unwrap();
    assert_eq!(inspected(&home, "x", "/config/guest/root_disk/path"), disk.to_str().unwrap());
    home.run(["start", "x"]).done();
    home.run(["stop", "x"]).done();
    fs::rename(&disk, &moved).unwrap();
    let error = error_of(&home, &["start", "x"], 1);
    assert!(error.contains("it no longer exists"), "{error}");
    symlink(&moved, &disk).unwrap();
    let error = error_of(&home, &["start", "x"], 1);
    assert!(error.contains("the path now contains a symbolic link"), "{error}");
    fs::remove_file(&disk).unwrap();
    // Nor is what is no file waited for.
    host("mkfifo", &[disk.to_str().unwrap()]);
    let error = error_of(&home, &["start", "x"], 1);
    assert!(error.contains("is not a regular file"), "{error}");
    fs::remove_file(&disk).unwrap();
    fs::rename(&moved, &disk).unwrap();
    home.run(["start", "x"]).done();
    home.run(["rm", "-f", "x"]).done();
}

#[test]
fn a_disk_that_cannot_be_used_is_told_with_its_reason() {
    let home = Home::with_busybox();
    let path = |name: &str| home.directory.join(name).to_str().unwrap().to_owned();
    fs::write(path("text"), "no disk").unwrap();
    let mut over = qcow2(&vec![0; 1 << 20]);
    fs::write(path("base"), &over).unwrap();
    // The place of a backing file's name.
    over[15] = 104;
    fs::write(path("over"), &over).unwrap();
    for (disk, why) in [
        (format!("{}:raw", path("nowhere")), "cannot open the disk"),
        (format!("{}:raw", path("")), "cannot open the disk"),
        (format!("{}:qcow2", path("text")), "not a qcow2 image"),
        (format!("{}:qcow2", path("over")), "it has a backing file"),
        (path("text"), "the format of the disk"),
        (format!("{}:raw", path("base")), "cannot mount the ext4 disk"),
    ] {
        let error =
            error_of(&home, &["run", "--root-disk", &disk, "busybox:test", "--", "true"], 125);
        assert!(error.contains(why), "{disk}: {error}");
    }
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

/// Makes a root file system of busybox in a directory of the test.
fn root_directory(home: &Home) -> PathBuf {
    let root = home.directory.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["cat", "ls", "mkdir", "mount", "rm", "sh", "stat", "sync"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("note"), "from the host\n").unwrap();
    root
}

/// Returns the value at a path of the keys of `inspect --format json`.
fn inspected(home: &Home, name: &str, pointer: &str) -> serde_json::Value {
    let text = home.run(["inspect", name, "--format", "json"]).done();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    all.pointer(pointer).cloned().unwrap_or_default()
}

#[test]
fn a_directory_of_the_host_is_a_root_that_is_changed_itself() {
    let home = Home::new();
    let root = root_directory(&home);
    let data = home.directory.join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("f"), "mounted\n").unwrap();
    fs::write(home.directory.join("canary"), "alive\n").unwrap();
    let text = root.to_str().unwrap();
    let mount = format!("{}:/data:ro", data.display());
    let copy = format!("{}:/copied", home.directory.join("canary").display());
    home.run(["create", "--name", "x", "-v", &mount, "--copy", &copy, text]).done();
    let script = "cat /note /data/f /copied; echo new >/made; mkdir /d; stat -c %u:%g /made; ls /..; \
        mkdir /x; mount -t virtiofs msb-mounts /x && echo mounted again; cat /x/../canary /x/0/../../canary; rm -r /x/1/* /x/../canary";
    let outcome = home.run(["exec", "x", "--", "sh", "-c", script]);
    let seen = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let (read, listed) = seen.split_once("0:0\n").unwrap();
    assert_eq!(read, "from the host\nmounted\nalive\n", "{outcome:?}");
    assert!(
        listed.contains("made\n")
            && listed.ends_with("mounted again\n")
            && !listed.contains("canary"),
        "{listed}"
    );
    assert!(!listed.contains("alive"), "{listed}");
    // What it wrote is there at once, is the user's, and outside of it nothing has changed.
    assert_eq!(fs::read_to_string(root.join("made")).unwrap(), "new\n");
    let (made, directory) = (fs::metadata(root.join("made")), fs::metadata(&home.directory));
    assert_eq!(made.unwrap().uid(), directory.unwrap().uid());
    for (path, content) in [("canary", "alive\n"), ("data/f", "mounted\n")] {
        assert_eq!(fs::read_to_string(home.directory.join(path)).unwrap(), content);
    }
    assert_eq!(home.list()[0]["image"], text);
    assert_eq!(inspected(&home, "x", "/config/root_folder/path"), text);
    home.run(["image", "prune", "--yes"]).done();
    home.run(["stop", "x"]).done();
    assert_eq!(inspected(&home, "x", "/state/clean"), true);
    assert!(!home.state().join("sandboxes/x/upper.img").exists());
    let error = error_of(&home, &["modify", "x", "--oci-upper-size", "1G"], 2);
    assert!(error.contains("no managed disk"), "{error}");

    // What was put in its place by somebody is not taken for it.
    let away = home.directory.join("away");
    fs::rename(&root, &away).unwrap();
    let error = error_of(&home, &["start", "x"], 1);
    assert!(error.contains("as the root file system: it no longer exists"), "{error}");
    symlink(&away, &root).unwrap();
    let error = error_of(&home, &["start", "x"], 1);
    assert!(error.contains("the path now contains a symbolic link"), "{error}");
    fs::remove_file(&root).unwrap();
    fs::rename(&away, &root).unwrap();
    home.run(["run", "--name", "x", text, "--", "cat", "/made"]).is(0, "new\n", "");
    home.run(["rm", "x"]).done();
    assert_eq!(fs::read_to_string(root.join("made")).unwrap(), "new\n");
}

#[test]
fn a_disk_image_is_a_root_that_is_changed_itself() {
    let home = Home::new();
    let root = root_directory(&home);
    let raw = home.directory.join("root.img");
    host("truncate", &["-s", "16M", raw.to_str().unwrap()]);
    let options = ["-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d"];
    let paths = [root.to_str().unwrap(), raw.to_str().unwrap()];
    host("/sbin/mke2fs", &[&options[..], &paths[..]].concat());
    let qcow = home.directory.join("root");
    fs::remove_dir_all(&root).unwrap();
    fs::write(&qcow, qcow2(&fs::read(&raw).unwrap())).unwrap();
    for typed in [format!("{}", raw.display()), format!("{}:qcow2,fstype=ext4", qcow.display())] {
        let run = |script| home.run(["run", &typed, "--", "sh", "-c", script]);
        run("cat /note; echo kept >/made").is(0, "from the host\n", "");
        run("cat /made").is(0, "kept\n", "");
    }
    // It is written to itself: in the file's bytes, not in a disk above it.
    let bytes = fs::read(&raw).unwrap();
    assert!(bytes.windows(5).any(|bytes| bytes == b"kept\n"));
    // Two guests would write over one another's blocks.
    let typed = raw.to_str().unwrap();
    home.run(["create", "--name", "x", typed]).done();
    let error = error_of(&home, &["run", typed, "--", "true"], 125);
    assert!(error.contains("in use by another sandbox"), "{error}");
    home.run(["rm", "-f", "x"]).done();
}

#[test]
fn a_root_that_cannot_be_is_refused_with_its_reason() {
    let home = Home::new();
    let root = root_directory(&home);
    let (root, file) = (root.to_str().unwrap(), home.directory.join("root/note"));
    let file = file.to_str().unwrap();
    let (as_disk, as_text) = (format!("{root}:raw"), format!("{file}:vmdk"));
    for (args, why) in [
        (&["/", "--", "sh"][..], "cannot use '/' of the host"),
        (&["./nowhere", "--", "sh"], "cannot find './nowhere'"),
        (&[file, "--", "sh"], "is not a directory"),
        (&[&as_disk, "--", "sh"], "is a directory, not a disk image"),
        (&[&as_text, "--", "sh"], "unknown disk format 'vmdk'"),
        (&["--root-disk", "tmpfs", root, "--", "sh"], "has no upper disk"),
        (&["--oci-upper-size", "1G", root, "--", "sh"], "has no upper disk"),
        (&["--pull", "always", root, "--", "sh"], "cannot pull"),
        (&[root], "has no default command"),
    ] {
        let error = error_of(&home, &[&["run"], args].concat(), 125);
        assert!(error.contains(why), "{args:?}: {error}");
    }
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}
