//! Isolation: a process gives up privileges that it does not need, in named steps.
//!
//! An attacker who breaks out of a virtual machine, or exploits the parser of a file, controls a
//! process with few privileges left. A step that the kernel does not support is reported with its
//! reason and does not prevent the start: an older host is less safe, but usable. Each program
//! chooses its steps; `msb inspect` shows them.

/// System call filters (seccomp).
mod calls;
/// Capabilities of root.
mod capabilities;
/// Namespaces.
mod namespaces;
/// Access to files (Landlock).
mod paths;
/// Resource limits.
mod resources;

use serde::{Deserialize, Serialize};

pub use calls::{AllowedCalls, SocketUse, refuse_system_calls, refuse_x32_calls};
pub use capabilities::keep_capabilities;
pub use namespaces::unshare_network;
pub use paths::{LandlockScope, PathAccess, RulePath, restrict_paths};
pub use resources::{disable_core_dumps, raise_file_limit};

/// An isolation step and its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The process: `vmm`, `share`, `net`, `supervisor`.
    pub process: String,
    /// Name of the step.
    pub step: String,
    /// True if the step is in effect.
    pub holds: bool,
    /// Reason why it is not, or only partly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Outcome of an isolation step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// The step is in effect.
    Complete,
    /// The step is partly in effect, because the kernel lacks a feature.
    Partial(String),
    /// The step is not in effect, with the reason.
    Failed(String),
}

impl From<std::io::Result<()>> for StepOutcome {
    fn from(result: std::io::Result<()>) -> StepOutcome {
        match result {
            Ok(()) => StepOutcome::Complete,
            Err(error) => StepOutcome::Failed(error.to_string()),
        }
    }
}

impl Step {
    /// Returns a step of a process.
    pub fn of(process: &str, step: &str, taken: StepOutcome) -> Step {
        let (holds, reason) = match taken {
            StepOutcome::Complete => (true, None),
            StepOutcome::Partial(reason) => (true, Some(reason)),
            StepOutcome::Failed(reason) => (false, Some(reason)),
        };
        Step { process: process.to_owned(), step: step.to_owned(), holds, reason }
    }
}

/// Sets `no_new_privs`: programs that this process or its children execute gain no privileges,
/// neither by set-user-ID bits nor by file capabilities.
pub fn set_no_new_privileges() -> StepOutcome {
    match rustix::thread::set_no_new_privs(true) {
        Ok(()) => StepOutcome::Complete,
        Err(error) => StepOutcome::Failed(std::io::Error::from(error).to_string()),
    }
}
