//! Sandbox files (`--file`), and the archive for a bug report.

use std::fs;

use serde_json::Value;

use crate::support::Home;

fn write(home: &Home, name: &str, text: &str) {
    fs::write(home.directory.join(name), text).unwrap();
}

fn config(home: &Home, name: &str) -> Value {
    let text = home.run(["inspect", name, "--format", "json"]).done();
    serde_json::from_str::<Value>(&text).unwrap()["config"].take()
}

const WEB: &str = "\
# A sandbox.
name: web
image: busybox:test
cpus: 2
memory_mib: 256
hostname: boxy
env: [GREETING=hello, SECRET=hunter2]
labels: {team: ml, tier: \"1\"}
user: alice
workdir: /home/alice
upper_mib: 64
mounts:
- {target: /site, kind: bind, source: ./site, read_only: true}
- {target: /scratch, kind: tmpfs, size_mib: 8}
net:
  policy: {rules: [\"allow@example.com:tcp:443\"]}
guest:
  rlimits: [{resource: nofile, soft: 128, hard: 256}]
  changes:
  - {kind: write, path: /etc/note, body: \"from the file\\n\"}
  - {kind: script, name: greet, body: \"#!/bin/sh\\necho $GREETING\\n\"}
";

#[test]
fn a_sandbox_is_what_its_file_and_the_options_say() {
    let home = Home::with_busybox();
    fs::create_dir_all(home.directory.join("dir/site")).unwrap();
    write(&home, "dir/site/index.html", "page\n");
    write(&home, "dir/web.yaml", WEB);
    let script = "hostname; nproc; pwd; id -un; cat /site/index.html /etc/note; greet; ulimit -n; \
                  echo $OTHER; touch /site/x 2>/dev/null || echo read-only";
    let words =
        ["run", "--file", "dir/web.yaml", "-e", "OTHER=typed", "-c", "1", "sh", "-c", script];
    home.run(words).is(
        0,
        "boxy\n1\n/home/alice\nalice\npage\nfrom the file\nhello\n128\ntyped\nread-only\n",
        "",
    );
    let web = config(&home, "web");
    assert_eq!(
        (&web["cpus"], &web["memory_mib"], &web["upper_mib"], &web["labels"]["tier"]),
        (&1.into(), &256.into(), &64.into(), &"1".into())
    );
    assert_eq!(
        web["net"]["policy"]["rules"],
        serde_json::json!(["allow@domain=example.com:tcp:443"])
    );

    // What inspect prints makes the same sandbox under another name.
    home.shell("msb inspect web --format json | msb create --no-start --name twin --file -")
        .is(0, "twin\n", "");
    let mut twin = config(&home, "twin");
    assert_ne!(twin["machine_id"], web["machine_id"]);
    for field in ["name", "created_at", "machine_id"] {
        twin[field] = web[field].clone();
    }
    assert_eq!(twin, web);

    // The file of a sandbox that exists names what the sandbox does not have.
    let changed = WEB.replace("memory_mib: 256", "memory_mib: 512");
    write(&home, "dir/web.yaml", &changed);
    home.run(["run", "--file", "dir/web.yaml", "true"]).is(
        0,
        "",
        "msb run: warning: the sandbox 'web' already exists: ignored: 'cpus' of the file, 'memory_mib' of the file\n\
         msb run: hint: change it with 'msb modify web', or replace it with --replace\n",
    );
    home.run(["create", "--no-start", "--replace", "--file", "dir/web.yaml"]).is(0, "web\n", "");
    assert_eq!(config(&home, "web")["memory_mib"], 512);
    the_report_has_no_secrets(&home);
}

fn the_report_has_no_secrets(home: &Home) {
    home.run(["report", "web", "-o", "report.tar"]).is(0, "", "");
    home.shell("tar -tf report.tar | sort | head -4; tar -xOf report.tar | grep -c hunter2").is(
        1,
        "msb-report/doctor.json\nmsb-report/spec.json\nmsb-report/state.json\n\
         msb-report/status.json\n0\n",
        "",
    );
    let spec = home.shell("msb report web | tar -xOf - msb-report/spec.json").done();
    let spec: Value = serde_json::from_str(&spec).unwrap();
    assert_eq!(spec["memory_mib"], 512);
    let env: Vec<&str> = spec["env"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(env.contains(&"SECRET=[redacted]"), "{env:?}");
    let text = spec.to_string();
    assert!(!text.contains(home.directory.to_str().unwrap()), "{text}");
    assert_eq!(home.run(["report", "nosuch"]).code, 3);
}

#[test]
fn an_invalid_file_creates_nothing_and_is_explained() {
    let home = Home::with_busybox();
    for (text, why) in [
        ("image: busybox:test\ncpu: 2\n", "the field 'cpu' is unknown"),
        ("image: busybox:test\ncpus: two\n", "the field 'cpus' must be of the type integer"),
        (
            "image: busybox:test\nenv: [hunter2]\n",
            "a variable in 'env' is not of the form NAME=value",
        ),
        ("cpus: 1\n", "names no image"),
        ("image: *x\n", "line 1: "),
        ("{\"image\": ", "no JSON at line 1"),
        ("image: busybox:test\nnet: {policy: {rules: [allow@moon]}}\n", "'moon'"),
    ] {
        write(&home, "x.yaml", text);
        let outcome = home.run(["create", "--file", "x.yaml"]);
        let error = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert!(outcome.code == 2 && error.contains(why), "{text}: {outcome:?}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    assert_eq!(home.run(["create", "--file", "nosuch.yaml"]).code, 3);
    assert_eq!(home.run(["create", "--file", "x.yaml", "busybox:test", "--replace"]).code, 2);
    assert_eq!(home.sandboxes(), []);
}

#[test]
fn defaults_of_the_configuration_file_are_below_the_file() {
    let home = Home::with_busybox();
    let defaults = serde_json::json!({"sandbox_defaults": {
        "env": ["A=config", "B=config"], "labels": {"a": "config", "b": "config"},
        "user": "alice", "security": "restricted", "idle_timeout_ms": 60000, "max_duration_ms": 90000,
        "net": {"policy": {"rules": ["allow@example.com"]}, "max_connections": 9},
    }});
    write(&home, "state/config.json", &defaults.to_string());
    write(
        &home,
        "x.json",
        r#"{"name": "x", "image": {"reference": "busybox:test"}, "env": ["A=file"],
        "labels": {"a": "file"}, "idle_timeout_ms": 1000, "net": {"max_connections": 8}}"#,
    );
    home.run(["create", "--no-start", "--file", "x.json", "--net", "none", "-u", "root"])
        .is(0, "x\n", "");
    home.run(["create", "--no-start", "--name", "y", "busybox:test"]).is(0, "y\n", "");
    let (x, y) = (config(&home, "x"), config(&home, "y"));
    let has = |config: &Value, variable: &str| {
        config["env"].as_array().unwrap().contains(&variable.into())
    };
    assert!(has(&x, "A=file") && has(&x, "B=config") && has(&y, "A=config"), "{x} {y}");
    assert_eq!((&x["labels"]["a"], &x["labels"]["b"]), (&"file".into(), &"config".into()));
    assert_eq!((&x["user"], &y["user"]), (&"root".into(), &"alice".into()));
    assert_eq!((&x["idle_timeout_ms"], &y["idle_timeout_ms"]), (&1000.into(), &60000.into()));
    assert_eq!(y["max_duration_ms"], 90000);
    assert_eq!(y["guest"]["security"], "restricted");
    assert_eq!((&x["net"]["enabled"], &x["net"]["max_connections"]), (&false.into(), &8.into()));
    assert_eq!(y["net"]["max_connections"], 9);
    assert_eq!(y["net"]["policy"]["rules"], serde_json::json!(["allow@domain=example.com"]));
}

#[test]
fn the_schema_lists_the_fields_that_the_page_describes() {
    let home = Home::new();
    let schema: Value = serde_json::from_str(&home.run(["config", "schema"]).done()).unwrap();
    let page = fs::read_to_string(crate::support::stage("source/man/msb-spec.5")).unwrap();
    let fields = schema["properties"].as_object().unwrap();
    assert!(fields.len() > 20, "{fields:?}");
    for field in fields.keys() {
        assert!(page.contains(&format!(" {field}")), "{field} is not in msb-spec(5)");
    }
    let version: Value =
        serde_json::from_str(&home.run(["version", "--format", "json"]).done()).unwrap();
    let plain = home.run(["version"]).done();
    assert_eq!(format!("msb {}\n", version["version"].as_str().unwrap()), plain);
    assert_eq!(home.run(["version", "x"]).code, 2);
}
