//! `msb start`: starts created or stopped sandboxes, each with its own disk.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser};
use libmsb::cli::args::{SandboxName, parse_duration};
use libmsb::cli::error::Failure;
use libmsb::state::Home;
use libmsb::state::status::State;

use super::selection::{NamesArgs, SelectionArgs, for_each};
use super::stopping::wait_while_stopping;
use super::{foreground, paused};
use crate::launch::{Keepalive, launch, launch_with};
use crate::snapshot::restore::discard_memory;

const TOOL: &str = "msb-start";

/// Start sandboxes that are not running
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb start web worker\n  msb ls -q --stopped | msb start -\n  msb start --foreground web"
)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    keepalive: KeepaliveArgs,
    /// Stay until the sandbox ends; SIGTERM and SIGINT stop it
    ///
    /// For service managers, with one sandbox: the service is ready when the guest accepts commands
    /// (sd_notify(3)). The exit status is 0 if the sandbox was stopped, its guest powered off, or
    /// its main command ended with exit code 0. If this process is killed, the sandbox is stopped.
    #[arg(long, conflicts_with = "bond_fd", help_heading = "Lifetime")]
    foreground: bool,
    /// With --foreground, kill the virtual machine if it has not stopped after TIMEOUT
    #[arg(
        long,
        default_value = "60",
        value_name = "TIMEOUT",
        value_parser = parse_duration,
        requires = "foreground",
        help_heading = "Lifetime"
    )]
    stop_timeout: Duration,
    /// Discard the saved memory of the sandbox, and boot its guest
    ///
    /// This concerns a sandbox that `msb fork --memory` or msb-restore(1) has left with the memory
    /// of a running guest.
    #[arg(long)]
    cold: bool,
    #[command(flatten)]
    names: NamesArgs,
}

/// Lowest number of a descriptor that is passed on: the standard streams are taken.
const DESCRIPTOR_MIN: RawFd = 3;

/// Options for the keepalive descriptor of a sandbox.
#[derive(Debug, Args)]
pub(crate) struct KeepaliveArgs {
    /// Stop the sandbox when the other end of this pipe or socket is closed
    ///
    /// N is a descriptor: a pipe that is open for reading, or a connected stream socket. Its other
    /// end is closed at the latest when the program that holds it ends. After a byte was written to
    /// the other end, the sandbox no longer depends on it. The descriptor is checked before a
    /// sandbox is created or started.
    #[arg(long, value_name = "N", help_heading = "Lifetime")]
    bond_fd: Option<RawFd>,
}

impl KeepaliveArgs {
    /// Returns the number of the descriptor, if one is given.
    pub(crate) fn number(&self) -> Option<RawFd> {
        self.bond_fd
    }

    /// Returns a copy of the pipe or socket for the supervisor.
    pub(crate) fn open(&self) -> anyhow::Result<Keepalive> {
        let Some(number) = self.bond_fd else {
            return Ok(Keepalive::None);
        };
        let path = format!("/proc/self/fd/{number}");
        let cannot = || format!("cannot use descriptor {number}");
        let kind = std::fs::metadata(&path).with_context(cannot)?.file_type();
        // Only a pipe and a connected socket report the end of their peer.
        let descriptor = if kind.is_fifo() {
            File::options().read(true).open(&path).with_context(cannot)?.into()
        } else if kind.is_socket() {
            connected_socket(number).with_context(cannot)?
        } else {
            let message = format!("descriptor {number} is neither a pipe nor a socket");
            return Err(Failure::usage(message).into());
        };
        Ok(Keepalive::Pipe(descriptor))
    }
}

/// Returns a copy of a socket, which must be connected: a socket cannot be opened by its path.
fn connected_socket(number: RawFd) -> anyhow::Result<OwnedFd> {
    // SAFETY: the descriptor is open, as its entry in /proc shows, and nothing closes it here.
    let socket = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::net::getpeername(socket).context("the socket is not connected")?;
    Ok(rustix::io::fcntl_dupfd_cloexec(socket, DESCRIPTOR_MIN)?)
}

pub(crate) fn run(args: StartArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let names = args.selection.names(TOOL, &home)?;
    if args.foreground {
        let [name] = names.as_slice() else {
            return Err(Failure::usage("--foreground needs one sandbox").into());
        };
        if args.cold
            && let sandbox = home.sandboxes().find(name)?
            && let Some(_lock) = sandbox.try_lock()?
        {
            discard_memory(&sandbox)?;
        }
        return foreground::run(&home, name, args.stop_timeout);
    }
    for_each(TOOL, &names, |name| {
        if start(&home, name, args.keepalive.open()?, args.cold)? {
            return Ok(args.names.line(name).into());
        }
        if home.sandboxes().find(name)?.snapshot()?.state == State::Paused {
            return Err(paused(name).into());
        }
        Ok(args.names.unchanged(name, "already running"))
    })
}

/// Starts a sandbox that this command has stopped, with the values of its secrets.
pub(crate) fn start_again(
    home: &Home,
    name: &SandboxName,
    secrets: Option<OwnedFd>,
) -> anyhow::Result<()> {
    let sandbox = home.sandboxes().find(name)?;
    wait_while_stopping(&sandbox)?;
    // A sandbox that another command has started meanwhile is running, as was asked for.
    if let Some(lock) = sandbox.try_lock()? {
        launch_with(name, lock, Keepalive::None, secrets)?.wait_until_ready()?;
    }
    Ok(())
}

/// Starts a sandbox and waits until its guest accepts commands; `cold` discards its saved memory.
/// Returns `false` if it is already running.
fn start(
    home: &Home,
    name: &SandboxName,
    keepalive: Keepalive,
    cold: bool,
) -> anyhow::Result<bool> {
    let sandbox = home.sandboxes().find(name)?;
    wait_while_stopping(&sandbox)?;
    let Some(lock) = sandbox.try_lock()? else {
        return Ok(false);
    };
    if cold {
        discard_memory(&sandbox)?;
    }
    launch(name, lock, keepalive)?.wait_until_ready()?;
    Ok(true)
}
