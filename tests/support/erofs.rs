//! The file system that msb writes, read by its format: every path of an image without starting a
//! guest.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const BLOCK: usize = 4096;

/// The type of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    File(u64),
    Directory,
    Symlink(Vec<u8>),
    /// Devices and pipes.
    Other,
}

/// Every path below the root of the only image in a state directory, without the first slash.
pub(crate) fn tree(state: &Path) -> BTreeMap<Vec<u8>, Node> {
    let disks = fs::read_dir(state.join("images/disks")).unwrap();
    let files = disks.map(|entry| entry.unwrap().path());
    let disks: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|end| end == "erofs")).collect();
    assert_eq!(disks.len(), 1, "{disks:?}");
    let image = fs::read(&disks[0]).unwrap();
    let mut tree = BTreeMap::new();
    let mut directories = vec![(32 * number(&image, 1024 + 14, 2), Vec::new())];
    while let Some((at, path)) = directories.pop() {
        for (name, inode) in names(&content(&image, at)) {
            if name == b"." || name == b".." {
                continue;
            }
            let path = if path.is_empty() { name } else { [&path[..], b"/", &name].concat() };
            let node = node(&image, inode);
            if node == Node::Directory {
                directories.push((inode, path.clone()));
            }
            tree.insert(path, node);
        }
    }
    tree
}

fn node(image: &[u8], at: usize) -> Node {
    match number(image, at + 4, 2) >> 12 {
        0o4 => Node::Directory,
        0o10 => Node::File(number(image, at + 8, 8) as u64),
        0o12 => Node::Symlink(content(image, at)),
        _ => Node::Other,
    }
}

/// Returns the content of a directory or a link: whole blocks, and a tail behind the inode and its
/// extended attributes.
fn content(image: &[u8], at: usize) -> Vec<u8> {
    let size = number(image, at + 8, 8);
    let is_inline = number(image, at, 2) >> 1 == 2;
    let whole = if is_inline { size / BLOCK * BLOCK } else { size };
    let start = number(image, at + 16, 4) * BLOCK;
    let xattrs = match number(image, at + 2, 2) {
        0 => 0,
        count => 12 + 4 * (count - 1),
    };
    let tail = at + 64 + xattrs;
    [&image[start..start + whole], &image[tail..tail + size - whole]].concat()
}

fn names(directory: &[u8]) -> Vec<(Vec<u8>, usize)> {
    let mut names = Vec::new();
    for block in directory.chunks(BLOCK) {
        let count = number(block, 8, 2) / 12;
        let start = |n: usize| {
            if n < count { number(block, 12 * n + 8, 2) } else { block.len() }
        };
        for n in 0..count {
            let name = block[start(n)..start(n + 1)].split(|byte| *byte == 0).next().unwrap();
            names.push((name.to_vec(), 32 * number(block, 12 * n, 8)));
        }
    }
    names
}

/// A number of so many bytes, little-endian.
fn number(bytes: &[u8], at: usize, length: usize) -> usize {
    bytes[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
}
