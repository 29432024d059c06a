//! Kernel file systems of the guest.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::symlink;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Stat, Timespec, Timestamps, lstat, mkdir, utimensat,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::console::{log, reason};

const SECURE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// A kernel file system and its mount point.
struct KernelMount {
    kind: &'static CStr,
    at: &'static str,
    flags: MountFlags,
    data: &'static CStr,
    /// Set if the guest is unusable without it.
    needed: bool,
}

const ROOT_MOUNTS: [KernelMount; 3] = [
    KernelMount { kind: c"proc", at: "/proc", flags: SECURE, data: c"", needed: true },
    KernelMount { kind: c"sysfs", at: "/sys", flags: SECURE, data: c"", needed: true },
    KernelMount {
        kind: c"devtmpfs",
        at: "/dev",
        flags: MountFlags::NOSUID,
        data: c"mode=755",
        needed: true,
    },
];

const INNER_MOUNTS: [KernelMount; 4] = [
    KernelMount { kind: c"cgroup2", at: "/sys/fs/cgroup", flags: SECURE, data: c"", needed: false },
    KernelMount {
        kind: c"devpts",
        at: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: c"gid=5,mode=620,ptmxmode=666",
        needed: true,
    },
    KernelMount {
        kind: c"tmpfs",
        at: "/dev/shm",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: c"mode=1777",
        needed: false,
    },
    KernelMount { kind: c"mqueue", at: "/dev/mqueue", flags: SECURE, data: c"", needed: false },
];

const DEVICE_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
];

/// Mounts the file systems that the agent needs first: devtmpfs and sysfs.
pub(crate) fn early() {
    mount_early(c"devtmpfs", "/dev");
    mount_early(c"sysfs", "/sys");
}

/// Mounts `/proc`, for settings that are made before the root is mounted.
pub(crate) fn early_proc() {
    mount_early(c"proc", "/proc");
}

fn mount_early(kind: &CStr, at: &str) {
    let _ = mkdir(at, Mode::from_raw_mode(0o755));
    // EBUSY: the kernel has mounted it already.
    if let Err(error) = mount(kind, at, kind, MountFlags::empty(), c"")
        && error != Errno::BUSY
    {
        log(&format!("cannot mount '{at}': {}", reason(error)));
    }
}

/// Mounts the kernel file systems in the guest's root, which is already entered.
pub(crate) fn mount_all() -> Result<(), String> {
    let root = lstat("/").map_err(|error| format!("cannot read '/': {}", reason(error)))?;
    let mut created = false;
    for entry in &ROOT_MOUNTS {
        created |= ensure_directory(entry.at)?;
    }
    if created {
        restore_times("/", &root);
    }
    for entry in ROOT_MOUNTS.iter().chain(&INNER_MOUNTS) {
        mount_one(entry)?;
    }
    for (target, link) in DEVICE_LINKS {
        let _ = symlink(target, link);
    }
    Ok(())
}

/// Creates a directory unless it exists. A symbolic link is an error: the image controls it, and
/// the mount would go to its target.
fn ensure_directory(at: &str) -> Result<bool, String> {
    match lstat(at) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Ok(false),
        Ok(_) => Err(format!("'{at}' of the image is not a directory")),
        Err(Errno::NOENT) => {
            mkdir(at, Mode::from_raw_mode(0o755))
                .map_err(|error| format!("cannot create '{at}': {}", reason(error)))?;
            Ok(true)
        }
        Err(error) => Err(format!("cannot read '{at}': {}", reason(error))),
    }
}

fn mount_one(entry: &KernelMount) -> Result<(), String> {
    let KernelMount { kind, at, flags, data, needed } = entry;
    if at.starts_with("/dev/") {
        let _ = fs::create_dir(at);
    }
    match mount(*kind, *at, *kind, *flags, *data) {
        Ok(()) => Ok(()),
        Err(error) if *needed => Err(format!("cannot mount '{at}': {}", reason(error))),
        // A kernel without this file system gives a smaller guest, not a broken one.
        Err(error) => {
            log(&format!("cannot mount '{at}': {}", reason(error)));
            Ok(())
        }
    }
}

/// Restores the times that a directory had before an entry was created in it.
pub(crate) fn restore_times(path: &str, before: &Stat) {
    let time =
        |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as i64 };
    let times = Timestamps {
        last_access: time(before.st_atime, before.st_atime_nsec),
        last_modification: time(before.st_mtime, before.st_mtime_nsec),
    };
    let _ = utimensat(CWD, path, &times, AtFlags::empty());
}
