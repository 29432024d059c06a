//! The status of a sandbox: `status.json`, written by its supervisor.
//!
//! The file holds the last state that the supervisor wrote. Only the lock shows whether the sandbox
//! is live. [`State::seen`] combines both.

use serde::{Deserialize, Serialize};

use crate::isolate::Step;

/// Longest file, in bytes.
pub const STATUS_BYTES_MAX: u64 = 1024 * 1024;

/// State of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It was created and never started.
    Created,
    /// The supervisor runs, and the guest does not accept commands yet.
    Starting,
    /// The guest accepts commands.
    Running,
    /// The guest's processors are paused on request, until the sandbox is resumed.
    Paused,
    /// The guest is shutting down.
    Stopping,
    /// It ended in order, or was killed on request.
    Stopped,
    /// It ended unexpectedly.
    Crashed,
}

impl State {
    /// Returns the state, given whether the lock is held.
    pub fn seen(self, alive: bool) -> State {
        match (self, alive) {
            (state, false) if state.is_active() => State::Crashed,
            // The lock is taken before the status is written.
            (State::Created | State::Stopped | State::Crashed, true) => State::Starting,
            (state, _) => state,
        }
    }

    /// Returns whether the sandbox's virtual machine may exist.
    pub fn is_active(self) -> bool {
        matches!(self, State::Starting | State::Running | State::Paused | State::Stopping)
    }

    /// Returns the name of the state, as in the file.
    pub fn name(self) -> &'static str {
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

/// Reason of a sandbox's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its main command ended.
    Completed,
    /// A stop was requested.
    StopRequested,
    /// A kill was requested.
    KillRequested,
    /// The attached client has gone.
    ClientGone,
    /// The supervisor received a signal to terminate.
    Signal,
    /// The guest did not boot.
    BootFailed,
    /// The guest ran out of memory: its kernel killed the main command, or panicked.
    OutOfMemory,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// The guest powered itself off, or halted.
    GuestPoweredOff,
    /// The guest restarted itself.
    GuestRebooted,
    /// The virtual machine ended by itself, in order, and the guest gave no reason.
    VmExited,
    /// The VMM process failed, or was killed.
    VmmFailed,
    /// The process msb-net failed, or was killed.
    NetFailed,
    /// The server of shared directories failed, or was killed.
    ShareFailed,
    /// The guest's agent violated the protocol, or ended.
    AgentFailed,
    /// The supervisor failed.
    SupervisorFailed,
    /// The supervisor was killed and could not write the reason. The next holder of the lock writes
    /// this one.
    SupervisorGone,
    /// The idle timeout expired.
    IdleTimeout,
    /// The maximum duration was reached.
    MaxDuration,
    /// A reason of a later version.
    #[serde(other)]
    Other,
}

impl Reason {
    /// Returns the name of the reason, as in the file.
    pub fn name(self) -> String {
        let json = serde_json::to_value(self).unwrap_or_default();
        json.as_str().unwrap_or("other").to_owned()
    }

    /// Returns a message, if the end was unexpected and is no success.
    pub fn problem(self) -> Option<&'static str> {
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
            Reason::ShareFailed => Some("shared directories failed"),
            Reason::AgentFailed => Some("agent failed"),
            Reason::SupervisorFailed => Some("supervisor failed"),
            Reason::SupervisorGone => Some("supervisor was killed"),
        }
    }
}

/// Kind of a guest's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootKind {
    /// Its kernel booted (cold boot).
    Cold,
    /// From the memory of a booted guest (boot state).
    Memory,
    /// In a way of a later version.
    #[serde(other)]
    Other,
}

/// The status that the supervisor wrote last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The state when the file was written; see [`State::seen`].
    pub state: State,
    /// Time when the state was entered.
    #[serde(with = "crate::time")]
    pub since: jiff::Timestamp,
    /// Time of the last start of the virtual machine.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::time::optional")]
    pub started_at: Option<jiff::Timestamp>,
    /// Reason of the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// More about the reason, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Exit code of the main command; 128 + signal if a signal killed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// True if the guest's kernel killed the main command because it was out of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// True if the guest's file systems were flushed and clean at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean: Option<bool>,
    /// Engine: `qemu` or `krun`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Kind of the guest's last start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootKind>,
    /// Release of the guest's kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Isolation steps of its processes; see [`Step`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolation: Vec<Step>,
    /// True if the changes before the first boot were made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub changed: bool,
    /// Fields of later versions, which are preserved.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl Status {
    /// Returns a status without details.
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
