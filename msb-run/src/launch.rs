//! Start of a supervisor process, and its reports.

use std::io::BufReader;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, ErrorKind, Failure, print_note};
use libmsb::cli::verbosity::{Verbosity, log};
use libmsb::state::Home;
use libmsb::state::lock::Lock;
use libmsb::tools;

use crate::process::child_process::spawn_inheriting;
use crate::secrets;
use crate::startup::{BootTimes, StartupReport};

/// Name of the supervisor's program.
pub(crate) const SUPERVISOR: &str = "msb-supervisor";
/// Program name in the engine's notes.
const PROGRAM: &str = "msb-run";

/// A running supervisor and its report pipe.
#[derive(Debug)]
pub(crate) struct SupervisorHandle {
    child: Child,
    reports: BufReader<std::fs::File>,
    /// A report that was read but not yet used.
    pending: Option<StartupReport>,
    /// Connection to the supervisor, if the sandbox is attached to this process.
    pub(crate) client: Option<UnixStream>,
}

/// Keepalive of a sandbox: the process or pipe whose end also ends the sandbox.
#[derive(Debug)]
pub(crate) enum Keepalive {
    /// None: the sandbox is independent.
    None,
    /// This process, which runs the main command.
    Client,
    /// A keepalive pipe, whose other end another process holds.
    Pipe(OwnedFd),
}

/// Reads the values of the sandbox's secrets and starts its supervisor; see [`launch_with`].
pub(crate) fn launch(
    name: &SandboxName,
    lock: Lock,
    keepalive: Keepalive,
) -> anyhow::Result<SupervisorHandle> {
    let sandbox = Home::from_env()?.sandboxes().named(name);
    launch_with(name, lock, keepalive, secrets::resolve(&sandbox.spec()?)?)
}

/// Starts the supervisor of a sandbox, hands the lock and the values of secrets over to it, and prints
/// its note about the engine.
pub(crate) fn launch_with(
    name: &SandboxName,
    lock: Lock,
    keepalive: Keepalive,
    secrets: Option<OwnedFd>,
) -> anyhow::Result<SupervisorHandle> {
    // The same program under another name. /proc/self/exe works even if the program was replaced or
    // removed meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(SUPERVISOR).arg(name.as_str());
    let (reports, ready) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .context("cannot create a pipe")?;
    command.arg("--ready-fd").arg(ready.as_raw_fd().to_string());
    command.arg("--lock-fd").arg(lock.as_fd().as_raw_fd().to_string());
    let mut inherited = vec![ready.as_fd(), lock.as_fd()];
    if let Some(secrets) = &secrets {
        command.arg("--secrets-fd").arg(secrets.as_raw_fd().to_string());
        inherited.push(secrets.as_fd());
    }
    let pair = matches!(keepalive, Keepalive::Client)
        .then(UnixStream::pair)
        .transpose()
        .context("cannot create a socket")?;
    if let Some((_, theirs)) = &pair {
        command.arg("--client-fd").arg(theirs.as_raw_fd().to_string());
        inherited.push(theirs.as_fd());
    }
    if let Keepalive::Pipe(pipe) = &keepalive {
        command.arg("--bond-fd").arg(pipe.as_raw_fd().to_string());
        inherited.push(pipe.as_fd());
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    tools::clean_environment(&mut command);
    let child =
        spawn_inheriting(&mut command, &inherited).context("cannot start the supervisor")?;
    log(Verbosity::Debug, || format!("started the supervisor of '{name}': process {}", child.id()));
    // Close this copy of the write end; otherwise the reports would never end.
    drop(ready);
    let mut launched = SupervisorHandle {
        child,
        reports: BufReader::new(reports.into()),
        pending: None,
        client: pair.map(|(ours, _)| ours),
    };
    match launched.next_report()? {
        Some(StartupReport::Prepared { note }) => print_startup_note(note),
        other => launched.pending = other,
    }
    Ok(launched)
}

impl AsFd for SupervisorHandle {
    /// Returns the report pipe, which is readable when there is a report, or none will come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reports.get_ref().as_fd()
    }
}

impl SupervisorHandle {
    /// Waits until the guest accepts commands, or its start has failed.
    pub(crate) fn wait_until_ready(&mut self) -> anyhow::Result<BootTimes> {
        match self.next_outcome()? {
            Some(StartupReport::Ready(stamps)) => Ok(stamps),
            Some(failed) => Err(failure(failed)),
            None => {
                Err(Failure::failed("the supervisor was killed before the guest was up").into())
            }
        }
    }

    /// Waits until the supervisor has ended. Returns the error of the sandbox, if it ended with
    /// one.
    pub(crate) fn wait_until_gone(mut self) -> anyhow::Result<SupervisorExit> {
        let mut exit = SupervisorExit { stamps: None, error: None };
        while let Some(report) = self.next_outcome()? {
            match report {
                StartupReport::Ready(stamps) => exit.stamps = Some(stamps),
                failed => exit.error = Some(failure(failed)),
            }
        }
        self.child.wait().context("cannot wait for the supervisor")?;
        Ok(exit)
    }

    /// Returns the next report of an outcome; prints notes.
    fn next_outcome(&mut self) -> anyhow::Result<Option<StartupReport>> {
        loop {
            match self.next_report()? {
                Some(StartupReport::Prepared { note }) => print_startup_note(note),
                other => return Ok(other),
            }
        }
    }

    fn next_report(&mut self) -> anyhow::Result<Option<StartupReport>> {
        if let Some(report) = self.pending.take() {
            return Ok(Some(report));
        }
        StartupReport::read(&mut self.reports).context("cannot parse the supervisor's report")
    }
}

fn print_startup_note(note: Option<String>) {
    note.iter().for_each(|note| print_note(PROGRAM, note));
}

/// The end of a supervisor.
#[derive(Debug)]
pub(crate) struct SupervisorExit {
    /// Times of the start, if the guest came up.
    pub(crate) stamps: Option<BootTimes>,
    /// Error that ended the sandbox.
    pub(crate) error: Option<anyhow::Error>,
}

fn failure(report: StartupReport) -> anyhow::Error {
    match report {
        StartupReport::Ready(_) | StartupReport::Prepared { .. } => {
            Failure::new(ErrorKind::Bug, "the supervisor reported success twice").into()
        }
        StartupReport::Failed { message, hint } => {
            let failure = Failure::failed(message).code(Code::BootFailed);
            hint.map_or(failure.clone(), |hint| failure.hint(hint)).into()
        }
    }
}
