//! A mount namespace whose root holds what is shared, what a machine needs besides, and nothing else.
//!
//! Sources are opened without following a symbolic link, and must be what they were when the sandbox was started. What is
//! mounted below one comes along. The root is memory, and cannot be written to.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, ensure};
use libmsb::machine::ShareEntry;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, fchdir, getpid, pivot_root};

/// The folder of the namespace that the guest sees as the share.
pub(crate) const SHARE: &str = "/msb-share";

/// Where the root is mounted for a moment. It is there on every host, and what it hides was opened before.
const PLACE: &str = "/proc";

/// What a mount is not to do (mount_setattr(2)).
const RDONLY: u64 = 0x01;
const NOSUID: u64 = 0x02;
const NODEV: u64 = 0x04;
const NOEXEC: u64 = 0x08;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// A file of the host that keeps its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Its path, absolute.
    pub(crate) path: PathBuf,
    /// What may be done with it.
    pub(crate) access: KeptAccess,
}

/// What may be done with a file that keeps its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeptAccess {
    Read,
    Write,
    /// It is a device, and is used as one.
    Device,
}

/// Leaves the host's file systems, for one of what is shared and what is kept.
pub(super) fn enter(entries: &[ShareEntry], kept: &[Kept]) -> anyhow::Result<()> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context("cannot make the mounts private")?;
    let trees: Vec<OwnedFd> = entries
        .iter()
        .map(|entry| {
            tree(entry).with_context(|| format!("cannot share '{}'", entry.path.display()))
        })
        .collect::<anyhow::Result<_>>()?;
    let files: Vec<(PathBuf, OwnedFd)> = kept
        .iter()
        .map(|kept| {
            kept.tree()
                .with_context(|| format!("cannot keep '{}'", kept.path.display()))
        })
        .collect::<anyhow::Result<_>>()?;
    // The file server reopens its descriptors by their numbers.
    let own_files = clone_tree(CWD, format!("/proc/{}/fd", getpid().as_raw_nonzero()))
        .context("cannot share this process's descriptors with itself")?;
    let root = make_root().context("cannot make a root in memory")?;
    place(&root, Path::new("proc/self/fd"), &own_files, false)?;
    // It opens this as well, for references by handles, which it does not make here. The real one names paths of the host.
    make_file(&root, Path::new("proc/self/mountinfo")).context("cannot make an empty file")?;
    for (path, tree) in &files {
        place_kept(&root, path, tree)?;
    }
    for (entry, tree) in entries.iter().zip(&trees) {
        let plain = !entry.name.is_empty() && !entry.name.contains(['/', '.']);
        ensure!(plain, "'{}' is no plain name", entry.name);
        place(&root, &below(SHARE).join(&entry.name), tree, entry.file)?;
    }
    change_root(&root).context("cannot change the root")
}

/// A source as a mount that is not yet anywhere.
fn tree(entry: &ShareEntry) -> anyhow::Result<OwnedFd> {
    let source = openat2(
        CWD,
        &entry.path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
    .context("cannot open it")?;
    let stat = fstat(&source).context("cannot look at it")?;
    ensure!(
        (stat.st_dev, stat.st_ino) == (entry.device, entry.inode),
        "it was replaced while the sandbox started"
    );
    let tree = clone_tree(&source, "").context("cannot mount it")?;
    let access = if entry.read_only { RDONLY } else { 0 };
    restrict(&tree, access | NOSUID | NODEV | NOSYMFOLLOW, true)
        .context("cannot restrict its mount")?;
    Ok(tree)
}

impl Kept {
    /// Where it is to be, below the root, and itself as a mount that is not yet anywhere.
    fn tree(&self) -> anyhow::Result<(PathBuf, OwnedFd)> {
        let tree = clone_tree(CWD, &self.path)?;
        let access = match self.access {
            KeptAccess::Read => RDONLY | NODEV,
            KeptAccess::Write => NODEV,
            // It can be opened for writing all the same; its owner and mode stay.
            KeptAccess::Device => RDONLY,
        };
        restrict(&tree, access | NOSUID | NOEXEC | NOSYMFOLLOW, true)?;
        Ok((below(&self.path), tree))
    }
}

/// A path from the root on, with its way up gone by its words alone: there is nobody here but us who could have made a
/// symbolic link of what lies on the way.
fn below(path: impl AsRef<Path>) -> PathBuf {
    let mut below = PathBuf::new();
    for component in path.as_ref().components() {
        match component {
            Component::Normal(name) => below.push(name),
            Component::ParentDir => drop(below.pop()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    below
}

fn place_kept(root: &OwnedFd, at: &Path, tree: &OwnedFd) -> anyhow::Result<()> {
    let mut folders: Vec<&Path> = at.ancestors().skip(1).collect();
    // The last is empty: the root itself.
    folders.pop();
    for folder in folders.iter().rev() {
        match mkdirat(root, *folder, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot make '/{}'", folder.display()));
            }
        }
    }
    place(root, at, tree, true)
}

fn clone_tree(from: impl AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(from, path, flags)?)
}

fn make_root() -> anyhow::Result<OwnedFd> {
    let memory = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(memory.as_fd(), "mode", "755")?;
    // Folders and empty files only.
    fsconfig_set_string(memory.as_fd(), "size", "256k")?;
    fsconfig_create(memory.as_fd())?;
    let mount = fsmount(
        memory.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    move_mount(
        &mount,
        "",
        CWD,
        PLACE,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    for folder in [Path::new("proc"), Path::new("proc/self"), &below(SHARE)] {
        mkdirat(&mount, folder, Mode::from_raw_mode(0o755))?;
    }
    Ok(mount)
}

fn place(root: &OwnedFd, at: &Path, tree: &OwnedFd, file: bool) -> anyhow::Result<()> {
    let made = if file {
        make_file(root, at)
    } else {
        mkdirat(root, at, Mode::from_raw_mode(0o755))
    };
    made.and_then(|()| move_mount(tree, "", root, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
        .with_context(|| format!("cannot place '/{}'", at.display()))
}

fn make_file(root: &OwnedFd, at: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(root, at, flags, Mode::from_raw_mode(0o444)).map(drop)
}

/// By the way of pivot_root(2) that needs no folder for the old root.
fn change_root(root: &OwnedFd) -> anyhow::Result<()> {
    fchdir(root)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    restrict(root, RDONLY | NOSUID | NODEV | NOEXEC, false)?;
    // What can be seen of the root is its own.
    ensure!(
        Path::new(SHARE).is_dir() && !Path::new("/etc").exists(),
        "the root is not the one that was made"
    );
    Ok(())
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

fn restrict(mount: &OwnedFd, set: u64, recursive: bool) -> io::Result<()> {
    const EMPTY: &CStr = c"";
    let attr = MountAttr {
        set,
        clear: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open, the path is a string, and the structure has the size that is said; all outlive the
    // call, which writes to none of them.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_below_the_root_whatever_it_says() {
        let is = |path: &str, expected: &str| assert_eq!(below(path), Path::new(expected));
        is("/a/b", "a/b");
        is("/a/./b/../c", "a/c");
        is("/../../x", "x");
        is("/", "");
    }
}
