//! `msb start --foreground`: the life of a sandbox as that of this process, for service managers.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use anyhow::Context;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Failure, message, print_warning};
use libmsb::signals::{Signals, signal};
use libmsb::state::Home;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::status::Reason;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;

use super::stop::stop;
use super::stopping::wait_while_stopping;
use crate::launch::{Keepalive, launch};

const TOOL: &str = "msb-start";

/// Environment variable with the socket of the service manager (sd_notify(3)).
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Starts a sandbox and waits for its end. SIGTERM and SIGINT stop it within `timeout`. If this
/// process is killed, the supervisor stops the sandbox.
pub(super) fn run(home: &Home, name: &SandboxName, timeout: Duration) -> anyhow::Result<()> {
    let sandbox = home.sandboxes().find(name)?;
    wait_while_stopping(&sandbox)?;
    let lock = sandbox.try_lock()?.with_context(|| {
        Failure::wrong_state(format!("the sandbox '{name}' is already running"))
            .hint(format!("stop it first: msb stop {name}"))
    })?;
    let (pipe, held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .context("cannot create a pipe")?;
    let mut launched = launch(name, lock, Keepalive::Pipe(pipe))?;
    launched.wait_until_ready()?;
    // Blocked only now: before, the signals end this process, and with it the sandbox.
    let signals =
        Signals::of(&[signal::SIGTERM, signal::SIGINT]).context("cannot wait for signals")?;
    notify("READY=1\nSTATUS=The guest accepts commands");
    let mut fds = [PollFd::new(&signals, PollFlags::IN), PollFd::new(&launched, PollFlags::IN)];
    retry_on_intr(|| poll(&mut fds, None)).context("cannot wait for the sandbox")?;
    let is_asked = !fds[0].revents().is_empty();
    if is_asked {
        notify("STOPPING=1\nSTATUS=The guest shuts down");
        stop(home, name, timeout)?;
    }
    let exit = launched.wait_until_gone()?;
    drop(held);
    match exit.error {
        Some(error) if !is_asked => Err(error),
        _ if is_asked => Ok(()),
        _ => outcome(&sandbox),
    }
}

/// Returns an error if the sandbox ended by itself, and not in order.
fn outcome(sandbox: &Sandbox) -> anyhow::Result<()> {
    // An ephemeral sandbox is removed at its end.
    let Ok(status) = sandbox.status() else {
        return Ok(());
    };
    let problem = match status.reason {
        Some(Reason::Completed) => status
            .exit_code
            .filter(|code| *code != 0)
            .map(|code| format!("its command ended with exit code {code}")),
        Some(Reason::GuestPoweredOff) | None => None,
        Some(reason) => reason.problem().map(str::to_owned),
    };
    let Some(problem) = problem else {
        return Ok(());
    };
    let name = &sandbox.name;
    let details = status.message.map(|message| format!(": {message}")).unwrap_or_default();
    Err(Failure::failed(format!("the sandbox '{name}' ended: {problem}{details}"))
        .hint(format!("show its console: msb logs --source console {name}"))
        .into())
}

/// Sends a message to the service manager, if there is one. A failure is a warning: the manager
/// itself ends a service that does not report its start.
fn notify(text: &str) {
    let Some(path) = std::env::var_os(NOTIFY_SOCKET).filter(|path| !path.is_empty()) else {
        return;
    };
    let send = || {
        // A name that starts with @ is abstract.
        let address = match path.as_bytes().split_first() {
            Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address)
    };
    if let Err(error) = send() {
        let error = message(&error.into());
        print_warning(TOOL, &format!("cannot notify the service manager: {error}"));
    }
}
