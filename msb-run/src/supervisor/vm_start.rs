//! The progress of a VM's start: its boot slot, its preparation, and the boot state that it starts
//! from or is recorded to ([`crate::boot_state`]).

use std::os::fd::{AsFd, BorrowedFd};

use libmsb::cli::error::{message, warn};
use libmsb::state::Home;
use libmsb::state::lock::Lock;
use msb_wire::handshake::Hello;

use super::background_task::BackgroundTask;
use crate::boot_slots;
use crate::boot_state::{BootState, QmpMonitor, StateRecording};
use crate::engine::kind::VmKind;
use crate::startup::BootTimes;

/// A boot slot: waited for, held until the guest is up, then released.
#[derive(Debug)]
pub(crate) enum BootSlot {
    /// A thread waits for a slot.
    Waiting(BackgroundTask<Lock>),
    /// The slot is held, so that few sandboxes boot at once.
    Held { _slot: Lock },
    /// The next sandbox may boot.
    Released,
}

impl BootSlot {
    /// Starts to wait for a slot.
    pub(crate) fn queue(home: &Home) -> anyhow::Result<BootSlot> {
        let home = home.clone();
        Ok(BootSlot::Waiting(BackgroundTask::spawn("slot", move || boot_slots::acquire(&home))?))
    }

    /// Returns the descriptor that is ready when the slot can be taken.
    pub(crate) fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            BootSlot::Waiting(task) => Some(task.as_fd()),
            BootSlot::Held { .. } | BootSlot::Released => None,
        }
    }

    /// Takes the slot that was waited for.
    pub(crate) fn take(&mut self) -> anyhow::Result<()> {
        if let BootSlot::Waiting(task) = std::mem::replace(self, BootSlot::Released) {
            *self = BootSlot::Held { _slot: task.finish()? };
        }
        Ok(())
    }
}

/// The result of preparing a VM.
#[derive(Debug)]
pub(crate) enum PreparedVm {
    /// The guest can take the boot request.
    Boot(QmpMonitor),
    /// The state was recorded, and the VM cannot be used any more.
    StateTaken(StateRecording, Box<BootState>),
}

/// The progress of a VM's start.
#[derive(Debug)]
pub(crate) struct VmStart {
    pub(crate) slot: BootSlot,
    /// Times of the steps.
    pub(crate) times: BootTimes,
    /// The kind of the VM, if it may start from memory and may be recorded.
    pub(crate) kind: Option<VmKind>,
    /// Uptime of the guest, in nanoseconds, in the boot state from which the VM started.
    pub(crate) saved_uptime_ns: Option<u64>,
    /// The guest goes on from saved memory.
    pub(crate) is_resumed: bool,
    /// The thread that prepares the VM.
    pub(crate) task: Option<BackgroundTask<PreparedVm>>,
    /// The agent's hello, which is answered when the VM is prepared.
    pub(crate) hello: Option<Hello>,
    /// The boot state file to which the booting VM is recorded.
    pub(crate) recording: Option<StateRecording>,
    /// The thread that publishes a boot state file.
    publishing: Option<BackgroundTask<()>>,
    /// The thread that changes the guest's files before any program of the image runs.
    pub(crate) changes: Option<BackgroundTask<()>>,
    /// Certificate that the guest must trust, PEM.
    pub(crate) trust: Option<String>,
    /// Reason for not using a boot state.
    pub(crate) note: Option<String>,
}

impl VmStart {
    /// Creates the progress of a start that waits for its boot slot.
    pub(crate) fn new(slot: BootSlot) -> VmStart {
        VmStart {
            slot,
            times: BootTimes::default(),
            kind: None,
            saved_uptime_ns: None,
            is_resumed: false,
            task: None,
            hello: None,
            recording: None,
            publishing: None,
            changes: None,
            trust: None,
            note: None,
        }
    }

    /// Forgets the progress of a VM in whose place another one boots.
    pub(crate) fn restart(&mut self, note: Option<String>) {
        let slot = std::mem::replace(&mut self.slot, BootSlot::Released);
        *self = VmStart { note, times: self.times, ..VmStart::new(slot) };
    }

    /// Returns the descriptor that is ready when the VM is prepared.
    pub(crate) fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.task.as_ref().map(AsFd::as_fd)
    }

    /// Publishes a recorded state, while the VM that starts from it runs.
    pub(crate) fn publish(&mut self, recording: StateRecording) -> anyhow::Result<()> {
        if let Some(kind) = self.kind.clone() {
            let publish = move || recording.publish(&kind);
            self.publishing = Some(BackgroundTask::spawn("publish", publish)?);
        }
        Ok(())
    }

    /// Waits until the recorded state has its final name. Returns whether one was recorded.
    pub(crate) fn finish_publishing(&mut self) -> bool {
        let Some(publishing) = self.publishing.take() else {
            return false;
        };
        if let Err(error) = publishing.finish() {
            warn(&format!("cannot save the boot state: {}", message(&error)));
        }
        true
    }
}
