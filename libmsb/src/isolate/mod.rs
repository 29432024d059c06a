//! Giving up what a process does not need, in named steps.
//!
//! A guest that breaks out of its machine, or a file that takes over its reader, finds itself in a process that can do
//! little more than it was doing anyway. What a kernel lacks is told with its reason and does not stop a start: an older
//! host is less safe, not useless. Each program chooses its steps; `msb inspect` shows which of them hold.

/// System calls that are refused.
mod calls;
/// Namespaces of one's own.
mod namespaces;
/// Files that stay within reach.
mod paths;

use serde::{Deserialize, Serialize};

pub use calls::{Needed, Sockets, refuse_calls, refuse_second_numbers};
pub use namespaces::leave_network;
pub use paths::{Access, Place, Reach, keep_paths};

/// A step, and whether it could be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which process took it: `vmm`, `share`, `net`, `supervisor`.
    pub process: String,
    /// What it is called.
    pub step: String,
    /// Whether it holds.
    pub holds: bool,
    /// Why it does not, or not as far as it could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far a step could be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// All the way.
    Whole,
    /// As far as this kernel goes, and what it lacks.
    Part(String),
    /// Not at all, and why.
    Not(String),
}

impl Step {
    /// A step of a process.
    pub fn of(process: &str, step: &str, taken: Taken) -> Step {
        let (holds, reason) = match taken {
            Taken::Whole => (true, None),
            Taken::Part(reason) => (true, Some(reason)),
            Taken::Not(reason) => (false, Some(reason)),
        };
        Step {
            process: process.to_owned(),
            step: step.to_owned(),
            holds,
            reason,
        }
    }
}

/// From now on no program that this process or its children execute has more rights than they have: neither set-user-id
/// nor file capabilities count.
pub fn refuse_privileges() -> Taken {
    match rustix::thread::set_no_new_privs(true) {
        Ok(()) => Taken::Whole,
        Err(error) => Taken::Not(std::io::Error::from(error).to_string()),
    }
}
