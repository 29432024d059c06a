//! Readers of tar that disagree let an archive show other files to each of them. So: on the
//! archives that Go, Python and libarchive test their own readers with, msb sees what GNU tar and
//! Python see, or refuses the archive. Where it does neither, the reason is written here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::support::erofs::{self, Node};
use crate::support::{Home, fixture};

type Tree = BTreeMap<Vec<u8>, Node>;

/// Archives that msb takes, and sees otherwise than a reader that takes them too.
const DISAGREEMENTS: [(&str, &str, &str); 4] = [
    (
        "go-invalid-go17",
        "python",
        "takes the prefix of ustar in a header of GNU's form; GNU tar does not",
    ),
    ("go-pax-nil-sparse-data", "python", MAP_COUNTED),
    ("go-pax-nil-sparse-hole", "python", MAP_COUNTED),
    ("go-pax-sparse-big", "python", MAP_COUNTED),
];

const MAP_COUNTED: &str =
    "takes what is in the archive, with the map, for the sparse file; GNU tar does not";

/// Archives that msb refuses although both readers take them and agree.
const REFUSED: [(&str, &str); 3] = [
    ("go-pax-bad-mtime-file", "a time that is no number; the others keep the header's"),
    (
        "libarchive-test_compat_plexus_archiver_tar",
        "something behind a single block of zeros; the others stop there and do not look at it",
    ),
    ("python-testtar", "an extended header of Solaris (type X), which is not understood"),
];

/// The tree that a list of entries comes to: the last one of a name counts.
fn tree_of(list: &str) -> Option<Tree> {
    if list == "refused\n" {
        return None;
    }
    let mut tree = Tree::new();
    for line in list.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let path = cleaned(&bytes_of(fields[2]))?;
        let target = bytes_of(fields[3]);
        let node = match fields[0] {
            "-" => Node::File(fields[1].parse().unwrap()),
            "d" => Node::Directory,
            "l" => Node::Symlink(target),
            "h" => tree.get(&cleaned(&target)?)?.clone(),
            "s" => Node::Other,
            _ => return None,
        };
        put(&mut tree, path, node);
    }
    Some(tree)
}

fn put(tree: &mut Tree, path: Vec<u8>, node: Node) {
    for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        tree.entry(path[..at].to_vec()).or_insert(Node::Directory);
    }
    if node != Node::Directory {
        let inside = [&path[..], b"/"].concat();
        tree.retain(|other, _| !other.starts_with(&inside));
    }
    if !path.is_empty() {
        tree.insert(path, node);
    }
}

/// A path without `.`, `..` and needless slashes; `None` if it leads out.
fn cleaned(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// Returns the tree that msb makes of an archive, or its error.
fn imported(archive: &Path) -> Result<Tree, String> {
    let home = Home::new();
    let outcome = home.run(["image", "import", "-q", "-i", archive.to_str().unwrap(), "x"]);
    let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert!(outcome.code <= 1 && !text.contains("bug"), "{archive:?}: {text}");
    if outcome.code == 1 {
        return Err(text);
    }
    Ok(erofs::tree(&home.state()))
}

#[test]
fn other_readers_see_the_same_in_an_archive_or_it_is_refused() {
    let mut disagreements = BTreeSet::new();
    let mut refused = BTreeSet::new();
    let (mut count, mut agreed) = (0, 0);
    let files = fs::read_dir(fixture("readers")).unwrap();
    for archive in files.map(|file| file.unwrap().path()) {
        if archive.extension().is_none_or(|end| end != "tar") {
            continue;
        }
        count += 1;
        let name = archive.file_stem().unwrap().to_str().unwrap().to_owned();
        let seen =
            |reader: &str| tree_of(&fs::read_to_string(archive.with_extension(reader)).unwrap());
        let others = [("python", seen("python")), ("gnu", seen("gnu"))];
        match imported(&archive) {
            Ok(ours) => {
                for (reader, theirs) in &others {
                    if let Some(theirs) = theirs
                        && *theirs != ours
                    {
                        println!("{name}: {reader} sees {theirs:?}\n  and msb {ours:?}");
                        disagreements.insert((name.clone(), (*reader).to_owned()));
                    } else {
                        agreed += usize::from(theirs.is_some());
                    }
                }
            }
            Err(text) => {
                if others[0].1.is_some() && others[0].1 == others[1].1 {
                    println!("{name}: {text}");
                    refused.insert(name);
                }
            }
        }
    }
    println!("{count} archives, {agreed} agreements");
    let expected: BTreeSet<_> = DISAGREEMENTS
        .iter()
        .map(|(name, reader, _)| ((*name).to_owned(), (*reader).to_owned()))
        .collect();
    assert_eq!(disagreements, expected);
    let expected: BTreeSet<_> = REFUSED.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(refused, expected);
    assert!(count >= 65 && agreed >= 80, "{count} archives, {agreed} agreements");
}
