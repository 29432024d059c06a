//! Saving images: what an archive holds, where it goes, and what is left when that fails.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::{Home, Running, Terminal, fixture, full_disk, wait_until};

/// Names of files in a directory of the store, with a hash of each, without the path to it.
pub(crate) fn content(home: &Home, directory: &str) -> Vec<String> {
    let prefix = format!("{}/", home.state().display());
    let lines = home.snapshot(directory);
    lines.iter().map(|line| line.replacen(&prefix, "", 1)).collect()
}

#[track_caller]
fn same(one: &Home, two: &Home, directories: &[&str]) {
    for directory in directories {
        let expected = content(one, &format!("images/{directory}"));
        assert!(!expected.is_empty(), "{directory}");
        assert_eq!(expected, content(two, &format!("images/{directory}")), "{directory}");
    }
}

/// Saves to a file in the test's directory.
#[track_caller]
fn save(home: &Home, name: &str, args: &[&str]) -> PathBuf {
    let path = home.directory.join(name);
    let output = ["image", "save", "-q", "-o", path.to_str().unwrap()];
    home.run([&output[..], args].concat()).is(0, "", "");
    path
}

#[track_caller]
fn load(path: &Path) -> Home {
    let home = Home::new();
    home.run(["image", "load", "-q", "-i", path.to_str().unwrap()]).is(0, "", "");
    home.run(["image", "check", "-q"]).is(0, "", "");
    home
}

/// Digests of an archive's members.
fn members(home: &Home, archive: &Path) -> BTreeSet<String> {
    let directory = tempdir(home);
    let outcome = home.shell(&format!("tar -xf {} -C {}", archive.display(), directory.display()));
    outcome.done();
    let mut digests = BTreeSet::new();
    gather(&directory, &mut digests);
    digests
}

fn gather(directory: &Path, digests: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(&path, digests);
        } else {
            let hash = Sha256::digest(fs::read(&path).unwrap());
            digests.insert(hash.iter().map(|byte| format!("{byte:02x}")).collect());
        }
    }
}

fn tempdir(home: &Home) -> PathBuf {
    let mut number = 0;
    loop {
        let directory = home.directory.join(format!("unpacked{number}"));
        if fs::create_dir(&directory).is_ok() {
            return directory;
        }
        number += 1;
    }
}

#[test]
fn what_came_plain_is_the_same_after_it_was_saved_and_loaded() {
    for archive in ["busybox.docker.tar", "layers.docker.tar"] {
        let home = Home::with(&[archive]);
        let name = home.run(["images", "-q"]).done();
        for form in ["docker", "oci"] {
            let saved = save(&home, form, &["--format", form, name.trim()]);
            let again = load(&saved);
            same(&home, &again, &["layers", "configs", "manifests", "disks"]);
            assert_eq!(again.run(["images", "-q"]).done(), name, "{form}");
        }
        // The tars of the layers, and the configuration, are those that came.
        let before = members(&home, &fixture(archive));
        let after = members(&home, &save(&home, "saved.tar", &[name.trim()]));
        let common = before.intersection(&after).count();
        let layers = content(&home, "images/layers").len() / 2;
        assert_eq!(common, layers + 1, "the layers and the configuration");
    }
}

#[test]
fn what_came_compressed_keeps_its_layers_and_its_image_id() {
    for archive in ["layers.oci-gzip.tar", "layers.oci-zstd.tar"] {
        let home = Home::with(&[archive]);
        let name = home.run(["images", "-q"]).done();
        for args in
            [vec![], vec!["--compress", "gzip"], vec!["--compress", "zstd", "--format", "oci"]]
        {
            let saved = save(&home, "saved.tar", &[&args[..], &[name.trim()]].concat());
            same(&home, &load(&saved), &["layers", "configs"]);
        }
    }
}

#[test]
fn kept_blobs_are_saved_as_they_came_with_their_manifest() {
    for archive in ["layers.oci-gzip.tar", "layers.oci-zstd.tar"] {
        let home = Home::new();
        let input = fixture(archive);
        let args = ["load", "-q", "--keep-blobs", "-i", input.to_str().unwrap()];
        home.run(args).is(0, "", "");
        let name = home.run(["images", "-q"]).done();
        let saved = save(&home, "saved.tar", &["--format", "oci", name.trim()]);
        let (came, went) = (members(&home, &input), members(&home, &saved));
        // All but the index, where the name stands, and the note about the layout, which may have
        // other spaces.
        assert_eq!(came.difference(&went).count(), 2, "{archive}");
        let again = load(&saved);
        same(&home, &again, &["manifests", "layers", "configs", "disks"]);
        // Through a pipe, and into a store that has the layers without the blobs.
        let script = format!("msb load -q --keep-blobs <{}", saved.display());
        let piped = Home::new();
        piped.shell(&script).is(0, "", "");
        same(&home, &piped, &["manifests", "layers", "blobs", "disks"]);
        again.run(["load", "-q", "--keep-blobs", "-i", saved.to_str().unwrap()]).is(0, "", "");
        same(&home, &again, &["manifests", "layers", "blobs", "disks"]);
        again.run(["image", "check", "-q"]).is(0, "", "");
        // A blob that is damaged is not passed on.
        let blobs = home.state().join("images/blobs");
        let blob = fs::read_dir(&blobs).unwrap().next().unwrap().unwrap().path();
        let mut bytes = fs::read(&blob).unwrap();
        bytes[100] ^= 1;
        fs::write(&blob, bytes).unwrap();
        let outcome = home.run(["save", "-o", saved.to_str().unwrap(), name.trim()]);
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert_eq!(home.run(["image", "check", "-q"]).code, 1);
        home.run(["rmi", "-q", name.trim()]).done();
        assert_eq!(content(&home, "images/blobs"), Vec::<String>::new());
    }
}

#[test]
fn the_same_images_give_the_same_bytes() {
    let (one, two) = (Home::with_busybox(), Home::with_busybox());
    for args in [
        &["busybox:test"][..],
        &["--compress", "gzip", "busybox:test"],
        &["--compress", "zstd", "busybox:test"],
    ] {
        let files = [save(&one, "saved.tar", args), save(&two, "saved.tar", args)];
        let [first, second] = files.map(|path| fs::read(path).unwrap());
        assert!(first == second, "{args:?}");
    }
}

#[test]
fn several_images_share_their_layers_in_one_archive() {
    let home = Home::with(&["busybox.docker.tar", "configured.docker.tar"]);
    home.run(["image", "tag", "-q", "busybox:test", "busybox:also"]).done();
    let names = ["busybox:test", "localhost/msb-test/configured:v1", "busybox:also"];
    let saved = save(&home, "saved.tar", &names);
    let listed = home.shell(&format!("tar -tf {}", saved.display())).done();
    let unique: BTreeSet<&str> = listed.lines().collect();
    assert_eq!(unique.len(), listed.lines().count(), "{listed}");
    let again = load(&saved);
    same(&home, &again, &["layers", "configs", "manifests", "disks"]);
    assert_eq!(again.run(["images", "-q"]).done(), home.run(["images", "-q"]).done());
}

#[test]
fn programs_are_told_what_was_saved() {
    let home = Home::with_busybox();
    let path = home.directory.join("saved.tar");
    let output = ["save", "-q", "-o", path.to_str().unwrap(), "--format", "json"];
    let told = home.run([&output[..], &["busybox:test"]].concat()).done();
    let told: Value = serde_json::from_str(&told).unwrap();
    let loaded =
        Home::new().run(["load", "-q", "--format", "json", "-i", path.to_str().unwrap()]).done();
    assert_eq!(told, serde_json::from_str::<Value>(&loaded).unwrap());
    assert_eq!(told["reference"], "docker.io/library/busybox:test");
    home.run(["save", "--format", "json", "busybox:test"]).is(
        2,
        "",
        "msb save: error: JSON and the archive cannot both go to standard output\n\
         msb save: hint: write the archive to a file with --output\n",
    );
}

#[test]
fn a_reader_that_goes_away_makes_the_saver_fail() {
    let home = Home::with_busybox();
    let script = "msb image save -q busybox:test | head -c 1000 >/dev/null; echo ${PIPESTATUS[@]}";
    let outcome = home.shell(script);
    assert_eq!(outcome.stdout, b"1 0\n");
    let text = String::from_utf8(outcome.stderr).unwrap();
    assert!(text.contains("the reader closed standard output"), "{text}");
}

#[test]
fn a_terminal_is_refused() {
    let home = Home::with_busybox();
    let terminal = Terminal::open(&home);
    terminal.enter("msb image save busybox:test; echo code $?");
    terminal.wait_for("code 2");
    terminal.wait_for("cannot write an archive to a");
}

#[test]
fn a_damaged_layer_is_an_error_that_names_the_file_and_spares_the_old_archive() {
    let home = Home::with_busybox();
    let saved = save(&home, "saved.tar", &["busybox:test"]);
    let before = fs::read(&saved).unwrap();
    let layers = home.state().join("images/layers");
    for suffix in ["data", "index"] {
        let paths = fs::read_dir(&layers).unwrap();
        let path = paths
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|ending| ending == suffix))
            .unwrap();
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(&path, &bad).unwrap();
        let outcome = home.run(["save", "-o", saved.to_str().unwrap(), "busybox:test"]);
        assert_eq!(outcome.code, 1, "{suffix}: {outcome:?}");
        let text = String::from_utf8(outcome.stderr).unwrap();
        let named = format!("'{}' is damaged", path.display());
        assert!(text.contains(&named), "{suffix}: {text}");
        let checked = home.run(["image", "check"]);
        assert_eq!(checked.code, 1, "{suffix}: {checked:?}");
        let told = String::from_utf8(checked.stdout).unwrap();
        assert!(told.contains(&path.display().to_string()), "{told}");
        fs::write(&path, good).unwrap();
    }
    assert!(fs::read(&saved).unwrap() == before, "the old archive");
    home.run(["image", "check", "-q"]).is(0, "", "");
}

#[test]
fn an_archive_appears_when_it_is_whole_and_leaves_nothing_else() {
    let home = Home::new();
    let debian = fixture("debian.tar");
    home.run(["image", "import", "-q", "-i", debian.to_str().unwrap(), "debian"]).done();
    let directory = tempdir(&home);
    let path = directory.join("saved.tar");
    let args = ["save", "-q", "-o", path.to_str().unwrap(), "debian"];
    let files = || fs::read_dir(&directory).unwrap().count();
    // Killed at some moment of its work.
    for moment_ms in [0, 20, 50, 100, 150] {
        let mut command = home.msb(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let running = Running::start_as_is(command);
        std::thread::sleep(std::time::Duration::from_millis(moment_ms));
        for process in home.processes() {
            process.signal(Signal::KILL);
        }
        running.finish();
        let whole = path.exists();
        assert_eq!(files(), usize::from(whole), "{moment_ms} ms");
    }
    home.run(args).is(0, "", "");
    assert_eq!(files(), 1);
    load(&path);
}

#[test]
fn a_full_disk_fails_the_save_and_keeps_nothing() {
    let home = Home::with(&["layers.docker.tar"]);
    let (_guard, full) = full_disk();
    let path = full.join("saved.tar");
    let outcome = home.run(["save", "-o", path.to_str().unwrap(), "msb-test/layers:docker"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let text = String::from_utf8(outcome.stderr).unwrap();
    let expected = format!("cannot write '{}': no space left on device\n", path.display());
    assert!(text.ends_with(&expected), "{text}");
    assert!(!path.exists());
    let left = fs::read_dir(full).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with(".new-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_archive_goes_to_whatever_the_name_leads_to() {
    let home = Home::with_busybox();
    let plain = save(&home, "plain.tar", &["busybox:test"]);
    let bytes = fs::read(&plain).unwrap();
    // Through a link the file is replaced, not the link.
    let link = home.directory.join("link.tar");
    fs::write(home.directory.join("behind.tar"), "old").unwrap();
    std::os::unix::fs::symlink("behind.tar", &link).unwrap();
    save(&home, "link.tar", &["busybox:test"]);
    assert!(link.is_symlink());
    assert!(fs::read(home.directory.join("behind.tar")).unwrap() == bytes);
    // A pipe with a name is written to.
    let script = "mkfifo fifo; cat fifo >from-fifo & msb save -q -o fifo busybox:test; wait";
    home.shell(script).is(0, "", "");
    assert!(fs::read(home.directory.join("from-fifo")).unwrap() == bytes);
    let directory = home.directory.join("directory");
    fs::create_dir(&directory).unwrap();
    let outcome = home.run(["save", "-o", directory.to_str().unwrap(), "busybox:test"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o500)).unwrap();
    let inside = directory.join("saved.tar");
    let outcome = home.run(["save", "-o", inside.to_str().unwrap(), "busybox:test"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let text = String::from_utf8(outcome.stderr).unwrap();
    assert!(text.ends_with("saved.tar': permission denied\n"), "{text}");
}

#[test]
fn what_is_not_there_cannot_be_saved() {
    let home = Home::with_busybox();
    let path = home.directory.join("saved.tar");
    let args = ["save", "-o", path.to_str().unwrap(), "busybox:test", "other"];
    home.run(args).is(
        3,
        "",
        "msb save: error: cannot save 'busybox:test', 'other': there is no image 'other:latest'\n\
         msb save: hint: list images with `msb images`; get one with `msb pull`, `msb load` or `msb image import`\n",
    );
    assert!(!path.exists());
    let outcome = Home::new().run(["save", "busybox"]);
    assert_eq!(outcome.code, 3, "{outcome:?}");
}

/// Data is written as fast as it is read: no more than a few buffers are in memory.
#[test]
fn saving_takes_little_memory() {
    let home = Home::with(&["layers.docker.tar"]);
    let mut command = home.msb(["save", "-q", "msb-test/layers:docker"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running::start_as_is(command);
    let mut stdout = running.stdout.take().unwrap();
    let mut first = [0; 512];
    std::io::Read::read_exact(&mut stdout, &mut first).unwrap();
    wait_until("the saver waits for its reader", || {
        let savers = home.processes();
        savers.iter().any(|process| process.peak_kib().is_some_and(|kib| kib > 0))
    });
    let mut sink = File::create("/dev/null").unwrap();
    let mut peak = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = std::io::Read::read(&mut stdout, &mut buffer).unwrap();
        if count == 0 {
            break;
        }
        std::io::Write::write_all(&mut sink, &buffer[..count]).unwrap();
        let peaks = home.processes().into_iter().filter_map(|process| process.peak_kib());
        peak = peaks.max().unwrap_or_default().max(peak);
    }
    running.finish().done();
    assert!((1..32 << 10).contains(&peak), "{peak} KiB");
}
