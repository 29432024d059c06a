//! `msb wait`: wait for the end of sandboxes, and tell how they ended.

use anyhow::Context;
use clap::{Parser, ValueEnum};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::Failure;
use libmsb::cli::output;
use libmsb::cli::verbosity::{Verbosity, say};
use libmsb::jsonl;
use libmsb::state::Home;
use libmsb::state::jobs::{Job, JobState, Jobs};
use libmsb::state::status::{Reason, State, Status};
use msb_wire::client::{ClientError, Connection, Incoming};
use msb_wire::job::AttachRequest;
use msb_wire::sandbox::{EndEvent, Request};
use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;

use super::jobs::{self, no_such_job};
use super::selection::Selection;
use super::stop::watch;
use super::{answer, connect};

const TOOL: &str = "msb-wait";

/// How often the file of jobs is read when it does not say what the supervisor says: for the ten seconds that a supervisor
/// may take to end.
const WRITTEN_LOOKS: u32 = 500;

/// How often a supervisor that cannot be reached is tried again while it seems to be alive: for two seconds.
const DYING_LOOKS: u32 = 100;

/// Wait until sandboxes have ended; print their exit codes and why they ended
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb wait web\n  msb wait --job 5f0c11d2 worker\n  msb wait job --format json | jq -r .reason\n  timeout 60 msb wait web"
)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    selection: Selection,
    /// Wait for this job of the sandbox, and not for the sandbox
    #[arg(long, value_name = "ID")]
    job: Option<String>,
    /// How to print them (default: a line 'EXIT-CODE REASON')
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object a line
    Json,
}

/// How a sandbox ended.
#[derive(Serialize)]
struct Ended {
    name: SandboxName,
    status: String,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    exit_code: Option<i32>,
    clean: Option<bool>,
}

/// How a job ended.
#[derive(Serialize)]
struct EndedJob<'a> {
    name: &'a SandboxName,
    #[serde(flatten)]
    job: jobs::Row<'a>,
}

pub(crate) fn run(args: WaitArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    for name in args.selection.names(TOOL, &home)? {
        if let Some(job) = &args.job {
            tell_job(&wait_for_job(&home, &name, job)?, &name, args.format)?;
            continue;
        }
        let ended = wait(&home, &name)?;
        if args.format == Some(Format::Json) {
            let line = jsonl::to_string(&ended).context("cannot write JSON")?;
            output::print(&line)?;
        } else {
            let code = ended
                .exit_code
                .map_or_else(|| "-".to_owned(), |code| code.to_string());
            output::print(&format!("{code} {}", ended.reason))?;
        }
    }
    Ok(())
}

/// Waits until a job has ended, and gives it with what it is then.
fn wait_for_job(home: &Home, name: &SandboxName, id: &str) -> anyhow::Result<(Job, JobState)> {
    let request = Request::Attach(AttachRequest {
        job: id.to_owned(),
        stdin: false,
    });
    // The supervisor writes down how a job ended before it tells; unless its disk is full.
    for _ in 0..WRITTEN_LOOKS {
        let sandbox = home.sandboxes().find(name)?;
        let alive = sandbox.is_alive()?;
        let known = Jobs::of(&sandbox)?;
        let job = known.find(id).with_context(|| no_such_job(name, id))?;
        let state = job.state(alive);
        if state != JobState::Running {
            return Ok((job.clone(), state));
        }
        // Answered when it ends, or at once when it has; the file says how.
        if let Some(connection) = reach(home, name)? {
            drop(answer(connection, &request));
        }
        // Until a supervisor that has told us all it will has let go of the lock.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let message = format!("it was not written down how the job '{id}' ended");
    Err(Failure::failed(message).hint("the disk may be full").into())
}

fn tell_job(
    (job, state): &(Job, JobState),
    name: &SandboxName,
    format: Option<Format>,
) -> anyhow::Result<()> {
    if format == Some(Format::Json) {
        let line = jsonl::to_string(&EndedJob {
            name,
            job: jobs::Row::of(job, *state),
        })
        .context("cannot write JSON")?;
        return Ok(output::print(&line)?);
    }
    let reason = match (job.exit_code, job.timed_out, job.oom_killed) {
        (None, ..) => "sandbox_ended",
        (_, true, _) => "timed_out",
        (_, _, true) => "out_of_memory",
        _ => "completed",
    };
    let code = job
        .exit_code
        .map_or("-".to_owned(), |code| code.to_string());
    Ok(output::print(&format!("{code} {reason}"))?)
}

fn wait(home: &Home, name: &SandboxName) -> anyhow::Result<Ended> {
    let sandbox = home.sandboxes().find(name)?;
    if sandbox.is_alive()?
        && let Some(ended) = wait_for_supervisor(home, name)?
    {
        return Ok(ended);
    }
    // Its supervisor was killed, or is of a release that does not tell: the folder says what there is to be said, when
    // the lock is free, and so also the machine gone.
    while sandbox.is_alive()? {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let seen = sandbox.look()?;
    if seen.state == State::Created {
        return Err(
            Failure::wrong_state(format!("the sandbox '{name}' was never started"))
                .hint(format!("start it: msb start {name}"))
                .into(),
        );
    }
    Ok(ended(name, seen.state, seen.status))
}

/// A connection to a supervisor whose end is waited for. `None`: that end has come. What is killed does not go at one
/// moment: it may be connected to and break, and its machine may hold the lock a little longer.
fn reach(home: &Home, name: &SandboxName) -> anyhow::Result<Option<Connection>> {
    let mut looks = 0;
    loop {
        let error = match connect(home, name) {
            Ok(connection) => return Ok(Some(connection)),
            Err(error) => error,
        };
        if !home.sandboxes().find(name)?.is_alive()? {
            return Ok(None);
        }
        looks += 1;
        if looks == DYING_LOOKS {
            return Err(error);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The supervisor knows how it ended also when the sandbox's folder goes with it. `None` when it cannot say.
fn wait_for_supervisor(home: &Home, name: &SandboxName) -> anyhow::Result<Option<Ended>> {
    let Some(connection) = reach(home, name)? else {
        return Ok(None);
    };
    let supervisor = watch(connection.socket())?;
    let mut call = match connection.open(&Request::Wait) {
        Ok(call) => call,
        // It does not know how to tell, or is just ending.
        Err(ClientError::Unsupported(_) | ClientError::Io(_)) => {
            poll(&mut [PollFd::new(&supervisor, PollFlags::IN)], None)
                .context("cannot wait for the supervisor")?;
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    say(Verbosity::Debug, || {
        format!("waiting for the end of the sandbox '{name}'")
    });
    while let Ok(Some(incoming)) = call.reader.receive() {
        let Incoming::Event {
            message,
            last: true,
        } = incoming
        else {
            continue;
        };
        let EndEvent::Ended {
            state,
            reason,
            message,
            exit_code,
            clean,
        } = serde_json::from_slice(&message).context("cannot understand the supervisor")?;
        return Ok(Some(Ended {
            name: name.clone(),
            status: state,
            reason,
            message,
            exit_code,
            clean: Some(clean),
        }));
    }
    Ok(None)
}

fn ended(name: &SandboxName, state: State, status: Status) -> Ended {
    // A state that the lock contradicts was written by a supervisor that was killed.
    let told = status.state == state;
    let reason = if told { status.reason } else { None };
    Ended {
        name: name.clone(),
        status: state.word().to_owned(),
        reason: reason.unwrap_or(Reason::SupervisorGone).word(),
        message: status.message.filter(|_| told),
        exit_code: status.exit_code,
        clean: status.clean.filter(|_| told),
    }
}
