//! Tests of the parser: what is accepted, and every refusal.

use serde_json::{Value, json};

use super::*;

/// Returns a configuration as podman 4.3 writes it, trimmed.
fn config() -> Value {
    json!({
        "ociVersion": "1.0.2-dev",
        "process": {
            "terminal": false,
            "user": {"uid": 1000, "gid": 1000, "umask": 18, "additionalGids": [1000]},
            "args": ["sh", "-c", "true"],
            "env": ["PATH=/bin", "A=B", "TWO=1\n2"],
            "cwd": "/tmp",
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}]
        },
        "root": {"path": "/merged"},
        "hostname": "h",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev/shm", "type": "bind", "source": "/x", "options": ["bind"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/run/hosts",
             "options": ["bind", "rprivate"]},
            {"destination": "/data", "type": "bind", "source": "/d", "options": ["rbind", "ro"]},
            {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=64m"]}
        ],
        "annotations": {"a": "b"},
        "linux": {
            "resources": {"memory": {"limit": 268_435_456_i64},
                "cpu": {"quota": 150_000, "period": 100_000}},
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"},
                {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore"]
        }
    })
}

fn parsed(config: &Value) -> anyhow::Result<Container> {
    parse(config.to_string().as_bytes(), Path::new("/bundle"))
}

#[test]
fn a_configuration_of_podman_becomes_a_container() -> anyhow::Result<()> {
    let container = parsed(&config())?;
    assert_eq!(container.memory_mib, Some(256));
    assert_eq!(container.cpus, Some(2));
    assert_eq!(container.network, NetworkNamespace::Path("/run/netns/x".into()));
    assert_eq!(container.process.user, "1000:1000");
    assert_eq!(container.process.rlimits, ["nofile=512:1024"]);
    let targets: Vec<_> =
        container.binds.iter().map(|bind| (&*bind.target, bind.readonly)).collect();
    assert_eq!(targets, [(Path::new("/etc/hosts"), false), (Path::new("/data"), true)]);
    assert_eq!(container.tmpfs, [TmpfsMount { target: "/t".into(), size: Some("64m".into()) }]);
    Ok(())
}

#[test]
fn variables_are_no_arguments_unless_a_line_cannot_contain_them() -> anyhow::Result<()> {
    let (options, file) = parsed(&config())?.process.options();
    assert_eq!(file, b"PATH=/bin\nA=B\n");
    assert!(options.iter().any(|option| option == "TWO=1\n2"));
    assert!(!options.iter().any(|option| option == "A=B"));
    Ok(())
}

#[test]
fn a_relative_root_is_in_the_bundle() -> anyhow::Result<()> {
    let mut config = config();
    config["root"]["path"] = json!("rootfs");
    assert_eq!(parsed(&config)?.root, Path::new("/bundle/rootfs"));
    Ok(())
}

#[test]
fn every_refusal_names_its_reason() {
    let mount = |mount: Value| json!([mount]);
    for (pointer, value, reason) in [
        ("/root/readonly", json!(true), "a read-only root is not supported"),
        ("/ociVersion", json!("2.0.0"), "is not 1.x"),
        ("/process/args", json!([]), "has no command"),
        ("/process/args", json!(["a\0b"]), "NUL"),
        ("/process/cwd", json!("tmp"), "not absolute"),
        ("/process/user/umask", json!(0), "umask"),
        ("/linux/cgroupsPath", json!("a.slice:b:c"), "systemd"),
        ("/linux/cgroupsPath", json!("/a/../../b"), "'..'"),
        ("/hooks", json!({"prestart": [{"path": "/x"}]}), "hooks are not supported"),
        ("/annotations", json!({"io.kubernetes.cri.container-type": "sandbox"}), "pod sandbox"),
        ("/linux/uidMappings", json!([{"containerID": 0, "hostID": 1, "size": 1}]), "mappings"),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "c", "major": 1, "minor": 1}]),
            "devices of the host",
        ),
        ("/linux/namespaces", json!([{"type": "user"}]), "user namespaces"),
        ("/linux/namespaces", json!([{"type": "time"}]), "time namespaces"),
        ("/linux/namespaces", json!([{"type": "pid", "path": "/proc/1/ns/pid"}]), "joining"),
        ("/linux/namespaces", json!([{"type": "mount", "path": "/p"}]), "joining"),
        ("/linux/namespaces", json!([{"type": "network", "path": "p"}]), "not absolute"),
        ("/mounts", mount(json!({"destination": "/a/../b", "type": "tmpfs"})), "'..'"),
        ("/mounts", mount(json!({"destination": "/a", "type": "overlay"})), "type 'overlay'"),
        ("/mounts", mount(json!({"destination": "/a", "type": "bind"})), "no source"),
        (
            "/mounts",
            mount(json!({"destination": "/a", "type": "tmpfs", "options": ["tmpcopyup"]})),
            "tmpcopyup",
        ),
        (
            "/mounts",
            mount(
                json!({"destination": "/a", "type": "bind", "source": "/s", "options": ["idmap"]}),
            ),
            "ID mappings",
        ),
    ] {
        let mut config = config();
        set(&mut config, pointer, value);
        let error = parsed(&config).err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(error.contains(reason), "{pointer}: {error}");
    }
}

/// Sets a member, which need not exist.
fn set(config: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').unwrap_or_default();
    if let Some(parent) = config.pointer_mut(parent) {
        parent[name] = value;
    }
}

#[test]
fn what_is_no_configuration_is_an_error() {
    for bytes in [&b""[..], b"{}", b"[]", b"\xff", b"{\"ociVersion\":\"1.0\"}"] {
        assert!(parse(bytes, Path::new("/b")).is_err());
        assert!(parse_process(bytes).is_err());
    }
}
