//! Stored configurations of microsandbox 0.5, as the real programs wrote them.

use serde_json::{Value, json};

use crate::support::Home;

/// A home with busybox, also under the name of the image in most of the files.
fn home() -> Home {
    let home = Home::with_busybox();
    home.run(["image", "tag", "busybox:test", "docker.io/library/debian:latest"]).done();
    home.shell("mkdir -p share/dir; echo file >share/f; echo in >share/dir/in").done();
    home
}

/// Writes a stored configuration with the host paths of this home. Returns its path.
fn write(home: &Home, stored: &str) -> String {
    let share = home.directory.join("share");
    let path = home.directory.join("stored.json");
    std::fs::write(&path, stored.replace("/srv/share", share.to_str().unwrap())).unwrap();
    path.to_str().unwrap().to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The configuration that msb made of it.
fn config(home: &Home, name: &str) -> Value {
    let text = home.run(["inspect", name, "--format", "json"]).done();
    serde_json::from_str::<Value>(&text).unwrap()["config"].take()
}

#[test]
fn a_plain_configuration_of_0_5_5_boots() {
    let home = home();
    let file = write(&home, include_str!("../support/stored-configs/stored-0.5.5-plain.json"));
    let outcome = home.run(["create", "--from-microsandbox", &file]);
    assert_eq!((outcome.code, text(&outcome.stdout).as_str()), (0, "plain\n"));
    // The image is another one than in the catalog of microsandbox.
    assert!(
        text(&outcome.stderr)
            .contains("warning: the image 'docker.io/library/debian:latest' is sha256:")
    );
    assert!(
        text(&outcome.stderr).contains("the stored sandbox had sha256:cfc45db9"),
        "{}",
        text(&outcome.stderr)
    );
    home.run(["exec", "plain", "--", "grep", "-c", "^tmpfs /tmp ", "/proc/mounts"])
        .is(0, "1\n", "");
    home.run(["rm", "-f", "plain"]).done();
}

#[test]
fn a_configuration_of_0_5_2_keeps_read_only_mounts() {
    let home = home();
    let file = write(&home, include_str!("../support/stored-configs/stored-0.5.2-readonly.json"));
    let outcome = home.run(["create", "--from-microsandbox", &file, "-e", "A=2"]);
    assert_eq!(
        (outcome.code, text(&outcome.stdout).as_str()),
        (0, "leg2\n"),
        "{}",
        text(&outcome.stderr)
    );
    let script = "touch /a/x 2>/dev/null || echo refused; touch /c/y && echo $A";
    home.run(["exec", "leg2", "--", "sh", "-c", script]).is(0, "refused\n2\n", "");
    home.run(["rm", "-f", "leg2"]).done();
}

#[test]
fn a_restricted_configuration_stays_restricted() {
    let home = home();
    let stored = include_str!("../support/stored-configs/stored-0.5.5-restricted.json");
    let file = write(&home, stored);
    home.run([
        "create",
        "--no-start",
        "--from-microsandbox",
        &file,
        "--leave-out",
        "security_profile",
    ])
    .is(
        2,
        "",
        &format!(
            "msb create: error: cannot leave out 'security_profile': not an unsupported field\n\
                 msb create: hint: '{file}' can be imported without --leave-out\n"
        ),
    );
    assert_eq!(home.sandboxes(), []);
    let outcome = home.run(["create", "--no-start", "--from-microsandbox", &file]);
    assert_eq!(
        (outcome.code, text(&outcome.stdout).as_str()),
        (0, "m1\n"),
        "{}",
        text(&outcome.stderr)
    );
    let config = config(&home, "m1");
    assert_eq!(config["guest"]["security"], "restricted");
    assert_eq!(config["net"]["ports"].as_array().unwrap().len(), 2);
    assert_eq!((&config["labels"]["team"], &config["labels"]["gpu"]), (&json!("ml"), &json!("")));
    home.run(["rm", "m1"]).done();
}

#[test]
fn every_field_of_a_full_configuration_is_taken_over() {
    let home = home();
    let file = write(&home, include_str!("../support/stored-configs/stored-0.5.5-full.json"));
    let outcome = home.run(["create", "--no-start", "--from-microsandbox", &file]);
    assert_eq!(
        (outcome.code, text(&outcome.stdout).as_str()),
        (0, "full\n"),
        "{}",
        text(&outcome.stderr)
    );
    assert!(
        text(&outcome.stderr).contains("warning: the volume 'data' is new"),
        "{}",
        text(&outcome.stderr)
    );
    let config = config(&home, "full");
    let guest = &config["guest"];
    assert_eq!(guest["init"], json!({"args": ["x"], "env": ["A=b"]}));
    assert_eq!(guest["shell"], "/bin/bash");
    let from = home.directory.join("share/f");
    assert_eq!(
        guest["changes"],
        json!([
            {"kind": "script", "name": "hi", "body": "#!/bin/bash\necho hello\n"},
            {"kind": "copy", "from": from, "to": "/root/f", "exclusive": true},
            {"kind": "make_folder", "path": "/m"},
            {"kind": "remove", "path": "/etc/motd"}
        ])
    );
    assert_eq!(config["command"], json!(["/bin/echo", "/bin/sh"]));
    assert_eq!((&config["hostname"], &config["user"]), (&json!("hhh"), &json!("1000:1000")));
    assert_eq!((&config["workdir"], &config["upper_mib"]), (&json!("/usr"), &json!(8192)));
    assert_eq!(
        (&config["max_duration_ms"], &config["idle_timeout_ms"]),
        (&json!(3_600_000), &json!(30_000))
    );
    let net = &config["net"];
    assert_eq!((&net["ipv4_pool"], &net["max_connections"]), (&json!("10.9.0.0/16"), &json!(99)));
    assert_eq!(
        (&net["policy"]["egress"], &net["policy"]["ingress"]),
        (&json!("deny"), &json!("deny"))
    );
    assert_eq!(net["policy"]["rules"].as_array().unwrap().len(), 4);
    assert_eq!(config["mounts"].as_array().unwrap().len(), 3);
    home.run(["rm", "full"]).done();
}

#[test]
fn patches_of_all_kinds_are_made_in_their_order() {
    let home = home();
    let file = write(&home, include_str!("../support/stored-configs/stored-0.5.5-patched.json"));
    let outcome = home.run(["create", "--from-microsandbox", &file]);
    assert_eq!(
        (outcome.code, text(&outcome.stdout).as_str()),
        (0, "patched\n"),
        "{}",
        text(&outcome.stderr)
    );
    let script = "cat /etc/greeting; stat -c %a /etc/greeting /usr/blob /root/f /m/n; cat /root/f \
                  /root/dir/in; wc -c </usr/blob; readlink /etc/link; tail -n 1 /etc/passwd";
    home.run(["exec", "patched", "--", "sh", "-c", script]).is(
        0,
        "again\n644\n600\n600\n750\nfile\nin\n3\ngreeting\n# appended\n",
        "",
    );
    home.run(["rm", "-f", "patched"]).done();
    // A patch that does not replace refuses a path that exists, and nothing is left behind.
    let stored = include_str!("../support/stored-configs/stored-0.5.5-patched.json");
    let file = write(&home, &stored.replace("/usr/blob", "/etc/passwd"));
    let outcome = home.run(["create", "--from-microsandbox", &file]);
    assert!(
        outcome.code != 0 && text(&outcome.stderr).contains("'/etc/passwd' exists"),
        "{}",
        text(&outcome.stderr)
    );
    assert_eq!(home.sandboxes(), []);
}

#[test]
fn resource_limits_hold_for_every_command() {
    let home = home();
    let file = write(&home, include_str!("../support/stored-configs/stored-0.5.5-limits.json"));
    let outcome = home.run(["create", "--from-microsandbox", &file]);
    assert_eq!(
        (outcome.code, text(&outcome.stdout).as_str()),
        (0, "limits\n"),
        "{}",
        text(&outcome.stderr)
    );
    assert!(
        text(&outcome.stderr).contains("warning: ignored: 'log_level'\n"),
        "{}",
        text(&outcome.stderr)
    );
    let script = "awk '/^Max open files/ {print $4, $5} /^Max processes/ {print $3, $4}' \
                  /proc/self/limits; hi; grep NoNewPrivs /proc/self/status";
    home.run(["exec", "limits", "--", "sh", "-c", script]).is(
        0,
        "512 1024\n2048 2048\nhello\nNoNewPrivs:\t1\n",
        "",
    );
    let limited = ["exec", "--rlimit", "nofile=64", "limits", "--", "sh", "-c", "ulimit -n"];
    home.run(limited).is(0, "64\n", "");
    assert_eq!(config(&home, "limits")["metrics"], json!({"sample_interval_ms": 250}));
    home.run(["rm", "-f", "limits"]).done();
}

#[test]
fn bindings_of_secrets_are_imported_and_values_are_not() {
    let home = home();
    let stored = include_str!("../support/stored-configs/stored-0.5.5-tls-secret.json");
    let create = |file: &str| home.run(["create", "--no-start", "--from-microsandbox", file]);
    let file = write(&home, &stored.replace("\"abc\"", "\"hunter2\""));
    let outcome = create(&file);
    let said = text(&outcome.stderr);
    assert_eq!(outcome.code, 0, "{said}");
    assert!(
        said.contains("ignored: the value of secret TOK;") && !said.contains("hunter2"),
        "{said}"
    );
    let spec = config(&home, "tls");
    let tls = &spec["net"]["tls"];
    assert_eq!(tls["intercept"], json!(true));
    assert_eq!(tls["secrets"][0]["hosts"], json!(["api.example.com"]));
    assert!(!spec.to_string().contains("hunter2"));
    let start = home.run(["start", "tls"]);
    assert!(text(&start.stderr).contains("cannot read secret TOK from env:TOK"), "{start:?}");
    home.run(["rm", "tls"]).done();
    // What msb does otherwise is named, and nothing is created.
    for (from, to, named) in [
        (
            "\"require_tls_identity\": true",
            "\"require_tls_identity\": false",
            "network.secrets.secrets.0",
        ),
        ("\"verify_upstream\": true", "\"verify_upstream\": false", "network.tls.verify_upstream"),
        ("\"cert_path\": null", "\"cert_path\": \"/ca.pem\"", "network.tls.intercept_ca"),
    ] {
        let document: Value = serde_json::from_str(stored).unwrap();
        let pretty = serde_json::to_string_pretty(&document).unwrap();
        assert!(pretty.contains(from), "{from}");
        let outcome = create(&write(&home, &pretty.replace(from, to)));
        assert_eq!(outcome.code, 1, "{to}");
        assert!(text(&outcome.stderr).contains(&format!("{named} (")), "{outcome:?}");
        assert_eq!(home.sandboxes(), []);
    }
}

#[test]
fn a_policy_is_never_left_out() {
    let home = home();
    let stored = include_str!("../support/stored-configs/stored-0.5.5-restricted.json");
    let file = write(
        &home,
        &stored
            .replace(r#""group": "host""#, r#""group": "moon""#)
            .replace(r#""group":"host""#, r#""group":"moon""#),
    );
    let create = ["create", "--no-start", "--from-microsandbox", &file];
    let outcome = home.run(create);
    assert_eq!(outcome.code, 1);
    assert!(
        text(&outcome.stderr).contains("network.policy.rules.0 ("),
        "{}",
        text(&outcome.stderr)
    );
    let outcome = home.run([&create[..], &["--leave-out", "network.policy.rules.0"]].concat());
    assert_eq!(outcome.code, 1);
    assert!(
        text(&outcome.stderr).contains("would be less restricted"),
        "{}",
        text(&outcome.stderr)
    );
    assert_eq!(home.sandboxes(), []);
}

#[test]
fn a_mount_and_an_address_are_left_out_by_name() {
    let home = home();
    home.shell("truncate -s 8M share/disk.raw; mke2fs -q -F -t ext4 share/disk.raw").done();
    for (stored, name, fields) in [
        (include_str!("../support/stored-configs/stored-0.5.5-shares.json"), "shares", "mounts.1"),
        (
            include_str!("../support/stored-configs/stored-0.5.5-address.json"),
            "addr",
            "network.interface.mac,network.interface.mtu,network.interface.ipv4_address",
        ),
        (
            include_str!("../support/stored-configs/stored-0.5.5-net.json"),
            "net",
            "network.trust_host_cas",
        ),
    ] {
        let file = write(&home, stored);
        let create = ["create", "--no-start", "--from-microsandbox", &file];
        let outcome = home.run(create);
        assert_eq!(outcome.code, 1, "{}", text(&outcome.stderr));
        assert!(
            text(&outcome.stderr).contains(&format!("--leave-out {fields}\n")),
            "{}",
            text(&outcome.stderr)
        );
        let outcome = home.run([&create[..], &["--leave-out", fields]].concat());
        assert_eq!(outcome.code, 0, "{}", text(&outcome.stderr));
        assert_eq!(text(&outcome.stderr).matches("left out: ").count(), fields.split(',').count());
        home.run(["rm", name]).done();
    }
}

#[test]
fn a_sandbox_without_a_network_stays_without_one() {
    let home = home();
    let file = write(&home, include_str!("../support/stored-configs/stored-0.5.5-off.json"));
    assert_eq!(home.run(["create", "--no-start", "--from-microsandbox", &file]).code, 0);
    assert_eq!(config(&home, "off")["net"]["enabled"], false);
    home.run(["rm", "off"]).done();
}

#[test]
fn what_is_no_configuration_is_refused_with_its_name() {
    let home = Home::with_busybox();
    for (config, why) in [
        (json!([]), "not a JSON object"),
        (json!({"cpus": 0}), "cpus and memory cannot be 0"),
        (json!({"env": ["A=secret"]}), "field 'env' has an invalid value"),
    ] {
        let file = write(&home, &config.to_string());
        home.run(["create", "--from-microsandbox", &file]).is(
            1,
            "",
            &format!(
                "msb create: error: cannot parse '{file}': {why}\nmsb create: hint: write one \
                 with microsandbox 0.5: msb inspect NAME --format json\n"
            ),
        );
    }
    assert_eq!(home.run(["create", "--from-microsandbox", "/nowhere"]).code, 3);
    assert_eq!(home.run(["create", "--leave-out", "mounts.0", "busybox:test"]).code, 2);
}

#[test]
fn a_configuration_with_an_init_boots_with_it_and_gets_its_volume() {
    let home = home();
    let file = write(&home, include_str!("../support/stored-configs/stored-0.5.5-init.json"));
    home.shell("echo '::respawn:/bin/sleep 1000' >share/inittab").done();
    let inittab = format!("{}:/etc/inittab", home.directory.join("share/inittab").display());
    let outcome = home.run(["create", "--from-microsandbox", &file, "--copy", &inittab]);
    assert_eq!(
        (outcome.code, text(&outcome.stdout).as_str()),
        (0, "boots\n"),
        "{}",
        text(&outcome.stderr)
    );
    assert!(
        text(&outcome.stderr).contains("warning: the volume 'kept' is new"),
        "{}",
        text(&outcome.stderr)
    );
    let script = "cat /proc/1/comm; tr '\\0' '\\n' </proc/1/environ | grep '^A='; hi; \
                  echo x >/kept/f; grep -c ' /kept virtiofs' /proc/mounts";
    home.run(["exec", "boots", "--", "sh", "-c", script]).is(0, "init\nA=b\nhello\n1\n", "");
    home.run(["rm", "-f", "boots"]).done();
    // Its data stays, as the volume has been used.
    home.run(["volume", "ls", "-q"]).is(0, "kept\n", "");
}

/// A disk image with a file, written by a guest.
fn disk_with_a_file(home: &Home, name: &str) {
    let script = format!("truncate -s 16M share/{name}; mke2fs -q -F -t ext4 share/{name}");
    home.shell(&script).done();
    let disk = format!("{}:/d:format=raw", home.directory.join("share").join(name).display());
    let script = "echo on the disk >/d/f";
    home.run(["run", "--mount-disk", &disk, "busybox:test", "--", "sh", "-c", script])
        .is(0, "", "");
}

#[test]
fn a_disk_of_a_stored_configuration_is_read_in_the_guest() {
    let home = home();
    disk_with_a_file(&home, "disk.raw");
    let file = write(&home, include_str!("../support/stored-configs/stored-0.5.5-shares.json"));
    let create = ["create", "--from-microsandbox", &file, "--leave-out", "mounts.1"];
    assert_eq!(home.run(create).code, 0);
    let script = "cat /q/f; (echo x >/q/f) 2>/dev/null || echo refused; \
                  grep -c ' /q ext4 ro' /proc/mounts";
    home.run(["exec", "shares", "--", "sh", "-c", script]).is(0, "on the disk\nrefused\n1\n", "");
    home.run(["rm", "-f", "shares"]).done();
}

#[test]
fn a_disk_image_is_the_root_of_an_imported_sandbox() {
    let home = home();
    // busybox on a disk of its own, as an image of a distribution would be.
    home.shell("truncate -s 32M share/root.raw; mke2fs -q -F -t ext4 share/root.raw").done();
    let disk = format!("{}:/d:format=raw", home.directory.join("share/root.raw").display());
    let script = "mkdir /d/bin /d/etc && cp -a /bin/. /d/bin/ && cp /etc/passwd /d/etc/ && echo own >/d/etc/own";
    home.run(["run", "--mount-disk", &disk, "busybox:test", "--", "sh", "-c", script])
        .is(0, "", "");
    let file = write(&home, include_str!("../support/stored-configs/stored-0.5.5-disk-root.json"));
    let outcome = home.run(["create", "--from-microsandbox", &file]);
    assert_eq!(
        (outcome.code, text(&outcome.stdout).as_str()),
        (0, "rooted\n"),
        "{}",
        text(&outcome.stderr)
    );
    let script = "cat /etc/own; grep -c ' / ext4 rw' /proc/mounts; echo changed >/etc/own";
    home.run(["exec", "rooted", "--", "/bin/sh", "-c", script]).is(0, "own\n1\n", "");
    home.run(["stop", "rooted"]).done();
    home.run(["rm", "rooted"]).done();
    // The image itself was changed.
    let script = "cat /d/etc/own";
    home.run(["run", "--mount-disk", &disk, "busybox:test", "--", "sh", "-c", script]).is(
        0,
        "changed\n",
        "",
    );
}

#[test]
fn an_import_that_fails_late_leaves_nothing() {
    let home = home();
    let stored = include_str!("../support/stored-configs/stored-0.5.5-init.json");
    let file = write(&home, stored);
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let busy = format!("{}:80", listener.local_addr().unwrap().port());
    let create = ["create", "--from-microsandbox", &file, "-p", &busy];
    let outcome = home.run(create);
    assert_ne!(outcome.code, 0);
    assert_eq!(home.sandboxes(), [], "{}", text(&outcome.stderr));
    home.run(["volume", "ls"]).is(0, "", "no volumes\n");
    // A volume that was there before stays, with its data.
    home.run(["volume", "create", "kept"]).done();
    assert_ne!(home.run(create).code, 0);
    home.run(["volume", "ls", "-q"]).is(0, "kept\n", "");
    assert!(home.leftovers().is_empty());
}

#[test]
fn an_import_that_fails_after_the_boot_leaves_neither_its_sandbox_nor_its_volume() {
    let home = home();
    let stored = include_str!("../support/stored-configs/stored-0.5.5-plain.json");
    let mut stored: Value = serde_json::from_str(stored).unwrap();
    let options = json!({"readonly": false, "noexec": false, "nosuid": false, "nodev": false});
    for name in ["new", "old"] {
        let guest = format!("/{name}");
        let mount = json!({"type": "Named", "name": name, "guest": guest, "options": options});
        stored["mounts"].as_array_mut().unwrap().push(mount);
    }
    // The patch writes into the new volume, and then the init is missing.
    let text = json!({"path": "/new/file", "content": "x", "mode": null, "replace": false});
    stored["patches"] = json!([{"Text": text}]);
    stored["init"] = json!({"cmd": "/no/init", "args": [], "env": []});
    let file = write(&home, &stored.to_string());
    home.run(["volume", "create", "old"]).done();
    let outcome = home.run(["create", "--from-microsandbox", &file]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(text_of_init_error(&outcome.stderr), "{outcome:?}");
    assert_eq!(home.sandboxes(), []);
    home.run(["volume", "list", "-q"]).is(0, "old\n", "");
}

fn text_of_init_error(stderr: &[u8]) -> bool {
    text(stderr).contains("cannot execute '/no/init'") && !text(stderr).contains("console.log")
}
