//! Saving the memory of the running guest for a client ([`msb_wire::memory`]).
//!
//! Commands to the VM's monitor block, so a thread makes them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::cli::error::{self, message};
use libmsb::state::write::NewFile;
use msb_wire::memory::SaveEvent;

use super::background_task::BackgroundTask;
use super::pause::failure_kind;
use super::relay::{ClientId, ClientStream};
use crate::boot_state::{QmpMonitor, SavedGuest, StateMetadata, continue_saved, save_state};

/// Timeout of the agent for its last frame. It flushes a file system first.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(30);

/// The monitor, and the result of a command.
type CommandResult = (QmpMonitor, anyhow::Result<()>);

/// The save of a sandbox's memory, and its client.
#[derive(Debug, Default)]
pub(crate) struct SaveControl {
    /// The thread that uses the monitor.
    task: Option<BackgroundTask<CommandResult>>,
    state: SaveState,
}

/// The progress of a save.
#[derive(Debug, Default)]
enum SaveState {
    #[default]
    None,
    /// The agent was asked to send nothing more.
    Quiescing { requester: ClientStream, deadline: Instant },
    /// The state is being written.
    Saving { requester: ClientStream, file: NewFile, is_abandoned: bool },
    /// The guest stands for this client.
    Saved { client: ClientId, file: NewFile },
    /// The guest is being continued.
    Continuing { requester: Option<ClientStream>, _file: NewFile },
}

/// The next step after a command or a cancellation.
#[derive(Debug, Default)]
pub(crate) struct SaveStep {
    /// The client that is answered.
    pub(crate) answer: Option<(ClientStream, SaveEvent)>,
    /// The agent is woken.
    pub(crate) wakes: bool,
    /// The guest continues although no client waits for it.
    pub(crate) is_orphaned: bool,
    /// The guest stands and cannot be continued, for this reason.
    pub(crate) failure: Option<String>,
}

impl SaveControl {
    /// Returns the descriptor that is ready when a command is done.
    pub(crate) fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.task.as_ref().map(AsFd::as_fd)
    }

    /// Returns whether the memory is being saved, or the guest stands for it.
    pub(crate) fn is_active(&self) -> bool {
        !matches!(self.state, SaveState::None)
    }

    /// Returns the deadline of the agent's answer.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            SaveState::Quiescing { deadline, .. } => Some(deadline),
            _ => None,
        }
    }

    /// Expects the last frame of the agent.
    pub(crate) fn expect_quiescence(&mut self, requester: ClientStream) {
        let deadline = Instant::now() + QUIESCE_TIMEOUT;
        self.state = SaveState::Quiescing { requester, deadline };
    }

    /// Takes the client for which the agent is quiescent now. `None` if it is not expected any
    /// more.
    pub(crate) fn take_quiescent(&mut self) -> Option<ClientStream> {
        match self.state {
            SaveState::Quiescing { requester, .. } => {
                self.state = SaveState::None;
                Some(requester)
            }
            _ => None,
        }
    }

    /// Starts to write the state to a file.
    pub(crate) fn start(
        &mut self,
        requester: ClientStream,
        file: NewFile,
        (mut monitor, memory): (QmpMonitor, OwnedFd),
        (metadata, guest): (StateMetadata, SavedGuest),
    ) -> anyhow::Result<()> {
        let to = file.file.try_clone().context("cannot use a file")?;
        self.task = Some(BackgroundTask::spawn("save", move || {
            let result = save_state(&mut monitor, &memory, &to, metadata, guest);
            Ok((monitor, result))
        })?);
        self.state = SaveState::Saving { requester, file, is_abandoned: false };
        Ok(())
    }

    /// Takes the file of a guest that stands, to continue it.
    pub(crate) fn take_saved(&mut self) -> Option<NewFile> {
        match std::mem::take(&mut self.state) {
            SaveState::Saved { file, .. } => Some(file),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Continues the guest.
    pub(crate) fn end(
        &mut self,
        requester: Option<ClientStream>,
        file: NewFile,
        mut monitor: QmpMonitor,
    ) -> anyhow::Result<()> {
        self.task = Some(BackgroundTask::spawn("continue", move || {
            let result = continue_saved(&mut monitor);
            Ok((monitor, result))
        })?);
        self.state = SaveState::Continuing { requester, _file: file };
        Ok(())
    }

    /// Gives the save up: for a client that has gone, or for all with `None`. A state that is being
    /// written is given up afterwards.
    pub(crate) fn cancel(&mut self, gone: Option<ClientId>) -> SaveStep {
        let is_left = |client: ClientId| gone.is_none_or(|gone| gone == client);
        match &mut self.state {
            SaveState::Quiescing { requester, .. } if is_left(requester.0) => {
                self.state = SaveState::None;
                SaveStep { wakes: true, ..SaveStep::default() }
            }
            SaveState::Saving { requester, is_abandoned, .. } => {
                *is_abandoned |= is_left(requester.0);
                SaveStep::default()
            }
            SaveState::Saved { client, .. } if is_left(*client) => {
                SaveStep { is_orphaned: true, ..SaveStep::default() }
            }
            _ => SaveStep::default(),
        }
    }

    /// Handles the end of a command. Returns the monitor, if it is usable, and the next step.
    pub(crate) fn command_done(&mut self) -> Option<(Option<QmpMonitor>, SaveStep)> {
        let (monitor, result) = match self.task.take()?.finish() {
            Ok((monitor, result)) => (Some(monitor), result),
            Err(error) => (None, Err(error)),
        };
        let mut step = SaveStep::default();
        match (std::mem::take(&mut self.state), result) {
            (SaveState::Saving { requester, file, is_abandoned }, Ok(())) => {
                let saved = SaveEvent::Saved { file: file.temporary_name() };
                self.state = SaveState::Saved { client: requester.0, file };
                step.is_orphaned = is_abandoned;
                step.answer = (!is_abandoned).then_some((requester, saved));
            }
            (SaveState::Saving { requester, .. }, Err(error)) => {
                step.wakes = true;
                step.answer = Some((requester, failed(&error)));
            }
            (SaveState::Continuing { requester, .. }, result) => {
                step.wakes = result.is_ok();
                step.failure = result.as_ref().err().map(message);
                let event = result.map_or_else(|error| failed(&error), |()| SaveEvent::Ended);
                step.answer = requester.map(|requester| (requester, event));
            }
            (other, _) => self.state = other,
        }
        Some((monitor, step))
    }
}

/// Returns the answer to a request that failed.
pub(crate) fn failed(error: &anyhow::Error) -> SaveEvent {
    SaveEvent::Failed {
        kind: failure_kind(error),
        message: message(error),
        hint: error::hint(error).map(str::to_owned),
    }
}
