//! The supervisor's command line. It is started by the other verbs, with descriptors that it inherits.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use clap::Parser;
use libmsb::cli::args::SandboxName;
use libmsb::state::lock::Lock;

use super::{Handed, Starter, inherited};

/// Runs a sandbox that was made, to its end
#[derive(Debug, Parser)]
#[command(
    name = "msb-supervisor",
    version,
    after_help = "Example:\n  msb-supervisor web --lock-fd 5 --ready-fd 6\n\nIt is started by msb-run; see msb-supervisor(8)."
)]
pub(crate) struct SupervisorArgs {
    /// The sandbox
    name: SandboxName,
    /// Descriptor of the sandbox's lock, which is held
    #[arg(long, value_name = "N")]
    lock_fd: RawFd,
    /// Descriptor of a connected client: without it the sandbox does not go on
    #[arg(long, value_name = "N")]
    client_fd: Option<RawFd>,
    /// Descriptor of a pipe: when its other end is closed, the sandbox is stopped; a byte lets it go on
    #[arg(long, value_name = "N")]
    bond_fd: Option<RawFd>,
    /// Descriptor that takes one JSON line when the guest is up, or cannot come up
    #[arg(long, value_name = "N")]
    ready_fd: Option<RawFd>,
}

impl SupervisorArgs {
    /// Takes over what was inherited.
    pub(crate) fn take(self) -> anyhow::Result<Handed> {
        let lock = Lock::inherited(inherited(self.lock_fd)?);
        let client = self
            .client_fd
            .map(inherited)
            .transpose()?
            .map(UnixStream::from);
        let ready = self.ready_fd.map(inherited).transpose()?.map(File::from);
        let bond = self.bond_fd.map(inherited).transpose()?.map(File::from);
        let starter = Starter {
            client,
            bond,
            ready,
        };
        Ok((self.name, lock, starter))
    }
}

/// Takes over an inherited descriptor; children do not inherit it in turn.
pub(crate) fn take_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "standard streams cannot be handed over",
        ));
    }
    // SAFETY: fcntl(2) with F_SETFD touches no memory, and fails when the number is none of an open file.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, was inherited through exec for this purpose, and nothing in this process has opened or closed
    // it: arguments are taken before anything else, each descriptor once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
