//! Jobs: detached commands, which continue without a client.
//!
//! A client opens a stream with an [`crate::exec::ExecRequest`] whose `job` is set. The supervisor
//! has the command started and answers [`JobEvent::Started`], which ends the stream. It writes the
//! output to the sandbox's log, under the job's ID. [`JobEvent`] answers a [`SignalRequest`] too.
//!
//! The stream of an [`AttachRequest`] stays open until the job ends, and its last event is that of
//! the command: [`crate::exec::ExecEvent::Exited`]. On it the client may send bytes for the
//! command's standard input, under flow control as everywhere, and [`crate::exec::ExecControl`].
//! Output does not come on this stream: it is in the log, where a slow reader stalls no process. A
//! job that does not exist, or has ended, is refused with [`crate::exec::ExecEvent::Failed`].

use serde::{Deserialize, Serialize};

/// Limit of running jobs of a sandbox.
pub const JOBS_RUNNING_MAX: usize = 256;

/// A request to send a signal to a job's process group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalRequest {
    /// The job's ID.
    pub job: String,
    /// Signal number on Linux.
    pub signal: i32,
}

/// A request to attach to a job until it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// The job's ID.
    pub job: String,
    /// True if the client will send input. Only one client at a time may.
    #[serde(default)]
    pub stdin: bool,
}

/// A control message of a client on the stream of a command on a terminal, for the supervisor, with
/// the operation [`crate::handshake::operation::JOBS_DETACH`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum DetachControl {
    /// Makes the command a job. [`JobEvent::Started`] ends the stream; the message has no effect if
    /// too many jobs are running.
    Detach {
        /// Time after which the command is killed, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
    },
}

/// An event of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum JobEvent {
    /// Last: the command runs, and continues without the client.
    #[serde(rename = "job_started")]
    Started {
        /// The job's ID.
        job: String,
    },
    /// Last: the signal was sent.
    Signalled,
}
