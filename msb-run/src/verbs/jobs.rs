//! `msb jobs`: commands of a sandbox that go on without a client, and how those of before ended.

use std::time::SystemTime;

use clap::{Parser, ValueEnum};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, Failure};
use libmsb::cli::output;
use libmsb::cli::style::{Table, age};
use libmsb::state::Home;
use libmsb::state::jobs::{Job, JobState, Jobs};
use msb_wire::text::Text;
use serde::Serialize;

use super::ps::{command_line, shortened};

/// List the jobs of a sandbox: commands that go on without a client
#[derive(Debug, Parser)]
#[command(
    name = "msb-jobs",
    version,
    after_help = "Examples:\n  msb jobs worker\n  msb jobs worker --format json | jq -r '.[] | select(.exit_code != 0).id'"
)]
pub(crate) struct JobsArgs {
    /// The sandbox, running or not
    name: SandboxName,
    /// Only these, by their ids
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,
    /// Only those that run
    #[arg(long)]
    running: bool,
    /// How to print them
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Ids only, one a line
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON array
    Json,
}

/// A job as programs see it.
#[derive(Serialize)]
pub(super) struct Row<'a> {
    id: &'a str,
    status: &'static str,
    command: &'a [Text],
    tty: bool,
    stdin: bool,
    pid: Option<u32>,
    started_at: jiff::Timestamp,
    ended_at: Option<jiff::Timestamp>,
    exit_code: Option<i32>,
    timed_out: bool,
    oom_killed: bool,
}

impl<'a> Row<'a> {
    /// A job, given what it is.
    pub(super) fn of(job: &'a Job, state: JobState) -> Row<'a> {
        Row {
            id: &job.id,
            status: state.word(),
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
    // Asked first: a job without an end in a file that is read later was running then.
    let alive = sandbox.is_alive()?;
    let known = Jobs::of(&sandbox)?;
    if let Some(id) = args.jobs.iter().find(|id| known.find(id).is_none()) {
        return Err(no_such_job(&args.name, id).into());
    }
    let jobs: Vec<(&Job, JobState)> = known
        .jobs
        .iter()
        .map(|job| (job, job.state(alive)))
        .filter(|(job, _)| args.jobs.is_empty() || args.jobs.contains(&job.id))
        .filter(|(_, state)| !args.running || *state == JobState::Running)
        .collect();
    if args.format == Some(Format::Json) {
        let rows: Vec<Row<'_>> = jobs
            .iter()
            .map(|(job, state)| Row::of(job, *state))
            .collect();
        return Ok(output::print_json(&rows)?);
    }
    if args.quiet {
        for (job, _) in jobs {
            output::print(&job.id)?;
        }
        return Ok(());
    }
    if jobs.is_empty() {
        eprintln!("no jobs");
        return Ok(());
    }
    Ok(table(&jobs).print()?)
}

fn table(jobs: &[(&Job, JobState)]) -> Table {
    let mut table = Table::new(&["JOB", "STATUS", "STARTED", "COMMAND"]);
    let now = SystemTime::now();
    for (job, state) in jobs {
        table.row([
            job.id.clone(),
            status(job, *state),
            age(&SystemTime::from(job.started_at), now),
            shortened(&command_line(&job.command)),
        ]);
    }
    table
}

/// The state, and how it came to that.
fn status(job: &Job, state: JobState) -> String {
    let word = state.word();
    match job.exit_code {
        Some(_) if job.timed_out => format!("{word} (timed out)"),
        Some(_) if job.oom_killed => format!("{word} (out of memory)"),
        Some(code) => format!("{word} ({code})"),
        None => word.to_owned(),
    }
}

/// What is said of an id that nobody knows.
pub(super) fn no_such_job(sandbox: &SandboxName, id: &str) -> Failure {
    let id = libmsb::cli::escape::escape(id);
    Failure::not_found(format!("there is no job '{id}' in the sandbox '{sandbox}'"))
        .code(Code::NotFound)
        .hint(format!("`msb jobs {sandbox}` lists them"))
}
