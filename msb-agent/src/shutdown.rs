//! End of the VM.
//!
//! Always by a restart: libkrun does not end after a power-off, and QEMU runs with `-no-reboot`.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::sync;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::process::{chdir, fchdir};
use rustix::system::{RebootCommand, reboot};

use crate::console::{log, reason};
use crate::sys;

/// Makes the file systems of writable disks clean. Returns `false` if that failed for one of them,
/// so that its journal must be replayed.
pub(crate) fn flush_disks(disks: &[OwnedFd]) -> bool {
    sync();
    // Flush all of them, even if the first fails.
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
    // The kernel still has a file open for writing (a loop device, swap). The journal can be
    // flushed anyway, and nothing is written after that.
    match sys::freeze(top.as_fd()) {
        Ok(()) => true,
        Err(error) => {
            log(&format!("cannot flush a file system: {}", reason(error)));
            false
        }
    }
}

/// Remounts a file system read-only by its directory, since it has no path in the guest's root.
fn make_read_only(top: &OwnedFd) -> bool {
    let done = fchdir(top)
        .and_then(|()| mount_remount(".", MountFlags::RDONLY | MountFlags::NOATIME, c""));
    let _ = chdir("/");
    done.is_ok()
}

/// Unmounts the guest's own mounts, last first.
fn unmount_others() {
    let Ok(table) = fs::read_to_string("/proc/self/mounts") else {
        return;
    };
    let places: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    for place in places.iter().rev().filter(|place| **place != "/" && !place.starts_with("/proc")) {
        let _ = unmount(*place, UnmountFlags::NOFOLLOW);
    }
    sync();
}

/// Powers the VM off, as its own init asked for. If the engine does not end, the supervisor ends it
/// when it reads the kernel's message on the console.
pub(crate) fn power_off() -> ! {
    let error = reboot(RebootCommand::PowerOff);
    log(&format!("cannot power off: {error:?}"));
    end_vm()
}

/// Ends the VM.
pub(crate) fn end_vm() -> ! {
    let error = reboot(RebootCommand::Restart);
    log(&format!("cannot restart: {error:?}"));
    // The kernel panics when PID 1 exits, and restarts then (`panic=-1`).
    std::process::exit(1)
}
