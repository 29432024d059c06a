//! `msb attach`: attaches to a running job.
//!
//! The job's output is read from the sandbox's log, so that a slow terminal blocks neither the job
//! nor other clients. Input goes to the job over the sandbox's socket, which also reports the job's
//! end.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;

use anyhow::Context;
use clap::Parser;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Failure, print_note};
use libmsb::logs::{LogEntry, LogReader, LogSource};
use libmsb::signals::{Signals, signal};
use libmsb::state::Home;
use libmsb::state::jobs::{Job, JobState, Jobs};
use libmsb::state::sandboxes::Sandbox;
use msb_wire::client::{CallSender, ClientCall, ClientConnection, Incoming};
use msb_wire::exec::{ExecControl, ExecEvent};
use msb_wire::frame::STDIN;
use msb_wire::job::AttachRequest;
use msb_wire::limits::DATA_BYTES;
use msb_wire::sandbox::Request;

use super::jobs::unknown_job;
use super::logs::LogWatch;
use super::{connect, refusal};
use crate::detach_keys::DetachKeys;
use crate::terminal::{RawTerminal, window_size};

const TOOL: &str = "msb-attach";

/// Attach to a job: follow its output and send it input
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb attach worker 5f0c11d2\n  msb attach --logs worker $(msb exec -d worker -- make)"
)]
pub(crate) struct AttachArgs {
    /// Name of the sandbox
    name: SandboxName,
    /// ID of the job [default: the only running job]
    job: Option<String>,
    /// Print the earlier output of the job first
    ///
    /// For a job that has ended, this is all that is printed.
    #[arg(long)]
    logs: bool,
    /// Do not send input to the job
    #[arg(long)]
    no_stdin: bool,
    /// Set the keys that detach from the job on a terminal
    ///
    /// KEYS are separated by commas: each is a character, or `ctrl-` and a character. They apply if
    /// both the job and the caller have a terminal. The job continues.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-]")]
    detach_keys: DetachKeys,
}

/// Reason for the end of an attachment.
enum AttachmentEnd {
    /// Last event of the job, or a refusal.
    Event(Vec<u8>),
    /// Connection closed by the supervisor.
    Closed,
    /// Detach keys typed by the user.
    Detached,
}

pub(crate) fn run(args: AttachArgs) -> anyhow::Result<u8> {
    let home = Home::from_env()?;
    let sandbox = home.sandboxes().find(&args.name)?;
    let job = match &args.job {
        Some(id) => find(&sandbox, id)?,
        None => only_job(&sandbox)?,
    };
    let mut output = JobOutput::open(&sandbox, &job)?;
    if !args.logs {
        output.skip()?;
    }
    if !sandbox.is_alive()? {
        return output.show().and_then(|()| job_exit_code(&sandbox, &job.id));
    }
    let stdin = job.stdin && !args.no_stdin;
    let request = Request::Attach(AttachRequest { job: job.id.clone(), stdin });
    let call = connect(&home, &args.name).and_then(|peer| open(peer, &request))?;
    let terminal = if stdin && job.tty {
        RawTerminal::enter().context("cannot use the terminal")?
    } else {
        None
    };
    let end = follow(&args, call, &mut output, &sandbox, (stdin, terminal.is_some()))?;
    drop(terminal);
    match end {
        AttachmentEnd::Detached => {
            print_note(TOOL, &format!("detached; the job '{}' continues to run", job.id));
            Ok(0)
        }
        AttachmentEnd::Event(message) => match serde_json::from_slice(&message) {
            // With its main command an ephemeral sandbox is removed.
            Ok(end @ ExecEvent::Exited { .. }) => {
                match (job_exit_code(&sandbox, &job.id), end.exit_code()) {
                    (Err(_), Some(code)) => Ok(code as u8),
                    (code, _) => code,
                }
            }
            // The job has just ended.
            Ok(ExecEvent::Failed { .. }) if !is_running(&sandbox, &job.id) => {
                job_exit_code(&sandbox, &job.id)
            }
            _ => Err(refusal(&args.name, &message).into()),
        },
        AttachmentEnd::Closed => {
            Err(Failure::failed("the sandbox ended before the job did").into())
        }
    }
}

fn open(connection: ClientConnection, request: &Request) -> anyhow::Result<ClientCall> {
    Ok(connection.open(request)?)
}

fn find(sandbox: &Sandbox, id: &str) -> anyhow::Result<Job> {
    let known = Jobs::of(sandbox)?;
    let job = known.find(id).cloned();
    job.with_context(|| unknown_job(&sandbox.name, id))
}

/// Returns the running job of a sandbox that has one.
fn only_job(sandbox: &Sandbox) -> anyhow::Result<Job> {
    let (name, alive) = (&sandbox.name, sandbox.is_alive()?);
    let mut running = Jobs::of(sandbox)?.jobs;
    running.retain(|job| job.state(alive) == JobState::Running);
    match (running.pop(), running.is_empty()) {
        (Some(job), true) => Ok(job),
        (Some(_), false) => Err(Failure::usage(format!("the sandbox '{name}' has several jobs"))
            .hint(format!("list them: msb jobs {name}"))
            .into()),
        (None, _) => Err(Failure::wrong_state(format!("the sandbox '{name}' has no running job"))
            .hint(format!("follow its main command: msb logs -f {name}"))
            .into()),
    }
}

fn is_running(sandbox: &Sandbox, id: &str) -> bool {
    find(sandbox, id).is_ok_and(|job| job.state(true) == JobState::Running)
}

/// Returns the exit code of a job that has ended.
fn job_exit_code(sandbox: &Sandbox, id: &str) -> anyhow::Result<u8> {
    let job = find(sandbox, id)?;
    let code = job
        .exit_code
        .with_context(|| Failure::failed(format!("the sandbox ended before the job '{id}' did")))?;
    Ok(code as u8)
}

/// Shows output and forwards input until the attachment ends.
fn follow(
    args: &AttachArgs,
    call: ClientCall,
    output: &mut JobOutput<'_>,
    sandbox: &Sandbox,
    (stdin, raw): (bool, bool),
) -> anyhow::Result<AttachmentEnd> {
    let (ends, end) = mpsc::channel();
    let (wake, waker) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .context("cannot create a pipe")?;
    let notifier = EndNotifier { ends, waker };
    if raw {
        forward_window_size(call.sender.clone())?;
    }
    if stdin {
        let keys = raw.then(|| args.detach_keys.clone());
        let (sender, notifier) = (call.sender.clone(), notifier.try_clone()?);
        spawn("stdin", move || pump_input(&sender, keys, &notifier))?;
    }
    spawn("end", move || wait_for_end(call, &notifier))?;
    let mut watch = LogWatch::new(sandbox, &LogSource::COMMANDS);
    loop {
        output.show()?;
        if let Ok(end) = end.try_recv() {
            // The supervisor writes all output to the log before it reports the end.
            output.show()?;
            return Ok(end);
        }
        watch.wait(false, Some(wake.as_fd()))?;
    }
}

/// Notifies the main thread of the attachment's end.
struct EndNotifier {
    ends: mpsc::Sender<AttachmentEnd>,
    waker: OwnedFd,
}

impl EndNotifier {
    fn try_clone(&self) -> anyhow::Result<EndNotifier> {
        Ok(EndNotifier {
            ends: self.ends.clone(),
            waker: self.waker.try_clone().context("cannot duplicate a pipe")?,
        })
    }

    fn notify(&self, end: AttachmentEnd) {
        // Send errors mean that the main thread has ended.
        let _ = self.ends.send(end);
        let _ = rustix::io::write(&self.waker, b"!");
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(work).context("cannot start a thread")?;
    Ok(())
}

fn wait_for_end(mut call: ClientCall, notifier: &EndNotifier) {
    loop {
        match call.reader.receive() {
            Ok(Some(Incoming::Event { message, last: true })) => {
                return notifier.notify(AttachmentEnd::Event(message));
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return notifier.notify(AttachmentEnd::Closed),
        }
    }
}

/// Sends the size of this terminal to the job, now and after each change.
fn forward_window_size(sender: CallSender) -> anyhow::Result<()> {
    let signals = Signals::of(&[signal::SIGWINCH]).context("cannot wait for signals")?;
    spawn("size", move || {
        loop {
            if sender.control(&ExecControl::Resize(window_size())).is_err()
                || signals.wait().is_err()
            {
                return;
            }
        }
    })
}

fn pump_input(sender: &CallSender, mut keys: Option<DetachKeys>, notifier: &EndNotifier) {
    let mut buffer = vec![0; DATA_BYTES];
    // Read from the descriptor directly: the standard library would read ahead and take bytes that
    // belong to others.
    let mut stdin = io::stdin().lock();
    loop {
        let count = match stdin.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let typed = &buffer[..count];
        let (forwarded, detached) = match &mut keys {
            Some(keys) => keys.filter(typed),
            None => (typed.to_vec(), false),
        };
        if sender.data(STDIN, &forwarded).is_err() {
            return;
        }
        if detached {
            return notifier.notify(AttachmentEnd::Detached);
        }
    }
    // An error means that the job has ended.
    let _ = sender.end(STDIN);
}

/// The job's output, read from the log.
struct JobOutput<'a> {
    reader: LogReader,
    job: &'a Job,
}

impl<'a> JobOutput<'a> {
    fn open(sandbox: &Sandbox, job: &'a Job) -> anyhow::Result<JobOutput<'a>> {
        let reader = LogReader::open(sandbox, &LogSource::COMMANDS, None)?;
        Ok(JobOutput { reader, job })
    }

    /// Skips the output so far.
    fn skip(&mut self) -> anyhow::Result<()> {
        while self.next()?.is_some() {}
        Ok(())
    }

    fn next(&mut self) -> anyhow::Result<Option<LogEntry>> {
        self.reader.next_entry().context("cannot read the log")
    }

    /// Prints new output.
    fn show(&mut self) -> anyhow::Result<()> {
        while let Some(entry) = self.next()? {
            if entry.session.as_deref() != Some(&self.job.id) {
                continue;
            }
            if entry.source == LogSource::Stderr {
                // Ignore errors: a user who closed standard error does not want its output.
                let _ = io::stderr().write_all(&entry.data);
            } else {
                let mut stdout = libmsb::cli::output::stdout();
                stdout.write_all(&entry.data)?;
                stdout.flush()?;
            }
        }
        Ok(())
    }
}
