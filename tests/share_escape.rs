//! Attempts of a guest's root to leave what is shared, by requests that its kernel would never send.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::Home;
use crate::support::fuse::{Entry, Machine, ROOT, opcode};

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EROFS: i32 = 30;

/// A folder that is shared, one that is shared read-only, and a canary beside them that is not.
struct Field {
    _home: Home,
    shared: PathBuf,
    read_only: PathBuf,
    canary: PathBuf,
}

impl Field {
    fn new() -> Field {
        let home = Home::new();
        let folder = |name: &str| {
            let path = home.folder.join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("f"), name).unwrap();
            path
        };
        let field = Field {
            shared: folder("shared"),
            read_only: folder("read-only"),
            canary: home.folder.join("canary"),
            _home: home,
        };
        fs::write(&field.canary, "untouched").unwrap();
        field
    }

    fn machine(&self) -> Machine {
        let entry = |path, read_only| Entry { path, read_only };
        Machine::start(&[entry(&self.shared, false), entry(&self.read_only, true)])
    }

    /// Ways to the canary from the shared folder.
    fn ways(&self) -> Vec<String> {
        let absolute = self.canary.to_str().unwrap().to_owned();
        let ups = |count: usize| format!("{}{}", "../".repeat(count), &absolute[1..]);
        let mut ways = vec![
            absolute.clone(),
            "../canary".to_owned(),
            "../../canary".to_owned(),
            format!("f/../../{}", "canary"),
            format!("/proc/self/root{absolute}"),
            format!("/proc/self/cwd{absolute}"),
        ];
        ways.extend((1..9).map(ups));
        ways.extend((0..32).map(|fd| format!("/proc/self/fd/{fd}{absolute}")));
        ways.extend((0..32).map(|fd| format!("../../proc/self/fd/{fd}/../canary")));
        ways
    }

    #[track_caller]
    fn is_untouched(&self) {
        assert_eq!(fs::read_to_string(&self.canary).unwrap(), "untouched");
        let mode = fs::metadata(&self.canary).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644);
        let mut names: Vec<_> = fs::read_dir(self.canary.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["canary", "read-only", "shared"]);
    }
}

fn c(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_ne_bytes())
        .collect()
}

/// The request to set a mode: `fuse_setattr_in`.
fn set_mode(mode: u32) -> Vec<u8> {
    let mut request = vec![0; 88];
    request[0] = 1;
    request[68..72].copy_from_slice(&mode.to_ne_bytes());
    request
}

#[test]
fn the_wicked_machine_can_do_what_a_good_one_can() {
    let field = Field::new();
    let mut machine = field.machine();
    let folder = machine.lookup(ROOT, "0").unwrap();
    let file = machine.lookup(folder, "f").unwrap();
    assert_eq!(machine.read(file), Ok(b"shared".to_vec()));
    machine
        .ask(
            opcode::MKDIR,
            folder,
            &[numbers(&[0o755, 0]), c("d")].concat(),
        )
        .unwrap();
    assert!(field.shared.join("d").is_dir());
    machine
        .ask(opcode::SETATTR, file, &set_mode(0o600))
        .unwrap();
    let mode = fs::metadata(field.shared.join("f"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert_eq!(machine.hang_up(), Some(0));
}

#[test]
fn no_name_leads_out_of_what_is_shared() {
    let field = Field::new();
    let mut machine = field.machine();
    let folder = machine.lookup(ROOT, "0").unwrap();
    for node in [ROOT, folder] {
        for way in field.ways() {
            let found = machine.lookup(node, &way);
            assert!(found.is_err(), "{way} leads somewhere");
        }
    }
    // Upward there is a root, and it is not the host's.
    let top = machine.lookup(folder, "../../../../..").unwrap();
    for name in [
        "etc",
        "usr",
        "home",
        "tmp",
        "dev",
        "proc/1",
        "proc/self/root",
    ] {
        assert_eq!(machine.lookup(top, name), Err(ENOENT), "{name}");
    }
    field.is_untouched();
}

#[test]
fn nothing_is_made_removed_or_renamed_outside_by_any_name() {
    let field = Field::new();
    let mut machine = field.machine();
    let folder = machine.lookup(ROOT, "0").unwrap();
    let file = machine.lookup(folder, "f").unwrap();
    let planted = |way: &str| way.replace("canary", "planted");
    for way in field.ways() {
        let new = planted(&way);
        let attempts = [
            (opcode::SYMLINK, [c(&new), c("x")].concat()),
            (opcode::MKDIR, [numbers(&[0o777, 0]), c(&new)].concat()),
            (
                opcode::MKNOD,
                [numbers(&[0o100_644, 0, 0, 0]), c(&new)].concat(),
            ),
            (
                opcode::CREATE,
                [numbers(&[0o101, 0o644, 0, 0]), c(&new)].concat(),
            ),
            (
                opcode::CREATE,
                [numbers(&[0o1001, 0o644, 0, 0]), c(&way)].concat(),
            ),
            (
                opcode::LINK,
                [file.to_ne_bytes().to_vec(), c(&new)].concat(),
            ),
            (opcode::UNLINK, c(&way)),
            (opcode::RMDIR, c(&way)),
            (
                opcode::RENAME2,
                [
                    folder.to_ne_bytes().to_vec(),
                    numbers(&[0, 0]),
                    c("f"),
                    c(&way),
                ]
                .concat(),
            ),
            (
                opcode::RENAME2,
                [
                    folder.to_ne_bytes().to_vec(),
                    numbers(&[0, 0]),
                    c(&way),
                    c("stolen"),
                ]
                .concat(),
            ),
        ];
        for (opcode, request) in attempts {
            let answer = machine.ask(opcode, folder, &request);
            assert!(answer.is_err(), "request {opcode} with '{way}'");
        }
    }
    field.is_untouched();
    assert_eq!(fs::read_dir(&field.shared).unwrap().count(), 1);
}

#[test]
fn read_only_is_the_hosts_word_from_every_side() {
    let field = Field::new();
    let mut machine = field.machine();
    let writable = machine.lookup(ROOT, "0").unwrap();
    let folder = machine.lookup(ROOT, "1").unwrap();
    let around = machine.lookup(writable, "../1").unwrap();
    for folder in [folder, around] {
        let file = machine.lookup(folder, "f").unwrap();
        assert_eq!(machine.read(file), Ok(b"read-only".to_vec()));
        // Open for writing.
        assert_eq!(
            machine.ask(opcode::OPEN, file, &numbers(&[1, 0])),
            Err(EROFS)
        );
        assert_eq!(
            machine.ask(opcode::SETATTR, file, &set_mode(0o777)),
            Err(EROFS)
        );
        let new = [numbers(&[0o101, 0o644, 0, 0]), c("n")].concat();
        assert_eq!(machine.ask(opcode::CREATE, folder, &new), Err(EROFS));
        assert_eq!(machine.ask(opcode::UNLINK, folder, &c("f")), Err(EROFS));
    }
    // The root of the share is nobody's to write to either.
    let new = [numbers(&[0o755, 0]), c("n")].concat();
    assert_eq!(machine.ask(opcode::MKDIR, ROOT, &new), Err(EROFS));
    assert_eq!(fs::read_dir(&field.read_only).unwrap().count(), 1);
    assert_eq!(
        fs::read_to_string(field.read_only.join("f")).unwrap(),
        "read-only"
    );
}

#[test]
fn no_request_makes_a_setuid_file_or_a_device() {
    let field = Field::new();
    let mut machine = field.machine();
    let folder = machine.lookup(ROOT, "0").unwrap();
    let file = machine.lookup(folder, "f").unwrap();
    for mode in [0o4755, 0o2755, 0o6777] {
        assert_eq!(
            machine.ask(opcode::SETATTR, file, &set_mode(mode)),
            Err(EPERM)
        );
        let create = [numbers(&[0o101, 0o100_000 | mode, 0, 0]), c("s")].concat();
        assert_eq!(machine.ask(opcode::CREATE, folder, &create), Err(EPERM));
        let mknod = [numbers(&[0o100_000 | mode, 0, 0, 0]), c("s")].concat();
        assert_eq!(machine.ask(opcode::MKNOD, folder, &mknod), Err(EPERM));
    }
    for kind in [0o020_666, 0o060_666] {
        let mknod = [numbers(&[kind, 0x103, 0, 0]), c("dev")].concat();
        assert_eq!(machine.ask(opcode::MKNOD, folder, &mknod), Err(EPERM));
    }
    assert_eq!(fs::read_dir(&field.shared).unwrap().count(), 1);
}

/// A link that the guest makes is opened by the guest: the server never follows one.
#[test]
fn a_link_of_the_guests_own_is_followed_nowhere() {
    let field = Field::new();
    let mut machine = field.machine();
    let folder = machine.lookup(ROOT, "0").unwrap();
    for (name, target) in [
        ("abs", field.canary.to_str().unwrap()),
        ("root", "/"),
        ("up", "../.."),
    ] {
        machine
            .ask(opcode::SYMLINK, folder, &[c(name), c(target)].concat())
            .unwrap();
        let link = machine.lookup(folder, name).unwrap();
        assert!(machine.read(link).is_err(), "{name}");
        assert!(
            machine.lookup(folder, &format!("{name}/")).is_err(),
            "{name}/"
        );
        assert!(
            machine.lookup(folder, &format!("{name}/share")).is_err(),
            "{name}/share"
        );
        assert!(machine.lookup(link, "share").is_err(), "{name}");
    }
    let over = [numbers(&[0o1001, 0o644, 0, 0]), c("abs")].concat();
    assert!(machine.ask(opcode::CREATE, folder, &over).is_err());
    field.is_untouched();
}

/// What the guest holds open is not what the host puts in its place.
#[test]
fn a_folder_that_is_swapped_for_a_link_is_not_followed() {
    let field = Field::new();
    fs::create_dir(field.shared.join("d")).unwrap();
    fs::write(field.shared.join("d/canary"), "inside").unwrap();
    let mut machine = field.machine();
    let folder = machine.lookup(ROOT, "0").unwrap();
    let before = machine.lookup(folder, "d").unwrap();
    fs::rename(field.shared.join("d"), field.shared.join("old")).unwrap();
    std::os::unix::fs::symlink(field.canary.parent().unwrap(), field.shared.join("d")).unwrap();
    assert!(machine.lookup(folder, "d/canary").is_err());
    let link = machine.lookup(folder, "d").unwrap();
    assert!(machine.lookup(link, "canary").is_err());
    let file = machine.lookup(before, "canary").unwrap();
    assert_eq!(machine.read(file), Ok(b"inside".to_vec()));
    field.is_untouched();
}

/// A user of the guest is not its root, also when it sends requests itself.
#[test]
fn a_user_of_the_guest_acts_as_that_user() {
    let field = Field::new();
    fs::set_permissions(&field.shared, fs::Permissions::from_mode(0o700)).unwrap();
    let mut machine = field.machine();
    let folder = machine.lookup(ROOT, "0").unwrap();
    let new = [numbers(&[0o101, 0o644, 0, 0]), c("n")].concat();
    let answer = machine.ask_as(1000, opcode::CREATE, folder, &new);
    assert!(answer.is_err(), "{answer:?}");
    assert!(!Path::new(&field.shared.join("n")).exists());
}
