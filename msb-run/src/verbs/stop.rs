//! `msb stop`: stop sandboxes.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Parser};
use libmsb::cli::args::{SandboxName, parse_duration};
use libmsb::cli::error::{self, Code, Failure, print_warning};
use libmsb::state::Home;
use msb_wire::client::{ClientError, Incoming, reach};
use msb_wire::sandbox::{Request, StopEvent, StopRequest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::connect;
use super::selection::{Selection, for_each};

const TOOL: &str = "msb-stop";

/// Time that a supervisor has for itself, beyond what it gives to its guest.
const SUPERVISOR_PATIENCE: Duration = Duration::from_secs(15);

/// Stop sandboxes: end their processes, flush their disks
#[derive(Debug, Parser)]
#[command(name = TOOL, version, after_help = "Examples:\n  msb stop web worker\n  msb stop -t 60 --label team=ml")]
pub(crate) struct StopArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    patience: Patience,
    /// Say nothing about sandboxes that do not run
    #[arg(short, long)]
    quiet: bool,
}

/// How long a guest is waited for: the same for `stop` and `restart`.
#[derive(Debug, Args)]
pub(crate) struct Patience {
    /// Kill them at once
    #[arg(short, long)]
    force: bool,
    /// Time for the guest to shut down, in seconds or with a unit, before it is killed
    #[arg(short, long, default_value = "10", value_parser = parse_duration)]
    timeout: Duration,
}

impl Patience {
    /// The time for a shutdown; none for those that are killed.
    pub(crate) fn time(&self) -> Duration {
        if self.force {
            Duration::ZERO
        } else {
            self.timeout
        }
    }
}

pub(crate) fn run(args: StopArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let names = args.selection.names(TOOL, &home)?;
    for_each(TOOL, &names, |name| {
        if !home.sandboxes().find(name)?.is_alive()? {
            if !args.quiet {
                print_warning(TOOL, &format!("the sandbox '{name}' is not running"));
            }
            return Ok(());
        }
        stop(&home, name, args.patience.time())
    })
}

/// Stops a sandbox and waits until its supervisor is gone.
pub(crate) fn stop(home: &Home, name: &SandboxName, timeout: Duration) -> anyhow::Result<()> {
    let connection = match connect(home, name) {
        // It has just ended: all that was wanted.
        Err(error) if error::code(&error) == Code::SandboxNotRunning => return Ok(()),
        Err(error) if matches!(error.downcast_ref(), Some(ClientError::Silent)) => {
            let socket = reach(&home.agent_socket(name)).context("cannot reach the supervisor")?;
            return kill(home, name, &watch(&socket)?);
        }
        connection => connection?,
    };
    let supervisor = watch(connection.socket())?;
    let patience = timeout.saturating_add(SUPERVISOR_PATIENCE);
    connection.socket().set_read_timeout(Some(patience))?;
    let request = Request::Stop(StopRequest {
        timeout_ms: timeout.as_millis().try_into().unwrap_or(u64::MAX),
    });
    let mut call = connection.open(&request)?;
    let mut answer = None;
    while let Ok(Some(incoming)) = call.reader.receive() {
        if let Incoming::Event {
            message,
            last: true,
        } = incoming
        {
            answer = serde_json::from_slice(&message).ok();
            break;
        }
    }
    if let Some(StopEvent::Failed { message }) = answer {
        return Err(Failure::failed(format!("cannot stop the sandbox '{name}': {message}")).into());
    }
    // It is the process that holds everything: when it is gone, so is the sandbox's life.
    if !is_gone(&supervisor, SUPERVISOR_PATIENCE)? {
        return kill(home, name, &supervisor);
    }
    Ok(())
}

/// Whether a process has ended, or does in this time.
fn is_gone(process: &impl AsFd, time: Duration) -> anyhow::Result<bool> {
    let time = Timespec::try_from(time).context("this is too long")?;
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let ended = retry_on_intr(|| poll(&mut fds, Some(&time)));
    Ok(ended.context("cannot wait for the supervisor")? > 0)
}

/// Kills a supervisor that does not answer any more. All that is below it goes with it, and the sandbox has when nobody
/// holds its lock.
fn kill(home: &Home, name: &SandboxName, supervisor: &impl AsFd) -> anyhow::Result<()> {
    print_warning(
        TOOL,
        &format!("the supervisor of the sandbox '{name}' does not answer and is killed"),
    );
    match pidfd_send_signal(supervisor, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(error).context("cannot kill the supervisor"),
    }
    let deadline = Instant::now() + SUPERVISOR_PATIENCE;
    let sandbox = home.sandboxes().named(name);
    while sandbox.is_alive()? {
        if Instant::now() > deadline {
            let message = format!("the sandbox '{name}' does not end");
            return Err(Failure::failed(message).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The process at the other end of the socket.
pub(super) fn watch(socket: &UnixStream) -> anyhow::Result<impl AsFd + use<>> {
    let peer = rustix::net::sockopt::socket_peercred(socket)
        .context("cannot tell who serves the sandbox")?;
    pidfd_open(peer.pid, PidfdFlags::empty()).context("cannot watch the supervisor")
}
