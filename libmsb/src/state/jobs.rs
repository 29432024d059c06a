//! Jobs, commands that run detached in a sandbox: `jobs.json`, written by the sandbox's supervisor.
//! man page msb-state(5).
//!
//! The file outlives the client that started the job, and the run of the sandbox, so the result of
//! a job can be read later. A job without an end runs only if the sandbox is live, as its lock
//! shows.

use msb_wire::text::Text;
use serde::{Deserialize, Serialize};

use super::layout;
use super::sandboxes::Sandbox;
use super::write;

/// Longest file, in bytes: the maximum number of jobs, each with a long command.
pub const JOBS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Limit of ended jobs that are kept. Beyond it the oldest are removed.
pub const ENDED_JOBS_MAX: usize = 100;

/// A job: a command that runs, or ran, without a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// ID of the job, here and in the log.
    pub id: String,
    /// The program and its arguments.
    pub command: Vec<Text>,
    /// True if it has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// True if attached clients may send it input.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// Process ID in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Time of the start.
    #[serde(with = "crate::time")]
    pub started_at: jiff::Timestamp,
    /// Time of the end, of the job or of its sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::time::optional")]
    pub ended_at: Option<jiff::Timestamp>,
    /// Exit code: its own, 128 + n for signal n, 124 after a timeout. `None` if the sandbox ended
    /// first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// True if it was killed after a timeout.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// True if the guest's kernel killed it because it was out of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// Fields of later versions, which are preserved.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// State of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum JobState {
    /// The job runs.
    Running,
    /// The job has ended by itself, or by a signal.
    Exited,
    /// Its sandbox ended while it ran.
    Lost,
}

impl JobState {
    /// Returns the name of the state.
    pub fn name(self) -> &'static str {
        match self {
            JobState::Running => "Running",
            JobState::Exited => "Exited",
            JobState::Lost => "Lost",
        }
    }
}

impl Job {
    /// Returns the state, given whether the sandbox is live.
    pub fn state(&self, alive: bool) -> JobState {
        match (self.exit_code, self.ended_at, alive) {
            (Some(_), ..) => JobState::Exited,
            (None, None, true) => JobState::Running,
            (None, ..) => JobState::Lost,
        }
    }
}

/// The contents of the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Jobs {
    /// Jobs, in the order of their starts.
    pub jobs: Vec<Job>,
}

impl Jobs {
    /// Reads the jobs of a sandbox; none if the file does not exist.
    pub fn of(sandbox: &Sandbox) -> anyhow::Result<Jobs> {
        let read = write::read_json(&sandbox.path(layout::JOBS), JOBS_BYTES_MAX)?;
        Ok(read.unwrap_or_default())
    }

    /// Writes the file. The caller must hold the sandbox's lock.
    pub fn write(&self, sandbox: &Sandbox) -> anyhow::Result<()> {
        write::replace_json(&sandbox.path(layout::JOBS), self)
    }

    /// Returns the job of an ID.
    pub fn find(&self, id: &str) -> Option<&Job> {
        self.jobs.iter().find(|job| job.id == id)
    }

    /// Returns the job of an ID, mutable.
    pub fn find_mut(&mut self, id: &str) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.id == id)
    }

    /// Marks jobs without an end as ended with their sandbox. Returns whether there were any.
    pub fn end_all(&mut self, now: jiff::Timestamp) -> bool {
        let mut any = false;
        for job in self.jobs.iter_mut().filter(|job| job.ended_at.is_none()) {
            job.ended_at = Some(now);
            any = true;
        }
        any
    }

    /// Removes the oldest ended jobs beyond the limit.
    pub fn forget_old(&mut self) {
        let ended = self.jobs.iter().filter(|job| job.ended_at.is_some());
        let mut too_many = ended.count().saturating_sub(ENDED_JOBS_MAX);
        self.jobs.retain(|job| {
            let goes = too_many > 0 && job.ended_at.is_some();
            too_many -= usize::from(goes);
            !goes
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: usize, ended: bool) -> Job {
        Job {
            id: id.to_string(),
            command: vec!["true".into()],
            tty: false,
            stdin: false,
            pid: None,
            started_at: jiff::Timestamp::UNIX_EPOCH,
            ended_at: ended.then_some(jiff::Timestamp::UNIX_EPOCH),
            exit_code: None,
            timed_out: false,
            oom_killed: false,
            other: serde_json::Map::new(),
        }
    }

    #[test]
    fn the_oldest_that_ended_are_forgotten_and_none_that_runs() {
        let mut jobs = Jobs { jobs: (0..ENDED_JOBS_MAX + 5).map(|id| job(id, id > 1)).collect() };
        jobs.forget_old();
        assert_eq!(jobs.jobs.len(), ENDED_JOBS_MAX + 2);
        let first: Vec<&str> = jobs.jobs.iter().map(|job| job.id.as_str()).take(3).collect();
        assert_eq!(first, ["0", "1", "5"]);
    }

    #[test]
    fn a_job_without_an_end_runs_only_while_its_sandbox_does() {
        assert_eq!(job(1, false).state(true), JobState::Running);
        assert_eq!(job(1, false).state(false), JobState::Lost);
        assert_eq!(job(1, true).state(true), JobState::Lost);
        let ended = Job { exit_code: Some(3), ..job(1, true) };
        assert_eq!(ended.state(false), JobState::Exited);
    }
}
