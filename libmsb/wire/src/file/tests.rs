//! Tests: copies from directory to directory, and records of hostile senders.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::receive::{self, CopyError, Destination, PreserveOptions, XattrScope};
use super::record::{
    DATA_BYTES_MAX, DEPTH_MAX, DirectoryMeta, EntryMeta, RECORD_BYTES_MAX, Record, RecordReader,
    RecordWriter, Severity,
};
use super::send;

const PLAIN: PreserveOptions =
    PreserveOptions { archive: false, attributes: XattrScope::None, umask: 0 };

fn meta(name: &str) -> EntryMeta {
    EntryMeta {
        name: name.as_bytes().to_vec(),
        mode: 0o640,
        mtime_s: 1_500_000_000,
        mtime_ns: 7,
        ..EntryMeta::default()
    }
}

fn bytes(records: &[Record<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = RecordWriter::new(&mut out);
    records.iter().for_each(|record| writer.put(record).unwrap());
    writer.flush().unwrap();
    out
}

fn root() -> Record<'static> {
    Record::Directory(EntryMeta { mode: 0o750, ..meta("") }, DirectoryMeta::Known)
}

fn file(name: &str, size: u64) -> Record<'static> {
    Record::File { meta: meta(name), size, linked: true }
}

fn directory(name: &str) -> Record<'static> {
    Record::Directory(EntryMeta { mode: 0o700, ..meta(name) }, DirectoryMeta::Known)
}

fn hard_link(name: &str, path: &[&str]) -> Record<'static> {
    Record::HardLink {
        name: name.as_bytes().to_vec(),
        path: path.iter().map(|name| name.as_bytes().to_vec()).collect(),
    }
}

/// Receives records into `directory/tree`, which may exist. Returns the reported problems.
fn take(directory: &Path, source: impl Read) -> Result<Vec<String>, CopyError> {
    let mut remarks = Vec::new();
    let destination = Destination::open(directory, Some(b"tree"), true)?;
    receive::tree(&mut RecordReader::new(source), destination, PLAIN, &mut |_, text| {
        remarks.push(text.to_owned())
    })?;
    Ok(remarks)
}

fn take_records(directory: &Path, records: &[Record<'_>]) -> Result<Vec<String>, CopyError> {
    take(directory, &bytes(records)[..])
}

/// Returns the names below a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_tree_arrives_as_it_was() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = from.path().join("source");
    fs::create_dir_all(source.join("a/b")).unwrap();
    fs::write(source.join("a/small"), "hello").unwrap();
    fs::write(source.join("a/empty"), "").unwrap();
    let large: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(source.join("large"), &large).unwrap();
    fs::hard_link(source.join("a/small"), source.join("a/b/second")).unwrap();
    symlink("/etc/../nowhere", source.join("link")).unwrap();
    let sparse = fs::File::create(source.join("sparse")).unwrap();
    sparse.set_len(50_000_000).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 20_000_000).unwrap();
    fs::set_permissions(source.join("a/small"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(source.join("a/b"), fs::Permissions::from_mode(0o555)).unwrap();

    let mut out = Vec::new();
    let mut writer = RecordWriter::new(&mut out);
    let sent = send::tree(&source, send::SendOptions::default(), &mut writer);
    assert_eq!(sent.unwrap(), send::SendReport::All);
    assert_eq!(take(to.path(), &out[..]).unwrap(), Vec::<String>::new());

    let tree = to.path().join("tree");
    assert_eq!(fs::read(tree.join("large")).unwrap(), large);
    assert_eq!(fs::read(tree.join("sparse")).unwrap(), fs::read(source.join("sparse")).unwrap());
    assert!(fs::metadata(tree.join("sparse")).unwrap().blocks() * 512 < 1_000_000);
    assert_eq!(fs::read_link(tree.join("link")).unwrap(), Path::new("/etc/../nowhere"));
    assert_eq!(fs::read(tree.join("a/empty")).unwrap(), b"");
    let small = fs::metadata(tree.join("a/small")).unwrap();
    assert_eq!((small.nlink(), small.mode() & 0o7777), (2, 0o751));
    assert_eq!(small.ino(), fs::metadata(tree.join("a/b/second")).unwrap().ino());
    for path in ["a", "a/b", "a/small", "large", "link"] {
        let time = |root: &Path| {
            let metadata = fs::symlink_metadata(root.join(path)).unwrap();
            (metadata.mtime(), metadata.mtime_nsec())
        };
        assert_eq!(time(&tree), time(&source), "{path}");
    }
    assert_eq!(fs::metadata(tree.join("a/b")).unwrap().mode() & 0o7777, 0o555);
}

/// Receives a directory of mode 2777 with a file of mode 6777 that belongs to this user. Returns
/// both modes.
fn modes_of(keep: PreserveOptions) -> (u32, u32, receive::ReceiveReport) {
    let to = tempfile::tempdir().unwrap();
    let with_mode = |name: &str, mode| EntryMeta {
        mode,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        ..meta(name)
    };
    let source = bytes(&[
        Record::Directory(with_mode("", 0o2777), DirectoryMeta::Known),
        Record::File { meta: with_mode("program", 0o6777), size: 0, linked: false },
        Record::DirectoryEnd,
        Record::Done,
    ]);
    let destination = Destination::open(to.path(), Some(b"tree"), true).unwrap();
    let mut reader = RecordReader::new(&source[..]);
    let received = receive::tree(&mut reader, destination, keep, &mut |_, _| {}).unwrap();
    let mode = |path: &str| fs::metadata(to.path().join(path)).unwrap().mode() & 0o7777;
    (mode("tree"), mode("tree/program"), received)
}

#[test]
fn the_umask_applies_to_what_is_not_kept_exactly() {
    let masked = PreserveOptions { umask: 0o027, ..PLAIN };
    let (directory, program, received) = modes_of(masked);
    assert_eq!((directory, program), (0o750, 0o750));
    assert_eq!(received.privileged, None);
}

#[test]
fn set_user_id_bits_need_an_owner_that_was_set() {
    let archive = PreserveOptions { archive: true, umask: 0o077, ..PLAIN };
    let (directory, program, received) = modes_of(archive);
    if rustix::process::geteuid().is_root() {
        assert_eq!((directory, program), (0o2777, 0o6777));
        let files = received.privileged.unwrap();
        assert_eq!(files.count, 1);
        assert!(files.first.ends_with("tree/program"), "{files:?}");
    } else {
        // Even if the guest says that the owner is this user.
        assert_eq!((directory, program), (0o777, 0o777));
        assert_eq!(received.privileged, None);
    }
}

#[test]
fn names_that_lead_elsewhere_are_no_names() {
    let to = tempfile::tempdir().unwrap();
    let long = "x".repeat(256);
    for name in ["..", ".", "", "a/b", "/etc", "../x", "a\0b", &long] {
        for records in [
            vec![root(), file(name, 0), Record::DirectoryEnd, Record::Done],
            vec![root(), directory(name), Record::DirectoryEnd, Record::DirectoryEnd, Record::Done],
            vec![
                root(),
                Record::Link(meta(name), b"x".to_vec()),
                Record::DirectoryEnd,
                Record::Done,
            ],
            vec![root(), file("f", 0), hard_link(name, &["f"]), Record::DirectoryEnd, Record::Done],
            vec![root(), file("f", 0), hard_link("g", &[name]), Record::DirectoryEnd, Record::Done],
        ] {
            // A path of a hard link may hold several names; then one of them is not there.
            match take_records(to.path(), &records) {
                Err(error) => assert!(error.to_string().contains("invalid record"), "{error}"),
                Ok(remarks) => assert!(name == "a/b" && !remarks.is_empty(), "{name:?}"),
            }
        }
    }
    let root_with_name =
        take_records(to.path(), &[directory("x"), Record::DirectoryEnd, Record::Done]);
    assert!(root_with_name.is_err());
    assert!(names(to.path()).iter().all(|name| name == "tree"));
}

#[test]
fn a_link_in_the_way_is_replaced_or_refused_and_never_followed() {
    let to = tempfile::tempdir().unwrap();
    let outside = to.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("canary"), "sings").unwrap();
    fs::create_dir(to.path().join("tree")).unwrap();
    symlink(outside.join("canary"), to.path().join("tree/file")).unwrap();
    symlink(&outside, to.path().join("tree/directory")).unwrap();
    let remarks = take_records(
        to.path(),
        &[
            root(),
            file("file", 3),
            Record::Data(b"new"),
            directory("directory"),
            file("canary", 4),
            Record::Data(b"dead"),
            hard_link("second", &["directory", "canary"]),
            Record::DirectoryEnd,
            // Sent as a link, and then as a directory of the same name.
            Record::Link(meta("swapped"), outside.as_os_str().as_encoded_bytes().to_vec()),
            directory("swapped"),
            file("canary", 0),
            Record::DirectoryEnd,
            hard_link("stolen", &["swapped", "canary"]),
            Record::DirectoryEnd,
            Record::Done,
        ],
    )
    .unwrap();
    assert_eq!(remarks.len(), 3, "{remarks:?}");
    assert_eq!(names(&outside), ["canary"]);
    assert_eq!(fs::read_to_string(outside.join("canary")).unwrap(), "sings");
    assert_eq!(fs::metadata(outside.join("canary")).unwrap().nlink(), 1);
    let file = to.path().join("tree/file");
    assert!(fs::symlink_metadata(&file).unwrap().is_file());
    assert_eq!(fs::read_to_string(file).unwrap(), "new");
}

#[test]
fn what_was_there_before_gets_no_further_name() {
    let to = tempfile::tempdir().unwrap();
    fs::create_dir(to.path().join("tree")).unwrap();
    fs::write(to.path().join("tree/mine"), "mine").unwrap();
    let records = [root(), hard_link("theirs", &["mine"]), Record::DirectoryEnd, Record::Done];
    let remarks = take_records(to.path(), &records).unwrap();
    assert_eq!(remarks.len(), 1, "{remarks:?}");
    assert_eq!(names(&to.path().join("tree")), ["mine"]);
}

#[test]
fn the_root_is_named_by_the_receiver_and_an_implied_one_too() {
    let to = tempfile::tempdir().unwrap();
    let implied = Record::Directory(EntryMeta::default(), DirectoryMeta::Implied);
    let records = [implied, file("x", 0), Record::DirectoryEnd, Record::Done];
    take_records(to.path(), &records).unwrap();
    assert_eq!(names(to.path()), ["tree"]);
    assert_eq!(names(&to.path().join("tree")), ["x"]);
}

#[test]
fn a_copy_that_is_broken_off_leaves_no_half_file() {
    let to = tempfile::tempdir().unwrap();
    fs::create_dir(to.path().join("tree")).unwrap();
    fs::write(to.path().join("tree/old"), "old").unwrap();
    let data = vec![1; DATA_BYTES_MAX];
    let mut whole = bytes(&[root(), file("old", 100_000), Record::Data(&data)]);
    for length in [whole.len(), whole.len() - 1000] {
        whole.truncate(length);
        let error = take(to.path(), &whole[..]).unwrap_err();
        assert_eq!(error.to_string(), "the copy was interrupted");
        assert_eq!(names(&to.path().join("tree")), ["old"]);
        assert_eq!(fs::read(to.path().join("tree/old")).unwrap(), b"old");
    }
}

#[test]
fn a_file_of_another_size_than_was_said_ends_the_copy() {
    let to = tempfile::tempdir().unwrap();
    for records in [
        vec![root(), file("f", 3), Record::Data(b"four"), Record::DirectoryEnd, Record::Done],
        vec![root(), file("f", 3), Record::Data(b"12"), Record::DirectoryEnd, Record::Done],
        vec![root(), file("f", 3), Record::Hole(4), Record::DirectoryEnd, Record::Done],
        vec![root(), file("f", 3), Record::Hole(0), Record::DirectoryEnd, Record::Done],
        vec![root(), Record::Data(b"x"), Record::DirectoryEnd, Record::Done],
        vec![root(), file("f", u64::MAX), Record::DirectoryEnd, Record::Done],
        vec![root(), Record::Done],
        vec![root(), Record::DirectoryEnd, Record::DirectoryEnd, Record::Done],
        vec![Record::Done],
        vec![root(), Record::DirectoryEnd, root(), Record::DirectoryEnd, Record::Done],
    ] {
        let error = take_records(to.path(), &records).unwrap_err();
        assert!(error.to_string().contains("invalid record"), "{error}: {records:?}");
    }
}

#[test]
fn depth_and_length_have_limits() {
    let to = tempfile::tempdir().unwrap();
    let deep: Vec<Record<'_>> =
        std::iter::once(root()).chain((0..DEPTH_MAX).map(|_| directory("d"))).collect();
    let error = take_records(to.path(), &deep).unwrap_err();
    assert!(error.to_string().contains("too deep"), "{error}");

    let mut long = vec![2];
    long.extend_from_slice(&(RECORD_BYTES_MAX as u32 + 1).to_be_bytes());
    let error = take(to.path(), &long[..]).unwrap_err();
    assert!(error.to_string().contains("longer than the limit"), "{error}");
}

#[test]
fn who_takes_files_may_not_send_any() {
    let bytes = bytes(&[Record::Problem(Severity::Skipped, "x".into()), root()]);
    let mut answers = RecordReader::for_replies(&bytes[..]);
    assert!(answers.next_record().is_ok());
    assert!(answers.next_record().is_err());
}

/// A pseudo-random number generator with a fixed sequence (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((value ^ (value >> 31)) % sides as u64) as usize
    }
}

const NAMES: [&str; 12] =
    ["a", "b", "link", "up", "out", "..", ".", "", "a/b", "x\0", "../canary", "\u{1b}[2J"];

/// Returns a name that Linux accepts, or sometimes a malicious one.
fn hostile_name(dice: &mut Dice) -> &'static str {
    let choice = if dice.roll(60) == 0 { NAMES.len() } else { 5 };
    NAMES[dice.roll(choice)]
}

/// Returns records with such names, mostly in valid order.
fn hostile(dice: &mut Dice, depth: &mut usize) -> Vec<Record<'static>> {
    const TARGETS: [&str; 6] = ["..", "../..", "/", "../outside", "../outside/canary", "a"];
    let (name, other) = (hostile_name(dice), hostile_name(dice));
    let disorder = dice.roll(100) == 0;
    match dice.roll(14) {
        0..=2 => {
            *depth += 1;
            vec![directory(name)]
        }
        3..=5 => {
            let size = dice.roll(3);
            let data = Record::Data(&b"ddd"[..size + 1]);
            vec![file(name, size as u64 + 1 + u64::from(disorder)), data]
        }
        6 => vec![file(name, 2), Record::Hole(1 + u64::from(!disorder))],
        7 | 8 => {
            let target = TARGETS[dice.roll(TARGETS.len())].as_bytes().to_vec();
            vec![Record::Link(meta(name), target)]
        }
        9 => vec![hard_link(name, &[other, hostile_name(dice)])],
        10 => vec![hard_link(name, &[other])],
        11 => vec![Record::Problem(Severity::Error, "\u{7}".into())],
        _ if *depth > 1 || disorder => {
            *depth = depth.saturating_sub(1);
            vec![Record::DirectoryEnd]
        }
        _ => Vec::new(),
    }
}

#[test]
fn no_lie_leaves_the_destination() {
    let to = tempfile::tempdir().unwrap();
    let outside = to.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("canary"), "sings").unwrap();
    let mut taken = 0;
    for seed in 0..1000 {
        let mut dice = Dice(seed);
        let mut records = vec![root()];
        let mut depth = 1;
        for _ in 0..dice.roll(30) {
            records.extend(hostile(&mut dice, &mut depth));
        }
        records.extend((0..depth).map(|_| Record::DirectoryEnd).chain([Record::Done]));
        let mut stream = bytes(&records);
        if dice.roll(4) == 0 {
            let at = dice.roll(stream.len());
            stream[at] = dice.roll(256) as u8;
        }
        let cut = if dice.roll(5) == 0 { dice.roll(stream.len()) } else { 0 };
        let end = stream.len() - cut;
        taken += usize::from(take(to.path(), &stream[..end]).is_ok());
        assert_eq!(names(to.path()), ["outside", "tree"], "seed {seed}");
        assert_eq!(names(&outside), ["canary"], "seed {seed}");
        let canary = fs::metadata(outside.join("canary")).unwrap();
        assert_eq!((canary.nlink(), canary.len()), (1, 5), "seed {seed}");
        if dice.roll(50) == 0 {
            fs::remove_dir_all(to.path().join("tree")).unwrap();
            fs::create_dir(to.path().join("tree")).unwrap();
        }
    }
    // Enough sequences must be valid for the test to have an effect.
    assert!(taken > 200, "{taken}");
    let left = fs::read_dir(to.path().join("tree")).unwrap();
    assert!(
        left.flatten().all(|entry| !entry.file_name().to_string_lossy().starts_with(".msb-cp"))
    );
}
