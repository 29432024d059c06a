//! Named volumes and disk images.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::guest_root::qcow2;
use crate::support::{Home, Outcome};

fn stderr(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stderr).into_owned()
}

#[track_caller]
fn run(home: &Home, option: &str, mount: &str, script: &str) -> Outcome {
    home.run(["run", option, mount, "busybox:test", "--", "sh", "-c", script])
}

#[test]
fn a_volume_is_made_on_request_and_outlives_its_sandboxes() {
    let home = Home::with_busybox();
    home.run(["volume", "create", "disk", "--kind", "disk"]).is(0, "disk\n", "");
    for (name, mounted) in [("data", "virtiofs"), ("disk", "ext4")] {
        let volume = format!("{name}:/data");
        run(&home, "-v", &volume, "echo kept >/data/f; chown 70:70 /data/f").is(0, "", "");
        let script = format!(
            "cat /data/f; stat -c %u:%g /data/f; grep -c ' /data {mounted} rw' /proc/mounts"
        );
        run(&home, "-v", &volume, &script).is(0, "kept\n70:70\n1\n", "");
        run(&home, "-v", &format!("{volume}:ro"), "cat /data/f; echo x >/data/f").is(
            1,
            "kept\n",
            "sh: can't create /data/f: Read-only file system\n",
        );
    }
    let list: serde_json::Value =
        serde_json::from_str(&home.run(["volume", "list", "--format", "json"]).done()).unwrap();
    for (row, name, kind, quota) in
        [(0, "data", "dir", serde_json::Value::Null), (1, "disk", "disk", 4096.into())]
    {
        let row = &list[row];
        assert_eq!((&row["name"], &row["kind"]), (&name.into(), &kind.into()));
        assert_eq!((&row["quota_mib"], &row["in_use"]), (&quota, &false.into()));
        assert!(row["used_bytes"].as_u64().unwrap() > 0);
    }
}

#[test]
fn the_kind_of_a_new_volume_follows_from_its_size_and_every_command_shows_it() {
    let home = Home::with_busybox();
    home.run(["volume", "create", "plain"]).is(0, "plain\n", "");
    home.run(["volume", "create", "sized", "--size", "32M"]).is(0, "sized\n", "");
    home.run(["volume", "create", "large", "--kind", "disk"]).is(0, "large\n", "");
    let listed = home.run(["volume", "ls"]).done();
    let kinds: Vec<Vec<&str>> =
        listed.lines().map(|line| line.split_whitespace().take(2).collect()).collect();
    assert_eq!(
        kinds,
        [["NAME", "KIND"], ["large", "disk"], ["plain", "dir"], ["sized", "disk"]],
        "{listed}"
    );
    for (name, kind) in [("plain", "dir"), ("sized", "disk")] {
        let inspected = home.run(["volume", "inspect", name]).done();
        assert!(inspected.contains(&format!("Kind         {kind}\n")), "{inspected}");
    }
    home.run(["create", "--name", "x", "--no-start", "-v", "plain:/p", "busybox:test"]).done();
    let refused = home.run(["volume", "prune"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(stderr(&refused).contains("add --yes"), "{refused:?}");
    let pruned: serde_json::Value =
        serde_json::from_str(&home.run(["volume", "prune", "-y", "--format", "json"]).done())
            .unwrap();
    let expected = serde_json::json!([
        {"name": "large", "kind": "disk"},
        {"name": "sized", "kind": "disk"},
    ]);
    assert_eq!(pruned["volumes"], expected);
    assert!(pruned["bytes_reclaimed"].as_u64().unwrap() > 0);
    home.run(["volume", "ls", "-q"]).is(0, "plain\n", "");
    home.run(["rm", "x"]).done();
    let pruned = home.run(["volume", "prune", "-f"]);
    assert!(stderr(&pruned).contains("removed the dir volume 'plain'\n"), "{pruned:?}");
    home.run(["volume", "ls"]).is(0, "", "no volumes\n");
}

#[test]
fn a_failed_start_leaves_neither_the_sandbox_nor_its_new_volume() {
    let home = Home::with_busybox();
    home.run(["volume", "create", "old"]).done();
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let busy = format!("{}:80", listener.local_addr().unwrap().port());
    for command in [&["create", "--name", "x"][..], &["run", "-d", "--name", "x"], &["run"]] {
        let words = ["-v", "new:/n", "-v", "old:/o", "-p", &busy, "busybox:test"];
        let outcome = home.run([command, &words].concat());
        assert_ne!(outcome.code, 0, "{outcome:?}");
        assert_eq!(home.sandboxes(), [], "{outcome:?}");
        home.run(["volume", "ls", "-q"]).is(0, "old\n", "");
    }
    assert!(home.leftovers().is_empty());
}

#[test]
fn a_quota_stops_the_writer_and_nothing_more_of_the_host_is_filled() {
    let home = Home::with_busybox();
    home.run(["volume", "create", "small", "--size", "32M"]).is(0, "small\n", "");
    let script = "dd if=/dev/zero of=/v/x bs=1M count=64 2>&1 | grep -o 'No space left on device'; rm /v/x; echo ok >/v/y; cat /v/y";
    run(&home, "-v", "small:/v", script).is(0, "No space left on device\nok\n", "");
    let image = fs::metadata(home.state().join("volumes/small/disk.img")).unwrap();
    assert_eq!(image.len(), 32 << 20);
    assert!(image.blocks() * 512 <= 32 << 20);
}

#[test]
fn a_volume_of_the_kind_dir_is_a_directory_that_several_use_at_a_time() {
    let home = Home::with_busybox();
    home.run(["volume", "create", "shared", "--kind", "dir", "--quiet"]).is(0, "", "");
    for name in ["a", "b"] {
        home.run(["create", "--name", name, "-v", "shared:/s", "busybox:test"]).done();
    }
    home.run(["exec", "a", "--", "sh", "-c", "echo hello >/s/f"]).done();
    home.run(["exec", "b", "--", "cat", "/s/f"]).is(0, "hello\n", "");
    let on_host = home.state().join("volumes/shared/data/f");
    assert_eq!(fs::read_to_string(on_host).unwrap(), "hello\n");
    let outcome = home.run(["volume", "create", "x", "--kind", "dir", "--size", "1G"]);
    assert_eq!(outcome.code, 2);
    assert!(stderr(&outcome).contains("cannot have a size"), "{outcome:?}");
    home.run(["rm", "-f", "a", "b"]).done();
}

#[test]
fn a_disk_volume_that_is_in_use_is_neither_given_to_another_nor_removed() {
    let home = Home::with_busybox();
    home.run(["volume", "create", "data", "--kind", "disk"]).done();
    home.run(["create", "--name", "x", "-v", "data:/data", "busybox:test"]).done();
    let outcome = run(&home, "-v", "data:/data", "true");
    assert_eq!(outcome.code, 125);
    assert!(
        stderr(&outcome).starts_with(
            "msb run: error: cannot mount the volume 'data' at '/data': the volume 'data' is in use by a running sandbox\n"
        ),
        "{outcome:?}"
    );
    let outcome = home.run(["volume", "rm", "data"]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    let inspected = home.run(["volume", "inspect", "data"]).done();
    assert!(inspected.contains("In use       yes\n"), "{inspected}");
    assert!(inspected.contains("Sandbox      x\n"), "{inspected}");
    home.run(["rm", "-f", "x"]).done();
    home.run(["volume", "rm", "data"]).is(0, "data\n", "");
    home.run(["volume", "ls"]).is(0, "", "no volumes\n");
    let outcome = home.run(["volume", "inspect", "data"]);
    assert_eq!(outcome.code, 3, "{outcome:?}");
}

#[test]
fn a_disk_volume_is_whole_after_its_sandbox_was_killed() {
    let home = Home::with_busybox();
    home.run(["volume", "create", "data", "--kind", "disk"]).done();
    home.run(["create", "--name", "x", "-v", "data:/data", "busybox:test"]).done();
    home.run(["exec", "x", "--", "sh", "-c", "echo kept >/data/f; sync"]).done();
    home.run(["stop", "--force", "x"]).done();
    run(&home, "-v", "data:/data:ro", "ls /data | grep -c lost").is(0, "1\n", "");
    run(&home, "-v", "data:/data", "cat /data/f").is(0, "kept\n", "");
}

#[test]
fn a_disk_image_is_mounted_and_can_be_read_only() {
    let home = Home::with_busybox();
    home.run(["volume", "create", "v", "--size", "24M"]).done();
    run(&home, "-v", "v:/v", "echo inside >/v/f").is(0, "", "");
    // A volume's image is a disk image like any other.
    let image = home.directory.join("image");
    fs::rename(home.state().join("volumes/v/disk.img"), &image).unwrap();
    let mount = format!("{}:/d", image.display());
    let outcome = run(&home, "--mount-disk", &mount, "true");
    assert!(stderr(&outcome).contains("the disk format is missing"), "{outcome:?}");
    let before = fs::read(&image).unwrap();
    let script = "cat /d/f; echo x >/d/f; mount -o remount,rw /d; echo x >/d/f; dd if=/dev/zero of=$(grep ' /d ' /proc/mounts | cut -d' ' -f1) bs=4k count=1";
    let outcome = run(&home, "--mount-disk", &format!("{mount}:format=raw,ro"), script);
    assert_eq!(outcome.stdout, b"inside\n", "{outcome:?}");
    assert!(fs::read(&image).unwrap() == before, "the image has changed");
    run(&home, "--mount-disk", &format!("{mount}:format=raw,fstype=ext4"), "echo more >>/d/f")
        .is(0, "", "");
    run(&home, "--mount-disk", &format!("{mount}:format=raw"), "cat /d/f").is(
        0,
        "inside\nmore\n",
        "",
    );
}

#[test]
fn options_of_volumes_and_disks_hold_in_the_guest_and_are_shown_by_inspect() {
    let home = Home::with_busybox();
    home.run(["volume", "create", "data", "--kind", "disk"]).done();
    home.run(["volume", "create", "v", "--size", "24M"]).done();
    let image = home.directory.join("image.img");
    fs::rename(home.state().join("volumes/v/disk.img"), &image).unwrap();
    let disk = format!("{}:/d:noexec,nosuid,nodev", image.display());
    home.run([
        "create",
        "--name",
        "x",
        "-v",
        "data:/v:noexec,nosuid,nodev",
        "--mount-disk",
        &disk,
        "busybox:test",
    ])
    .done();
    let script = "for d in /v /d; do cp /bin/busybox $d/echo; $d/echo ran; mknod $d/null c 1 3; echo x >$d/null; done; \
        grep -E ' /[vd] ' /proc/mounts | sort -k2 | cut -d' ' -f2-4";
    let outcome = home.run(["exec", "x", "--", "sh", "-c", script]);
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{outcome:?}");
    for (line, place) in lines.iter().zip(["/d", "/v"]) {
        let expected = format!("{place} ext4 rw,nosuid,nodev,noexec,relatime");
        assert!(line.starts_with(&expected), "{line}");
    }
    assert_eq!(stderr(&outcome).matches("ermission denied").count(), 4, "{outcome:?}");
    let inspected = home.run(["inspect", "x"]).done();
    let options = "(rw,noexec,nosuid,nodev)";
    for shown in [
        format!("volume data at /v {options}"),
        format!("disk {} at /d {options}", image.display()),
    ] {
        assert!(inspected.contains(&shown), "{inspected}");
    }
    home.run(["rm", "-f", "x"]).done();
}

#[test]
fn a_qcow2_is_mounted_read_and_written() {
    let home = Home::with_busybox();
    home.run(["volume", "create", "v", "--size", "24M"]).done();
    run(&home, "-v", "v:/v", "echo inside >/v/f").is(0, "", "");
    let raw = fs::read(home.state().join("volumes/v/disk.img")).unwrap();
    let image = home.directory.join("image.qcow2");
    fs::write(&image, qcow2(&raw)).unwrap();
    let mount = format!("{}:/d", image.display());
    let script = "cat /d/f; echo more >>/d/f";
    run(&home, "--mount-disk", &mount, script).is(0, "inside\n", "");
    let before = fs::read(&image).unwrap();
    let script = "cat /d/f; echo x >/d/f";
    let outcome = run(&home, "--mount-disk", &format!("{mount}:ro"), script);
    assert_eq!(outcome.stdout, b"inside\nmore\n", "{outcome:?}");
    assert!(fs::read(&image).unwrap() == before, "the image has changed");
    // The name of the file says what it is; who says otherwise is believed.
    let outcome = run(&home, "--mount-disk", &format!("{mount}:format=raw"), "true");
    assert!(stderr(&outcome).contains("cannot mount '/d'"), "{outcome:?}");
}

#[test]
fn a_volume_or_an_image_that_vanished_is_told_before_anything_starts() {
    let home = Home::with_busybox();
    home.run(["volume", "create", "v", "--size", "24M"]).done();
    let image = home.directory.join("image.img");
    fs::rename(home.state().join("volumes/v/disk.img"), &image).unwrap();
    let disk = format!("{}:/d", image.display());
    home.run(["volume", "create", "directory", "--kind", "dir"]).done();
    let create = |name: &str, option: &str, mount: &str| {
        home.run(["create", "--no-start", "--name", name, option, mount, "busybox:test"]).done();
    };
    create("a", "-v", "data:/v");
    create("b", "--mount-disk", &disk);
    create("c", "-v", "directory:/v");
    fs::rename(home.state().join("volumes/data"), home.directory.join("away")).unwrap();
    fs::rename(&image, home.directory.join("image")).unwrap();
    fs::remove_dir(home.state().join("volumes/directory/data")).unwrap();
    for (name, why) in [
        (
            "a",
            "msb start: error: cannot mount the volume 'data' at '/v': there is no volume 'data'\n"
                .to_owned(),
        ),
        (
            "b",
            format!(
                "msb start: error: cannot mount '{}' at '/d': it no longer exists\n",
                image.display()
            ),
        ),
        (
            "c",
            format!(
                "msb start: error: cannot mount the volume 'directory' at '/v': cannot open '{}': no such file or directory\n",
                home.state().join("volumes/directory/data").display()
            ),
        ),
    ] {
        let outcome = home.run(["start", name]);
        assert_ne!(outcome.code, 0);
        assert!(stderr(&outcome).starts_with(&why), "{outcome:?}");
    }
    assert!(home.leftovers().is_empty());
}

#[test]
fn an_image_that_names_another_file_of_the_host_is_refused() {
    let home = Home::with_busybox();
    let image = home.directory.join("evil.qcow2");
    let file = File::create(&image).unwrap();
    let mut header = vec![0_u8; 512];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    // A backing file of eleven bytes at 256.
    header[15] = 0;
    header[14] = 1;
    header[19] = 11;
    header[256..267].copy_from_slice(b"/etc/passwd");
    file.write_all_at(&header, 0).unwrap();
    let outcome = run(&home, "--mount-disk", &format!("{}:/d", image.display()), "true");
    assert_eq!(outcome.code, 125);
    assert!(stderr(&outcome).contains("it has a backing file"), "{outcome:?}");
    // What calls itself raw is raw: the guest sees the header and no file behind it.
    let mount = format!("{}:/d:format=raw", image.display());
    let outcome = run(&home, "--mount-disk", &mount, "true");
    assert!(stderr(&outcome).contains("cannot mount '/d'"), "{outcome:?}");
}
