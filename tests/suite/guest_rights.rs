//! Privileges of commands in a guest, by default and with `--security restricted`.

use std::fs;

use crate::support::Home;

/// A script that tells what it may do.
const PROBE: &str = "grep -E '^(NoNewPrivs|CapEff|CapBnd)' /proc/self/status; mount -t tmpfs none /mnt 2>&1 && echo mounted";

/// The bit of `CAP_SYS_ADMIN`, in the capabilities that the probe tells.
fn has_sys_admin(output: &str, set: &str) -> bool {
    let mask = output.lines().find_map(|line| line.strip_prefix(set)).unwrap();
    let mask = u64::from_str_radix(mask.trim_start_matches(':').trim(), 16).unwrap();
    mask & (1 << 21) != 0
}

#[test]
fn by_default_root_of_a_guest_is_root() {
    let home = Home::with_busybox();
    let output =
        home.run(["run", "--mkdir", "/mnt", "busybox:test", "--", "sh", "-c", PROBE]).done();
    assert!(output.contains("NoNewPrivs:\t0"), "{output}");
    assert!(has_sys_admin(&output, "CapEff"), "{output}");
    assert!(output.ends_with("mounted\n"), "{output}");
}

#[test]
fn a_restricted_command_cannot_mount_nor_gain_rights() {
    let home = Home::with_busybox();
    let restricted = ["--security", "restricted", "--mkdir", "/mnt", "busybox:test"];
    let args = [&["run", "-d", "--name", "x"][..], &restricted].concat();
    home.run(args).done();
    for user in ["root", "alice"] {
        let args = ["exec", "--user", user, "x", "--", "sh", "-c", PROBE];
        let outcome = home.run(args);
        let output = String::from_utf8_lossy(&outcome.stdout).into_owned();
        assert_eq!(outcome.code, 1, "{output}");
        assert!(output.contains("NoNewPrivs:\t1"), "{output}");
        assert!(!has_sys_admin(&output, "CapEff"), "{output}");
        assert!(!has_sys_admin(&output, "CapBnd"), "{output}");
        assert!(!output.contains("mounted"), "{output}");
    }
    home.run(["stop", "x"]).done();
}

/// Every kind of mount in one sandbox of a profile; what `/proc/mounts` says of each, and what a
/// device on it is. (That no set-user-id program counts is a matter of each command too, and so
/// cannot be told by one.)
fn mounts_of(profile: &str) -> String {
    let home = Home::with_busybox();
    let directory = home.directory.join("src");
    fs::create_dir(&directory).unwrap();
    home.run(["volume", "create", "image", "--size", "24M"]).done();
    let image = home.directory.join("image.img");
    fs::rename(home.state().join("volumes/image/disk.img"), &image).unwrap();
    home.run(["volume", "create", "directory", "--kind", "dir"]).done();
    let script = "for d in /volume /image /memory; do mknod $d/null c 1 3 && echo x >$d/null && echo $d device; done; \
        grep -E ' /(bind|directory|volume|image|memory) ' /proc/mounts | sort -k2 | cut -d' ' -f2-4";
    let outcome = home.run([
        "run",
        "--security",
        profile,
        "-v",
        &format!("{}:/bind", directory.display()),
        "-v",
        "directory:/directory:noexec",
        "-v",
        "data:/volume",
        "--mount-disk",
        &format!("{}:/image", image.display()),
        "--tmpfs",
        "/memory:1M",
        "busybox:test",
        "--",
        "sh",
        "-c",
        script,
    ]);
    outcome.done()
}

#[test]
fn what_is_mounted_for_a_restricted_sandbox_has_no_setuid_programs_and_no_devices() {
    let restricted = mounts_of("restricted");
    let lines: Vec<&str> = restricted.lines().collect();
    let expected = [
        "/bind virtiofs rw,nosuid,nodev,relatime",
        "/directory virtiofs rw,nosuid,nodev,noexec,relatime",
        "/image ext4 rw,nosuid,nodev,relatime",
        "/memory tmpfs rw,nosuid,nodev,relatime",
        "/volume virtiofs rw,nosuid,nodev,relatime",
    ];
    assert_eq!(lines.len(), expected.len(), "{restricted}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}");
    }
    // Without the profile they are as they were asked for, and the devices are there. A directory of
    // the host holds none.
    let usual = mounts_of("default");
    assert!(!usual.contains("/volume device"), "{usual}");
    for place in ["/image", "/memory"] {
        assert!(usual.contains(&format!("{place} device\n")), "{usual}");
    }
    assert!(!usual.contains("nosuid") && !usual.contains("nodev"), "{usual}");
}

#[test]
fn the_profile_is_shown_and_kept() {
    let home = Home::with_busybox();
    let args = [
        "create",
        "--name",
        "x",
        "--no-start",
        "--security",
        "restricted",
        "--tmpfs",
        "/memory:1M",
        "busybox:test",
    ];
    home.run(args).done();
    let text = home.run(["inspect", "x"]).done();
    assert!(text.contains("at /memory (rw,nosuid,nodev)\n"), "{text}");
    assert!(
        text.lines().any(|line| line.split_whitespace().eq(["Security", "restricted"])),
        "{text}"
    );
    let json = home.run(["inspect", "--format", "json", "x"]).done();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["config"]["guest"]["security"], "restricted");
}
