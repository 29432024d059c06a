//! A child process of a sandbox: the VMM process, msb-net, or the share server. It is watched
//! through a pidfd and killed on drop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use libmsb::tools;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error_log;

/// A started process.
#[derive(Debug)]
pub(crate) struct ChildProcess {
    child: Child,
    pidfd: OwnedFd,
    exit: Option<ExitStatus>,
}

impl ChildProcess {
    /// Starts a program of msb. It inherits the given descriptors, which are otherwise closed on
    /// exec.
    pub(crate) fn start(
        program: &str,
        args: &[String],
        inherited: &[BorrowedFd<'_>],
    ) -> anyhow::Result<ChildProcess> {
        let mut command = tools::command(program)?;
        tools::clean_environment(&mut command);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(error_log::stderr());
        let child = spawn_inheriting(&mut command, inherited)
            .with_context(|| format!("cannot start {program}"))?;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .with_context(|| format!("cannot watch {program}"))?;
        Ok(ChildProcess { child, pidfd, exit: None })
    }

    /// Returns the descriptor that is readable when the process has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Returns the process ID.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Returns the exit status if the process has ended.
    pub(crate) fn poll_exit(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().ok().flatten();
        }
        self.exit
    }

    /// Kills the process if it still runs, and waits for it.
    pub(crate) fn kill(&mut self) -> Option<ExitStatus> {
        if self.poll_exit().is_none() {
            // It may have ended in the meantime; then only the wait is left.
            let _ = self.child.kill();
            self.exit = self.child.wait().ok();
        }
        self.exit
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a program with descriptors that are otherwise closed on exec. Starts are serialized, so
/// that no other child inherits them by accident: it would keep the lock of another sandbox.
pub(crate) fn spawn_inheriting(
    command: &mut Command,
    inherited: &[BorrowedFd<'_>],
) -> io::Result<Child> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    for descriptor in inherited {
        fcntl_setfd(descriptor, FdFlags::empty())?;
    }
    let child = command.spawn();
    for descriptor in inherited {
        fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
    }
    child
}
