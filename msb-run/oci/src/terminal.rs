//! Terminals: a new one, whose controlling side goes to the engine over a socket.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use libmsb::cli::error::Failure;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// Opens a terminal, sends its controlling side to the socket and returns the other side.
pub(crate) fn open(socket: Option<&Path>) -> anyhow::Result<OwnedFd> {
    let path = socket.context(Failure::usage("a terminal needs --console-socket"))?;
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .context("cannot open a terminal")?;
    grantpt(&controller)
        .and_then(|()| unlockpt(&controller))
        .context("cannot unlock a terminal")?;
    let name = ptsname(&controller, Vec::new()).context("cannot name a terminal")?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let user = rustix::fs::open(&name, flags, rustix::fs::Mode::empty())
        .context("cannot open the terminal of the command")?;
    let stream = UnixStream::connect(path)
        .with_context(|| format!("cannot connect to '{}'", path.display()))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [controller.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let name = IoSlice::new(name.as_bytes());
    sendmsg(&stream, &[name], &mut ancillary, SendFlags::empty())
        .context("cannot send the terminal")?;
    Ok(user)
}

/// Makes the terminal the standard streams and the controlling terminal of a command.
pub(crate) fn attach(command: &mut Command, terminal: &OwnedFd) -> anyhow::Result<()> {
    let copy = || terminal.try_clone().context("cannot duplicate a descriptor");
    command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
    let lead = || {
        rustix::process::setsid()?;
        Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
    };
    // SAFETY: both calls are async-signal-safe system calls that allocate nothing.
    unsafe { command.pre_exec(lead) };
    Ok(())
}
