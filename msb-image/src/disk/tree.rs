//! The file tree of an image: its layers merged.
//!
//! It is compact, because all of it is in memory at once: one inode for each file and one name for
//! each directory entry. Every name records the layer that set it last, because a whiteout hides
//! the entries of lower layers only.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use anyhow::{Result, bail, ensure};

use super::xattr;
use crate::layer::tar::TarTime;
use crate::limits::{DEPTH_MAX, IMAGE_ENTRIES_MAX, IMAGE_NAMES_BYTES_MAX, IMAGE_XATTR_BYTES_MAX};

/// Number of an inode in the tree.
pub(crate) type InodeId = u32;

/// The root directory.
pub(crate) const ROOT: InodeId = 0;

/// A file without its names.
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub(crate) attributes: InodeAttributes,
    pub(crate) body: InodeBody,
}

/// Ownership, permissions and times of a file.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InodeAttributes {
    /// Permission bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: TarTime,
    /// Number of its set of extended attributes; 0 for none.
    pub(crate) xattrs: u32,
}

/// Type and contents of a file.
#[derive(Clone, Debug)]
pub(crate) enum InodeBody {
    /// Contents: number of the layer, first block in its data, and size in bytes.
    File {
        layer: u32,
        block: u32,
        size: u64,
    },
    Symlink(Box<[u8]>),
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    Directory(Box<Directory>),
}

/// A directory.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    pub(crate) parent: InodeId,
    /// Number of directories above it.
    depth: usize,
    pub(crate) names: BTreeMap<Box<[u8]>, DirEntry>,
    /// Entries of layers below this one were removed.
    cleared: u32,
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirEntry {
    pub(crate) inode: InodeId,
    /// The layer that set it last.
    pub(crate) layer: u32,
}

/// A file tree.
#[derive(Debug)]
pub(crate) struct FileTree {
    inodes: Vec<Inode>,
    /// Total bytes of names and link targets added.
    names_bytes: usize,
    xattrs: Vec<Rc<[u8]>>,
    xattr_numbers: HashMap<Rc<[u8]>, u32>,
    xattr_bytes: usize,
}

impl FileTree {
    /// Creates a tree with a root directory only.
    pub(crate) fn new() -> FileTree {
        let root = Directory { parent: ROOT, depth: 0, names: BTreeMap::new(), cleared: 0 };
        let attributes = InodeAttributes { mode: 0o755, ..InodeAttributes::default() };
        FileTree {
            inodes: vec![Inode { attributes, body: InodeBody::Directory(Box::new(root)) }],
            names_bytes: 0,
            xattrs: vec![Rc::default()],
            xattr_numbers: HashMap::new(),
            xattr_bytes: 0,
        }
    }

    pub(crate) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id as usize]
    }

    pub(crate) fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id as usize]
    }

    /// Returns the number of inodes, including those that lost their last name.
    pub(crate) fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Returns the directory with this number, or `None` for another type.
    pub(crate) fn directory(&self, id: InodeId) -> Option<&Directory> {
        match &self.inode(id).body {
            InodeBody::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, id: InodeId) -> Option<&mut Directory> {
        match &mut self.inode_mut(id).body {
            InodeBody::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// Returns the entry of a name in a directory.
    pub(crate) fn lookup(&self, directory: InodeId, name: &[u8]) -> Option<DirEntry> {
        self.directory(directory)?.names.get(name).copied()
    }

    /// Adds an inode without a name.
    pub(crate) fn add(&mut self, attributes: InodeAttributes, body: InodeBody) -> Result<InodeId> {
        ensure!(
            self.inodes.len() < IMAGE_ENTRIES_MAX,
            "the image has more than {IMAGE_ENTRIES_MAX} entries"
        );
        if let InodeBody::Symlink(target) = &body {
            self.count_name(target.len())?;
        }
        self.inodes.push(Inode { attributes, body });
        Ok((self.inodes.len() - 1) as InodeId)
    }

    /// Sets the entry of a name in a directory and replaces an earlier one.
    pub(crate) fn set(&mut self, directory: InodeId, name: &[u8], entry: DirEntry) -> Result<()> {
        self.count_name(name.len())?;
        let Some(directory) = self.directory_mut(directory) else { bail!("it is not a directory") };
        directory.names.insert(name.into(), entry);
        Ok(())
    }

    fn count_name(&mut self, bytes: usize) -> Result<()> {
        self.names_bytes += bytes;
        ensure!(
            self.names_bytes <= IMAGE_NAMES_BYTES_MAX,
            "the image has more than {IMAGE_NAMES_BYTES_MAX} bytes of names and link targets"
        );
        Ok(())
    }

    /// Creates an empty directory.
    pub(crate) fn make_directory(
        &mut self,
        parent: InodeId,
        name: &[u8],
        layer: u32,
        attributes: InodeAttributes,
    ) -> Result<InodeId> {
        // Links can make a path deeper than its length allows.
        let depth = self.directory(parent).map_or(0, |directory| directory.depth + 1);
        ensure!(depth <= DEPTH_MAX, "the path has more than {DEPTH_MAX} directories");
        let body = InodeBody::Directory(Box::new(Directory {
            parent,
            depth,
            names: BTreeMap::new(),
            cleared: 0,
        }));
        let inode = self.add(attributes, body)?;
        self.set(parent, name, DirEntry { inode, layer })?;
        Ok(inode)
    }

    /// Removes what layers below `layer` put at a name: a whiteout. A directory stays while it has
    /// entries.
    pub(crate) fn remove_lower(&mut self, directory: InodeId, name: &[u8], layer: u32) {
        let Some(entry) = self.lookup(directory, name) else {
            return;
        };
        self.clear_lower(entry.inode, layer);
        let is_empty =
            self.directory(entry.inode).is_none_or(|directory| directory.names.is_empty());
        if entry.layer < layer
            && is_empty
            && let Some(directory) = self.directory_mut(directory)
        {
            directory.names.remove(name);
        }
    }

    /// Removes what layers below `layer` put into a directory: an opaque marker.
    pub(crate) fn clear_lower(&mut self, directory: InodeId, layer: u32) {
        let Some(names) = self
            .directory_mut(directory)
            .filter(|directory| directory.cleared < layer)
            .map(|directory| std::mem::take(&mut directory.names))
        else {
            return;
        };
        // The depth of directories is limited, and so is this recursion.
        let mut kept = BTreeMap::new();
        for (name, entry) in names {
            self.clear_lower(entry.inode, layer);
            let holds_more =
                self.directory(entry.inode).is_some_and(|directory| !directory.names.is_empty());
            if entry.layer >= layer || holds_more {
                kept.insert(name, entry);
            }
        }
        if let Some(directory) = self.directory_mut(directory) {
            directory.names = kept;
            // Later entries belong to this layer, so repeated markers cost nothing.
            directory.cleared = layer;
        }
    }

    /// Returns the number of a set of extended attributes, and adds it if it is new.
    pub(crate) fn intern(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<u32> {
        let bytes: Rc<[u8]> = xattr::encode(xattrs).into();
        if bytes.is_empty() {
            return Ok(0);
        }
        if let Some(number) = self.xattr_numbers.get(&bytes) {
            return Ok(*number);
        }
        self.xattr_bytes += bytes.len();
        ensure!(
            self.xattr_bytes <= IMAGE_XATTR_BYTES_MAX,
            "the image has more than {IMAGE_XATTR_BYTES_MAX} bytes of extended attributes"
        );
        let number = self.xattrs.len() as u32;
        self.xattrs.push(Rc::clone(&bytes));
        self.xattr_numbers.insert(bytes, number);
        Ok(number)
    }

    /// Returns a set of extended attributes in EROFS format.
    pub(crate) fn xattrs(&self, number: u32) -> &[u8] {
        &self.xattrs[number as usize]
    }
}
