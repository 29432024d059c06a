//! Start of a VM: a cold boot, or a start from memory ([`crate::boot_state`]).
//!
//! The first boot of a kind without a saved state is recorded: it stops at the agent's hello until
//! its state has been taken. When a start from memory fails before the guest is set up, a cold boot
//! follows, whatever the reason.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Context;
use libmsb::cli::error::{message, warn};
use libmsb::state::status::BootKind;
use libmsb::state::{layout, write};
use msb_wire::handshake::{Hello, operation};

use super::SandboxSupervisor;
use crate::boot_state::{
    BootState, BootStateStore, QmpMonitor, StateMetadata, StateRecording, StateRestore,
    continue_saved, may_start_from_memory, plug_share, take_state,
};
use crate::engine::kind::{TscRate, VmKind};
use crate::startup::monotonic_ns;
use crate::supervisor::background_task::BackgroundTask;
use crate::supervisor::lifecycle::{BootMethod, LifecycleEvent};
use crate::supervisor::setup::{last_log_line, vm_spec};
use crate::supervisor::vm::{self, StartMethod, StartedVm};
use crate::supervisor::vm_start::PreparedVm;

impl SandboxSupervisor {
    /// Takes the boot slot and starts the VM.
    pub(super) fn slot_acquired(&mut self) -> anyhow::Result<()> {
        match self.start.slot.take() {
            Ok(()) => self.drive(LifecycleEvent::SlotAcquired),
            Err(error) => self.start_failed(&error),
        }
    }

    /// Starts the first VM of this run.
    pub(super) fn start_first_vm(&mut self) -> anyhow::Result<()> {
        match self.saved_memory() {
            Ok(Some(state)) => self.start_or_end(StartMethod::Resume(Box::new(state))),
            Ok(None) => {
                let method = self.choose_start_method();
                self.start_or_end(method)
            }
            Err(error) => self.start_failed(&error),
        }
    }

    fn start_or_end(&mut self, method: StartMethod) -> anyhow::Result<()> {
        self.start_with(method).or_else(|error| self.start_failed(&error))
    }

    fn start_with(&mut self, method: StartMethod) -> anyhow::Result<()> {
        let (boot, hello) = match &method {
            StartMethod::FromMemory(state) => {
                (BootMethod::Memory, Some(state.header.hello.clone()))
            }
            StartMethod::Resume(state) => (BootMethod::Resume, Some(state.header.hello.clone())),
            StartMethod::Record => (BootMethod::Recording, None),
            StartMethod::ColdBoot => (BootMethod::Cold { attempt: 0 }, None),
        };
        let kind = if hello.is_some() { BootKind::Memory } else { BootKind::Cold };
        self.journal.status.boot = Some(kind);
        let vm_kind = self.kind_of_vm(&method);
        let mut started = self.start_vm(0, method)?.context("the engine cannot start a VM")?;
        started.vm.kind = vm_kind;
        let restore = self.connect(started, boot)?;
        match restore.zip(hello) {
            Some((restore, hello)) => self.restore_state(restore, hello),
            None => Ok(()),
        }
    }

    /// Returns the kind of the VM that the first attempt of a method starts.
    fn kind_of_vm(&self, method: &StartMethod) -> Option<VmKind> {
        match method {
            StartMethod::FromMemory(state) | StartMethod::Resume(state) => {
                Some(state.header.kind.clone())
            }
            // Without a kind, the memory cannot be saved later.
            StartMethod::ColdBoot => {
                let net = self.setup.net.is_some();
                self.setup.engine.kind(&vm_spec(&self.setup), net).ok().flatten()
            }
            StartMethod::Record => None,
        }
    }

    /// Starts a VM for an attempt; see [`vm::start`].
    fn start_vm(&self, attempt: u32, method: StartMethod) -> anyhow::Result<Option<StartedVm>> {
        let setup = &self.setup;
        let mut held = vec![setup.lock.as_fd()];
        if !matches!(method, StartMethod::Record) {
            held.extend(setup.upper.as_ref().map(AsFd::as_fd));
            held.extend(setup.mounts.held());
        }
        let net = setup.net.as_ref();
        let net = net.map(|net| anyhow::Ok((net, self.samples.net_descriptor()?)));
        let net = net.transpose()?;
        vm::start(setup.engine.as_ref(), attempt, vm_spec(setup), net, &held, method)
    }

    /// Connects the supervisor to a VM that was started.
    fn connect(
        &mut self,
        started: StartedVm,
        method: BootMethod,
    ) -> anyhow::Result<Option<StateRestore>> {
        self.samples.start_vm(&self.setup.spec, started.vm.pid());
        self.vm = started.vm;
        self.guest.connect(started.agent);
        self.console.connect(started.console);
        self.start.times.machine_ns = monotonic_ns();
        self.drive(LifecycleEvent::VmStarted(method))?;
        Ok(started.restore)
    }

    /// Boots again after a timeout, if the engine offers another attempt.
    pub(super) fn start_attempt(&mut self, attempt: u32) -> anyhow::Result<()> {
        self.kill_vm();
        match self.start_vm(attempt, StartMethod::ColdBoot)? {
            Some(started) => self.connect(started, BootMethod::Cold { attempt }).map(drop),
            None => self.drive(LifecycleEvent::AttemptsExhausted),
        }
    }

    /// Chooses a start from memory if the kind has a boot state; else a cold boot, which is
    /// recorded unless another process is recording. A damaged state does not prevent a start.
    fn choose_start_method(&mut self) -> StartMethod {
        if !may_start_from_memory(&self.setup.spec) {
            return StartMethod::ColdBoot;
        }
        self.choose_memory_or_recording().unwrap_or_else(|error| {
            warn(&message(&error));
            StartMethod::ColdBoot
        })
    }

    fn choose_memory_or_recording(&mut self) -> anyhow::Result<StartMethod> {
        let net = self.setup.net.is_some();
        self.start.kind = self.setup.engine.kind(&vm_spec(&self.setup), net)?;
        let Some(kind) = &self.start.kind else {
            return Ok(StartMethod::ColdBoot);
        };
        let store = BootStateStore::of(&self.setup.home);
        match store.open(kind, TscRate::measure()) {
            Ok(Some(state)) => return Ok(StartMethod::FromMemory(Box::new(state))),
            Ok(None) => {}
            Err(error) => self.start.note = Some(note(&message(&error))),
        }
        if store.has_failed(kind) {
            return Ok(StartMethod::ColdBoot);
        }
        self.start.recording = store.start_recording(kind)?;
        Ok(match self.start.recording {
            Some(_) => StartMethod::Record,
            None => StartMethod::ColdBoot,
        })
    }

    /// Restores the memory and the devices of the VM, and queues the boot request, which the guest
    /// reads when it runs.
    fn restore_state(&mut self, restore: StateRestore, hello: Hello) -> anyhow::Result<()> {
        let guest = restore.state.header.guest.clone();
        let booted_ns = hello.hello_ns.unwrap_or(0);
        self.start.saved_uptime_ns =
            Some(guest.as_ref().map_or(booted_ns, |guest| guest.uptime_ns));
        self.start.is_resumed = guest.is_some();
        let saved = guest.is_some().then(|| self.setup.sandbox.path(layout::MEMORY));
        let unplugged_share = self.vm.unplugged_share.take();
        let mut monitor = self.vm.monitor.take().context("the VM has no monitor")?;
        self.start.task = Some(BackgroundTask::spawn("restore", move || {
            restore.run(&mut monitor)?;
            if let Some(path) = saved {
                start_once(&mut monitor, &path)?;
            }
            if let Some((socket, tag)) = unplugged_share {
                monitor.wait_until_running()?;
                plug_share(&mut monitor, &socket, &tag)?;
            }
            Ok(PreparedVm::Boot(monitor))
        })?);
        self.guest.skip_hello();
        self.take_certificate()?;
        let sent = match guest {
            Some(guest) => self.send_wake_request(&hello, &guest),
            None => self.send_boot_request(&hello),
        };
        sent.map_err(|what| anyhow::anyhow!("the agent's hello in the boot state is {what}"))
    }

    /// Handles the agent's hello: records the VM's state, or plugs in its share, before the hello
    /// is answered.
    pub(super) fn hello_received(&mut self, hello: Hello) -> anyhow::Result<()> {
        self.drive(LifecycleEvent::HelloReceived)?;
        if let Some(recording) = self.start.recording.take() {
            return self
                .record_state(recording, hello)
                .or_else(|error| self.drive(LifecycleEvent::PreparationFailed(message(&error))));
        }
        // Without a share, the monitor stays for a pause.
        let Some((socket, tag)) = self.vm.unplugged_share.take() else {
            return self.answer(&hello);
        };
        let plugged = self.vm.monitor.take().context("the VM has no monitor for its share");
        let plugged = plugged.and_then(|mut monitor| {
            BackgroundTask::spawn("share", move || {
                plug_share(&mut monitor, &socket, &tag)?;
                Ok(PreparedVm::Boot(monitor))
            })
        });
        match plugged {
            Ok(task) => {
                self.start.hello = Some(hello);
                self.start.task = Some(task);
                Ok(())
            }
            Err(error) => self.start_failed(&error),
        }
    }

    /// Starts to record the state of the VM.
    fn record_state(&mut self, recording: StateRecording, hello: Hello) -> anyhow::Result<()> {
        hello.require(operation::BOOT_MEMORY)?;
        let metadata = StateMetadata {
            kind: self.start.kind.clone().context("the VM has no kind")?,
            tsc_khz: self.vm.tsc,
            hello,
        };
        let monitor = self.vm.monitor.take().zip(self.vm.memory.take());
        let (mut monitor, memory) = monitor.context("the VM has no monitor")?;
        self.start.task = Some(BackgroundTask::spawn("state", move || {
            let (recording, state) = take_state(&mut monitor, &memory, recording, metadata)?;
            Ok(PreparedVm::StateTaken(recording, Box::new(state)))
        })?);
        Ok(())
    }

    fn answer(&mut self, hello: &Hello) -> anyhow::Result<()> {
        if let Err(error) = self.take_certificate() {
            return self.start_failed(&error);
        }
        match self.send_boot_request(hello) {
            Ok(()) => Ok(()),
            Err(what) => self.drive(LifecycleEvent::AgentViolation(what)),
        }
    }

    /// Takes the certificate that the guest must trust from the process that intercepts TLS.
    fn take_certificate(&mut self) -> anyhow::Result<()> {
        self.start.trust = match self.vm.intercept_mut() {
            Some(process) => Some(process.wait_for_certificate()?),
            // A sandbox that was intercepted before no longer trusts its authority.
            None => self.setup.sandbox.path(layout::TLS_AUTHORITY).exists().then(String::new),
        };
        Ok(())
    }

    /// Handles the end of the VM's preparation.
    pub(super) fn vm_prepared(&mut self) -> anyhow::Result<()> {
        let Some(task) = self.start.task.take() else {
            return Ok(());
        };
        match task.finish() {
            Ok(PreparedVm::Boot(monitor)) => {
                self.vm.monitor = Some(monitor);
                match self.start.hello.take() {
                    Some(hello) => self.answer(&hello),
                    None => Ok(()),
                }
            }
            Ok(PreparedVm::StateTaken(recording, state)) => self.start_from(recording, state),
            Err(error) if self.start.hello.is_none() => {
                self.drive(LifecycleEvent::PreparationFailed(message(&error)))
            }
            // The end of its process says more.
            Err(_) if self.vm.poll_exit().is_some() => Ok(()),
            Err(error) => self.start_failed(&error),
        }
    }

    /// Starts from a state that was recorded just now, and publishes it meanwhile.
    fn start_from(
        &mut self,
        recording: StateRecording,
        state: Box<BootState>,
    ) -> anyhow::Result<()> {
        self.kill_vm();
        self.start.publish(recording)?;
        self.start_with(StartMethod::FromMemory(state))
    }

    /// Boots the guest after a failed start from memory or a failed recording.
    pub(super) fn fall_back(&mut self, why: &str) -> anyhow::Result<()> {
        self.kill_vm();
        let why = match last_log_line(&self.setup.sandbox) {
            Some(words) => format!("{why} ({words})"),
            None => why.to_owned(),
        };
        let note = note(&why);
        warn(&note);
        // The state was recorded just now. Another one would fail as well.
        let is_fresh = self.start.finish_publishing();
        if let Some(kind) = &self.start.kind {
            let store = BootStateStore::of(&self.setup.home);
            store.remove(kind);
            if is_fresh || self.start.saved_uptime_ns.is_none() {
                store.mark_failed(kind, &note);
            }
        }
        self.start.restart(Some(note));
        self.start_or_end(StartMethod::ColdBoot)
    }

    /// Boots without recording after a hung boot. The next start of the kind tries to record again.
    pub(super) fn boot_unrecorded(&mut self) -> anyhow::Result<()> {
        self.kill_vm();
        self.start.restart(None);
        self.start_with(StartMethod::ColdBoot)
    }

    /// Kills the VM in whose place another one starts, and copies its last output.
    fn kill_vm(&mut self) {
        self.vm.kill();
        self.console.copy_all();
    }
}

/// Lets a VM run that was filled from saved memory. The file is removed first: a guest whose disk
/// has changed since must not start from it again.
fn start_once(monitor: &mut QmpMonitor, path: &Path) -> anyhow::Result<()> {
    monitor.wait_until_restored()?;
    std::fs::remove_file(path).with_context(|| format!("cannot remove '{}'", path.display()))?;
    write::sync_dir(path.parent().unwrap_or(Path::new(".")))?;
    continue_saved(monitor)
}

fn note(why: &str) -> String {
    format!("cannot start from memory, booting instead: {why}")
}
