//! Namespaces: user, network, IPC and UTS.

use std::fs;
use std::io;

use rustix::process::{getegid, geteuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::StepOutcome;

/// Leaves the host's network (with its loopback and abstract sockets), its System V IPC and its
/// host name, for new namespaces. In the new user namespace the process keeps its user ID, and no
/// other ID exists. Root loses the privileges that go beyond its own files. For single-threaded
/// processes.
pub fn unshare_network() -> StepOutcome {
    match leave() {
        Ok(()) => StepOutcome::Complete,
        Err(error) => StepOutcome::Failed(format!("cannot create a user namespace: {error}")),
    }
}

fn leave() -> io::Result<()> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let flags =
        UnshareFlags::NEWUSER | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: what may not be unshared behind the back of other threads is the table of descriptors
    // and the like (CLONE_FILES), which is not among the flags.
    unsafe { unshare_unsafe(flags)? };
    // Group IDs can only be mapped by a process that can no longer change them
    // (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}
