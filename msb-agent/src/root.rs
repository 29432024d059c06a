//! The root file system: an overlayfs of EROFS (lower) and ext4 or tmpfs (upper); or a share of the
//! host, or a single disk.
//!
//! The options of overlayfs are those of docker's overlay2 (no index, no metacopy, so every kernel
//! and every disk fits), except for `redirect_dir`: a directory of the image can be renamed, as on
//! any other file system.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use msb_wire::boot::Root;
use rustix::fs::{AtFlags, CWD, Gid, Uid};
use rustix::fs::{
    Mode, OFlags, Timespec, Timestamps, XattrFlags, chmod, chown, ext4_ioc_resize_fs, lgetxattr,
    llistxattr, lsetxattr, mkdir, open, rename, stat, utimensat,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{chdir, chroot};

use crate::console::{log, reason};
use crate::devices;
use crate::disk::{self, Disk};
use crate::filesystem::{self, BLOCK_BYTES, MountedShare, check_entry};

const STAGING: &str = "/msb";
const LOWER: &str = "/msb/lower";
const UPPER: &str = "/msb/upper";
const MERGED: &str = "/msb/root";
/// Upper directory: changes of the guest. microsandbox has the same names on its disk.
const UPPERDIR: &str = "/msb/upper/upper";
/// Upper directory while it is being created, so that an incomplete one is never used.
const UPPERDIR_NEW: &str = "/msb/upper/upper.new";
/// Upper directory on disks of earlier releases.
const UPPERDIR_EARLIER: &str = "/msb/upper/root";
const WORKDIR: &str = "/msb/upper/work";

/// Maximum size in bytes of one extended attribute of the image's root.
const XATTR_VALUE_BYTES_MAX: usize = 64 * 1024;

/// The root file system after it was entered.
pub(crate) struct MountedRoot {
    /// Top directory of the writable file system.
    pub(crate) top: OwnedFd,
    /// Set if that file system is on a disk, which must be clean at the end.
    pub(crate) on_disk: bool,
    /// Share that contains the root as an entry. It is mounted but has no path.
    pub(crate) share: Option<MountedShare>,
}

/// Mounts the root file system and changes the root to it.
pub(crate) fn enter(root: &Root) -> Result<MountedRoot, String> {
    prepare_stage()?;
    let root = match root {
        Root::Overlay { lower, upper } => {
            let [lower, upper] = disk::find([lower, upper])?;
            mount_lower(&lower)?;
            overlay(mount_upper(&upper)?, true)?
        }
        Root::OverlayInMemory { lower, size_mib } => {
            let [lower] = disk::find([lower])?;
            mount_lower(&lower)?;
            overlay(mount_memory(*size_mib)?, false)?
        }
        Root::Share { tag, entry } => mount_share(tag, entry)?,
        Root::Disk { serial, fstype } => mount_whole(serial, fstype.as_deref())?,
    };
    become_root().map_err(|error| failed("enter", MERGED, error))?;
    Ok(root)
}

fn overlay(top: OwnedFd, on_disk: bool) -> Result<MountedRoot, String> {
    prepare_upperdir()?;
    mount_overlay()?;
    Ok(MountedRoot { top, on_disk, share: None })
}

/// Mounts an entry of a share as the root. The share stays mounted in the first root: a second
/// mount of its device would find its connection in use, and other entries may be needed.
fn mount_share(tag: &str, entry: &str) -> Result<MountedRoot, String> {
    check_entry(entry)?;
    devices::mount_share(tag, UPPER)
        .map_err(|why| format!("cannot mount the share '{tag}': {why}"))?;
    mount_bind(format!("{UPPER}/{entry}"), MERGED)
        .map_err(|error| failed("mount the entry", entry, error))?;
    let share = MountedShare { tag: tag.to_owned(), top: open_top(UPPER)? };
    Ok(MountedRoot { top: open_top(MERGED)?, on_disk: false, share: Some(share) })
}

/// Mounts the file system of a disk as the root.
fn mount_whole(serial: &str, fstype: Option<&str>) -> Result<MountedRoot, String> {
    let [disk] = disk::find([serial])?;
    filesystem::mount_disk(&disk, fstype, Path::new(MERGED), MountFlags::empty())?;
    Ok(MountedRoot { top: open_top(MERGED)?, on_disk: true, share: None })
}

fn mount_lower(disk: &Disk) -> Result<(), String> {
    mount_disk(disk, LOWER, c"erofs", MountFlags::RDONLY, c"")
}

/// Mounts the upper disk and returns its top directory.
fn mount_upper(disk: &Disk) -> Result<OwnedFd, String> {
    // No background work in the guest: inode tables need no zeroing because the disk is sparse, and
    // bitmaps are read on demand. Freed blocks are returned to the host.
    mount_disk(
        disk,
        UPPER,
        c"ext4",
        MountFlags::NOATIME,
        c"noinit_itable,no_prefetch_block_bitmaps,discard",
    )?;
    let top = open_top(UPPER)?;
    grow(&top, disk);
    Ok(top)
}

/// Mounts a tmpfs as the upper file system and returns its top directory.
fn mount_memory(size_mib: u64) -> Result<OwnedFd, String> {
    let options = CString::new(format!("size={size_mib}m,mode=755"));
    let options = options.map_err(|_| "a path contains a NUL byte".to_owned())?;
    let flags = MountFlags::NOATIME;
    mount(c"tmpfs", UPPER, c"tmpfs", flags, options.as_c_str())
        .map_err(|error| failed("mount", "tmpfs", error))?;
    open_top(UPPER)
}

fn open_top(path: &str) -> Result<OwnedFd, String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|error| failed("open", path, error))
}

fn mount_overlay() -> Result<(), String> {
    let options = CString::new(format!(
        "lowerdir={LOWER},upperdir={UPPERDIR},workdir={WORKDIR},redirect_dir=on,index=off,metacopy=off"
    ));
    let options = options.map_err(|_| "a path contains a NUL byte".to_owned())?;
    mount(c"overlay", MERGED, c"overlay", MountFlags::empty(), options.as_c_str())
        .map_err(|error| failed("mount", "overlay", error))
}

fn failed(verb: &str, what: &str, error: Errno) -> String {
    format!("cannot {verb} '{what}': {}", reason(error))
}

/// Creates the mount points: in the initramfs, or in a tmpfs if the first root is not writable.
fn prepare_stage() -> Result<(), String> {
    let directory = Mode::from_raw_mode(0o755);
    let _ = mkdir(STAGING, directory);
    if let Err(error) = mkdir(LOWER, directory)
        && error != Errno::EXIST
    {
        mount(c"tmpfs", STAGING, c"tmpfs", MountFlags::empty(), c"size=64k")
            .map_err(|error| failed("mount", STAGING, error))?;
        mkdir(LOWER, directory).map_err(|error| failed("create", LOWER, error))?;
    }
    for path in [UPPER, MERGED] {
        make(path)?;
    }
    Ok(())
}

fn make(path: &str) -> Result<(), String> {
    match mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(failed("create", path, error)),
    }
}

fn mount_disk(
    disk: &Disk,
    at: &str,
    kind: &std::ffi::CStr,
    flags: MountFlags,
    options: &std::ffi::CStr,
) -> Result<(), String> {
    let mounted = mount(&disk.node, at, kind, flags, options);
    mounted.map_err(|error| {
        failed(
            &format!("mount the {} disk", kind.to_string_lossy()),
            &disk.node.to_string_lossy(),
            error,
        )
    })
}

/// Grows the file system to the size of its disk. A failure is only logged: the file system works
/// without it.
fn grow(top: &OwnedFd, disk: &Disk) {
    if let Err(error) = ext4_ioc_resize_fs(top, disk.bytes / BLOCK_BYTES) {
        log(&format!(
            "cannot grow the upper file system to {} bytes: {}",
            disk.bytes,
            reason(error)
        ));
    }
}

/// Creates the upper directory on first use. Its attributes are those of `/` in the guest, so they
/// are copied from the image.
fn prepare_upperdir() -> Result<(), String> {
    make(WORKDIR)?;
    if stat(UPPERDIR).is_ok() {
        return Ok(());
    }
    if stat(UPPERDIR_EARLIER).is_ok() {
        return rename(UPPERDIR_EARLIER, UPPERDIR)
            .map_err(|error| failed("rename", UPPERDIR_EARLIER, error));
    }
    make(UPPERDIR_NEW)?;
    copy_attributes(LOWER, UPPERDIR_NEW)
        .map_err(|error| failed("copy the image's attributes to", UPPERDIR_NEW, error))?;
    rename(UPPERDIR_NEW, UPPERDIR).map_err(|error| failed("create", UPPERDIR, error))
}

fn copy_attributes(from: &str, to: &str) -> Result<(), Errno> {
    let stat = stat(from)?;
    chown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    chmod(to, Mode::from_raw_mode(stat.st_mode))?;
    copy_xattrs(from, to);
    let time =
        |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as i64 };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    utimensat(CWD, to, &times, AtFlags::empty())
}

/// Copies extended attributes, except those of overlayfs itself (`trusted.overlay.…`), which have
/// another meaning on the upper.
fn copy_xattrs(from: &str, to: &str) {
    let mut names = [0; 4096];
    let Ok(length) = llistxattr(from, &mut names) else {
        return;
    };
    for name in names[..length].split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let mut value = vec![0; XATTR_VALUE_BYTES_MAX];
        let copied = lgetxattr(from, name, &mut value[..])
            .and_then(|length| lsetxattr(to, name, &value[..length], XattrFlags::empty()));
        if let Err(error) = copied {
            let name = std::ffi::OsStr::from_bytes(name).to_string_lossy();
            log(&format!(
                "cannot copy the attribute '{name}' of the image's root: {}",
                reason(error)
            ));
        }
    }
}

fn become_root() -> Result<(), Errno> {
    chdir(MERGED)?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")
}
