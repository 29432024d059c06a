//! Directories and files of the host: served to a guest of QEMU over vhost-user by `msb-vmm --share`, and to one of libkrun
//! by the machine itself.
//!
//! The server is the same whatever runs the machine: fuse-backend-rs, with validity times by which host and guests agree,
//! in [`files`], and the queues, in [`queue`]. What differs is the way in which a machine describes them: [`server`], and
//! `krun::share`.
//!
//! A guest's root can put any request into the queue. Names with a slash, `.` and `..` are refused. Should that fail, the
//! process has no file system but what is shared (and what libkrun needs, if it is the machine: the disks, each at its
//! path, and `/dev/kvm`), before the first request is read:
//!
//! 1. A user namespace, in [`ids`]. The user is root in it and has no rights outside; the guest's other users are the
//!    host's subordinate ones.
//! 2. A mount namespace, in [`stage`], whose root holds the shared directories and nothing else. Each is a mount of its
//!    own: read-only, if it is to be, by the host's kernel; without setuid, without devices, and without following links.
//! 3. In [`isolate`], the capabilities that files need and no other, no new privileges, and no system call that a file
//!    server does not make (of the machine: none of its own list, and no file by Landlock that is neither shared nor a
//!    disk); none can set the setuid or setgid bit or capabilities of a file, which would be a program of the user on the
//!    host.
//! 4. Requests.

mod files;
mod ids;
mod isolate;
mod queue;
mod server;
mod stage;

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, bail, ensure};
use libmsb::isolate::{Step, Taken};
use libmsb::machine::{Share, SharePlan};
use rustix::thread::CapabilitySet;

use crate::isolate::report;
use crate::{ensure_version, lifeline};

pub(crate) use queue::{
    EVENT_IDX, FEATURES, FileServer, Notify, QUEUE_SIZE_MAX, QUEUES, RingLayout, Worker,
};
pub(crate) use stage::{Kept, KeptAccess, SHARE};

/// Who takes the steps of a server, in what is told of them.
const PROCESS: &str = "share";

/// Serves until the machine hangs up.
pub(crate) fn serve(plan: &SharePlan) -> anyhow::Result<()> {
    ensure_version(plan.version)?;
    let fd = plan.share.fd.context("the plan names no socket")?;
    ensure!(fd > 2, "the socket cannot be descriptor {fd}");
    lifeline::tie(plan.life_fd)?;
    // SAFETY: the descriptor was inherited for this, nothing else in this process has or closes it, and it is taken once.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    ids::enter_user_namespace()?;
    stage::enter(&plan.share.entries, &[])?;
    isolate::before_requests()?;
    let steps = isolate::STEPS.map(|step| Step::of(PROCESS, step, Taken::Whole));
    report(plan.report_fd, &steps);
    server::serve(socket)
}

/// Makes a machine's process one that sees what is shared and what is kept, and nothing else. It leaves the host's network
/// as well.
pub(crate) fn enter(shares: &[Share], kept: &[Kept]) -> anyhow::Result<()> {
    let [share] = shares else {
        bail!("a machine has one share, and not {}", shares.len());
    };
    isolate::open_many_files();
    ids::enter_user_namespace()?;
    stage::enter(&share.entries, kept)
}

/// Keeps the capabilities that a server of files needs, or none.
pub(crate) fn keep_capabilities(serves: bool) -> anyhow::Result<()> {
    let kept = if serves {
        isolate::KEPT
    } else {
        CapabilitySet::empty()
    };
    isolate::keep_capabilities(kept)
}

/// Makes no program of the user's from now on.
pub(crate) fn refuse_setid() -> anyhow::Result<()> {
    isolate::refuse_setid()
}
