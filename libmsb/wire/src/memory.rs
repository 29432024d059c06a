//! Saving the memory of a running guest, and waking a guest from it.
//!
//! A client asks the supervisor with [`crate::sandbox::Request::SaveMemory`]. The supervisor sends
//! [`crate::sandbox::Request::Quiesce`] to the agent and writes nothing after it. The agent flushes
//! the upper file system, answers with [`QuiesceEvent`] as its last frame, and then waits for the
//! host: nothing is in flight in either direction. The processors are stopped, the devices and the
//! memory are written to a file, and the client copies the disk. At
//! [`crate::sandbox::Request::EndSave`], or when the client disconnects, the processors run again.
//!
//! The first request to the agent afterwards is [`crate::sandbox::Request::Wake`]. In a guest that
//! goes on it carries nothing. In a guest from the saved memory it carries a [`WakeIdentity`]: the
//! streams of the old host are closed, except for those of commands that go on, and the clock, the
//! entropy, the identity and the network are set as at a boot.

use serde::{Deserialize, Serialize};

use crate::boot::BootRequest;
use crate::sandbox::PauseFailure;

/// An answer to `save_memory` or `end_save`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum SaveEvent {
    /// The memory is in a file, and the processors stand.
    Saved {
        /// Name of the file in the directory of the sandbox. It is removed at the end.
        file: String,
    },
    /// The processors run again.
    Ended,
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

/// The answer of the agent to `quiesce`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum QuiesceEvent {
    /// The agent sends nothing until it is woken.
    Quiescent {
        /// Time since the kernel's start, in nanoseconds (CLOCK_BOOTTIME).
        uptime_ns: u64,
    },
    /// The agent goes on.
    Failed {
        /// The reason.
        message: String,
    },
}

/// A request to go on after `quiesce`. Answered by [`crate::boot::BootEvent`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeRequest {
    /// The new identity of a guest from saved memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Box<WakeIdentity>>,
}

/// The new identity of a guest from saved memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeIdentity {
    /// Settings as at a boot. The root and the mounts stay as they are.
    pub boot: BootRequest,
    /// Streams of commands that go on, each with a whole window in both directions. All others are
    /// closed without an event.
    pub keep: Vec<u32>,
}
