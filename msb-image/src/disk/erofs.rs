//! Writing the metadata of an EROFS file system.
//!
//! Plain inodes: the contents of a file lie in one piece, at a block beyond the metadata, in the data of a layer. No device
//! table and no chunks, which older kernels do not know. The whole is planned first (where each inode goes), then written
//! front to back, so the same tree gives the same bytes and memory holds a few numbers an inode.
//!
//! ```text
//! 1024     superblock, 128 bytes
//! 1152     inodes: 64 bytes, extended attributes, and what fits into the rest of the block: a link's target, the end
//!          of a folder
//! ...      whole blocks of folders, targets that did not fit
//! ...      the data of the layers, which are other files
//! ```

use std::io::{self, Write};

use anyhow::{Context, Result, ensure};

use super::tree::{Body, Id, ROOT, Tree};
use super::xattr;
use crate::layer::BLOCK_BYTES;

const BLOCK: usize = BLOCK_BYTES as usize;
const SUPERBLOCK_AT: usize = 1024;
const SUPERBLOCK_BYTES: usize = 128;
const INODE_BYTES: usize = 64;
/// Inodes are numbered by their place, in units of this.
const SLOT_BYTES: u64 = 32;
const DIRENT_BYTES: usize = 12;
const MAGIC: u32 = 0xe0f5_e1e2;
const FEATURE_COMPAT_CHECKSUM: u32 = 1;

/// Where an inode's contents are.
const LAYOUT_PLAIN: u16 = 0;
/// The last part of the contents follows the inode.
const LAYOUT_INLINE: u16 = 2;

/// Where everything goes.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Inodes in the order in which they are written.
    order: Vec<Id>,
    /// By number in the tree.
    places: Vec<Place>,
    /// First block of each layer's data.
    data_starts: Vec<u64>,
    metadata_blocks: u64,
    blocks: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Number of the inode in the file system; 0 is not placed.
    nid: u32,
    /// How many names it has.
    links: u32,
    /// First of its own blocks.
    block: u32,
    /// Bytes of a folder.
    bytes: u64,
}

impl Plan {
    /// Plans a tree whose layers have so many blocks of data.
    pub(crate) fn new(tree: &Tree, data_blocks: &[u64]) -> Result<Plan> {
        let mut plan = Plan {
            order: vec![ROOT],
            places: vec![Place::default(); tree.len()],
            data_starts: Vec::new(),
            metadata_blocks: 0,
            blocks: 0,
        };
        let inodes_end = plan.place_inodes(tree)?;
        let mut block = inodes_end.div_ceil(BLOCK_BYTES);
        for id in &plan.order {
            let count = own_blocks(tree, *id, &plan.places[*id as usize]);
            plan.places[*id as usize].block = if count > 0 {
                u32::try_from(block).context("too many blocks")?
            } else {
                0
            };
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

    /// Blocks of this file.
    pub(crate) fn metadata_blocks(&self) -> u64 {
        self.metadata_blocks
    }

    /// Blocks of the whole disk.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Places every inode that a name leads to, folder by folder. Gives where the last one ends.
    fn place_inodes(&mut self, tree: &Tree) -> Result<u64> {
        let mut end = (SUPERBLOCK_AT + SUPERBLOCK_BYTES) as u64;
        self.places[ROOT as usize].links = 2;
        let mut next = 0;
        while let Some(id) = self.order.get(next).copied() {
            next += 1;
            if let Some(folder) = tree.folder(id) {
                for entry in folder.names.values() {
                    self.count_name(tree, id, entry.inode);
                }
                self.places[id as usize].bytes = folder_bytes(tree, id);
            }
            end = self.place(tree, id, end)?;
        }
        Ok(end)
    }

    fn count_name(&mut self, tree: &Tree, folder: Id, inode: Id) {
        if self.places[inode as usize].links == 0 {
            self.order.push(inode);
        }
        if tree.folder(inode).is_some() {
            self.places[inode as usize].links = 2;
            self.places[folder as usize].links += 1;
        } else {
            self.places[inode as usize].links += 1;
        }
    }

    fn place(&mut self, tree: &Tree, id: Id, end: u64) -> Result<u64> {
        let xattrs = tree.xattrs(tree.inode(id).attributes.xattrs).len();
        ensure!(
            xattrs / 4 < usize::from(u16::MAX),
            "a file has too many extended attributes"
        );
        let bytes = head_bytes(tree, id) + inline_tail(tree, id, &self.places[id as usize]);
        let mut start = end.next_multiple_of(SLOT_BYTES);
        // What fits into a block lies in one.
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
        tree: &Tree,
        uuid: [u8; 16],
        out: &mut impl Write,
    ) -> io::Result<()> {
        let mut out = Output {
            inner: out,
            first: Vec::with_capacity(BLOCK),
            position: 0,
        };
        out.pad_to(SUPERBLOCK_AT as u64)?;
        out.put(&self.superblock(uuid))?;
        for id in &self.order {
            out.pad_to(u64::from(self.places[*id as usize].nid) * SLOT_BYTES)?;
            self.write_inode(tree, *id, &mut out)?;
        }
        for id in &self.order {
            if own_blocks(tree, *id, &self.places[*id as usize]) > 0 {
                out.pad_to(u64::from(self.places[*id as usize].block) * BLOCK_BYTES)?;
                let contents = self.contents(tree, *id);
                out.put(
                    &contents
                        [..contents.len() - inline_tail(tree, *id, &self.places[*id as usize])],
                )?;
            }
        }
        out.pad_to(self.metadata_blocks * BLOCK_BYTES)
    }

    fn superblock(&self, uuid: [u8; 16]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SUPERBLOCK_BYTES);
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&FEATURE_COMPAT_CHECKSUM.to_le_bytes());
        bytes.extend_from_slice(&[BLOCK.trailing_zeros() as u8, 0]);
        // The root comes first, so its number is small.
        bytes.extend_from_slice(&(self.places[ROOT as usize].nid as u16).to_le_bytes());
        bytes.extend_from_slice(&(self.order.len() as u64).to_le_bytes());
        // Time of the build: none.
        bytes.extend_from_slice(&[0; 12]);
        bytes.extend_from_slice(&(self.blocks as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&uuid);
        bytes.resize(SUPERBLOCK_BYTES, 0);
        bytes
    }

    fn write_inode<W: Write>(
        &self,
        tree: &Tree,
        id: Id,
        out: &mut Output<'_, W>,
    ) -> io::Result<()> {
        let place = &self.places[id as usize];
        let xattrs = tree.xattrs(tree.inode(id).attributes.xattrs);
        out.put(&self.inode(tree, id, xattrs.len()))?;
        if !xattrs.is_empty() {
            out.put(&[0; xattr::HEADER_BYTES])?;
            out.put(xattrs)?;
        }
        let inline = inline_tail(tree, id, place);
        if inline > 0 {
            let contents = self.contents(tree, id);
            out.put(&contents[contents.len() - inline..])?;
        }
        Ok(())
    }

    fn inode(&self, tree: &Tree, id: Id, xattr_bytes: usize) -> Vec<u8> {
        let inode = tree.inode(id);
        let attributes = &inode.attributes;
        let place = &self.places[id as usize];
        let (kind, size, address) = match &inode.body {
            Body::File { size: 0, .. } => (0o100_000, 0, 0),
            Body::File { layer, block, size } => (
                0o100_000,
                *size,
                (self.data_starts[*layer as usize] + u64::from(*block)) as u32,
            ),
            Body::Symlink(target) => (0o120_000, target.len() as u64, place.block),
            Body::CharDevice(device) => (0o020_000, 0, *device),
            Body::BlockDevice(device) => (0o060_000, 0, *device),
            Body::Fifo => (0o010_000, 0, 0),
            Body::Folder(_) => (0o040_000, place.bytes, place.block),
        };
        // Linux shows a link as accessible to all, whatever an archive says.
        let mode = if matches!(inode.body, Body::Symlink(_)) {
            0o777
        } else {
            attributes.mode
        };
        let layout = if inline_tail(tree, id, place) > 0 {
            LAYOUT_INLINE
        } else {
            LAYOUT_PLAIN
        };
        let xattr_count = if xattr_bytes == 0 {
            0
        } else {
            1 + (xattr_bytes / 4) as u16
        };
        let mut bytes = Vec::with_capacity(INODE_BYTES);
        for short in [1 | layout << 1, xattr_count, kind | mode, 0] {
            bytes.extend_from_slice(&u16::to_le_bytes(short));
        }
        bytes.extend_from_slice(&size.to_le_bytes());
        for word in [address, place.nid, attributes.uid, attributes.gid] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&attributes.mtime.seconds.to_le_bytes());
        bytes.extend_from_slice(&attributes.mtime.nanos.to_le_bytes());
        bytes.extend_from_slice(&place.links.to_le_bytes());
        bytes.resize(INODE_BYTES, 0);
        bytes
    }

    /// What a folder or a link holds.
    fn contents(&self, tree: &Tree, id: Id) -> Vec<u8> {
        if let Body::Symlink(target) = &tree.inode(id).body {
            return target.to_vec();
        }
        let names = sorted_names(tree, id);
        let mut bytes = Vec::with_capacity(self.places[id as usize].bytes as usize);
        for block in split_blocks(&names) {
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            self.put_folder_block(tree, block, &mut bytes);
        }
        bytes
    }

    fn put_folder_block(&self, tree: &Tree, block: &[(&[u8], Id)], bytes: &mut Vec<u8>) {
        let mut name_at = block.len() * DIRENT_BYTES;
        for (name, id) in block {
            bytes.extend_from_slice(&u64::from(self.places[*id as usize].nid).to_le_bytes());
            bytes.extend_from_slice(&(name_at as u16).to_le_bytes());
            bytes.extend_from_slice(&[kind_number(&tree.inode(*id).body), 0]);
            name_at += name.len();
        }
        for (name, _) in block {
            bytes.extend_from_slice(name);
        }
    }
}

/// Bytes of an inode and its extended attributes.
fn head_bytes(tree: &Tree, id: Id) -> usize {
    match tree.xattrs(tree.inode(id).attributes.xattrs).len() {
        0 => INODE_BYTES,
        bytes => INODE_BYTES + xattr::HEADER_BYTES + bytes,
    }
}

/// Bytes of contents that follow the inode: the end of a folder, or a link's whole target, if it fits into one block with its inode.
fn inline_tail(tree: &Tree, id: Id, place: &Place) -> usize {
    let tail = match &tree.inode(id).body {
        Body::Symlink(target) => target.len(),
        Body::Folder(_) => (place.bytes % BLOCK_BYTES) as usize,
        _ => 0,
    };
    if head_bytes(tree, id) + tail <= BLOCK {
        tail
    } else {
        0
    }
}

/// Blocks that an inode has for itself in the metadata.
fn own_blocks(tree: &Tree, id: Id, place: &Place) -> u64 {
    let bytes = match &tree.inode(id).body {
        Body::Symlink(target) => target.len() as u64,
        Body::Folder(_) => place.bytes,
        _ => 0,
    };
    (bytes - inline_tail(tree, id, place) as u64).div_ceil(BLOCK_BYTES)
}

fn folder_bytes(tree: &Tree, id: Id) -> u64 {
    let names = sorted_names(tree, id);
    let mut bytes = 0;
    for block in split_blocks(&names) {
        let filled: usize = block
            .iter()
            .map(|(name, _)| DIRENT_BYTES + name.len())
            .sum();
        bytes = u64::next_multiple_of(bytes, BLOCK_BYTES) + filled as u64;
    }
    bytes
}

/// The names of a folder, with `.` and `..` in their place among them: sorted by bytes.
fn sorted_names(tree: &Tree, id: Id) -> Vec<(&[u8], Id)> {
    let Some(folder) = tree.folder(id) else {
        return Vec::new();
    };
    let mut names: Vec<(&[u8], Id)> = Vec::with_capacity(folder.names.len() + 2);
    names.extend([(&b"."[..], id), (b"..", folder.parent)]);
    names.extend(
        folder
            .names
            .iter()
            .map(|(name, entry)| (&**name, entry.inode)),
    );
    names.sort_unstable_by_key(|(name, _)| *name);
    names
}

/// As many names a block as it holds.
fn split_blocks<'a, 'n>(names: &'a [(&'n [u8], Id)]) -> impl Iterator<Item = &'a [(&'n [u8], Id)]> {
    let mut rest = names;
    std::iter::from_fn(move || {
        let mut filled = 0;
        let fits = |name: &&(&[u8], Id)| {
            filled += DIRENT_BYTES + name.0.len();
            filled <= BLOCK
        };
        let count = rest.iter().take_while(fits).count();
        let (block, later) = rest.split_at(count);
        rest = later;
        (count > 0).then_some(block)
    })
}

fn kind_number(body: &Body) -> u8 {
    match body {
        Body::File { .. } => 1,
        Body::Folder(_) => 2,
        Body::CharDevice(_) => 3,
        Body::BlockDevice(_) => 4,
        Body::Fifo => 5,
        Body::Symlink(_) => 7,
    }
}

/// Writes front to back. The first block is held until it is whole: the checksum in the superblock is that of all that
/// follows it in the block.
struct Output<'a, W> {
    inner: &'a mut W,
    first: Vec<u8>,
    position: u64,
}

impl<W: Write> Output<'_, W> {
    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        if self.first.len() < BLOCK {
            let (head, rest) = bytes.split_at(bytes.len().min(BLOCK - self.first.len()));
            self.first.extend_from_slice(head);
            bytes = rest;
            if self.first.len() == BLOCK {
                let checksum = crc32c(&self.first[SUPERBLOCK_AT..]);
                self.first[SUPERBLOCK_AT + 4..SUPERBLOCK_AT + 8]
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

/// CRC-32C without the final inversion, as the kernel computes it here. Three kilobytes an image need no table.
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
    use crate::disk::image::word;
    use crate::disk::tree::{Attributes, Name};

    fn image(tree: &Tree) -> Vec<u8> {
        let plan = Plan::new(tree, &[1]).unwrap();
        let mut bytes = Vec::new();
        plan.write(tree, [1; 16], &mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, plan.metadata_blocks() * BLOCK_BYTES);
        disk::image::check(&bytes, tree);
        bytes
    }

    fn add(tree: &mut Tree, name: &[u8], body: Body) -> Id {
        let inode = tree.add(Attributes::default(), body).unwrap();
        tree.set(ROOT, name, Name { inode, layer: 0 }).unwrap();
        inode
    }

    /// The names of the root and where their inodes are, read back from the image.
    fn read_root(image: &[u8]) -> Vec<(Vec<u8>, usize)> {
        disk::image::folder(image, disk::image::root(image))
    }

    #[test]
    fn the_checksum_is_the_one_of_castagnoli() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn names_are_sorted_with_the_dots_among_them() {
        let mut tree = Tree::new();
        for name in [&b"b"[..], b"!", b"\xff", b"-a", b".a", b"..b"] {
            add(&mut tree, name, Body::Fifo);
        }
        let names: Vec<Vec<u8>> = read_root(&image(&tree))
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(
            names,
            [&b"!"[..], b"-a", b".", b"..", b"..b", b".a", b"b", b"\xff"]
        );
    }

    #[test]
    fn a_folder_of_many_blocks_holds_every_name_once() {
        let mut tree = Tree::new();
        for number in 0..5_000 {
            add(
                &mut tree,
                format!("file-{number:05}").as_bytes(),
                Body::Fifo,
            );
        }
        let bytes = image(&tree);
        let names = read_root(&bytes);
        assert_eq!(names.len(), 5_002);
        assert!(names.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(
            names
                .iter()
                .skip(2)
                .all(|(_, at)| word(&bytes, *at + 4) as u16 == 0o010_000)
        );
    }

    #[test]
    fn links_are_counted() {
        let mut tree = Tree::new();
        let file = add(
            &mut tree,
            b"a",
            Body::File {
                layer: 0,
                block: 0,
                size: 7,
            },
        );
        tree.set(
            ROOT,
            b"b",
            Name {
                inode: file,
                layer: 0,
            },
        )
        .unwrap();
        tree.make_folder(ROOT, b"d", 0, Attributes::default())
            .unwrap();
        let bytes = image(&tree);
        let links: Vec<u32> = read_root(&bytes)
            .iter()
            .map(|(_, at)| word(&bytes, *at + 44))
            .collect();
        assert_eq!(links, [3, 3, 2, 2, 2]);
        let file = read_root(&bytes)[2].1;
        // The data begins where the metadata ends.
        assert_eq!(word(&bytes, file + 16) as usize, bytes.len() / BLOCK);
    }

    #[test]
    fn link_targets_of_every_length_lie_in_one_block() {
        let mut tree = Tree::new();
        for length in (1..4096).step_by(31) {
            add(
                &mut tree,
                format!("{length:04}").as_bytes(),
                Body::Symlink(vec![b'x'; length].into()),
            );
        }
        let bytes = image(&tree);
        for (name, at) in read_root(&bytes).into_iter().skip(2) {
            let length: usize = std::str::from_utf8(&name).unwrap().parse().unwrap();
            let inline = word(&bytes, at) as u16 >> 1 == LAYOUT_INLINE;
            assert_eq!(inline, INODE_BYTES + length <= BLOCK);
            let start = if inline {
                at + INODE_BYTES
            } else {
                word(&bytes, at + 16) as usize * BLOCK
            };
            assert_eq!(start / BLOCK, (start + length - 1) / BLOCK);
            assert!(
                bytes[start..start + length]
                    .iter()
                    .all(|byte| *byte == b'x')
            );
        }
    }
}
