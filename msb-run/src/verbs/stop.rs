//! `msb stop`: stop sandboxes.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser};
use libmsb::cli::args::{SandboxName, parse_duration};
use libmsb::cli::error::{self, Code, Failure, print_warning};
use libmsb::state::Home;
use msb_wire::client::Incoming;
use msb_wire::sandbox::{Request, StopEvent, StopRequest};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use super::connect;
use super::selection::{Selection, for_each};

const TOOL: &str = "msb-stop";

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
        connection => connection?,
    };
    let supervisor = watch(connection.socket())?;
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
    let mut fds = [PollFd::new(&supervisor, PollFlags::IN)];
    poll(&mut fds, None).context("cannot wait for the supervisor")?;
    Ok(())
}

/// The process at the other end of the socket.
pub(super) fn watch(socket: &UnixStream) -> anyhow::Result<impl AsFd + use<>> {
    let peer = rustix::net::sockopt::socket_peercred(socket)
        .context("cannot tell who serves the sandbox")?;
    pidfd_open(peer.pid, PidfdFlags::empty()).context("cannot watch the supervisor")
}
