//! From an archive to the tree that a guest sees.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Home, fixture, fixture_text, stage};

/// Files that every guest finds made for it.
const MADE_FOR_THE_GUEST: [&str; 4] =
    ["/etc/hosts", "/etc/hostname", "/etc/machine-id", "/etc/resolv.conf"];

/// Walks the guest's root. The program comes in through standard input, to a place that is no part
/// of the root.
const WALK: &str = "cat >/dev/shm/guest && chmod 755 /dev/shm/guest && exec /dev/shm/guest walk-under-mounts /dev/shm/root";

#[track_caller]
fn guest_has_the_tree(home: &Home, image: &str, tree: &str) {
    let program = fs::read(stage("msb-test-guest")).unwrap();
    let outcome = home.run_with(
        ["run", "--interactive", "--memory", "1G", image, "--", "sh", "-c", WALK],
        &program,
    );
    same_tree(&fixture_text(tree), &outcome.done());
}

/// Compares trees by their lines, and shows the first lines that differ.
#[track_caller]
fn same_tree(expected: &str, found: &str) {
    let lines = |text: &'static str, all: &str| -> BTreeSet<String> {
        let kept = all.lines().filter(|line| !is_made_for_the_guest(line));
        let set: BTreeSet<String> = kept.map(str::to_owned).collect();
        assert!(set.len() > 100, "the {text} tree is too small to be true:\n{all}");
        set
    };
    // podman makes up a root of its own, so its trees have none.
    let with_root = expected.starts_with("/ ");
    let expected = lines("expected", expected);
    let mut found = lines("found", found);
    found.retain(|line| with_root || !line.starts_with("/ "));
    let only = |one: &BTreeSet<String>, other: &BTreeSet<String>| -> Vec<String> {
        one.difference(other).take(20).map(|line| line.chars().take(600).collect()).collect()
    };
    let (missing, extra) = (only(&expected, &found), only(&found, &expected));
    assert!(
        missing.is_empty() && extra.is_empty(),
        "missing: {missing:#?}\nnot expected: {extra:#?}"
    );
}

fn is_made_for_the_guest(line: &str) -> bool {
    MADE_FOR_THE_GUEST.contains(&line.split(' ').next().unwrap_or_default())
}

#[test]
fn a_guest_sees_the_busybox_image_as_podman_shows_it() {
    guest_has_the_tree(&Home::with_busybox(), "busybox:test", "busybox.tree");
}

#[test]
fn a_guest_sees_debian_as_podman_shows_it() {
    let home = Home::new();
    home.run([
        "image",
        "import",
        "-q",
        "--input",
        fixture("debian.tar").to_str().unwrap(),
        "debian",
    ])
    .done();
    guest_has_the_tree(&home, "debian", "debian.tree");
    every_disk_is_accepted(&home);
}

#[test]
fn a_guest_sees_many_layers_of_a_docker_archive_as_umoci_shows_them() {
    guest_has_the_tree(
        &Home::with(&["layers.docker.tar"]),
        "msb-test/layers:docker",
        "layers.tree",
    );
}

#[test]
fn a_root_file_system_from_standard_input_runs_under_a_kernel_of_its_own() {
    let home = Home::new();
    let import = format!("msb image import debian <{}", fixture("debian.tar").display());
    home.shell(&import).done();
    let release =
        home.run(["run", "debian", "--", "cat", "/etc/debian_version", "/proc/version"]).done();
    let host = fs::read_to_string("/proc/version").unwrap();
    assert!(!release.contains(host.trim()), "the guest runs under the host's kernel: {release}");
    assert!(release.contains("Linux version"), "{release}");
}

/// The layers' data and the metadata of each disk, strung together as its descriptor says.
fn every_disk_is_accepted(home: &Home) {
    let disks = home.state().join("images/disks");
    let mut count = 0;
    for entry in fs::read_dir(&disks).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "vmdk") {
            let whole = home.directory.join("whole.erofs");
            concatenate(&path, &whole);
            let output = Command::new("fsck.erofs").arg(&whole).output().unwrap();
            assert!(output.status.success(), "{}: {output:?}", path.display());
            count += 1;
        }
    }
    assert!(count > 0, "no disk in {}", disks.display());
}

fn concatenate(descriptor: &Path, whole: &Path) {
    let mut out = File::create(whole).unwrap();
    for (sectors, part) in extents(descriptor) {
        let mut part = File::open(part).unwrap();
        let copied = io::copy(&mut part, &mut out).unwrap();
        assert_eq!(copied, sectors * 512, "the descriptor has the length of its extent");
        assert_eq!(copied % 4096, 0, "an extent is whole blocks");
    }
}

/// Sectors and file of each extent: `RW 8 FLAT "name" 0`.
fn extents(descriptor: &Path) -> Vec<(u64, PathBuf)> {
    let text = fs::read_to_string(descriptor).unwrap();
    let parse = |line: &str| -> Option<(u64, PathBuf)> {
        let rest = line.strip_prefix("RW ").or_else(|| line.strip_prefix("RDONLY "))?;
        let (sectors, rest) = rest.split_once(" FLAT ")?;
        let name = rest.split('"').nth(1)?;
        Some((sectors.parse().ok()?, descriptor.parent()?.join(name)))
    };
    let extents: Vec<_> = text.lines().filter_map(parse).collect();
    assert!(!extents.is_empty(), "{text}");
    extents
}

#[test]
fn fsck_accepts_the_disk_of_every_archive() {
    for archive in
        ["busybox.docker.tar", "layers.docker.tar", "layers.oci-gzip.tar", "layers.oci-zstd.tar"]
    {
        every_disk_is_accepted(&Home::with(&[archive]));
    }
}

/// Names and hashes of files in a directory of the store, without the path to it.
fn content(home: &Home, directory: &str) -> Vec<String> {
    let prefix = format!("{}/", home.state().display());
    home.snapshot(directory).iter().map(|line| line.replacen(&prefix, "", 1)).collect()
}

#[test]
fn converting_twice_gives_identical_bytes() {
    let (one, two) = (Home::with(&["layers.docker.tar"]), Home::with(&["layers.docker.tar"]));
    for directory in ["images/layers", "images/disks", "images/configs", "images/manifests"] {
        let expected = content(&one, directory);
        assert!(!expected.is_empty(), "{directory}");
        assert_eq!(expected, content(&two, directory), "{directory}");
    }
}

/// So what the guest sees of one form it sees of all: a walk through 100,000 files, in software,
/// for each would only take minutes.
#[test]
fn every_form_of_archive_gives_the_same_layers_and_the_same_disk() {
    let converted = |archive: &str| {
        let home = Home::with(&[archive]);
        (content(&home, "images/layers"), file_systems(&home))
    };
    let docker = converted("layers.docker.tar");
    assert_eq!(docker.1.len(), 1);
    for archive in ["layers.oci-gzip.tar", "layers.oci-zstd.tar"] {
        assert!(docker == converted(archive), "{archive}");
    }
}

/// The metadata of every disk.
fn file_systems(home: &Home) -> Vec<Vec<u8>> {
    let files = fs::read_dir(home.state().join("images/disks")).unwrap();
    let paths = files.map(|entry| entry.unwrap().path());
    let metadata = paths.filter(|path| path.extension().is_some_and(|ending| ending == "erofs"));
    metadata.map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn a_compressed_root_file_system_gives_the_same_layer_as_a_plain_one() {
    let import = |filter: &str| {
        let home = Home::new();
        let input = fixture("debian.tar");
        home.shell(&format!("{filter} <{} | msb image import -q debian", input.display()))
            .is(0, "", "");
        content(&home, "images/layers")
    };
    let plain = import("cat");
    assert_eq!(plain, import("gzip -1"));
    assert_eq!(plain, import("zstd -q -1"));
}

#[test]
fn two_loads_at_once_leave_what_one_after_the_other_leaves() {
    let after_another = Home::with(&["layers.docker.tar", "layers.oci-gzip.tar"]);
    let at_once = Home::new();
    let load =
        |archive: &str| at_once.start(["load", "-q", "-i", fixture(archive).to_str().unwrap()]);
    let loads = [load("layers.docker.tar"), load("layers.docker.tar"), load("layers.oci-gzip.tar")];
    for load in loads {
        load.finish().done();
    }
    for directory in ["images/layers", "images/disks", "images/configs", "images/manifests"] {
        assert_eq!(content(&after_another, directory), content(&at_once, directory), "{directory}");
    }
    at_once.run(["run", "msb-test/layers:docker", "--", "cat", "/a/lower"]).is(0, "lower\n", "");
}

#[test]
fn layers_are_shared_between_images() {
    let home = Home::with_busybox();
    let before = home.snapshot("images/layers");
    home.load("configured.docker.tar");
    let added = home.snapshot("images/layers").len() - before.len();
    assert!(added <= 2 * 4, "{added} files more: the base layer is there twice");
    let after = home.snapshot("images/layers");
    assert!(before.iter().all(|line| after.contains(line)));
}

#[test]
fn an_image_goes_with_what_only_it_had() {
    let home = Home::with_busybox();
    let before = home.snapshot("images");
    home.load("layers.docker.tar");
    home.run(["rmi", "-q", "msb-test/layers:docker"]).done();
    assert_eq!(home.run(["images", "-q"]).done(), "docker.io/library/busybox:test\n");
    home.run(["run", "busybox:test", "--", "echo", "still here"]).is(0, "still here\n", "");
    let after: Vec<String> = home.snapshot("images");
    let refs = |lines: &[String]| {
        lines.iter().filter(|line| line.contains("/refs/")).cloned().collect::<Vec<_>>()
    };
    assert_eq!(refs(&before), refs(&after));
}
