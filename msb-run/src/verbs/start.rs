//! `msb start`: start sandboxes that were made or stopped, each with its own disk.

use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Parser};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Failure, print_warning};
use libmsb::state::Home;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::status::State;

use super::paused;
use super::selection::{Selection, for_each};
use crate::launch::{Bond, launch};

const TOOL: &str = "msb-start";

/// Time that a sandbox which is just stopping is waited for.
const STOPPING_TIMEOUT: Duration = Duration::from_secs(15);

/// Start sandboxes that do not run
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb start web worker\n  msb ls -q --stopped | msb start -"
)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    bond: BondArgs,
    /// Say nothing about sandboxes that run already
    #[arg(short, long)]
    quiet: bool,
}

/// Whether a sandbox outlives the program that starts it.
#[derive(Debug, Args)]
pub(crate) struct BondArgs {
    /// Descriptor of a pipe: stop it when the other end is closed, however; a byte from there lets it go on
    #[arg(long, value_name = "N")]
    bond_fd: Option<RawFd>,
}

impl BondArgs {
    /// A copy of the pipe for the supervisor.
    pub(crate) fn take(&self) -> anyhow::Result<Bond> {
        let Some(number) = self.bond_fd else {
            return Ok(Bond::None);
        };
        // A number that is none of an open file has no name here, and what is no pipe never ends.
        let path = format!("/proc/self/fd/{number}");
        let pipe = File::options().read(true).open(&path);
        let pipe = pipe.with_context(|| format!("cannot use descriptor {number}"))?;
        if !pipe.metadata()?.file_type().is_fifo() {
            return Err(Failure::usage(format!("descriptor {number} is no pipe")).into());
        }
        Ok(Bond::Pipe(pipe.into()))
    }
}

pub(crate) fn run(args: StartArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let names = args.selection.names(TOOL, &home)?;
    for_each(TOOL, &names, |name| {
        if start(&home, name, args.bond.take()?)? {
            return Ok(());
        }
        if home.sandboxes().find(name)?.look()?.state == State::Paused {
            return Err(paused(name).into());
        }
        if !args.quiet {
            print_warning(TOOL, &format!("the sandbox '{name}' is running already"));
        }
        Ok(())
    })
}

/// Starts a sandbox and waits until its guest takes commands. `false` when it runs already.
pub(crate) fn start(home: &Home, name: &SandboxName, bond: Bond) -> anyhow::Result<bool> {
    let sandbox = home.sandboxes().find(name)?;
    wait_while_stopping(&sandbox)?;
    let Some(lock) = sandbox.try_lock()? else {
        return Ok(false);
    };
    launch(name, lock, bond)?.wait_until_ready()?;
    Ok(true)
}

/// A sandbox that is on its way down is waited for: it can be started when it is there.
pub(crate) fn wait_while_stopping(sandbox: &Sandbox) -> anyhow::Result<()> {
    let deadline = Instant::now() + STOPPING_TIMEOUT;
    while Instant::now() < deadline
        && sandbox.is_alive()?
        && sandbox.status()?.state.seen(true) == State::Stopping
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
