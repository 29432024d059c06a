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

/// Makes the written-to file system clean. `false` when it could not be done, and the journal will have to be replayed.
pub(crate) fn flush_disks(upper: &OwnedFd) -> bool {
    sync();
    if make_read_only(upper) {
        return true;
    }
    unmount_others();
    if make_read_only(upper) {
        return true;
    }
    // Something in the kernel still holds a file open for writing (a loop device, swap). The journal can be flushed
    // all the same, and nothing is written after that.
    match sys::freeze(upper.as_fd()) {
        Ok(()) => true,
        Err(error) => {
            log(&format!(
                "cannot flush the upper file system: {}",
                reason(error)
            ));
            false
        }
    }
}

/// By its directory, since the file system has no path in the guest's root.
fn make_read_only(upper: &OwnedFd) -> bool {
    let done = fchdir(upper)
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
