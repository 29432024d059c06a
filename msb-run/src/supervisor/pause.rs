//! Pause of a sandbox: commands to the VM's monitor, and the clients that wait for them.
//!
//! [`super::lifecycle`] decides which command follows. Commands block, so a thread makes them.
//! Requests for the guest's agent are refused from the pause request until the guest runs again. A
//! resume is answered when the guest's clock is set.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use libmsb::cli::error::{self, Code, ErrorKind, Failure, message};
use msb_wire::sandbox::{PauseEvent, PauseFailure};
use serde_json::json;

use super::background_task::BackgroundTask;
use super::lifecycle::MonitorCommand;
use super::relay::ClientStream;
use crate::boot_state::QmpMonitor;

/// Timeout of the agent for setting the guest's clock. The resume is answered afterwards in any
/// case.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// The monitor, and the result of a command.
type CommandResult = (QmpMonitor, anyhow::Result<()>);

/// The monitor command of a pause or resume, and its client.
#[derive(Debug, Default)]
pub(crate) struct PauseControl {
    /// The thread that runs a command with the monitor.
    task: Option<BackgroundTask<CommandResult>>,
    /// The client that is answered when the command is done.
    requester: Option<ClientStream>,
    /// The client that is answered when the guest's clock is set, or at this time.
    clock: Option<(ClientStream, Instant)>,
    /// Number of the agent's outstanding answers about its clock.
    clock_answers: u32,
    /// The interval of samples to request when the guest runs again.
    pub(crate) interval_ms: Option<u64>,
}

impl PauseControl {
    /// Returns the descriptor that is ready when the command is done.
    pub(crate) fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.task.as_ref().map(AsFd::as_fd)
    }

    /// Returns the time at which a resume is answered although the guest's clock is not set.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.clock.map(|(_, at)| at)
    }

    /// Sets the client of the next command.
    pub(crate) fn set_requester(&mut self, requester: ClientStream) {
        self.requester = Some(requester);
    }

    /// Takes the client of the command.
    pub(crate) fn take_requester(&mut self) -> Option<ClientStream> {
        self.requester.take()
    }

    /// Runs a monitor command in a thread. Without a monitor it fails.
    pub(crate) fn start_command(
        &mut self,
        command: MonitorCommand,
        monitor: Option<QmpMonitor>,
    ) -> anyhow::Result<()> {
        let Some(mut monitor) = monitor else {
            return Err(Failure::failed("the monitor of the VM does not answer").into());
        };
        self.task = Some(BackgroundTask::spawn("pause", move || {
            let result = monitor.execute(command.name(), json!({})).map(drop);
            if result.is_err() && command == MonitorCommand::Stop {
                // QEMU may have stopped all the same.
                let _ = monitor.execute(MonitorCommand::Cont.name(), json!({}));
            }
            Ok((monitor, result))
        })?);
        Ok(())
    }

    /// Returns the monitor and the result of the command that is done.
    pub(crate) fn finish_command(&mut self) -> Option<anyhow::Result<CommandResult>> {
        self.task.take().map(BackgroundTask::finish)
    }

    /// Counts a message with the time that the agent will answer.
    pub(crate) fn expect_clock(&mut self) {
        self.clock_answers = self.clock_answers.saturating_add(1);
    }

    /// Counts an answer of the agent about its clock.
    pub(crate) fn clock_answered(&mut self) {
        self.clock_answers = self.clock_answers.saturating_sub(1);
    }

    /// Answers the client of a resume when the guest's clock is set.
    pub(crate) fn answer_when_clock_is_set(&mut self, requester: Option<ClientStream>) {
        self.clock = requester.map(|requester| (requester, Instant::now() + CLOCK_TIMEOUT));
    }

    /// Takes the client of a resume that is answered now: the guest's clock is set, or `is_late`.
    pub(crate) fn take_resumed(&mut self, is_late: bool) -> Option<ClientStream> {
        if is_late || self.clock_answers == 0 {
            self.clock.take().map(|(requester, _)| requester)
        } else {
            None
        }
    }
}

/// Returns the answer to a request that failed.
pub(crate) fn failed(error: &anyhow::Error) -> PauseEvent {
    PauseEvent::Failed {
        kind: failure_kind(error),
        message: message(error),
        hint: error::hint(error).map(str::to_owned),
    }
}

/// Returns the kind of a failed request to the VM's monitor.
pub(crate) fn failure_kind(error: &anyhow::Error) -> PauseFailure {
    match error.downcast_ref::<Failure>().map(Failure::kind) {
        Some(ErrorKind::WrongState) => PauseFailure::WrongState,
        _ if error::code(error) == Code::UnsupportedOperation => PauseFailure::UnsupportedOperation,
        _ => PauseFailure::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resume_is_answered_after_all_clock_messages_or_late() {
        let mut pause = PauseControl::default();
        pause.expect_clock();
        pause.expect_clock();
        pause.answer_when_clock_is_set(Some((1, 2)));
        assert!(pause.deadline().is_some());
        pause.clock_answered();
        assert_eq!(pause.take_resumed(false), None);
        pause.clock_answered();
        assert_eq!(pause.take_resumed(false), Some((1, 2)));
        assert_eq!(pause.deadline(), None);

        pause.expect_clock();
        pause.answer_when_clock_is_set(Some((3, 4)));
        assert_eq!(pause.take_resumed(true), Some((3, 4)));
        assert_eq!(pause.take_resumed(true), None);
    }

    #[test]
    fn a_command_without_a_monitor_fails() {
        let mut pause = PauseControl::default();
        assert!(pause.start_command(MonitorCommand::Stop, None).is_err());
        assert!(pause.ready_fd().is_none());
    }
}
