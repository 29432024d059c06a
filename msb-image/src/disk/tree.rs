//! The tree of files that the layers of an image give together.
//!
//! Compact, for it is all in memory at once: an inode each file, a name each entry. Every name remembers the layer that set
//! it last, since a whiteout takes away what lower layers brought and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use anyhow::{Result, bail, ensure};

use super::xattr;
use crate::layer::tar::Time;
use crate::limits::{DEPTH_MAX, IMAGE_ENTRIES_MAX, IMAGE_NAMES_BYTES_MAX, IMAGE_XATTR_BYTES_MAX};

/// Number of an inode in the tree.
pub(crate) type Id = u32;

/// The root folder.
pub(crate) const ROOT: Id = 0;

/// What belongs to a file apart from its names.
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub(crate) attributes: Attributes,
    pub(crate) body: Body,
}

/// Who owns a file, and so on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attributes {
    /// Permission bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Number of the set of extended attributes; 0 is none.
    pub(crate) xattrs: u32,
}

/// What a file is.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// Contents: in which layer's data, from which block on, how many bytes.
    File {
        layer: u32,
        block: u32,
        size: u64,
    },
    Symlink(Box<[u8]>),
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    Folder(Box<Folder>),
}

/// A folder.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    pub(crate) parent: Id,
    /// Folders above it.
    depth: usize,
    pub(crate) names: BTreeMap<Box<[u8]>, Name>,
    /// Layers below this one have nothing in here any more.
    cleared: u32,
}

/// An entry of a folder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name {
    pub(crate) inode: Id,
    /// The layer that set it last.
    pub(crate) layer: u32,
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    inodes: Vec<Inode>,
    /// Bytes of the names and link targets that were ever added.
    names_bytes: usize,
    xattrs: Vec<Rc<[u8]>>,
    xattr_numbers: HashMap<Rc<[u8]>, u32>,
    xattr_bytes: usize,
}

impl Tree {
    /// Only a root folder.
    pub(crate) fn new() -> Tree {
        let root = Folder {
            parent: ROOT,
            depth: 0,
            names: BTreeMap::new(),
            cleared: 0,
        };
        let attributes = Attributes {
            mode: 0o755,
            ..Attributes::default()
        };
        Tree {
            inodes: vec![Inode {
                attributes,
                body: Body::Folder(Box::new(root)),
            }],
            names_bytes: 0,
            xattrs: vec![Rc::default()],
            xattr_numbers: HashMap::new(),
            xattr_bytes: 0,
        }
    }

    pub(crate) fn inode(&self, id: Id) -> &Inode {
        &self.inodes[id as usize]
    }

    pub(crate) fn inode_mut(&mut self, id: Id) -> &mut Inode {
        &mut self.inodes[id as usize]
    }

    /// Number of inodes, those counted that no name leads to any more.
    pub(crate) fn len(&self) -> usize {
        self.inodes.len()
    }

    /// The folder of this number, if it is one.
    pub(crate) fn folder(&self, id: Id) -> Option<&Folder> {
        match &self.inode(id).body {
            Body::Folder(folder) => Some(folder),
            _ => None,
        }
    }

    fn folder_mut(&mut self, id: Id) -> Option<&mut Folder> {
        match &mut self.inode_mut(id).body {
            Body::Folder(folder) => Some(folder),
            _ => None,
        }
    }

    /// What a name in a folder leads to.
    pub(crate) fn lookup(&self, folder: Id, name: &[u8]) -> Option<Name> {
        self.folder(folder)?.names.get(name).copied()
    }

    /// Adds an inode without a name.
    pub(crate) fn add(&mut self, attributes: Attributes, body: Body) -> Result<Id> {
        ensure!(
            self.inodes.len() < IMAGE_ENTRIES_MAX,
            "the image has more than {IMAGE_ENTRIES_MAX} entries"
        );
        if let Body::Symlink(target) = &body {
            self.count_name(target.len())?;
        }
        self.inodes.push(Inode { attributes, body });
        Ok((self.inodes.len() - 1) as Id)
    }

    /// Gives an inode a name; what had it before loses it.
    pub(crate) fn set(&mut self, folder: Id, name: &[u8], entry: Name) -> Result<()> {
        self.count_name(name.len())?;
        let Some(folder) = self.folder_mut(folder) else {
            bail!("it is no folder")
        };
        folder.names.insert(name.into(), entry);
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

    /// Makes an empty folder.
    pub(crate) fn make_folder(
        &mut self,
        parent: Id,
        name: &[u8],
        layer: u32,
        attributes: Attributes,
    ) -> Result<Id> {
        // Paths through links could go deeper than any path is long.
        let depth = self.folder(parent).map_or(0, |folder| folder.depth + 1);
        ensure!(
            depth <= DEPTH_MAX,
            "the path has more than {DEPTH_MAX} folders"
        );
        let body = Body::Folder(Box::new(Folder {
            parent,
            depth,
            names: BTreeMap::new(),
            cleared: 0,
        }));
        let inode = self.add(attributes, body)?;
        self.set(parent, name, Name { inode, layer })?;
        Ok(inode)
    }

    /// Takes a name away as far as layers below `layer` brought it. A folder stays when something in it stays.
    pub(crate) fn remove_lower(&mut self, folder: Id, name: &[u8], layer: u32) {
        let Some(entry) = self.lookup(folder, name) else {
            return;
        };
        self.clear_lower(entry.inode, layer);
        let is_empty = self
            .folder(entry.inode)
            .is_none_or(|folder| folder.names.is_empty());
        if entry.layer < layer
            && is_empty
            && let Some(folder) = self.folder_mut(folder)
        {
            folder.names.remove(name);
        }
    }

    /// Takes away all that layers below `layer` brought into a folder.
    pub(crate) fn clear_lower(&mut self, folder: Id, layer: u32) {
        let Some(names) = self
            .folder_mut(folder)
            .filter(|folder| folder.cleared < layer)
            .map(|folder| std::mem::take(&mut folder.names))
        else {
            return;
        };
        // The depth of folders, and so of this recursion, has a limit.
        let mut kept = BTreeMap::new();
        for (name, entry) in names {
            self.clear_lower(entry.inode, layer);
            let holds_more = self
                .folder(entry.inode)
                .is_some_and(|folder| !folder.names.is_empty());
            if entry.layer >= layer || holds_more {
                kept.insert(name, entry);
            }
        }
        if let Some(folder) = self.folder_mut(folder) {
            folder.names = kept;
            // What comes from now on is of this layer: marks that repeat themselves cost nothing.
            folder.cleared = layer;
        }
    }

    /// The number of a set of extended attributes.
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

    /// A set of extended attributes in the form of EROFS.
    pub(crate) fn xattrs(&self, number: u32) -> &[u8] {
        &self.xattrs[number as usize]
    }
}
