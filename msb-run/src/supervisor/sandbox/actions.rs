//! Actions of the state machine.

use std::time::Duration;

use anyhow::Context;
use libmsb::cli::error::{self, Failure, message};
use libmsb::events::EventKind;
use libmsb::signal_number::SignalNumber;
use libmsb::state::status::State;
use msb_wire::guest::InitEvent;
use msb_wire::sandbox::{Request, ShutdownRequest};

use super::SandboxSupervisor;
use crate::isolate;
use crate::startup::StartupReport;
use crate::supervisor::file_changes;
use crate::supervisor::lifecycle::{LifecycleAction, LifecycleEvent};
use crate::supervisor::relay::InternalStream;
use crate::supervisor::setup::SandboxSetup;
use crate::supervisor::vm_outcome;
use crate::supervisor::vm_start::BootSlot;

impl SandboxSupervisor {
    /// Performs actions in their order.
    pub(super) fn perform(&mut self, actions: Vec<LifecycleAction>) -> anyhow::Result<()> {
        actions.into_iter().try_for_each(|action| self.perform_one(action))
    }

    fn perform_one(&mut self, action: LifecycleAction) -> anyhow::Result<()> {
        match action {
            LifecycleAction::StartVm => self.start_first_vm()?,
            LifecycleAction::StartAttempt(attempt) => self.start_attempt(attempt)?,
            LifecycleAction::BootUnrecorded => self.boot_unrecorded()?,
            LifecycleAction::FallBack(why) => self.fall_back(&why)?,
            LifecycleAction::ReleaseSlot => self.start.slot = BootSlot::Released,
            LifecycleAction::ChangeFiles => self.change_files()?,
            LifecycleAction::Isolate => self.isolate(),
            LifecycleAction::StartInit => self.start_init()?,
            LifecycleAction::Open => self.open_guest()?,
            LifecycleAction::ReportStopped => self.report_stopped(),
            LifecycleAction::FlushClients => self.write_out(&mut Vec::new()),
            LifecycleAction::PublishStopping => {
                self.journal.enter(State::Stopping, EventKind::Stopping);
                self.abandon_save(None)?;
            }
            LifecycleAction::ShutDownGuest { timeout } => self.shut_down_guest(timeout)?,
            LifecycleAction::RefuseRequests => {
                let name = &self.setup.sandbox.name;
                self.clients.relay.pause(Some(format!("the sandbox '{name}' is paused")));
            }
            LifecycleAction::AdmitRequests => self.clients.relay.pause(None),
            LifecycleAction::SendTime => self.send_time(),
            LifecycleAction::RunMonitor(command) => self.run_monitor(command)?,
            LifecycleAction::PublishPaused => self.publish_paused(),
            LifecycleAction::PublishResumed => self.publish_resumed(),
            LifecycleAction::Ping => {
                // A request that cannot be sent gets no answer either.
                let _ = self.request(InternalStream::Ping, &Request::Ping);
            }
            LifecycleAction::KillSilent => self.kill_silent()?,
        }
        Ok(())
    }

    /// Sends a request to the agent.
    pub(super) fn request(
        &mut self,
        internal: InternalStream,
        request: &Request,
    ) -> serde_json::Result<()> {
        self.clients.relay.request(internal, request, &mut self.guest.port)
    }

    fn change_files(&mut self) -> anyhow::Result<()> {
        let socket = self.setup.home.agent_socket(&self.setup.sandbox.name);
        let changes = self.setup.spec.guest.changes.clone();
        self.start.changes = Some(file_changes::start(socket, changes)?);
        Ok(())
    }

    /// Handles the end of the file changes.
    pub(super) fn changes_finished(&mut self) -> anyhow::Result<()> {
        let Some(changes) = self.start.changes.take() else {
            return Ok(());
        };
        match changes.finish() {
            Ok(()) => {
                self.journal.status.changed = true;
                self.drive(LifecycleEvent::FilesChanged)
            }
            Err(error) => self.drive(LifecycleEvent::GuestFailed(message(&error))),
        }
    }

    /// Gives up what is not needed any more: all processes are started and all files of the host
    /// are read.
    fn isolate(&mut self) {
        let SandboxSetup { home, sandbox, spec, cgroup, .. } = &self.setup;
        let mut steps = self.vm.isolation();
        steps.extend(isolate::confine_supervisor(home, sandbox, spec.ephemeral, cgroup));
        self.journal.status.isolation = steps;
    }

    fn start_init(&mut self) -> anyhow::Result<()> {
        let init = self.setup.spec.guest.init.clone().context("the sandbox has no init")?;
        Ok(self.request(InternalStream::Init, &Request::Init(init))?)
    }

    /// Handles the agent's answer about the init.
    pub(super) fn handle_init_reply(&mut self, message: &[u8]) -> anyhow::Result<()> {
        let event = serde_json::from_slice(message)
            .context("cannot parse the agent's answer about the init")?;
        self.drive(match event {
            InitEvent::Started { .. } => LifecycleEvent::InitStarted,
            InitEvent::Failed { message } => {
                LifecycleEvent::GuestFailed(format!("the guest failed at stage 'init': {message}"))
            }
        })
    }

    fn report_stopped(&mut self) {
        let stopped = Failure::wrong_state("the sandbox was stopped before the guest was up");
        self.starter.report(&StartupReport::failed(&stopped.into()));
    }

    fn shut_down_guest(&mut self, timeout: Duration) -> anyhow::Result<()> {
        let request = Request::Shutdown(ShutdownRequest {
            timeout_ms: timeout.as_millis().try_into().unwrap_or(u64::MAX),
            signal: self.setup.spec.guest.stop_signal.map(SignalNumber::number),
        });
        if self.request(InternalStream::Shutdown, &request).is_err() {
            return self.drive(LifecycleEvent::ShutdownFailed);
        }
        Ok(())
    }

    /// Kills the VM of a guest that is silent: the console's report is right.
    fn kill_silent(&mut self) -> anyhow::Result<()> {
        self.vm.kill();
        self.console.copy_all();
        let outcome = vm_outcome::of_guest(self.console.guest_exit());
        self.drive(LifecycleEvent::GuestSilent(outcome))
    }

    /// Ends a start that failed.
    pub(super) fn start_failed(&mut self, error: &anyhow::Error) -> anyhow::Result<()> {
        let hint = error::hint(error).map(str::to_owned);
        self.drive(LifecycleEvent::StartFailed { message: message(error), hint })
    }
}
