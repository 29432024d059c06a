//! Options of the programs that SDKs call: descriptors, several names, cursors, labels.

use serde_json::{Value, json};

use crate::support::Home;

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Runs a Python program with the state directory and the programs of the home.
fn python(home: &Home, program: &str) -> String {
    std::fs::write(home.directory.join("program.py"), program).unwrap();
    home.shell("python3 program.py").done()
}

#[test]
fn a_sandbox_ends_when_the_peer_of_its_socket_is_closed() {
    let home = Home::with_busybox();
    let told = python(
        &home,
        "import socket, subprocess\n\
         ours, theirs = socket.socketpair()\n\
         fd = theirs.fileno()\n\
         subprocess.run(['msb', 'create', '-n', 'b', '--bond-fd', str(fd), 'busybox:test'],\n\
             pass_fds=[fd], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n\
         theirs.close()\n\
         print(subprocess.run(['msb', 'exec', 'b', 'echo', 'up'], capture_output=True).stdout)\n\
         ours.close()\n",
    );
    assert_eq!(told, "b'up\\n'\n");
    let end = parsed(&home.run(["wait", "b", "--format", "json"]).done());
    assert_eq!(end["reason"], "client_gone");
    home.run(["rm", "b"]).done();
}

#[test]
fn a_wrong_keepalive_descriptor_leaves_no_sandbox() {
    let home = Home::with_busybox();
    let outcome = home.shell("msb create -n b --bond-fd 7 busybox:test 7</etc/passwd");
    assert_eq!(outcome.code, 2);
    let why = "msb create: error: descriptor 7 is neither a pipe nor a socket\n";
    assert_eq!(String::from_utf8_lossy(&outcome.stderr), why);
    assert_eq!(home.shell("msb create -n b --bond-fd 7 busybox:test").code, 1);
    assert_eq!(home.sandboxes(), []);
}

#[test]
fn a_configuration_is_read_from_a_socket_and_printed_in_the_same_form() {
    let home = Home::with_busybox();
    python(
        &home,
        r#"import json, socket, subprocess
config = {"name": "one", "image": {"Oci": {"reference": "busybox:test"}}, "memory_mib": 256,
    "env": [["A", "b=c"]], "labels": {"k": "v"}, "scripts": {"hi": "echo hi"},
    "patches": [{"Text": {"path": "/t", "content": "x", "mode": 384}}, {"Mkdir": {"path": "/m"}},
        {"Symlink": {"target": "/t", "link": "/l"}}],
    "rlimits": [{"resource": "nofile", "soft": 64, "hard": 128}],
    "mounts": [{"type": "Tmpfs", "guest": "/x", "size_mib": 8, "options": {"noexec": True,
        "readonly": False, "nosuid": False, "nodev": False}}],
    "network": {"ports": [{"host_port": 18080, "guest_port": 80, "host_bind": "127.0.0.1"}],
        "policy": {"default_egress": "deny", "default_ingress": "allow", "rules": [
            {"action": "allow", "direction": "egress", "destination": {"domain": "example.com"},
             "protocols": ["tcp"], "ports": [{"start": 1, "end": 9}]}]}}}
ours, theirs = socket.socketpair()
ours.sendall(json.dumps(config).encode())
ours.close()
subprocess.run(["msb", "create", "--no-start", "--from-microsandbox", "-"], stdin=theirs,
    check=True)
"#,
    );
    let print = ["inspect", "one", "--format", "json", "--as", "microsandbox"];
    let first = parsed(&home.run(print).done());
    let config = &first["config"];
    assert_eq!(config["scripts"], json!({"hi": "echo hi"}));
    assert_eq!(config["network"]["policy"]["rules"][0]["destination"]["domain"], "example.com");
    home.shell(
        "msb inspect one --format json --as microsandbox | sed 's/\"one\"/\"two\"/' |
         msb create --no-start --from-microsandbox -",
    )
    .done();
    let spec = |name: &str| {
        let text = home.run(["inspect", name, "--format", "json"]).done();
        let mut spec = parsed(&text)["config"].take();
        for own in ["name", "hostname", "created_at", "machine_id"] {
            spec[own].take();
        }
        spec
    };
    assert_eq!(spec("one"), spec("two"));
    // Several names are one line each, and a missing one does not hide the others.
    let several = home.run(["inspect", "one", "none", "two", "--format", "json"]);
    assert_eq!(several.code, 1);
    let text = String::from_utf8(several.stdout).unwrap();
    let names: Vec<Value> = text.lines().map(|line| parsed(line)["name"].clone()).collect();
    assert_eq!(names, ["one", "two"]);
    let rows = parsed(&home.run(["ls", "--format", "json"]).done());
    assert!(rows[0]["updated_at"].is_string(), "{rows}");
    // The form has no field for the files of a snapshot, and names the option that brings them.
    home.run(["create", "--no-start", "--name", "plain", "busybox:test"]).done();
    home.run(["snapshot", "create", "-q", "--from", "plain", "base"]).done();
    home.run(["create", "--no-start", "--name", "from", "--snapshot", "base"]).done();
    let outcome = home.run(["inspect", "from", "--format", "json", "--as", "microsandbox"]);
    let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert!(text.contains("no field for snapshot"), "{outcome:?}");
    let option = text.split(" create ").nth(1).unwrap().split(" FILE").next().unwrap();
    home.shell(&format!(
        "msb inspect from --format json --as microsandbox 2>/dev/null | sed 's/\"from\"/\"again\"/' |
         msb create --no-start {option} -"
    ))
    .done();
    assert_eq!(spec("again"), spec("from"));
    home.run(["rm", "one", "two", "plain", "from", "again"]).done();
}

#[test]
fn invalid_input_of_a_configuration_is_an_error_without_its_values() {
    let home = Home::with_busybox();
    let outcome = home.shell("echo '{\"env\": hunter2' | msb create --from-microsandbox -");
    assert_eq!(outcome.code, 1);
    let why = "msb create: error: cannot parse 'standard input': no JSON at line 1, column 9\n";
    assert_eq!(String::from_utf8_lossy(&outcome.stderr), why);
}

#[test]
fn each_entry_of_a_log_has_a_cursor_from_which_reading_goes_on() {
    let home = Home::with_busybox();
    home.run(["create", "-n", "c", "busybox:test"]).done();
    for word in ["one", "two", "three"] {
        home.run(["exec", "--log", "c", "echo", word]).done();
    }
    let lines = home.run(["logs", "c", "--json", "--cursors"]).done();
    let entries: Vec<Value> = lines.lines().map(parsed).collect();
    let at = entries.iter().position(|entry| entry["d"] == "one\n").unwrap();
    let cursor = entries[at]["cursor"].as_str().unwrap();
    let rest = home.run(["logs", "c", "--after-cursor", cursor]).done();
    assert_eq!(rest, "two\nthree\n");
    assert_eq!(home.run(["logs", "c", "--cursors"]).code, 2);
    home.run(["rm", "-f", "c"]).done();
}

#[test]
fn a_volume_keeps_its_labels() {
    let home = Home::with_busybox();
    home.shell("msb volume create --kind dir --label team=ml --label empty v").is(0, "v\n", "");
    let volume = parsed(&home.run(["volume", "inspect", "v", "--format", "json"]).done());
    assert_eq!(volume["labels"], json!({"team": "ml", "empty": ""}));
    let rows = parsed(&home.run(["volume", "ls", "--format", "json"]).done());
    assert_eq!(rows[0]["labels"]["team"], "ml");
}
