//! A mount namespace whose root holds the shared directories, the files that a VMM process needs,
//! and nothing else.
//!
//! Sources are opened without following symbolic links, and must be the same files as when the
//! sandbox was started. Mounts below a source are included. The root is a read-only tmpfs.

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

/// The directory of the namespace that the guest sees as the share.
pub(crate) const SHARE: &str = "/msb-share";

/// Temporary mount point of the root. It exists on every host, and what it hides was opened before.
const TEMPORARY_MOUNT_POINT: &str = "/proc";

/// Attributes of a mount (mount_setattr(2)).
const MOUNT_ATTR_RDONLY: u64 = 0x01;
const MOUNT_ATTR_NOSUID: u64 = 0x02;
const MOUNT_ATTR_NODEV: u64 = 0x04;
const MOUNT_ATTR_NOEXEC: u64 = 0x08;
const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

/// A file of the host that stays visible at its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostFile {
    /// The absolute path.
    pub(crate) path: PathBuf,
    /// The permitted access.
    pub(crate) access: HostFileAccess,
}

/// The permitted access to a host file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostFileAccess {
    Read,
    Write,
    /// Access to a device.
    Device,
}

/// Enters a root that contains only the shared entries and the kept files.
pub(super) fn enter(entries: &[ShareEntry], kept: &[HostFile]) -> anyhow::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot make the mounts private")?;
    let trees: Vec<OwnedFd> = entries
        .iter()
        .map(|entry| {
            tree(entry).with_context(|| format!("cannot share '{}'", entry.path.display()))
        })
        .collect::<anyhow::Result<_>>()?;
    let files: Vec<(PathBuf, OwnedFd)> = kept
        .iter()
        .map(|kept| kept.tree().with_context(|| format!("cannot keep '{}'", kept.path.display())))
        .collect::<anyhow::Result<_>>()?;
    // The file server reopens its descriptors by number.
    let own_files = clone_tree(CWD, format!("/proc/{}/fd", getpid().as_raw_nonzero()))
        .context("cannot clone the mount of this process's descriptors")?;
    let root = make_root().context("cannot create a tmpfs root")?;
    attach_mount(&root, Path::new("proc/self/fd"), &own_files, false)?;
    // The file server also opens this file, for file handles, which it does not use here. The real
    // one shows paths of the host.
    make_file(&root, Path::new("proc/self/mountinfo")).context("cannot create an empty file")?;
    for (path, tree) in &files {
        attach_host_file(&root, path, tree)?;
    }
    for (entry, tree) in entries.iter().zip(&trees) {
        let plain = !entry.name.is_empty() && !entry.name.contains(['/', '.']);
        ensure!(plain, "invalid name of a share entry: '{}'", entry.name);
        attach_mount(&root, &relative_to_root(SHARE).join(&entry.name), tree, entry.file)?;
    }
    change_root(&root).context("cannot change the root")
}

/// Returns a source as a detached mount.
fn tree(entry: &ShareEntry) -> anyhow::Result<OwnedFd> {
    let source = openat2(
        CWD,
        &entry.path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
    .context("cannot open it")?;
    let stat = fstat(&source).context("cannot stat it")?;
    ensure!(
        (stat.st_dev, stat.st_ino) == (entry.device, entry.inode),
        "it was replaced while the sandbox started"
    );
    let tree = clone_tree(&source, "").context("cannot mount it")?;
    let access = if entry.read_only { MOUNT_ATTR_RDONLY } else { 0 };
    set_mount_attr(
        &tree,
        access | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSYMFOLLOW,
        true,
    )
    .context("cannot set_mount_attr its mount")?;
    Ok(tree)
}

impl HostFile {
    /// Returns the path relative to the root, and a detached mount of the file.
    fn tree(&self) -> anyhow::Result<(PathBuf, OwnedFd)> {
        let tree = clone_tree(CWD, &self.path)?;
        let access = match self.access {
            HostFileAccess::Read => MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV,
            HostFileAccess::Write => MOUNT_ATTR_NODEV,
            // A device can be opened for writing all the same; its owner and mode stay.
            HostFileAccess::Device => MOUNT_ATTR_RDONLY,
        };
        set_mount_attr(
            &tree,
            access | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSYMFOLLOW,
            true,
        )?;
        Ok((relative_to_root(&self.path), tree))
    }
}

/// Returns a path relative to the root. `..` is resolved lexically: no other process can have made
/// a symbolic link on the path.
fn relative_to_root(path: impl AsRef<Path>) -> PathBuf {
    let mut relative_to_root = PathBuf::new();
    for component in path.as_ref().components() {
        match component {
            Component::Normal(name) => relative_to_root.push(name),
            Component::ParentDir => drop(relative_to_root.pop()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    relative_to_root
}

fn attach_host_file(root: &OwnedFd, at: &Path, tree: &OwnedFd) -> anyhow::Result<()> {
    let mut directories: Vec<&Path> = at.ancestors().skip(1).collect();
    // The last is empty: the root itself.
    directories.pop();
    for directory in directories.iter().rev() {
        match mkdirat(root, *directory, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot create '/{}'", directory.display()));
            }
        }
    }
    attach_mount(root, at, tree, true)
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
    // Only directories and empty files.
    fsconfig_set_string(memory.as_fd(), "size", "256k")?;
    fsconfig_create(memory.as_fd())?;
    let mount = fsmount(memory.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(&mount, "", CWD, TEMPORARY_MOUNT_POINT, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    for directory in [Path::new("proc"), Path::new("proc/self"), &relative_to_root(SHARE)] {
        mkdirat(&mount, directory, Mode::from_raw_mode(0o755))?;
    }
    Ok(mount)
}

fn attach_mount(root: &OwnedFd, at: &Path, tree: &OwnedFd, file: bool) -> anyhow::Result<()> {
    let made =
        if file { make_file(root, at) } else { mkdirat(root, at, Mode::from_raw_mode(0o755)) };
    made.and_then(|()| move_mount(tree, "", root, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
        .with_context(|| format!("cannot mount '/{}'", at.display()))
}

fn make_file(root: &OwnedFd, at: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(root, at, flags, Mode::from_raw_mode(0o444)).map(drop)
}

/// Changes the root as in pivot_root(2), without a directory for the old root.
fn change_root(root: &OwnedFd) -> anyhow::Result<()> {
    fchdir(root)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    set_mount_attr(
        root,
        MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
        false,
    )?;
    // Checks that the visible root is the new one.
    ensure!(
        Path::new(SHARE).is_dir() && !Path::new("/etc").exists(),
        "the root is not the new one"
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

fn set_mount_attr(mount: &OwnedFd, set: u64, recursive: bool) -> io::Result<()> {
    const EMPTY: &CStr = c"";
    let attr = MountAttr { set, clear: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open, the path is a string, and the structure has the size that is
    // said; all outlive the call, which writes to none of them.
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
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_below_the_root_whatever_it_says() {
        let is =
            |path: &str, expected: &str| assert_eq!(relative_to_root(path), Path::new(expected));
        is("/a/b", "a/b");
        is("/a/./b/../c", "a/c");
        is("/../../x", "x");
        is("/", "");
    }
}
