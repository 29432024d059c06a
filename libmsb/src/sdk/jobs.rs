//! Jobs: commands that continue without a client.

use msb_wire::client::Incoming;
use msb_wire::exec::ExecEvent;
use msb_wire::job::{AttachRequest, JobEvent, SignalRequest};
use msb_wire::sandbox::Request;
use serde::Deserialize;

use super::address::Address;
use super::error::Error;
use super::exec;
use super::logs::{LogOptions, LogStream};
use super::tool;
use crate::cli::error::Code;
use crate::state::jobs::JobState;

const TOOL: &str = "msb-jobs";

/// A command that continues without a client. It survives this program; another one finds it with
/// [`super::SandboxHandle::jobs`].
///
/// ```no_run
/// # use libmsb::sdk::{ExecOptions, Sandbox};
/// # fn main() -> Result<(), libmsb::sdk::Error> {
/// let sandbox = Sandbox::get("worker")?;
/// let job = sandbox.start_job(["make", "-j2"], &ExecOptions::default())?;
/// println!("{} ended with {}", job.id(), job.wait()?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Job {
    sandbox: Address,
    id: String,
}

/// State of a job, as `msb jobs` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct JobInfo {
    /// ID.
    pub id: String,
    /// State: running, exited, or lost if the sandbox ended before the job.
    pub status: JobState,
    /// The command. Bytes that are not UTF-8 are replaced.
    pub command: Vec<String>,
    /// Process ID in the guest.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Exit code; 128 + signal if a signal killed it.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// True if it was killed at its time limit.
    #[serde(default)]
    pub timed_out: bool,
    /// True if the guest's kernel has killed it for lack of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// Time of the start, RFC 3339.
    #[serde(default)]
    pub started_at: Option<String>,
    /// Time of the end, RFC 3339.
    #[serde(default)]
    pub ended_at: Option<String>,
}

impl Job {
    pub(super) fn new(sandbox: Address, id: String) -> Job {
        Job { sandbox, id }
    }

    /// Returns the ID.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the state.
    pub fn info(&self) -> Result<JobInfo, Error> {
        let found = list(&self.sandbox, Some(&self.id))?.into_iter().next();
        found.ok_or_else(|| Error::new(Code::Failed, format!("{TOOL} printed no job")))
    }

    /// Waits for the end and returns the exit code. A job that the sandbox did not survive is an
    /// error with [`Code::SandboxNotRunning`].
    pub fn wait(&self) -> Result<i32, Error> {
        let request = AttachRequest { job: self.id.clone(), stdin: false };
        let attached = self.sandbox.connection().and_then(|connection| {
            let mut call = connection.open(&Request::Attach(request))?;
            while let Some(incoming) = call.reader.receive()? {
                if let Incoming::Event { message, last: true } = incoming {
                    return Ok(serde_json::from_slice::<ExecEvent>(&message).ok());
                }
            }
            Ok(None)
        });
        let last = match attached {
            Ok(last) => last,
            Err(error) if error.code == Code::SandboxNotRunning => None,
            Err(error) => return Err(error),
        };
        // A job that had ended before has its exit code in its record.
        if let Some(code) = self.info()?.exit_code {
            return Ok(code);
        }
        // The record is written after the event.
        match last.as_ref().and_then(ExecEvent::exit_code) {
            Some(code) => Ok(code),
            None => {
                let message = format!("the sandbox ended before the job '{}'", self.id);
                Err(Error::new(Code::SandboxNotRunning, message))
            }
        }
    }

    /// Sends a signal, by its number on Linux, to the job's process group.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        let request = Request::Signal(SignalRequest { job: self.id.clone(), signal });
        let event = exec::answer(self.sandbox.connection()?, &request)?;
        match serde_json::from_slice(&event) {
            Ok(JobEvent::Signalled) => Ok(()),
            _ => Err(Error::new(Code::Failed, "invalid answer of the sandbox's supervisor")),
        }
    }

    /// Kills the job's process group.
    pub fn kill(&self) -> Result<(), Error> {
        self.signal(libc::SIGKILL)
    }

    /// Returns a stream of what the job prints.
    pub fn log_stream(&self, options: &LogOptions) -> Result<LogStream, Error> {
        LogStream::open(&self.sandbox, Some(&self.id), options)
    }
}

/// Returns the jobs of a sandbox, or one of them.
pub(super) fn list(sandbox: &Address, job: Option<&str>) -> Result<Vec<JobInfo>, Error> {
    let mut args = vec!["--format=json", "--", sandbox.name()];
    args.extend(job);
    tool::parse(TOOL, &tool::run(&sandbox.home, TOOL, args)?)
}
