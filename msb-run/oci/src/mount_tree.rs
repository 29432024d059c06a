//! The mounts that `init` sees: the root of the container and what is mounted in it.
//!
//! Engines join the mount namespace of `init` to copy files. A path that is resolved there must
//! never lead to a file of the host, so the namespace has no other mount than these. Names in the
//! root are untrusted: each is resolved within the root, by descriptor.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    unmount,
};

use crate::bundle::{BindMount, Container};

/// Enters the root of a container. The mount namespace must be that of this process alone.
pub(crate) fn enter(container: &Container) -> anyhow::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot make mounts private")?;
    mount_bind_recursive(&container.root, &container.root).context("cannot mount the root")?;
    rustix::process::chdir(&container.root).context("cannot enter the root")?;
    let root = open_path(CWD, Path::new("."))?;
    for bind in &container.binds {
        mount_bind(root.as_fd(), bind)
            .with_context(|| format!("cannot mount '{}'", bind.target.display()))?;
    }
    mount_proc(root.as_fd());
    // The old root is stacked on the new one, and then removed from there.
    rustix::process::pivot_root(".", ".").context("cannot change the root")?;
    unmount(".", UnmountFlags::DETACH).context("cannot remove the root of the host")?;
    rustix::process::chdir("/").context("cannot enter the root")
}

fn open_path(dir: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(dir, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a path as the container would resolve it.
fn resolve(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn mount_bind(root: BorrowedFd<'_>, bind: &BindMount) -> anyhow::Result<()> {
    let is_dir = bind.source.is_dir();
    let target = resolve_or_create(root, &bind.target, is_dir)?;
    mount_bind_recursive(&bind.source, descriptor_path(&target))?;
    if bind.readonly {
        set_readonly(resolve(root, &bind.target)?.as_fd()).context("cannot make it read-only")?;
    }
    Ok(())
}

fn descriptor_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens a mount point. Creates it and its parents if they are missing, as runc does.
fn resolve_or_create(root: BorrowedFd<'_>, path: &Path, is_dir: bool) -> anyhow::Result<OwnedFd> {
    match resolve(root, path) {
        Err(rustix::io::Errno::NOENT) => {}
        opened => return Ok(opened?),
    }
    let parent = path.parent().context("the root cannot be missing")?;
    let name = path.file_name().context("the path has no name")?;
    let parent = resolve_or_create(root, parent, true)?;
    if is_dir {
        mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&parent, name, flags | OFlags::NOFOLLOW, Mode::from_raw_mode(0o644))?;
    }
    Ok(resolve(root, path)?)
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Makes a mount and those below read-only. Unlike a remount this keeps flags that an outer user
/// namespace has locked.
fn set_readonly(target: BorrowedFd<'_>) -> io::Result<()> {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, userns: 0 };
    // SAFETY: the path is a constant C string, and the structure lives during the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            target.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Mounts /proc of the process namespace. Without it (a user namespace may lack the right) the
/// engine finds no process in the container, and none of the host.
fn mount_proc(root: BorrowedFd<'_>) {
    if let Ok(target) = resolve(root, Path::new("proc")) {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let _ = mount("proc", descriptor_path(&target), "proc", flags, None);
    }
}

/// Checks that a command exists, in the words that engines search for. The process must be in the
/// root of the container.
pub(crate) fn check_command(container: &Container) -> anyhow::Result<()> {
    let process = &container.process;
    let Some(name) = process.args.first() else { return Ok(()) };
    if name.contains('/') {
        let path = process.cwd.join(name);
        return match rustix::fs::access(&path, rustix::fs::Access::EXEC_OK) {
            Err(rustix::io::Errno::NOENT) => {
                Err(anyhow::anyhow!("exec: '{name}': no such file or directory"))
            }
            Err(rustix::io::Errno::ACCESS) => {
                Err(anyhow::anyhow!("exec: '{name}': permission denied"))
            }
            _ => Ok(()),
        };
    }
    let path = process.env.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
    let path = path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let found = path.split(':').any(|dir| {
        let file = process.cwd.join(dir).join(name);
        file.is_file() && is_executable(&file)
    });
    anyhow::ensure!(found, "exec: '{name}': executable file not found in $PATH");
    Ok(())
}

fn is_executable(path: &Path) -> bool {
    CString::new(path.as_os_str().as_bytes())
        .is_ok_and(|path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok())
}
