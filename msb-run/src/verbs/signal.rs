//! `msb signal`: sends a signal to a job.

use clap::Parser;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, Failure};
use libmsb::signal_number::SignalNumber;
use libmsb::state::Home;
use libmsb::state::jobs::Jobs;
use msb_wire::exec::{ExecEvent, FailureKind};
use msb_wire::job::{JobEvent, SignalRequest};
use msb_wire::sandbox::Request;

use super::jobs::unknown_job;
use super::{answer, connect, refusal};

/// Send a signal to the processes of a job
#[derive(Debug, Parser)]
#[command(
    name = "msb-signal",
    version,
    after_help = "Examples:\n  msb signal worker 5f0c11d2\n  msb signal -s HUP worker $(msb jobs -q --running worker)"
)]
pub(crate) struct SignalArgs {
    /// Name of the sandbox
    name: SandboxName,
    /// IDs of the jobs
    #[arg(value_name = "JOB", required = true)]
    jobs: Vec<String>,
    /// Set the signal: a name such as HUP or SIGHUP, or a Linux signal number
    #[arg(short, long, default_value = "TERM", value_parser = parse_signal)]
    signal: i32,
}

fn parse_signal(text: &str) -> Result<i32, Failure> {
    Ok(text.parse::<SignalNumber>()?.number())
}

pub(crate) fn run(args: SignalArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    for job in &args.jobs {
        signal(&home, &args.name, job, args.signal)?;
    }
    Ok(())
}

fn signal(home: &Home, name: &SandboxName, job: &str, signal: i32) -> anyhow::Result<()> {
    let request = Request::Signal(SignalRequest { job: job.to_owned(), signal });
    let message = answer(connect(home, name)?, &request)?;
    if let Ok(JobEvent::Signalled) = serde_json::from_slice(&message) {
        return Ok(());
    }
    match serde_json::from_slice(&message) {
        Ok(ExecEvent::Failed { kind: FailureKind::NotFound, .. }) => {
            Err(not_running(home, name, job)?.into())
        }
        _ => Err(refusal(name, &message).into()),
    }
}

/// Returns the error for a job that is not running: it has ended, or never existed.
fn not_running(home: &Home, name: &SandboxName, job: &str) -> anyhow::Result<Failure> {
    let known = Jobs::of(&home.sandboxes().find(name)?)?;
    Ok(match known.find(job) {
        Some(_) => Failure::wrong_state(format!("the job '{job}' has ended"))
            .code(Code::WrongState)
            .hint(format!("show how it ended: msb jobs {name} {job}")),
        None => unknown_job(name, job),
    })
}
