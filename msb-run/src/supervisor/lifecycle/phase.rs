//! The phases of a sandbox, and its end.

use std::time::{Duration, Instant};

use libmsb::state::status::Reason;

/// Timeouts of a cold boot, by attempt. In software emulation on a busy host, a boot of two seconds
/// takes many times that.
pub(super) const BOOT_TIMEOUTS: [Duration; 2] = [Duration::from_secs(45), Duration::from_secs(120)];
/// Timeout of a start from memory until the guest is set up. On an idle host it takes less than a
/// second.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(20);
/// Timeout of a start from the memory of a guest that was running, which may be large.
const RESUME_TIMEOUT: Duration = Duration::from_secs(180);

/// The way in which the VM of a booting sandbox was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BootMethod {
    /// A cold boot; the number counts from 0.
    Cold { attempt: u32 },
    /// A cold boot whose state is recorded when the agent sends its hello.
    Recording,
    /// The state of a booted VM is being recorded.
    TakingState,
    /// A start from memory.
    Memory,
    /// A start from the memory of a guest that was running.
    Resume,
}

impl BootMethod {
    pub(super) fn timeout(self) -> Duration {
        match self {
            BootMethod::Cold { attempt } => {
                BOOT_TIMEOUTS.get(attempt as usize).copied().unwrap_or(BOOT_TIMEOUTS[0])
            }
            BootMethod::Recording | BootMethod::TakingState => BOOT_TIMEOUTS[0],
            BootMethod::Memory => MEMORY_TIMEOUT,
            BootMethod::Resume => RESUME_TIMEOUT,
        }
    }

    /// Returns whether a cold boot can replace the VM.
    pub(super) fn has_fallback(self) -> bool {
        !matches!(self, BootMethod::Cold { .. } | BootMethod::Resume)
    }
}

/// A step between a guest that is set up and one that takes commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrepareStep {
    /// The guest's files are changed.
    Changes,
    /// The image's init is started.
    Init,
}

/// The phase of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SandboxPhase {
    /// Waits for a boot slot; there is no VM yet.
    Queued,
    /// The VM was started, and the guest is not set up yet.
    Booting { method: BootMethod, deadline: Instant },
    /// The guest is set up. No client is served yet.
    Preparing(PrepareStep),
    /// The guest takes commands.
    Running,
    /// The guest was asked to shut down, for this reason. `clean`: it has.
    Stopping { reason: Reason, deadline: Instant, clean: bool },
    /// The sandbox has ended.
    Ended,
}

/// The end of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SandboxEnd {
    pub(crate) reason: Reason,
    pub(crate) message: Option<String>,
    /// A hint that is more specific than the one for the reason.
    pub(crate) hint: Option<String>,
    /// The guest has shut down in order.
    pub(crate) clean: bool,
}
