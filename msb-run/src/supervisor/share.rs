//! The process that serves a share to a machine: `msb-vmm --share`, at the other end of a socket.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::Context;
use libmsb::machine::{PLAN_VERSION, Share, SharePlan};

use super::machine::plan_file;
use super::process::Process;

/// Starts a server for a share, which tells `report` what it has given up; gives also the machine's end of the socket.
pub(super) fn start(
    share: &Share,
    life: BorrowedFd<'_>,
    report: BorrowedFd<'_>,
) -> anyhow::Result<(Process, UnixStream)> {
    let (machine, server) = UnixStream::pair().context("cannot make a socket for the share")?;
    let plan = plan_file(&SharePlan {
        version: PLAN_VERSION,
        life_fd: life.as_raw_fd(),
        report_fd: Some(report.as_raw_fd()),
        share: Share {
            fd: Some(server.as_raw_fd()),
            ..share.clone()
        },
    })?;
    let args = [
        "--share".to_owned(),
        format!("/proc/self/fd/{}", plan.as_raw_fd()),
    ];
    let server = Process::start(
        "msb-vmm",
        &args,
        &[plan.as_fd(), server.as_fd(), life, report],
    )?;
    Ok((server, machine))
}
