//! A process of the sandbox's own: the machine, its network, the server of its shares. It is watched by a descriptor, and
//! goes when it is dropped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use libmsb::tools;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error_log;

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pidfd: OwnedFd,
    exit: Option<ExitStatus>,
}

impl Process {
    /// Starts a program of ours, which inherits descriptors that are closed on exec otherwise.
    pub(crate) fn start(
        program: &str,
        args: &[String],
        inherited: &[BorrowedFd<'_>],
    ) -> anyhow::Result<Process> {
        let mut command = tools::command(program)?;
        tools::clean_environment(&mut command);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(error_log::stderr());
        let child = spawn_with(&mut command, inherited)
            .with_context(|| format!("cannot start {program}"))?;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .with_context(|| format!("cannot watch {program}"))?;
        Ok(Process {
            child,
            pidfd,
            exit: None,
        })
    }

    /// Ready for reading when it has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its number.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// How it ended, if it did.
    pub(crate) fn poll_exit(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().ok().flatten();
        }
        self.exit
    }

    /// Kills it, if it is there, and waits until it is gone.
    pub(crate) fn kill(&mut self) -> Option<ExitStatus> {
        if self.poll_exit().is_none() {
            // It may have ended in this moment; then waiting is all that is left.
            let _ = self.child.kill();
            self.exit = self.child.wait().ok();
        }
        self.exit
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a program with descriptors that are closed on exec otherwise. One at a time, so that no other child gets them by
/// chance: it would keep the lock of another's sandbox.
pub(crate) fn spawn_with(command: &mut Command, inherited: &[BorrowedFd<'_>]) -> io::Result<Child> {
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
