//! Writes the metadata of an EROFS file system: superblock, inodes and directories.
//!
//! Names are those of the kernel's `fs/erofs/erofs_fs.h`. Files use the layout
//! `EROFS_INODE_FLAT_PLAIN`: the contents are contiguous, at a block after the metadata, in the
//! data file of a layer. The image has no device table and no chunks, which older kernels do not
//! support. All positions are planned first, then everything is written in order. The same tree
//! therefore gives the same bytes, and memory holds only a few numbers for each inode.
//!
//! ```text
//! 1024     superblock (struct erofs_super_block), 128 bytes
//! 1152     inodes: struct erofs_inode_extended, 64 bytes; extended attributes; and a tail that
//!          fits into the rest of the block: the target of a symbolic link, or the end of a
//!          directory
//! ...      whole blocks of directories; targets that did not fit
//! ...      data of the layers, which are other files
//! ```

use std::io::{self, Write};

use anyhow::{Context, Result, ensure};

use super::tree::{FileTree, InodeBody, InodeId, ROOT};
use super::xattr;
use crate::layer::BLOCK_BYTES;

const BLOCK: usize = BLOCK_BYTES as usize;
const EROFS_SUPER_OFFSET: usize = 1024;
const SUPER_BLOCK_BYTES: usize = 128;
const INODE_EXTENDED_BYTES: usize = 64;
/// Bytes of an inode slot: the nid of an inode is its offset in slots.
const SLOT_BYTES: u64 = 32;
const DIRENT_BYTES: usize = 12;
const EROFS_SUPER_MAGIC_V1: u32 = 0xe0f5_e1e2;
const EROFS_FEATURE_COMPAT_SB_CHKSUM: u32 = 1;

/// Version in `i_format`: an inode of 64 bytes.
const EROFS_INODE_LAYOUT_EXTENDED: u16 = 1;
/// Position of the data layout in `i_format`.
const EROFS_I_DATALAYOUT_BIT: u16 = 1;
/// Data layout: contents in blocks only.
const EROFS_INODE_FLAT_PLAIN: u16 = 0;
/// Data layout: whole blocks, and a tail that follows the inode.
const EROFS_INODE_FLAT_INLINE: u16 = 2;

// File types in `i_mode`, as in stat(2).
const S_IFIFO: u16 = 0o010_000;
const S_IFCHR: u16 = 0o020_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFBLK: u16 = 0o060_000;
const S_IFREG: u16 = 0o100_000;
const S_IFLNK: u16 = 0o120_000;

// File types in directory entries, as in the kernel's fs_types.h.
const FT_REG_FILE: u8 = 1;
const FT_DIR: u8 = 2;
const FT_CHRDEV: u8 = 3;
const FT_BLKDEV: u8 = 4;
const FT_FIFO: u8 = 5;
const FT_SYMLINK: u8 = 7;

/// The position of every inode and block of a disk.
#[derive(Debug)]
pub(crate) struct DiskPlan {
    /// Inodes in the order in which they are written.
    order: Vec<InodeId>,
    /// Placement of each inode, by its number in the tree.
    places: Vec<InodePlacement>,
    /// First block of each layer's data.
    data_starts: Vec<u64>,
    metadata_blocks: u64,
    blocks: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct InodePlacement {
    /// Number of the inode in the file system; 0 before placement.
    nid: u32,
    /// Number of names.
    nlink: u32,
    /// First of its own blocks.
    startblk: u32,
    /// Size of a directory.
    bytes: u64,
}

impl DiskPlan {
    /// Plans the disk of a tree. `data_blocks` are the sizes of the layers' data.
    pub(crate) fn new(tree: &FileTree, data_blocks: &[u64]) -> Result<DiskPlan> {
        let mut plan = DiskPlan {
            order: vec![ROOT],
            places: vec![InodePlacement::default(); tree.len()],
            data_starts: Vec::new(),
            metadata_blocks: 0,
            blocks: 0,
        };
        let inodes_end = plan.place_inodes(tree)?;
        let mut block = inodes_end.div_ceil(BLOCK_BYTES);
        for id in &plan.order {
            let count = own_blocks(tree, *id, &plan.places[*id as usize]);
            plan.places[*id as usize].startblk =
                if count > 0 { u32::try_from(block).context("too many blocks")? } else { 0 };
            block += count;
        }
        plan.metadata_blocks = block;
        for count in data_blocks {
            plan.data_starts.push(block);
            block += count;
        }
        plan.blocks = block;
        Ok(plan)
    }

    /// Returns the number of blocks in the metadata file.
    pub(crate) fn metadata_blocks(&self) -> u64 {
        self.metadata_blocks
    }

    /// Returns the number of blocks of the whole disk.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Places every reachable inode, directory by directory. Returns the end of the last one.
    fn place_inodes(&mut self, tree: &FileTree) -> Result<u64> {
        let mut end = (EROFS_SUPER_OFFSET + SUPER_BLOCK_BYTES) as u64;
        self.places[ROOT as usize].nlink = 2;
        let mut next = 0;
        while let Some(id) = self.order.get(next).copied() {
            next += 1;
            if let Some(directory) = tree.directory(id) {
                for entry in directory.names.values() {
                    self.count_name(tree, id, entry.inode);
                }
                self.places[id as usize].bytes = directory_bytes(tree, id);
            }
            end = self.place(tree, id, end)?;
        }
        Ok(end)
    }

    fn count_name(&mut self, tree: &FileTree, directory: InodeId, inode: InodeId) {
        if self.places[inode as usize].nlink == 0 {
            self.order.push(inode);
        }
        if tree.directory(inode).is_some() {
            self.places[inode as usize].nlink = 2;
            self.places[directory as usize].nlink += 1;
        } else {
            self.places[inode as usize].nlink += 1;
        }
    }

    fn place(&mut self, tree: &FileTree, id: InodeId, end: u64) -> Result<u64> {
        let xattrs = tree.xattrs(tree.inode(id).attributes.xattrs).len();
        ensure!(xattrs / 4 < usize::from(u16::MAX), "a file has too many extended attributes");
        let bytes = head_bytes(tree, id) + inline_tail(tree, id, &self.places[id as usize]);
        let mut start = end.next_multiple_of(SLOT_BYTES);
        // An inode that fits into a block must not cross a block boundary.
        if start % BLOCK_BYTES + bytes.min(BLOCK) as u64 > BLOCK_BYTES {
            start = start.next_multiple_of(BLOCK_BYTES);
        }
        self.places[id as usize].nid =
            u32::try_from(start / SLOT_BYTES).context("the image has too many files")?;
        Ok(start + bytes as u64)
    }

    /// Writes the metadata.
    pub(crate) fn write(
        &self,
        tree: &FileTree,
        uuid: [u8; 16],
        out: &mut impl Write,
    ) -> io::Result<()> {
        let mut out = MetadataWriter { inner: out, first: Vec::with_capacity(BLOCK), position: 0 };
        out.pad_to(EROFS_SUPER_OFFSET as u64)?;
        out.put(&self.superblock(uuid))?;
        for id in &self.order {
            out.pad_to(u64::from(self.places[*id as usize].nid) * SLOT_BYTES)?;
            self.write_inode(tree, *id, &mut out)?;
        }
        for id in &self.order {
            if own_blocks(tree, *id, &self.places[*id as usize]) > 0 {
                out.pad_to(u64::from(self.places[*id as usize].startblk) * BLOCK_BYTES)?;
                let contents = self.contents(tree, *id);
                out.put(
                    &contents
                        [..contents.len() - inline_tail(tree, *id, &self.places[*id as usize])],
                )?;
            }
        }
        out.pad_to(self.metadata_blocks * BLOCK_BYTES)
    }

    /// Encodes `struct erofs_super_block`. The checksum is set when the first block is complete.
    fn superblock(&self, uuid: [u8; 16]) -> Vec<u8> {
        let checksum = 0_u32;
        let blkszbits = BLOCK.trailing_zeros() as u8;
        let sb_extslots = 0_u8;
        // The root is placed first, so its nid fits.
        let root_nid = self.places[ROOT as usize].nid as u16;
        let inos = self.order.len() as u64;
        // No build time: the same tree gives the same bytes.
        let (build_time, build_time_nsec) = (0_u64, 0_u32);
        let blocks = self.blocks as u32;
        let (meta_blkaddr, xattr_blkaddr) = (0_u32, 0_u32);
        let mut bytes = Vec::with_capacity(SUPER_BLOCK_BYTES);
        bytes.extend_from_slice(&EROFS_SUPER_MAGIC_V1.to_le_bytes());
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(&EROFS_FEATURE_COMPAT_SB_CHKSUM.to_le_bytes());
        bytes.extend_from_slice(&[blkszbits, sb_extslots]);
        bytes.extend_from_slice(&root_nid.to_le_bytes());
        bytes.extend_from_slice(&inos.to_le_bytes());
        bytes.extend_from_slice(&build_time.to_le_bytes());
        bytes.extend_from_slice(&build_time_nsec.to_le_bytes());
        bytes.extend_from_slice(&blocks.to_le_bytes());
        bytes.extend_from_slice(&meta_blkaddr.to_le_bytes());
        bytes.extend_from_slice(&xattr_blkaddr.to_le_bytes());
        bytes.extend_from_slice(&uuid);
        bytes.resize(SUPER_BLOCK_BYTES, 0);
        bytes
    }

    fn write_inode<W: Write>(
        &self,
        tree: &FileTree,
        id: InodeId,
        out: &mut MetadataWriter<'_, W>,
    ) -> io::Result<()> {
        let place = &self.places[id as usize];
        let xattrs = tree.xattrs(tree.inode(id).attributes.xattrs);
        out.put(&self.inode(tree, id, xattrs.len()))?;
        if !xattrs.is_empty() {
            out.put(&[0; xattr::IBODY_HEADER_BYTES])?;
            out.put(xattrs)?;
        }
        let inline = inline_tail(tree, id, place);
        if inline > 0 {
            let contents = self.contents(tree, id);
            out.put(&contents[contents.len() - inline..])?;
        }
        Ok(())
    }

    /// Encodes `struct erofs_inode_extended`.
    fn inode(&self, tree: &FileTree, id: InodeId, xattr_bytes: usize) -> Vec<u8> {
        let inode = tree.inode(id);
        let attributes = &inode.attributes;
        let place = &self.places[id as usize];
        // `i_u` is the first block of the contents, or the number of a device.
        let (file_type, i_size, i_u) = match &inode.body {
            InodeBody::File { size: 0, .. } => (S_IFREG, 0, 0),
            InodeBody::File { layer, block, size } => {
                (S_IFREG, *size, (self.data_starts[*layer as usize] + u64::from(*block)) as u32)
            }
            InodeBody::Symlink(target) => (S_IFLNK, target.len() as u64, place.startblk),
            InodeBody::CharDevice(device) => (S_IFCHR, 0, *device),
            InodeBody::BlockDevice(device) => (S_IFBLK, 0, *device),
            InodeBody::Fifo => (S_IFIFO, 0, 0),
            InodeBody::Directory(_) => (S_IFDIR, place.bytes, place.startblk),
        };
        // Linux shows a symbolic link with mode 0777, whatever the archive says.
        let mode =
            if matches!(inode.body, InodeBody::Symlink(_)) { 0o777 } else { attributes.mode };
        let data_layout = if inline_tail(tree, id, place) > 0 {
            EROFS_INODE_FLAT_INLINE
        } else {
            EROFS_INODE_FLAT_PLAIN
        };
        let i_format = EROFS_INODE_LAYOUT_EXTENDED | data_layout << EROFS_I_DATALAYOUT_BIT;
        let i_xattr_icount = if xattr_bytes == 0 { 0 } else { 1 + (xattr_bytes / 4) as u16 };
        let (i_mode, i_reserved) = (file_type | mode, 0);
        let i_ino = place.nid;
        let mut bytes = Vec::with_capacity(INODE_EXTENDED_BYTES);
        for short in [i_format, i_xattr_icount, i_mode, i_reserved] {
            bytes.extend_from_slice(&u16::to_le_bytes(short));
        }
        bytes.extend_from_slice(&i_size.to_le_bytes());
        for word in [i_u, i_ino, attributes.uid, attributes.gid] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&attributes.mtime.seconds.to_le_bytes());
        bytes.extend_from_slice(&attributes.mtime.nanos.to_le_bytes());
        bytes.extend_from_slice(&place.nlink.to_le_bytes());
        bytes.resize(INODE_EXTENDED_BYTES, 0);
        bytes
    }

    /// Returns the contents of a directory or a symbolic link.
    fn contents(&self, tree: &FileTree, id: InodeId) -> Vec<u8> {
        if let InodeBody::Symlink(target) = &tree.inode(id).body {
            return target.to_vec();
        }
        let names = sorted_names(tree, id);
        let mut bytes = Vec::with_capacity(self.places[id as usize].bytes as usize);
        for block in split_blocks(&names) {
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            self.put_directory_block(tree, block, &mut bytes);
        }
        bytes
    }

    /// Encodes a block of `struct erofs_dirent` entries and their names.
    fn put_directory_block(
        &self,
        tree: &FileTree,
        block: &[(&[u8], InodeId)],
        bytes: &mut Vec<u8>,
    ) {
        let mut nameoff = block.len() * DIRENT_BYTES;
        for (name, id) in block {
            bytes.extend_from_slice(&u64::from(self.places[*id as usize].nid).to_le_bytes());
            bytes.extend_from_slice(&(nameoff as u16).to_le_bytes());
            let reserved = 0;
            bytes.extend_from_slice(&[file_type(&tree.inode(*id).body), reserved]);
            nameoff += name.len();
        }
        for (name, _) in block {
            bytes.extend_from_slice(name);
        }
    }
}

/// Returns the size of an inode with its extended attributes.
fn head_bytes(tree: &FileTree, id: InodeId) -> usize {
    match tree.xattrs(tree.inode(id).attributes.xattrs).len() {
        0 => INODE_EXTENDED_BYTES,
        bytes => INODE_EXTENDED_BYTES + xattr::IBODY_HEADER_BYTES + bytes,
    }
}

/// Returns the size of the tail after the inode: the end of a directory, or the whole target of a
/// symbolic link, if it fits into one block with the inode.
fn inline_tail(tree: &FileTree, id: InodeId, place: &InodePlacement) -> usize {
    let tail = match &tree.inode(id).body {
        InodeBody::Symlink(target) => target.len(),
        InodeBody::Directory(_) => (place.bytes % BLOCK_BYTES) as usize,
        _ => 0,
    };
    if head_bytes(tree, id) + tail <= BLOCK { tail } else { 0 }
}

/// Returns the number of metadata blocks that belong to one inode.
fn own_blocks(tree: &FileTree, id: InodeId, place: &InodePlacement) -> u64 {
    let bytes = match &tree.inode(id).body {
        InodeBody::Symlink(target) => target.len() as u64,
        InodeBody::Directory(_) => place.bytes,
        _ => 0,
    };
    (bytes - inline_tail(tree, id, place) as u64).div_ceil(BLOCK_BYTES)
}

fn directory_bytes(tree: &FileTree, id: InodeId) -> u64 {
    let names = sorted_names(tree, id);
    let mut bytes = 0;
    for block in split_blocks(&names) {
        let filled: usize = block.iter().map(|(name, _)| DIRENT_BYTES + name.len()).sum();
        bytes = u64::next_multiple_of(bytes, BLOCK_BYTES) + filled as u64;
    }
    bytes
}

/// Returns the names of a directory, with `.` and `..`, sorted by bytes.
fn sorted_names(tree: &FileTree, id: InodeId) -> Vec<(&[u8], InodeId)> {
    let Some(directory) = tree.directory(id) else {
        return Vec::new();
    };
    let mut names: Vec<(&[u8], InodeId)> = Vec::with_capacity(directory.names.len() + 2);
    names.extend([(&b"."[..], id), (b"..", directory.parent)]);
    names.extend(directory.names.iter().map(|(name, entry)| (&**name, entry.inode)));
    names.sort_unstable_by_key(|(name, _)| *name);
    names
}

/// Splits names into directory blocks, each as full as possible.
fn split_blocks<'a, 'n>(
    names: &'a [(&'n [u8], InodeId)],
) -> impl Iterator<Item = &'a [(&'n [u8], InodeId)]> {
    let mut rest = names;
    std::iter::from_fn(move || {
        let mut filled = 0;
        let fits = |name: &&(&[u8], InodeId)| {
            filled += DIRENT_BYTES + name.0.len();
            filled <= BLOCK
        };
        let count = rest.iter().take_while(fits).count();
        let (block, later) = rest.split_at(count);
        rest = later;
        (count > 0).then_some(block)
    })
}

/// Returns the file type of a directory entry.
fn file_type(body: &InodeBody) -> u8 {
    match body {
        InodeBody::File { .. } => FT_REG_FILE,
        InodeBody::Directory(_) => FT_DIR,
        InodeBody::CharDevice(_) => FT_CHRDEV,
        InodeBody::BlockDevice(_) => FT_BLKDEV,
        InodeBody::Fifo => FT_FIFO,
        InodeBody::Symlink(_) => FT_SYMLINK,
    }
}

/// A writer of the metadata, in order. The first block is held back until it is complete, because
/// the checksum in the superblock covers the rest of that block.
struct MetadataWriter<'a, W> {
    inner: &'a mut W,
    first: Vec<u8>,
    position: u64,
}

impl<W: Write> MetadataWriter<'_, W> {
    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        if self.first.len() < BLOCK {
            let (head, rest) = bytes.split_at(bytes.len().min(BLOCK - self.first.len()));
            self.first.extend_from_slice(head);
            bytes = rest;
            if self.first.len() == BLOCK {
                let checksum = crc32c(&self.first[EROFS_SUPER_OFFSET..]);
                self.first[EROFS_SUPER_OFFSET + 4..EROFS_SUPER_OFFSET + 8]
                    .copy_from_slice(&checksum.to_le_bytes());
                self.inner.write_all(&self.first)?;
            }
        }
        self.inner.write_all(bytes)
    }

    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        const ZEROS: [u8; BLOCK] = [0; BLOCK];
        while self.position < position {
            let count = (position - self.position).min(BLOCK_BYTES);
            self.put(&ZEROS[..count as usize])?;
        }
        Ok(())
    }
}

/// Returns the CRC-32C without the final inversion, as the kernel computes it for the superblock.
/// Three kilobytes for each image need no table.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk;
    use crate::disk::readback::word;
    use crate::disk::tree::{DirEntry, InodeAttributes};

    fn image(tree: &FileTree) -> Vec<u8> {
        let plan = DiskPlan::new(tree, &[1]).unwrap();
        let mut bytes = Vec::new();
        plan.write(tree, [1; 16], &mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, plan.metadata_blocks() * BLOCK_BYTES);
        disk::readback::check(&bytes, tree);
        bytes
    }

    fn add(tree: &mut FileTree, name: &[u8], body: InodeBody) -> InodeId {
        let inode = tree.add(InodeAttributes::default(), body).unwrap();
        tree.set(ROOT, name, DirEntry { inode, layer: 0 }).unwrap();
        inode
    }

    /// Reads the names in the root directory and the offsets of their inodes.
    fn read_root(image: &[u8]) -> Vec<(Vec<u8>, usize)> {
        disk::readback::directory(image, disk::readback::root(image))
    }

    #[test]
    fn the_checksum_is_the_one_of_castagnoli() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn names_are_sorted_with_the_dots_among_them() {
        let mut tree = FileTree::new();
        for name in [&b"b"[..], b"!", b"\xff", b"-a", b".a", b"..b"] {
            add(&mut tree, name, InodeBody::Fifo);
        }
        let names: Vec<Vec<u8>> =
            read_root(&image(&tree)).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [&b"!"[..], b"-a", b".", b"..", b"..b", b".a", b"b", b"\xff"]);
    }

    #[test]
    fn a_directory_of_many_blocks_holds_every_name_once() {
        let mut tree = FileTree::new();
        for number in 0..5_000 {
            add(&mut tree, format!("file-{number:05}").as_bytes(), InodeBody::Fifo);
        }
        let bytes = image(&tree);
        let names = read_root(&bytes);
        assert_eq!(names.len(), 5_002);
        assert!(names.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(names.iter().skip(2).all(|(_, at)| word(&bytes, *at + 4) as u16 == S_IFIFO));
    }

    #[test]
    fn links_are_counted() {
        let mut tree = FileTree::new();
        let file = add(&mut tree, b"a", InodeBody::File { layer: 0, block: 0, size: 7 });
        tree.set(ROOT, b"b", DirEntry { inode: file, layer: 0 }).unwrap();
        tree.make_directory(ROOT, b"d", 0, InodeAttributes::default()).unwrap();
        let bytes = image(&tree);
        let links: Vec<u32> =
            read_root(&bytes).iter().map(|(_, at)| word(&bytes, *at + 44)).collect();
        assert_eq!(links, [3, 3, 2, 2, 2]);
        let file = read_root(&bytes)[2].1;
        // The data starts where the metadata ends.
        assert_eq!(word(&bytes, file + 16) as usize, bytes.len() / BLOCK);
    }

    #[test]
    fn link_targets_of_every_length_lie_in_one_block() {
        let mut tree = FileTree::new();
        for length in (1..4096).step_by(31) {
            add(
                &mut tree,
                format!("{length:04}").as_bytes(),
                InodeBody::Symlink(vec![b'x'; length].into()),
            );
        }
        let bytes = image(&tree);
        for (name, at) in read_root(&bytes).into_iter().skip(2) {
            let length: usize = std::str::from_utf8(&name).unwrap().parse().unwrap();
            let inline = word(&bytes, at) as u16 >> 1 == EROFS_INODE_FLAT_INLINE;
            assert_eq!(inline, INODE_EXTENDED_BYTES + length <= BLOCK);
            let start = if inline {
                at + INODE_EXTENDED_BYTES
            } else {
                word(&bytes, at + 16) as usize * BLOCK
            };
            assert_eq!(start / BLOCK, (start + length - 1) / BLOCK);
            assert!(bytes[start..start + length].iter().all(|byte| *byte == b'x'));
        }
    }
}
