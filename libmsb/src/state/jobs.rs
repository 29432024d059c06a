//! Jobs, commands that go on without a client: `jobs.json`, written by the sandbox's supervisor. man page msb-state(5).
//!
//! The file outlives the client that asked for the job, and the sandbox's run: it is there for whoever wants to know how
//! a job ended. Whether one that has no end runs is said by the sandbox's lock, as with all else.

use msb_wire::text::Text;
use serde::{Deserialize, Serialize};

use super::layout;
use super::sandboxes::Sandbox;
use super::write;

/// Longest file, in bytes: as many jobs as are kept, each with a long command.
pub const JOBS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Jobs that have ended and are still told of. Of more, the oldest are forgotten.
pub const ENDED_JOBS_MAX: usize = 100;

/// A command that runs, or ran, without a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// By which it is found, here and in the log.
    pub id: String,
    /// The program and its arguments.
    pub command: Vec<Text>,
    /// Whether it has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Whether clients that are attached may send it input.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// Its process number in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When it was started.
    pub started_at: jiff::Timestamp,
    /// When it ended, or its sandbox did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<jiff::Timestamp>,
    /// How it ended: its exit code, 128 + n for signal n, 124 when its time was over. None when the sandbox ended first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// It was killed since its time was over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// The guest's kernel killed it for lack of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// Fields of later versions, kept.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// What a job is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It runs.
    Running,
    /// It has ended by itself, or by a signal.
    Exited,
    /// Its sandbox ended while it ran.
    Lost,
}

impl JobState {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            JobState::Running => "Running",
            JobState::Exited => "Exited",
            JobState::Lost => "Lost",
        }
    }
}

impl Job {
    /// What it is, given whether its sandbox lives.
    pub fn state(&self, alive: bool) -> JobState {
        match (self.exit_code, self.ended_at, alive) {
            (Some(_), ..) => JobState::Exited,
            (None, None, true) => JobState::Running,
            (None, ..) => JobState::Lost,
        }
    }
}

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Jobs {
    /// The jobs, in the order in which they were started.
    pub jobs: Vec<Job>,
}

impl Jobs {
    /// Those of a sandbox; none when there has never been one.
    pub fn of(sandbox: &Sandbox) -> anyhow::Result<Jobs> {
        let read = write::read_json(&sandbox.path(layout::JOBS), JOBS_BYTES_MAX)?;
        Ok(read.unwrap_or_default())
    }

    /// Writes the file. For the holder of the sandbox's lock.
    pub fn write(&self, sandbox: &Sandbox) -> anyhow::Result<()> {
        write::replace_json(&sandbox.path(layout::JOBS), self)
    }

    /// The job of an id.
    pub fn find(&self, id: &str) -> Option<&Job> {
        self.jobs.iter().find(|job| job.id == id)
    }

    /// The same, to be changed.
    pub fn find_mut(&mut self, id: &str) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.id == id)
    }

    /// Those that have no end were ended by that of their sandbox. Gives whether there were any.
    pub fn end_all(&mut self, now: jiff::Timestamp) -> bool {
        let mut any = false;
        for job in self.jobs.iter_mut().filter(|job| job.ended_at.is_none()) {
            job.ended_at = Some(now);
            any = true;
        }
        any
    }

    /// Forgets the oldest that have ended, when there are too many.
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
        let mut jobs = Jobs {
            jobs: (0..ENDED_JOBS_MAX + 5).map(|id| job(id, id > 1)).collect(),
        };
        jobs.forget_old();
        assert_eq!(jobs.jobs.len(), ENDED_JOBS_MAX + 2);
        let first: Vec<&str> = jobs
            .jobs
            .iter()
            .map(|job| job.id.as_str())
            .take(3)
            .collect();
        assert_eq!(first, ["0", "1", "5"]);
    }

    #[test]
    fn a_job_without_an_end_runs_only_while_its_sandbox_does() {
        assert_eq!(job(1, false).state(true), JobState::Running);
        assert_eq!(job(1, false).state(false), JobState::Lost);
        assert_eq!(job(1, true).state(true), JobState::Lost);
        let ended = Job {
            exit_code: Some(3),
            ..job(1, true)
        };
        assert_eq!(ended.state(false), JobState::Exited);
    }
}
