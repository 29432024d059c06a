//! The guest's kernel file systems.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::symlink;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Stat, Timespec, Timestamps, lstat, mkdir, utimensat,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::console::{log, reason};

const SECURE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// What goes where in the guest.
struct Place {
    kind: &'static CStr,
    at: &'static str,
    flags: MountFlags,
    data: &'static CStr,
    /// Whether the guest is unusable without it.
    needed: bool,
}

const ROOT_PLACES: [Place; 3] = [
    Place {
        kind: c"proc",
        at: "/proc",
        flags: SECURE,
        data: c"",
        needed: true,
    },
    Place {
        kind: c"sysfs",
        at: "/sys",
        flags: SECURE,
        data: c"",
        needed: true,
    },
    Place {
        kind: c"devtmpfs",
        at: "/dev",
        flags: MountFlags::NOSUID,
        data: c"mode=755",
        needed: true,
    },
];

const INNER_PLACES: [Place; 4] = [
    Place {
        kind: c"cgroup2",
        at: "/sys/fs/cgroup",
        flags: SECURE,
        data: c"",
        needed: false,
    },
    Place {
        kind: c"devpts",
        at: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: c"gid=5,mode=620,ptmxmode=666",
        needed: true,
    },
    Place {
        kind: c"tmpfs",
        at: "/dev/shm",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: c"mode=1777",
        needed: false,
    },
    Place {
        kind: c"mqueue",
        at: "/dev/mqueue",
        flags: SECURE,
        data: c"",
        needed: false,
    },
];

const DEVICE_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
];

/// Mounts what the agent itself needs to begin with: devices and sysfs.
pub(crate) fn early() {
    mount_early(c"devtmpfs", "/dev");
    mount_early(c"sysfs", "/sys");
}

/// Mounts `/proc`, for settings that are made before there is a root.
pub(crate) fn early_proc() {
    mount_early(c"proc", "/proc");
}

fn mount_early(kind: &CStr, at: &str) {
    let _ = mkdir(at, Mode::from_raw_mode(0o755));
    // Busy: the kernel has done it.
    if let Err(error) = mount(kind, at, kind, MountFlags::empty(), c"")
        && error != Errno::BUSY
    {
        log(&format!("cannot mount '{at}': {}", reason(error)));
    }
}

/// Mounts everything in the guest's root, which is ours by now.
pub(crate) fn guest() -> Result<(), String> {
    let root = lstat("/").map_err(|error| format!("cannot read '/': {}", reason(error)))?;
    let mut created = false;
    for place in &ROOT_PLACES {
        created |= ensure_directory(place.at)?;
    }
    if created {
        restore_times("/", &root);
    }
    for place in ROOT_PLACES.iter().chain(&INNER_PLACES) {
        mount_place(place)?;
    }
    for (target, link) in DEVICE_LINKS {
        let _ = symlink(target, link);
    }
    Ok(())
}

/// The image decides what lies there, and a mount on a symbolic link would end up at its target.
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

fn mount_place(place: &Place) -> Result<(), String> {
    let Place {
        kind,
        at,
        flags,
        data,
        needed,
    } = place;
    if at.starts_with("/dev/") {
        let _ = fs::create_dir(at);
    }
    match mount(*kind, *at, *kind, *flags, *data) {
        Ok(()) => Ok(()),
        Err(error) if *needed => Err(format!("cannot mount '{at}': {}", reason(error))),
        // A kernel without it is a smaller guest, not a broken one.
        Err(error) => {
            log(&format!("cannot mount '{at}': {}", reason(error)));
            Ok(())
        }
    }
}

/// Gives a directory the times back that it had before something was put into it.
pub(crate) fn restore_times(path: &str, before: &Stat) {
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds as i64,
    };
    let times = Timestamps {
        last_access: time(before.st_atime, before.st_atime_nsec),
        last_modification: time(before.st_mtime, before.st_mtime_nsec),
    };
    let _ = utimensat(CWD, path, &times, AtFlags::empty());
}
