//! Pause of a sandbox: its guest's vCPUs stop, and run again when the sandbox is resumed or
//! stopped.

use libmsb::cli::error::{Code, Failure, message, warn};
use libmsb::events::EventKind;
use libmsb::state::status::State;
use msb_wire::sandbox::{ClockRequest, PauseEvent, Request};

use super::SandboxSupervisor;
use crate::supervisor::clock;
use crate::supervisor::lifecycle::{LifecycleAction, LifecycleEvent, MonitorCommand, PauseRefusal};
use crate::supervisor::pause::failed;
use crate::supervisor::relay::{ClientStream, InternalStream};

impl SandboxSupervisor {
    /// Pauses the sandbox for a client.
    pub(super) fn pause(&mut self, requester: ClientStream) -> anyhow::Result<()> {
        // The guest of a VM from memory may answer some milliseconds before its start is complete.
        if self.lifecycle.is_running() && self.start.ready_fd().is_some() {
            self.vm_prepared()?;
        }
        if self.backup.is_active() || self.save.is_active() {
            let name = &self.setup.sandbox.name;
            let message = format!("the disk of the sandbox '{name}' is being copied");
            let error = Failure::wrong_state(message).hint("wait until the snapshot is created");
            self.clients.answer(requester, &failed(&error.into()));
            return Ok(());
        }
        let actions = self.lifecycle.pause();
        self.start_pause(requester, actions)
    }

    /// Resumes the sandbox for a client.
    pub(super) fn resume(&mut self, requester: ClientStream) -> anyhow::Result<()> {
        let actions = self.lifecycle.resume();
        self.start_pause(requester, actions)
    }

    fn start_pause(
        &mut self,
        requester: ClientStream,
        actions: Result<Vec<LifecycleAction>, PauseRefusal>,
    ) -> anyhow::Result<()> {
        match actions {
            Ok(actions) => {
                self.pause.set_requester(requester);
                self.perform(actions)
            }
            Err(refusal) => {
                let error = self.refusal(refusal).into();
                self.clients.answer(requester, &failed(&error));
                Ok(())
            }
        }
    }

    fn refusal(&self, refusal: PauseRefusal) -> Failure {
        match refusal {
            PauseRefusal::WrongState(why) => {
                let name = &self.setup.sandbox.name;
                Failure::wrong_state(format!("the sandbox '{name}' {why}"))
            }
            PauseRefusal::Unsupported => {
                let engine = self.setup.engine.name();
                Failure::failed(format!("the engine '{engine}' cannot pause a sandbox"))
                    .code(Code::UnsupportedOperation)
                    .hint("create the sandbox with the engine qemu: --engine qemu")
            }
        }
    }

    /// Sends a command to the VM's monitor.
    pub(super) fn run_monitor(&mut self, command: MonitorCommand) -> anyhow::Result<()> {
        self.guest.flush();
        let monitor = self.vm.monitor.take();
        match self.pause.start_command(command, monitor) {
            Ok(()) => Ok(()),
            Err(error) => self.pause_failed(&error),
        }
    }

    fn pause_failed(&mut self, error: &anyhow::Error) -> anyhow::Result<()> {
        warn(&message(error));
        if let Some(requester) = self.pause.take_requester() {
            self.clients.answer(requester, &failed(error));
        }
        self.drive(LifecycleEvent::MonitorDone { succeeded: false })
    }

    /// Handles the end of a monitor command.
    pub(super) fn pause_command_done(&mut self) -> anyhow::Result<()> {
        let Some(finished) = self.pause.finish_command() else {
            return Ok(());
        };
        let result = finished.and_then(|(monitor, result)| {
            self.vm.monitor = Some(monitor);
            result
        });
        if let Err(error) = result {
            return self.pause_failed(&error);
        }
        if !self.lifecycle.is_running()
            && let Some(requester) = self.pause.take_requester()
        {
            let stopping = Failure::wrong_state("the sandbox is stopping");
            self.clients.answer(requester, &failed(&stopping.into()));
        }
        self.drive(LifecycleEvent::MonitorDone { succeeded: true })
    }

    pub(super) fn publish_paused(&mut self) {
        self.journal.enter(State::Paused, EventKind::Paused);
        self.journal.remark("sandbox paused");
        if let Some(requester) = self.pause.take_requester() {
            self.clients.answer(requester, &PauseEvent::Paused);
        }
    }

    pub(super) fn publish_resumed(&mut self) {
        self.journal.enter(State::Running, EventKind::Resumed);
        self.journal.remark("sandbox resumed");
        let interval_ms = self.pause.interval_ms.take();
        self.request_sample_interval(interval_ms);
        // The first message was written before the command, which may have taken its time.
        self.sync_guest_clock();
        let requester = self.pause.take_requester();
        self.pause.answer_when_clock_is_set(requester);
        self.answer_resume(false);
    }

    /// Answers a resume if the guest's clock is set or `is_late`.
    pub(super) fn answer_resume(&mut self, is_late: bool) {
        if let Some(requester) = self.pause.take_resumed(is_late) {
            self.clients.answer(requester, &PauseEvent::Resumed);
        }
    }

    /// Sets the guest's clock if it is off. A guest that is not running or whose agent cannot do so
    /// keeps its time.
    pub(super) fn sync_guest_clock(&mut self) {
        if self.lifecycle.is_running() && !self.lifecycle.is_pausing() {
            self.send_time();
        }
    }

    /// Sends the time to the agent. A paused guest reads it when it runs.
    pub(super) fn send_time(&mut self) {
        if self.guest.sets_clock() {
            self.pause.expect_clock();
            let request = Request::Clock(ClockRequest { unix_ns: clock::unix_ns() });
            // A request that holds a number always serializes.
            let _ = self.request(InternalStream::Clock, &request);
        }
    }
}
