//! The process that serves a share to a machine: `msb-vmm --share`, at the other end of a socket.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitStatus, Stdio};

use anyhow::Context;
use libmsb::machine::{PLAN_VERSION, Share, SharePlan};
use libmsb::tools;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::machine::{plan_file, spawn_with};

/// A server that was started.
#[derive(Debug)]
pub(crate) struct ShareServer {
    child: Child,
    pidfd: OwnedFd,
    /// How it ended.
    exit: Option<ExitStatus>,
}

/// Starts a server for a share; gives also the machine's end of the socket, whose number `share` gets.
pub(super) fn start(
    share: &mut Share,
    life: BorrowedFd<'_>,
) -> anyhow::Result<(ShareServer, UnixStream)> {
    let (machine, server) = UnixStream::pair().context("cannot make a socket for the share")?;
    let plan = plan_file(&SharePlan {
        version: PLAN_VERSION,
        life_fd: life.as_raw_fd(),
        share: Share {
            fd: server.as_raw_fd(),
            ..share.clone()
        },
    })?;
    let mut command = tools::command("msb-vmm")?;
    command.arg("--share");
    command.arg(format!("/proc/self/fd/{}", plan.as_raw_fd()));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let child = spawn_with(&mut command, &[plan.as_fd(), server.as_fd(), life])
        .context("cannot start msb-vmm")?;
    let pidfd =
        pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).context("cannot watch msb-vmm")?;
    share.fd = machine.as_raw_fd();
    let server = ShareServer {
        child,
        pidfd,
        exit: None,
    };
    Ok((server, machine))
}

impl ShareServer {
    /// Ready for reading when the process has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How the process ended, if it did.
    pub(crate) fn poll_exit(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().ok().flatten();
        }
        self.exit
    }
}

impl Drop for ShareServer {
    fn drop(&mut self) {
        if self.poll_exit().is_none() {
            // It may have ended in this moment; then waiting is all that is left.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
