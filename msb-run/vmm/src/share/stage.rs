//! A mount namespace whose root holds what is shared and nothing else.
//!
//! Sources are opened without following a symbolic link, and must be what they were when the sandbox was started. What is
//! mounted below one comes along. The root is memory, and cannot be written to.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, ensure};
use libmsb::machine::ShareEntry;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, fchdir, getpid, pivot_root};

/// The folder of the namespace that the guest sees as the share.
pub(super) const SHARE: &str = "/share";

/// Where the root is mounted for a moment. It is there on every host, and what it hides was opened before.
const PLACE: &str = "/proc";

/// What a mount is not to do (mount_setattr(2)).
const RDONLY: u64 = 0x01;
const NOSUID: u64 = 0x02;
const NODEV: u64 = 0x04;
const NOEXEC: u64 = 0x08;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// Leaves the host's file systems, for one of what is shared.
pub(super) fn enter(entries: &[ShareEntry]) -> anyhow::Result<()> {
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
    // The file server reopens its descriptors by their numbers.
    let own_files = clone_tree(CWD, &format!("/proc/{}/fd", getpid().as_raw_nonzero()))
        .context("cannot share this process's descriptors with itself")?;
    let root = make_root().context("cannot make a root in memory")?;
    place(&root, "proc/self/fd", &own_files, false)?;
    for (entry, tree) in entries.iter().zip(&trees) {
        let plain = !entry.name.is_empty() && !entry.name.contains(['/', '.']);
        ensure!(plain, "'{}' is no plain name", entry.name);
        place(&root, &format!("share/{}", entry.name), tree, entry.file)?;
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

fn clone_tree(from: impl AsFd, path: &str) -> io::Result<OwnedFd> {
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
    fsconfig_set_string(memory.as_fd(), "size", "64k")?;
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
    for folder in ["proc", "proc/self", "share"] {
        mkdirat(&mount, folder, Mode::from_raw_mode(0o755))?;
    }
    Ok(mount)
}

fn place(root: &OwnedFd, at: &str, tree: &OwnedFd, file: bool) -> anyhow::Result<()> {
    let made = if file {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(root, at, flags, Mode::from_raw_mode(0o444)).map(drop)
    } else {
        mkdirat(root, at, Mode::from_raw_mode(0o755))
    };
    made.and_then(|()| move_mount(tree, "", root, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
        .with_context(|| format!("cannot place '{at}'"))
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
