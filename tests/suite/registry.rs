//! Images from registries: a real one (docker-registry), with what skopeo pushed there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Home, Outcome, Random, Registry, Relay, Request, Running, Server, Terminal, answer, fixture,
    tunnel, wait_until,
};

fn archive(kind: &str, name: &str) -> String {
    format!("{kind}:{}", fixture(name).display())
}

#[track_caller]
fn json_of(home: &Home, args: &[&str]) -> Value {
    serde_json::from_str(&home.run(args).done()).unwrap()
}

/// Data that skopeo reads from a registry: the digest of the manifest, of the configuration, and
/// the diff_ids.
#[track_caller]
fn identities(home: &Home, image: &str) -> (String, String, Value) {
    let inspect = |options: &str| {
        let script = format!("skopeo inspect --tls-verify=false {options} docker://{image}");
        home.shell(&script).done()
    };
    let digest = home
        .shell(&format!("skopeo inspect --tls-verify=false --raw docker://{image} | sha256sum"));
    let manifest: Value = serde_json::from_str(&inspect("--raw")).unwrap();
    let config: Value = serde_json::from_str(&inspect("--config --raw")).unwrap();
    (
        format!("sha256:{}", &digest.done()[..64]),
        manifest["config"]["digest"].as_str().unwrap().to_owned(),
        config["rootfs"]["diff_ids"].clone(),
    )
}

/// The same of an image in the store.
#[track_caller]
fn stored_identities(home: &Home, image: &str) -> (String, String, Value) {
    let image = json_of(home, &["image", "inspect", "--format", "json", image]);
    let layers = image["layers"].as_array().unwrap();
    let diff_ids: Vec<Value> = layers.iter().map(|layer| layer["diff_id"].clone()).collect();
    (
        image["digest"].as_str().unwrap().to_owned(),
        image["config"]["digest"].as_str().unwrap().to_owned(),
        Value::from(diff_ids),
    )
}

/// Files of a directory of the store, by name.
fn names(home: &Home, directory: &str) -> Vec<String> {
    let entries = fs::read_dir(home.state().join("images").join(directory));
    let names = entries.into_iter().flatten();
    let mut names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Nothing of a download is left, and nothing that was not finished.
#[track_caller]
fn is_tidy(home: &Home) {
    assert_eq!(names(home, "downloads"), Vec::<String>::new());
    for directory in ["layers", "disks", "refs", "configs", "manifests"] {
        let left: Vec<String> =
            names(home, directory).into_iter().filter(|name| name.starts_with('.')).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Contents of the store but for the times in records.
fn contents(home: &Home) -> Vec<String> {
    let directories = ["layers", "disks", "configs", "manifests"];
    let lines =
        directories.iter().flat_map(|directory| home.snapshot(&format!("images/{directory}")));
    let root = home.directory.display().to_string();
    lines.map(|line| line.replace(&root, "")).collect()
}

#[test]
fn what_skopeo_pushed_is_pulled_and_is_what_it_was() {
    let home = Home::new();
    let registry = Registry::plain(&home);
    let sources = [
        (archive("oci-archive", "layers.oci-gzip.tar"), "team/layers:gzip"),
        (archive("oci-archive", "layers.oci-zstd.tar"), "team/layers:zstd"),
        (archive("docker-archive", "layers.docker.tar"), "team/layers:docker"),
        (archive("docker-archive", "busybox.docker.tar"), "busybox"),
    ];
    for (source, name) in sources {
        registry.push(&home, &source, name, "");
        let image = format!("{}/{name}", registry.host());
        let outcome = home.run(["pull", &image]);
        let full = if name.contains(':') { image.clone() } else { format!("{image}:latest") };
        let pulling = format!("msb pull: note: pulling '{full}'\n");
        outcome.is(0, &format!("{full}\n"), &pulling);
        assert_eq!(stored_identities(&home, &image), identities(&home, &image), "{name}");
        let present = format!("{pulling}msb pull: note: '{full}' is up to date\n");
        home.run(["pull", &image]).is(0, &format!("{full}\n"), &present);
    }
    is_tidy(&home);
}

#[test]
fn a_pulled_image_is_stored_as_a_loaded_one() {
    let loaded = Home::with(&["layers.oci-gzip.tar"]);
    let home = Home::new();
    let registry = Registry::plain(&home);
    registry.push(&home, &archive("oci-archive", "layers.oci-gzip.tar"), "layers", "");
    let image = format!("{}/layers", registry.host());
    home.run(["image", "pull", "-q", &image]).is(0, "", "");
    assert_eq!(contents(&home), contents(&loaded));
    // By its digest, and once more without the registry: what a digest names does not change.
    let digest = stored_identities(&home, &image).0;
    let pinned = format!("{}/layers@{digest}", registry.host());
    home.run(["image", "pull", "-q", &pinned]).is(0, "", "");
    drop(registry);
    home.run(["image", "pull", "-q", &pinned]).is(0, "", "");
    assert_eq!(contents(&home), contents(&loaded));
}

#[test]
fn blobs_that_were_kept_save_the_image_with_its_digest() {
    let home = Home::new();
    let registry = Registry::plain(&home);
    let source = archive("oci-archive", "layers.oci-gzip.tar");
    registry.push(&home, &source, "layers", "");
    let image = format!("{}/layers", registry.host());
    // Also of an image that is there without them.
    home.run(["pull", "-q", &image]).is(0, "", "");
    assert_eq!(names(&home, "blobs"), Vec::<String>::new());
    home.run(["pull", "-q", "--keep-blobs", &image]).is(0, "", "");
    home.run(["save", "-q", "--format", "oci", "-o", "saved.tar", &image]).is(0, "", "");
    let other = Home::new();
    let saved = home.directory.join("saved.tar");
    other.run(["load", "-q", "-i", saved.to_str().unwrap()]).is(0, "", "");
    assert_eq!(stored_identities(&other, &image), identities(&home, &image));
    is_tidy(&home);
}

#[test]
fn force_brings_everything_again_and_mends_the_store() {
    let home = Home::new();
    let registry = Registry::plain(&home);
    registry.push(&home, &archive("docker-archive", "busybox.docker.tar"), "busybox", "");
    let image = format!("{}/busybox", registry.host());
    home.run(["pull", "-q", &image]).is(0, "", "");
    let good = contents(&home);
    let data = names(&home, "layers").into_iter().find(|name| name.ends_with(".data")).unwrap();
    let path = home.state().join("images/layers").join(data);
    let mut bytes = fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_ne!(contents(&home), good);
    home.run(["pull", "-q", &image]).is(0, "", "");
    assert_ne!(contents(&home), good);
    home.run(["pull", "-q", "--force", &image]).is(0, "", "");
    assert_eq!(contents(&home), good);
    is_tidy(&home);
}

#[test]
fn programs_are_told_what_happens_on_lines_of_json() {
    let home = Home::new();
    let registry = Registry::plain(&home);
    registry.push(&home, &archive("docker-archive", "busybox.docker.tar"), "busybox", "");
    let image = format!("{}/busybox", registry.host());
    let outcome = home.run(["pull", "-q", "--format", "json", &image]);
    assert!(outcome.stderr.is_empty(), "{outcome:?}");
    let events: Vec<Value> =
        outcome.done().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, layers) = events.split_last().unwrap();
    assert_eq!(last["type"], "pulled");
    assert_eq!(last["reference"], format!("{image}:latest"));
    assert_eq!(last["unchanged"], false);
    assert_eq!(last["layers"], 1);
    assert!(layers.iter().all(|event| event["type"] == "layer_progress"), "{layers:?}");
    assert_eq!(layers.last().unwrap()["state"], "done");
}

#[test]
fn a_person_sees_a_line_for_each_layer_and_then_the_name() {
    let home = Home::new();
    let registry = Registry::plain(&home);
    registry.push(&home, &archive("oci-archive", "layers.oci-gzip.tar"), "layers", "");
    let relay = Relay::to(registry.host(), 256 << 10);
    let terminal = Terminal::open(&home);
    terminal.enter(&format!("msb pull {}/layers", relay.host()));
    terminal.wait_for(" % ");
    terminal.wait_for("/layers:latest\n");
    terminal.wait_for_prompt();
    assert!(!terminal.screen().contains(" % "), "{}", terminal.screen());
}

#[test]
fn run_pulls_what_is_missing_and_labels_come_with_it() {
    let home = Home::new();
    let registry = Registry::plain(&home);
    registry.push(&home, &archive("docker-archive", "busybox.docker.tar"), "busybox", "");
    let image = format!("{}/busybox", registry.host());
    let outcome = home.run(["run", "--pull", "never", &image, "--", "true"]);
    assert_eq!(outcome.code, 125, "{outcome:?}");
    assert!(String::from_utf8_lossy(&outcome.stderr).contains("there is no image"), "{outcome:?}");
    home.run(["run", "--name", "web", &image, "--", "echo", "hello"]).is(
        0,
        "hello\n",
        &format!("msb pull: note: pulling '{image}:latest'\n"),
    );
    assert_eq!(home.list()[0]["labels"]["purpose"], "test");
    drop(registry);
    // It is there now; to look for a newer one fails, and says so once.
    home.run(["run", "--pull", "if-missing", &image, "--", "echo", "again"]).is(0, "again\n", "");
    let outcome = home.run(["run", "--pull", "always", &image, "--", "true"]);
    let host = image.split('/').next().unwrap();
    let error = format!(
        "msb pull: note: pulling '{image}:latest'\n\
         msb pull: error: cannot pull '{image}:latest': registry '{host}': connection refused\n\
         msb pull: hint: check the name of the registry and the network; to load an archive \
         instead: msb image load -i FILE\n"
    );
    outcome.is(125, "", &error);
}

/// Makes an authority, and a certificate of it for 127.0.0.1.
fn make_certificates(home: &Home) {
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=authority \
            -keyout ca.key -out ca.pem -addext basicConstraints=critical,CA:TRUE 2>&1 &&
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=registry \
            -keyout server.key -out server.csr 2>&1 &&
        printf 'subjectAltName=IP:127.0.0.1' >san &&
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.pem 2>&1";
    home.shell(script).done();
}

#[test]
fn an_authority_of_ones_own_is_trusted_when_it_is_named() {
    let home = Home::new();
    make_certificates(&home);
    let registry = Registry::with(&home, "", true);
    registry.push(&home, &archive("docker-archive", "busybox.docker.tar"), "busybox", "");
    let image = format!("{}/busybox", registry.host());
    let refusal = format!(
        "msb pull: note: pulling '{image}:latest'\n\
         msb pull: error: cannot pull '{image}:latest': registry '{}': certificate verification failed: unknown issuer\n\
         msb pull: hint: trust the certificate of its authority: --ca-certs FILE\n",
        registry.host()
    );
    home.run(["pull", &image]).is(1, "", &refusal);
    assert!(!home.state().exists(), "a pull that fails at the registry makes nothing");
    for args in [&["--ca-certs", "ca.pem"][..], &["--insecure"]] {
        home.run([&["pull", "-q", "--force", &image][..], args].concat()).is(0, "", "");
    }
    let settings = json!({ "registries": { "hosts": { registry.host(): { "ca_certs": home.directory.join("ca.pem") } } } });
    fs::write(home.state().join("config.json"), settings.to_string()).unwrap();
    home.run(["pull", "-q", &image]).is(0, "", "");
    // A certificate for another name will not do, whoever signed it.
    let other = image.replace("127.0.0.1", "localhost");
    let outcome = home.run(["pull", &other, "--ca-certs", "ca.pem"]);
    assert!(
        String::from_utf8_lossy(&outcome.stderr).contains("the certificate is for another name"),
        "{outcome:?}"
    );
}

/// Sections of a registry that knows alice.
fn passwords(home: &Home) -> String {
    home.shell("htpasswd -Bbn alice s3cret >htpasswd").done();
    format!("auth: {{htpasswd: {{realm: test, path: {}/htpasswd}}}}", home.directory.display())
}

/// `msb registry login` with a password on standard input.
#[track_caller]
fn login(home: &Home, host: &str, password: &str) -> Outcome {
    let args = ["registry", "login", host, "-u", "alice", "--password-stdin"];
    home.run_with(args, format!("{password}\n").as_bytes())
}

#[test]
fn a_login_is_tried_kept_where_docker_keeps_it_and_forgotten() {
    let home = Home::new();
    let registry = Registry::with(&home, &passwords(&home), false);
    let host = registry.host();
    registry.push(
        &home,
        &archive("docker-archive", "busybox.docker.tar"),
        "busybox",
        "--dest-creds alice:s3cret",
    );
    let image = format!("{host}/busybox");
    let refused = home.run(["pull", &image]);
    let words = format!(
        "cannot pull '{image}:latest': manifest 'latest' of registry '{host}': access denied"
    );
    assert!(String::from_utf8_lossy(&refused.stderr).contains(&words), "{refused:?}");

    let docker = home.directory.join(".docker");
    fs::create_dir(&docker).unwrap();
    let config = docker.join("config.json");
    let before = r#"{"HttpHeaders":{"X":"y"},"auths":{"other.example":{"auth":"YTpi"}}}"#;
    fs::write(&config, before).unwrap();
    assert_eq!(login(&home, &host, "wrong").code, 1);
    assert_eq!(fs::read_to_string(&config).unwrap(), before, "what was refused is not kept");
    login(&home, &host, "s3cret").is(0, "", &format!("Logged in to {host}\n"));
    let kept: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let auths =
        json!({ "other.example": { "auth": "YTpi" }, &host: { "auth": "YWxpY2U6czNjcmV0" } });
    assert_eq!(kept, json!({ "HttpHeaders": { "X": "y" }, "auths": auths }));
    assert_eq!(fs::metadata(&config).unwrap().permissions().mode() & 0o777, 0o600);
    home.run(["pull", "-q", &image]).is(0, "", "");
    // skopeo reads the same file.
    let script = format!(
        "skopeo inspect --authfile {} --tls-verify=false docker://{image}",
        config.display()
    );
    home.shell(&script).done();

    let list = home.run(["registry", "list", "--format", "json"]).done();
    let list: Value = serde_json::from_str(&list).unwrap();
    let source = config.display().to_string();
    let row = |registry: &str, username: &str| json!({ "registry": registry, "username": username, "source": source });
    assert_eq!(list, json!([row(&host, "alice"), row("other.example", "a")]));
    home.run(["registry", "logout", &host]).is(0, "", &format!("Logged out of {host}\n"));
    assert_eq!(home.run(["registry", "logout", &host]).code, 3);
    assert_eq!(home.run(["pull", &image]).code, 1);
}

#[test]
fn a_password_is_asked_for_at_a_terminal_and_not_shown() {
    let home = Home::new();
    let registry = Registry::with(&home, &passwords(&home), false);
    let terminal = Terminal::open(&home);
    terminal.enter(&format!("msb registry login {}", registry.host()));
    terminal.wait_for("Username:");
    terminal.enter("alice");
    terminal.wait_for("Password:");
    terminal.enter("s3cret");
    terminal.wait_for("Logged in");
    terminal.wait_for_prompt();
    assert!(!terminal.screen().contains("s3cret"), "{}", terminal.screen());
    terminal.enter("echo the terminal $((6 * 7))");
    terminal.wait_for("the terminal 42");
    assert!(terminal.screen().contains("echo the terminal"), "what is typed is shown again");
    // And when one thinks better of it.
    terminal.enter(&format!("msb registry login -u alice {}", registry.host()));
    terminal
        .wait_for_screen("a second question", |screen| screen.matches("Password:").count() == 2);
    terminal.press("C-c");
    terminal.wait_for_prompt();
    terminal.enter("stty -a | tr ' ' '\\n' | grep -cx echo");
    terminal.wait_for("\n1\n");
}

#[test]
fn credential_helpers_are_asked_told_and_listed() {
    let home = Home::new();
    let registry = Registry::with(&home, &passwords(&home), false);
    let host = registry.host();
    registry.push(
        &home,
        &archive("docker-archive", "busybox.docker.tar"),
        "busybox",
        "--dest-creds alice:s3cret",
    );
    let directory = home.directory.join("helpers");
    fs::create_dir(&directory).unwrap();
    fs::create_dir(home.directory.join(".docker")).unwrap();
    let kept = home.directory.join("kept.json");
    // As a helper of Docker does: it keeps what it is given, for one server.
    let script = format!(
        "#!/bin/sh\ninput=$(cat)\ncase $1 in\nstore) printf %s \"$input\" >{kept} ;;\n\
         get) [ -e {kept} ] && cat {kept} || {{ echo 'credentials not found in native keychain'; exit 1; }} ;;\n\
         erase) rm -f {kept} ;;\nlist) [ -e {kept} ] && printf '{{\"{host}\":\"alice\"}}' || printf '{{}}' ;;\nesac\n",
        kept = kept.display()
    );
    let helper = directory.join("docker-credential-test");
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let config = home.directory.join(".docker/config.json");
    fs::write(&config, r#"{"credsStore":"test"}"#).unwrap();
    let run = |args: &str, input: &str| {
        let script = format!("PATH={}:$PATH; printf '{input}' | msb {args}", directory.display());
        home.shell(&script)
    };
    let image = format!("{host}/busybox");
    assert_eq!(run(&format!("pull {image}"), "").code, 1);
    run(&format!("registry login {host} -u alice --password-stdin"), "s3cret").done();
    let text = fs::read_to_string(&config).unwrap();
    assert!(!text.contains("auth\""), "the secret is with the helper: {text}");
    assert!(fs::read_to_string(&kept).unwrap().contains("s3cret"));
    run(&format!("pull -q {image}"), "").is(0, "", "");
    let list = run("registry list", "").done();
    let row: Vec<&str> = list.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(row, [host.as_str(), "alice", "docker-credential-test"]);
    run(&format!("registry logout {host}"), "").done();
    assert!(!kept.exists());
    // One that is not installed is a warning: the image may be for everybody.
    fs::write(&config, r#"{"credsStore":"nowhere"}"#).unwrap();
    let outcome = home.run(["pull", &image]);
    let stderr = String::from_utf8_lossy(&outcome.stderr);
    assert!(stderr.starts_with("msb pull: warning: the credential helper 'nowhere'"), "{stderr}");
}

/// A token that the registry of the test believes, for pulling one repository.
fn signed_token(home: &Home) -> String {
    let script = r#"python3 - <<'END'
import base64, json, subprocess, time
def encode(data): return base64.urlsafe_b64encode(data).rstrip(b'=').decode()
pem = open('server.pem').read()
der = ''.join(line for line in pem.splitlines() if not line.startswith('-'))
head = {'typ': 'JWT', 'alg': 'RS256', 'x5c': [der]}
access = [{'type': 'repository', 'name': 'busybox', 'actions': ['pull']}]
now = int(time.time())
claims = {'iss': 'test-issuer', 'sub': 'alice', 'aud': 'test-service', 'exp': now + 3600, 'nbf': now - 60,
          'iat': now, 'jti': '1', 'access': access}
text = encode(json.dumps(head).encode()) + '.' + encode(json.dumps(claims).encode())
signed = subprocess.run(['openssl', 'dgst', '-sha256', '-sign', 'server.key'], input=text.encode(), capture_output=True, check=True)
print(text + '.' + encode(signed.stdout), end='')
END"#;
    let keys = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=tokens -keyout server.key -out server.pem 2>&1";
    home.shell(keys).done();
    home.shell(script).done()
}

#[test]
fn a_registry_with_a_server_of_tokens_gets_one_and_the_server_gets_the_password() {
    let home = Home::new();
    let mut registry = Registry::plain(&home);
    registry.push(&home, &archive("docker-archive", "busybox.docker.tar"), "busybox", "");
    let token = signed_token(&home);
    let tokens = Server::start(move |request: &Request, stream| {
        // alice:s3cret
        if request.header("authorization") == Some("Basic YWxpY2U6czNjcmV0") {
            let body = json!({ "token": token }).to_string();
            answer(stream, "200 OK", &[], body.as_bytes());
        } else {
            answer(stream, "401 Unauthorized", &[], b"{}");
        }
    });
    registry.kill();
    registry.change(&format!(
        "auth: {{token: {{realm: 'http://{}/token', service: test-service, issuer: test-issuer, rootcertbundle: {}/server.pem}}}}",
        tokens.host(),
        home.directory.display()
    ));
    registry.start();
    let image = format!("{}/busybox", registry.host());
    let refused = home.run(["pull", &image]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("access denied"), "{refused:?}");
    assert_eq!(login(&home, &registry.host(), "wrong").code, 1);
    login(&home, &registry.host(), "s3cret").done();
    home.run(["pull", "-q", &image]).is(0, "", "");
    let asked = tokens.requests();
    let wanted = "/token?service=test-service&scope=repository%3Abusybox%3Apull";
    assert!(asked.iter().any(|request| request.target == wanted), "{asked:?}");
    // The one token does for all that a pull asks.
    assert_eq!(asked.iter().rev().take_while(|request| request.target == wanted).count(), 1);
}

/// An image of one layer that cannot be compressed, pushed to a registry as it is.
fn push_large(home: &Home, registry: &Registry, mebibytes: usize) -> u64 {
    let layout = home.directory.join("large");
    let mut contents = vec![0; mebibytes << 20];
    Random::new(mebibytes as u64).fill(&mut contents);
    fs::create_dir_all(&layout).unwrap();
    fs::write(layout.join("large"), contents).unwrap();
    let script = "cd large && tar -cf ../layer.tar large && cd .. && umoci init --layout large.oci && \
         umoci new --image large.oci:1 && umoci raw add-layer --image large.oci:1 layer.tar";
    home.shell(script).done();
    registry.push(home, "oci:large.oci:1", "large", "");
    let manifest = home.shell(&format!(
        "skopeo inspect --raw --tls-verify=false docker://{}/large",
        registry.host()
    ));
    let manifest: Value = serde_json::from_str(&manifest.done()).unwrap();
    manifest["layers"][0]["size"].as_u64().unwrap()
}

/// Bytes of a download that broke off, or is going on.
fn partial_bytes(home: &Home) -> u64 {
    let entries = fs::read_dir(home.state().join("images/downloads"));
    let files = entries.into_iter().flatten().filter_map(|entry| entry.ok()?.metadata().ok());
    files.map(|data| data.len()).sum()
}

/// Status and bytes of each answer with a blob that msb got, as the registry has logged them.
fn blob_answers(registry: &Registry, least_bytes: u64) -> Vec<(u64, u64)> {
    let log = registry.log();
    let lines =
        log.lines().filter(|line| line.contains("/blobs/sha256") && line.contains("\"msb/"));
    let answers = lines.filter_map(|line| {
        let mut words = line.split("HTTP/1.1\" ").nth(1)?.split(' ');
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    });
    answers.filter(|(_, bytes)| *bytes >= least_bytes).collect()
}

#[test]
fn a_registry_that_dies_and_comes_back_is_asked_for_the_rest() {
    let home = Home::new();
    let mut registry = Registry::plain(&home);
    let bytes = push_large(&home, &registry, 24);
    let relay = Relay::to(registry.host(), 6 << 20);
    let image = format!("{}/large", relay.host());
    let pull = home.start(["pull", &image]);
    wait_until("a quarter is there", || partial_bytes(&home) > bytes / 4);
    registry.kill();
    // What was on its way still arrives.
    let mut there = 0;
    wait_until("no more comes", || {
        let before = std::mem::replace(&mut there, partial_bytes(&home));
        std::thread::sleep(Duration::from_millis(300));
        there == before
    });
    assert!(there < bytes, "it was too fast");
    registry.start();
    let pulling = format!("msb pull: note: pulling '{image}:latest'\n");
    pull.finish().is(0, &format!("{image}:latest\n"), &pulling);
    let direct = format!("{}/large", registry.host());
    assert_eq!(stored_identities(&home, &image), identities(&home, &direct));
    assert_eq!(blob_answers(&registry, 1 << 20), [(206, bytes - there)]);
    is_tidy(&home);
}

#[test]
fn a_pull_that_was_killed_goes_on_where_it_stopped() {
    let home = Home::new();
    let registry = Registry::plain(&home);
    let bytes = push_large(&home, &registry, 16);
    let relay = Relay::to(registry.host(), 8 << 20);
    let image = format!("{}/large", relay.host());
    let mut random = Random::new(7);
    let mut before = 0;
    for round in 0..8 {
        let pull = home.start(["pull", "-q", &image]);
        std::thread::sleep(Duration::from_millis(20 + random.below(250)));
        // SIGKILL.
        drop(pull);
        let there = partial_bytes(&home);
        assert!(
            there >= before || names(&home, "refs").len() == 1,
            "round {round}: {there} of {before}"
        );
        before = there;
    }
    home.run(["pull", "-q", &image]).is(0, "", "");
    let direct = format!("{}/large", registry.host());
    assert_eq!(stored_identities(&home, &image), identities(&home, &direct));
    is_tidy(&home);
    // What went over the line is little more than the blob.
    assert!(relay.bytes() < bytes + bytes / 2, "{} bytes for {bytes}", relay.bytes());
}

#[test]
fn two_pulls_of_the_same_image_fetch_it_once() {
    let home = Home::new();
    let registry = Registry::plain(&home);
    let bytes = push_large(&home, &registry, 8);
    let relay = Relay::to(registry.host(), 8 << 20);
    let image = format!("{}/large", relay.host());
    let pulls: Vec<_> = (0..3).map(|_| home.start(["pull", "-q", &image])).collect();
    for pull in pulls {
        pull.finish().is(0, "", "");
    }
    assert!(relay.bytes() < bytes + bytes / 4, "{} bytes for {bytes}", relay.bytes());
    is_tidy(&home);
}

#[test]
fn what_an_earlier_pull_left_damaged_is_fetched_again() {
    let home = Home::new();
    let registry = Registry::plain(&home);
    let bytes = push_large(&home, &registry, 4);
    let relay = Relay::to(registry.host(), 4 << 20);
    let image = format!("{}/large", relay.host());
    let pull = home.start(["pull", "-q", &image]);
    wait_until("half is there", || partial_bytes(&home) > bytes / 2);
    drop(pull);
    let path = home.state().join("images/downloads").join(&names(&home, "downloads")[0]);
    let mut contents = fs::read(&path).unwrap();
    contents[100_000] ^= 1;
    fs::write(&path, contents).unwrap();
    home.run(["pull", "-q", &image]).is(0, "", "");
    let direct = format!("{}/large", registry.host());
    assert_eq!(stored_identities(&home, &image), identities(&home, &direct));
}

#[test]
fn a_proxy_of_the_environment_is_used_and_spared_hosts_go_without() {
    let home = Home::new();
    let registry = Registry::plain(&home);
    registry.push(&home, &archive("docker-archive", "busybox.docker.tar"), "busybox", "");
    let target = registry.host();
    let proxy = Server::start(move |request: &Request, stream| {
        assert_eq!(request.method, "CONNECT");
        tunnel(stream, &target);
    });
    let pull = |more: &[(&str, &str)]| {
        let address = format!("http://{}", proxy.host());
        let mut command: Command = home.msb(["pull", "-q", "--insecure", "registry.test/busybox"]);
        command.env("HTTPS_PROXY", &address).env("http_proxy", &address);
        command.envs(more.iter().copied());
        Running::start(command).finish()
    };
    pull(&[]).is(0, "", "");
    let asked: Vec<String> = proxy.requests().into_iter().map(|request| request.target).collect();
    assert_eq!(asked[0], "registry.test:443");
    assert!(asked[1..].iter().all(|target| target == "registry.test:80"), "{asked:?}");
    let spared = pull(&[("NO_PROXY", ".test")]);
    assert_eq!(spared.code, 1, "{spared:?}");
    assert_eq!(proxy.requests().len(), asked.len());
}

#[test]
fn an_index_within_an_index_leads_to_the_image_for_this_machine_or_the_one_asked_for() {
    let home = Home::new();
    let registry = Registry::plain(&home);
    registry.push(&home, &archive("oci-archive", "layers.oci-gzip.tar"), "multi:host", "");
    let script = "umoci init --layout foreign.oci && umoci new --image foreign.oci:1 && \
        umoci config --image foreign.oci:1 --architecture riscv64 --config.label for=riscv";
    home.shell(script).done();
    registry.push(&home, "oci:foreign.oci:1", "multi:foreign", "");
    let index = |home: &Home, tag: &str, entries: Value| {
        let text = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries });
        let path = home.directory.join("index.json");
        fs::write(&path, text.to_string()).unwrap();
        put_manifest(&registry, &path, tag);
        (text.to_string().len(), home.shell("sha256sum index.json").done()[..64].to_owned())
    };
    let raw = |tag: &str| {
        let script = format!(
            "skopeo inspect --raw --tls-verify=false docker://{}/multi:{tag} >raw; wc -c <raw; sha256sum raw",
            registry.host()
        );
        let text = home.shell(&script).done();
        let (size, rest) = text.split_once('\n').unwrap();
        (size.trim().parse::<u64>().unwrap(), format!("sha256:{}", &rest[..64]))
    };
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let entry = |tag: &str, architecture: &str| {
        let (size, digest) = raw(tag);
        json!({ "mediaType": kind, "size": size, "digest": digest, "platform": { "os": "linux", "architecture": architecture } })
    };
    let mut attestation = entry("host", "unknown");
    attestation["platform"]["os"] = json!("unknown");
    let inner = json!([attestation, entry("foreign", "riscv64"), entry("host", "amd64")]);
    let (size, hex) = index(&home, "inner", inner);
    let outer = json!([{ "mediaType": "application/vnd.oci.image.index.v1+json", "size": size, "digest": format!("sha256:{hex}") }]);
    let (_, outer_hex) = index(&home, "outer", outer);

    let image = format!("{}/multi:outer", registry.host());
    home.run(["pull", "-q", &image]).is(0, "", "");
    assert_eq!(stored_identities(&home, &image).0, raw("host").1);
    // Named by the digest of the index.
    let pinned = format!("{}/multi@sha256:{outer_hex}", registry.host());
    home.run(["pull", "-q", &pinned]).is(0, "", "");
    assert_eq!(stored_identities(&home, &pinned).0, raw("host").1);
    home.run(["pull", "-q", "--platform", "linux/riscv64", &image]).is(0, "", "");
    assert_eq!(stored_identities(&home, &image).0, raw("foreign").1);
    let outcome = home.run(["run", &image, "--", "true"]);
    let words = "is for linux/riscv64, and this machine needs linux/amd64";
    assert_eq!(outcome.code, 125, "{outcome:?}");
    assert!(String::from_utf8_lossy(&outcome.stderr).contains(words), "{outcome:?}");
    let none = home.run(["pull", "--platform", "linux/s390x", &image]);
    assert_eq!(none.code, 1);
    let words = "there is no image for linux/s390x; available: linux/amd64, linux/riscv64";
    assert!(String::from_utf8_lossy(&none.stderr).contains(words), "{none:?}");
}

/// Puts a document under a tag of the repository `multi`.
fn put_manifest(registry: &Registry, path: &Path, tag: &str) {
    use std::io::{Read, Write};
    let body = fs::read(path).unwrap();
    let mut stream = std::net::TcpStream::connect(registry.host()).unwrap();
    let head = format!(
        "PUT /v2/multi/manifests/{tag} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
         Content-Type: application/vnd.oci.image.index.v1+json\r\nContent-Length: {}\r\n\r\n",
        registry.host(),
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 201"), "{text}");
}
