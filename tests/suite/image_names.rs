//! Names of images: references, IDs and digests, whole or their first digits.

use serde_json::Value;

use crate::support::{Guests, Home};

/// Returns the digest and the ID of an image, without `sha256:`.
#[track_caller]
fn ids(home: &Home, image: &str) -> (String, String) {
    let output = home.run(["image", "inspect", "--format", "json", image]).done();
    let details: Value = serde_json::from_str(&output).unwrap();
    let hex = |value: &Value| value.as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    (hex(&details["digest"]), hex(&details["config"]["digest"]))
}

/// Imports an image with this word as its only file. Each word gives other digests.
fn import(home: &Home, name: &str, word: &str) {
    let script = format!(
        "mkdir -p root-{word} && echo {word} >root-{word}/file && tar -C root-{word} -c . \
         | msb image import -q {name}"
    );
    home.shell(&script).is(0, "", "");
}

#[test]
fn what_images_prints_can_be_typed_wherever_an_image_is_named() {
    let home = Home::with_busybox();
    import(&home, "other", "one");
    let (digest, id) = ids(&home, "busybox:test");
    let shown = home.run(["images"]).done();
    assert!(shown.contains(&digest[..12]), "{shown}");
    let names = [
        digest[..12].to_owned(),
        digest.clone(),
        format!("sha256:{digest}"),
        format!("sha256:{}", &digest[..20]),
        id[..12].to_owned(),
        format!("sha256:{id}"),
        format!("busybox@sha256:{digest}"),
        format!("busybox:test@sha256:{digest}"),
    ];
    for name in &names {
        assert_eq!(ids(&home, name), (digest.clone(), id.clone()), "{name}");
        home.run(["image", "tag", "-q", name, "again"]).done();
        home.run(["image", "rm", "-q", "again"]).done();
        home.run(["image", "save", name, "-q", "-o", "saved.tar"]).done();
        home.run(["create", "--no-start", "--name", "made", name]).done();
        home.run(["rm", "-q", "made"]).done();
    }
    assert_eq!(home.run(["images", "-q"]).done().lines().count(), 2);
}

#[test]
fn an_image_runs_by_its_id_and_its_sandbox_again() {
    let home = Guests::of(Home::with_busybox(), &["busybox:test"]);
    let (_, id) = ids(&home, "busybox:test");
    home.run(["run", &id[..12], "echo", "by id"]).is(0, "by id\n", "");
    home.run(["stop", "-q", "x"]).done();
    home.run(["run", "--name", "x", &id[..12], "echo", "again"]).is(0, "again\n", "");
}

#[test]
fn an_id_that_is_not_there_is_not_pulled() {
    let home = Home::with_busybox();
    let whole = "0123456789abcdef".repeat(4);
    for id in ["0123456789ab", &whole, &format!("sha256:{whole}"), "sha256:0123"] {
        for verb in ["run", "create"] {
            let outcome = home.run([verb, "--pull", "always", id]);
            let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), 2, "{text}");
            assert!(lines[0].ends_with(&format!("there is no image '{id}'")), "{text}");
            assert!(lines[1].contains("hint: no image has this ID or digest"), "{text}");
        }
    }
}

#[test]
fn a_name_hides_the_digits_of_an_id() {
    let home = Home::with_busybox();
    import(&home, "other", "one");
    let (digest, _) = ids(&home, "busybox:test");
    let (other, _) = ids(&home, "other");
    home.run(["image", "tag", "-q", "other", &digest[..4]]).done();
    assert_eq!(ids(&home, &digest[..4]).0, other);
    assert_eq!(ids(&home, &digest[..5]).0, digest);
}

#[test]
fn an_id_removes_an_image_with_one_name_and_with_force_all_names() {
    let home = Home::new();
    import(&home, "one", "one");
    import(&home, "two", "two");
    let (one, _) = ids(&home, "one");
    let (_, two) = ids(&home, "two");
    home.run(["rmi", &one[..12]]).is(0, "docker.io/library/one:latest\n", "");
    home.run(["image", "tag", "-q", "two", "also"]).done();
    let digits = &two[..12];
    home.run(["rmi", digits]).is(
        4,
        "",
        &format!(
            "msb rmi: error: the image '{digits}' has several names: also:latest, two:latest\n\
             msb rmi: hint: remove it by name, or use --force to remove all of them\n"
        ),
    );
    home.run(["rmi", "-f", digits]).is(
        0,
        "docker.io/library/also:latest\ndocker.io/library/two:latest\n",
        "",
    );
    home.run(["images", "-q"]).is(0, "", "");
}
