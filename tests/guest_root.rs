//! What a guest's root is made of: how large, where it is written to, and what becomes of it.

use std::fs;
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

/// Bytes of a disk as a qcow2 of version 2 (qemu: docs/interop/qcow2.txt), every cluster of 64 KiB there.
fn qcow2(disk: &[u8]) -> Vec<u8> {
    const CLUSTER: usize = 1 << 16;
    const COPIED: u64 = 1 << 63;
    let clusters = disk.len().div_ceil(CLUSTER);
    // Header, table and block of reference counts, and the two tables of clusters; then the content.
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
    home.run([
        "create",
        "--name",
        "x",
        "--oci-upper-size",
        "64M",
        "busybox:test",
    ])
    .done();
    assert!(
        (40..=64).contains(&size(&home, "x")),
        "{}",
        size(&home, "x")
    );
    home.run(["exec", "x", "--", "sh", "-c", "echo kept >/root/note"])
        .done();
    home.run(["modify", "x", "--oci-upper-size", "200M"]).is(
        0,
        "upper_mib: 64 -> 200\n",
        "it runs: the changes count when it is started again (msb restart x)\n",
    );
    assert!(size(&home, "x") <= 64);
    home.run(["restart", "x"]).done();
    let grown = size(&home, "x");
    assert!((150..=200).contains(&grown), "{grown}");
    home.run(["exec", "x", "--", "cat", "/root/note"])
        .is(0, "kept\n", "");
    let error = error_of(&home, &["modify", "x", "--oci-upper-size", "100M"], 2);
    assert!(
        error.contains("the disk has 200 MiB, and cannot shrink"),
        "{error}"
    );
    home.run(["stop", "x"]).done();
    let length = fs::metadata(home.state().join("sandboxes/x/upper.img"))
        .unwrap()
        .len();
    assert_eq!(length, 200 << 20);
}

#[test]
fn a_root_in_memory_takes_what_it_was_given_and_forgets_it() {
    let home = Home::with_busybox();
    home.run([
        "create",
        "--name",
        "x",
        "--root-disk",
        "tmpfs:16M",
        "busybox:test",
    ])
    .done();
    assert!(!home.state().join("sandboxes/x/upper.img").exists());
    let fill = "echo forgotten >/root/note; chown 1000 /root/note; dd if=/dev/zero of=/big bs=1M count=20 2>&1 | grep -o 'No space left.*'; rm /big";
    home.run(["exec", "x", "--", "sh", "-c", fill])
        .is(0, "No space left on device\n", "");
    home.run(["restart", "x"]).done();
    let error = error_of(&home, &["exec", "x", "--", "cat", "/root/note"], 1);
    assert!(error.contains("No such file"), "{error}");
    let error = error_of(&home, &["modify", "x", "--oci-upper-size", "1G"], 2);
    assert!(error.contains("no disk of its own"), "{error}");
    home.run(["stop", "x"]).done();
    let status = fs::read_to_string(home.state().join("sandboxes/x/status.json")).unwrap();
    assert!(status.contains("\"clean\":true"), "{status}");
}

#[test]
fn a_disk_of_the_user_keeps_what_was_written_when_the_sandbox_goes() {
    let home = Home::with_busybox();
    for format in ["raw", "qcow2"] {
        let raw = home.folder.join("disk.raw");
        let disk = home.folder.join(format!("disk.{format}"));
        let (raw, disk) = (raw.to_str().unwrap(), disk.to_str().unwrap());
        host("truncate", &["-s", "64M", raw]);
        host("/sbin/mke2fs", &["-q", "-F", "-t", "ext4", raw]);
        if format == "qcow2" {
            fs::write(disk, qcow2(&fs::read(raw).unwrap())).unwrap();
        }
        let root = format!("{disk}:{format}");
        let run = |script: &str| {
            home.run([
                "run",
                "--root-disk",
                &root,
                "busybox:test",
                "--",
                "sh",
                "-c",
                script,
            ])
        };
        run(&format!("echo {format} >/root/note; sync")).done();
        run("cat /root/note").is(0, &format!("{format}\n"), "");
    }
}

#[test]
fn a_disk_that_cannot_be_used_is_told_with_its_reason() {
    let home = Home::with_busybox();
    let path = |name: &str| home.folder.join(name).to_str().unwrap().to_owned();
    fs::write(path("text"), "no disk").unwrap();
    let mut over = qcow2(&vec![0; 1 << 20]);
    fs::write(path("base"), &over).unwrap();
    // The place of a backing file's name.
    over[15] = 104;
    fs::write(path("over"), &over).unwrap();
    for (disk, why) in [
        (format!("{}:raw", path("nowhere")), "cannot open the disk"),
        (format!("{}:raw", path("")), "cannot open the disk"),
        (format!("{}:qcow2", path("text")), "it is no qcow2"),
        (format!("{}:qcow2", path("over")), "it has a backing file"),
        (path("text"), "the format of the disk"),
        (
            format!("{}:raw", path("base")),
            "cannot mount the ext4 disk",
        ),
    ] {
        let error = error_of(
            &home,
            &["run", "--root-disk", &disk, "busybox:test", "--", "true"],
            125,
        );
        assert!(error.contains(why), "{disk}: {error}");
    }
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}
