//! Snapshots: creating, listing, removing; sandboxes from them; archives.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::{Home, Outcome, full_disk, ground, stage, wait_until};

const BLOCK: usize = 4096;

fn stderr(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stderr).into_owned()
}

/// A sandbox that never ran, with these blocks written to its disk.
fn sandbox(home: &Home, name: &str, blocks: &[(u64, u8)]) {
    home.run(["create", "--no-start", "--name", name, "busybox:test"]).done();
    write_blocks(home, name, blocks);
}

fn disk(home: &Home, name: &str) -> PathBuf {
    home.state().join("sandboxes").join(name).join("upper.img")
}

fn write_blocks(home: &Home, name: &str, blocks: &[(u64, u8)]) {
    let file = File::options().write(true).open(disk(home, name)).unwrap();
    for (number, byte) in blocks {
        file.write_all_at(&[*byte; BLOCK], number * BLOCK as u64).unwrap();
    }
}

fn snapshot_dir(home: &Home, name: &str) -> PathBuf {
    home.state().join("snapshots").join(name)
}

/// Bytes of the first gigabyte of a disk, without its zeros.
fn contents(path: &Path) -> Vec<(u64, Vec<u8>)> {
    let file = File::open(path).unwrap();
    let mut blocks = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    for part in 0..1024 {
        file.read_exact_at(&mut buffer, part << 20).unwrap();
        for (index, block) in buffer.chunks(BLOCK).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                blocks.push(((part << 20) + (index * BLOCK) as u64, block.to_vec()));
            }
        }
    }
    blocks
}

fn list(home: &Home) -> Vec<Value> {
    serde_json::from_str(&home.run(["snapshot", "list", "--format", "json"]).done()).unwrap()
}

fn names(home: &Home) -> Vec<String> {
    let mut names: Vec<String> =
        list(home).iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn create(home: &Home, name: &str, from: &str) -> String {
    let printed = home.run(["snapshot", "create", name, "--from", from]).done();
    printed.lines().next().unwrap().to_owned()
}

/// Nothing is left of commands that failed or were killed.
fn no_leftovers(home: &Home) {
    home.run(["snapshot", "reindex"]).done();
    for entry in fs::read_dir(home.state().join("snapshots")).into_iter().flatten() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.starts_with('.'), "{name}");
    }
}

#[test]
fn a_snapshot_is_identified_by_the_digest_of_its_manifest() {
    let home = Home::with_busybox();
    sandbox(&home, "sb", &[(2000, 7)]);
    let args =
        ["snap", "create", "one", "--from", "sb", "--label", "b=2", "--label", "a", "--integrity"];
    let printed = home.run(args).done();
    let directory = snapshot_dir(&home, "one");
    let manifest = fs::read(directory.join("manifest.json")).unwrap();
    let hash: String = Sha256::digest(&manifest).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(printed, format!("sha256:{hash}\n{}\n", directory.display()));
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["schema"], 1);
    assert_eq!(manifest["upper"]["size_bytes"], 4_u64 << 30);
    assert_eq!(manifest["parent"], Value::Null);
    assert_eq!(contents(&directory.join("upper.ext4")), contents(&disk(&home, "sb")));
    let copy = fs::metadata(directory.join("upper.ext4")).unwrap();
    assert!(copy.blocks() * 512 < 1 << 20, "{} blocks", copy.blocks());

    let row = &list(&home)[0];
    assert_eq!(row["name"], "one");
    assert_eq!(row["digest"], format!("sha256:{hash}"));
    assert_eq!(row["labels"], serde_json::json!({ "a": "", "b": "2" }));
    home.run(["snapshot", "list", "-q"]).is(0, &format!("sha256:{hash}\n"), "");
    for typed in ["one", &hash[..8], &format!("sha256:{}", &hash[..6]), directory.to_str().unwrap()]
    {
        let shown = home.run(["snapshot", "inspect", typed, "--verify"]).done();
        assert!(shown.contains(&format!("Digest:         sha256:{hash}\n")), "{shown}");
        assert!(shown.contains("Verification:   verified (msb-data-sha256-v1 sha256:"), "{shown}");
    }
    let outcome = home.run(["snapshot", "create", "x", "--from", "sb", "--label", "msb.data=1"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
}

#[test]
fn a_snapshot_of_what_cannot_have_one_is_refused_and_leaves_nothing() {
    let home = Home::with_busybox();
    sandbox(&home, "sb", &[]);
    create(&home, "one", "sb");
    let refused = |args: &[&str], code: i32, words: &str| {
        let outcome = home.run(args);
        assert_eq!(outcome.code, code, "{outcome:?}");
        assert!(stderr(&outcome).contains(words), "{outcome:?}");
    };
    refused(&["snapshot", "create", "one", "--from", "sb"], 4, "already");
    refused(&["snapshot", "create", "x", "--from", "nosuch"], 3, "there is no sandbox 'nosuch'");
    refused(&["snapshot", "create", ".x", "--from", "sb"], 2, "cannot be the name of a snapshot");
    refused(&["snapshot", "inspect", "nosuch"], 3, "there is no snapshot 'nosuch'");
    refused(&["run", "--snapshot", "nosuch", "true"], 125, "there is no snapshot 'nosuch'");
    refused(&["run", "--snapshot", "one", "--oci-upper-size", "1G", "true"], 125, "4096 MiB");
    refused(&["run", "--snapshot", "one", "--root-disk", "tmpfs", "true"], 125, "managed disk");
    home.run(["create", "--no-start", "--name", "ram", "--root-disk", "tmpfs", "busybox:test"])
        .done();
    refused(&["snapshot", "create", "x", "--from", "ram"], 2, "its root is in memory");
    let outcome = home.shell("MSB_ERRORS=json msb snapshot inspect nosuch");
    assert!(stderr(&outcome).contains("\"code\":\"SnapshotNotFound\""), "{outcome:?}");
    assert_eq!(names(&home), ["one"]);
    no_leftovers(&home);
    home.run(["snapshot", "create", "-q", "-f", "one", "--from", "sb"]).is(0, "", "");
    assert_eq!(names(&home), ["one"]);
}

#[test]
fn a_chain_of_twenty_snapshots_has_what_the_guest_wrote_at_each_step() {
    const STEPS: usize = 20;
    let home = Home::with_busybox();
    let sum = "cd /root && cat step-* | md5sum";
    let mut sums = Vec::new();
    let mut parents = Vec::new();
    for step in 0..STEPS {
        let script = format!(
            "head -c 50000 /dev/urandom >/root/step-{step:02}; rm -f /gone-{}; touch /gone-{step}; {sum}",
            step.wrapping_sub(1)
        );
        sums.push(home.run(["run", "--name", "sb", "busybox:test", "sh", "-c", &script]).done());
        parents.push(create(&home, &format!("s{step}"), "sb"));
    }
    for step in [0, 7, STEPS - 1] {
        let snapshot = format!("s{step}");
        let script = format!("{sum}; ls /root | wc -l; ls -d /gone-*; echo own >/root/step-99");
        home.run(["run", "--snapshot", &snapshot, "sh", "-c", &script]).is(
            0,
            &format!("{}{}\n/gone-{step}\n", sums[step], step + 1),
            "",
        );
    }
    for row in list(&home) {
        let step: usize = row["name"].as_str().unwrap()[1..].parse().unwrap();
        let parent = step.checked_sub(1).map(|before| parents[before].clone());
        assert_eq!(row["parent_digest"].as_str(), parent.as_deref(), "{row}");
    }
    // Back by 13 steps, and on from there.
    home.run(["restore", "sb", "s7"]).is(0, "", "");
    home.run(["run", "--name", "sb", "busybox:test", "sh", "-c", sum]).is(0, &sums[7], "");
    create(&home, "branch", "sb");
    let rows = list(&home);
    let branch = rows.iter().find(|row| row["name"] == "branch").unwrap();
    assert_eq!(branch["parent_digest"].as_str().unwrap(), parents[7]);
    let outcome = home.run(["snapshot", "rm", "s7"]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    home.run(["snapshot", "rm", "--force", "s7"]).is(0, "s7\n", "");
    home.run(["run", "--snapshot", "branch", "sh", "-c", sum]).is(0, &sums[7], "");
}

#[test]
fn forks_of_one_sandbox_do_not_see_each_other() {
    let home = Home::with_busybox();
    home.run(["run", "--name", "base", "-e", "KEPT=yes", "busybox:test", "sh", "-c", "echo 1 >/f"])
        .done();
    home.run(["fork", "base", "--names", "a,b,c"]).is(0, "a\nb\nc\n", "");
    let script = "cat /f; echo $KEPT; hostname; hostname >/f; cat /etc/machine-id 2>/dev/null";
    for name in ["a", "b"] {
        let args = ["run", "--name", name, "busybox:test", "sh", "-c", script];
        let printed = home.run(args).done();
        assert!(printed.starts_with(&format!("1\nyes\n{name}\n")), "{printed}");
    }
    let read =
        |name: &str| home.run(["run", "--name", name, "busybox:test", "sh", "-c", "cat /f"]).done();
    assert_eq!([read("base"), read("a"), read("b"), read("c")], ["1\n", "a\n", "b\n", "1\n"]);
    let ids: Vec<String> = ["base", "a", "b", "c"]
        .iter()
        .map(|name| {
            let spec = home.state().join("sandboxes").join(name).join("spec.json");
            let spec: Value = serde_json::from_slice(&fs::read(spec).unwrap()).unwrap();
            spec["machine_id"].as_str().unwrap().to_owned()
        })
        .collect();
    for (index, id) in ids.iter().enumerate() {
        assert!(!ids[..index].contains(id), "{ids:?}");
    }
    // One name that is taken: none is created.
    let outcome = home.run(["fork", "base", "--names", "d,e,a,f"]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(home.list().as_array().unwrap().iter().all(|row| row["name"] != "d"));
    assert_eq!(home.run(["fork", "base", "--names", "x,x"]).code, 2);
}

#[test]
fn twenty_forks_at_once_have_the_disk_of_one_moment_and_their_own_changes() {
    let home = Home::with_busybox();
    sandbox(&home, "base", &[(2000, 7)]);
    let names: Vec<String> = (0..20).map(|number| format!("f{number}")).collect();
    home.run(["fork", "-q", "base", "--names", &names.join(",")]).is(0, "", "");
    let block = |name: &str, number: u64| {
        let mut block = vec![0; BLOCK];
        File::open(disk(&home, name)).unwrap().read_exact_at(&mut block, number << 12).unwrap();
        block
    };
    for (number, name) in names.iter().enumerate() {
        write_blocks(&home, name, &[(3000, number as u8 + 1)]);
    }
    for (number, name) in names.iter().enumerate() {
        assert_eq!(block(name, 3000), [number as u8 + 1; BLOCK], "{name}");
        assert_eq!(block(name, 2000), [7; BLOCK], "{name}");
        assert_eq!(block(name, 0), block("base", 0), "{name}");
    }
    assert_eq!(block("base", 3000), [0; BLOCK]);
}

#[test]
fn a_restored_sandbox_has_the_disk_of_the_snapshot_and_its_own_settings() {
    let home = Home::with(&["busybox.docker.tar", "layers.docker.tar"]);
    sandbox(&home, "sb", &[(2000, 1)]);
    create(&home, "one", "sb");
    write_blocks(&home, "sb", &[(2000, 2), (2001, 2)]);
    home.run(["modify", "sb", "--label", "kept=yes"]).done();
    home.run(["restore", "sb", "one"]).is(0, "", "");
    let restored = contents(&disk(&home, "sb"));
    assert_eq!(restored, contents(&snapshot_dir(&home, "one").join("upper.ext4")));
    assert!(home.run(["inspect", "sb"]).done().contains("kept=yes"));
    let events = home.run(["events", "--no-follow"]).done();
    assert!(events.contains("\"restored\"") && events.contains("\"snapshotted\""), "{events}");
    // Another image below would make another file system of it.
    home.run(["create", "--no-start", "--name", "other", "msb-test/layers:docker"]).done();
    let outcome = home.run(["restore", "other", "one"]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(stderr(&outcome).contains("another image"), "{outcome:?}");
}

#[test]
fn an_image_that_a_snapshot_needs_is_kept() {
    let home = Home::with_busybox();
    sandbox(&home, "sb", &[]);
    create(&home, "one", "sb");
    home.run(["rm", "sb"]).done();
    home.run(["image", "prune", "--yes", "-q"]).is(0, "", "");
    let outcome = home.run(["image", "rm", "busybox:test"]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(stderr(&outcome).contains("is used by the snapshots: one"), "{outcome:?}");
    let usage: Value =
        serde_json::from_str(&home.run(["image", "df", "--format", "json"]).done()).unwrap();
    assert_eq!(usage["images"][0]["snapshots"], serde_json::json!(["one"]));
    home.run(["run", "--snapshot", "one", "true"]).is(0, "", "");
    home.run(["image", "rm", "--force", "-q", "busybox:test"]).done();
    let outcome = home.run(["run", "--pull", "never", "--snapshot", "one", "true"]);
    assert_eq!(outcome.code, 125, "{outcome:?}");
    assert!(stderr(&outcome).contains("the image of the snapshot 'one' is missing"), "{outcome:?}");
}

#[test]
fn a_snapshot_of_a_running_guest_has_one_moment_of_its_disk() {
    let home = Home::with_busybox();
    home.run(["create", "--name", "up", "busybox:test"]).done();
    // Two files that always have the same number, or the first one more.
    let script = "n=0; while :; do n=$((n+1)); echo $n >/a.new; mv /a.new /a; sync; echo $n >/b.new; mv /b.new /b; sync; done";
    home.run(["exec", "-d", "up", "sh", "-c", script]).done();
    home.run(["exec", "up", "sh", "-c", "until [ -s /b ]; do sleep 0.1; done"]).is(0, "", "");
    for number in 0..10 {
        let name = format!("s{number}");
        create(&home, &name, "up");
        // It goes on.
        home.run(["exec", "up", "sh", "-c", "echo x >/x && sync && cat /x"]).is(0, "x\n", "");
    }
    let mut last = 0;
    for number in [0, 4, 9] {
        let name = format!("s{number}");
        let check = Command::new("/sbin/e2fsck")
            .args(["-f", "-n"])
            .arg(snapshot_dir(&home, &name).join("upper.ext4"))
            .output()
            .unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        let printed = home.run(["run", "--snapshot", &name, "cat", "/a", "/b"]).done();
        let numbers: Vec<u64> = printed.lines().map(|line| line.parse().unwrap()).collect();
        assert!(numbers[0] == numbers[1] || numbers[0] == numbers[1] + 1, "{printed}");
        assert!(numbers[0] > last, "{printed}");
        last = numbers[0];
    }
    home.run(["fork", "up", "--names", "copy", "-q"]).is(0, "", "");
    home.run(["run", "--name", "copy", "busybox:test", "test", "-s", "/a"]).is(0, "", "");
    assert!(unfinished_disks(&home, "up").is_empty());
    home.run(["rm", "-f", "up"]).done();
    assert!(home.processes().is_empty());
}

/// Unfinished disks in the directory of a sandbox.
fn unfinished_disks(home: &Home, name: &str) -> Vec<String> {
    let directory = home.state().join("sandboxes").join(name);
    let names = fs::read_dir(directory).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".new-upper.img")).collect()
}

#[test]
fn a_guest_goes_on_writing_while_a_large_disk_is_copied() {
    let home = Home::with_busybox();
    // More data than is copied while a guest is frozen. The guest reuses these free blocks.
    let many: Vec<(u64, u8)> = (0..70_000).map(|number| (40_000 + number, 7)).collect();
    sandbox(&home, "up", &many);
    home.run(["start", "up"]).done();
    let script = "n=0; while :; do n=$((n+1)); echo $n >/a.new; mv /a.new /a; sync; echo $n >/b.new; mv /b.new /b; sync; done";
    home.run(["exec", "-d", "up", "sh", "-c", script]).done();
    let fill = "n=0; while :; do n=$((n+1)); head -c 3000000 /dev/urandom >/big; md5sum /big >/sum; sync; done";
    home.run(["exec", "-d", "up", "sh", "-c", fill]).done();
    home.run(["exec", "up", "sh", "-c", "until [ -s /b ]; do sleep 0.1; done"]).is(0, "", "");
    for number in 0..3 {
        let name = format!("s{number}");
        create(&home, &name, "up");
        let path = snapshot_dir(&home, &name).join("upper.ext4");
        let check = Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(&path).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        let printed = home.run(["run", "--snapshot", &name, "cat", "/a", "/b"]).done();
        let numbers: Vec<u64> = printed.lines().map(|line| line.parse().unwrap()).collect();
        assert!(numbers[0] == numbers[1] || numbers[0] == numbers[1] + 1, "{printed}");
        // Holes stay holes.
        let blocks = fs::metadata(&path).unwrap().blocks() * 512;
        assert!(blocks < 600 << 20, "{blocks}");
    }
    assert!(unfinished_disks(&home, "up").is_empty());
    home.run(["pause", "up"]).is(0, "up\n", "");
    let outcome = home.run(["snapshot", "create", "paused", "--from", "up"]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(stderr(&outcome).contains("the sandbox 'up' is paused"), "{outcome:?}");
    home.run(["resume", "up"]).is(0, "up\n", "");
    home.run(["rm", "-f", "up"]).done();
}

#[test]
fn a_guest_is_thawed_when_the_client_is_killed_and_when_it_stops() {
    let home = Home::with_busybox();
    home.run(["create", "--name", "up", "busybox:test"]).done();
    let write = ["exec", "--timeout", "60s", "up", "sh", "-c", "echo x >/x && sync && cat /x"];
    for pause_ms in [0, 10, 30, 60, 100, 200] {
        let mut running =
            home.msb(["snapshot", "create", "-q", "-f", "one", "--from", "up"]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        let _ = running.kill();
        running.wait().unwrap();
        home.run(write).is(0, "x\n", "");
        // Overwritten blocks are not kept any more, and the monitor is free.
        wait_until("the copy has ended", || unfinished_disks(&home, "up").is_empty());
        home.run(["pause", "up"]).is(0, "up\n", "");
        home.run(["resume", "up"]).is(0, "up\n", "");
    }
    let mut running =
        home.msb(["snapshot", "create", "-q", "-f", "one", "--from", "up"]).spawn().unwrap();
    home.run(["stop", "up"]).done();
    running.wait().unwrap();
    no_leftovers(&home);
    assert!(unfinished_disks(&home, "up").is_empty());
}

/// Exports into a file below the state directory, and returns its path.
fn export(home: &Home, args: &[&str], file: &str) -> PathBuf {
    let path = home.state().join(file);
    let mut words = vec!["snapshot", "export"];
    words.extend(args);
    words.push(path.to_str().unwrap());
    home.run(words).is(0, &format!("{}\n", path.display()), "");
    path
}

#[test]
fn an_archive_is_small_deterministic_and_the_same_on_the_other_side() {
    let (here, there) = (Home::with_busybox(), Home::new());
    sandbox(&here, "sb", &[(2000, 7), (900_000, 8)]);
    let digest = create(&here, "one", "sb");
    let archive = export(&here, &["one", "--with-image"], "one.tar.zst");
    assert!(fs::metadata(&archive).unwrap().len() < 4 << 20);
    let again = export(&here, &["one", "--with-image"], "again.tar.zst");
    assert_eq!(fs::read(&archive).unwrap(), fs::read(again).unwrap());
    // The layout of the file makes no difference: blocks of zeros in place of holes.
    let file = snapshot_dir(&here, "one").join("upper.ext4");
    let file = File::options().write(true).open(file).unwrap();
    file.write_all_at(&[0; 64 * BLOCK], 50_000 * BLOCK as u64).unwrap();
    let again = export(&here, &["one", "--with-image"], "again.tar.zst");
    assert_eq!(fs::read(&archive).unwrap(), fs::read(again).unwrap());

    let target = snapshot_dir(&there, "one");
    let printed = there.run_with(["snapshot", "import"], &fs::read(&archive).unwrap());
    printed.is(0, &format!("{digest}\n{}\n", target.display()), "");
    assert_eq!(contents(&target.join("upper.ext4")), contents(&disk(&here, "sb")));
    // Once more is no harm.
    there.run(["snapshot", "import", archive.to_str().unwrap()]).is(
        0,
        &format!("{digest}\n{}\n", target.display()),
        "",
    );
    let plain = export(&here, &["one", "--plain-tar"], "one.tar");
    let listed = Command::new("tar").arg("tvf").arg(&plain).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("one/manifest.json") && listed.contains("4294967296"), "{listed}");
}

#[test]
fn an_incremental_archive_has_only_what_differs_and_needs_its_base() {
    let (here, there) = (Home::with_busybox(), Home::with_busybox());
    let many: Vec<(u64, u8)> = (0..2000).map(|number| (2000 + number, 7)).collect();
    sandbox(&here, "sb", &many);
    create(&here, "one", "sb");
    // A block that changes, a new one, and one that becomes zero.
    write_blocks(&here, "sb", &[(2005, 9), (70_000, 9), (2500, 0)]);
    create(&here, "two", "sb");
    let whole = export(&here, &["one", "--plain-tar"], "one.tar");
    let part = export(&here, &["two", "--since", "one", "--plain-tar"], "two.tar");
    assert!(fs::metadata(&whole).unwrap().len() > 8_000_000);
    assert!(fs::metadata(&part).unwrap().len() < 40_000);

    let outcome = there.run(["snapshot", "import", part.to_str().unwrap()]);
    assert_eq!(outcome.code, 3, "{outcome:?}");
    assert!(stderr(&outcome).contains("its base sha256:"), "{outcome:?}");
    there.run(["snapshot", "import", whole.to_str().unwrap()]).done();
    there.run(["snapshot", "import", part.to_str().unwrap()]).done();
    let imported = contents(&snapshot_dir(&there, "two").join("upper.ext4"));
    assert_eq!(imported, contents(&disk(&here, "sb")));

    // A base with its manifest and other contents is noticed.
    there.run(["snapshot", "rm", "-q", "--force", "two"]).done();
    let base = snapshot_dir(&there, "one").join("upper.ext4");
    File::options().write(true).open(base).unwrap().write_all_at(b"x", 3000 << 12).unwrap();
    let outcome = there.run(["snapshot", "import", part.to_str().unwrap()]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert_eq!(names(&there), ["one"]);
    no_leftovers(&there);
    // The chain in one archive.
    let all = export(&here, &["two", "--with-parents"], "all.tar.zst");
    let third = Home::new();
    third.run(["snapshot", "import", all.to_str().unwrap()]).done();
    assert_eq!(names(&third), ["one", "two"]);
}

/// The archive that microsandbox 0.5.5 wrote.
fn peer_archive(home: &Home) -> PathBuf {
    let packed = stage("source/tests/support/snapshots/microsandbox-0.5.5.tar.zst.zst");
    let path = home.state().join("peer.tar.zst");
    let unpacked = Command::new("zstd").args(["-dc"]).arg(packed).output().unwrap();
    assert!(unpacked.status.success());
    fs::write(&path, unpacked.stdout).unwrap();
    path
}

#[test]
fn an_archive_of_microsandbox_is_read_with_its_digest() {
    let home = Home::with_busybox();
    let archive = peer_archive(&home);
    home.run(["snapshot", "import", archive.to_str().unwrap()]).is(
        0,
        &format!(
            "sha256:7103a4876ca6d66b9bfb7e6d6ca8a1a86f70c2232ec2f2ee16e3d8fbaae46a14\n{}\n",
            snapshot_dir(&home, "sha256-7103a4876ca6d66b").display()
        ),
        "",
    );
    let row = &list(&home)[0];
    assert_eq!(row["image_ref"], "busybox:test");
    assert_eq!(row["labels"], serde_json::json!({ "a": "b", "c": "" }));
    assert_eq!(row["created_at"], "2026-11-30T21:00:19.242876541+00:00");
    assert!(row["used_bytes"].as_u64().unwrap() < 1 << 20, "{row}");
}

#[test]
fn damage_at_any_place_of_an_archive_is_found_and_nothing_appears() {
    let (here, there) = (Home::with_busybox(), Home::new());
    sandbox(&here, "sb", &[(2000, 7)]);
    create(&here, "one", "sb");
    for (options, file) in [(&["one"][..], "one.tar.zst"), (&["one", "--plain-tar"], "one.tar")] {
        let whole = fs::read(export(&here, options, file)).unwrap();
        let step = whole.len() / 40 + 1;
        for at in (0..whole.len()).step_by(step) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            let outcome = there.run_with(["snapshot", "import"], &damaged);
            // Times, owners and padding are in no digest of a plain tar.
            if outcome.code == 0 && file == "one.tar" {
                let digest = String::from_utf8(outcome.stdout).unwrap();
                let name = Path::new(digest.lines().nth(1).unwrap()).file_name().unwrap();
                there.run(["snapshot", "verify", name.to_str().unwrap()]).done();
                let path = snapshot_dir(&there, name.to_str().unwrap()).join("upper.ext4");
                assert_eq!(contents(&path), contents(&disk(&here, "sb")), "{at}");
                there.run(["snapshot", "rm", "-q", name.to_str().unwrap()]).done();
                continue;
            }
            assert_ne!(outcome.code, 0, "{file} at {at}");
            assert_ne!(outcome.code, 70, "{file} at {at}: {outcome:?}");
            assert!(names(&there).is_empty());
        }
        for length in [0, 1, 100, whole.len() / 2, whole.len() - 600] {
            let outcome = there.run_with(["snapshot", "import"], &whole[..length]);
            assert_eq!(outcome.code, 1, "{file} {length}: {outcome:?}");
        }
    }
    assert!(names(&there).is_empty());
    no_leftovers(&there);
}

#[test]
fn damage_in_a_snapshot_is_found_and_does_not_hide_the_others() {
    let home = Home::with_busybox();
    sandbox(&home, "sb", &[(2000, 7)]);
    for name in ["good", "manifest", "short", "data", "missing"] {
        home.run(["snapshot", "create", "-q", "--integrity", name, "--from", "sb"]).done();
    }
    let file = |name: &str, file: &str| snapshot_dir(&home, name).join(file);
    let mut manifest = fs::read(file("manifest", "manifest.json")).unwrap();
    manifest.truncate(100);
    fs::write(file("manifest", "manifest.json"), manifest).unwrap();
    let short = File::options().write(true).open(file("short", "upper.ext4")).unwrap();
    short.set_len(1 << 30).unwrap();
    let data = File::options().write(true).open(file("data", "upper.ext4")).unwrap();
    data.write_all_at(b"x", 3 << 30).unwrap();
    fs::remove_file(file("missing", "upper.ext4")).unwrap();
    for name in ["manifest", "short", "data", "missing"] {
        let outcome = home.run(["snapshot", "verify", name]);
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(stderr(&outcome).contains(&format!("the snapshot '{name}' is damaged")));
    }
    home.run(["snapshot", "verify", "good"]).done();
    let listed = home.run(["snapshot", "list", "-q"]);
    assert_eq!((listed.code, listed.stdout.len()), (0, 2 * 72), "{listed:?}");
    // What is damaged may need any image, until it is removed.
    assert_eq!(home.run(["image", "prune", "--yes"]).code, 4);
    for name in ["manifest", "short", "missing"] {
        assert_eq!(home.run(["snapshot", "rm", name]).code, 1);
        home.run(["snapshot", "rm", "--force", name]).is(0, &format!("{name}\n"), "");
    }
    home.run(["image", "prune", "--yes", "-q"]).done();
    assert_eq!(names(&home), ["data", "good"]);
}

#[test]
fn a_killed_command_leaves_a_whole_snapshot_or_none() {
    let home = Home::with_busybox();
    let many: Vec<(u64, u8)> = (0..40_000).map(|number| (2000 + number, 7)).collect();
    sandbox(&home, "sb", &many);
    create(&home, "base", "sb");
    let archive = export(&home, &["base", "--plain-tar"], "base.tar");
    let archive = archive.to_str().unwrap();
    let original = contents(&disk(&home, "sb"));
    for pause_ms in [0, 2, 5, 10, 20, 40, 80, 160] {
        let commands: [&[&str]; 4] = [
            &["snapshot", "create", "one", "--from", "sb", "--integrity"],
            &["restore", "sb", "base"],
            &["fork", "sb", "--names", "a,b"],
            &["snapshot", "import", archive, "elsewhere"],
        ];
        for command in commands {
            let mut running = home.msb(command).current_dir(home.state()).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(pause_ms));
            let _ = running.kill();
            running.wait().unwrap();
        }
        if snapshot_dir(&home, "one").is_dir() {
            home.run(["snapshot", "verify", "one"]).done();
            home.run(["snapshot", "rm", "-q", "--force", "one"]).done();
        }
        assert!(contents(&disk(&home, "sb")) == original, "after {pause_ms} ms");
        for name in ["a", "b"] {
            if disk(&home, name).exists() {
                assert!(contents(&disk(&home, name)) == original, "{name} after {pause_ms} ms");
                home.run(["rm", name]).done();
            }
        }
    }
    no_leftovers(&home);
    assert_eq!(names(&home), ["base"]);
    home.run(["restore", "sb", "base"]).is(0, "", "");
    assert!(unfinished_disks(&home, "sb").is_empty());
    home.run(["ls"]).done();
}

#[test]
fn a_full_disk_is_an_error_that_leaves_nothing() {
    let (_alone, full) = full_disk();
    let home = Home::with_busybox();
    let many: Vec<(u64, u8)> = (0..3000).map(|number| (2000 + number, 7)).collect();
    sandbox(&home, "sb", &many);
    let target = full.join("snapshot");
    let outcome = home.run(["snapshot", "create", target.to_str().unwrap(), "--from", "sb"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(stderr(&outcome).contains("no space left on device"), "{outcome:?}");
    create(&home, "one", "sb");
    let archive = export(&home, &["one", "--plain-tar"], "one.tar");
    let outcome =
        home.run(["snapshot", "import", archive.to_str().unwrap(), full.to_str().unwrap()]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let out = full.join("out.tar");
    let outcome = home.run(["snapshot", "export", "--plain-tar", "one", out.to_str().unwrap()]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert_eq!(fs::read_dir(&full).unwrap().count(), 0);
    assert_eq!(names(&home), ["one"]);
    no_leftovers(&home);
}

/// A tar of these entries: a path, a type, and contents.
fn tar(entries: &[(&str, u8, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, kind, contents) in entries {
        let mut header = [0; 512];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", contents.len()).as_bytes());
        header[148..156].copy_from_slice(b"        ");
        header[156] = *kind;
        header[157..161].copy_from_slice(b"/etc");
        header[257..265].copy_from_slice(b"ustar  \0");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(header);
        out.extend(*contents);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

#[test]
fn a_hostile_archive_is_refused_and_writes_nowhere_else() {
    let home = Home::with_busybox();
    sandbox(&home, "sb", &[]);
    create(&home, "one", "sb");
    let manifest = fs::read(snapshot_dir(&home, "one").join("manifest.json")).unwrap();
    home.run(["snapshot", "rm", "-q", "one"]).done();
    // The disk of 4 GiB would be read for each comparison of the state directory.
    home.run(["rm", "sb"]).done();
    let text = String::from_utf8(manifest.clone()).unwrap();
    let small = text.replace("\"size_bytes\":4294967296", "\"size_bytes\":4096");
    let small = small.as_bytes();
    let traversal = text.replace("upper.ext4", "../../upper.ext4");
    let other = text.replace("upper.ext4", "evil.json");
    let page = [7; 4096];
    let before = home.snapshot("");
    let cases: Vec<Vec<u8>> = vec![
        tar(&[]),
        tar(&[("../x/manifest.json", b'0', small)]),
        tar(&[("/etc/manifest.json", b'0', small)]),
        tar(&[("a/b/manifest.json", b'0', small)]),
        tar(&[(".ssh/manifest.json", b'0', small)]),
        tar(&[("manifest.json", b'0', small)]),
        tar(&[("a/upper.ext4", b'0', &page)]),
        tar(&[("a/manifest.json", b'0', small)]),
        tar(&[("a/manifest.json", b'2', b"")]),
        tar(&[("a/manifest.json", b'0', small), ("a/upper.ext4", b'2', b"")]),
        tar(&[("a/manifest.json", b'0', small), ("a/upper.ext4", b'1', b"")]),
        tar(&[("a/manifest.json", b'0', small), ("a/upper.ext4", b'0', &page[..100])]),
        tar(&[("a/manifest.json", b'0', small), ("a/other", b'0', b"x")]),
        tar(&[("a/manifest.json", b'0', small), ("b/upper.ext4", b'0', &page)]),
        tar(&[("a/manifest.json", b'0', small), ("a/manifest.json", b'0', small)]),
        tar(&[
            ("a/manifest.json", b'0', small),
            ("a/upper.ext4", b'0', &page),
            ("a/upper.ext4", b'0', &page),
        ]),
        tar(&[("a/manifest.json", b'0', traversal.as_bytes())]),
        tar(&[("a/manifest.json", b'0', other.as_bytes()), ("a/upper.ext4", b'0', &page)]),
        tar(&[("a/manifest.json", b'0', &vec![b' '; 2 << 20])]),
        tar(&[("a/manifest.json", b'x', b"20 path=../../x\n")]),
    ];
    for (number, case) in cases.iter().enumerate() {
        let outcome = home.run_with(["snapshot", "import"], case);
        assert_eq!(outcome.code, 1, "{number}: {outcome:?}");
        assert_eq!(home.snapshot(""), before, "{number}");
    }
    // The smallest one that is allowed.
    let valid = tar(&[("a/manifest.json", b'0', small), ("a/upper.ext4", b'0', &page)]);
    home.run_with(["snapshot", "import"], &valid).done();
    assert_eq!(names(&home), ["a"]);
}

#[test]
fn an_archive_that_unpacks_to_a_terabyte_of_zeros_takes_no_space() {
    let home = Home::with_busybox();
    sandbox(&home, "sb", &[]);
    create(&home, "one", "sb");
    let manifest = fs::read_to_string(snapshot_dir(&home, "one").join("manifest.json")).unwrap();
    home.run(["snapshot", "rm", "-q", "one"]).done();
    // 2 GiB of zeros, as a plain entry.
    let manifest = manifest.replace("4294967296", "2147483648");
    let mut archive = tar(&[("a/manifest.json", b'0', manifest.as_bytes())]);
    archive.truncate(archive.len() - 1024);
    let mut header = tar(&[("a/upper.ext4", b'0', b"")]);
    header.truncate(512);
    header[124..136].copy_from_slice(b"20000000000\0");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive.extend(header);
    let path = ground("tmp").join(format!("zeros-{}.tar", std::process::id()));
    let mut file = File::create(&path).unwrap();
    file.write_all(&archive).unwrap();
    file.set_len(archive.len() as u64 + (2 << 30) + 1024).unwrap();
    home.run(["snapshot", "import", path.to_str().unwrap()]).done();
    fs::remove_file(path).unwrap();
    let imported = fs::metadata(snapshot_dir(&home, "a").join("upper.ext4")).unwrap();
    assert_eq!((imported.len(), imported.blocks()), (2 << 30, 0));
}

#[test]
fn a_snapshot_in_another_place_is_listed_and_counted() {
    let home = Home::with_busybox();
    sandbox(&home, "sb", &[]);
    let place = ground("tmp").join(format!("place-{}", std::process::id()));
    let path = place.to_str().unwrap();
    home.run(["snapshot", "create", path, "--from", "sb"]).done();
    let row = &list(&home)[0];
    assert_eq!(row["artifact_path"], path);
    home.run(["run", "--snapshot", path, "true"]).is(0, "", "");
    home.run(["rm", "sb"]).done();
    assert_eq!(home.run(["image", "rm", "busybox:test"]).code, 4);
    home.run(["snapshot", "rm", path]).is(0, &format!("{path}\n"), "");
    assert!(!place.exists() && names(&home).is_empty());
    let empty = home.run(["snapshot", "reindex"]).done();
    assert!(empty.starts_with("indexed 0 snapshot(s) from "), "{empty}");
}

#[test]
fn holes_of_a_disk_are_not_read() {
    let home = Home::with_busybox();
    let many: Vec<(u64, u8)> = (0..768).map(|number| (2000 + number * 7, 7)).collect();
    sandbox(&home, "sb", &many);
    let log = home.state().join("strace");
    let create = format!(
        "strace -f -o {} -e trace=read,pread64,copy_file_range,ioctl,sendfile msb-snapshot create one --from sb -q",
        log.display()
    );
    home.shell(&create).is(0, "", "");
    let copied = bytes_of(&log, &["copy_file_range", "pread64", "sendfile"]);
    assert!(copied < 8 << 20, "{copied} bytes");
    let export = format!(
        "strace -f -o {} -e trace=read,pread64,copy_file_range msb-snapshot export one >archive && stat -c %s archive",
        log.display()
    );
    let size: u64 = home.shell(&export).done().trim().parse().unwrap();
    assert!(size < 4 << 20, "{size} bytes");
    // Three passes: what changed, the archive, the digest.
    let read = bytes_of(&log, &["pread64"]);
    assert!((3 << 20..24 << 20).contains(&read), "{read} bytes");
}

/// Returns the sum of the results of these system calls.
fn bytes_of(log: &Path, calls: &[&str]) -> u64 {
    let text = fs::read_to_string(log).unwrap();
    let of_call = |line: &&str| calls.iter().any(|call| line.contains(&format!("{call}(")));
    let result = |line: &str| line.rsplit(" = ").next()?.split(' ').next()?.parse::<i64>().ok();
    text.lines().filter(of_call).filter_map(result).map(|count| count.max(0) as u64).sum()
}
