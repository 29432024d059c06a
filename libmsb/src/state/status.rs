//! What a sandbox is: `status.json`, written by its supervisor.
//!
//! The file says what the supervisor last knew; whether the sandbox lives is said by its lock alone. [`State::seen`]
//! puts both together.

use serde::{Deserialize, Serialize};

use crate::isolate::Step;

/// Longest file, in bytes.
pub const STATUS_BYTES_MAX: u64 = 1024 * 1024;

/// The states of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Made and never started.
    Created,
    /// The supervisor is at work and the guest does not take commands yet.
    Starting,
    /// The guest takes commands.
    Running,
    /// The guest's processors were stopped on demand, and go on when the sandbox is resumed.
    Paused,
    /// The guest is shutting down.
    Stopping,
    /// It ended in order, or was killed on demand.
    Stopped,
    /// It ended without anybody having asked for it.
    Crashed,
}

impl State {
    /// The state, given whether the lock is held.
    pub fn seen(self, alive: bool) -> State {
        match (self, alive) {
            (state, false) if state.is_active() => State::Crashed,
            // The lock is taken before the status is written.
            (State::Created | State::Stopped | State::Crashed, true) => State::Starting,
            (state, _) => state,
        }
    }

    /// Whether the sandbox's virtual machine may be there.
    pub fn is_active(self) -> bool {
        matches!(
            self,
            State::Starting | State::Running | State::Paused | State::Stopping
        )
    }

    /// The word for it, as in the file.
    pub fn word(self) -> &'static str {
        match self {
            State::Created => "Created",
            State::Starting => "Starting",
            State::Running => "Running",
            State::Paused => "Paused",
            State::Stopping => "Stopping",
            State::Stopped => "Stopped",
            State::Crashed => "Crashed",
        }
    }
}

/// Why a sandbox ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its main command ended.
    Completed,
    /// Somebody asked for it.
    StopRequested,
    /// Somebody asked for it and did not want to wait.
    KillRequested,
    /// The client that it was attached to went away.
    ClientGone,
    /// The supervisor was told to end by a signal.
    Signal,
    /// The guest did not come up.
    BootFailed,
    /// The guest had run out of memory: its kernel killed the main command, or panicked.
    OutOfMemory,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// The guest powered itself off, or halted.
    GuestPoweredOff,
    /// The guest restarted itself.
    GuestRebooted,
    /// The virtual machine ended by itself, in order, and the guest did not say why.
    VmExited,
    /// The process of the virtual machine failed, or was killed.
    VmmFailed,
    /// The process of the network failed, or was killed.
    NetFailed,
    /// The process that shares folders of the host with the guest failed, or was killed.
    ShareFailed,
    /// The guest's agent broke the protocol, or ended.
    AgentFailed,
    /// The supervisor could not go on.
    SupervisorFailed,
    /// The supervisor was killed, and could not say how the sandbox ended. Whoever takes the sandbox next says so.
    SupervisorGone,
    /// Nobody used it for the time that was set.
    IdleTimeout,
    /// It lived as long as it was allowed to.
    MaxDuration,
    /// A reason of a later version.
    #[serde(other)]
    Other,
}

impl Reason {
    /// The word for it, as in the file.
    pub fn word(self) -> String {
        let json = serde_json::to_value(self).unwrap_or_default();
        json.as_str().unwrap_or("other").to_owned()
    }

    /// Words for one that nobody asked for, and that is no success.
    pub fn trouble(self) -> Option<&'static str> {
        match self {
            Reason::Completed
            | Reason::StopRequested
            | Reason::KillRequested
            | Reason::ClientGone
            | Reason::Signal
            | Reason::IdleTimeout
            | Reason::MaxDuration
            | Reason::Other => None,
            Reason::BootFailed => Some("did not boot"),
            Reason::OutOfMemory => Some("out of memory"),
            Reason::GuestPanicked => Some("kernel panic"),
            Reason::GuestPoweredOff => Some("powered off"),
            Reason::GuestRebooted => Some("restarted itself"),
            Reason::VmExited => Some("ended by itself"),
            Reason::VmmFailed => Some("VMM failed"),
            Reason::NetFailed => Some("network failed"),
            Reason::ShareFailed => Some("shared folders failed"),
            Reason::AgentFailed => Some("agent failed"),
            Reason::SupervisorFailed => Some("supervisor failed"),
            Reason::SupervisorGone => Some("supervisor was killed"),
        }
    }
}

/// How a guest was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootKind {
    /// Its kernel booted.
    Cold,
    /// From the memory of a guest that had booted.
    Memory,
    /// In a way of a later version.
    #[serde(other)]
    Other,
}

/// What the supervisor last knew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The state when the file was written; see [`State::seen`].
    pub state: State,
    /// When the state was entered.
    pub since: jiff::Timestamp,
    /// When the virtual machine was started last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<jiff::Timestamp>,
    /// Why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// More about the reason, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Exit code of the main command, 128 + signal when a signal killed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether it was the guest's kernel that ended the main command, for lack of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// Whether the guest's file systems were flushed and clean at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean: Option<bool>,
    /// The engine that runs it: `qemu` or `krun`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// How the guest was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootKind>,
    /// Release of the guest's kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// What its processes have given up; see [`Step`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolation: Vec<Step>,
    /// Whether the changes that come before the first boot were made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub changed: bool,
    /// Fields of later versions, kept.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl Status {
    /// A status without details.
    pub fn new(state: State) -> Status {
        Status {
            state,
            since: jiff::Timestamp::now(),
            started_at: None,
            reason: None,
            message: None,
            exit_code: None,
            oom_killed: false,
            clean: None,
            engine: None,
            boot: None,
            kernel: None,
            isolation: Vec::new(),
            changed: false,
            other: serde_json::Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_has_the_last_word() {
        assert_eq!(State::Running.seen(true), State::Running);
        assert_eq!(State::Running.seen(false), State::Crashed);
        assert_eq!(State::Starting.seen(false), State::Crashed);
        assert_eq!(State::Paused.seen(true), State::Paused);
        assert_eq!(State::Paused.seen(false), State::Crashed);
        assert_eq!(State::Stopped.seen(false), State::Stopped);
        assert_eq!(State::Stopped.seen(true), State::Starting);
    }
}
