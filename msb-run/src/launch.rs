//! Starting a supervisor.

use std::io::BufReader;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, Failure, Kind, print_note};
use libmsb::cli::verbosity::{Verbosity, say};
use libmsb::state::lock::Lock;
use libmsb::tools;

use crate::startup::{Stamps, Startup};
use crate::supervisor::process::spawn_with;

/// In whose name the engine's notes are told.
const PROGRAM: &str = "msb-run";

/// A supervisor that was started.
#[derive(Debug)]
pub(crate) struct Launched {
    child: Child,
    reports: BufReader<std::fs::File>,
    /// A report that was read and not used.
    pending: Option<Startup>,
    /// Our connection, if the sandbox is attached to us.
    pub(crate) client: Option<UnixStream>,
}

/// To whom a sandbox is bound: it does not outlive that.
#[derive(Debug)]
pub(crate) enum Bond {
    /// To nobody.
    None,
    /// To us, who run its main command.
    Client,
    /// To whoever holds the other end of this pipe.
    Pipe(OwnedFd),
}

/// Starts the supervisor of a sandbox, whose lock goes over to it, and tells what it has to say about the engine.
pub(crate) fn launch(name: &SandboxName, lock: Lock, bond: Bond) -> anyhow::Result<Launched> {
    // The same program under another name; through /proc it is found also when it was replaced or removed since.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("msb-supervisor").arg(name.as_str());
    let (reports, ready) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    command.arg("--ready-fd").arg(ready.as_raw_fd().to_string());
    command
        .arg("--lock-fd")
        .arg(lock.as_fd().as_raw_fd().to_string());
    let mut inherited = vec![ready.as_fd(), lock.as_fd()];
    let pair = matches!(bond, Bond::Client)
        .then(UnixStream::pair)
        .transpose()
        .context("cannot make a socket")?;
    if let Some((_, theirs)) = &pair {
        command
            .arg("--client-fd")
            .arg(theirs.as_raw_fd().to_string());
        inherited.push(theirs.as_fd());
    }
    if let Bond::Pipe(pipe) = &bond {
        command.arg("--bond-fd").arg(pipe.as_raw_fd().to_string());
        inherited.push(pipe.as_fd());
    }
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    tools::clean_environment(&mut command);
    let child = spawn_with(&mut command, &inherited).context("cannot start the supervisor")?;
    say(Verbosity::Debug, || {
        format!("started the supervisor of '{name}': process {}", child.id())
    });
    // What only the child should hold would keep the reports from ending.
    drop(ready);
    let mut launched = Launched {
        child,
        reports: BufReader::new(reports.into()),
        pending: None,
        client: pair.map(|(ours, _)| ours),
    };
    match launched.next_report()? {
        Some(Startup::Prepared { note }) => tell(note),
        other => launched.pending = other,
    }
    Ok(launched)
}

impl Launched {
    /// Waits until the guest takes commands, or until it is known that it never will.
    pub(crate) fn wait_until_ready(&mut self) -> anyhow::Result<Stamps> {
        match self.next_outcome()? {
            Some(Startup::Ready(stamps)) => Ok(stamps),
            Some(failed) => Err(failure(failed)),
            None => {
                Err(Failure::failed("the supervisor was killed before the guest was up").into())
            }
        }
    }

    /// Waits until the supervisor is gone, and says why the sandbox ended, if it did so badly.
    pub(crate) fn wait_until_gone(mut self) -> anyhow::Result<Gone> {
        let mut gone = Gone {
            stamps: None,
            error: None,
        };
        while let Some(report) = self.next_outcome()? {
            match report {
                Startup::Ready(stamps) => gone.stamps = Some(stamps),
                failed => gone.error = Some(failure(failed)),
            }
        }
        self.child
            .wait()
            .context("cannot wait for the supervisor")?;
        Ok(gone)
    }

    /// The next report that says how it went; notes are told.
    fn next_outcome(&mut self) -> anyhow::Result<Option<Startup>> {
        loop {
            match self.next_report()? {
                Some(Startup::Prepared { note }) => tell(note),
                other => return Ok(other),
            }
        }
    }

    fn next_report(&mut self) -> anyhow::Result<Option<Startup>> {
        if let Some(report) = self.pending.take() {
            return Ok(Some(report));
        }
        Startup::read(&mut self.reports).context("cannot understand the supervisor")
    }
}

fn tell(note: Option<String>) {
    note.iter().for_each(|note| print_note(PROGRAM, note));
}

/// What a supervisor has left.
#[derive(Debug)]
pub(crate) struct Gone {
    /// When the start reached its steps, if the guest came up.
    pub(crate) stamps: Option<Stamps>,
    /// Why the sandbox ended, if it did so badly.
    pub(crate) error: Option<anyhow::Error>,
}

fn failure(report: Startup) -> anyhow::Error {
    match report {
        Startup::Ready(_) | Startup::Prepared { .. } => {
            Failure::new(Kind::Bug, "the supervisor reported success twice").into()
        }
        Startup::Failed { message, hint } => {
            let failure = Failure::failed(message).code(Code::BootFailed);
            hint.map_or(failure.clone(), |hint| failure.hint(hint))
                .into()
        }
    }
}
