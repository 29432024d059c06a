//! Names and contents of a shared directory that the host, the guest and another guest change in
//! turn.
//!
//! Each change is followed at once by what depends on it: a guest that used what it had seen before
//! would be wrong.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Guests, Home};

/// A directory of the host that the guest `x` has at `/s`.
struct Shared {
    guests: Guests,
    directory: PathBuf,
}

impl Shared {
    fn new() -> Shared {
        let home = Home::with_busybox();
        let directory = home.directory.join("shared");
        fs::create_dir(&directory).unwrap();
        let mount = format!("{}:/s", directory.display());
        let guests = Guests::of(home, &["-v", &mount, "busybox:test"]);
        Shared { guests, directory }
    }

    /// The path of a name on the host.
    fn at(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Runs a script in the guest, which must succeed, and returns its output.
    #[track_caller]
    fn guest(&self, script: &str) -> String {
        said(&self.guests, "x", script)
    }
}

#[track_caller]
fn said(home: &Home, name: &str, script: &str) -> String {
    let script = format!("cd /s && {script}");
    home.run(["exec", name, "--", "sh", "-c", &script]).done()
}

#[track_caller]
fn holds(path: &Path, content: &str) {
    let found = fs::read_to_string(path);
    assert_eq!(found.unwrap(), content, "{}", path.display());
}

#[test]
fn a_name_that_the_host_changed_is_what_it_is_for_who_opens_it() {
    let shared = Shared::new();
    // Removed by the host, made again by the guest.
    fs::write(shared.at("removed"), "old\n").unwrap();
    assert_eq!(shared.guest("cat removed"), "old\n");
    fs::remove_file(shared.at("removed")).unwrap();
    shared.guest("echo guest >removed");
    holds(&shared.at("removed"), "guest\n");
    // Replaced by rename, as editors do, and appended to.
    fs::write(shared.at("replaced"), "old\n").unwrap();
    assert_eq!(shared.guest("cat replaced"), "old\n");
    fs::write(shared.at("new"), "new\n").unwrap();
    fs::rename(shared.at("new"), shared.at("replaced")).unwrap();
    shared.guest("echo guest >>replaced");
    holds(&shared.at("replaced"), "new\nguest\n");
    // The same without a write: what is read is the new one.
    fs::write(shared.at("new"), "newer\n").unwrap();
    fs::rename(shared.at("new"), shared.at("replaced")).unwrap();
    assert_eq!(shared.guest("cat replaced"), "newer\n");
    // Renamed, with a new file of the old name: a log that is rotated.
    shared.guest("echo first >log");
    fs::rename(shared.at("log"), shared.at("log.1")).unwrap();
    fs::write(shared.at("log"), "").unwrap();
    shared.guest("echo second >>log");
    holds(&shared.at("log.1"), "first\n");
    holds(&shared.at("log"), "second\n");
    // Changed in its place.
    fs::write(shared.at("log"), "other\n").unwrap();
    assert_eq!(shared.guest("cat log; stat -c %s log"), "other\n6\n");
    // Another kind of file under the name.
    fs::remove_file(shared.at("log")).unwrap();
    fs::create_dir(shared.at("log")).unwrap();
    shared.guest("test -d log && echo in >log/f");
    holds(&shared.at("log/f"), "in\n");
}

#[test]
fn what_the_host_made_or_removed_is_there_or_gone_at_once() {
    let shared = Shared::new();
    for _ in 0..3 {
        shared.guest("! test -e made");
        fs::write(shared.at("made"), "12345").unwrap();
        assert_eq!(shared.guest("test -e made && stat -c %s made; ls"), "5\nmade\n");
        fs::write(shared.at("made"), "123").unwrap();
        assert_eq!(shared.guest("stat -c %s made"), "3\n");
        fs::remove_file(shared.at("made")).unwrap();
    }
}

#[test]
fn a_directory_that_the_host_made_again_takes_files() {
    let shared = Shared::new();
    fs::create_dir(shared.at("d")).unwrap();
    fs::write(shared.at("d/x"), "1\n").unwrap();
    assert_eq!(shared.guest("cat d/x"), "1\n");
    fs::remove_dir_all(shared.at("d")).unwrap();
    fs::create_dir(shared.at("d")).unwrap();
    shared.guest("! test -e d/x && echo guest >d/y");
    holds(&shared.at("d/y"), "guest\n");
    // Renamed, with a new directory of the old name.
    fs::rename(shared.at("d"), shared.at("e")).unwrap();
    fs::create_dir(shared.at("d")).unwrap();
    shared.guest("echo again >d/y; echo more >>e/y");
    holds(&shared.at("d/y"), "again\n");
    holds(&shared.at("e/y"), "guest\nmore\n");
}

#[test]
fn a_directory_is_listed_while_its_entries_vanish() {
    let shared = Shared::new();
    fs::write(shared.at("stays"), "").unwrap();
    let mut listing = shared.guests.start([
        "exec",
        "x",
        "--",
        "sh",
        "-c",
        "cd /s; echo ready; until test -e end; do ls 2>/dev/null | grep -qx stays || exit 1; done",
    ]);
    listing.read_until("ready\n");
    for _ in 0..200 {
        for number in 0..16 {
            fs::write(shared.at(&number.to_string()), "").unwrap();
        }
        for number in 0..16 {
            fs::remove_file(shared.at(&number.to_string())).unwrap();
        }
    }
    fs::write(shared.at("end"), "").unwrap();
    listing.finish().is(0, "", "");
}

#[test]
fn two_guests_of_one_volume_see_what_the_other_did() {
    let home = Home::with_busybox();
    home.run(["volume", "create", "v", "--kind", "dir", "--quiet"]).is(0, "", "");
    for name in ["a", "b"] {
        home.run(["create", "--name", name, "-v", "v:/s", "busybox:test"]).done();
    }
    let a = |script: &str| said(&home, "a", script);
    let b = |script: &str| said(&home, "b", script);
    // Replaced by rename in one, appended to in the other.
    a("echo old >f");
    assert_eq!(b("cat f"), "old\n");
    a("echo new >t; mv t f");
    b("echo b >>f");
    assert_eq!(a("cat f"), "new\nb\n");
    // Locks of three kinds, by turns. Each is taken by one at a time, and by the next at once.
    let locks = [
        ("set -C; echo 1 2>/dev/null >lock", "rm lock"),
        ("mkdir lock 2>/dev/null", "rmdir lock"),
        ("ln f lock 2>/dev/null", "rm lock"),
    ];
    for (take, release) in locks {
        let refused = format!("! ({take})");
        for _ in 0..3 {
            a(take);
            b(&refused);
            a(release);
            b(take);
            a(&refused);
            b(release);
        }
    }
    // An open file has what was appended since.
    let mut reader = home.start([
        "exec",
        "b",
        "--",
        "sh",
        "-c",
        "exec 3</s/f; cat <&3; echo ready; until test -e /s/go; do :; done; cat <&3",
    ]);
    reader.read_until("ready\n");
    a("echo more >>f; touch go");
    reader.finish().is(0, "more\n", "");
    home.run(["rm", "-f", "a", "b"]).done();
}
