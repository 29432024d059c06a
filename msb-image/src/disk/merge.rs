//! Merges layers from their indexes: applies one over the other.
//!
//! The rules are those of the OCI image specification, and where it is silent those of containerd:
//!
//! - Paths are normalized; one that leads out of the root is rejected. Symbolic links in the
//!   directories of a path are followed within the root, as in a container. Missing directories are
//!   created with mode 0755, owned by root.
//! - The last entry of a name wins. A directory over a directory changes its attributes and keeps
//!   its contents; any other entry replaces the earlier one.
//! - A whiteout `.wh.NAME` and an opaque marker `.wh..wh..opq` hide entries of lower layers, but
//!   nothing of their own layer, wherever they are in it. Other names that start with `.wh..wh.`
//!   are metadata of the old AUFS driver and ignored.
//! - The target of a hard link must exist at that point, in this layer or a lower one.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use libmsb::cli::escape::escape;
use libmsb::digest::Digest;

use super::erofs::DiskPlan;
use super::tree::{DirEntry, FileTree, InodeAttributes, InodeBody, InodeId, ROOT};
use crate::layer::BLOCK_BYTES;
use crate::layer::index::{IndexReader, LayerSummary};
use crate::layer::tar::{EntryKind, TarEntry, TarReader};
use crate::limits::{
    COMPONENT_BYTES_MAX, DEPTH_MAX, IMAGE_ENTRIES_MAX, IMAGE_STEPS_MAX, SYMLINKS_FOLLOWED_MAX,
};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const WHITEOUT_META: &[u8] = b".wh..wh.";

/// A merged image.
#[derive(Debug)]
pub(crate) struct MergedImage {
    pub(crate) tree: FileTree,
    /// The layers whose data the tree uses, each once, in the order of the numbers in
    /// [`InodeBody::File`].
    pub(crate) layers: Vec<LayerSummary>,
    /// Position of everything on the disk.
    pub(crate) plan: DiskPlan,
}

/// Merges the layers of an image, lowest first, and plans its disk. A merged image can be written.
pub(crate) fn merge(
    diff_ids: &[Digest],
    index_path: impl Fn(&Digest) -> PathBuf,
) -> Result<MergedImage> {
    let mut tree = FileTree::new();
    let mut layers: Vec<LayerSummary> = Vec::new();
    let mut cost = MergeCost::default();
    for (number, diff_id) in diff_ids.iter().enumerate() {
        let index = IndexReader::open(&index_path(diff_id), diff_id)?;
        let known = layers.iter().position(|layer| layer.diff_id == *diff_id);
        let data = known.unwrap_or(layers.len()) as u32;
        if known.is_none() {
            layers.push(index.summary());
        }
        let applier = LayerApplier { tree: &mut tree, layer: number as u32, data, cost: &mut cost };
        apply(applier, index).with_context(|| format!("layer {diff_id}"))?;
    }
    let plan = super::plan(&tree, &layers)?;
    Ok(MergedImage { tree, layers, plan })
}

fn apply(mut applier: LayerApplier<'_>, index: IndexReader) -> Result<()> {
    let mut tar = TarReader::new(index);
    while let Some(entry) = tar.next()? {
        let block = if entry.size > 0 { content_of(&mut tar.source, &entry)? } else { 0 };
        applier.entry(&entry, block).with_context(|| format!("entry '{}'", escape(&entry.path)))?;
    }
    tar.source.finish()
}

fn content_of(index: &mut IndexReader, entry: &TarEntry) -> Result<u32> {
    let content = index.content()?;
    let agrees = content.stored == entry.stored && content.pieces == entry.pieces;
    ensure!(agrees, "the index is damaged: contents do not match their entry");
    let end = u128::from(content.block) * u128::from(BLOCK_BYTES) + u128::from(entry.size);
    ensure!(
        end <= u128::from(index.summary().data_bytes),
        "the index is damaged: contents lie beyond the data"
    );
    u32::try_from(content.block).context("the layer has too many blocks")
}

/// Work done for one image so far. An image can contain a layer many times, and a path can lead
/// through many links.
#[derive(Default)]
struct MergeCost {
    entries: usize,
    steps: usize,
}

/// A layer being applied to the tree.
struct LayerApplier<'a> {
    tree: &'a mut FileTree,
    layer: u32,
    data: u32,
    cost: &'a mut MergeCost,
}

impl LayerApplier<'_> {
    fn entry(&mut self, entry: &TarEntry, block: u32) -> Result<()> {
        self.cost.entries += 1;
        ensure!(
            self.cost.entries <= IMAGE_ENTRIES_MAX,
            "the image has more than {IMAGE_ENTRIES_MAX} entries"
        );
        let path = split_path(&entry.path)?;
        let Some((name, directories)) = path.split_last() else {
            return self.root(entry);
        };
        if path[0].starts_with(WHITEOUT_META) && path[0] != OPAQUE {
            return Ok(());
        }
        ensure!(
            !directories.iter().any(|part| part.starts_with(WHITEOUT)),
            "the path goes through a whiteout"
        );
        if name.starts_with(WHITEOUT) {
            return self.whiteout(directories, name);
        }
        let directory =
            self.resolve(directories, true)?.context("a directory of its path is missing")?;
        match entry.kind {
            EntryKind::Directory => self.directory(directory, name, entry),
            EntryKind::HardLink => self.hard_link(directory, name, &path, entry),
            _ => self.other_entry(directory, name, entry, block),
        }
    }

    fn root(&mut self, entry: &TarEntry) -> Result<()> {
        ensure!(entry.kind == EntryKind::Directory, "the root must be a directory");
        let attributes = self.attributes(entry)?;
        self.tree.inode_mut(ROOT).attributes = attributes;
        Ok(())
    }

    fn whiteout(&mut self, directories: &[&[u8]], name: &[u8]) -> Result<()> {
        // A whiteout does not create directories.
        let Some(directory) = self.resolve(directories, false)? else {
            return Ok(());
        };
        if name == OPAQUE {
            self.tree.clear_lower(directory, self.layer);
        } else if !name.starts_with(WHITEOUT_META) {
            let hidden = &name[WHITEOUT.len()..];
            ensure!(!matches!(hidden, b"" | b"." | b".."), "the whiteout has no name");
            self.tree.remove_lower(directory, hidden, self.layer);
        }
        Ok(())
    }

    fn directory(&mut self, directory: InodeId, name: &[u8], entry: &TarEntry) -> Result<()> {
        let attributes = self.attributes(entry)?;
        let existing = self
            .tree
            .lookup(directory, name)
            .filter(|existing| self.tree.directory(existing.inode).is_some());
        let Some(existing) = existing else {
            self.tree.make_directory(directory, name, self.layer, attributes)?;
            return Ok(());
        };
        self.tree.inode_mut(existing.inode).attributes = attributes;
        self.tree.set(directory, name, DirEntry { inode: existing.inode, layer: self.layer })
    }

    fn hard_link(
        &mut self,
        directory: InodeId,
        name: &[u8],
        path: &[&[u8]],
        entry: &TarEntry,
    ) -> Result<()> {
        let target = split_path(&entry.link).context("the target of the hard link")?;
        let shown = escape(&entry.link);
        ensure!(target != path, "the hard link '{shown}' leads to itself");
        let found = match target.split_last() {
            Some((last, directories)) => self
                .resolve(directories, false)?
                .and_then(|directory| self.tree.lookup(directory, last)),
            None => bail!("a hard link to the root"),
        };
        let Some(found) = found else {
            bail!("the target '{shown}' of the hard link does not exist")
        };
        ensure!(
            self.tree.directory(found.inode).is_none(),
            "the target '{shown}' of the hard link is a directory"
        );
        // Tools that unpack images apply the attributes of a hard link to the file. The link need
        // not repeat extended attributes.
        let mut attributes = self.attributes(entry)?;
        if attributes.xattrs == 0 {
            attributes.xattrs = self.tree.inode(found.inode).attributes.xattrs;
        }
        self.tree.inode_mut(found.inode).attributes = attributes;
        self.tree.set(directory, name, DirEntry { inode: found.inode, layer: self.layer })
    }

    fn other_entry(
        &mut self,
        directory: InodeId,
        name: &[u8],
        entry: &TarEntry,
        block: u32,
    ) -> Result<()> {
        let body = match entry.kind {
            EntryKind::Symlink => {
                ensure!(!entry.link.contains(&0), "the target of the link contains a NUL byte");
                InodeBody::Symlink(entry.link.as_slice().into())
            }
            EntryKind::CharDevice => InodeBody::CharDevice(device_number(entry.device)),
            EntryKind::BlockDevice => InodeBody::BlockDevice(device_number(entry.device)),
            EntryKind::Fifo => InodeBody::Fifo,
            _ => InodeBody::File { layer: self.data, block, size: entry.size },
        };
        let attributes = self.attributes(entry)?;
        let inode = self.tree.add(attributes, body)?;
        self.tree.set(directory, name, DirEntry { inode, layer: self.layer })
    }

    fn attributes(&mut self, entry: &TarEntry) -> Result<InodeAttributes> {
        let xattrs = self.tree.intern(&entry.xattrs)?;
        Ok(InodeAttributes {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs,
        })
    }

    /// Resolves a path to a directory and follows links within the root. Creates missing
    /// directories if `make` is set.
    fn resolve(&mut self, directories: &[&[u8]], create: bool) -> Result<Option<InodeId>> {
        let mut walk = PathWalk::new(directories);
        while let Some(missing) = walk.walk_on(self.tree)? {
            if !create {
                self.count_steps(&walk)?;
                return Ok(None);
            }
            let attributes = InodeAttributes { mode: 0o755, ..InodeAttributes::default() };
            walk.at = self.tree.make_directory(walk.at, &missing, self.layer, attributes)?;
        }
        self.count_steps(&walk)?;
        Ok(Some(walk.at))
    }

    fn count_steps(&mut self, walk: &PathWalk) -> Result<()> {
        self.cost.steps += walk.steps;
        ensure!(
            self.cost.steps <= IMAGE_STEPS_MAX,
            "the paths of the image lead through more than {IMAGE_STEPS_MAX} directories"
        );
        Ok(())
    }
}

/// Resolution of a path of directories, as the kernel does it after chroot(2) to the image's root.
struct PathWalk {
    at: InodeId,
    /// Components still to walk, the next one last.
    parts: Vec<Box<[u8]>>,
    links: usize,
    /// Components walked so far.
    steps: usize,
}

impl PathWalk {
    fn new(directories: &[&[u8]]) -> PathWalk {
        PathWalk {
            at: ROOT,
            parts: directories.iter().rev().map(|part| (*part).into()).collect(),
            links: 0,
            steps: 0,
        }
    }

    /// Walks to the end, or returns the name of the first missing directory.
    fn walk_on(&mut self, tree: &FileTree) -> Result<Option<Box<[u8]>>> {
        while let Some(part) = self.parts.pop() {
            self.steps += 1;
            if *part == *b".." {
                self.at = tree.directory(self.at).map_or(ROOT, |directory| directory.parent);
                continue;
            }
            let Some(entry) = tree.lookup(self.at, check_part(&part)?) else {
                return Ok(Some(part));
            };
            match &tree.inode(entry.inode).body {
                InodeBody::Directory(_) => self.at = entry.inode,
                InodeBody::Symlink(target) => self.follow(target)?,
                _ => bail!("'{}' in its path is not a directory", escape(&part)),
            }
        }
        Ok(None)
    }

    fn follow(&mut self, target: &[u8]) -> Result<()> {
        self.links += 1;
        ensure!(self.links <= SYMLINKS_FOLLOWED_MAX, "too many symbolic links in its path");
        if target.starts_with(b"/") {
            self.at = ROOT;
        }
        let names = target.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
        self.parts.extend(names.rev().map(Box::from));
        Ok(())
    }
}

/// Returns whether the path leads to an executable file, through links.
pub(crate) fn is_executable(tree: &FileTree, path: &[u8]) -> bool {
    let mut walk = PathWalk::new(&[]);
    if walk.follow(path).is_err() {
        return false;
    }
    loop {
        // The last component may be a link itself, so it is resolved here; the walk resolves the
        // directories before it.
        let Some(name) = (!walk.parts.is_empty()).then(|| walk.parts.remove(0)) else {
            return false;
        };
        let Ok(None) = walk.walk_on(tree) else {
            return false;
        };
        let Some(found) = tree.lookup(walk.at, &name) else {
            return false;
        };
        let inode = tree.inode(found.inode);
        match &inode.body {
            InodeBody::File { .. } => return inode.attributes.mode & 0o111 != 0,
            InodeBody::Symlink(target) if walk.follow(target).is_ok() => {}
            _ => return false,
        }
    }
}

/// Splits a path into components from the root. `..` removes a component; one too many is rejected.
fn split_path(path: &[u8]) -> Result<Vec<&[u8]>> {
    let rooted = path.starts_with(b"/");
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.pop().is_some() || rooted => {}
            b".." => bail!("the path leads out of the root"),
            _ => parts.push(check_part(part)?),
        }
    }
    ensure!(parts.len() <= DEPTH_MAX, "the path has more than {DEPTH_MAX} directories");
    Ok(parts)
}

fn check_part(part: &[u8]) -> Result<&[u8]> {
    ensure!(!part.contains(&0), "the path contains a NUL byte");
    ensure!(
        part.len() <= COMPONENT_BYTES_MAX,
        "a name in the path is longer than {COMPONENT_BYTES_MAX} bytes"
    );
    Ok(part)
}

/// Encodes a device number in 32 bits, as Linux does.
fn device_number((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::convert::convert;
    use crate::store::layers::NewLayer;
    use crate::testing::{TarBuilder, store};

    /// Merges layers and returns every path with its type.
    fn paths(layers: Vec<TarBuilder>) -> Result<Vec<String>> {
        let merged = merged(layers)?;
        let mut paths = Vec::new();
        list(&merged.tree, ROOT, "", &mut paths);
        Ok(paths)
    }

    fn merged(layers: Vec<TarBuilder>) -> Result<MergedImage> {
        let (_directory, store) = store();
        let mut diff_ids = Vec::new();
        for layer in layers {
            let tar = layer.finish();
            let converted = convert(&tar[..], NewLayer::create(&store)?)?;
            converted.files.commit(&store, &converted.summary.diff_id)?;
            diff_ids.push(converted.summary.diff_id);
        }
        merge(&diff_ids, |diff_id| store.layer_index_path(diff_id))
    }

    fn list(tree: &FileTree, directory: InodeId, path: &str, paths: &mut Vec<String>) {
        for (name, entry) in &tree.directory(directory).unwrap().names {
            let path = format!("{path}/{}", escape(name));
            match &tree.inode(entry.inode).body {
                InodeBody::Directory(_) => {
                    paths.push(format!("{path}/ {:o}", tree.inode(entry.inode).attributes.mode));
                    list(tree, entry.inode, &path, paths);
                }
                InodeBody::File { size, .. } => paths.push(format!("{path} {size}")),
                InodeBody::Symlink(target) => paths.push(format!("{path} -> {}", escape(target))),
                _ => paths.push(format!("{path} special")),
            }
        }
    }

    fn tar() -> TarBuilder {
        TarBuilder::new()
    }

    fn error(layers: Vec<TarBuilder>) -> String {
        format!("{:#}", paths(layers).unwrap_err())
    }

    #[test]
    fn a_whiteout_hides_entries_of_lower_layers() {
        let lower = || {
            tar()
                .directory("d/", 0o755)
                .file("d/a", b"1")
                .file("d/b", b"2")
                .directory("e/", 0o700)
                .file("e/x", b"")
        };
        assert_eq!(
            paths(vec![lower(), tar().file("d/.wh.a", b"").file(".wh.e", b"")]).unwrap(),
            ["/d/ 755", "/d/b 1"]
        );
        // In its own layer a whiteout hides nothing, whatever the order.
        for upper in [
            tar().file("d/.wh.a", b"").file("d/a", b"new"),
            tar().file("d/a", b"new").file("d/.wh.a", b""),
        ] {
            let all = paths(vec![lower(), upper]).unwrap();
            assert_eq!(all, ["/d/ 755", "/d/a 3", "/d/b 1", "/e/ 700", "/e/x 0"]);
        }
        // A whiteout of a missing name or in a missing directory is valid.
        assert!(
            paths(vec![lower(), tar().file("d/.wh.none", b"").file("none/.wh.x", b"")]).is_ok()
        );
    }

    #[test]
    fn a_whiteout_of_a_directory_keeps_entries_of_its_own_layer() {
        let lower = tar()
            .directory("d/", 0o755)
            .directory("d/s/", 0o755)
            .file("d/s/old", b"")
            .file("d/old", b"");
        let upper = tar().file("d/s/new", b"n").file(".wh.d", b"");
        assert_eq!(paths(vec![lower, upper]).unwrap(), ["/d/ 755", "/d/s/ 755", "/d/s/new 1"]);
    }

    #[test]
    fn an_opaque_directory_hides_lower_layers_only_wherever_the_marker_is() {
        let lower = || {
            tar()
                .directory("d/", 0o755)
                .file("d/old", b"")
                .directory("d/s/", 0o755)
                .file("d/s/old", b"")
        };
        let first = tar()
            .directory("d/", 0o711)
            .file("d/.wh..wh..opq", b"")
            .file("d/new", b"")
            .file("d/s/new", b"");
        let last = tar()
            .directory("d/", 0o711)
            .file("d/new", b"")
            .file("d/s/new", b"")
            .file("d/.wh..wh..opq", b"");
        let kept = ["/d/ 711", "/d/new 0", "/d/s/ 755", "/d/s/new 0"];
        assert_eq!(paths(vec![lower(), first]).unwrap(), kept);
        assert_eq!(paths(vec![lower(), last]).unwrap(), kept);
        assert_eq!(
            paths(vec![lower(), tar().file(".wh..wh..opq", b"")]).unwrap(),
            Vec::<String>::new()
        );
    }

    #[test]
    fn the_last_entry_wins_and_kinds_replace_each_other() {
        let lower = tar()
            .file("a", b"1")
            .directory("b/", 0o755)
            .file("b/x", b"")
            .symlink("c", "b")
            .directory("d/", 0o755);
        let upper = tar()
            .directory("a/", 0o700)
            .file("a/y", b"")
            .file("b", b"22")
            .directory("c/", 0o755)
            .directory("d/", 0o1777);
        let kept = ["/a/ 700", "/a/y 0", "/b 2", "/c/ 755", "/d/ 1777"];
        assert_eq!(paths(vec![lower, upper]).unwrap(), kept);
        assert_eq!(paths(vec![tar().file("a", b"1").file("a", b"333")]).unwrap(), ["/a 3"]);
    }

    #[test]
    fn hard_links_lead_across_directorys_and_layers() {
        let lower = tar().directory("d/", 0o755).file("d/f", b"12345").symlink("l", "d");
        let upper = tar().hard_link("h", "d/f").hard_link("i", "/h").hard_link("j", "l/f");
        let merged = merged(vec![lower, upper]).unwrap();
        let inode = |name: &[u8]| merged.tree.lookup(ROOT, name).unwrap().inode;
        assert_eq!(inode(b"h"), inode(b"i"));
        assert_eq!(inode(b"h"), inode(b"j"));
        assert_eq!(inode(b"h"), merged.tree.lookup(inode(b"d"), b"f").unwrap().inode);
    }

    #[test]
    fn a_hard_link_without_a_target_is_an_error_that_names_it() {
        assert!(
            error(vec![tar().hard_link("a", "none")])
                .contains("entry 'a': the target 'none' of the hard link")
        );
        assert!(
            error(vec![tar().hard_link("a", "b").hard_link("b", "a")]).contains("the target 'b'")
        );
        assert!(
            error(vec![tar().file("a", b"").hard_link("a", "./a")]).contains("leads to itself")
        );
        assert!(
            error(vec![tar().directory("d/", 0o755).hard_link("a", "d")])
                .contains("is a directory")
        );
        assert!(
            error(vec![tar().hard_link("a", "../../etc/passwd")]).contains("leads out of the root")
        );
    }

    #[test]
    fn a_link_among_the_directorys_is_followed_within_the_root() {
        let lower = tar()
            .directory("usr/", 0o755)
            .directory("usr/lib/", 0o755)
            .symlink("lib", "usr/lib")
            .symlink("up", "../../..");
        let upper =
            tar().file("lib/x", b"").file("up/y", b"").symlink("abs", "/usr").file("abs/z", b"");
        let all = paths(vec![lower, upper]).unwrap();
        let files: Vec<_> = all.iter().filter(|path| path.ends_with(" 0")).collect();
        assert_eq!(files, ["/usr/lib/x 0", "/usr/z 0", "/y 0"]);
        // The target of a dangling link is created, within the root.
        let dangling = tar().symlink("l", "../none/../made").file("l/x", b"");
        assert_eq!(
            paths(vec![dangling]).unwrap(),
            ["/l -> ../none/../made", "/made/ 755", "/made/x 0", "/none/ 755"]
        );
        assert!(
            error(vec![tar().symlink("a", "b").symlink("b", "a").file("a/x", b"")])
                .contains("too many symbolic links")
        );
        assert!(
            error(vec![tar().file("f", b"").file("f/x", b"")])
                .contains("'f' in its path is not a directory")
        );
    }

    #[test]
    fn paths_are_cleaned_and_kept_within_the_root() {
        let odd = tar()
            .file("./a", b"")
            .file("/b", b"")
            .file("x/../c", b"")
            .file("d//e", b"")
            .file("/../f", b"");
        assert_eq!(
            paths(vec![odd]).unwrap(),
            ["/a 0", "/b 0", "/c 0", "/d/ 755", "/d/e 0", "/f 0"]
        );
        for bad in ["../x", "a/../../x"] {
            assert!(error(vec![tar().file(bad, b"")]).contains("leads out of the root"), "{bad}");
        }
        assert!(
            error(vec![tar().pax(&[("path", &[b'x'; 256])]).file("f", b"")])
                .contains("longer than 255")
        );
        let deep = "d/".repeat(DEPTH_MAX);
        assert!(
            paths(vec![tar().pax(&[("path", deep.as_bytes())]).directory("d/", 0o755)]).is_ok()
        );
        let deeper = "d/".repeat(DEPTH_MAX + 1);
        assert!(
            error(vec![tar().pax(&[("path", deeper.as_bytes())]).directory("d/", 0o755)])
                .contains("1024 directories")
        );
        let through = tar().pax(&[("path", deep.as_bytes())]).directory("d/", 0o755);
        let through = through
            .pax(&[("linkpath", deep.as_bytes())])
            .symlink("l", "x")
            .directory("l/more/", 0o755);
        assert!(error(vec![through]).contains("1024 directories"));
    }

    #[test]
    fn the_top_layer_sets_the_attributes_of_a_directory() {
        let lower = tar().pax(&[("SCHILY.xattr.user.a", b"1")]).directory("d/", 0o755);
        let both =
            merged(vec![lower, tar().directory("d/", 0o700).directory("./", 0o711)]).unwrap();
        let directory = both.tree.inode(both.tree.lookup(ROOT, b"d").unwrap().inode);
        assert_eq!((directory.attributes.mode, directory.attributes.xattrs), (0o700, 0));
        assert_eq!(both.tree.inode(ROOT).attributes.mode, 0o711);
    }

    #[test]
    fn a_layer_that_comes_twice_has_its_data_once() {
        let merged =
            merged(vec![tar().file("a", b"1"), tar().file("b", b"2"), tar().file("a", b"1")])
                .unwrap();
        assert_eq!(merged.layers.len(), 2);
    }

    #[test]
    fn a_shell_behind_links_is_found() {
        let mut sh = TarBuilder::header("usr/bin/dash", b'0', 0);
        sh[100..108].copy_from_slice(b"0000755\0");
        let shell =
            tar().raw_header(sh).symlink("bin", "usr/bin").symlink("usr/bin/sh", "../bin/dash");
        assert!(is_executable(&merged(vec![shell]).unwrap().tree, b"/bin/sh"));
        for none in [
            tar().file("bin/sh", b""),
            tar().symlink("bin/sh", "sh"),
            tar().directory("bin/sh/", 0o755),
            tar(),
        ] {
            assert!(!is_executable(&merged(vec![none]).unwrap().tree, b"/bin/sh"));
        }
    }
}
