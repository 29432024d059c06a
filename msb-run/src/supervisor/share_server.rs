//! The process that serves a share to a VM: `msb-vmm --share`, at the other end of a vhost-user
//! socket.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::Context;
use libmsb::machine::{PLAN_VERSION, ShareDevice, SharePlan};

use crate::process::child_process::ChildProcess;
use crate::process::plan_file::plan_file;

/// Starts the server of a share, which reports its isolation to `report`. Returns also the VM's end
/// of the socket.
pub(super) fn start(
    share: &ShareDevice,
    life: BorrowedFd<'_>,
    report: BorrowedFd<'_>,
) -> anyhow::Result<(ChildProcess, UnixStream)> {
    let (vm_socket, server) = UnixStream::pair().context("cannot create a socket for the share")?;
    let plan = plan_file(&SharePlan {
        version: PLAN_VERSION,
        life_fd: life.as_raw_fd(),
        report_fd: Some(report.as_raw_fd()),
        share: ShareDevice { fd: Some(server.as_raw_fd()), ..share.clone() },
    })?;
    let args = ["--share".to_owned(), format!("/proc/self/fd/{}", plan.as_raw_fd())];
    let server =
        ChildProcess::start("msb-vmm", &args, &[plan.as_fd(), server.as_fd(), life, report])?;
    Ok((server, vm_socket))
}
