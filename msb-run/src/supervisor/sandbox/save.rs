//! Saving the memory of the running guest, and going on from saved memory.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use libmsb::cli::error::{Code, Failure};
use libmsb::state::layout;
use libmsb::state::status::Reason;
use libmsb::state::write::NewFile;
use msb_wire::handshake::{Hello, operation};
use msb_wire::memory::{QuiesceEvent, WakeIdentity, WakeRequest};
use msb_wire::sandbox::Request;

use super::SandboxSupervisor;
use super::boot::boot_request;
use crate::boot_state::{BootState, SavedCommand, SavedGuest, StateMetadata};
use crate::supervisor::lifecycle::LifecycleEvent;
use crate::supervisor::memory_save::{SaveStep, failed};
use crate::supervisor::relay::{
    ClientId, ClientStream, InternalStream, OpenCommand, ProtocolViolation,
};
use crate::supervisor::setup::vm_spec;

impl SandboxSupervisor {
    /// Saves the memory for a client.
    pub(super) fn save_memory(&mut self, requester: ClientStream) -> anyhow::Result<()> {
        // As for a pause.
        if self.lifecycle.is_running() && self.start.ready_fd().is_some() {
            self.vm_prepared()?;
        }
        if let Err(error) = self.start_quiescing(requester) {
            self.clients.answer(requester, &failed(&error));
        }
        Ok(())
    }

    fn start_quiescing(&mut self, requester: ClientStream) -> anyhow::Result<()> {
        let name = &self.setup.sandbox.name;
        self.check_savable()?;
        if !self.lifecycle.is_running() || self.lifecycle.is_pausing() {
            let message = format!("the sandbox '{name}' is not running");
            return Err(Failure::wrong_state(message).into());
        }
        if self.backup.is_active() || self.save.is_active() {
            let message = format!("the sandbox '{name}' is being copied already");
            return Err(Failure::wrong_state(message).hint("try again later").into());
        }
        self.request(InternalStream::Quiesce, &Request::Quiesce)?;
        self.guest.port.hold();
        self.save.expect_quiescence(requester);
        Ok(())
    }

    /// Refuses a guest whose memory cannot be saved.
    fn check_savable(&self) -> Result<(), Failure> {
        let name = &self.setup.sandbox.name;
        let unsupported = |why: String| {
            let message = format!("cannot save the memory of the sandbox '{name}': {why}");
            Failure::failed(message).code(Code::UnsupportedOperation)
        };
        if !self.setup.engine.starts_from_memory() {
            let engine = self.setup.engine.name();
            return Err(unsupported(format!("the engine '{engine}' cannot save memory"))
                .hint("create the sandbox with the engine qemu: --engine qemu"));
        }
        let mounts = &self.setup.mounts;
        if !mounts.entries.is_empty() || !mounts.disks.is_empty() || mounts.root.is_some() {
            return Err(unsupported("it has mounts, whose contents are not in a snapshot".into()));
        }
        if self.setup.spec.net.tls.is_active() {
            let why = "its TLS is intercepted, and a guest that goes on would trust the authority \
                       of this sandbox only";
            return Err(unsupported(why.to_owned()));
        }
        if let Err(error) = self.clients.relay.peer().require(operation::QUIESCE) {
            return Err(unsupported(error.to_string()));
        }
        if self.vm.kind.is_none() {
            let why = "its virtual machine could not be started in the usual way";
            return Err(unsupported(why.to_owned()).hint(format!("restart it: msb restart {name}")));
        }
        Ok(())
    }

    /// Handles the last frame of the agent.
    pub(super) fn agent_is_quiescent(&mut self, message: &[u8]) -> anyhow::Result<()> {
        let Some(requester) = self.save.take_quiescent() else {
            return Ok(());
        };
        if let Err(error) = self.start_saving(requester, message) {
            self.clients.answer(requester, &failed(&error));
            self.wake_guest();
        }
        Ok(())
    }

    fn start_saving(&mut self, requester: ClientStream, message: &[u8]) -> anyhow::Result<()> {
        let event = serde_json::from_slice(message).context("cannot parse the agent's answer")?;
        let uptime_ns = match event {
            QuiesceEvent::Quiescent { uptime_ns } => uptime_ns,
            QuiesceEvent::Failed { message } => bail!("{message}"),
        };
        let metadata = StateMetadata {
            kind: self.vm.kind.clone().context("the VM has no kind")?,
            tsc_khz: self.vm.tsc,
            hello: self.clients.relay.peer().clone(),
        };
        let guest = SavedGuest {
            uptime_ns,
            cpus: self.setup.spec.cpus,
            net: self.setup.net.is_some(),
            next_stream: self.clients.relay.next_stream(),
            commands: self.saved_commands(),
            devices_crc: 0,
        };
        let memory = self.vm.memory.as_ref().context("the VM has no memory of its own")?;
        let memory = memory.try_clone().context("cannot use the guest's memory")?;
        let file = NewFile::create(&self.setup.sandbox.path(layout::MEMORY))?;
        let monitor = self.vm.monitor.take().context("the monitor of the VM does not answer")?;
        self.save.start(requester, file, (monitor, memory), (metadata, guest))
    }

    fn saved_commands(&self) -> Vec<SavedCommand> {
        let commands = self.clients.relay.open_commands().into_iter();
        let saved = commands.map(|command| {
            let internal = command.job.map_or(InternalStream::Main, InternalStream::Job);
            SavedCommand {
                stream: command.stream,
                main: command.main,
                tty: command.tty,
                timeout_ms: self.jobs.time_left(internal),
                job: command.job.and_then(|number| self.jobs.saved(number)),
            }
        });
        saved.collect()
    }

    /// Lets the agent go on, and sends it what was held back.
    fn wake_guest(&mut self) {
        self.guest.port.release();
        // A request without a value always serializes.
        let _ = self.request(InternalStream::Wake, &Request::Wake(WakeRequest::default()));
        self.sync_guest_clock();
        self.guest.flush();
    }

    /// Continues the guest, for a client or because its client has gone.
    pub(super) fn end_save(&mut self, requester: Option<ClientStream>) -> anyhow::Result<()> {
        let ended = match self.save.take_saved() {
            Some(file) => match self.vm.monitor.take() {
                Some(monitor) => self.save.end(requester, file, monitor),
                None => Err(anyhow::anyhow!("the monitor of the VM does not answer")),
            },
            None => Err(Failure::wrong_state("the memory is not being saved").into()),
        };
        if let (Err(error), Some(requester)) = (ended, requester) {
            self.clients.answer(requester, &failed(&error));
        }
        Ok(())
    }

    /// Gives a save up: for a client that has disconnected, or for all before a stop.
    pub(super) fn abandon_save(&mut self, gone: Option<ClientId>) -> anyhow::Result<()> {
        let step = self.save.cancel(gone);
        self.take_save_step(step)
    }

    /// Handles the end of a command about a save.
    pub(super) fn save_command_done(&mut self) -> anyhow::Result<()> {
        let Some((monitor, step)) = self.save.command_done() else {
            return Ok(());
        };
        self.vm.monitor = monitor;
        let is_orphaned = step.is_orphaned || !self.lifecycle.is_running();
        self.take_save_step(SaveStep { is_orphaned, ..step })
    }

    fn take_save_step(&mut self, step: SaveStep) -> anyhow::Result<()> {
        if let Some((requester, event)) = step.answer {
            self.clients.answer(requester, &event);
        }
        if step.wakes {
            self.wake_guest();
        }
        if let Some(message) = step.failure {
            return self
                .drive(LifecycleEvent::ProcessFailed { reason: Reason::VmmFailed, message });
        }
        if step.is_orphaned { self.end_save(None) } else { Ok(()) }
    }

    /// Gives a save up whose agent did not answer in time.
    pub(super) fn quiescence_timed_out(&mut self) {
        if let Some(requester) = self.save.take_quiescent() {
            let message = "the agent of the guest did not answer in time";
            self.clients.answer(requester, &failed(&Failure::failed(message).into()));
            self.wake_guest();
        }
    }

    /// Returns the memory from which the sandbox is to go on, if there is one.
    pub(super) fn saved_memory(&self) -> anyhow::Result<Option<BootState>> {
        let name = &self.setup.sandbox.name;
        let opened = BootState::open_saved(&self.setup.sandbox.path(layout::MEMORY));
        let checked = opened.and_then(|state| {
            if let Some(state) = &state {
                self.check_memory(state)?;
            }
            Ok(state)
        });
        let hint = format!("start it from its disk alone: msb start --cold {name}");
        checked.map_err(|error| match error.downcast::<Failure>() {
            Ok(failure) => failure.hint(hint).into(),
            Err(error) => error.context(Failure::failed("the saved memory is damaged").hint(hint)),
        })
    }

    fn check_memory(&self, state: &BootState) -> anyhow::Result<()> {
        let setup = &self.setup;
        let net = setup.net.is_some();
        let kind = setup.engine.kind(&vm_spec(setup), net)?;
        let spec = &setup.spec;
        Ok(state.check_machine((spec.cpus, spec.memory_mib, net), kind.as_ref())?)
    }

    /// Prepares for the agent of a guest from saved memory: its commands go on, and its identity
    /// is set when it runs.
    pub(super) fn send_wake_request(
        &mut self,
        hello: &Hello,
        guest: &SavedGuest,
    ) -> Result<(), String> {
        self.guest.resume(hello, &[operation::QUIESCE]).map_err(|ProtocolViolation(what)| what)?;
        self.clients.relay.set_peer(hello.clone());
        for command in &guest.commands {
            self.adopt_saved(command);
        }
        self.clients.relay.set_next_stream(guest.next_stream);
        let boot = boot_request(&self.setup, None).map_err(|error| error.to_string())?;
        let keep = guest.commands.iter().map(|command| command.stream).collect();
        let identity = Some(Box::new(WakeIdentity { boot, keep }));
        self.request(InternalStream::Boot, &Request::Wake(WakeRequest { identity }))
            .map_err(|error| error.to_string())
    }

    fn adopt_saved(&mut self, command: &SavedCommand) {
        let job = command.job.as_ref().map(|job| {
            self.journal.require_log();
            self.jobs.adopt_saved(&self.setup.sandbox, job, (command.tty, command.main))
        });
        let session = command.job.as_ref().map(|job| job.id.clone());
        let (stream, main, tty) = (command.stream, command.main, command.tty);
        self.clients.relay.adopt_open(&OpenCommand { stream, job, main, tty, session });
        if let Some(timeout_ms) = command.timeout_ms {
            let internal = job.map_or(InternalStream::Main, InternalStream::Job);
            self.jobs.set_timeout(internal, Duration::from_millis(timeout_ms));
        }
    }

    /// Returns whether the agent's answer to `quiesce` is overdue.
    pub(super) fn is_quiescence_overdue(&self, now: Instant) -> bool {
        self.save.deadline().is_some_and(|deadline| deadline <= now)
    }
}
