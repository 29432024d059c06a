//! Namespaces of one's own.

use std::fs;
use std::io;

use rustix::process::{getegid, geteuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::Taken;

/// Leaves the host's network (its loopback and its abstract sockets too), its shared memory and its host name, in a user
/// namespace where this process is who it was and nobody else exists. Of root's rights those end that reach beyond its own
/// files. For a process of one thread.
pub fn leave_network() -> Taken {
    match leave() {
        Ok(()) => Taken::Whole,
        Err(error) => Taken::Not(format!("this host has no user namespaces for it: {error}")),
    }
}

fn leave() -> io::Result<()> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let flags =
        UnshareFlags::NEWUSER | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: what may not be unshared behind the back of other threads is the table of descriptors and the like
    // (CLONE_FILES), which is not among the flags.
    unsafe { unshare_unsafe(flags)? };
    // Groups can only be mapped by whoever cannot change them any more (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}
