//! Settings of an image's configuration and files, as the guest has them: stop signal, volumes,
//! `/etc/hosts`, and an image without `/etc/passwd`.

use crate::support::{Home, fixture, wait_until};

/// Reads the archive of busybox, changes its configuration and adds a layer, and writes it as
/// `changed`. The words are the configuration's fields and the layer's entries, as JSON: each entry
/// has a path, a kind (`file`, `link`, `fifo`, `directory` or `gone`) and a content.
const CHANGE: &str = r#"
import hashlib, io, json, sys, tarfile
source, fields, entries = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
old = tarfile.open(source)
manifest = json.load(old.extractfile('manifest.json'))[0]
config = json.load(old.extractfile(manifest['Config']))
config['config'] = {**(config.get('config') or {}), **fields}
layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode='w') as tar:
    for path, kind, content in entries:
        parent, _, name = path.rpartition('/')
        entry = tarfile.TarInfo(f'{parent}/.wh.{name}' if kind == 'gone' else path)
        entry.mode = 0o755 if kind == 'directory' else 0o644
        types = {'link': tarfile.SYMTYPE, 'fifo': tarfile.FIFOTYPE, 'directory': tarfile.DIRTYPE}
        entry.type = types.get(kind, tarfile.REGTYPE)
        data = content.encode() if kind == 'file' else b''
        entry.size, entry.linkname = len(data), content if kind == 'link' else ''
        tar.addfile(entry, io.BytesIO(data))
layers = [old.extractfile(name).read() for name in manifest['Layers']] + [layer.getvalue()]
ids = [hashlib.sha256(data).hexdigest() for data in layers]
config['rootfs']['diff_ids'] = ['sha256:' + digest for digest in ids]
config.pop('history', None)
parts = {digest + '.tar': data for digest, data in zip(ids, layers)}
parts['c.json'] = json.dumps(config).encode()
manifest = [{'Config': 'c.json', 'RepoTags': ['changed'], 'Layers': [digest + '.tar' for digest in ids]}]
parts['manifest.json'] = json.dumps(manifest).encode()
with tarfile.open(fileobj=sys.stdout.buffer, mode='w|') as tar:
    for name, data in parts.items():
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
"#;

/// A state directory with the image `changed`: busybox with these fields and files.
fn image(fields: &str, entries: &str) -> Home {
    let home = Home::with_busybox();
    load(&home, fields, entries);
    home
}

fn load(home: &Home, fields: &str, entries: &str) {
    std::fs::write(home.directory.join("change.py"), CHANGE).unwrap();
    let source = fixture("busybox.docker.tar");
    let source = source.to_str().unwrap();
    home.shell(&format!(
        "python3 change.py {source} '{fields}' '{entries}' | msb image load --quiet >/dev/null"
    ))
    .done();
}

/// A main command that says which signal it got.
const TRAPS: &str = "for signal in TERM QUIT INT USR1 37; do trap \"echo got $signal; exit 0\" \
                     $signal; done; echo ready; while :; do sleep 0.2; done";

/// Stops a sandbox with that main command, and returns what the command said.
fn said_at_stop(home: &Home, options: &[&str]) -> String {
    let main = ["changed", "--entrypoint", "sh", "--", "-c", TRAPS];
    home.run([&["run", "-d", "--name", "x"], options, &main[..]].concat()).done();
    wait_until("the command is ready", || home.run(["logs", "x"]).done().contains("ready"));
    home.run(["stop", "x"]).done();
    let said = home.run(["logs", "x"]).done();
    home.run(["rm", "x"]).done();
    said.replace("ready\n", "")
}

#[test]
fn the_stop_signal_of_the_image_in_any_spelling_asks_the_main_command_to_end() {
    let home = Home::with_busybox();
    for (spelling, name) in [("SIGQUIT", "QUIT"), ("int", "INT"), ("10", "USR1"), ("RTMIN+3", "37")]
    {
        load(&home, &format!(r#"{{"StopSignal": "{spelling}"}}"#), "[]");
        assert_eq!(said_at_stop(&home, &[]), format!("got {name}\n"), "{spelling}");
    }
    assert_eq!(said_at_stop(&home, &["--stop-signal", "SIGINT"]), "got INT\n");
    home.run(["run", "-d", "--name", "y", "--stop-signal", "3", "changed"]).done();
    assert!(home.run(["inspect", "y"]).done().contains("Stop signal  SIGQUIT"));
    home.run(["stop", "--force", "y"]).done();
}

#[test]
fn an_unknown_stop_signal_of_an_image_is_a_warning_and_an_unknown_option_an_error() {
    let home = image(r#"{"StopSignal": "SIGNOPE"}"#, "[]");
    home.run(["run", "changed", "--", "true"]).is(
        0,
        "",
        "msb run: warning: the stop signal 'SIGNOPE' of the image is unknown; SIGTERM is used instead\n",
    );
    assert_eq!(said_at_stop(&home, &[]), "got TERM\n");
    let refused = home.run(["run", "--stop-signal", "NOPE", "changed", "--", "true"]);
    assert_ne!(refused.code, 0);
}

/// Fields of a configuration that change nothing in a sandbox.
const KEPT: &str = r#"{
    "Healthcheck": {"Test": ["CMD", "touch", "/checked"], "Interval": 1000000},
    "OnBuild": ["RUN touch /built"], "Shell": ["/bin/false"], "ArgsEscaped": true,
    "Hostname": "theirs", "Domainname": "theirs.example", "NetworkDisabled": true,
    "MacAddress": "02:00:00:00:00:01", "ExposedPorts": {"80/tcp": {}},
    "AttachStdin": true, "AttachStdout": false, "AttachStderr": false, "OpenStdin": true,
    "StdinOnce": true, "Tty": true, "Image": "sha256:00",
    "Memory": 4194304, "MemorySwap": 4194304, "CpuShares": 2
}"#;

#[test]
fn fields_that_are_kept_change_nothing_and_are_saved() {
    let home = image(KEPT, "[]");
    let script = "hostname; cat /proc/net/dev | grep -c -v -e '|' -e lo:; ls /checked /built 2>/dev/null; \
                  cat; test -t 0 || echo no terminal; ls /etc/hostname";
    let words = ["run", "--hostname", "ours", "changed", "--", "sh", "-c", script];
    let outcome = home.run_with(words, b"input\n");
    outcome.is(0, "ours\n1\ninput\nno terminal\n/etc/hostname\n", "");
    let saved =
        home.shell("msb image save changed | tar -xO --wildcards '*.json' 'blobs/*' 2>/dev/null");
    let saved = String::from_utf8_lossy(&saved.stdout).into_owned();
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(KEPT).unwrap();
    for name in fields.keys() {
        assert!(saved.contains(&format!("\"{name}\": ")), "'{name}' is lost");
    }
}

#[test]
fn every_field_of_the_specifications_stands_in_the_page() {
    let page =
        std::fs::read_to_string(crate::support::stage("source/man/msb-oci-image.7")).unwrap();
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(KEPT).unwrap();
    let image = "architecture os variant os.version os.features rootfs.type rootfs.diff_ids created \
                 author history User Env Entrypoint Cmd WorkingDir Labels StopSignal Volumes \
                 schemaVersion mediaType artifactType subject config layers manifests annotations \
                 digest size platform urls data";
    for name in image.split_whitespace().chain(fields.keys().map(String::as_str)) {
        let is_listed = page
            .lines()
            .filter(|line| line.starts_with(".It Va "))
            .any(|line| line.split([' ', ',']).any(|word| word == name));
        assert!(is_listed, "the page does not say what msb does with '{name}'");
    }
    let registry = "/v2/NAME/manifests/REFERENCE /v2/NAME/blobs/DIGEST HEAD POST PATCH PUT DELETE \
                    tags/list referrers Accept Authorization WWW-Authenticate Range Content-Range \
                    Content-Length Content-Type Docker-Content-Digest Location Retry-After Warning Link \
                    OCI-Subject OCI-Filters-Applied BLOB_UNKNOWN BLOB_UPLOAD_INVALID \
                    BLOB_UPLOAD_UNKNOWN DIGEST_INVALID MANIFEST_BLOB_UNKNOWN MANIFEST_INVALID \
                    MANIFEST_UNKNOWN NAME_INVALID NAME_UNKNOWN SIZE_INVALID UNAUTHORIZED DENIED \
                    UNSUPPORTED TOOMANYREQUESTS";
    for name in registry.split_whitespace() {
        assert!(page.contains(name), "the page does not say what msb does with '{name}'");
    }
}

#[test]
fn volumes_of_an_image_are_directories_at_each_start() {
    let fields = r#"{"Volumes": {"/data": {}, "/var/lib/thing/": {}, "relative": {}, "/old": {}, "/to/deep": {}}}"#;
    let entries =
        r#"[["old", "directory", ""], ["old/kept", "file", "kept"], ["to", "link", "/made"]]"#;
    let home = image(fields, entries);
    let script = "stat -c '%U %a %F' /data /var/lib/thing /relative /made/deep; cat /old/kept";
    let expected = "root 755 directory\n".repeat(4) + "kept";
    for options in [&[][..], &["--root-disk", "tmpfs"]] {
        let words = [&["run"], options, &["changed", "--", "sh", "-c", script]].concat();
        home.run(words).is(0, &expected, "");
    }
}

#[test]
fn a_guest_whose_image_has_hosts_knows_its_own_name_and_keeps_the_lines() {
    let entries = r#"[["etc/hosts", "file", "127.0.0.1 localhost\n10.0.0.9 build of-image\n"], ["etc/hostname", "file", "localhost\n"]]"#;
    let home = image("{}", entries);
    let run = ["run", "-d", "--name", "x", "--hostname", "build.example", "changed"];
    home.run(run).done();
    let script = "cat /etc/hostname; hostname -i; grep -c of-image /etc/hosts; \
                  grep -c host.microsandbox.internal /etc/hosts; grep -c 127.0.1.1 /etc/hosts";
    let said = || home.run(["exec", "x", "--", "sh", "-c", script]).done();
    let first = said();
    assert!(first.starts_with("build.example\n127.0.1.1"), "{first}");
    assert!(first.contains("\n1\n"), "{first}");
    home.run(["restart", "x"]).done();
    assert_eq!(said(), first);
    home.run(["stop", "--force", "x"]).done();
}

#[test]
fn links_and_pipes_in_place_of_hosts_are_replaced() {
    let entries = r#"[["etc/hosts", "link", "/nowhere/hosts"], ["etc/hostname", "fifo", ""]]"#;
    let home = image("{}", entries);
    let script = "grep -c localhost /etc/hosts | grep -v ^0 >/dev/null && cat /etc/hostname; \
                  stat -c '%a %F' /etc/hosts; ls /nowhere 2>/dev/null";
    home.run(["run", "--hostname", "box", "changed", "--", "sh", "-c", script]).is(
        1,
        "box\n644 regular file\n",
        "",
    );
}

#[test]
fn ssh_reaches_an_image_without_users() {
    let home = image("{}", r#"[["etc/passwd", "gone", ""], ["etc/group", "gone", ""]]"#);
    home.run(["run", "-d", "--name", "x", "changed"]).done();
    home.shell("msb ssh x -- 'id -u; id -g' </dev/null").is(0, "0\n0\n", "");
    home.shell("msb ssh config x >cfg; ssh -F cfg msb-x 'id -u' </dev/null").is(0, "0\n", "");
    home.run(["exec", "--user", "root", "x", "--", "id", "-u"]).is(0, "0\n", "");
    home.run(["stop", "--force", "x"]).done();
}
