//! Requests, and those to the supervisor itself.

use serde::{Deserialize, Serialize};

use crate::boot::BootRequest;
use crate::connect::ConnectRequest;
use crate::exec::ExecRequest;
use crate::file::FilesRequest;
use crate::guest::InitRequest;
use crate::handshake::operation;
use crate::job::{AttachRequest, SignalRequest};
use crate::key_agent::KeyAgentRequest;
use crate::network::NetworkRequest;
use crate::samples::SamplesRequest;
use crate::sftp::SftpRequest;

/// The payload of an `Open` frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Set the guest up (supervisor to agent).
    Boot(BootRequest),
    /// Set the guest's clock, if it is off (supervisor to agent). Answered by [`ClockEvent`].
    Clock(ClockRequest),
    /// Connect to a TCP port from inside the guest.
    Connect(ConnectRequest),
    /// Run a command.
    Exec(ExecRequest),
    /// Copy files.
    Files(FilesRequest),
    /// Serve files by the SSH file transfer protocol.
    Sftp(SftpRequest),
    /// Have a socket in the guest for the SSH agent of a client.
    KeyAgent(KeyAgentRequest),
    /// Hand over to the image's init (supervisor to agent). Answered by [`crate::guest::InitEvent`].
    Init(InitRequest),
    /// End all processes, flush, power off (supervisor to agent). Answered by [`StopEvent`] before the power goes.
    Shutdown(ShutdownRequest),
    /// Answer at once (to the agent). Answered by [`PingEvent`]; one that does not know it refuses, which is a sign of life
    /// too.
    Ping,
    /// Say again and again what the guest costs (supervisor to agent); take samples at this interval while the client is
    /// connected (client to supervisor).
    Samples(SamplesRequest),
    /// Say how the sandbox ended (client to supervisor). Answered by [`EndEvent`] when its lock is free.
    Wait,
    /// Stop the sandbox (client to supervisor). Answered by [`StopEvent`] when it has stopped.
    Stop(StopRequest),
    /// Stop the guest's processors (client to supervisor). Answered by [`PauseEvent`] when they have stopped.
    Pause,
    /// Let the processors of a paused guest run again (client to supervisor). Answered by [`PauseEvent`] when they run and
    /// the guest's clock is set.
    Resume,
    /// Send a signal to a job (client to supervisor). Answered by [`crate::job::JobEvent::Signalled`].
    Signal(SignalRequest),
    /// Be with a job until it ends (client to supervisor); see [`crate::job`].
    Attach(AttachRequest),
    /// Change the network (client to supervisor). Answered by [`crate::network::NetworkEvent`].
    Network(NetworkRequest),
}

impl Request {
    /// All that a supervisor must list to serve this request: its operation, and fields of it that a peer from before
    /// them would pass over.
    pub fn needs(&self) -> Vec<&'static str> {
        let mut needs = vec![self.operation()];
        if let Request::Exec(exec) = self {
            needs.extend(exec.login.then_some(operation::EXEC_LOGIN));
            needs.extend(exec.log.then_some(operation::EXEC_LOG));
            needs.extend((!exec.rlimits.is_empty()).then_some(operation::EXEC_RLIMIT));
            needs.extend(exec.job.then_some(operation::JOBS));
        }
        if let Request::Files(files) = self {
            needs.extend(
                files
                    .direction
                    .is_change()
                    .then_some(operation::FILES_CHANGE),
            );
        }
        needs
    }

    /// The same of an agent, which never sees what is for the supervisor.
    pub fn needs_of_agent(&self) -> Vec<&'static str> {
        let mut needs = self.needs();
        needs.retain(|need| ![operation::EXEC_LOG, operation::JOBS].contains(need));
        needs
    }

    /// The name under which a peer lists that it serves this request.
    pub fn operation(&self) -> &'static str {
        match self {
            Request::Boot(_) => operation::BOOT,
            Request::Clock(_) => operation::CLOCK,
            Request::Connect(_) => operation::CONNECT,
            Request::Exec(_) => operation::EXEC,
            Request::Files(_) => operation::FILES,
            Request::Init(_) => operation::INIT,
            Request::KeyAgent(_) => operation::KEY_AGENT,
            Request::Pause => operation::PAUSE,
            Request::Ping => operation::PING,
            Request::Resume => operation::RESUME,
            Request::Samples(_) => operation::SAMPLES,
            Request::Wait => operation::WAIT,
            Request::Sftp(_) => operation::SFTP,
            Request::Shutdown(_) => operation::SHUTDOWN,
            Request::Stop(_) => operation::STOP,
            Request::Signal(_) | Request::Attach(_) => operation::JOBS,
            Request::Network(_) => operation::NETWORK,
        }
    }
}

/// Ends the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownRequest {
    /// When the guest is killed if it has not shut down, in milliseconds from now. Older supervisors do not say it.
    #[serde(default = "ShutdownRequest::default_ms")]
    pub timeout_ms: u64,
}

impl ShutdownRequest {
    /// What supervisors that do not say how long wait.
    fn default_ms() -> u64 {
        10_000
    }
}

/// Tells the guest the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockRequest {
    /// The host's clock, in nanoseconds since 1970.
    pub unix_ns: u64,
}

/// The answer to the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClockEvent {
    /// The guest has taken notice.
    Clock {
        /// How far the guest's clock was behind, in milliseconds; negative when it was ahead.
        behind_ms: i64,
        /// Whether it was set.
        stepped: bool,
    },
    /// It could not be set.
    Failed {
        /// Why.
        message: String,
    },
}

/// The answer to a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PingEvent {
    /// The guest is alive.
    Pong,
}

/// The answer to a wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EndEvent {
    /// The sandbox has ended.
    Ended {
        /// The state that it is in now, as in `status.json`.
        state: String,
        /// Why it ended, as in `status.json`.
        reason: String,
        /// More about the reason, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        /// Exit code of the main command, if it ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        /// Whether the guest's file systems were flushed and clean.
        clean: bool,
    },
}

/// Stops a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Time for the guest to shut down, in milliseconds; then it is killed. 0 kills at once.
    pub timeout_ms: u64,
}

/// The answer to a stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StopEvent {
    /// Done. From the agent: everything is flushed and the file systems are read-only.
    Stopped {
        /// Whether the guest shut down by itself, its file systems clean.
        clean: bool,
    },
    /// It could not be done.
    Failed {
        /// Why.
        message: String,
    },
}

/// The answer to a pause and to a resume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PauseEvent {
    /// The guest's processors have stopped.
    Paused,
    /// The guest's processors run, and its clock is set.
    Resumed,
    /// The sandbox is in the state that it was in.
    Failed {
        /// The kind of the failure.
        kind: PauseFailure,
        /// Why, for people.
        message: String,
        /// What can be done.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
}

/// Kinds of failures of a pause and of a resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseFailure {
    /// The state of the sandbox does not allow it: paused already, not paused, starting, stopping.
    WrongState,
    /// The engine cannot pause a machine.
    UnsupportedOperation,
    /// Anything else, and kinds of later versions.
    #[serde(other)]
    Other,
}
