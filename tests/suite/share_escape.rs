//! Attempts of a guest's root to leave what is shared, by requests that its kernel would never
//! send.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::support::Home;
use crate::support::fuse::{Entry, Machine, NO_ANSWER, ROOT, opcode};

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EBADF: i32 = 9;
const EXDEV: i32 = 18;
const EMFILE: i32 = 24;
const EINVAL: i32 = 22;
const EROFS: i32 = 30;
const ENAMETOOLONG: i32 = 36;
const ENOSYS: i32 = 38;

/// A directory that is shared, one that is shared read-only, and a canary beside them that is not.
struct Field {
    _home: Home,
    shared: PathBuf,
    read_only: PathBuf,
    canary: PathBuf,
}

impl Field {
    fn new() -> Field {
        let home = Home::new();
        let directory = |name: &str| {
            let path = home.directory.join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("f"), name).unwrap();
            path
        };
        let field = Field {
            shared: directory("shared"),
            read_only: directory("read-only"),
            canary: home.directory.join("canary"),
            _home: home,
        };
        fs::write(&field.canary, "untouched").unwrap();
        field
    }

    fn machine(&self) -> Machine {
        let entry = |path, read_only| Entry { path, read_only };
        Machine::start(&[entry(&self.shared, false), entry(&self.read_only, true)])
    }

    /// Ways to the canary from the shared directory.
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
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
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
    let directory = machine.lookup(ROOT, "0").unwrap();
    let file = machine.lookup(directory, "f").unwrap();
    assert_eq!(machine.read(file), Ok(b"shared".to_vec()));
    machine.ask(opcode::MKDIR, directory, &[numbers(&[0o755, 0]), c("d")].concat()).unwrap();
    assert!(field.shared.join("d").is_dir());
    machine.ask(opcode::SETATTR, file, &set_mode(0o600)).unwrap();
    let mode = fs::metadata(field.shared.join("f")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert_eq!(machine.hang_up(), Some(0));
}

#[test]
fn no_name_leads_out_of_what_is_shared() {
    let field = Field::new();
    let mut machine = field.machine();
    let directory = machine.lookup(ROOT, "0").unwrap();
    for node in [ROOT, directory] {
        for way in field.ways() {
            let found = machine.lookup(node, &way);
            assert!(found.is_err(), "{way} leads somewhere");
        }
    }
    // A name is one component, and none that leads upward.
    for up in [".", "..", "./", "../", "/", "../0", "../../../../..", "0/f"] {
        for node in [ROOT, directory] {
            assert_eq!(machine.lookup(node, up), Err(EINVAL), "{up}");
        }
    }
    field.is_untouched();
}

#[test]
fn nothing_is_made_removed_or_renamed_outside_by_any_name() {
    let field = Field::new();
    let mut machine = field.machine();
    let directory = machine.lookup(ROOT, "0").unwrap();
    let file = machine.lookup(directory, "f").unwrap();
    let planted = |way: &str| way.replace("canary", "planted");
    for way in field.ways() {
        let new = planted(&way);
        let attempts = [
            (opcode::SYMLINK, [c(&new), c("x")].concat()),
            (opcode::MKDIR, [numbers(&[0o777, 0]), c(&new)].concat()),
            (opcode::MKNOD, [numbers(&[0o100_644, 0, 0, 0]), c(&new)].concat()),
            (opcode::CREATE, [numbers(&[0o101, 0o644, 0, 0]), c(&new)].concat()),
            (opcode::CREATE, [numbers(&[0o1001, 0o644, 0, 0]), c(&way)].concat()),
            (opcode::LINK, [file.to_ne_bytes().to_vec(), c(&new)].concat()),
            (opcode::UNLINK, c(&way)),
            (opcode::RMDIR, c(&way)),
            (
                opcode::RENAME2,
                [directory.to_ne_bytes().to_vec(), numbers(&[0, 0]), c("f"), c(&way)].concat(),
            ),
            (
                opcode::RENAME2,
                [directory.to_ne_bytes().to_vec(), numbers(&[0, 0]), c(&way), c("stolen")].concat(),
            ),
        ];
        for (opcode, request) in attempts {
            let answer = machine.ask(opcode, directory, &request);
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
    let directory = machine.lookup(ROOT, "1").unwrap();
    assert_eq!(machine.lookup(writable, "../1"), Err(EINVAL));
    let file = machine.lookup(directory, "f").unwrap();
    assert_eq!(machine.read(file), Ok(b"read-only".to_vec()));
    // Open for writing.
    assert_eq!(machine.ask(opcode::OPEN, file, &numbers(&[1, 0])), Err(EROFS));
    assert_eq!(machine.ask(opcode::SETATTR, file, &set_mode(0o777)), Err(EROFS));
    let new = [numbers(&[0o101, 0o644, 0, 0]), c("n")].concat();
    assert_eq!(machine.ask(opcode::CREATE, directory, &new), Err(EROFS));
    assert_eq!(machine.ask(opcode::UNLINK, directory, &c("f")), Err(EROFS));
    // The root of the share is nobody's to write to either.
    let new = [numbers(&[0o755, 0]), c("n")].concat();
    assert_eq!(machine.ask(opcode::MKDIR, ROOT, &new), Err(EROFS));
    assert_eq!(fs::read_dir(&field.read_only).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(field.read_only.join("f")).unwrap(), "read-only");
}

#[test]
fn no_request_makes_a_setuid_file_or_a_device() {
    let field = Field::new();
    let mut machine = field.machine();
    let directory = machine.lookup(ROOT, "0").unwrap();
    let file = machine.lookup(directory, "f").unwrap();
    for mode in [0o4755, 0o2755, 0o6777] {
        assert_eq!(machine.ask(opcode::SETATTR, file, &set_mode(mode)), Err(EPERM));
        let create = [numbers(&[0o101, 0o100_000 | mode, 0, 0]), c("s")].concat();
        assert_eq!(machine.ask(opcode::CREATE, directory, &create), Err(EPERM));
        let mknod = [numbers(&[0o100_000 | mode, 0, 0, 0]), c("s")].concat();
        assert_eq!(machine.ask(opcode::MKNOD, directory, &mknod), Err(EPERM));
    }
    for kind in [0o020_666, 0o060_666] {
        let mknod = [numbers(&[kind, 0x103, 0, 0]), c("dev")].concat();
        assert_eq!(machine.ask(opcode::MKNOD, directory, &mknod), Err(EPERM));
    }
    assert_eq!(fs::read_dir(&field.shared).unwrap().count(), 1);
}

#[test]
fn no_request_gives_a_file_capabilities() {
    let field = Field::new();
    let mut machine = field.machine();
    let directory = machine.lookup(ROOT, "0").unwrap();
    let file = machine.lookup(directory, "f").unwrap();
    let set = |name: &str, value: &[u8]| {
        let sizes = numbers(&[value.len() as u32, 0]);
        [sizes, c(name), value.to_vec()].concat()
    };
    // What everybody may set can be set.
    let user = set("user.x", b"y");
    machine.ask(opcode::SETXATTR, file, &user).unwrap();
    // Version 2, and version 3 with root as the owner of the namespace: effective, CAP_SYS_ADMIN.
    for (version, tail) in [(0x0200_0001, &[][..]), (0x0300_0001, &[0][..])] {
        let data = numbers(&[&[version, 1 << 21, 0, 0, 0], tail].concat());
        for node in [file, directory] {
            let request = set("security.capability", &data);
            assert_eq!(machine.ask(opcode::SETXATTR, node, &request), Err(EPERM));
        }
    }
    for name in ["security.x", "trusted.x"] {
        assert_eq!(machine.ask(opcode::SETXATTR, file, &set(name, b"y")), Err(EPERM), "{name}");
    }
    let path = field.shared.join("f");
    let found = rustix::fs::getxattr(&path, "security.capability", &mut [0_u8; 64]);
    assert_eq!(found, Err(rustix::io::Errno::NODATA));
}

/// Numbers that the server never gave out, or gave out for something else.
#[test]
fn forged_numbers_of_files_and_handles_are_nothing() {
    let field = Field::new();
    let mut machine = field.machine();
    let directory = machine.lookup(ROOT, "0").unwrap();
    let others = machine.lookup(ROOT, "1").unwrap();
    let file = machine.lookup(directory, "f").unwrap();
    let other = machine.lookup(others, "f").unwrap();
    let with_handle = |handle: u64, rest: usize| {
        let mut request = handle.to_ne_bytes().to_vec();
        request.resize(8 + rest, 0);
        request
    };
    for forged in [0, file + 1000, u64::from(u32::MAX), 1 << 63, u64::MAX] {
        let attempts = [
            (opcode::LOOKUP, c("f")),
            (opcode::GETATTR, vec![0; 16]),
            (opcode::SETATTR, set_mode(0o777)),
            (opcode::READLINK, Vec::new()),
            (opcode::SYMLINK, [c("x"), c("y")].concat()),
            (opcode::MKNOD, [numbers(&[0o100_644, 0, 0, 0]), c("x")].concat()),
            (opcode::MKDIR, [numbers(&[0o755, 0]), c("x")].concat()),
            (opcode::UNLINK, c("f")),
            (opcode::RMDIR, c("f")),
            (opcode::LINK, [file.to_ne_bytes().to_vec(), c("x")].concat()),
            (opcode::RENAME, [directory.to_ne_bytes().to_vec(), c("f"), c("x")].concat()),
            (opcode::OPEN, vec![0; 8]),
            (opcode::OPENDIR, vec![0; 8]),
            (opcode::STATFS, Vec::new()),
            (opcode::SETXATTR, [numbers(&[1, 0]), c("user.x"), vec![0]].concat()),
            (opcode::GETXATTR, [numbers(&[64, 0]), c("user.x")].concat()),
            (opcode::ACCESS, vec![0; 8]),
            (opcode::CREATE, [numbers(&[0o101, 0o644, 0, 0]), c("x")].concat()),
        ];
        for (opcode, request) in attempts {
            let answer = machine.ask(opcode, forged, &request);
            assert_eq!(answer, Err(EBADF), "request {opcode} of {forged}");
        }
        // Into a directory that is none, and of a file that is none.
        let into = [forged.to_ne_bytes().to_vec(), c("f"), c("x")].concat();
        assert_eq!(machine.ask(opcode::RENAME, directory, &into), Err(EBADF));
        let of = [forged.to_ne_bytes().to_vec(), c("x")].concat();
        assert_eq!(machine.ask(opcode::LINK, directory, &of), Err(EBADF));
    }
    // A handle is one of its file alone: neither made up, nor of another, nor one that was given
    // back.
    let handle = machine.open(file).unwrap();
    assert_eq!(machine.read_by(file, handle), Ok(b"shared".to_vec()));
    for (node, handle) in [(other, handle), (file, handle + 1), (file, u64::MAX), (ROOT, handle)] {
        assert_eq!(machine.read_by(node, handle), Err(EBADF));
        let write = [with_handle(handle, 8), numbers(&[1, 0, 0, 0, 0, 0]), vec![b'x']].concat();
        for (opcode, request) in [
            (opcode::WRITE, write),
            (opcode::FSYNC, with_handle(handle, 8)),
            (opcode::FLUSH, with_handle(handle, 16)),
            (opcode::RELEASE, with_handle(handle, 16)),
        ] {
            let answer = machine.ask(opcode, node, &request);
            assert_eq!(answer, Err(EBADF), "request {opcode} of {node} by {handle}");
        }
    }
    machine.ask(opcode::RELEASE, file, &with_handle(handle, 16)).unwrap();
    assert_eq!(machine.read_by(file, handle), Err(EBADF));
    assert_eq!(machine.read(file), Ok(b"shared".to_vec()));
    field.is_untouched();
}

/// Of no length, with a NUL in it or without one at its end, and longer than a name may be.
#[test]
fn names_that_are_none_make_nothing_and_harm_nobody() {
    let field = Field::new();
    let mut machine = field.machine();
    let directory = machine.lookup(ROOT, "0").unwrap();
    let file = machine.lookup(directory, "f").unwrap();
    let long = |length: usize| [vec![b'n'; length], vec![0]].concat();
    let names = [
        (c(""), &[ENOENT, EINVAL][..]),
        (Vec::new(), &[EINVAL, NO_ANSWER]),
        (b"unended".to_vec(), &[EINVAL, NO_ANSWER]),
        (b"in\0side\0".to_vec(), &[]),
        (long(256), &[ENAMETOOLONG]),
        (long(4095), &[ENAMETOOLONG]),
        (long(60_000), &[ENAMETOOLONG]),
    ];
    for (name, expected) in names {
        let attempts = [
            (opcode::LOOKUP, name.clone()),
            (opcode::SYMLINK, [name.clone(), c("f")].concat()),
            (opcode::MKNOD, [numbers(&[0o100_644, 0, 0, 0]), name.clone()].concat()),
            (opcode::MKDIR, [numbers(&[0o755, 0]), name.clone()].concat()),
            (opcode::UNLINK, name.clone()),
            (opcode::RMDIR, name.clone()),
            (opcode::LINK, [file.to_ne_bytes().to_vec(), name.clone()].concat()),
            (opcode::RENAME, [directory.to_ne_bytes().to_vec(), c("f"), name.clone()].concat()),
            (
                opcode::RENAME2,
                [directory.to_ne_bytes().to_vec(), numbers(&[0, 0]), c("f"), name.clone()].concat(),
            ),
            (opcode::CREATE, [numbers(&[0o101, 0o644, 0, 0]), name.clone()].concat()),
        ];
        for (opcode, request) in attempts {
            let answer = machine.ask(opcode, directory, &request);
            let shown = String::from_utf8_lossy(&name[..name.len().min(16)]).into_owned();
            // Two names are asked for: what follows the first is the second's.
            let takes_two = opcode == opcode::SYMLINK;
            if !takes_two && !expected.is_empty() {
                let error = answer.expect_err("a name that is none");
                assert!(expected.contains(&error), "request {opcode} with '{shown}': {error}");
            }
        }
        assert_eq!(machine.read(file), Ok(b"shared".to_vec()));
    }
    let made: Vec<_> =
        fs::read_dir(&field.shared).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    for name in &made {
        let plain = ["f", "in", "unended", "unendedf"].map(std::ffi::OsStr::new);
        assert!(plain.contains(&name.as_os_str()), "{made:?}");
    }
    field.is_untouched();
    assert_eq!(machine.hang_up(), Some(0));
}

/// One that ended an earlier server: with flags, of which there are none, and of descriptors that
/// are not open.
#[test]
fn a_forged_copy_between_files_is_refused_and_harms_nobody() {
    let field = Field::new();
    let mut machine = field.machine();
    let directory = machine.lookup(ROOT, "0").unwrap();
    let file = machine.lookup(directory, "f").unwrap();
    for flags in [0, 1, u64::MAX] {
        let copy: Vec<u8> = [1, 0, file, 1, 0, u64::MAX, flags]
            .iter()
            .flat_map(|number: &u64| number.to_ne_bytes())
            .collect();
        let answer = machine.ask(opcode::COPY_FILE_RANGE, file, &copy);
        assert_eq!(answer, Err(ENOSYS));
    }
    assert_eq!(machine.read(file), Ok(b"shared".to_vec()));
    assert_eq!(machine.hang_up(), Some(0));
}

/// A guest's kernel keeps what it is told for as long as it is told: `fuse_entry_out` and
/// `fuse_attr_out`.
#[test]
fn a_guest_is_told_to_keep_no_name_and_no_size() {
    let field = Field::new();
    let mut machine = field.machine();
    let directory = machine.lookup(ROOT, "0").unwrap();
    let entry = machine.ask(opcode::LOOKUP, directory, &c("f")).unwrap();
    // Seconds of the entry and of its attributes, then nanoseconds of both.
    assert_eq!(entry[16..40], [0; 24]);
    let node = u64::from_ne_bytes(entry[..8].try_into().unwrap());
    let attributes = machine.ask(opcode::GETATTR, node, &[0; 16]).unwrap();
    assert_eq!(attributes[..12], [0; 12]);
    let entry = machine.ask(opcode::LOOKUP, ROOT, &c("0")).unwrap();
    assert_eq!(entry[16..36], [0; 20]);
    // Of a directory's attributes some milliseconds.
    let nanoseconds = u32::from_ne_bytes(entry[36..40].try_into().unwrap());
    assert!(nanoseconds <= 10_000_000, "{nanoseconds}");
}

/// Each is a mount of its own, so that not even the guest's root moves a file from one into the
/// other.
#[test]
fn a_file_goes_from_one_shared_directory_to_another_by_its_bytes_alone() {
    let field = Field::new();
    let entry = |path| Entry { path, read_only: false };
    let mut machine = Machine::start(&[entry(&field.shared), entry(&field.read_only)]);
    let from = machine.lookup(ROOT, "0").unwrap();
    let to = machine.lookup(ROOT, "1").unwrap();
    let file = machine.lookup(from, "f").unwrap();
    let target = to.to_ne_bytes().to_vec();
    for (name, new) in [("f", "moved"), ("f", "f")] {
        let rename = [target.clone(), c(name), c(new)].concat();
        assert_eq!(machine.ask(opcode::RENAME, from, &rename), Err(EXDEV));
        let exchange = [target.clone(), numbers(&[2, 0]), c(name), c(new)].concat();
        assert_eq!(machine.ask(opcode::RENAME2, from, &exchange), Err(EXDEV));
    }
    // The same by names that go from one into the other.
    let here = from.to_ne_bytes().to_vec();
    let rename = [here, c("f"), c("../1/moved")].concat();
    assert_eq!(machine.ask(opcode::RENAME, from, &rename), Err(EINVAL));
    let link = [file.to_ne_bytes().to_vec(), c("linked")].concat();
    assert_eq!(machine.ask(opcode::LINK, to, &link), Err(EXDEV));
    // Within one both go.
    let rename = [from.to_ne_bytes().to_vec(), c("f"), c("g")].concat();
    machine.ask(opcode::RENAME, from, &rename).unwrap();
    machine.ask(opcode::LINK, from, &link).unwrap();
    assert_eq!(fs::read(field.shared.join("linked")).unwrap(), b"shared");
    let names = fs::read_dir(&field.read_only).unwrap();
    assert_eq!(names.count(), 1);
    field.is_untouched();
}

/// The server finds its own descriptors in `/proc/self/fd`. No name leads there.
#[test]
fn what_the_server_has_open_is_neither_read_nor_written_by_its_number() {
    const SECRET: &[u8] = b"what the server says";
    let field = Field::new();
    let log = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
    log.write_all_at(SECRET, 0).unwrap();
    let entry = Entry { path: &field.shared, read_only: false };
    let mut machine = Machine::start_under(&[], log.try_clone().unwrap().into(), &[entry]);
    let directory = machine.lookup(ROOT, "0").unwrap();
    for number in 0..64 {
        for way in ["proc/self/fd", "../proc/self/fd", "../../proc/self/fd"] {
            let way = format!("{way}/{number}");
            for from in [ROOT, directory] {
                let create = [numbers(&[0o1001, 0o644, 0, 0]), c(&way)].concat();
                let answer = machine.ask(opcode::CREATE, from, &create);
                assert!(answer.is_err(), "{way}");
                assert_eq!(machine.lookup(from, &way), Err(EINVAL), "{way}");
            }
        }
    }
    let mut kept = [0; SECRET.len()];
    log.read_exact_at(&mut kept, 0).unwrap();
    assert_eq!(kept, SECRET);
    assert_eq!(fs::read_dir(&field.shared).unwrap().count(), 1);
    field.is_untouched();
    assert_eq!(machine.hang_up(), Some(0));
}

/// Each file that a guest has in mind is open in its server. What it takes too many of is its own.
#[test]
fn a_guest_that_uses_up_its_servers_descriptors_harms_itself_alone() {
    const FILES_MAX: u64 = 64;
    let field = Field::new();
    let home = Home::new();
    let many = home.directory.join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..FILES_MAX {
        fs::write(many.join(number.to_string()), "x").unwrap();
    }
    let limit = format!("--nofile={FILES_MAX}:{FILES_MAX}");
    let entry = |path| Entry { path, read_only: false };
    let starter = ["prlimit", &limit, "--"];
    let mut machine =
        Machine::start_under(&starter, std::process::Stdio::inherit(), &[entry(&many)]);
    let mut neighbour = field.machine();
    let theirs = neighbour.lookup(ROOT, "0").unwrap();
    let directory = machine.lookup(ROOT, "0").unwrap();
    let mut nodes = Vec::new();
    let error = loop {
        match machine.lookup(directory, &nodes.len().to_string()) {
            Ok(node) => nodes.push(node),
            Err(error) => break error,
        }
    };
    assert_eq!(error, EMFILE);
    assert!(nodes.len() > 10, "{nodes:?}");
    assert_eq!(machine.read(nodes[0]), Err(EMFILE));
    let new = [numbers(&[0o101, 0o644, 0, 0]), c("new")].concat();
    assert_eq!(machine.ask(opcode::CREATE, directory, &new), Err(EMFILE));
    // The neighbour does not notice, and the guest itself goes on as soon as it forgets something.
    let file = neighbour.lookup(theirs, "f").unwrap();
    assert_eq!(neighbour.read(file), Ok(b"shared".to_vec()));
    for node in nodes.drain(5..) {
        let forget = machine.ask(opcode::FORGET, node, &1_u64.to_ne_bytes());
        assert_eq!(forget, Err(NO_ANSWER));
    }
    assert_eq!(machine.read(nodes[0]), Ok(b"x".to_vec()));
    assert!(machine.lookup(directory, "60").is_ok());
    assert_eq!(machine.hang_up(), Some(0));
}

/// A link that the guest makes is opened by the guest: the server never follows one.
#[test]
fn a_link_of_the_guests_own_is_followed_nowhere() {
    let field = Field::new();
    let mut machine = field.machine();
    let directory = machine.lookup(ROOT, "0").unwrap();
    for (name, target) in [("abs", field.canary.to_str().unwrap()), ("root", "/"), ("up", "../..")]
    {
        machine.ask(opcode::SYMLINK, directory, &[c(name), c(target)].concat()).unwrap();
        let link = machine.lookup(directory, name).unwrap();
        assert!(machine.read(link).is_err(), "{name}");
        assert!(machine.lookup(directory, &format!("{name}/")).is_err(), "{name}/");
        assert!(machine.lookup(directory, &format!("{name}/share")).is_err(), "{name}/share");
        assert!(machine.lookup(link, "share").is_err(), "{name}");
    }
    let over = [numbers(&[0o1001, 0o644, 0, 0]), c("abs")].concat();
    assert!(machine.ask(opcode::CREATE, directory, &over).is_err());
    field.is_untouched();
}

/// A directory that the guest holds open is not replaced by a link that takes its name.
#[test]
fn a_directory_that_is_swapped_for_a_link_is_not_followed() {
    let field = Field::new();
    fs::create_dir(field.shared.join("d")).unwrap();
    fs::write(field.shared.join("d/canary"), "inside").unwrap();
    let mut machine = field.machine();
    let directory = machine.lookup(ROOT, "0").unwrap();
    let before = machine.lookup(directory, "d").unwrap();
    fs::rename(field.shared.join("d"), field.shared.join("old")).unwrap();
    std::os::unix::fs::symlink(field.canary.parent().unwrap(), field.shared.join("d")).unwrap();
    assert!(machine.lookup(directory, "d/canary").is_err());
    let link = machine.lookup(directory, "d").unwrap();
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
    let directory = machine.lookup(ROOT, "0").unwrap();
    let new = [numbers(&[0o101, 0o644, 0, 0]), c("n")].concat();
    let answer = machine.ask_as(1000, opcode::CREATE, directory, &new);
    assert!(answer.is_err(), "{answer:?}");
    assert!(!Path::new(&field.shared.join("n")).exists());
}
