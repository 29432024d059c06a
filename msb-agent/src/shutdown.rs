//! The end of the machine.
//!
//! Always by a restart: libkrun never ends after a power-off, and QEMU is told not to start again (`-no-reboot`).

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::sync;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::process::{chdir, fchdir};
use rustix::system::{RebootCommand, reboot};

use crate::console::{log, reason};
use crate::sys;

/// Makes the file systems of disks that are written to clean. `false` when it could not be done for all, and a journal
/// will have to be replayed.
pub(crate) fn flush_disks(disks: &[OwnedFd]) -> bool {
    sync();
    // All of them, whatever becomes of the first.
    let cleaned: Vec<bool> = disks.iter().map(flush_disk).collect();
    cleaned.into_iter().all(|clean| clean)
}

fn flush_disk(top: &OwnedFd) -> bool {
    if make_read_only(top) {
        return true;
    }
    unmount_others();
    if make_read_only(top) {
        return true;
    }
    // Something in the kernel still holds a file open for writing (a loop device, swap). The journal can be flushed
    // all the same, and nothing is written after that.
    match sys::freeze(top.as_fd()) {
        Ok(()) => true,
        Err(error) => {
            log(&format!("cannot flush a file system: {}", reason(error)));
            false
        }
    }
}

/// By its directory, since the file system has no path in the guest's root.
fn make_read_only(top: &OwnedFd) -> bool {
    let done = fchdir(top)
        .and_then(|()| mount_remount(".", MountFlags::RDONLY | MountFlags::NOATIME, c""));
    let _ = chdir("/");
    done.is_ok()
}

/// Lets go of what the guest mounted itself, last first.
fn unmount_others() {
    let Ok(table) = fs::read_to_string("/proc/self/mounts") else {
        return;
    };
    let places: Vec<&str> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    for place in places
        .iter()
        .rev()
        .filter(|place| **place != "/" && !place.starts_with("/proc"))
    {
        let _ = unmount(*place, UnmountFlags::NOFOLLOW);
    }
    sync();
}

/// Ends the machine as its own init wanted it. An engine that does not end for that is ended by the supervisor, who reads
/// it on the console.
pub(crate) fn power_off() -> ! {
    let error = reboot(RebootCommand::PowerOff);
    log(&format!("cannot power off: {error:?}"));
    end()
}

/// Ends the machine.
pub(crate) fn end() -> ! {
    let error = reboot(RebootCommand::Restart);
    log(&format!("cannot restart: {error:?}"));
    // The kernel panics when its first process ends, and restarts for that (`panic=-1`).
    std::process::exit(1)
}
