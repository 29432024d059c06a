//! All requests, and those to the supervisor itself.

use serde::{Deserialize, Serialize};

use crate::boot::BootRequest;
use crate::connect::ConnectRequest;
use crate::exec::ExecRequest;
use crate::file::FilesRequest;
use crate::freeze::FreezeRequest;
use crate::guest::InitRequest;
use crate::handshake::operation;
use crate::job::{AttachRequest, SignalRequest};
use crate::key_agent::KeyAgentRequest;
use crate::memory::WakeRequest;
use crate::network::NetworkRequest;
use crate::samples::SamplesRequest;
use crate::sftp::SftpRequest;

/// The payload of an `Open` frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Set the guest up (supervisor to agent).
    Boot(Box<BootRequest>),
    /// Set the guest's clock, if it differs (supervisor to agent). Answered by [`ClockEvent`].
    Clock(ClockRequest),
    /// Connect to a TCP port from inside the guest.
    Connect(ConnectRequest),
    /// Run a command.
    Exec(ExecRequest),
    /// Copy files.
    Files(FilesRequest),
    /// Serve files by the SSH file transfer protocol.
    Sftp(SftpRequest),
    /// Freeze the upper file system while the stream is open.
    Freeze(FreezeRequest),
    /// Forward the SSH agent of a client to a socket in the guest.
    KeyAgent(KeyAgentRequest),
    /// Hand over to the image's init (supervisor to agent). Answered by
    /// [`crate::guest::InitEvent`].
    Init(InitRequest),
    /// End all processes, flush, power off (supervisor to agent). Answered by [`StopEvent`] before
    /// the power goes off.
    Shutdown(ShutdownRequest),
    /// Answer at once (to the agent). Answered by [`PingEvent`]. An agent that does not know it
    /// refuses, which is a sign of life too.
    Ping,
    /// Send samples at an interval (supervisor to agent); take samples at this interval while the
    /// client is connected (client to supervisor).
    Samples(SamplesRequest),
    /// Report the end of the sandbox (client to supervisor). Answered by [`EndEvent`] when its lock
    /// is free.
    Wait,
    /// Stop the sandbox (client to supervisor). Answered by [`StopEvent`] when it has stopped.
    Stop(StopRequest),
    /// Refuse new commands, and stop the sandbox when those that run have ended (client to
    /// supervisor). Answered by [`StopEvent`] when it has stopped.
    Drain,
    /// Pause the guest's processors (client to supervisor). Answered by [`PauseEvent`] when they
    /// have stopped.
    Pause,
    /// Resume the processors of a paused guest (client to supervisor). Answered by [`PauseEvent`]
    /// when they run and the guest's clock is set.
    Resume,
    /// Keep the blocks of the upper disk that the guest overwrites, while the client is connected
    /// (client to supervisor). Answered by [`crate::backup::BackupEvent`].
    StartBackup,
    /// End that (client to supervisor). Answered by [`crate::backup::BackupEvent`].
    EndBackup,
    /// Stop the guest's processors and save its memory, while the client is connected (client to
    /// supervisor). Answered by [`crate::memory::SaveEvent`].
    SaveMemory,
    /// End that (client to supervisor). Answered by [`crate::memory::SaveEvent`].
    EndSave,
    /// Send nothing until `wake` (supervisor to agent). Answered by
    /// [`crate::memory::QuiesceEvent`].
    Quiesce,
    /// Go on after `quiesce` (supervisor to agent). Answered by [`crate::boot::BootEvent`].
    Wake(WakeRequest),
    /// Send a signal to a job (client to supervisor). Answered by
    /// [`crate::job::JobEvent::Signalled`].
    Signal(SignalRequest),
    /// Attach to a job until it ends (client to supervisor); see [`crate::job`].
    Attach(AttachRequest),
    /// Change the network (client to supervisor). Answered by [`crate::network::NetworkEvent`].
    Network(NetworkRequest),
}

impl Request {
    /// Returns the operations that a supervisor must serve for this request: its own, and those of
    /// fields that an older peer would ignore.
    pub fn supervisor_operations(&self) -> Vec<&'static str> {
        let mut needs = vec![self.operation()];
        if let Request::Exec(exec) = self {
            needs.extend(exec.login.then_some(operation::EXEC_LOGIN));
            needs.extend(exec.log.then_some(operation::EXEC_LOG));
            needs.extend(exec.hold.then_some(operation::EXEC_HOLD));
            needs.extend((!exec.rlimits.is_empty()).then_some(operation::EXEC_RLIMIT));
            needs.extend(exec.job.then_some(operation::JOBS));
        }
        if let Request::Files(files) = self {
            needs.extend(files.direction.is_change().then_some(operation::FILES_CHANGE));
            needs.extend(files.is_patch().then_some(operation::FILES_PATCH));
        }
        needs
    }

    /// Returns the operations that the agent must serve. Fields for the supervisor do not reach it.
    pub fn agent_operations(&self) -> Vec<&'static str> {
        let mut needs = self.supervisor_operations();
        let of_supervisor = [operation::EXEC_HOLD, operation::EXEC_LOG, operation::JOBS];
        needs.retain(|need| !of_supervisor.contains(need));
        needs
    }

    /// Returns the name of the operation that a peer must serve.
    pub fn operation(&self) -> &'static str {
        match self {
            Request::StartBackup | Request::EndBackup => operation::BACKUP,
            Request::SaveMemory | Request::EndSave => operation::MEMORY,
            Request::Quiesce | Request::Wake(_) => operation::QUIESCE,
            Request::Boot(_) => operation::BOOT,
            Request::Clock(_) => operation::CLOCK,
            Request::Connect(_) => operation::CONNECT,
            Request::Drain => operation::DRAIN,
            Request::Exec(_) => operation::EXEC,
            Request::Files(_) => operation::FILES,
            Request::Freeze(_) => operation::FREEZE,
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

/// A request to shut the guest down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownRequest {
    /// Time until the guest is killed if it has not shut down, in milliseconds. Older supervisors
    /// do not send it.
    #[serde(default = "ShutdownRequest::default_ms")]
    pub timeout_ms: u64,
    /// Signal that asks the main command to end; the other processes get SIGTERM after its end. An
    /// older agent ignores it. Without it, or without a main command, all get SIGTERM at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

impl ShutdownRequest {
    /// Returns the timeout of supervisors that do not send one.
    fn default_ms() -> u64 {
        10_000
    }
}

/// A request to set the guest's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockRequest {
    /// The host's clock, in nanoseconds since 1970.
    pub unix_ns: u64,
}

/// The answer to a clock request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClockEvent {
    /// The guest has compared its clock.
    Clock {
        /// Delay of the guest's clock, in milliseconds; negative if it was ahead.
        behind_ms: i64,
        /// True if the clock was set.
        stepped: bool,
    },
    /// The clock could not be set.
    Failed {
        /// The reason.
        message: String,
    },
}

/// The answer to a ping request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PingEvent {
    /// The guest is alive.
    Pong,
}

/// The answer to a wait request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EndEvent {
    /// The sandbox has ended.
    Ended {
        /// The state of the sandbox now, as in `status.json`.
        state: String,
        /// The reason of the end, as in `status.json`.
        reason: String,
        /// More about the reason, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        /// Exit code of the main command, if it ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        /// True if the guest's file systems were flushed and clean.
        clean: bool,
    },
}

/// A request to stop a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Time for the guest to shut down, in milliseconds. After it the guest is killed. 0 kills at
    /// once.
    pub timeout_ms: u64,
}

/// The answer to a stop request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StopEvent {
    /// The stop is done. From the agent: everything is flushed and the file systems are read-only.
    Stopped {
        /// True if the guest shut down by itself, with clean file systems.
        clean: bool,
    },
    /// The stop failed.
    Failed {
        /// The reason.
        message: String,
    },
}

/// The answer to a pause or resume request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PauseEvent {
    /// The guest's processors have stopped.
    Paused,
    /// The guest's processors run, and its clock is set.
    Resumed,
    /// The request failed, and the sandbox keeps its state.
    Failed {
        /// The kind of failure.
        kind: PauseFailure,
        /// The reason, for people.
        message: String,
        /// A hint.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
}

/// Kind of a failure to pause or resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseFailure {
    /// The state of the sandbox does not allow it: paused already, not paused, starting, stopping.
    WrongState,
    /// The engine cannot pause a virtual machine.
    UnsupportedOperation,
    /// Any other reason, and reasons of later versions.
    #[serde(other)]
    Other,
}
