//! `msb-vmm --share`: folders and files of the host, served to a guest of QEMU over vhost-user.
//!
//! The file system is libkrun's own, so that it is the same whatever runs the machine; what is added here is the other way
//! to the guest, and the walls. libkrun's server opens names as they come: the kernel of the guest sends plain ones, but
//! a guest's root can put any into the queue, `../../etc/passwd` among them. So the process has no file system but what is
//! shared, before the first request is read:
//!
//! 1. [`ids`]: a user namespace. The user is root in it and nobody outside; the guest's other users are the host's
//!    subordinate ones.
//! 2. [`stage`]: a mount namespace whose root holds the shared folders and nothing else. Each is a mount of its own:
//!    read-only, if it is to be, by the host's kernel; without setuid, without devices, and without following links.
//! 3. [`isolate`]: the capabilities that files need and no other, no new privileges, and no system call that a file
//!    server does not make; none can set the setuid or setgid bit, whose file would be a program of the user on the host.
//! 4. [`server`]: requests.

mod ids;
mod isolate;
mod server;
mod stage;

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::ensure;
use libmsb::machine::SharePlan;

use crate::{ensure_version, lifeline};

/// Serves until the machine hangs up.
pub(crate) fn serve(plan: &SharePlan) -> anyhow::Result<()> {
    ensure_version(plan.version)?;
    ensure!(
        plan.share.fd > 2,
        "the socket cannot be descriptor {}",
        plan.share.fd
    );
    lifeline::tie(plan.life_fd)?;
    // SAFETY: the descriptor was inherited for this, nothing else in this process has or closes it, and it is taken once.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(plan.share.fd) });
    ids::enter_user_namespace()?;
    stage::enter(&plan.share.entries)?;
    isolate::before_requests()?;
    server::serve(socket, &plan.share.tag)
}
