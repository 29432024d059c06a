//! Archives that mean harm: nothing outside the store changes, nothing of them stays when they are
//! refused, and memory has a bound.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::support::erofs::{self, Node};
use crate::support::tar::{Tar, configuration, docker_archive, header, sha256};
use crate::support::{Home, Outcome, Random, Running};

/// Memory for any archive of up to 100,000 entries, and for any archive at all: as msb-image(1)
/// says.
const MEMORY_BYTES: u64 = 64 << 20;
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// Returns the files beside the store, with their contents.
fn canaries(home: &Home) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut directories = vec![home.directory.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if !path.starts_with(home.state().join("images")) {
                files.push((path.clone(), fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// A home with something to lose beside it.
fn home() -> Home {
    let home = Home::new();
    for name in ["passwd", "etc/passwd", "tmp/canary"] {
        let path = home.directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "canary").unwrap();
    }
    // Makes the state directory, so that it is no news later.
    home.run_with(["image", "load", "-q"], b"").ended_with(1);
    home
}

impl Outcome {
    /// Ended with this code, and with one line of error if that is a failure: no panic, no signal.
    #[track_caller]
    fn ended_with(&self, code: i32) -> String {
        let text = String::from_utf8_lossy(&self.stderr).into_owned();
        assert_eq!(self.code, code, "{text}");
        if code != 0 {
            let errors = text.lines().filter(|line| line.starts_with("msb image: error: "));
            assert_eq!(errors.count(), 1, "{text}");
            assert!(!text.contains("panicked") && !text.contains("bug"), "{text}");
        }
        text
    }
}

/// Files of the store; none may be there that no image needs.
fn stored(home: &Home) -> Vec<String> {
    let lines = home.snapshot("images").into_iter();
    let files = lines.filter(|line| line.split(' ').nth(2).is_some());
    files.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[track_caller]
fn is_refused(home: &Home, archive: &[u8], words: &str) {
    let path = home.directory.join("archive.tar");
    fs::write(&path, archive).unwrap();
    let before = canaries(home);
    for streamed in [false, true] {
        let outcome = if streamed {
            home.run_with(["image", "load", "-q"], archive)
        } else {
            home.run(["image", "load", "-q", "-i", path.to_str().unwrap()])
        };
        let text = outcome.ended_with(1);
        assert!(text.contains(words), "'{words}' is not in: {text}");
        assert_eq!(stored(home), Vec::<String>::new(), "{text}");
    }
    assert!(before == canaries(home), "files beside the store have changed");
}

/// Loads an archive and gives the tree of its image.
#[track_caller]
fn tree_of(home: &Home, archive: &[u8]) -> BTreeMap<Vec<u8>, Node> {
    let before = canaries(home);
    home.run_with(["image", "load", "-q"], archive).ended_with(0);
    assert!(before == canaries(home), "files beside the store have changed");
    let tree = erofs::tree(&home.state());
    fs::remove_dir_all(home.state().join("images")).unwrap();
    tree
}

/// A tree as text, a path a line.
fn shown(tree: &BTreeMap<Vec<u8>, Node>) -> Vec<String> {
    let line = |(path, node): (&Vec<u8>, &Node)| {
        let path = String::from_utf8_lossy(path);
        match node {
            Node::File(size) => format!("{path} {size}"),
            Node::Directory => format!("{path}/"),
            Node::Symlink(target) => format!("{path} -> {}", String::from_utf8_lossy(target)),
            Node::Other => format!("{path} special"),
        }
    };
    tree.iter().map(line).collect()
}

/// The expected result of a hostile archive.
enum End {
    /// The image has this tree, and the host is as it was.
    Tree(&'static [&'static str]),
    /// It is refused, and these words say why.
    Refused(&'static str),
}

/// One idea of an attacker: its name, the layers, what comes of it.
type Idea = (&'static str, Vec<Tar>, End);

fn tar() -> Tar {
    Tar::new()
}

#[track_caller]
fn check(ideas: Vec<Idea>) {
    let home = home();
    for (name, layers, end) in ideas {
        println!("{name}");
        let layers: Vec<Vec<u8>> = layers.into_iter().map(Tar::end).collect();
        let archive = docker_archive(&layers);
        match end {
            End::Tree(expected) => assert_eq!(shown(&tree_of(&home, &archive)), expected, "{name}"),
            End::Refused(words) => is_refused(&home, &archive, words),
        }
    }
}

#[test]
fn symbolic_links_never_lead_to_the_host() {
    use End::{Refused, Tree};
    check(vec![
        (
            "an absolute link as a parent",
            vec![tar().symlink("l", "/etc").file("l/passwd", b"x")],
            Tree(&["etc/", "etc/passwd 1", "l -> /etc"]),
        ),
        (
            "a link up and out as a parent",
            vec![tar().directory("d").symlink("d/l", "../../../../tmp").file("d/l/x", b"x")],
            Tree(&["d/", "d/l -> ../../../../tmp", "tmp/", "tmp/x 1"]),
        ),
        (
            "several absolute links, one through the other",
            vec![
                tar()
                    .symlink("a", "/b")
                    .symlink("b", "/c/..")
                    .symlink("b2", "/a")
                    .file("b2/x", b"x"),
            ],
            Tree(&["a -> /b", "b -> /c/..", "b2 -> /a", "c/", "x 1"]),
        ),
        (
            "several relative links, one through the other",
            vec![
                tar()
                    .directory("d/e")
                    .symlink("d/e/up", "../..")
                    .symlink("d/root", "e/up/../..")
                    .file("d/root/x", b"x"),
            ],
            Tree(&["d/", "d/e/", "d/e/up -> ../..", "d/root -> e/up/../..", "x 1"]),
        ),
        (
            "a link that is replaced by a file",
            vec![tar().symlink("l", "/etc/passwd"), tar().file("l", b"new")],
            Tree(&["l 3"]),
        ),
        (
            "a link that is replaced by an empty file",
            vec![tar().symlink("l", "/etc/passwd").file("l", b"")],
            Tree(&["l 0"]),
        ),
        (
            "a directory over a link: what is put in it does not go through",
            vec![
                tar().directory("real").symlink("d", "real"),
                tar().directory("d").file("d/x", b"x"),
            ],
            Tree(&["d/", "d/x 1", "real/"]),
        ),
        (
            "a link over a directory: what is put in it goes through, within the root",
            vec![
                tar().directory("d").file("d/old", b"").directory("real"),
                tar().symlink("d", "/real").file("d/x", b"x"),
            ],
            Tree(&["d -> /real", "real/", "real/x 1"]),
        ),
        (
            "a relative link over a directory",
            vec![tar().directory("d/e"), tar().symlink("d/e", "..").file("d/e/x", b"x")],
            Tree(&["d/", "d/e -> ..", "x 1"]),
        ),
        (
            "a link whose name ends in a slash",
            vec![tar().symlink("l/", "/etc").file("l/x", b"x")],
            Tree(&["etc/", "etc/x 1", "l -> /etc"]),
        ),
        (
            "a link with the name of the root's parent",
            vec![tar().symlink("..", "/etc")],
            Refused("leads out of the root"),
        ),
        ("a link without a target", vec![tar().symlink("l", "")], Refused("empty link target")),
        ("a link without a name", vec![tar().symlink("", "/etc")], Refused("empty path")),
        (
            "the root as a link",
            vec![tar().symlink(".", "/etc")],
            Refused("root must be a directory"),
        ),
        (
            "links in a circle as parents",
            vec![tar().symlink("a", "b").symlink("b", "a").file("a/x", b"")],
            Refused("too many symbolic links"),
        ),
        (
            "a link in a lower layer as a parent in an upper one",
            vec![tar().symlink("tmp", "/../../../../../tmp"), tar().file("tmp/canary", b"x")],
            Refused("too many symbolic links"),
        ),
        (
            "a link with contents, which some readers skip and others take for entries",
            vec![tar().entry("l", b'2', "x", &header("hidden", b'0', "", 0))],
            Refused("not a regular file"),
        ),
        (
            "a special file as a parent",
            vec![tar().entry("p", b'6', "", b"").file("p/x", b"")],
            Refused("is not a directory"),
        ),
    ]);
}

#[test]
fn hard_links_never_lead_to_the_host() {
    use End::{Refused, Tree};
    check(vec![
        (
            "relative, up and out",
            vec![tar().hard_link("h", "../../../../../../etc/passwd")],
            Refused("leads out of the root"),
        ),
        (
            "down, then up and out",
            vec![tar().directory("d").hard_link("h", "d/../../../passwd")],
            Refused("leads out of the root"),
        ),
        (
            "absolute: the image's own, which is not there",
            vec![tar().hard_link("h", "/etc/passwd")],
            Refused("does not exist"),
        ),
        (
            "absolute: the image's own",
            vec![tar().file("etc/passwd", b"root").hard_link("h", "/../etc/passwd")],
            Tree(&["etc/", "etc/passwd 4", "h 4"]),
        ),
        (
            "through a link that leads out",
            vec![tar().symlink("l", "../../../etc").hard_link("h", "l/passwd")],
            Refused("does not exist"),
        ),
        (
            "to a symbolic link, whose target comes later",
            vec![tar().symlink("l", "/etc/passwd").hard_link("h", "l").file("etc/passwd", b"x")],
            Tree(&["etc/", "etc/passwd 1", "h -> /etc/passwd", "l -> /etc/passwd"]),
        ),
        (
            "to a symbolic link, then through it",
            vec![tar().symlink("l", "../..").hard_link("h", "l").file("h/x", b"x")],
            Tree(&["h -> ../..", "l -> ../..", "x 1"]),
        ),
        (
            "to a file that was replaced: the old one stays under the new name",
            vec![tar().file("a", b"old").hard_link("h", "a"), tar().file("a", b"newer")],
            Tree(&["a 5", "h 3"]),
        ),
        (
            "to what a whiteout has taken away",
            vec![tar().file("a", b"x"), tar().file(".wh.a", b"").hard_link("h", "a")],
            Refused("does not exist"),
        ),
        ("to itself", vec![tar().file("a", b"").hard_link("a", "a")], Refused("leads to itself")),
        (
            "to a directory",
            vec![tar().directory("d").hard_link("h", "d")],
            Refused("is a directory"),
        ),
        ("to the root", vec![tar().hard_link("h", "/")], Refused("to the root")),
    ]);
}

#[test]
fn whiteouts_take_away_nothing_but_the_images_own() {
    use End::{Refused, Tree};
    let lower = || tar().directory("d").file("d/a", b"1").file("etc/passwd", b"root");
    check(vec![
        (
            "the parent of the root",
            vec![lower(), tar().file(".wh...", b"")],
            Refused("has no name"),
        ),
        (
            "a directory's parent",
            vec![lower(), tar().file("d/.wh...", b"")],
            Refused("has no name"),
        ),
        ("the directory itself", vec![lower(), tar().file("d/.wh..", b"")], Refused("has no name")),
        ("nothing", vec![lower(), tar().file("d/.wh.", b"")], Refused("has no name")),
        (
            "a path that leads out",
            vec![lower(), tar().file("../.wh.passwd", b"")],
            Refused("leads out of the root"),
        ),
        (
            "through a link that leads out: within the root",
            vec![lower().symlink("l", "../../etc"), tar().file("l/.wh.passwd", b"")],
            Tree(&["d/", "d/a 1", "etc/", "l -> ../../etc"]),
        ),
        (
            "through a link to nothing",
            vec![lower().symlink("l", "none"), tar().file("l/.wh.a", b"")],
            Tree(&["d/", "d/a 1", "etc/", "etc/passwd 4", "l -> none"]),
        ),
        (
            "a link itself, not what it leads to",
            vec![lower().symlink("l", "d"), tar().file(".wh.l", b"")],
            Tree(&["d/", "d/a 1", "etc/", "etc/passwd 4"]),
        ),
        (
            "as a directory",
            vec![lower(), tar().directory(".wh.d").file(".wh.d/x", b"")],
            Refused("through a whiteout"),
        ),
        (
            "all of the root",
            vec![lower(), tar().file(".wh..wh..opq", b"").file("x", b"")],
            Tree(&["x 0"]),
        ),
        (
            "all of a directory through a link: within the root",
            vec![lower().symlink("l", "/../d"), tar().file("l/.wh..wh..opq", b"")],
            Tree(&["d/", "etc/", "etc/passwd 4", "l -> /../d"]),
        ),
        (
            "a directory whose contents come again, before and after",
            vec![lower(), tar().file("d/b", b"22").file(".wh.d", b"").file("d/c", b"")],
            Tree(&["d/", "d/b 2", "d/c 0", "etc/", "etc/passwd 4"]),
        ),
        (
            "notes of an old driver",
            vec![
                lower(),
                tar()
                    .directory(".wh..wh.plnk")
                    .file(".wh..wh.plnk/1.2", b"")
                    .file(".wh..wh.aufs", b""),
            ],
            Tree(&["d/", "d/a 1", "etc/", "etc/passwd 4"]),
        ),
    ]);
}

#[test]
fn names_stay_within_the_root_and_have_bounds() {
    use End::{Refused, Tree};
    let long = [b'x'; 256];
    let deep = "d/".repeat(1025);
    let path = "d/".repeat(2048);
    check(vec![
        ("up and out", vec![tar().file("../x", b"")], Refused("leads out of the root")),
        ("down, up and out", vec![tar().file("a/../../x", b"")], Refused("leads out of the root")),
        ("absolute", vec![tar().file("/x", b"").file("/../../y", b"")], Tree(&["x 0", "y 0"])),
        ("a NUL in a name", vec![tar().pax(&[("path", b"a\0b")]).file("x", b"")], Refused("NUL")),
        ("a long name", vec![tar().pax(&[("path", &long)]).file("x", b"")], Refused("255 bytes")),
        (
            "deep directories",
            vec![tar().pax(&[("path", deep.as_bytes())]).file("x", b"")],
            Refused("1024 directories"),
        ),
        (
            "a long path",
            vec![tar().pax(&[("path", path.as_bytes())]).file("x", b"")],
            Refused("4095"),
        ),
        (
            "deep directories through links",
            vec![
                tar()
                    .pax(&[("path", "d/".repeat(1000).as_bytes())])
                    .directory("x")
                    .pax(&[("linkpath", "d/".repeat(1000).as_bytes())])
                    .symlink("l", "x")
                    .pax(&[("path", format!("l/{}", "e/".repeat(100)).as_bytes())])
                    .directory("x"),
            ],
            Refused("1024 directories"),
        ),
    ]);
}

/// An archive of documents: each path with its content.
fn documents(files: &[(&str, &str)]) -> Vec<u8> {
    files
        .iter()
        .fold(tar(), |tar, (path, content)| {
            if path.len() <= 100 {
                tar.file(path, content.as_bytes())
            } else {
                tar.pax(&[("path", path.as_bytes())]).file("long", content.as_bytes())
            }
        })
        .end()
}

/// An OCI archive whose index has these descriptors, with blobs under their own names.
fn oci(index: &str, blobs: &[&str]) -> Vec<u8> {
    let named: Vec<(String, &str)> = blobs
        .iter()
        .map(|blob| (format!("blobs/sha256/{}", sha256(blob.as_bytes())), *blob))
        .collect();
    let mut files =
        vec![("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#), ("index.json", index)];
    files.extend(named.iter().map(|(path, blob)| (path.as_str(), *blob)));
    documents(&files)
}

#[test]
fn documents_that_contradict_themselves_or_lead_elsewhere_are_refused() {
    let home = home();
    let layer = tar().file("x", b"x").end();
    let id = sha256(&layer);
    let config = configuration(std::slice::from_ref(&id));
    let digest = sha256(config.as_bytes());
    let both = format!(r#"{{"config":{{"digest":"sha256:{digest}"}},"layers":[],"manifests":[]}}"#);
    let index_of = |blob: &str| {
        let digest = sha256(blob.as_bytes());
        format!(
            r#"{{"manifests":[{{"digest":"sha256:{digest}","annotations":{{"org.opencontainers.image.ref.name":"a:b"}}}}]}}"#
        )
    };
    is_refused(&home, &oci(&index_of(&both), &[&both, &config]), "both a manifest and an index");
    is_refused(&home, &oci(r#"{"manifests":[],"layers":[]}"#, &[]), "both a manifest and an index");
    for bad in ["sha256:../../../etc/passwd", "sha256:", "sha512:aa", "../x"] {
        let index = format!(r#"{{"manifests":[{{"digest":"{bad}"}}]}}"#);
        is_refused(&home, &oci(&index, &[]), "index.json");
    }
    let absent = format!(r#"{{"manifests":[{{"digest":"sha256:{}"}}]}}"#, "0".repeat(64));
    is_refused(&home, &oci(&absent, &[]), "is missing");
    // manifest.json that lies: about digests, numbers, and where things are.
    for (config_path, layers, words) in [
        ("config.json", "[]", "names 0 layers"),
        ("config.json", r#"["x.tar","x.tar"]"#, "names 2 layers"),
        ("config.json", r#"["../x.tar"]"#, "missing"),
        ("config.json", r#"["/etc/passwd"]"#, "missing"),
        ("config.json", r#"["config.json"]"#, "layer 'config.json'"),
        ("x.tar", r#"["x.tar"]"#, "x.tar"),
        ("link", r#"["x.tar"]"#, "missing"),
        ("../../etc/passwd", r#"["x.tar"]"#, "missing"),
    ] {
        let manifest =
            format!(r#"[{{"Config":"{config_path}","RepoTags":["a"],"Layers":{layers}}}]"#);
        let archive = tar()
            .file("x.tar", &layer)
            .symlink("link", "../../../etc/passwd")
            .file("config.json", config.as_bytes())
            .file("manifest.json", manifest.as_bytes())
            .end();
        is_refused(&home, &archive, words);
    }
    let other = configuration(&["0".repeat(64)]);
    let manifest = r#"[{"Config":"config.json","RepoTags":["a"],"Layers":["x.tar"]}]"#;
    let archive = |config_path: &str, config: &str| {
        tar()
            .file("x.tar", &layer)
            .file(config_path, config.as_bytes())
            .file("manifest.json", manifest.replace("config.json", config_path).as_bytes())
            .end()
    };
    is_refused(&home, &archive("config.json", &other), "the configuration says sha256:000");
    is_refused(&home, &archive(&format!("{digest}.json"), &other), "has the digest");
    // And the same without a lie is an image.
    assert_eq!(shown(&tree_of(&home, &archive(&format!("{digest}.json"), &config))), ["x 1"]);
}

#[test]
fn documents_that_multiply_are_refused() {
    let home = home();
    // Five indexes, each naming the next 1,000 times: a thousand million million ways to the last
    // one.
    let mut blobs = vec![r#"{"manifests":[]}"#.to_owned()];
    for _ in 0..4 {
        let digest = sha256(blobs[blobs.len() - 1].as_bytes());
        let entry = format!(r#"{{"digest":"sha256:{digest}"}}"#);
        blobs.push(format!(r#"{{"manifests":[{}]}}"#, vec![entry; 1000].join(",")));
    }
    let index = blobs.pop().unwrap();
    let blobs: Vec<&str> = blobs.iter().map(String::as_str).collect();
    is_refused(&home, &oci(&index, &blobs), "too often");
    let names: Vec<String> = (0..2000).map(|number| format!("\"n{number}\"")).collect();
    let manifest =
        format!(r#"[{{"Config":"c.json","RepoTags":[{}],"Layers":[]}}]"#, names.join(","));
    let archive = documents(&[("c.json", &configuration(&[])), ("manifest.json", &manifest)]);
    is_refused(&home, &archive, "1000 names");
    let large = format!("[{}]", " ".repeat(17 << 20));
    is_refused(&home, &documents(&[("manifest.json", &large)]), "larger than");
    let deep = "[".repeat(1 << 20);
    is_refused(&home, &documents(&[("manifest.json", &deep)]), "cannot parse");
}

#[test]
fn an_archive_cut_off_anywhere_leaves_nothing() {
    let home = home();
    let mut content = vec![0; 1 << 20];
    Random::new(4).fill(&mut content);
    let layers = [tar().file("a", &content).end(), tar().file("b", &content).file("c", b"c").end()];
    let whole = docker_archive(&layers);
    assert!(whole.len() > 2 << 20);
    let path = home.directory.join("cut.tar");
    let mut refused = 0;
    for length in (0..whole.len()).step_by(4096) {
        let cut = &whole[..length];
        let outcome = if length % 8192 == 0 {
            home.run_with(["image", "load", "-q"], cut)
        } else {
            fs::write(&path, cut).unwrap();
            home.run(["image", "load", "-q", "-i", path.to_str().unwrap()])
        };
        outcome.ended_with(1);
        assert_eq!(stored(&home), Vec::<String>::new(), "{length}");
        refused += 1;
    }
    assert!(refused >= 512);
    assert_eq!(
        shown(&tree_of(&home, &whole)),
        [format!("a {}", 1 << 20), format!("b {}", 1 << 20), "c 1".to_owned()]
    );
}

/// Runs `msb image import bomb`, its input written by `feed`, and gives its outcome and its peak of
/// memory in bytes.
#[track_caller]
fn import(home: &Home, feed: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> (Outcome, u64) {
    const MEASURE: &str = "import resource, subprocess, sys\n\
        code = subprocess.run(sys.argv[1:]).returncode\n\
        print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n\
        sys.exit(code)";
    let mut command = home.program("python3");
    command.args(["-c", MEASURE]).arg(home.prefix.join("bin/msb"));
    command.args(["image", "import", "-q", "bomb"]);
    let mut running = Running::start(command);
    // Who refuses an archive need not read it to its end.
    drop(feed(&mut running.stdin.take().unwrap()));
    let outcome = running.finish();
    let peak = String::from_utf8_lossy(&outcome.stdout).trim().parse().unwrap();
    (outcome, peak)
}

/// The room that the store takes.
fn room(home: &Home) -> u64 {
    let script = format!("du -sk {} | cut -f1", home.state().display());
    home.shell(&script).done().trim().parse::<u64>().unwrap() << 10
}

/// A compressed piece of a tar: it may stand any number of times, one after the other.
fn packed(home: &Home, program: &str, piece: &[u8]) -> Vec<u8> {
    let path = home.directory.join("piece");
    fs::write(&path, piece).unwrap();
    let output = home.program(program).arg("-c").arg(&path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::remove_file(path).unwrap();
    output.stdout
}

#[test]
fn zeros_without_end_take_neither_memory_nor_room() {
    const ZEROS: usize = 64 << 20;
    let zeros = vec![0; ZEROS];
    for (program, count, words) in [
        // What gzip can do at most is allowed, and costs nothing: 3 GiB.
        ("gzip", 48, ""),
        // 2 GiB from less than 300 KiB.
        ("zstd", 32, "1100 times"),
    ] {
        let home = home();
        let start = packed(&home, program, &header("zeros", b'0', "", (count * ZEROS) as u64));
        let piece = packed(&home, program, &zeros);
        let end = packed(&home, program, &[0; 1024]);
        let (outcome, peak) = import(&home, |out| {
            out.write_all(&start)?;
            (0..count).try_for_each(|_| out.write_all(&piece))?;
            out.write_all(&end)
        });
        let text = outcome.ended_with(i32::from(!words.is_empty()));
        assert!(text.contains(words), "{text}");
        assert!(peak < MEMORY_BYTES, "{program}: {peak}");
        assert!(room(&home) < 1 << 20, "{program}: {}", room(&home));
    }
}

#[test]
fn the_layers_of_an_image_expand_no_further_than_one_layer_may() {
    const ZEROS: usize = 64 << 20;
    const COUNT: usize = 11;
    let home = home();
    let zeros = vec![0; ZEROS];
    let piece = packed(&home, "zstd", &zeros);
    let end = packed(&home, "zstd", &[0; 1024]);
    let mut first = Sha256::new();
    first.update(header("a", b'0', "", (COUNT * ZEROS) as u64));
    (0..COUNT).for_each(|_| first.update(&zeros));
    first.update([0; 1024]);
    let first: String = first.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    // 704 MiB each: one would be let through, the two are not.
    let layer = |name: &str| {
        let start = header(name, b'0', "", (COUNT * ZEROS) as u64);
        let start = packed(&home, "zstd", &start);
        [start, piece.repeat(COUNT), end.clone()].concat()
    };
    let second = "0".repeat(64);
    let config = format!(
        "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:{first}\",\"sha256:{second}\"]}}}}"
    );
    let manifest =
        "[{\"Config\":\"c.json\",\"RepoTags\":[\"bomb:1\"],\"Layers\":[\"0.tar\",\"1.tar\"]}]";
    let archive = tar()
        .file("manifest.json", manifest.as_bytes())
        .file("c.json", config.as_bytes())
        .file("0.tar", &layer("a"))
        .file("1.tar", &layer("b"))
        .end();
    assert!(archive.len() < 1 << 20, "{}", archive.len());
    is_refused(&home, &archive, "1100 times");
}

#[test]
fn a_sparse_file_takes_no_room_and_has_a_bound() {
    for (gib, words) in [(900_u64, ""), (2000, "holes counted")] {
        let home = home();
        let size = (gib << 30).to_string();
        let sparse = tar()
            .pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", b"0,1")])
            .file("sparse", b"x")
            .end();
        let (outcome, peak) = import(&home, |out| out.write_all(&sparse));
        let text = outcome.ended_with(i32::from(!words.is_empty()));
        assert!(text.contains(words), "{text}");
        assert!(peak < MEMORY_BYTES && room(&home) < 1 << 20, "{gib}");
    }
}

#[test]
fn headers_and_attributes_have_bounds() {
    let home = home();
    let many: Vec<String> =
        (0..4000).map(|number| format!("SCHILY.xattr.user.{number:05}")).collect();
    let records: Vec<(&str, &[u8])> =
        many.iter().map(|name| (name.as_str(), &b"twelve bytes"[..])).collect();
    let huge = vec![b'x'; 1 << 20];
    for (entry, words) in [
        (tar().pax(&records), "extended attributes"),
        (tar().pax(&[("SCHILY.xattr.user.a", &huge[..70_000])]), "extended attributes"),
        (tar().pax(&[("comment", &huge)]), "extended header"),
        (tar().raw(&header("x", b'x', "", 1 << 32)), "extended header"),
        (tar().raw(&header("x", b'L', "", 1 << 20)), "extended header"),
        (tar().raw(&header("x", b'0', "", (1 << 33) - 1)), "truncated"),
    ] {
        let archive = docker_archive(&[entry.file("f", b"").end()]);
        is_refused(&home, &archive, words);
    }
}

/// Writes entries with names of their own.
fn put_entries(
    out: &mut dyn Write,
    count: u64,
    kind: u8,
    path: impl Fn(u64) -> String,
) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::with_capacity(1 << 20, out);
    (0..count).try_for_each(|number| out.write_all(&header(&path(number), kind, "", 0)))?;
    out.write_all(&[0; 1024])?;
    out.flush()
}

#[test]
fn a_hundred_thousand_entries_take_little_memory() {
    let home = home();
    let path = |number| format!("usr/share/some-package-{}/file-number-{number}", number / 50);
    let (outcome, peak) = import(&home, |out| put_entries(out, 100_000, b'0', path));
    outcome.ended_with(0);
    println!("{} KiB", peak >> 10);
    assert!(peak < MEMORY_BYTES, "{peak}");
}

#[test]
fn memory_has_a_bound_at_the_limit_of_entries_and_one_more_is_refused() {
    // Directories within directories of their own: nothing takes more memory for each entry.
    let path = |number| format!("{}/{number}/a/b/c/d/e/f/g/h", number / 1000);
    let home = home();
    let (outcome, peak) = import(&home, |out| put_entries(out, 1_000_000, b'5', path));
    assert!(outcome.ended_with(1).contains("more than 2000000 entries"));
    println!("{} KiB", peak >> 10);
    assert!(peak < MEMORY_BYTES_MAX, "{peak}");
    let path = |number| format!("{number:-<90}");
    let (outcome, peak) = import(&home, |out| put_entries(out, 1_000_000, b'0', path));
    outcome.ended_with(0);
    println!("{} KiB", peak >> 10);
    assert!(peak < MEMORY_BYTES_MAX, "{peak}");
    let (outcome, _) = import(&home, |out| put_entries(out, 1_000_001, b'0', path));
    assert!(outcome.ended_with(1).contains("more than 1000000 entries"));
}

#[test]
fn marks_that_repeat_themselves_take_no_time() {
    // Each would look at all the files again.
    let home = home();
    let (outcome, _) = import(&home, |out| {
        put_entries(out, 200_000, b'0', |number| {
            let odd = number % 2 == 1;
            if odd { "d/.wh..wh..opq".to_owned() } else { format!("d/{number}") }
        })
    });
    outcome.ended_with(0);
}

#[test]
fn paths_that_lead_a_long_way_round_are_refused() {
    // Forty links, each to a path of two thousand parts: eighty thousand steps for one entry.
    let home = home();
    let around = "a/../".repeat(800);
    let mut links = tar().directory("a");
    for number in 0..39 {
        let target = format!("{around}{}", number + 1);
        links = links.pax(&[("linkpath", target.as_bytes())]).symlink(&number.to_string(), "x");
    }
    links = links.directory("39");
    let (outcome, _) = import(&home, |out| {
        out.write_all(links.bytes())?;
        put_entries(out, 10_000, b'0', |number| format!("0/{number}"))
    });
    let text = outcome.ended_with(1);
    assert!(text.contains("32000000 directories"), "{text}");
}

#[test]
fn different_attributes_for_every_file_have_a_bound() {
    let home = home();
    let value = vec![b'v'; 60_000];
    let (outcome, peak) = import(&home, |out| {
        for number in 0..1000 {
            let name = format!("SCHILY.xattr.user.{number}");
            out.write_all(tar().pax(&[(&name, &value)]).file(&number.to_string(), b"").bytes())?;
        }
        out.write_all(&[0; 1024])
    });
    assert!(outcome.ended_with(1).contains("bytes of extended attributes"));
    assert!(peak < 2 * MEMORY_BYTES, "{peak}");
}

#[test]
fn a_window_of_zstd_has_a_bound() {
    let home = home();
    let path: &Path = &home.directory.join("large");
    let mut content = vec![0; 1 << 20];
    Random::new(9).fill(&mut content);
    let layer = tar().file("a", &content).end();
    fs::write(path, &layer).unwrap();
    for (log, code) in [(27, 0), (28, 1)] {
        // Without the size of the whole the window is what was asked for.
        let script = format!("zstd -q --long={log} -c <large");
        let output = home.program("bash").args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let (outcome, peak) = import(&home, |out| out.write_all(&output.stdout));
        outcome.ended_with(code);
        assert!(peak < MEMORY_BYTES + (1 << 27), "{log}: {peak}");
    }
}
