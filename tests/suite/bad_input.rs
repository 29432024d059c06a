//! Requests that cannot be done: one clear line, the documented exit code, and everything as it
//! was.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::{Home, Outcome, Running, fixture, full_disk};

/// An archive made of files; each name with its content.
fn archive(home: &Home, name: &str, files: &[(&str, Vec<u8>)]) -> String {
    let directory = home.directory.join(format!("{name}.d"));
    for (file, content) in files {
        let path = directory.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let path = home.directory.join(name);
    let script = format!("cd {} && tar -cf {} *", directory.display(), path.display());
    home.shell(&script).is(0, "", "");
    path.to_str().unwrap().to_owned()
}

/// The busybox archive with one of its files changed.
fn changed(home: &Home, change: impl Fn(&Path)) -> String {
    let directory = home.directory.join("changed.d");
    fs::create_dir(&directory).unwrap();
    let input = fixture("busybox.docker.tar");
    home.shell(&format!("tar -xf {} -C {}", input.display(), directory.display())).is(0, "", "");
    change(&directory);
    home.shell(&format!("cd {} && tar -cf ../changed.tar *", directory.display())).is(0, "", "");
    home.directory.join("changed.tar").to_str().unwrap().to_owned()
}

/// The file in the archive whose name ends so (`.tar`: the layer; `.json`: see the caller).
fn file_ending(directory: &Path, ending: &str) -> std::path::PathBuf {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    names
        .filter(|path| path.is_file())
        .find(|path| path.to_str().unwrap().ends_with(ending))
        .unwrap()
}

/// A refusal: its code, no output, one line of error that says all of `words`, perhaps a hint; and
/// no change of the state directory.
struct Refusal<'a> {
    code: i32,
    tool: &'a str,
    words: &'a [&'a str],
}

impl Refusal<'_> {
    #[track_caller]
    fn is(&self, home: &Home, args: &[&str]) {
        let before = home.snapshot("");
        let outcome = home.run(args);
        self.is_said_by(&outcome);
        let after = home.snapshot("");
        let only = |one: &[String], other: &[String]| -> Vec<String> {
            one.iter().filter(|line| !other.contains(line)).cloned().collect()
        };
        let (gone, new) = (only(&before, &after), only(&after, &before));
        assert!(
            gone.is_empty() && new.is_empty(),
            "{args:?} changed the state: gone {gone:#?}, new {new:#?}"
        );
    }

    #[track_caller]
    fn is_said_by(&self, outcome: &Outcome) {
        assert_eq!(outcome.code, self.code, "{outcome:?}");
        let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert_eq!(outcome.stdout, b"", "{text}");
        let errors: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with(&format!("{}: hint: ", self.tool)))
            .collect();
        assert_eq!(errors.len(), 1, "one line of error:\n{text}");
        let Some(message) = errors[0].strip_prefix(&format!("{}: error: ", self.tool)) else {
            panic!("not in our voice:\n{text}");
        };
        for word in self.words {
            assert!(message.contains(word), "'{word}' is not in: {message}");
        }
        assert!(!message.ends_with('.') && !message.contains("os error"), "{message}");
        assert!(!message.chars().any(char::is_control), "{message:?}");
    }
}

fn refused_load<'a>(words: &'a [&'a str]) -> Refusal<'a> {
    Refusal { code: 1, tool: "msb load", words }
}

fn refused_run<'a>(words: &'a [&'a str]) -> Refusal<'a> {
    Refusal { code: 125, tool: "msb run", words }
}

#[test]
fn a_truncated_archive_is_refused() {
    let home = Home::with(&["configured.docker.tar"]);
    let whole = fs::read(fixture("busybox.docker.tar")).unwrap();
    for length in [1000, whole.len() / 2, whole.len() / 3 * 2] {
        let path = home.directory.join("cut.tar");
        fs::write(&path, &whole[..length]).unwrap();
        let path = path.to_str().unwrap();
        refused_load(&[path]).is(&home, &["load", "-i", path]);
    }
}

#[test]
fn an_empty_archive_and_one_that_is_none_are_refused() {
    let home = Home::with(&["configured.docker.tar"]);
    for content in [&b""[..], b"hello, this is no archive\n", &[0; 10240], &[0x1f, 0x8b, 8, 0, 0]] {
        let path = home.directory.join("none.tar");
        fs::write(&path, content).unwrap();
        refused_load(&[]).is(&home, &["load", "-i", path.to_str().unwrap()]);
    }
    refused_load(&["/nowhere.tar", "no such file"]).is(&home, &["load", "-i", "/nowhere.tar"]);
    refused_load(&[]).is(&home, &["load", "-i", "/"]);
}

#[test]
fn a_layer_with_another_digest_is_refused() {
    // Not beside an image with the same layer: what is there is not read again.
    let home = Home::new();
    let other = links(&home, "[('a', b'2', 'b')]");
    home.run(["image", "import", "-q", "-i", &other, "other"]).done();
    let path = changed(&home, |directory| {
        let layer = file_ending(directory, ".tar");
        fs::set_permissions(&layer, fs::Permissions::from_mode(0o644)).unwrap();
        let mut bytes = fs::read(&layer).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(layer, bytes).unwrap();
    });
    refused_load(&["sha256:"]).is(&home, &["load", "-i", &path]);
}

#[test]
fn an_oci_blob_with_another_digest_is_refused_whichever_it_is() {
    // Not beside an image with the same layers: what is there is not read again.
    let home = Home::new();
    let other = links(&home, "[('a', b'2', 'b')]");
    home.run(["image", "import", "-q", "-i", &other, "other"]).done();
    let input = fixture("layers.oci-gzip.tar");
    home.shell(&format!("mkdir oci && tar -xf {} -C oci", input.display())).is(0, "", "");
    let blobs = fs::read_dir(home.directory.join("oci/blobs/sha256")).unwrap();
    let blobs: Vec<_> = blobs.map(|entry| entry.unwrap().path()).collect();
    assert!(blobs.len() > 5, "{blobs:?}");
    for blob in blobs {
        let whole = fs::read(&blob).unwrap();
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() ^= 1;
        fs::write(&blob, damaged).unwrap();
        home.shell("tar -C oci -cf oci.tar .").is(0, "", "");
        fs::write(&blob, whole).unwrap();
        let archive = home.directory.join("oci.tar");
        refused_load(&["oci.tar"]).is(&home, &["load", "-i", archive.to_str().unwrap()]);
    }
}

#[test]
fn an_archive_without_its_manifest_is_refused() {
    let home = Home::with(&["configured.docker.tar"]);
    let path =
        changed(&home, |directory| fs::remove_file(directory.join("manifest.json")).unwrap());
    refused_load(&["manifest.json"]).is(&home, &["load", "-i", &path]);
}

#[test]
fn an_archive_without_a_layer_or_its_configuration_is_refused() {
    for ending in [".tar", ".json"] {
        let home = Home::with(&["configured.docker.tar"]);
        let path = changed(&home, |directory| {
            let manifest = fs::read(directory.join("manifest.json")).unwrap();
            fs::remove_file(directory.join("manifest.json")).unwrap();
            fs::remove_file(file_ending(directory, ending)).unwrap();
            fs::write(directory.join("manifest.json"), manifest).unwrap();
        });
        refused_load(&[]).is(&home, &["load", "-i", &path]);
    }
}

#[test]
fn a_manifest_that_is_no_json_or_leads_out_of_the_archive_is_refused() {
    let home = Home::with(&["configured.docker.tar"]);
    let manifests = [
        "{",
        "[]",
        "[{\"Config\": 1}]",
        "[{\"Config\":\"../../etc/passwd\",\"RepoTags\":[\"x\"],\"Layers\":[\"/etc/passwd\"]}]",
        "[{\"Config\":\"c.json\",\"RepoTags\":[\"UPPER CASE\"],\"Layers\":[]}]",
    ];
    for (number, manifest) in manifests.iter().enumerate() {
        let files = [("manifest.json", manifest.as_bytes().to_vec()), ("c.json", b"{}".to_vec())];
        let path = archive(&home, &format!("bad-{number}.tar"), &files);
        refused_load(&[]).is(&home, &["load", "-i", &path]);
    }
}

/// A tar archive with links in it, by Python's tarfile, which writes what it is told.
fn links(home: &Home, entries: &str) -> String {
    let script = format!(
        "import tarfile\nt = tarfile.open('links.tar', 'w')\nfor name, kind, target in {entries}:\n    \
         i = tarfile.TarInfo(name); i.type = kind; i.linkname = target; t.addfile(i)\nt.close()\n"
    );
    fs::write(home.directory.join("links.py"), script).unwrap();
    home.shell("python3 links.py").is(0, "", "");
    home.directory.join("links.tar").to_str().unwrap().to_owned()
}

#[test]
fn hard_links_in_a_circle_or_to_nothing_are_refused() {
    let home = Home::with(&["configured.docker.tar"]);
    for entries in [
        "[('a', b'1', 'b'), ('b', b'1', 'a')]",
        "[('a', b'1', 'a')]",
        "[('a', b'1', 'nothing')]",
        "[('d', b'5', ''), ('a', b'1', 'd')]",
    ] {
        let path = links(&home, entries);
        Refusal { code: 1, tool: "msb image", words: &["'a'"] }
            .is(&home, &["image", "import", "-i", &path, "bad"]);
    }
}

#[test]
fn names_that_lead_out_of_the_root_never_do() {
    let home = Home::with(&["configured.docker.tar"]);
    for entries in ["[('../../escaped', b'0', '')]", "[('a/../../escaped', b'0', '')]"] {
        let path = links(&home, entries);
        let outcome = home.run(["image", "import", "-q", "-i", &path, "bad"]);
        assert!(outcome.code == 1 || outcome.code == 0, "{outcome:?}");
        assert!(
            !home.directory.join("escaped").exists()
                && !home.directory.parent().unwrap().join("escaped").exists()
        );
    }
}

#[test]
fn symbolic_links_in_a_circle_are_an_image_like_any_other() {
    let home = Home::new();
    let path = links(&home, "[('a', b'2', 'b'), ('b', b'2', 'a')]");
    home.run(["image", "import", "-q", "-i", &path, "circle"]).is(0, "", "");
}

#[test]
fn an_unknown_image_is_not_found() {
    let home = Home::with(&["configured.docker.tar"]);
    let words = ["there is no image 'nothing:latest'"];
    refused_run(&words).is(&home, &["run", "--pull", "never", "nothing"]);
    for (tool, args) in
        [("msb image", &["image", "inspect", "nothing"][..]), ("msb rmi", &["rmi", "nothing"])]
    {
        Refusal { code: 3, tool, words: &words }.is(&home, args);
    }
}

#[test]
fn a_reference_that_is_none_is_wrong_usage() {
    let home = Home::with(&["configured.docker.tar"]);
    for reference in ["UPPER", "a b", "", "a:b:c", "../x", &"x".repeat(300)] {
        let outcome = home.run(["image", "inspect", reference]);
        assert_eq!(outcome.code, 2, "{reference}: {outcome:?}");
    }
}

#[test]
fn no_kernel_is_said_and_what_to_do_about_it() {
    let home = Home::with_busybox();
    let empty = home.directory.join("empty");
    fs::create_dir(&empty).unwrap();
    let empty = empty.to_str().unwrap();
    for (kernel, words, hint) in [
        (
            "/nowhere/vmlinuz",
            ["'/nowhere/vmlinuz'", "no such file or directory"],
            "msb run: hint: name another file, or unset MSB_KERNEL",
        ),
        (empty, ["no kernel for the guest", empty], "msb run: hint: install one: "),
        (
            "/etc/passwd",
            ["'/etc/passwd'", "kernel"],
            "msb run: hint: a bzImage (vmlinuz) or an uncompressed ELF vmlinux",
        ),
    ] {
        let before = home.snapshot("sandboxes");
        let mut command = home.msb(["run", "busybox:test", "--", "true"]);
        command.env("MSB_KERNEL", kernel);
        let outcome = Running::start(command).finish();
        Refusal { code: 125, tool: "msb run", words: &words }.is_said_by(&outcome);
        let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
        let hints: Vec<&str> = said.lines().filter(|line| line.contains(": hint: ")).collect();
        assert_eq!(hints.len(), 1, "{said}");
        assert!(hints[0].starts_with(hint), "{said}");
        assert_eq!(before, home.snapshot("sandboxes"), "{kernel}");
    }
}

#[test]
fn no_qemu_is_said_and_what_to_do_about_it() {
    let home = Home::with_busybox();
    let mut command = home.msb(["run", "busybox:test", "--", "true"]);
    command.env("PATH", home.prefix.join("bin"));
    let outcome = Running::start(command).finish();
    Refusal { code: 125, tool: "msb run", words: &["'qemu-system-x86_64'"] }.is_said_by(&outcome);
    assert!(
        String::from_utf8_lossy(&outcome.stderr).contains("msb run: hint: install QEMU"),
        "{outcome:?}"
    );
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());
}

#[test]
fn a_home_that_cannot_be_written_is_said() {
    let home = Home::with_busybox();
    let locked = home.directory.join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    let input = fixture("busybox.docker.tar");
    for (state, word) in [("locked/state", "permission denied"), ("file/state", "not a directory")]
    {
        fs::write(home.directory.join("file"), "").unwrap();
        let mut command = home.msb(["load", "-q", "-i", input.to_str().unwrap()]);
        let output = command.env("MSB_HOME", home.directory.join(state)).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            text.starts_with("msb load: error: ") && text.contains(word) && text.contains(state),
            "{text}"
        );
        assert!(text.ends_with("choose another state directory: export MSB_HOME=DIR\n"), "{text}");
    }
    // Also for commands that only read, and for a pull, whose hints are about registries.
    for args in [&["ls"][..], &["images"], &["pull", "nosuch"], &["run", "busybox:test"]] {
        let mut command = home.msb(args);
        let output = command.env("MSB_HOME", home.directory.join("file")).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("file' is not a directory\n"), "{args:?}: {text}");
        assert!(text.ends_with(": export MSB_HOME=DIR\n"), "{args:?}: {text}");
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing_half_done() {
    let home = Home::new();
    let (_guard, full) = full_disk();
    let state = full.join("state");
    let input = fixture("busybox.docker.tar");
    let load = |archive: &Path| {
        let mut command = home.msb(["load", "-q", "-i", archive.to_str().unwrap()]);
        command.env("MSB_HOME", &state).output().unwrap()
    };
    assert!(load(&input).status.success(), "a small image fits");
    let names = home.shell(&format!("cd {} && find state -type f | sort", full.display())).done();
    let output = load(&fixture("layers.docker.tar"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.starts_with("msb load: error: ") && text.contains("no space left on device"),
        "{text}"
    );
    assert_eq!(text.lines().filter(|line| line.contains("error:")).count(), 1, "{text}");
    let after = home.shell(&format!("cd {} && find state -type f | sort", full.display())).done();
    assert_eq!(names, after);
    fs::remove_dir_all(&state).unwrap();
}

#[test]
fn images_leave_a_reserve_of_the_disk() {
    let home = Home::new();
    let (_guard, full) = full_disk();
    let state = full.join("state");
    // 4 MiB, of which a twentieth stays free: what is left of it now is less.
    fs::write(full.join("filler"), vec![1; 3_990_000]).unwrap();
    home.shell("head -c 60000 /dev/urandom >f && tar -cf small.tar f").done();
    let mut command = home.msb(["image", "import", "-q", "-i", "small.tar", "small"]);
    let output = command.env("MSB_HOME", &state).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("almost full") && text.contains("reserved"), "{text}");
    assert!(text.contains("msb image: hint: remove unused images"), "{text}");
    let layers = fs::read_dir(state.join("images/layers")).unwrap();
    assert_eq!(layers.count(), 0);
    fs::remove_file(full.join("filler")).unwrap();
    fs::remove_dir_all(&state).unwrap();
}

#[test]
fn sizes_and_counts_that_cannot_be_are_wrong_usage() {
    let home = Home::with(&["configured.docker.tar"]);
    let image = "localhost/msb-test/configured:v1";
    for (option, value, words) in [
        ("--memory", "0", "memory cannot be 0"),
        ("--memory", "many", "'many'"),
        ("--memory", "-1", "-1"),
        ("--cpus", "0", "cpus cannot be 0"),
        ("--cpus", "1.5", "'1.5'"),
        ("--env", "=x", "'=x'"),
        ("--env", "NOT_SET_ON_THE_HOST", "NOT_SET_ON_THE_HOST"),
        ("--label", "=x", "'=x'"),
    ] {
        Refusal { code: 125, tool: "msb run", words: &[words] }
            .is(&home, &["run", &format!("{option}={value}"), image]);
    }
}

#[test]
fn names_that_cannot_be_are_wrong_usage() {
    let home = Home::with(&["configured.docker.tar"]);
    let image = "localhost/msb-test/configured:v1";
    let long = "n".repeat(300);
    for name in ["a/b", "..", ".", "", "../x", "/x", "-x", "a b", "\u{1b}[31mred", long.as_str()] {
        let option = format!("--name={name}");
        Refusal { code: 125, tool: "msb run", words: &["name"] }
            .is(&home, &["run", &option, image]);
        for verb in ["stop", "rm"] {
            Refusal { code: 2, tool: &format!("msb {verb}"), words: &["name"] }
                .is(&home, &[verb, "--", name]);
        }
        if !name.starts_with('-') {
            Refusal { code: 125, tool: "msb exec", words: &["name"] }
                .is(&home, &["exec", name, "--", "true"]);
        }
    }
}

#[test]
fn a_state_directory_of_a_later_version_is_left_alone() {
    let home = Home::with_busybox();
    fs::write(home.state().join("version"), "999\n").unwrap();
    refused_run(&["version"]).is(&home, &["run", "busybox:test", "--", "true"]);
    refused_load(&["version"])
        .is(&home, &["load", "-i", fixture("busybox.docker.tar").to_str().unwrap()]);
}

#[test]
fn a_file_of_the_store_that_cannot_be_parsed_is_named() {
    let home = Home::with_busybox();
    let refs = home.state().join("images/refs");
    let file = fs::read_dir(&refs).unwrap().next().unwrap().unwrap().path();
    fs::write(&file, "{\"reference\":").unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    refused_run(&[name]).is(&home, &["run", "busybox:test", "--", "true"]);
}
