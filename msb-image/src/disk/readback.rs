//! Reads an EROFS file system in tests and compares it with the tree.

use super::tree::{FileTree, InodeBody, InodeId, ROOT};
use crate::layer::BLOCK_BYTES;

const BLOCK: usize = BLOCK_BYTES as usize;
const INODE_BYTES: usize = 64;

/// Compares every inode and every name with the tree.
pub(crate) fn check(image: &[u8], tree: &FileTree) {
    let root = root(image);
    let mut directories = vec![(root, ROOT, root)];
    while let Some((at, id, parent)) = directories.pop() {
        check_inode(image, at, tree, id);
        let names = directory(image, at);
        assert!(names.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let inner = &tree.directory(id).unwrap().names;
        assert_eq!(names.len(), inner.len() + 2);
        for (name, child) in names {
            match (&name[..], inner.get(&name[..])) {
                (b".", _) => assert_eq!(child, at),
                (b"..", _) => assert_eq!(child, parent),
                (_, Some(entry)) if tree.directory(entry.inode).is_some() => {
                    directories.push((child, entry.inode, at));
                }
                (_, Some(entry)) => check_inode(image, child, tree, entry.inode),
                (_, None) => panic!("a name that the tree does not have"),
            }
        }
    }
}

/// Returns the offset of the root's inode.
pub(crate) fn root(image: &[u8]) -> usize {
    32 * usize::from(short(image, 1024 + 14))
}

/// Returns the names of a directory and the offsets of their inodes.
pub(crate) fn directory(image: &[u8], inode: usize) -> Vec<(Vec<u8>, usize)> {
    let contents = contents(image, inode);
    let mut names = Vec::new();
    for block in contents.chunks(BLOCK) {
        let count = usize::from(short(block, 8)) / 12;
        let name_at = |n: usize| usize::from(short(block, 12 * n + 8));
        for n in 0..count {
            let end = if n + 1 < count { name_at(n + 1) } else { block.len() };
            // In every block but the last, the last name ends at a NUL.
            let name = block[name_at(n)..end].split(|byte| *byte == 0).next();
            let nid = u64::from_le_bytes(block[12 * n..12 * n + 8].try_into().unwrap());
            names.push((name.unwrap().to_vec(), nid as usize * 32));
        }
    }
    names
}

/// Returns the contents of a directory or a symbolic link.
fn contents(image: &[u8], inode: usize) -> Vec<u8> {
    let size = word(image, inode + 8) as usize;
    let is_inline = short(image, inode) >> 1 == 2;
    let whole = if is_inline { size / BLOCK * BLOCK } else { size };
    let start = word(image, inode + 16) as usize * BLOCK;
    let tail = inode + INODE_BYTES + xattr_bytes(image, inode);
    let end = tail + size - whole;
    assert!(!is_inline || tail / BLOCK == (end - 1) / BLOCK, "a tail in two blocks");
    [&image[start..start + whole], &image[tail..end]].concat()
}

fn xattr_bytes(image: &[u8], inode: usize) -> usize {
    match usize::from(short(image, inode + 2)) {
        0 => 0,
        count => 12 + 4 * (count - 1),
    }
}

fn check_inode(image: &[u8], at: usize, tree: &FileTree, id: InodeId) {
    let inode = tree.inode(id);
    let attributes = &inode.attributes;
    assert_eq!(short(image, at) & 1, 1);
    let xattrs = &image[at + INODE_BYTES..at + INODE_BYTES + xattr_bytes(image, at)];
    assert_eq!(xattrs.get(12..).unwrap_or_default(), tree.xattrs(attributes.xattrs));
    let (mode, size, address) = (short(image, at + 4), word(image, at + 8), word(image, at + 16));
    let kind = match &inode.body {
        InodeBody::File { size: expected, block, .. } => {
            assert_eq!(u64::from(size) | u64::from(word(image, at + 12)) << 32, *expected);
            assert!(*expected == 0 || address as usize * BLOCK >= image.len());
            assert!(*expected == 0 || address >= *block);
            0o10
        }
        InodeBody::Symlink(target) => {
            assert_eq!(contents(image, at), &target[..]);
            0o12
        }
        InodeBody::Directory(_) => 0o4,
        InodeBody::CharDevice(device) => {
            assert_eq!(address, *device);
            0o2
        }
        InodeBody::BlockDevice(device) => {
            assert_eq!(address, *device);
            0o6
        }
        InodeBody::Fifo => 0o1,
    };
    assert_eq!(mode >> 12, kind);
    assert!(kind == 0o12 || mode & 0o7777 == attributes.mode);
    let owner = (word(image, at + 24), word(image, at + 28));
    assert_eq!(owner, (attributes.uid, attributes.gid));
    assert!(word(image, at + 44) > 0, "an inode without a name");
}

/// Reads 32 bits.
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn short(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}
