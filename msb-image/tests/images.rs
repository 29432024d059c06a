//! Runs the built program on generated archives: its store, its output and its errors.

// The helpers are outside of test functions, where clippy does not allow unwrap by itself.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use sha2::Digest as _;

#[allow(dead_code, unreachable_pub)]
#[path = "../src/testing.rs"]
mod testing;

use testing::{TarBuilder, gzip, zstd};

/// A state directory for one test.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_msb-image"));
        command
            .args(args)
            .env("MSB_HOME", self.0.path().join("home"))
            .env_remove("SOURCE_DATE_EPOCH");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(args).spawn().unwrap();
        // A program that rejects its input may exit before all of it is written.
        drop(child.stdin.take().unwrap().write_all(input));
        child.wait_with_output().unwrap()
    }

    fn ok(&self, args: &[&str], input: &[u8]) -> String {
        let output = self.run(args, input);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the exit code and the first line of standard error.
    fn fails(&self, args: &[&str], input: &[u8]) -> (i32, String) {
        let output = self.run(args, input);
        assert!(output.stdout.is_empty());
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), text.lines().next().unwrap_or_default().to_owned())
    }

    /// Writes the archive to a file.
    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(format!("archive-{}", hex(bytes)));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn images(&self) -> PathBuf {
        self.0.path().join("home/images")
    }

    /// Lists the files of the store with their digests. Reference records contain a time and have
    /// none.
    fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        for directory in ["layers", "configs", "manifests", "disks", "refs"] {
            for entry in std::fs::read_dir(self.images().join(directory)).into_iter().flatten() {
                let path = entry.unwrap().path();
                let digest = if directory == "refs" {
                    String::new()
                } else {
                    hex(&std::fs::read(&path).unwrap())
                };
                files.push(format!(
                    "{directory}/{} {digest}",
                    path.file_name().unwrap().to_str().unwrap()
                ));
            }
        }
        files.sort();
        files
    }

    fn list(&self) -> Value {
        serde_json::from_str(&self.ok(&["list", "--format", "json"], b"")).unwrap()
    }
}

fn hex(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn layers() -> [Vec<u8>; 2] {
    let lower = TarBuilder::new()
        .directory("d/", 0o755)
        .file("d/a", b"lower")
        .file("d/b", &[9; 5000])
        .finish();
    let upper =
        TarBuilder::new().file("d/.wh.a", b"").hard_link("h", "d/b").symlink("s", "d/b").finish();
    [lower, upper]
}

fn config(layers: &[Vec<u8>], architecture: &str) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|layer| sha(layer)).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "unknown": "kept",
        "config": { "Env": ["A=1"], "Cmd": ["sh"], "Labels": { "k": "v" } },
        "rootfs": { "type": "layers", "diff_ids": ids },
    });
    serde_json::to_vec(&config).unwrap()
}

/// Builds a docker-archive with its manifest last.
fn docker(packed: &[Vec<u8>], config: &[u8], tags: Value) -> Vec<u8> {
    let mut tar = TarBuilder::new();
    let mut names = Vec::new();
    for (number, layer) in packed.iter().enumerate() {
        tar =
            tar.file(&format!("{}.tar", hex(layer)), layer).directory(&format!("{number}/"), 0o755);
        tar = tar.symlink(&format!("{number}/layer.tar"), &format!("../{}.tar", hex(layer)));
        names.push(format!("{number}/layer.tar"));
    }
    let config_name = format!("{}.json", hex(config));
    let manifest = json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]);
    tar.file(&config_name, config).file("manifest.json", manifest.to_string().as_bytes()).finish()
}

/// Blobs of an OCI archive.
#[derive(Default)]
struct Blobs(Vec<Vec<u8>>);

impl Blobs {
    fn add(&mut self, bytes: &[u8], media_type: &str) -> Value {
        self.0.push(bytes.to_vec());
        json!({ "mediaType": media_type, "digest": sha(bytes), "size": bytes.len() })
    }

    fn image(&mut self, packed: &[Vec<u8>], config: &[u8]) -> Value {
        let layers: Vec<Value> = packed
            .iter()
            .map(|layer| self.add(layer, "application/vnd.oci.image.layer.v1.tar+gzip"))
            .collect();
        let config = self.add(config, "application/vnd.oci.image.config.v1+json");
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers });
        self.add(manifest.to_string().as_bytes(), kind)
    }

    fn index(&mut self, manifests: Vec<Value>) -> Value {
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": manifests });
        self.add(index.to_string().as_bytes(), kind)
    }

    fn archive(self, manifests: Vec<Value>) -> Vec<u8> {
        let mut tar = TarBuilder::new();
        for blob in &self.0 {
            tar = tar.file(&format!("blobs/sha256/{}", hex(blob)), blob);
        }
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        tar.file("index.json", index.to_string().as_bytes())
            .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
            .finish()
    }
}

fn named(mut descriptor: Value, key: &str, name: &str) -> Value {
    descriptor["annotations"] = json!({ key: name });
    descriptor
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_docker_archive_is_the_same_image_from_a_pipe_a_file_and_compressed() {
    let layers = layers();
    let config = config(&layers, architecture());
    let plain = docker(&layers, &config, json!(["x", "me/y:1"]));
    let packed = docker(&layers.clone().map(|layer| gzip(&layer)), &config, json!(["x", "me/y:1"]));
    let first = Home::new();
    first.ok(&["load"], &plain);
    assert_eq!(first.files().len(), 4 + 1 + 1 + 2 + 2);
    for archive in [gzip(&plain), zstd(&plain), packed.clone()] {
        let home = Home::new();
        home.ok(&["load"], &archive);
        assert_eq!(home.files(), first.files());
    }
    for archive in [&plain, &packed] {
        let home = Home::new();
        home.ok(&["load", "-i", text(&home.file(archive))], b"");
        assert_eq!(home.files(), first.files());
        // Loading it again changes nothing, from a pipe or a file.
        home.ok(&["load", "-q"], archive);
        home.ok(&["load", "-i", text(&home.file(archive))], b"");
        assert_eq!(home.files(), first.files());
    }
    let list = first.list();
    let names: Vec<&str> =
        list.as_array().unwrap().iter().map(|row| row["reference"].as_str().unwrap()).collect();
    assert_eq!(names, ["docker.io/library/x:latest", "docker.io/me/y:1"]);
    let details: Value =
        serde_json::from_str(&first.ok(&["inspect", "x", "--format", "json"], b"")).unwrap();
    assert_eq!(details["config"]["digest"], sha(&config));
    assert_eq!(details["layers"][1]["diff_id"], sha(&layers[1]));
    assert_eq!((&details["os"], &details["layer_count"]), (&json!("linux"), &json!(2)));
    assert_eq!(std::fs::read(first.images().join("configs").join(hex(&config))).unwrap(), config);
}

#[test]
fn loaded_images_are_reported_as_text_and_json() {
    let layers = layers();
    let config = config(&layers, architecture());
    let output = Home::new()
        .run(&["load", "--format", "json", "-t", "tag"], &docker(&layers, &config, json!(["x"])));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    let rows: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["reference"], "docker.io/library/x:latest");
    assert_eq!(rows[0]["image_id"], sha(&config));
    assert_eq!(rows[0]["layers"], 2);
}

#[test]
fn a_multi_platform_image_gives_the_one_for_the_host() {
    let (ours, others) = (layers(), [TarBuilder::new().file("other", b"x").finish()]);
    let mut blobs = Blobs::default();
    let other = blobs.image(&[gzip(&others[0])], &config(&others, "mips"));
    let our_config = config(&ours, architecture());
    let our_manifest = blobs.image(&[gzip(&ours[0]), zstd(&ours[1])], &our_config);
    let mut note =
        blobs.add(br#"{"schemaVersion":2}"#, "application/vnd.oci.image.manifest.v1+json");
    note["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    let index = blobs.index(vec![other, note, our_manifest.clone()]);
    let archive = blobs.archive(vec![named(
        index,
        "org.opencontainers.image.ref.name",
        "docker.io/library/multi:1",
    )]);
    let (piped, filed) = (Home::new(), Home::new());
    piped.ok(&["load"], &archive);
    filed.ok(&["load", "-i", text(&filed.file(&archive))], b"");
    assert_eq!(piped.files(), filed.files());
    // Nothing of the other platform stays.
    assert_eq!(piped.files().len(), 4 + 1 + 1 + 2 + 1);
    assert_eq!(piped.list()[0]["digest"], our_manifest["digest"]);
    assert_eq!(piped.list()[0]["reference"], "docker.io/library/multi:1");
}

#[test]
fn an_archive_without_the_hosts_platform_lists_its_platforms() {
    let others = [TarBuilder::new().file("other", b"x").finish()];
    let mut blobs = Blobs::default();
    let other = blobs.image(&others, &config(&others, "mips"));
    let home = Home::new();
    let (code, line) =
        home.fails(&["load"], &blobs.archive(vec![named(other, "io.containerd.image.name", "x")]));
    assert_eq!(code, 1);
    assert!(line.contains("it has: linux/mips"), "{line}");
    assert_eq!(home.files(), Vec::<String>::new());
}

#[test]
fn an_archive_without_a_name_needs_a_tag() {
    let layers = layers();
    let mut blobs = Blobs::default();
    let image = blobs.image(&layers, &config(&layers, architecture()));
    let archive = blobs.archive(vec![named(image, "org.opencontainers.image.ref.name", "latest")]);
    let home = Home::new();
    let output = home.run(&["load"], &archive);
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .contains("msb image: hint: choose one: msb image load --tag")
    );
    home.ok(&["load", "--tag", "mine"], &archive);
    assert_eq!(home.list()[0]["reference"], "docker.io/library/mine:latest");
}

#[test]
fn a_digest_mismatch_is_rejected_and_leaves_nothing() {
    let layers = layers();
    let good = config(&layers, architecture());
    let swapped = [layers[1].clone(), layers[0].clone()];
    let one = vec![layers[0].clone()];
    let mut wrong_name = docker(&layers, &good, json!(["x"]));
    let at = wrong_name.windows(4).position(|bytes| bytes == b"kept").unwrap();
    wrong_name[at] = b'K';
    let mut blobs = Blobs::default();
    let image = blobs.image(&layers, &good);
    let at = blobs.0.iter().position(|blob| sha(blob) == image["digest"]).unwrap();
    let archive = |blobs: Vec<Vec<u8>>, claimed: &[String]| {
        let mut tar = TarBuilder::new();
        for (blob, name) in blobs.iter().zip(claimed) {
            tar = tar.file(&format!("blobs/sha256/{name}"), blob);
        }
        let index = json!({ "schemaVersion": 2, "manifests": [named(image.clone(), "io.containerd.image.name", "x")] });
        tar.file("index.json", index.to_string().as_bytes()).file("oci-layout", b"{}").finish()
    };
    let names: Vec<String> = blobs.0.iter().map(|blob| hex(blob)).collect();
    let mut changed_manifest = blobs.0.clone();
    changed_manifest[at].push(b' ');
    let mut changed_layer = blobs.0.clone();
    changed_layer[0] = TarBuilder::new().file("evil", b"x").finish();
    let mut missing = blobs.0.clone();
    missing.remove(0);
    for (archive, complaint) in [
        (docker(&swapped, &good, json!(["x"])), "but the configuration says"),
        (docker(&one, &good, json!(["x"])), "names 1 layers"),
        (wrong_name, "has the digest"),
        (archive(changed_manifest, &names), "has the digest"),
        (archive(changed_layer, &names), "has the digest"),
        (archive(missing, &names[1..]), "is missing"),
    ] {
        let home = Home::new();
        for args in [vec!["load"], vec!["load", "-i", text(&home.file(&archive))]] {
            let (code, line) = home.fails(&args, &archive);
            assert_eq!(code, 1);
            assert!(
                line.starts_with("msb image: error: cannot load '") && line.contains(complaint),
                "{complaint}: {line}"
            );
            assert_eq!(home.list(), json!([]));
            assert!(!home.files().iter().any(|file| file.contains(".new-")));
        }
    }
}

#[test]
fn an_invalid_archive_is_rejected_with_a_hint() {
    let layers = layers();
    let whole = docker(&layers, &config(&layers, architecture()), json!(["x"]));
    let rootfs = TarBuilder::new().directory("usr/", 0o755).file("usr/x", b"").finish();
    let home = Home::new();
    for (input, complaint) in [
        (&b""[..], "it is empty"),
        (b"hello", "neither a tar nor"),
        (&whole[..whole.len() / 2], "truncated"),
        (&gzip(&whole)[..500], "incomplete"),
        (&rootfs, "looks like a root file system"),
        (&TarBuilder::new().file("a", b"").finish(), "it has neither"),
    ] {
        for args in [vec!["load"], vec!["load", "-i", text(&home.file(input))]] {
            let (code, line) = home.fails(&args, input);
            assert_eq!(code, 1);
            assert!(line.contains(complaint), "{complaint}: {line}");
            assert_eq!(home.files(), Vec::<String>::new());
        }
    }
    assert_eq!(
        home.fails(&["load", "-i", "/none"], b"").1,
        "msb image: error: cannot load '/none': cannot open '/none': no such file or directory"
    );
    assert_eq!(home.fails(&["load", "-t", "../x"], &whole).0, 2);
}

#[test]
fn an_imported_tree_is_an_image_that_is_the_same_every_time() {
    let tree = TarBuilder::new().directory("usr/", 0o755).file("usr/x", &[1; 9000]).finish();
    let (first, second) = (Home::new(), Home::new());
    first.ok(&["import", "deb"], &tree);
    second.ok(&["import", "deb", "-q", "-i", text(&second.file(&zstd(&tree)))], b"");
    assert_eq!(first.files(), second.files());
    let row = &first.list()[0];
    assert_eq!(
        (&row["reference"], &row["size_bytes"]),
        (&json!("docker.io/library/deb:latest"), &json!(tree.len()))
    );
    let home = Home::new();
    let cut = home.fails(&["import", "x"], &tree[..tree.len() - 1024]);
    assert_eq!(cut, (1, "msb image: error: cannot import 'docker.io/library/x:latest': the archive is truncated: its end mark is missing".into()));
    let layers = layers();
    let archive = docker(&layers, &config(&layers, architecture()), json!(["x"]));
    assert!(home.fails(&["import", "x"], &archive).1.contains("an image archive"));
    assert_eq!(home.list(), json!([]));
}

#[test]
fn removing_an_image_removes_files_that_only_it_needs() {
    let shared = layers();
    let one = docker(&shared[..1], &config(&shared[..1], architecture()), json!(["one", "also"]));
    let both = docker(&shared, &config(&shared, architecture()), json!(["both"]));
    let home = Home::new();
    home.ok(&["load"], &one);
    let before = home.files();
    home.ok(&["load"], &both);
    std::fs::write(home.images().join("layers/.new-left"), b"").unwrap();
    home.ok(&["rm", "both"], b"");
    assert_eq!(home.files(), before);
    home.ok(&["remove", "-q", "one"], b"");
    assert_eq!(home.files().len(), before.len() - 1);
    home.ok(&["rm", "also"], b"");
    assert_eq!(home.files(), Vec::<String>::new());
    assert_eq!(
        home.fails(&["rm", "also"], b""),
        (3, "msb image: error: there is no image 'also:latest'".into())
    );
    assert_eq!(home.fails(&["inspect", "also"], b"").0, 3);
    assert_eq!(Home::new().fails(&["rm", "x"], b"").0, 3);
}

#[test]
fn an_image_that_sandboxes_use_stays() {
    let layers = layers();
    let home = Home::new();
    home.ok(&["load"], &docker(&layers, &config(&layers, architecture()), json!(["x"])));
    let digest = home.list()[0]["digest"].clone();
    let sandbox = home.0.path().join("home/sandboxes/web");
    std::fs::create_dir_all(&sandbox).unwrap();
    let spec = json!({
        "version": 1, "name": "web", "image": { "reference": "docker.io/library/x:latest", "manifest_digest": digest },
        "created_at": "2026-01-01T00:00:00Z", "cpus": 1, "memory_mib": 512, "upper_mib": 4096, "hostname": "web",
    });
    std::fs::write(sandbox.join("spec.json"), spec.to_string()).unwrap();
    let before = home.files();
    assert_eq!(home.fails(&["rm", "x"], b"").0, 4);
    assert_eq!(home.files(), before);
    home.ok(&["rm", "--force", "x"], b"");
    assert_eq!(home.files(), Vec::<String>::new());
}

#[test]
fn loading_removes_leftovers_and_keeps_files_in_use() {
    let layers = layers();
    let archive = docker(&layers, &config(&layers, architecture()), json!(["x"]));
    let home = Home::new();
    home.ok(&["load"], &archive);
    let left = home.images().join("layers/.new-left.data");
    std::fs::write(&left, b"half").unwrap();
    let mut busy = home.command(&["import", "busy"]).spawn().unwrap();
    busy.stdin.as_mut().unwrap().write_all(&archive[..512]).unwrap();
    while !std::fs::read_dir(home.images().join("layers")).unwrap().flatten().any(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with(".new-") && name != ".new-left.data")
    }) {
        std::thread::yield_now();
    }
    // The load removes leftovers when it starts, but no files of a running process.
    assert!(!left.exists());
    home.ok(&["load"], &archive);
    assert!(home.files().iter().any(|file| file.contains(".new-")));
    busy.kill().unwrap();
    busy.wait().unwrap();
    home.ok(&["load"], &archive);
    assert!(!home.files().iter().any(|file| file.contains(".new-")));
}

#[test]
fn two_loads_of_the_same_image_at_once_both_succeed() {
    let layers = layers();
    let archive = docker(&layers, &config(&layers, architecture()), json!(["x"]));
    let home = Home::new();
    std::thread::scope(|scope| {
        let loads: Vec<_> =
            (0..6).map(|_| scope.spawn(|| home.ok(&["load", "-q"], &archive))).collect();
        loads.into_iter().for_each(|load| drop(load.join().unwrap()));
    });
    let alone = Home::new();
    alone.ok(&["load"], &archive);
    assert_eq!(home.files(), alone.files());
}

#[test]
fn every_command_has_an_example_and_the_aliases_work() {
    let home = Home::new();
    for command in ["load", "import", "list", "inspect", "remove", "ls", "rm"] {
        assert!(home.ok(&[command, "-h"], b"").contains("Example:"), "{command}");
    }
    assert_eq!(home.ok(&["ls", "--format", "json"], b"").trim(), "[]");
    // Reading commands create nothing.
    assert!(!home.0.path().join("home").exists());
}
