//! Names, room on the disk, and what goes when nobody needs it; and whether what stays is whole.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::save::content;
use crate::support::{Home, Running, Terminal, fixture};

/// Room that the image store has on the disk.
fn used(home: &Home) -> u64 {
    used_by(&home.state().join("images"))
}

fn used_by(path: &Path) -> u64 {
    let metadata = fs::symlink_metadata(path).unwrap();
    if !metadata.is_dir() {
        return metadata.blocks() * 512;
    }
    let entries = fs::read_dir(path).unwrap();
    entries.map(|entry| used_by(&entry.unwrap().path())).sum()
}

#[track_caller]
fn json(home: &Home, args: &[&str]) -> Value {
    let text = home.run([args, &["--format", "json"]].concat()).done();
    serde_json::from_str(&text).unwrap()
}

fn names(home: &Home) -> String {
    home.run(["images", "-q"]).done()
}

#[test]
fn a_tag_is_one_more_name_for_the_same_image() {
    let home = Home::with_busybox();
    let before = content(&home, "images/layers");
    home.run(["image", "tag", "busybox:test", "mine"]).is(0, "docker.io/library/mine:latest\n", "");
    home.run(["image", "tag", "-q", "docker.io/library/busybox:test", "localhost/other:1"])
        .is(0, "", "");
    assert_eq!(
        names(&home),
        "docker.io/library/busybox:test\ndocker.io/library/mine:latest\nlocalhost/other:1\n"
    );
    assert_eq!(content(&home, "images/layers"), before);
    let rows = json(&home, &["images"]);
    let digests: Vec<&Value> = rows.as_array().unwrap().iter().map(|row| &row["digest"]).collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{rows}");
    // The image goes with its last name.
    home.run(["rmi", "-q", "busybox:test", "mine"]).done();
    assert_eq!(content(&home, "images/layers"), before);
    home.run(["image", "check", "-q"]).is(0, "", "");
    home.run(["rmi", "-q", "localhost/other:1"]).done();
    assert_eq!(content(&home, "images/layers"), Vec::<String>::new());
    assert_eq!(home.run(["image", "tag", "mine", "yours"]).code, 3);
}

#[test]
fn a_name_that_pins_another_manifest_cannot_be_given() {
    let home = Home::with_busybox();
    let digest = json(&home, &["images"])[0]["digest"].as_str().unwrap().to_owned();
    let other = format!("x@sha256:{}", "0".repeat(64));
    assert_eq!(home.run(["image", "tag", "busybox:test", &other]).code, 1);
    let right = format!("x@{digest}");
    home.run(["image", "tag", "-q", "busybox:test", &right]).is(0, "", "");
    home.run(["image", "inspect", &right]).done();
}

#[test]
fn prune_takes_all_that_no_sandbox_was_made_from_and_says_what_room_it_had() {
    let home = Home::with(&["busybox.docker.tar", "layers.docker.tar", "configured.docker.tar"]);
    home.run(["image", "tag", "-q", "busybox:test", "also"]).done();
    home.run(["run", "--name", "keeper", "busybox:test", "--", "true"]).done();
    let before = used(&home);
    let report = json(&home, &["image", "prune", "--yes"]);
    assert_eq!(report["image_refs_removed"], 2, "{report}");
    assert_eq!(report["manifests_removed"], 2, "{report}");
    assert_eq!(report["layers_removed"], 7, "{report}");
    assert_eq!(report["fsmeta_removed"], 2, "{report}");
    assert_eq!(report["vmdk_removed"], 2, "{report}");
    assert_eq!(
        report["references"],
        serde_json::json!(["docker.io/msb-test/layers:docker", "localhost/msb-test/configured:v1"])
    );
    let freed = before - used(&home);
    // Directories may shrink as well, which is not counted.
    let reclaimed = report["bytes_reclaimed"].as_u64().unwrap();
    assert!(
        reclaimed > 0 && reclaimed <= freed && freed - reclaimed < 64 << 10,
        "{reclaimed} of {freed}"
    );
    assert_eq!(names(&home), "docker.io/library/also:latest\ndocker.io/library/busybox:test\n");
    home.run(["image", "check", "-q"]).is(0, "", "");
    home.run(["run", "--name", "keeper", "busybox:test", "--", "echo", "still here"]).done();
    home.run(["image", "prune", "--yes"]).is(0, "", "Nothing to remove.\n");
    // When the sandbox has gone, so does its image.
    home.run(["rm", "keeper"]).done();
    let report = json(&home, &["image", "prune", "--yes"]);
    assert_eq!(report["image_refs_removed"], 2, "{report}");
    assert_eq!(content(&home, "images/layers"), Vec::<String>::new());
}

#[test]
fn an_image_in_use_is_not_removed_and_its_sandbox_is_named() {
    let home = Home::with_busybox();
    home.run(["run", "--name", "web", "busybox:test", "--", "true"]).done();
    home.run(["rmi", "busybox:test"]).is(
        4,
        "",
        "msb rmi: error: image 'busybox:test' is used by: web\n\
         msb rmi: hint: remove these sandboxes first (`msb rm`), or use --force\n",
    );
    home.run(["rmi", "-q", "--force", "busybox:test"]).is(0, "", "");
    assert_eq!(names(&home), "");
    home.run(["rm", "web"]).done();
}

#[test]
fn a_broken_sandbox_stops_prune() {
    let home = Home::with_busybox();
    fs::create_dir_all(home.state().join("sandboxes/broken")).unwrap();
    fs::write(home.state().join("sandboxes/broken/spec.json"), "{").unwrap();
    let before = home.snapshot("images");
    let outcome = home.run(["image", "prune", "--yes"]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    let text = String::from_utf8(outcome.stderr).unwrap();
    assert!(text.contains("sandbox 'broken' is broken"), "{text}");
    assert_eq!(home.snapshot("images"), before);
}

#[test]
fn prune_can_be_told_which_images() {
    let home = Home::with(&["busybox.docker.tar", "layers.docker.tar"]);
    let prune = |filters: &[&str]| {
        let mut args = vec!["image", "prune", "--yes"];
        args.extend(filters.iter().flat_map(|filter| ["--filter", filter]));
        json(&home, &args)["references"].clone()
    };
    let nothing = serde_json::json!([]);
    assert_eq!(prune(&["until=1h"]), nothing);
    assert_eq!(prune(&["label=purpose=other"]), nothing);
    assert_eq!(prune(&["label=purpose", "until=1h"]), nothing);
    assert_eq!(prune(&["label!=purpose"]), nothing);
    let outcome = home.run(["image", "prune", "--yes", "--filter", "size=1"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    let both = prune(&["label=purpose=test", "until=0s"]);
    assert_eq!(both.as_array().unwrap().len(), 2, "{both}");
}

#[test]
fn what_leads_nowhere_goes_and_what_somebody_works_on_stays() {
    let home = Home::with_busybox();
    let images = home.state().join("images");
    let before = content(&home, "images");
    fs::create_dir_all(images.join("downloads")).unwrap();
    let digest = |letter: &str| letter.repeat(64);
    let write = |path: String| {
        fs::write(images.join(&path), vec![1; 10_000]).unwrap();
        images.join(path)
    };
    let waste: Vec<PathBuf> = vec![
        write(format!("downloads/{}", digest("a"))),
        write(format!("layers/{}.data", digest("b"))),
        write(format!("disks/{}.v1.erofs", digest("c"))),
        write(format!("disks/{}.v1.vmdk", digest("c"))),
        write("layers/.new-0123.data".to_owned()),
    ];
    let worked_on = write(format!("downloads/{}", digest("e")));
    let foreign = write("layers/notes.txt".to_owned());
    let file = fs::File::options().write(true).open(&worked_on).unwrap();
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    home.run(["image", "check", "-q"]).is(0, "", "");
    let room: u64 = waste.iter().map(|path| used_by(path)).sum();
    let report = json(&home, &["image", "prune", "--yes", "--dangling"]);
    assert_eq!(report["image_refs_removed"], 0, "{report}");
    assert_eq!(report["downloads_removed"], 1, "{report}");
    assert_eq!(report["leftovers_removed"], 1, "{report}");
    assert_eq!(report["bytes_reclaimed"], room, "{report}");
    for path in waste {
        assert!(!path.exists(), "{}", path.display());
    }
    assert!(worked_on.exists() && foreign.exists());
    drop(file);
    fs::remove_file(foreign).unwrap();
    json(&home, &["image", "prune", "--yes", "--dangling"]);
    let kept = |line: &String| !line.contains("images/downloads ");
    let after: Vec<String> = content(&home, "images").into_iter().filter(kept).collect();
    let before: Vec<String> = before.into_iter().filter(kept).collect();
    assert_eq!(after, before);
}

#[test]
fn prune_asks_a_person_and_refuses_a_script() {
    let home = Home::with_busybox();
    home.run(["image", "prune"]).is(
        2,
        "",
        "msb image: error: cannot ask for confirmation without a terminal\n\
         msb image: hint: to remove without confirmation, add --yes\n",
    );
    let terminal = Terminal::open(&home);
    terminal.enter("msb image prune; echo code $?");
    terminal.wait_for("docker.io/library/busybox:test");
    terminal.wait_for("Continue? [y/N]");
    terminal.enter("n");
    terminal.wait_for("code 0");
    assert_eq!(names(&home), "docker.io/library/busybox:test\n");
    terminal.enter("clear; msb image prune; echo done $?");
    terminal.wait_for("Continue? [y/N]");
    // What comes while the person thinks was not agreed to.
    home.load("configured.docker.tar");
    terminal.enter("y");
    terminal.wait_for("done 0");
    assert_eq!(names(&home), "localhost/msb-test/configured:v1\n");
    home.run(["image", "check", "-q"]).is(0, "", "");
}

#[test]
fn df_tells_what_images_share_and_what_each_alone_holds() {
    let home = Home::with(&["busybox.docker.tar", "configured.docker.tar", "layers.docker.tar"]);
    let usage = json(&home, &["image", "df"]);
    let images = usage["images"].as_array().unwrap();
    assert_eq!(images.len(), 3, "{usage}");
    let number = |value: &Value| value.as_u64().unwrap();
    for image in images {
        let (shared, unique) = (number(&image["shared_bytes"]), number(&image["unique_bytes"]));
        // All three stand on the same layer.
        assert!(shared > 1 << 20 && unique > 0, "{usage}");
        assert_eq!(number(&image["size_bytes"]), shared + unique);
    }
    assert_eq!(usage["reclaimable_bytes"], usage["total_bytes"]);
    // Removing an image frees what it alone holds.
    let layers =
        images.iter().find(|image| image["references"][0] == "docker.io/msb-test/layers:docker");
    let unique = number(&layers.unwrap()["unique_bytes"]);
    let before = number(&usage["total_bytes"]);
    home.run(["rmi", "-q", "msb-test/layers:docker"]).done();
    let after = number(&json(&home, &["image", "df"])["total_bytes"]);
    // And the record of its name.
    assert!(
        before - after >= unique && before - after <= unique + 8192,
        "{before} {after} {unique}"
    );
    let table = home.run(["image", "df"]).done();
    assert!(table.starts_with("IMAGE "), "{table}");
    assert!(!Home::new().run(["image", "df"]).stderr.is_empty());
}

#[test]
fn check_finds_a_changed_byte_in_every_file_of_the_store() {
    let home = Home::with_busybox();
    let images = home.state().join("images");
    for directory in ["refs", "manifests", "configs", "layers", "disks"] {
        for entry in fs::read_dir(images.join(directory)).unwrap() {
            let path = entry.unwrap().path();
            let good = fs::read(&path).unwrap();
            // The first byte, the last, one in the middle; one is missing, one is too many.
            let mut bads = Vec::new();
            for at in [0, good.len() / 2, good.len() - 1] {
                let mut bad = good.clone();
                bad[at] ^= 4;
                bads.push(bad);
            }
            bads.push(good[..good.len() - 1].to_vec());
            bads.push([&good[..], b"x"].concat());
            for (number, bad) in bads.into_iter().enumerate() {
                // A record may be written with other spaces.
                if directory == "refs" && number == 3 {
                    continue;
                }
                fs::write(&path, bad).unwrap();
                let outcome = home.run(["image", "check"]);
                assert_eq!(outcome.code, 1, "{} {number}: {outcome:?}", path.display());
                let told = String::from_utf8(outcome.stdout).unwrap();
                let name = path.file_name().unwrap().to_str().unwrap();
                assert!(told.contains(name), "{name} {number}: {told}");
            }
            fs::remove_file(&path).unwrap();
            let missing = home.run(["image", "check"]);
            // A name that is not there is missed by nobody.
            let expected = i32::from(directory != "refs");
            assert_eq!(missing.code, expected, "{} missing: {missing:?}", path.display());
            fs::write(&path, good).unwrap();
            home.run(["image", "check", "-q"]).is(0, "", "");
        }
    }
}

#[test]
fn prune_waits_for_a_load_and_takes_nothing_from_it() {
    let home = Home::new();
    let archive = fs::read(fixture("busybox.docker.tar")).unwrap();
    let mut load = home.start(["load", "-q"]);
    let mut stdin = load.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, &archive[..archive.len() / 2]).unwrap();
    crate::support::wait_until("the load works", || !content(&home, "images/layers").is_empty());
    let prune = home.start(["image", "prune", "--yes"]);
    let rest = archive[archive.len() / 2..].to_vec();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &rest));
    load.finish().done();
    writer.join().unwrap().unwrap();
    prune.finish().done();
    home.run(["image", "check", "-q"]).is(0, "", "");
}

#[test]
fn an_import_is_told_what_its_commands_need() {
    let home = Home::new();
    let root = home.directory.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::create_dir(root.join("work")).unwrap();
    let archive = "tar -C root -c . | msb image import -q -e A=1 -e HOME -e A=2 --entrypoint /bin/busybox \
                   --cmd echo --cmd -n --cmd 'two words' -w /work -u 1000:10 --label team=ml --label bare mine";
    home.shell(archive).is(0, "", "");
    let config = &json(&home, &["image", "inspect", "mine"])["config"];
    let own = format!("HOME={}", home.directory.display());
    assert_eq!(
        config["env"],
        serde_json::json!([
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "A=2",
            own
        ])
    );
    assert_eq!(config["entrypoint"], serde_json::json!(["/bin/busybox"]));
    assert_eq!(config["cmd"], serde_json::json!(["echo", "-n", "two words"]));
    assert_eq!(config["working_dir"], "/work");
    assert_eq!(config["user"], "1000:10");
    assert_eq!(config["labels"], serde_json::json!({ "team": "ml", "bare": "" }));
    home.run(["run", "mine"]).is(0, "two words", "");
    let again = "tar -C root -c . | msb image import -q --cmd '[\"/bin/busybox\", \"true\"]' json";
    home.shell(again).is(0, "", "");
    let config = &json(&home, &["image", "inspect", "json"])["config"];
    assert_eq!(config["cmd"], serde_json::json!(["/bin/busybox", "true"]));
    for (option, value) in
        [("--cmd", "[1"), ("--workdir", "work"), ("--label", "=x"), ("--env", "NOT_SET_HERE")]
    {
        let outcome = Running::start(home.msb(["image", "import", option, value, "x"])).finish();
        assert_eq!(outcome.code, 2, "{option}: {outcome:?}");
    }
}
