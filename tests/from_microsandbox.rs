//! Stored configurations of microsandbox 0.5.

use serde_json::{Value, json};

use crate::support::Home;

fn write(home: &Home, config: &Value) -> String {
    let path = home.folder.join("stored.json");
    std::fs::write(&path, config.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// As 0.5.2 stored it: an image as a string, `readonly` beside a mount's paths, no labels.
fn of_0_5_2(home: &Home) -> Value {
    json!({
        "name": "old", "image": {"Oci": "busybox:test"}, "cpus": 2, "memory_mib": 300,
        "log_level": null, "metrics_sample_interval_ms": 1000, "disable_metrics_sample": false,
        "workdir": "/home/alice", "shell": "/bin/sh", "scripts": {},
        "env": [["A", "1"], ["B", "two words"]], "rlimits": [],
        "mounts": [
            {"type": "Tmpfs", "guest": "/tmp", "size_mib": 75, "readonly": false},
            {"type": "Bind", "host": home.folder.join("data"), "guest": "/data", "readonly": true},
            {"type": "DiskImage", "host": "/srv/d.vmdk", "guest": "/disk", "format": "Vmdk",
                "fstype": null, "readonly": true}
        ],
        "patches": [], "network": {"enabled": true, "ports": [], "secrets": {"secrets": []}, "policy": {
            "default_egress": "deny", "default_ingress": "allow", "rules": [{"direction": "egress",
                "destination": {"domain": "example.com"}, "protocols": ["tcp"], "ports": [], "action": "allow"}]}},
        "entrypoint": null, "cmd": ["sh"], "hostname": null, "user": "alice", "init": null,
        "pull_policy": "IfMissing",
        "policy": {"ephemeral": false, "max_duration_secs": null, "idle_timeout_secs": 600},
        "manifest_digest": "sha256:00"
    })
}

/// As `msb inspect --format json` of 0.5.5 prints it.
fn of_0_5_5() -> Value {
    json!({
        "name": "new", "status": "Stopped", "created_at": "2026-06-05T10:00:00+00:00",
        "config": {
            "name": "new",
            "image": {"Oci": {"reference": "busybox:test", "upper_size_mib": 100}},
            "cpus": 1, "memory_mib": 256, "env": [], "labels": {"team": "ml", "gpu": ""},
            "mounts": [{"type": "Tmpfs", "guest": "/tmp", "size_mib": 64,
                "options": {"readonly": false, "noexec": false, "nosuid": false, "nodev": false}}],
            "network": {"enabled": false}, "security": "default",
            "entrypoint": ["sh", "-c"], "cmd": ["echo hello"], "hostname": "host",
            "policy": {"ephemeral": false, "max_duration_secs": 3600}
        }
    })
}

#[test]
fn a_configuration_of_0_5_2_is_taken_over_and_what_is_left_out_is_named() {
    let home = Home::with_busybox();
    std::fs::create_dir(home.folder.join("data")).unwrap();
    let file = write(&home, &of_0_5_2(&home));
    home.run(["create", "--no-start", "--from-microsandbox", &file])
        .is(
            1,
            "",
            "msb-create: error: the configuration has what sandboxes of this version cannot have: \
         mounts: diskimage /srv/d.vmdk:/disk:ro\n\
         msb-create: hint: make it without: --leave-out\n",
        );
    assert_eq!(home.sandboxes(), []);
    let outcome = home.run([
        "create",
        "--from-microsandbox",
        &file,
        "--leave-out",
        "-e",
        "A=2",
    ]);
    outcome.is(
        0,
        "old\n",
        "msb-create: warning: left out: mounts: diskimage /srv/d.vmdk:/disk:ro\n\
         msb-create: warning: left out: 'manifest_digest'\n\
         msb-create: warning: left out: 'metrics_sample_interval_ms'\n\
         msb-create: warning: left out: 'pull_policy'\n",
    );
    let script = "echo $A $B; pwd; id -un; nproc; hostname";
    home.run(["exec", "old", "--", "sh", "-c", script]).is(
        0,
        "2 two words\n/home/alice\nalice\n2\nold\n",
        "",
    );
    let script = "touch /data/x 2>/dev/null || grep -c ' /data .*\\bro\\b' /proc/mounts";
    home.run(["exec", "-u", "root", "old", "--", "sh", "-c", script])
        .is(0, "1\n", "");
    let text = home.run(["inspect", "old", "--format", "json"]).done();
    let config = &serde_json::from_str::<Value>(&text).unwrap()["config"];
    assert_eq!(
        (&config["memory_mib"], &config["idle_timeout_ms"]),
        (&json!(300), &json!(600_000))
    );
    assert_eq!(
        (&config["lasting"], &config["command"]),
        (&json!(true), &json!(["sh"]))
    );
    assert_eq!(
        (&config["net"]["enabled"], &config["net"]["policy"]["rules"]),
        (&json!(true), &json!(["allow@domain=example.com:tcp"]))
    );
    home.run(["rm", "-f", "old"]).done();
}

#[test]
fn a_configuration_of_0_5_5_is_taken_over() {
    let home = Home::with_busybox();
    let file = write(&home, &of_0_5_5());
    let create = [
        "create",
        "--from-microsandbox",
        &file,
        "--name",
        "mine",
        "--label",
        "team=web",
    ];
    home.run(create).is(0, "", "");
    let text = home.run(["inspect", "mine", "--format", "json"]).done();
    let config = &serde_json::from_str::<Value>(&text).unwrap()["config"];
    // Those of the image are there as always.
    let labels = &config["labels"];
    assert_eq!(
        (&labels["team"], &labels["gpu"]),
        (&json!("web"), &json!(""))
    );
    assert_eq!(config["command"], json!(["sh", "-c", "echo hello"]));
    assert_eq!(
        (&config["hostname"], &config["upper_mib"]),
        (&json!("host"), &json!(100))
    );
    assert_eq!(config["max_duration_ms"], 3_600_000);
    assert_eq!(config["net"]["enabled"], false);
    let memory = "grep -c '^tmpfs /tmp ' /proc/mounts";
    home.run(["exec", "mine", "--", "sh", "-c", memory])
        .is(0, "1\n", "");
    let size = "df -m / | awk 'NR == 2 { print ($2 > 60 && $2 < 100) }'";
    home.run(["exec", "mine", "--", "sh", "-c", size])
        .is(0, "1\n", "");
    home.run(["logs", "mine"]).is(0, "hello\n", "");
    home.run(["rm", "-f", "mine"]).done();
}

#[test]
fn disks_and_an_init_are_taken_over() {
    let home = Home::with_busybox();
    let disk = home.folder.join("disk");
    home.shell("mkdir d; echo on the disk >d/note; truncate -s 8M disk; mke2fs -q -F -t ext4 -d d disk; truncate -s 8M root.raw")
        .done();
    let config = json!({
        "name": "x", "image": {"Oci": {"reference": "busybox:test"}},
        "mounts": [{"type": "DiskImage", "host": disk, "guest": "/disk", "format": "Raw", "fstype": "ext4",
            "options": {"readonly": true, "noexec": false, "nosuid": false, "nodev": false}}],
        "init": {"program": "/bin/init", "args": [], "env": [["A", "b"]]}
    });
    home.run(["create", "--from-microsandbox", &write(&home, &config)])
        .is(0, "x\n", "");
    let script = "cat /disk/note; touch /disk/x 2>&- || echo refused; cat /proc/1/comm; \
                  tr '\\0' '\\n' </proc/1/environ | grep '^A='";
    home.run(["exec", "x", "--", "sh", "-c", script]).is(
        0,
        "on the disk\nrefused\ninit\nA=b\n",
        "",
    );
    home.run(["rm", "-f", "x"]).done();
    // A disk as the root.
    let root = home.folder.join("root.raw");
    let config = json!({
        "name": "y", "image": {"DiskImage": {"path": root, "format": "Raw", "fstype": "ext4"}}
    });
    home.run([
        "create",
        "--no-start",
        "--from-microsandbox",
        &write(&home, &config),
    ])
    .is(0, "y\n", "");
    let text = home.run(["inspect", "y", "--format", "json"]).done();
    let config = &serde_json::from_str::<Value>(&text).unwrap()["config"];
    assert!(
        config.to_string().contains(root.to_str().unwrap()),
        "{config}"
    );
    home.run(["rm", "y"]).done();
}

#[test]
fn what_is_no_configuration_is_refused_with_its_name() {
    let home = Home::with_busybox();
    for (config, why) in [
        (json!([]), "it is no object"),
        (json!({"cpus": 0}), "cpus and memory cannot be 0"),
        (
            json!({"env": ["A=secret"]}),
            "its field 'env' is not what it should be",
        ),
    ] {
        let file = write(&home, &config);
        home.run(["create", "--from-microsandbox", &file]).is(
            1,
            "",
            &format!(
                "msb-create: error: cannot understand '{file}': {why}\nmsb-create: hint: it must be a \
                 stored configuration of microsandbox 0.5: msb inspect NAME --format json\n"
            ),
        );
    }
    assert_eq!(
        home.run(["create", "--from-microsandbox", "/nowhere"]).code,
        3
    );
    assert_eq!(home.run(["create", "--leave-out", "busybox:test"]).code, 2);
}
