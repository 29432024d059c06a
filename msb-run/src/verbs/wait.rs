//! `msb wait`: waits for the end of sandboxes, and prints how they ended.

use anyhow::Context;
use clap::{Parser, ValueEnum};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::Failure;
use libmsb::cli::verbosity::{Verbosity, log};
use libmsb::jsonl;
use libmsb::state::Home;
use libmsb::state::jobs::{Job, JobState, Jobs};
use libmsb::state::status::{Reason, State, Status};
use msb_wire::client::{ClientConnection, ClientError, Incoming};
use msb_wire::job::AttachRequest;
use msb_wire::sandbox::{EndEvent, Request};
use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;

use super::jobs::{self, unknown_job};
use super::selection::{SelectionArgs, for_each};
use super::stop::open_pidfd;
use super::{answer, connect};

const TOOL: &str = "msb-wait";

/// Maximum number of reads of the jobs file after the supervisor has reported the end: for the ten
/// seconds that a supervisor may take to end.
const JOBS_FILE_READS_MAX: u32 = 500;

/// Maximum number of connection attempts to a supervisor that seems to be alive: for two seconds.
const CONNECT_ATTEMPTS_MAX: u32 = 100;

/// Wait until sandboxes have ended
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb wait web\n  msb wait --job 5f0c11d2 worker\n  msb wait job --format json | jq -r .reason\n  timeout 60 msb wait web"
)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Wait for this job of the sandbox instead
    ///
    /// The line has the exit code of the job and `completed`, `timed_out`, `out_of_memory` or
    /// `sandbox_ended`. The JSON object has `name` and the fields of msb-jobs(1).
    #[arg(long, value_name = "ID")]
    job: Option<String>,
    /// Print a JSON object per line, instead of the exit code and the reason
    #[arg(long, value_enum)]
    format: Option<WaitFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WaitFormat {
    Json,
}

/// The end of a sandbox.
#[derive(Serialize)]
struct SandboxOutcome {
    name: SandboxName,
    status: String,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    exit_code: Option<i32>,
    clean: Option<bool>,
}

/// The end of a job.
#[derive(Serialize)]
struct JobOutcome<'a> {
    name: &'a SandboxName,
    #[serde(flatten)]
    job: jobs::JobRow<'a>,
}

pub(crate) fn run(args: WaitArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let names = args.selection.names(TOOL, &home)?;
    for_each(TOOL, &names, |name| {
        if let Some(job) = &args.job {
            return job_line(&wait_for_job(&home, name, job)?, name, args.format).map(Some);
        }
        let outcome = wait(&home, name)?;
        if args.format == Some(WaitFormat::Json) {
            return Ok(Some(jsonl::to_string(&outcome).context("cannot write JSON")?));
        }
        let code = outcome.exit_code.map_or_else(|| "-".to_owned(), |code| code.to_string());
        Ok(Some(format!("{code} {}", outcome.reason)))
    })
}

/// Waits until a job has ended. Returns it with its state.
fn wait_for_job(home: &Home, name: &SandboxName, id: &str) -> anyhow::Result<(Job, JobState)> {
    let request = Request::Attach(AttachRequest { job: id.to_owned(), stdin: false });
    // The supervisor records the end of a job before it reports it, unless its disk is full.
    for _ in 0..JOBS_FILE_READS_MAX {
        let sandbox = home.sandboxes().find(name)?;
        let alive = sandbox.is_alive()?;
        let known = Jobs::of(&sandbox)?;
        let job = known.find(id).with_context(|| unknown_job(name, id))?;
        let state = job.state(alive);
        if state != JobState::Running {
            return Ok((job.clone(), state));
        }
        // The answer comes when the job ends, or at once if it has ended. The file has the outcome.
        if let Some(connection) = connect_until_exit(home, name)? {
            drop(answer(connection, &request));
        }
        // Give a supervisor that has sent its last report time to release the lock.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let message = format!("the outcome of the job '{id}' was not recorded");
    Err(Failure::failed(message).hint("check the free disk space: msb doctor").into())
}

fn job_line(
    (job, state): &(Job, JobState),
    name: &SandboxName,
    format: Option<WaitFormat>,
) -> anyhow::Result<String> {
    if format == Some(WaitFormat::Json) {
        return jsonl::to_string(&JobOutcome { name, job: jobs::JobRow::of(job, *state) })
            .context("cannot write JSON");
    }
    let reason = match (job.exit_code, job.timed_out, job.oom_killed) {
        (None, ..) => "sandbox_ended",
        (_, true, _) => "timed_out",
        (_, _, true) => "out_of_memory",
        _ => "completed",
    };
    let code = job.exit_code.map_or("-".to_owned(), |code| code.to_string());
    Ok(format!("{code} {reason}"))
}

fn wait(home: &Home, name: &SandboxName) -> anyhow::Result<SandboxOutcome> {
    let sandbox = home.sandboxes().find(name)?;
    if sandbox.is_alive()?
        && let Some(outcome) = wait_for_supervisor(home, name)?
    {
        return Ok(outcome);
    }
    // The supervisor was killed, or is of a version that does not report the end. The directory has
    // the outcome once the lock is free, and with it the VM has ended.
    while sandbox.is_alive()? {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let seen = sandbox.snapshot()?;
    if seen.state == State::Created {
        return Err(Failure::wrong_state(format!("the sandbox '{name}' was never started"))
            .hint(format!("start it: msb start {name}"))
            .into());
    }
    Ok(outcome(name, seen.state, seen.status))
}

/// Connects to a supervisor whose end is awaited. Returns `None` if it has ended. A killed
/// supervisor does not end at once: it may accept a connection that breaks, and its VM may hold the
/// lock a little longer.
fn connect_until_exit(home: &Home, name: &SandboxName) -> anyhow::Result<Option<ClientConnection>> {
    let mut attempts = 0;
    loop {
        let error = match connect(home, name) {
            Ok(connection) => return Ok(Some(connection)),
            Err(error) => error,
        };
        if !home.sandboxes().find(name)?.is_alive()? {
            return Ok(None);
        }
        attempts += 1;
        if attempts == CONNECT_ATTEMPTS_MAX {
            return Err(error);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Waits for the supervisor's report, which also exists when the sandbox's directory is removed.
/// Returns `None` if there is none.
fn wait_for_supervisor(home: &Home, name: &SandboxName) -> anyhow::Result<Option<SandboxOutcome>> {
    let Some(connection) = connect_until_exit(home, name)? else {
        return Ok(None);
    };
    let supervisor = open_pidfd(connection.socket())?;
    let mut call = match connection.open(&Request::Wait) {
        Ok(call) => call,
        // The supervisor does not support the request, or is just ending.
        Err(ClientError::Unsupported(_) | ClientError::Io(_)) => {
            poll(&mut [PollFd::new(&supervisor, PollFlags::IN)], None)
                .context("cannot wait for the supervisor")?;
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    log(Verbosity::Debug, || format!("waiting for the end of the sandbox '{name}'"));
    while let Ok(Some(incoming)) = call.reader.receive() {
        let Incoming::Event { message, last: true } = incoming else {
            continue;
        };
        let EndEvent::Ended { state, reason, message, exit_code, clean } =
            serde_json::from_slice(&message).context("cannot parse the supervisor's report")?;
        return Ok(Some(SandboxOutcome {
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

fn outcome(name: &SandboxName, state: State, status: Status) -> SandboxOutcome {
    // If the state contradicts the lock, the supervisor that wrote it was killed.
    let is_current = status.state == state;
    let reason = if is_current { status.reason } else { None };
    SandboxOutcome {
        name: name.clone(),
        status: state.name().to_owned(),
        reason: reason.unwrap_or(Reason::SupervisorGone).name(),
        message: status.message.filter(|_| is_current),
        exit_code: status.exit_code,
        clean: status.clean.filter(|_| is_current),
    }
}
