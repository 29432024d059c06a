//! Jobs: commands that go on without a client.
//!
//! A client opens a stream with an [`crate::exec::ExecRequest`] whose `job` is set. The supervisor has the command started,
//! answers [`JobEvent::Started`], which ends the stream, and keeps what the command prints in the sandbox's log, under
//! the job's id. [`JobEvent`] answers a [`SignalRequest`] too. The stream of an [`AttachRequest`] stays open until the job
//! ends, and its last event is that of the command: [`crate::exec::ExecEvent::Exited`]. On it the client may send bytes for
//! the command's standard input, under credit as everywhere, and [`crate::exec::ExecControl`]. Output does not come on it:
//! it is in the log, where a slow reader holds up nobody. A job that is not there, or has ended, is refused with
//! [`crate::exec::ExecEvent::Failed`].

use serde::{Deserialize, Serialize};

/// Jobs of a sandbox that run at a time.
pub const JOBS_RUNNING_MAX: usize = 256;

/// Sends a signal to a job's process group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalRequest {
    /// The job's id.
    pub job: String,
    /// Number of the signal on Linux.
    pub signal: i32,
}

/// Stays with a job until it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// The job's id.
    pub job: String,
    /// Whether the client will send input. One client at a time may.
    #[serde(default)]
    pub stdin: bool,
}

/// What the supervisor says of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum JobEvent {
    /// Last: the command runs, and goes on without the client.
    #[serde(rename = "job_started")]
    Started {
        /// The name by which it is found again.
        job: String,
    },
    /// Last: the signal is on its way.
    Signalled,
}
