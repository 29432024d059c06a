//! `msb stop`: stops sandboxes.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Parser};
use libmsb::cli::args::{SandboxName, parse_duration};
use libmsb::cli::error::{self, Code, Failure, print_warning};
use libmsb::state::Home;
use msb_wire::client::{ClientError, Incoming, connect_checked};
use msb_wire::sandbox::{Request, StopEvent, StopRequest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::connect;
use super::selection::{NamesArgs, SelectionArgs, for_each};

const TOOL: &str = "msb-stop";

/// Timeout for a supervisor to end, beyond the timeout of its guest.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(15);

/// Stop running sandboxes
#[derive(Debug, Parser)]
#[command(name = TOOL, version, after_help = "Examples:\n  msb stop web worker\n  msb stop -t 60 --label team=ml")]
pub(crate) struct StopArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    stop_timeout: StopTimeout,
    /// Refuse new commands, and stop when those that run have ended
    ///
    /// The main command of a detached sandbox and jobs are among them. There is no limit of time.
    #[arg(long, conflicts_with_all = ["force", "timeout"])]
    drain: bool,
    #[command(flatten)]
    names: NamesArgs,
}

/// Timeout for the shutdown of a guest, common to `stop` and `restart`.
#[derive(Debug, Args)]
pub(crate) struct StopTimeout {
    /// Kill the virtual machine without a shutdown of the guest
    ///
    /// The last writes of the guest may be lost, as in a power failure.
    #[arg(short, long)]
    force: bool,
    /// Kill the virtual machine if it has not stopped after TIMEOUT
    ///
    /// TIMEOUT is a number of seconds, or a number with `ms`, `s`, `m` or `h`. 0 is the same as
    /// `--force`.
    #[arg(short, long, default_value = "10", value_parser = parse_duration)]
    timeout: Duration,
}

impl StopTimeout {
    /// Returns the timeout; zero for `--force`.
    pub(crate) fn duration(&self) -> Duration {
        if self.force { Duration::ZERO } else { self.timeout }
    }
}

pub(crate) fn run(args: StopArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let names = args.selection.names(TOOL, &home)?;
    for_each(TOOL, &names, |name| {
        if !home.sandboxes().find(name)?.is_alive()? {
            return Ok(args.names.unchanged(name, "not running"));
        }
        if args.drain {
            drain(&home, name)?;
        } else {
            stop(&home, name, args.stop_timeout.duration())?;
        }
        Ok(args.names.line(name).into())
    })
}

/// Stops a sandbox and waits until its supervisor has ended.
pub(crate) fn stop(home: &Home, name: &SandboxName, timeout: Duration) -> anyhow::Result<()> {
    let connection = match connect(home, name) {
        // It has just ended.
        Err(error) if error::code(&error) == Code::SandboxNotRunning => return Ok(()),
        Err(error) if matches!(error.downcast_ref(), Some(ClientError::Silent)) => {
            let socket =
                connect_checked(&home.agent_socket(name)).context("cannot reach the supervisor")?;
            return kill(home, name, &open_pidfd(&socket)?);
        }
        connection => connection?,
    };
    let supervisor = open_pidfd(connection.socket())?;
    let read_timeout = timeout.saturating_add(SUPERVISOR_TIMEOUT);
    connection.socket().set_read_timeout(Some(read_timeout))?;
    let request = Request::Stop(StopRequest {
        timeout_ms: timeout.as_millis().try_into().unwrap_or(u64::MAX),
    });
    let mut call = connection.open(&request)?;
    let mut answer = None;
    while let Ok(Some(incoming)) = call.reader.receive() {
        if let Incoming::Event { message, last: true } = incoming {
            answer = serde_json::from_slice(&message).ok();
            break;
        }
    }
    if let Some(StopEvent::Failed { message }) = answer {
        return Err(Failure::failed(format!("cannot stop the sandbox '{name}': {message}")).into());
    }
    // The supervisor owns all processes of the sandbox: its end is the sandbox's end. One that has
    // released the sandbox's lock still flushes a boot state to a slow disk, and must not be killed.
    if has_exited(&supervisor, SUPERVISOR_TIMEOUT)? || !home.sandboxes().named(name).is_alive()? {
        return Ok(());
    }
    kill(home, name, &supervisor)
}

/// Waits until the commands of a sandbox have ended and it has stopped. New commands are refused.
fn drain(home: &Home, name: &SandboxName) -> anyhow::Result<()> {
    let connection = match connect(home, name) {
        // It has just ended.
        Err(error) if error::code(&error) == Code::SandboxNotRunning => return Ok(()),
        connection => connection?,
    };
    let supervisor = open_pidfd(connection.socket())?;
    let mut call = connection.open(&Request::Drain)?;
    while matches!(call.reader.receive(), Ok(Some(_))) {}
    has_exited(&supervisor, SUPERVISOR_TIMEOUT)?;
    Ok(())
}

/// Returns whether a process has ended or ends within this time.
fn has_exited(process: &impl AsFd, time: Duration) -> anyhow::Result<bool> {
    let time = Timespec::try_from(time).context("the timeout is too long")?;
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let ended = retry_on_intr(|| poll(&mut fds, Some(&time)));
    Ok(ended.context("cannot wait for the supervisor")? > 0)
}

/// Kills a supervisor that does not respond. Its child processes die with it. The sandbox has ended
/// when its lock is free.
fn kill(home: &Home, name: &SandboxName, supervisor: &impl AsFd) -> anyhow::Result<()> {
    print_warning(
        TOOL,
        &format!("killing the supervisor of the sandbox '{name}': it does not respond"),
    );
    match pidfd_send_signal(supervisor, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(error).context("cannot kill the supervisor"),
    }
    let deadline = Instant::now() + SUPERVISOR_TIMEOUT;
    let sandbox = home.sandboxes().named(name);
    while sandbox.is_alive()? {
        if Instant::now() > deadline {
            let message = format!("the sandbox '{name}' does not stop");
            return Err(Failure::failed(message).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Returns a pidfd of the process at the other end of the socket.
pub(super) fn open_pidfd(socket: &UnixStream) -> anyhow::Result<impl AsFd + use<>> {
    let peer = rustix::net::sockopt::socket_peercred(socket)
        .context("cannot get the supervisor's process ID")?;
    pidfd_open(peer.pid, PidfdFlags::empty()).context("cannot watch the supervisor")
}
