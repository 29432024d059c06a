//! The share server: host directories and files, served to a guest of QEMU over vhost-user by
//! `msb-vmm --share`, and to a guest of libkrun by the VMM process itself.
//!
//! The server is the same for both engines: fuse-backend-rs, with cache timeouts that keep host and
//! guests consistent, in [`files`], and the queues, in [`queue`]. Only the descriptions of the
//! queues differ: [`vhost_user`], and `krun::share`.
//!
//! A guest's root can put any request into the queue. Names with a slash, `.` and `..` are refused.
//! In case that check fails, the process has no other files than the shared ones before the first
//! request is read. A VMM process of libkrun also has the disks, each at its path, and `/dev/kvm`.
//! The steps are:
//!
//! 1. A user namespace, in [`user_namespace`]. The user is root in it and has no rights outside;
//!    the guest's other users are the host's subordinate ones.
//! 2. A mount namespace, in [`mount_namespace`], whose root holds the shared directories and
//!    nothing else. Each is a mount of its own: the host's kernel makes it read-only if required,
//!    ignores setuid bits and devices, and does not follow links.
//! 3. In [`isolate`], only the capabilities that files need, no new privileges, and a seccomp
//!    filter with only the system calls of a file server. (A VMM process has its own list of calls,
//!    and Landlock allows it only the shares and disks.) No call can set the setuid or setgid bit
//!    or capabilities of a file, which would make it a program of the user on the host.
//! 4. Requests.

mod files;
mod isolate;
mod locks;
mod mount_namespace;
mod queue;
mod user_namespace;
mod vhost_user;

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, bail, ensure};
use libmsb::isolate::{Step, StepOutcome};
use libmsb::machine::{ShareDevice, SharePlan};
use rustix::thread::CapabilitySet;

use crate::isolate::report;
use crate::{ensure_version, parent_death};

pub(crate) use mount_namespace::{HostFile, HostFileAccess, SHARE};
pub(crate) use queue::{
    FEATURES, FileServer, GuestNotifier, QUEUE_SIZE_MAX, QUEUES, QueueWorker, RingLayout,
    VIRTIO_RING_F_EVENT_IDX,
};

/// Name of the server in isolation reports.
const PROCESS: &str = "share";

/// Serves a share until the VM closes the connection.
pub(crate) fn serve(plan: &SharePlan) -> anyhow::Result<()> {
    ensure_version(plan.version)?;
    let fd = plan.share.fd.context("the plan names no socket")?;
    ensure!(fd > 2, "the socket cannot be descriptor {fd}");
    parent_death::exit_with_parent(plan.life_fd)?;
    // SAFETY: the descriptor was inherited for this, nothing else in this process has or closes it,
    // and it is taken once.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    user_namespace::enter_user_namespace()?;
    mount_namespace::enter(&plan.share.entries, &[])?;
    isolate::before_requests()?;
    let steps = isolate::STEPS.map(|step| Step::of(PROCESS, step, StepOutcome::Complete));
    report(plan.report_fd, &steps);
    vhost_user::serve(socket, plan.share.host_locks)
}

/// Confines a VMM process to the shared and the kept files. It leaves the host's network as well.
pub(crate) fn enter(shares: &[ShareDevice], kept: &[HostFile]) -> anyhow::Result<()> {
    let [share] = shares else {
        bail!("a VM has one share, not {}", shares.len());
    };
    // Each file that the guest's kernel knows is an open file here.
    libmsb::isolate::raise_file_limit();
    user_namespace::enter_user_namespace()?;
    mount_namespace::enter(&share.entries, kept)
}

/// Keeps the capabilities that serving files needs, or none.
pub(crate) fn keep_capabilities(serves: bool) -> anyhow::Result<()> {
    let kept = if serves { isolate::KEPT_CAPABILITIES } else { CapabilitySet::empty() };
    libmsb::isolate::keep_capabilities(kept).context("cannot drop capabilities")
}

/// Refuses setuid and setgid bits from now on.
pub(crate) fn refuse_setid() -> anyhow::Result<()> {
    isolate::refuse_setid()
}
