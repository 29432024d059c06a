//! The root file system: EROFS below, ext4 (or memory) above, an overlay of both; or a folder of the host or a disk as it
//! is.
//!
//! The overlay's options are those of docker's overlay2 (no index, no metacopy, so every kernel and every disk fits),
//! but for `redirect_dir`: a directory of the image can be renamed, as on any other file system.

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

use crate::attach;
use crate::console::{log, reason};
use crate::devices;
use crate::disk::{self, Disk};

const STAGE: &str = "/msb";
const LOWER: &str = "/msb/lower";
const UPPER: &str = "/msb/upper";
const MERGED: &str = "/msb/root";
/// What the guest has changed.
const CHANGES: &str = "/msb/upper/root";
/// The same while it is being made, so that a half-made one is never used.
const CHANGES_NEW: &str = "/msb/upper/root.new";
const WORK: &str = "/msb/upper/work";

/// Block size of the ext4 file system, in bytes.
pub(crate) const BLOCK_BYTES: u64 = 4096;

/// Bytes of names and of one value of the image's root's extended attributes.
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// A root that was entered.
pub(crate) struct Entered {
    /// Top of the file system that is written to.
    pub(crate) top: OwnedFd,
    /// Whether that is on a disk, which must be clean at the end.
    pub(crate) on_disk: bool,
    /// The share that the root is an entry of: it is mounted, and cannot be found by a path.
    pub(crate) share: Option<Share>,
}

/// A share that is mounted.
pub(crate) struct Share {
    /// The tag of the virtiofs device.
    pub(crate) tag: String,
    /// Its top.
    pub(crate) top: OwnedFd,
}

/// Mounts the root file system, and makes it the root.
pub(crate) fn enter(root: &Root) -> Result<Entered, String> {
    prepare_stage()?;
    let entered = match root {
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
    Ok(entered)
}

fn overlay(top: OwnedFd, on_disk: bool) -> Result<Entered, String> {
    prepare_changes()?;
    mount_overlay()?;
    Ok(Entered {
        top,
        on_disk,
        share: None,
    })
}

/// An entry of a share as the root. The share stays mounted in the first root: a second mount of its device would find a
/// connection that is in use, and others of its entries may be asked for.
fn mount_share(tag: &str, entry: &str) -> Result<Entered, String> {
    attach::check_entry(entry)?;
    devices::wait_for_share()?;
    mount(tag, UPPER, c"virtiofs", MountFlags::empty(), c"")
        .map_err(|error| failed("mount the share", tag, error))?;
    mount_bind(format!("{UPPER}/{entry}"), MERGED)
        .map_err(|error| failed("mount the entry", entry, error))?;
    let share = Share {
        tag: tag.to_owned(),
        top: open_top(UPPER)?,
    };
    Ok(Entered {
        top: open_top(MERGED)?,
        on_disk: false,
        share: Some(share),
    })
}

/// The file system of a disk as the root.
fn mount_whole(serial: &str, fstype: Option<&str>) -> Result<Entered, String> {
    let [disk] = disk::find([serial])?;
    attach::mount_disk(&disk, fstype, Path::new(MERGED), MountFlags::empty())?;
    Ok(Entered {
        top: open_top(MERGED)?,
        on_disk: true,
        share: None,
    })
}

fn mount_lower(disk: &Disk) -> Result<(), String> {
    mount_disk(disk, LOWER, c"erofs", MountFlags::RDONLY, c"")
}

/// Mounts the disk that is written to, and gives its top.
fn mount_upper(disk: &Disk) -> Result<OwnedFd, String> {
    // Nothing is to run behind the guest's back: inode tables need no zeroing, since the disk is sparse, and bitmaps are
    // read when they are needed. Freed blocks go back to the host.
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

/// Makes the file system in memory that is written to, and gives its top.
fn mount_memory(size_mib: u64) -> Result<OwnedFd, String> {
    let options = CString::new(format!("size={size_mib}m,mode=755"));
    let options = options.map_err(|_| "a path holds a NUL byte".to_owned())?;
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
        "lowerdir={LOWER},upperdir={CHANGES},workdir={WORK},redirect_dir=on,index=off,metacopy=off"
    ));
    let options = options.map_err(|_| "a path holds a NUL byte".to_owned())?;
    mount(
        c"overlay",
        MERGED,
        c"overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .map_err(|error| failed("mount", "overlay", error))
}

fn failed(verb: &str, what: &str, error: Errno) -> String {
    format!("cannot {verb} '{what}': {}", reason(error))
}

/// Makes the mount points: in the initramfs, or in memory when the first root cannot be written.
fn prepare_stage() -> Result<(), String> {
    let directory = Mode::from_raw_mode(0o755);
    let _ = mkdir(STAGE, directory);
    if let Err(error) = mkdir(LOWER, directory)
        && error != Errno::EXIST
    {
        mount(c"tmpfs", STAGE, c"tmpfs", MountFlags::empty(), c"size=64k")
            .map_err(|error| failed("mount", STAGE, error))?;
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

/// Grows the file system to its disk. One that does not grow is still a file system.
fn grow(top: &OwnedFd, disk: &Disk) {
    if let Err(error) = ext4_ioc_resize_fs(top, disk.bytes / BLOCK_BYTES) {
        log(&format!(
            "cannot grow the upper file system to {} bytes: {}",
            disk.bytes,
            reason(error)
        ));
    }
}

/// The first time: the top of the changes is what everybody sees of `/` itself, so it starts as the image's.
fn prepare_changes() -> Result<(), String> {
    make(WORK)?;
    if stat(CHANGES).is_ok() {
        return Ok(());
    }
    make(CHANGES_NEW)?;
    copy_attributes(LOWER, CHANGES_NEW)
        .map_err(|error| failed("copy the image's attributes to", CHANGES_NEW, error))?;
    rename(CHANGES_NEW, CHANGES).map_err(|error| failed("create", CHANGES, error))
}

fn copy_attributes(from: &str, to: &str) -> Result<(), Errno> {
    let stat = stat(from)?;
    chown(
        to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    chmod(to, Mode::from_raw_mode(stat.st_mode))?;
    copy_xattrs(from, to);
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds as i64,
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    utimensat(CWD, to, &times, AtFlags::empty())
}

/// Those of the overlay itself (`trusted.overlay.…`) mean something else on the upper side.
fn copy_xattrs(from: &str, to: &str) {
    let mut names = [0; 4096];
    let Ok(length) = llistxattr(from, &mut names) else {
        return;
    };
    for name in names[..length].split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let mut value = vec![0; XATTR_BYTES_MAX];
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
