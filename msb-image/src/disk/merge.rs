//! Applying layers, one over the other, from their indexes.
//!
//! The rules are those of the OCI image specification, and where it is silent those of containerd:
//!
//! - Paths are cleaned; one that leads out of the root is refused. Symbolic links in the folders of a path are followed
//!   within the root, as a process in the container would. Missing folders are made, mode 0755, owned by root.
//! - The last entry of a name wins. A folder over a folder changes its attributes and keeps what is in it; anything else
//!   replaces what was there.
//! - `.wh.NAME` and `.wh..wh..opq` take away what lower layers brought, and nothing of their own layer, wherever they
//!   stand in it. Other names beginning with `.wh..wh.` are notes of an old driver and ignored.
//! - A hard link needs a target that is there at that moment, in this layer or a lower one.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use libmsb::cli::escape::escape;
use libmsb::digest::Digest;

use super::erofs::Plan;
use super::tree::{Attributes, Body, Id, Name, ROOT, Tree};
use crate::layer::BLOCK_BYTES;
use crate::layer::index::{IndexReader, Summary};
use crate::layer::tar::{Entry, Kind, TarReader};
use crate::limits::{
    COMPONENT_BYTES_MAX, DEPTH_MAX, IMAGE_ENTRIES_MAX, IMAGE_STEPS_MAX, SYMLINKS_FOLLOWED_MAX,
};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const NOTES: &[u8] = b".wh..wh.";

/// The merged image.
#[derive(Debug)]
pub(crate) struct Merged {
    pub(crate) tree: Tree,
    /// The layers whose data the tree uses, each once, in the order of [`Body::File`]'s numbers.
    pub(crate) layers: Vec<Summary>,
    /// How it lies on a disk.
    pub(crate) plan: Plan,
}

/// Merges the layers of an image, lowest first, and plans the disk: what is merged can be written.
pub(crate) fn merge(
    diff_ids: &[Digest],
    index_path: impl Fn(&Digest) -> PathBuf,
) -> Result<Merged> {
    let mut tree = Tree::new();
    let mut layers: Vec<Summary> = Vec::new();
    let mut work = Work::default();
    for (number, diff_id) in diff_ids.iter().enumerate() {
        let index = IndexReader::open(&index_path(diff_id), diff_id)?;
        let known = layers.iter().position(|layer| layer.diff_id == *diff_id);
        let data = known.unwrap_or(layers.len()) as u32;
        if known.is_none() {
            layers.push(index.summary());
        }
        let applier = Applier {
            tree: &mut tree,
            layer: number as u32,
            data,
            work: &mut work,
        };
        apply(applier, index).with_context(|| format!("layer {diff_id}"))?;
    }
    let plan = super::plan(&tree, &layers)?;
    Ok(Merged { tree, layers, plan })
}

fn apply(mut applier: Applier<'_>, index: IndexReader) -> Result<()> {
    let mut tar = TarReader::new(index);
    while let Some(entry) = tar.next()? {
        let block = if entry.size > 0 {
            content_of(&mut tar.source, &entry)?
        } else {
            0
        };
        applier
            .entry(&entry, block)
            .with_context(|| format!("entry '{}'", escape(&entry.path)))?;
    }
    tar.source.finish()
}

fn content_of(index: &mut IndexReader, entry: &Entry) -> Result<u32> {
    let content = index.content()?;
    let agrees = content.stored == entry.stored && content.pieces == entry.pieces;
    ensure!(
        agrees,
        "the index is damaged: contents do not fit their entry"
    );
    let end = u128::from(content.block) * u128::from(BLOCK_BYTES) + u128::from(entry.size);
    ensure!(
        end <= u128::from(index.summary().data_bytes),
        "the index is damaged: contents lie beyond the data"
    );
    u32::try_from(content.block).context("the layer has too many blocks")
}

/// What was done for one image so far. A layer may come in it many times, and a path may lead a long way round.
#[derive(Default)]
struct Work {
    entries: usize,
    steps: usize,
}

/// One layer on its way into the tree.
struct Applier<'a> {
    tree: &'a mut Tree,
    layer: u32,
    data: u32,
    work: &'a mut Work,
}

impl Applier<'_> {
    fn entry(&mut self, entry: &Entry, block: u32) -> Result<()> {
        self.work.entries += 1;
        ensure!(
            self.work.entries <= IMAGE_ENTRIES_MAX,
            "the image has more than {IMAGE_ENTRIES_MAX} entries"
        );
        let path = clean(&entry.path)?;
        let Some((name, folders)) = path.split_last() else {
            return self.root(entry);
        };
        if path[0].starts_with(NOTES) && path[0] != OPAQUE {
            return Ok(());
        }
        ensure!(
            !folders.iter().any(|part| part.starts_with(WHITEOUT)),
            "the path goes through a whiteout"
        );
        if name.starts_with(WHITEOUT) {
            return self.whiteout(folders, name);
        }
        let folder = self
            .resolve(folders, true)?
            .context("a folder of its path is missing")?;
        match entry.kind {
            Kind::Folder => self.folder(folder, name, entry),
            Kind::HardLink => self.hard_link(folder, name, &path, entry),
            _ => self.other(folder, name, entry, block),
        }
    }

    fn root(&mut self, entry: &Entry) -> Result<()> {
        ensure!(entry.kind == Kind::Folder, "the root must be a folder");
        let attributes = self.attributes(entry)?;
        self.tree.inode_mut(ROOT).attributes = attributes;
        Ok(())
    }

    fn whiteout(&mut self, folders: &[&[u8]], name: &[u8]) -> Result<()> {
        // Nothing is made for the sake of taking something away.
        let Some(folder) = self.resolve(folders, false)? else {
            return Ok(());
        };
        if name == OPAQUE {
            self.tree.clear_lower(folder, self.layer);
        } else if !name.starts_with(NOTES) {
            let gone = &name[WHITEOUT.len()..];
            ensure!(
                !matches!(gone, b"" | b"." | b".."),
                "the whiteout names nothing"
            );
            self.tree.remove_lower(folder, gone, self.layer);
        }
        Ok(())
    }

    fn folder(&mut self, folder: Id, name: &[u8], entry: &Entry) -> Result<()> {
        let attributes = self.attributes(entry)?;
        let there = self
            .tree
            .lookup(folder, name)
            .filter(|there| self.tree.folder(there.inode).is_some());
        let Some(there) = there else {
            self.tree
                .make_folder(folder, name, self.layer, attributes)?;
            return Ok(());
        };
        self.tree.inode_mut(there.inode).attributes = attributes;
        self.tree.set(
            folder,
            name,
            Name {
                inode: there.inode,
                layer: self.layer,
            },
        )
    }

    fn hard_link(&mut self, folder: Id, name: &[u8], path: &[&[u8]], entry: &Entry) -> Result<()> {
        let target = clean(&entry.link).context("the target of the hard link")?;
        let shown = escape(&entry.link);
        ensure!(target != path, "the hard link '{shown}' leads to itself");
        let found = match target.split_last() {
            Some((last, folders)) => self
                .resolve(folders, false)?
                .and_then(|folder| self.tree.lookup(folder, last)),
            None => bail!("a hard link to the root"),
        };
        let Some(found) = found else {
            bail!("the target '{shown}' of the hard link is not there")
        };
        ensure!(
            self.tree.folder(found.inode).is_none(),
            "the target '{shown}' of the hard link is a folder"
        );
        // As those who unpack do: what the link says holds for the file, but it need not repeat extended attributes.
        let mut attributes = self.attributes(entry)?;
        if attributes.xattrs == 0 {
            attributes.xattrs = self.tree.inode(found.inode).attributes.xattrs;
        }
        self.tree.inode_mut(found.inode).attributes = attributes;
        self.tree.set(
            folder,
            name,
            Name {
                inode: found.inode,
                layer: self.layer,
            },
        )
    }

    fn other(&mut self, folder: Id, name: &[u8], entry: &Entry, block: u32) -> Result<()> {
        let body = match entry.kind {
            Kind::Symlink => {
                ensure!(
                    !entry.link.contains(&0),
                    "the target of the link holds a NUL byte"
                );
                Body::Symlink(entry.link.as_slice().into())
            }
            Kind::CharDevice => Body::CharDevice(device_number(entry.device)),
            Kind::BlockDevice => Body::BlockDevice(device_number(entry.device)),
            Kind::Fifo => Body::Fifo,
            _ => Body::File {
                layer: self.data,
                block,
                size: entry.size,
            },
        };
        let attributes = self.attributes(entry)?;
        let inode = self.tree.add(attributes, body)?;
        self.tree.set(
            folder,
            name,
            Name {
                inode,
                layer: self.layer,
            },
        )
    }

    fn attributes(&mut self, entry: &Entry) -> Result<Attributes> {
        let xattrs = self.tree.intern(&entry.xattrs)?;
        Ok(Attributes {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs,
        })
    }

    /// The folder that a path leads to, links followed within the root. Missing ones are made if `make` says so.
    fn resolve(&mut self, folders: &[&[u8]], make: bool) -> Result<Option<Id>> {
        let mut walk = Walk::new(folders);
        while let Some(missing) = walk.go(self.tree)? {
            if !make {
                self.count_steps(&walk)?;
                return Ok(None);
            }
            let attributes = Attributes {
                mode: 0o755,
                ..Attributes::default()
            };
            walk.at = self
                .tree
                .make_folder(walk.at, &missing, self.layer, attributes)?;
        }
        self.count_steps(&walk)?;
        Ok(Some(walk.at))
    }

    fn count_steps(&mut self, walk: &Walk) -> Result<()> {
        self.work.steps += walk.steps;
        ensure!(
            self.work.steps <= IMAGE_STEPS_MAX,
            "the paths of the image lead through more than {IMAGE_STEPS_MAX} folders"
        );
        Ok(())
    }
}

/// A walk along a path of folders, as the kernel would walk it with the image's root as its own.
struct Walk {
    at: Id,
    /// What is still to be walked, the next part last.
    parts: Vec<Box<[u8]>>,
    links: usize,
    /// Parts walked so far.
    steps: usize,
}

impl Walk {
    fn new(folders: &[&[u8]]) -> Walk {
        Walk {
            at: ROOT,
            parts: folders.iter().rev().map(|part| (*part).into()).collect(),
            links: 0,
            steps: 0,
        }
    }

    /// Walks on to the end, or until a folder is missing: then gives its name.
    fn go(&mut self, tree: &Tree) -> Result<Option<Box<[u8]>>> {
        while let Some(part) = self.parts.pop() {
            self.steps += 1;
            if *part == *b".." {
                self.at = tree.folder(self.at).map_or(ROOT, |folder| folder.parent);
                continue;
            }
            let Some(entry) = tree.lookup(self.at, check_part(&part)?) else {
                return Ok(Some(part));
            };
            match &tree.inode(entry.inode).body {
                Body::Folder(_) => self.at = entry.inode,
                Body::Symlink(target) => self.follow(target)?,
                _ => bail!("'{}' in its path is no folder", escape(&part)),
            }
        }
        Ok(None)
    }

    fn follow(&mut self, target: &[u8]) -> Result<()> {
        self.links += 1;
        ensure!(
            self.links <= SYMLINKS_FOLLOWED_MAX,
            "too many symbolic links in its path"
        );
        if target.starts_with(b"/") {
            self.at = ROOT;
        }
        let names = target
            .split(|byte| *byte == b'/')
            .filter(|name| !matches!(*name, b"" | b"."));
        self.parts.extend(names.rev().map(Box::from));
        Ok(())
    }
}

/// Whether a process could execute the file of this path, links followed.
pub(crate) fn is_executable(tree: &Tree, path: &[u8]) -> bool {
    let mut walk = Walk::new(&[]);
    if walk.follow(path).is_err() {
        return false;
    }
    loop {
        // The last part may be a link itself: it is looked at here, the folders before it by the walk.
        let Some(name) = (!walk.parts.is_empty()).then(|| walk.parts.remove(0)) else {
            return false;
        };
        let Ok(None) = walk.go(tree) else {
            return false;
        };
        let Some(found) = tree.lookup(walk.at, &name) else {
            return false;
        };
        let inode = tree.inode(found.inode);
        match &inode.body {
            Body::File { .. } => return inode.attributes.mode & 0o111 != 0,
            Body::Symlink(target) if walk.follow(target).is_ok() => {}
            _ => return false,
        }
    }
}

/// The parts of a path from the root. `..` takes a part away; one too many is refused.
fn clean(path: &[u8]) -> Result<Vec<&[u8]>> {
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
    ensure!(
        parts.len() <= DEPTH_MAX,
        "the path has more than {DEPTH_MAX} folders"
    );
    Ok(parts)
}

fn check_part(part: &[u8]) -> Result<&[u8]> {
    ensure!(!part.contains(&0), "the path holds a NUL byte");
    ensure!(
        part.len() <= COMPONENT_BYTES_MAX,
        "a name in the path is longer than {COMPONENT_BYTES_MAX} bytes"
    );
    Ok(part)
}

/// As Linux encodes it in 32 bits.
fn device_number((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::convert::convert;
    use crate::store::NewLayer;
    use crate::testing::{TarBuilder, store};

    /// Merges layers and gives every path with what it is.
    fn paths(layers: Vec<TarBuilder>) -> Result<Vec<String>> {
        let merged = merged(layers)?;
        let mut paths = Vec::new();
        list(&merged.tree, ROOT, "", &mut paths);
        Ok(paths)
    }

    fn merged(layers: Vec<TarBuilder>) -> Result<Merged> {
        let (_folder, store) = store();
        let mut diff_ids = Vec::new();
        for layer in layers {
            let tar = layer.finish();
            let converted = convert(&tar[..], NewLayer::create(&store)?)?;
            converted.files.commit(&store, &converted.summary.diff_id)?;
            diff_ids.push(converted.summary.diff_id);
        }
        merge(&diff_ids, |diff_id| store.layer_index_path(diff_id))
    }

    fn list(tree: &Tree, folder: Id, path: &str, paths: &mut Vec<String>) {
        for (name, entry) in &tree.folder(folder).unwrap().names {
            let path = format!("{path}/{}", escape(name));
            match &tree.inode(entry.inode).body {
                Body::Folder(_) => {
                    paths.push(format!(
                        "{path}/ {:o}",
                        tree.inode(entry.inode).attributes.mode
                    ));
                    list(tree, entry.inode, &path, paths);
                }
                Body::File { size, .. } => paths.push(format!("{path} {size}")),
                Body::Symlink(target) => paths.push(format!("{path} -> {}", escape(target))),
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
    fn a_whiteout_takes_away_what_lower_layers_brought() {
        let lower = || {
            tar()
                .folder("d/", 0o755)
                .file("d/a", b"1")
                .file("d/b", b"2")
                .folder("e/", 0o700)
                .file("e/x", b"")
        };
        assert_eq!(
            paths(vec![lower(), tar().file("d/.wh.a", b"").file(".wh.e", b"")]).unwrap(),
            ["/d/ 755", "/d/b 1"]
        );
        // In its own layer it takes nothing, before or after.
        for upper in [
            tar().file("d/.wh.a", b"").file("d/a", b"new"),
            tar().file("d/a", b"new").file("d/.wh.a", b""),
        ] {
            let all = paths(vec![lower(), upper]).unwrap();
            assert_eq!(all, ["/d/ 755", "/d/a 3", "/d/b 1", "/e/ 700", "/e/x 0"]);
        }
        // What is not there, and a folder that is not there, are no trouble.
        assert!(
            paths(vec![
                lower(),
                tar().file("d/.wh.none", b"").file("none/.wh.x", b"")
            ])
            .is_ok()
        );
    }

    #[test]
    fn a_whiteout_of_a_folder_keeps_what_its_own_layer_put_there() {
        let lower = tar()
            .folder("d/", 0o755)
            .folder("d/s/", 0o755)
            .file("d/s/old", b"")
            .file("d/old", b"");
        let upper = tar().file("d/s/new", b"n").file(".wh.d", b"");
        assert_eq!(
            paths(vec![lower, upper]).unwrap(),
            ["/d/ 755", "/d/s/ 755", "/d/s/new 1"]
        );
    }

    #[test]
    fn an_opaque_folder_hides_lower_layers_only_wherever_the_mark_stands() {
        let lower = || {
            tar()
                .folder("d/", 0o755)
                .file("d/old", b"")
                .folder("d/s/", 0o755)
                .file("d/s/old", b"")
        };
        let first = tar()
            .folder("d/", 0o711)
            .file("d/.wh..wh..opq", b"")
            .file("d/new", b"")
            .file("d/s/new", b"");
        let last = tar()
            .folder("d/", 0o711)
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
            .folder("b/", 0o755)
            .file("b/x", b"")
            .symlink("c", "b")
            .folder("d/", 0o755);
        let upper = tar()
            .folder("a/", 0o700)
            .file("a/y", b"")
            .file("b", b"22")
            .folder("c/", 0o755)
            .folder("d/", 0o1777);
        let kept = ["/a/ 700", "/a/y 0", "/b 2", "/c/ 755", "/d/ 1777"];
        assert_eq!(paths(vec![lower, upper]).unwrap(), kept);
        assert_eq!(
            paths(vec![tar().file("a", b"1").file("a", b"333")]).unwrap(),
            ["/a 3"]
        );
    }

    #[test]
    fn hard_links_lead_across_folders_and_layers() {
        let lower = tar()
            .folder("d/", 0o755)
            .file("d/f", b"12345")
            .symlink("l", "d");
        let upper = tar()
            .hard_link("h", "d/f")
            .hard_link("i", "/h")
            .hard_link("j", "l/f");
        let merged = merged(vec![lower, upper]).unwrap();
        let inode = |name: &[u8]| merged.tree.lookup(ROOT, name).unwrap().inode;
        assert_eq!(inode(b"h"), inode(b"i"));
        assert_eq!(inode(b"h"), inode(b"j"));
        assert_eq!(
            inode(b"h"),
            merged.tree.lookup(inode(b"d"), b"f").unwrap().inode
        );
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
        assert!(error(vec![tar().folder("d/", 0o755).hard_link("a", "d")]).contains("is a folder"));
        assert!(
            error(vec![tar().hard_link("a", "../../etc/passwd")]).contains("leads out of the root")
        );
    }

    #[test]
    fn a_link_among_the_folders_is_followed_within_the_root() {
        let lower = tar()
            .folder("usr/", 0o755)
            .folder("usr/lib/", 0o755)
            .symlink("lib", "usr/lib")
            .symlink("up", "../../..");
        let upper = tar()
            .file("lib/x", b"")
            .file("up/y", b"")
            .symlink("abs", "/usr")
            .file("abs/z", b"");
        let all = paths(vec![lower, upper]).unwrap();
        let files: Vec<_> = all.iter().filter(|path| path.ends_with(" 0")).collect();
        assert_eq!(files, ["/usr/lib/x 0", "/usr/z 0", "/y 0"]);
        // A link to nothing: what it names is made, within the root.
        let dangling = tar().symlink("l", "../none/../made").file("l/x", b"");
        assert_eq!(
            paths(vec![dangling]).unwrap(),
            [
                "/l -> ../none/../made",
                "/made/ 755",
                "/made/x 0",
                "/none/ 755"
            ]
        );
        assert!(
            error(vec![
                tar().symlink("a", "b").symlink("b", "a").file("a/x", b"")
            ])
            .contains("too many symbolic links")
        );
        assert!(
            error(vec![tar().file("f", b"").file("f/x", b"")])
                .contains("'f' in its path is no folder")
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
            assert!(
                error(vec![tar().file(bad, b"")]).contains("leads out of the root"),
                "{bad}"
            );
        }
        assert!(
            error(vec![tar().pax(&[("path", &[b'x'; 256])]).file("f", b"")])
                .contains("longer than 255")
        );
        let deep = "d/".repeat(DEPTH_MAX);
        assert!(
            paths(vec![
                tar().pax(&[("path", deep.as_bytes())]).folder("d/", 0o755)
            ])
            .is_ok()
        );
        let deeper = "d/".repeat(DEPTH_MAX + 1);
        assert!(
            error(vec![
                tar()
                    .pax(&[("path", deeper.as_bytes())])
                    .folder("d/", 0o755)
            ])
            .contains("1024 folders")
        );
        let through = tar().pax(&[("path", deep.as_bytes())]).folder("d/", 0o755);
        let through = through
            .pax(&[("linkpath", deep.as_bytes())])
            .symlink("l", "x")
            .folder("l/more/", 0o755);
        assert!(error(vec![through]).contains("1024 folders"));
    }

    #[test]
    fn the_top_layer_says_what_a_folder_is_like() {
        let lower = tar()
            .pax(&[("SCHILY.xattr.user.a", b"1")])
            .folder("d/", 0o755);
        let both = merged(vec![lower, tar().folder("d/", 0o700).folder("./", 0o711)]).unwrap();
        let folder = both.tree.inode(both.tree.lookup(ROOT, b"d").unwrap().inode);
        assert_eq!(
            (folder.attributes.mode, folder.attributes.xattrs),
            (0o700, 0)
        );
        assert_eq!(both.tree.inode(ROOT).attributes.mode, 0o711);
    }

    #[test]
    fn a_layer_that_comes_twice_has_its_data_once() {
        let merged = merged(vec![
            tar().file("a", b"1"),
            tar().file("b", b"2"),
            tar().file("a", b"1"),
        ])
        .unwrap();
        assert_eq!(merged.layers.len(), 2);
    }

    #[test]
    fn a_shell_behind_links_is_found() {
        let mut sh = TarBuilder::header("usr/bin/dash", b'0', 0);
        sh[100..108].copy_from_slice(b"0000755\0");
        let shell = tar()
            .raw_header(sh)
            .symlink("bin", "usr/bin")
            .symlink("usr/bin/sh", "../bin/dash");
        assert!(is_executable(
            &merged(vec![shell]).unwrap().tree,
            b"/bin/sh"
        ));
        for none in [
            tar().file("bin/sh", b""),
            tar().symlink("bin/sh", "sh"),
            tar().folder("bin/sh/", 0o755),
            tar(),
        ] {
            assert!(!is_executable(
                &merged(vec![none]).unwrap().tree,
                b"/bin/sh"
            ));
        }
    }
}
