//! The command line of the supervisor. Other commands start it with inherited descriptors.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use clap::Parser;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::Failure;
use libmsb::state::lock::Lock;

use crate::startup::StartupHandles;

/// A name, and descriptors that were inherited.
pub(crate) type StartArguments = (SandboxName, Lock, StartupHandles, Option<OwnedFd>);

/// Supervise one sandbox from start to end
#[derive(Debug, Parser)]
#[command(
    name = "msb-supervisor",
    version,
    after_help = "Example:\n  msb-supervisor web --lock-fd 5 --ready-fd 6\n\nmsb run starts it; see msb-supervisor(8)."
)]
pub(crate) struct SupervisorArgs {
    /// Name of the sandbox
    name: SandboxName,
    /// Inherit the lock of the sandbox on descriptor N
    #[arg(long, value_name = "N")]
    lock_fd: RawFd,
    /// Stop the sandbox when the client connected on descriptor N disconnects
    #[arg(long, value_name = "N")]
    client_fd: Option<RawFd>,
    /// Stop the sandbox when the other end of the pipe or socket on descriptor N is closed
    #[arg(long, value_name = "N")]
    bond_fd: Option<RawFd>,
    /// Write one JSON line to descriptor N when the guest is up or has failed
    #[arg(long, value_name = "N")]
    ready_fd: Option<RawFd>,
    /// Inherit the values of secrets on descriptor N
    #[arg(long, value_name = "N")]
    secrets_fd: Option<RawFd>,
}

impl SupervisorArgs {
    /// Takes the inherited descriptors.
    pub(crate) fn take(self) -> anyhow::Result<StartArguments> {
        let lock = Lock::inherited(inherited(self.lock_fd)?);
        let client = self.client_fd.map(inherited).transpose()?.map(UnixStream::from);
        let ready = self.ready_fd.map(inherited).transpose()?.map(File::from);
        let keepalive_pipe = self.bond_fd.map(inherited).transpose()?.map(File::from);
        let starter = StartupHandles { client, keepalive_pipe, ready };
        let secrets = self.secrets_fd.map(inherited).transpose()?;
        Ok((self.name, lock, starter, secrets))
    }
}

/// Takes a descriptor that was inherited.
fn inherited(number: RawFd) -> anyhow::Result<OwnedFd> {
    take_descriptor(number)
        .map_err(|error| Failure::usage(format!("descriptor {number}: {error}")).into())
}

/// Takes an inherited descriptor and sets close-on-exec on it.
fn take_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "standard streams cannot be passed",
        ));
    }
    // SAFETY: fcntl(2) with F_SETFD touches no memory, and fails when the number is not an open
    // descriptor.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, was inherited through exec for this purpose, and nothing in this process
    // has opened or closed it: arguments are taken before anything else, each descriptor once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
