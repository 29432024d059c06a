//! `msb attach`: be with a job, as if it had been started here.
//!
//! What the job prints is read from the sandbox's log, so that a terminal which does not keep up holds nobody up; what is
//! typed goes to it over the sandbox's socket, which also tells when it ends.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;

use anyhow::Context;
use clap::Parser;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Failure, print_note};
use libmsb::logs::{Entry, Reader, Source};
use libmsb::signals::{Signals, signal};
use libmsb::state::Home;
use libmsb::state::jobs::{Job, JobState, Jobs};
use libmsb::state::sandboxes::Sandbox;
use msb_wire::client::{Call, Connection, Incoming, Sender};
use msb_wire::exec::{ExecControl, ExecEvent};
use msb_wire::frame::STDIN;
use msb_wire::job::AttachRequest;
use msb_wire::limits::DATA_BYTES;
use msb_wire::sandbox::Request;

use super::detach_keys::DetachKeys;
use super::jobs::no_such_job;
use super::logs::Watch;
use super::{connect, refusal};
use crate::terminal::{RawTerminal, window_size};

const TOOL: &str = "msb-attach";

/// Be with a job: see what it prints, send it input, and end as it does
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb attach worker 5f0c11d2\n  msb attach --logs worker $(msb exec -d worker -- make)"
)]
pub(crate) struct AttachArgs {
    /// The sandbox
    name: SandboxName,
    /// The job, by its id
    job: String,
    /// Show what it has printed before, too
    #[arg(long)]
    logs: bool,
    /// Do not send it input
    #[arg(long)]
    no_stdin: bool,
    /// On a terminal, the keys that leave the job alone again
    #[arg(long, value_name = "KEYS", default_value = "ctrl-]")]
    detach_keys: DetachKeys,
}

/// What ends being with a job.
enum End {
    /// Its last event, or a refusal.
    Event(Vec<u8>),
    /// Nobody serves us any more.
    Gone,
    /// The user's keys.
    Left,
}

pub(crate) fn run(args: AttachArgs) -> anyhow::Result<u8> {
    let home = Home::from_env()?;
    let sandbox = home.sandboxes().find(&args.name)?;
    let job = find(&sandbox, &args.job)?;
    let mut output = Output::open(&sandbox, &job)?;
    if !args.logs {
        output.skip()?;
    }
    if !sandbox.is_alive()? {
        return output.show().and_then(|()| ended(&sandbox, &args.job));
    }
    let stdin = job.stdin && !args.no_stdin;
    let request = Request::Attach(AttachRequest {
        job: job.id.clone(),
        stdin,
    });
    let call = connect(&home, &args.name).and_then(|peer| open(peer, &request))?;
    let terminal = if stdin && job.tty {
        RawTerminal::enter().context("cannot use the terminal")?
    } else {
        None
    };
    let end = follow(
        &args,
        call,
        &mut output,
        &sandbox,
        (stdin, terminal.is_some()),
    )?;
    drop(terminal);
    match end {
        End::Left => {
            print_note(TOOL, &format!("the job '{}' goes on", job.id));
            Ok(0)
        }
        End::Event(message) => match serde_json::from_slice(&message) {
            Ok(ExecEvent::Exited { .. }) => ended(&sandbox, &args.job),
            // It has ended in this moment.
            Ok(ExecEvent::Failed { .. }) if !runs(&sandbox, &args.job) => {
                ended(&sandbox, &args.job)
            }
            _ => Err(refusal(&args.name, &message).into()),
        },
        End::Gone => Err(Failure::failed("the sandbox ended before the job did").into()),
    }
}

fn open(connection: Connection, request: &Request) -> anyhow::Result<Call> {
    Ok(connection.open(request)?)
}

fn find(sandbox: &Sandbox, id: &str) -> anyhow::Result<Job> {
    let known = Jobs::of(sandbox)?;
    let job = known.find(id).cloned();
    job.with_context(|| no_such_job(&sandbox.name, id))
}

fn runs(sandbox: &Sandbox, id: &str) -> bool {
    find(sandbox, id).is_ok_and(|job| job.state(true) == JobState::Running)
}

/// The exit code of a job that has ended.
fn ended(sandbox: &Sandbox, id: &str) -> anyhow::Result<u8> {
    let job = find(sandbox, id)?;
    let code = job
        .exit_code
        .with_context(|| Failure::failed(format!("the sandbox ended before the job '{id}' did")))?;
    Ok(code as u8)
}

/// Shows output and passes input on, until something ends that.
fn follow(
    args: &AttachArgs,
    call: Call,
    output: &mut Output<'_>,
    sandbox: &Sandbox,
    (stdin, raw): (bool, bool),
) -> anyhow::Result<End> {
    let (ends, end) = mpsc::channel();
    let (wake, waker) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let bell = Bell { ends, waker };
    if raw {
        follow_size(call.sender.clone())?;
    }
    if stdin {
        let keys = raw.then(|| args.detach_keys.clone());
        let (sender, bell) = (call.sender.clone(), bell.another()?);
        spawn("stdin", move || pump_input(&sender, keys, &bell))?;
    }
    spawn("end", move || wait_for_end(call, &bell))?;
    let mut watch = Watch::new(sandbox, &Source::COMMANDS);
    loop {
        output.show()?;
        if let Ok(end) = end.try_recv() {
            // All that it printed was in the log before its end was told.
            output.show()?;
            return Ok(end);
        }
        watch.wait(false, Some(wake.as_fd()))?;
    }
}

/// Tells the main thread of an end.
struct Bell {
    ends: mpsc::Sender<End>,
    waker: OwnedFd,
}

impl Bell {
    fn another(&self) -> anyhow::Result<Bell> {
        Ok(Bell {
            ends: self.ends.clone(),
            waker: self.waker.try_clone().context("cannot copy a pipe")?,
        })
    }

    fn ring(&self, end: End) {
        // Who does not listen has ended.
        let _ = self.ends.send(end);
        let _ = rustix::io::write(&self.waker, b"!");
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(work).context("cannot start a thread")?;
    Ok(())
}

fn wait_for_end(mut call: Call, bell: &Bell) {
    loop {
        match call.reader.receive() {
            Ok(Some(Incoming::Event {
                message,
                last: true,
            })) => return bell.ring(End::Event(message)),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return bell.ring(End::Gone),
        }
    }
}

/// Tells the job's terminal our size, now and whenever it changes.
fn follow_size(sender: Sender) -> anyhow::Result<()> {
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

fn pump_input(sender: &Sender, mut keys: Option<DetachKeys>, bell: &Bell) {
    let mut buffer = vec![0; DATA_BYTES];
    // The descriptor itself: the standard library would read ahead what is not ours to take.
    let mut stdin = io::stdin().lock();
    loop {
        let count = match stdin.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let typed = &buffer[..count];
        let (passed, left) = match &mut keys {
            Some(keys) => keys.filter(typed),
            None => (typed.to_vec(), false),
        };
        if sender.data(STDIN, &passed).is_err() {
            return;
        }
        if left {
            return bell.ring(End::Left);
        }
    }
    // When the job is over there is nobody to be told.
    let _ = sender.end(STDIN);
}

/// What the job prints, from the log.
struct Output<'a> {
    reader: Reader,
    job: &'a Job,
}

impl<'a> Output<'a> {
    fn open(sandbox: &Sandbox, job: &'a Job) -> anyhow::Result<Output<'a>> {
        let reader = Reader::open(sandbox, &Source::COMMANDS, None)?;
        Ok(Output { reader, job })
    }

    /// Passes over what is there by now.
    fn skip(&mut self) -> anyhow::Result<()> {
        while self.next()?.is_some() {}
        Ok(())
    }

    fn next(&mut self) -> anyhow::Result<Option<Entry>> {
        self.reader.next_entry().context("cannot read the log")
    }

    /// Prints what came.
    fn show(&mut self) -> anyhow::Result<()> {
        while let Some(entry) = self.next()? {
            if entry.session.as_deref() != Some(&self.job.id) {
                continue;
            }
            if entry.source == Source::Stderr {
                // Whoever closed it wants none of it.
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
