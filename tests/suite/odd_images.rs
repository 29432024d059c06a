//! Images that other programs load although something in their documents is unusual.

use std::fs;

use serde_json::{Value, json};

use crate::support::tar::{Tar, sha256};
use crate::support::{Home, Outcome};

const NAME: &str = "org.opencontainers.image.ref.name";

fn layer() -> Vec<u8> {
    Tar::new().file("x", b"x").end()
}

/// A configuration for the layer, with a change.
fn config(change: impl FnOnce(&mut Value)) -> Value {
    let mut config = json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/x"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer()))] },
    });
    change(&mut config);
    config
}

/// A docker-archive of one image with these names.
fn docker(config: &Value, tags: &Value) -> Vec<u8> {
    let manifest = json!([{ "Config": "config.json", "RepoTags": tags, "Layers": ["layer.tar"] }]);
    Tar::new()
        .file("layer.tar", &layer())
        .file("config.json", config.to_string().as_bytes())
        .file("manifest.json", manifest.to_string().as_bytes())
        .end()
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    let kind = format!("application/vnd.oci.image.{kind}");
    json!({ "mediaType": kind, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len() })
}

/// An OCI archive of one image, with changes of its manifest and of its entry in the index.
fn oci(
    config: &Value,
    manifest_change: impl FnOnce(&mut Value),
    entry_change: impl FnOnce(&mut Value),
) -> Vec<u8> {
    let config = config.to_string();
    let mut manifest = json!({
        "schemaVersion": 2,
        "config": descriptor("config.v1+json", config.as_bytes()),
        "layers": [descriptor("layer.v1.tar", &layer())],
    });
    manifest_change(&mut manifest);
    let manifest = manifest.to_string();
    let mut entry = descriptor("manifest.v1+json", manifest.as_bytes());
    entry["annotations"] = json!({ NAME: "odd:1" });
    entry_change(&mut entry);
    let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", sha256(bytes));
    Tar::new()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", index.as_bytes())
        .file(&blob(config.as_bytes()), config.as_bytes())
        .file(&blob(manifest.as_bytes()), manifest.as_bytes())
        .file(&blob(&layer()), &layer())
        .end()
}

fn load(home: &Home, archive: &[u8], args: &[&str]) -> Outcome {
    home.run_with([&["image", "load", "-q"], args].concat(), archive)
}

fn stderr(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stderr).into_owned()
}

/// The details of an image, after a check that all of it is whole.
#[track_caller]
fn details(home: &Home, image: &str) -> Value {
    home.run(["image", "check", "-q"]).is(0, "", "");
    let text = home.run(["image", "inspect", image, "--format", "json"]).done();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn null_anywhere_in_a_document_is_the_empty_value() {
    let fields = [
        ("Volumes", json!({ "/d": null })),
        ("ExposedPorts", json!({ "80/tcp": null })),
        ("Labels", json!({ "a": null })),
        ("Env", json!(["A=1", null])),
        ("Cmd", json!(["/x", null])),
        ("Entrypoint", json!([null])),
        ("OnBuild", json!([null])),
        ("User", json!(null)),
        ("WorkingDir", json!(null)),
        ("StopSignal", json!(null)),
        ("Healthcheck", json!({ "Test": null })),
    ];
    let mut configs: Vec<Value> = fields
        .into_iter()
        .map(|(field, value)| config(|config| config["config"][field] = value))
        .collect();
    for (field, value) in [
        ("history", json!([null, { "created_by": null, "empty_layer": null }])),
        ("created", json!(null)),
        ("author", json!(null)),
        ("os.features", json!([null])),
        ("variant", json!(null)),
        ("config", json!(null)),
    ] {
        configs.push(config(|config| config[field] = value));
    }
    configs.push(config(|config| config["rootfs"]["type"] = json!(null)));
    let home = Home::new();
    for config in &configs {
        for archive in [docker(config, &json!(["odd:1"])), oci(config, |_| (), |_| ())] {
            load(&home, &archive, &[]).is(0, "", "");
            details(&home, "odd:1");
            // A new sandbox reads the documents again.
            let created =
                home.run(["create", "--no-start", "--pull", "never", "--name", "n", "odd:1"]);
            assert_eq!(created.code, 0, "{config}: {created:?}");
            home.run(["rm", "n"]).done();
            home.run(["rmi", "-q", "odd:1"]).done();
        }
    }
    let plain = config(|_| ());
    let places: [fn(&mut Value); 5] = [
        |manifest| manifest["annotations"] = json!({ "x": null }),
        |manifest| manifest["mediaType"] = json!(null),
        |manifest| manifest["layers"][0]["annotations"] = json!({ "x": null }),
        |manifest| manifest["layers"][0]["urls"] = json!([null]),
        |manifest| manifest["config"]["platform"] = json!(null),
    ];
    for change in places {
        load(&home, &oci(&plain, change, |_| ()), &[]).is(0, "", "");
        details(&home, "odd:1");
        home.run(["rmi", "-q", "odd:1"]).done();
    }
    let index = oci(
        &plain,
        |_| (),
        |entry| {
            entry["annotations"]["x"] = json!(null);
            entry["platform"] = json!(null);
        },
    );
    load(&home, &index, &[]).is(0, "", "");
    load(&home, &docker(&plain, &json!([null, "other:1"])), &[]).is(0, "", "");
    details(&home, "other:1");
}

#[test]
fn a_value_of_the_wrong_type_is_refused_by_the_name_of_its_field() {
    let home = Home::new();
    for (field, value, words) in [
        ("Env", json!(["A=1", 2]), "'config.Env[1]' is a number, not a string"),
        ("Labels", json!({ "a": [] }), "'config.Labels.a' is a list, not a string"),
        ("Volumes", json!(["/d"]), "'config.Volumes' is a list, not an object"),
        ("User", json!(0), "'config.User' is a number, not a string"),
    ] {
        let archive = docker(&config(|config| config["config"][field] = value), &json!(["odd:1"]));
        let refused = load(&home, &archive, &[]);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(stderr(&refused).contains(words), "{}", stderr(&refused));
    }
    let archive =
        oci(&config(|_| ()), |manifest| manifest["layers"][0]["size"] = json!("x"), |_| ());
    let refused = load(&home, &archive, &[]);
    assert!(stderr(&refused).contains("'layers[0].size' is a string, not a number"), "{refused:?}");
    // One string for a list of words is read as docker reads it.
    let one = config(|config| config["config"]["Cmd"] = json!("/x"));
    load(&home, &docker(&one, &json!(["odd:1"])), &[]).is(0, "", "");
    assert_eq!(details(&home, "odd:1")["config"]["cmd"], json!(["/x"]));
}

#[test]
fn every_spelling_of_the_architecture_of_this_machine_is_loaded() {
    let home = Home::new();
    for (os, architecture, variant) in [
        ("linux", "x86_64", Value::Null),
        ("Linux", "AMD64", Value::Null),
        ("linux", "x86-64", json!("v1")),
        ("LINUX", "X86_64", json!("")),
    ] {
        let config = config(|config| {
            config["os"] = json!(os);
            config["architecture"] = json!(architecture);
            config["variant"] = variant;
        });
        for archive in [docker(&config, &json!(["odd:1"])), oci(&config, |_| (), |_| ())] {
            load(&home, &archive, &[]).is(0, "", "");
            details(&home, "odd:1");
            home.run(["create", "--no-start", "--pull", "never", "--name", "n", "odd:1"]).done();
            home.run(["rm", "n"]).done();
            home.run(["rmi", "-q", "odd:1"]).done();
        }
    }
    let other = config(|config| config["architecture"] = json!("aarch64"));
    let refused = load(&home, &docker(&other, &json!(["odd:1"])), &[]);
    assert!(stderr(&refused).contains("the image is for linux/aarch64"), "{refused:?}");
}

#[test]
fn a_name_that_is_no_reference_is_passed_over_if_there_is_another() {
    let home = Home::new();
    let plain = config(|_| ());
    let named = |name: &str| oci(&plain, |_| (), |entry| entry["annotations"][NAME] = json!(name));
    let archives = [
        (docker(&plain, &json!(["<none>:<none>"])), "<none>:<none>"),
        (docker(&plain, &json!(["Upper/Case:Tag"])), "Upper/Case:Tag"),
        (named("Release/Build:42+g1a2b"), "Release/Build:42+g1a2b"),
        (named("a b/\u{e9}:\u{1b}[31m"), "a b/"),
    ];
    for (archive, name) in archives {
        let refused = load(&home, &archive, &[]);
        let text = stderr(&refused);
        assert_eq!(refused.code, 1, "{text}");
        assert!(text.contains("no usable name") && text.contains(name), "{text}");
        assert!(text.contains("hint: choose one: msb image load --tag NAME"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
        let loaded = load(&home, &archive, &["--tag", "mine:1"]);
        let text = stderr(&loaded);
        assert_eq!(loaded.code, 0, "{text}");
        assert!(text.starts_with("msb image: warning: ") && text.contains(name), "{text}");
        assert_eq!(home.run(["images", "-q"]).done(), "docker.io/library/mine:1\n");
        home.run(["rmi", "-q", "mine:1"]).done();
    }
    let beside = docker(&plain, &json!(["good:1", "Bad/Name:1", ""]));
    let loaded = load(&home, &beside, &[]);
    assert_eq!(loaded.code, 0, "{loaded:?}");
    assert_eq!(
        stderr(&loaded),
        "msb image: warning: the archive's name is ignored: 'Bad/Name:1' is not an image \
         reference: its name has upper-case letters\n"
    );
    assert_eq!(home.run(["images", "-q"]).done(), "docker.io/library/good:1\n");
    // A full name beside a name that is no reference, in the annotations of one entry.
    let both = oci(
        &plain,
        |_| (),
        |entry| {
            entry["annotations"]["io.containerd.image.name"] = json!("Not/One");
            entry["annotations"][NAME] = json!("localhost/one:1");
        },
    );
    load(&home, &both, &[]).done();
    home.run(["image", "inspect", "localhost/one:1"]).done();
}

/// Every file below a directory with its mode, and whether it is a directory.
fn modes(directory: &std::path::Path, found: &mut Vec<(std::path::PathBuf, u32, bool)>) {
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_symlink() || is_exception(&path) {
            continue;
        }
        found.push((path.clone(), metadata.permissions().mode() & 0o7777, metadata.is_dir()));
        if metadata.is_dir() {
            modes(&path, found);
        }
    }
}

/// Files of the state directory that need another mode: sockets and the data of volumes belong to
/// whoever writes them.
fn is_exception(path: &std::path::Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = fs::symlink_metadata(path).unwrap().file_type().is_socket();
    let text = path.to_str().unwrap();
    // The contents of a volume belong to guests, in a directory that is closed to others.
    is_socket || text.contains("/volumes/") && (text.contains("/data/") || text.ends_with("/data"))
}

#[test]
fn every_file_of_the_state_directory_is_for_its_owner_alone_whatever_the_umask() {
    let home = Home::with_busybox();
    let script = "umask 0; set -e
        mkdir root; echo x >root/x; tar -C root -cf - . | msb image import -q tree
        msb image tag -q busybox:test other
        msb volume create disk --size 32M >/dev/null
        msb volume create dir --kind dir >/dev/null
        msb image save -q --compress gzip -o out.tar busybox:test
        msb image load -q --keep-blobs -i out.tar --tag kept
        msb create --name stopped -v disk:/a -v dir:/b busybox:test >/dev/null
        msb run -d --name running busybox:test -- sh -c 'echo x; sleep 600' >/dev/null
        msb exec running -- sh -c 'echo x; echo y >&2' >/dev/null
        msb exec -d running -- sleep 600 >/dev/null
        msb modify stopped --label a=b >/dev/null
        msb run busybox:test -- true
        msb logs running >/dev/null
        msb stop running >/dev/null; msb start stopped >/dev/null; msb restart stopped >/dev/null";
    home.shell(script).done();
    let mut found = Vec::new();
    modes(&home.state(), &mut found);
    home.run(["rm", "-f", "running", "stopped"]).done();
    let expected = |is_dir| if is_dir { 0o700 } else { 0o600 };
    let wrong: Vec<String> = found
        .iter()
        .filter(|(_, mode, is_dir)| *mode != expected(*is_dir))
        .map(|(path, mode, _)| format!("{mode:o} {}", path.display()))
        .collect();
    assert_eq!(wrong, Vec::<String>::new());
    for name in ["upper.img", "spec.json", "status.json"] {
        assert!(found.iter().any(|(path, ..)| path.ends_with(name)), "no {name} was made");
    }
}
