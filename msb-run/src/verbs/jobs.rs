//! `msb jobs`: lists the jobs of a sandbox, with the outcome of ended ones.

use clap::{Parser, ValueEnum};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, Failure, print_remark};
use libmsb::cli::output;
use libmsb::cli::style::{Table, when};
use libmsb::state::Home;
use libmsb::state::jobs::{Job, JobState, Jobs};
use msb_wire::text::Text;
use serde::Serialize;

use super::ps::{command_line, truncate_command};

const TOOL: &str = "msb-jobs";

/// List the jobs of a sandbox: commands that run without a client
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb jobs worker\n  msb jobs worker --format json | jq -r '.[] | select(.exit_code != 0).id'"
)]
pub(crate) struct JobsArgs {
    /// Name of the sandbox, running or not
    name: SandboxName,
    /// List these jobs only, by ID
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,
    /// List running jobs only
    #[arg(long)]
    running: bool,
    /// Print an array of JSON objects
    ///
    /// Each object has `id`, `status`, `command` (an array), `tty`, `stdin` (whether the job
    /// accepts input), `pid` (in the guest), `started_at`, `ended_at`, `exit_code`, `timed_out` and
    /// `oom_killed`.
    #[arg(long, value_enum)]
    format: Option<JobsFormat>,
    /// Print local times instead of ages
    #[arg(long)]
    absolute: bool,
    /// Print IDs only, one per line
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum JobsFormat {
    Json,
}

/// JSON form of a job.
#[derive(Serialize)]
pub(super) struct JobRow<'a> {
    id: &'a str,
    status: &'static str,
    command: &'a [Text],
    tty: bool,
    stdin: bool,
    pid: Option<u32>,
    #[serde(with = "libmsb::time")]
    started_at: jiff::Timestamp,
    #[serde(with = "libmsb::time::optional")]
    ended_at: Option<jiff::Timestamp>,
    exit_code: Option<i32>,
    timed_out: bool,
    oom_killed: bool,
}

impl<'a> JobRow<'a> {
    /// Returns the JSON form of a job in the given state.
    pub(super) fn of(job: &'a Job, state: JobState) -> JobRow<'a> {
        JobRow {
            id: &job.id,
            status: state.name(),
            command: &job.command,
            tty: job.tty,
            stdin: job.stdin,
            pid: job.pid,
            started_at: job.started_at,
            ended_at: job.ended_at,
            exit_code: job.exit_code,
            timed_out: job.timed_out,
            oom_killed: job.oom_killed,
        }
    }
}

pub(crate) fn run(args: JobsArgs) -> anyhow::Result<()> {
    let sandbox = Home::from_env()?.sandboxes().find(&args.name)?;
    // Check the lock first: a job without an end in the file read later was running at this time.
    let alive = sandbox.is_alive()?;
    let known = Jobs::of(&sandbox)?;
    if let Some(id) = args.jobs.iter().find(|id| known.find(id).is_none()) {
        return Err(unknown_job(&args.name, id).into());
    }
    let jobs: Vec<(&Job, JobState)> = known
        .jobs
        .iter()
        .map(|job| (job, job.state(alive)))
        .filter(|(job, _)| args.jobs.is_empty() || args.jobs.contains(&job.id))
        .filter(|(_, state)| !args.running || *state == JobState::Running)
        .collect();
    if args.format == Some(JobsFormat::Json) {
        let rows: Vec<JobRow<'_>> =
            jobs.iter().map(|(job, state)| JobRow::of(job, *state)).collect();
        return Ok(output::print_json(&rows)?);
    }
    if args.quiet {
        for (job, _) in jobs {
            output::print(&job.id)?;
        }
        return Ok(());
    }
    if jobs.is_empty() {
        print_remark(TOOL, "no jobs");
        return Ok(());
    }
    Ok(table(&jobs, args.absolute).print()?)
}

fn table(jobs: &[(&Job, JobState)], absolute: bool) -> Table {
    let mut table = Table::new(&["JOB", "STATUS", "STARTED", "COMMAND"]);
    for (job, state) in jobs {
        table.row([
            job.id.clone(),
            status(job, *state),
            when(job.started_at, absolute),
            truncate_command(&command_line(&job.command)),
        ]);
    }
    table
}

/// Describes the state of a job and its outcome.
fn status(job: &Job, state: JobState) -> String {
    let word = state.name();
    match job.exit_code {
        Some(_) if job.timed_out => format!("{word} (timed out)"),
        Some(_) if job.oom_killed => format!("{word} (out of memory)"),
        Some(code) => format!("{word} ({code})"),
        None => word.to_owned(),
    }
}

/// Returns the error for an unknown job ID.
pub(super) fn unknown_job(sandbox: &SandboxName, id: &str) -> Failure {
    let id = libmsb::cli::escape::escape(id);
    Failure::not_found(format!("there is no job '{id}' in the sandbox '{sandbox}'"))
        .code(Code::NotFound)
        .hint(format!("list the jobs: msb jobs {sandbox}"))
}
