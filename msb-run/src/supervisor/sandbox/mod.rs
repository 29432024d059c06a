//! The running supervisor: it owns the parts of a sandbox and connects them.
//!
//! Sources of the event loop become events of the state machine ([`Lifecycle`]), whose actions are
//! performed here.

/// Actions of the state machine.
mod actions;
/// Keeping overwritten blocks for a copy of the disk.
mod backup;
/// The boot request and its answer.
mod boot;
/// Notices of the relay.
mod notices;
/// Pause and resume.
mod pause;
/// Saving the memory, and going on from saved memory.
mod save;
/// Exits of processes, and what the sandbox leaves at its end.
mod shutdown;
/// Cold boot and start from memory.
mod start;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::cli::error::message;
use libmsb::signals::{Signals, signal};
use libmsb::state::layout;
use libmsb::state::lock::Lock;
use libmsb::state::status::Reason;
use rustix::event::PollFlags;

use super::backup::BackupControl;
use super::clients::{Clients, poll_flags};
use super::clock::{HostClock, was_continued};
use super::console::GuestConsole;
use super::event_loop::{EventHandler, PollSet, ReadySource};
use super::guest_link::{GuestLink, LinkRead};
use super::jobs::{JobLinks, JobTable};
use super::journal::SandboxJournal;
use super::lifecycle::{Lifecycle, LifecycleEvent, LifecycleSettings};
use super::memory_save::SaveControl;
use super::network::NetworkControl;
use super::pause::PauseControl;
use super::relay::{ClientId, ProtocolViolation, RelayNotice};
use super::samples::Sampler;
use super::setup::SandboxSetup;
use super::vm::VirtualMachine;
use super::vm_start::{BootSlot, VmStart};
use crate::boot_state::QmpMonitor;
use crate::net::NetProcess;
use crate::process::error_log;
use crate::startup::StartupHandles;

/// Reads of the agent before other sources are served.
const AGENT_READS: usize = 16;

/// A descriptor that the event loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventSource {
    Agent,
    Exit,
    Listener,
    Signals,
    Clock,
    Errors,
    Slot,
    Console,
    NetExit,
    NetEvents,
    NetAnswer,
    InterceptExit,
    InterceptEvents,
    Share,
    KeepalivePipe,
    Changes,
    Prepared,
    PauseCommand,
    BackupCommand,
    SaveCommand,
    Monitor,
    Client(ClientId),
}

/// The supervisor of one sandbox.
pub(crate) struct SandboxSupervisor {
    setup: SandboxSetup,
    starter: StartupHandles,
    lifecycle: Lifecycle,
    start: VmStart,
    vm: VirtualMachine,
    guest: GuestLink,
    console: GuestConsole,
    clients: Clients,
    jobs: JobTable,
    network: NetworkControl,
    journal: SandboxJournal,
    samples: Sampler,
    pause: PauseControl,
    backup: BackupControl,
    save: SaveControl,
    signals: Signals,
    clock: HostClock,
}

impl SandboxSupervisor {
    /// Opens the supervisor's resources. The VM starts when there is a boot slot; until then the
    /// sandbox answers requests and can be stopped. Returns the lock with an error, to hold it
    /// until the sandbox's directory shows the error.
    pub(crate) fn open(
        setup: SandboxSetup,
        starter: &mut StartupHandles,
    ) -> Result<SandboxSupervisor, (anyhow::Error, Lock)> {
        match SandboxSupervisor::open_parts(&setup, starter) {
            Ok(open) => Ok(open(setup)),
            Err(error) => Err((error, setup.lock)),
        }
    }

    fn open_parts(
        setup: &SandboxSetup,
        starter: &mut StartupHandles,
    ) -> anyhow::Result<impl FnOnce(SandboxSetup) -> SandboxSupervisor + use<>> {
        let samples = Sampler::create(setup);
        let guest = GuestLink::disconnected().context("cannot create a socket for the agent")?;
        let signals =
            Signals::of(&[signal::SIGTERM, signal::SIGINT, signal::SIGHUP, signal::SIGCHLD])
                .context("cannot wait for signals")?;
        let clock = HostClock::new().context("cannot watch the clock")?;
        // The log of an ephemeral sandbox whose client receives all output would never be read.
        let logged = !setup.spec.ephemeral || starter.client.is_none();
        let socket = setup.home.agent_socket(&setup.sandbox.name);
        let clients = Clients::open(socket, starter, logged)?;
        let path = |name| setup.sandbox.path(name);
        let console = GuestConsole::open(&path(layout::CONSOLE_LOG))
            .context("cannot open the log of the console")?;
        let network = NetworkControl::open(&path(layout::NET_LOG), setup.net.is_some())
            .context("cannot open the log of the network")?;
        let journal = SandboxJournal::open(setup, logged)?;
        let start = VmStart::new(BootSlot::queue(&setup.home)?);
        let jobs = JobTable::of(&setup.sandbox);
        let mut settings = lifecycle_settings(setup, &journal);
        // The init of a guest from saved memory runs already.
        settings.has_init &= !path(layout::MEMORY).exists();
        let lifecycle = Lifecycle::new(settings, Instant::now());
        let starter = std::mem::take(starter);
        Ok(move |setup| SandboxSupervisor {
            setup,
            starter,
            lifecycle,
            start,
            vm: VirtualMachine::none(),
            guest,
            console,
            clients,
            jobs,
            network,
            journal,
            samples,
            pause: PauseControl::default(),
            backup: BackupControl::default(),
            save: SaveControl::default(),
            signals,
            clock,
        })
    }

    /// Gives an event to the state machine and performs its actions.
    fn drive(&mut self, event: LifecycleEvent) -> anyhow::Result<()> {
        let actions = self.lifecycle.handle(event, Instant::now());
        self.perform(actions)
    }

    /// Returns the jobs, and the parts that they use.
    fn jobs(&mut self) -> (&mut JobTable, JobLinks<'_>) {
        let links = JobLinks {
            relay: &mut self.clients.relay,
            port: &mut self.guest.port,
            journal: &mut self.journal,
        };
        (&mut self.jobs, links)
    }

    /// Writes queued output as far as the sockets take it.
    fn write_out(&mut self, notices: &mut Vec<RelayNotice>) {
        self.guest.flush();
        self.clients.write_out(&mut self.guest.port, notices);
    }

    fn handle_source(
        &mut self,
        source: EventSource,
        flags: PollFlags,
        notices: &mut Vec<RelayNotice>,
    ) -> anyhow::Result<()> {
        match source {
            EventSource::Slot => self.slot_acquired()?,
            EventSource::Agent => self.read_agent(notices)?,
            EventSource::Console => drop(self.console.copy()),
            EventSource::Exit => self.vm_exited()?,
            EventSource::NetExit => self.net_exited()?,
            EventSource::NetEvents => {
                if let Some(process) = &mut self.vm.net {
                    self.network.copy_events(process);
                }
            }
            EventSource::NetAnswer => self.read_net_answer(),
            EventSource::InterceptExit => self.intercept_exited()?,
            EventSource::InterceptEvents => {
                if let Some(process) = self.vm.intercept_mut() {
                    self.network.copy_intercept_events(process);
                }
            }
            EventSource::Share => self.share_exited()?,
            EventSource::Listener => self.clients.accept(),
            EventSource::Signals => self.handle_signal()?,
            EventSource::Errors => error_log::copy(),
            EventSource::Clock => {
                if self.clock.is_due().context("cannot read the clock")? {
                    self.sync_guest_clock();
                }
            }
            EventSource::KeepalivePipe => {
                if self.clients.keepalive_ended() {
                    self.drive(LifecycleEvent::Stop(Reason::ClientGone))?;
                }
            }
            EventSource::Changes => self.changes_finished()?,
            EventSource::Prepared => self.vm_prepared()?,
            EventSource::Monitor => self.drain_monitor(),
            EventSource::PauseCommand => self.pause_command_done()?,
            EventSource::BackupCommand => self.backup_command_done()?,
            EventSource::SaveCommand => self.save_command_done()?,
            EventSource::Client(id) => {
                let gone = flags.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP);
                if flags.contains(PollFlags::IN) || gone {
                    self.clients.relay.read_client(id, &mut self.guest.port, notices);
                }
            }
        }
        Ok(())
    }

    fn handle_signal(&mut self) -> anyhow::Result<()> {
        let number = self.signals.wait().context("cannot read a signal")?;
        if number != signal::SIGCHLD {
            return self.drive(LifecycleEvent::Stop(Reason::Signal));
        }
        if self.vm.pid().is_some_and(was_continued) {
            self.sync_guest_clock();
        }
        Ok(())
    }

    fn read_agent(&mut self, notices: &mut Vec<RelayNotice>) -> anyhow::Result<()> {
        for _ in 0..AGENT_READS {
            match self.guest.read(&mut self.clients.relay, notices) {
                Ok(LinkRead::Nothing) => return Ok(()),
                // The end of the VM is an event of its own; until then there is nothing to read.
                Ok(LinkRead::Closed) => return self.agent_closed(),
                Ok(LinkRead::Frames) => {}
                Ok(LinkRead::Hello(hello)) => self.hello_received(*hello)?,
                Err(ProtocolViolation(what)) => {
                    return self.drive(LifecycleEvent::AgentViolation(what));
                }
            }
        }
        Ok(())
    }

    /// Discards QEMU's events. When QEMU has closed its monitor, the end of its process says more.
    fn drain_monitor(&mut self) {
        if !self.vm.monitor.as_mut().is_some_and(QmpMonitor::drain) {
            self.vm.monitor = None;
        }
    }

    /// Handles the deadlines that have passed.
    fn check_deadlines(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let is_due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if is_due(self.jobs.deadline()) {
            self.jobs.kill_timed_out(&mut self.clients.relay, &mut self.guest.port);
        }
        if is_due(self.pause.deadline()) {
            self.answer_resume(true);
        }
        if self.is_quiescence_overdue(now) {
            self.quiescence_timed_out();
        }
        if is_due(self.lifecycle.idle_deadline()) {
            self.record_published_port_use();
        }
        if is_due(self.lifecycle.deadline()) {
            self.drive(LifecycleEvent::Tick)?;
        }
        Ok(())
    }

    /// Records the use of published ports for the idle timeout. The network only counts it and
    /// wakes no process, so the counter is read when it matters.
    fn record_published_port_use(&mut self) {
        let net = self.vm.net.as_ref();
        if let Some(last_used_at) = net.and_then(NetProcess::last_published_use) {
            self.lifecycle.record_use(last_used_at);
        }
    }
}

impl EventHandler for SandboxSupervisor {
    type Source = EventSource;

    fn is_done(&self) -> bool {
        self.lifecycle.end().is_some()
    }

    fn sources<'a>(&'a self, set: &mut PollSet<'a, EventSource>) {
        set.add(EventSource::Agent, self.guest.port.as_fd(), poll_flags(true, &self.guest.port));
        set.add_input(EventSource::Signals, self.signals.as_fd());
        set.add_input(EventSource::Clock, self.clock.as_fd());
        let net = self.vm.net.as_ref();
        let intercept = net.and_then(|net| net.intercept.as_ref());
        let monitor = self.vm.monitor.as_ref().filter(|monitor| monitor.is_open());
        let others = [
            (EventSource::Exit, self.vm.pidfd()),
            (EventSource::Listener, self.clients.listener_fd()),
            (EventSource::Errors, error_log::reader()),
            (EventSource::Slot, self.start.slot.ready_fd()),
            (EventSource::Console, self.console.fd()),
            (EventSource::NetExit, net.map(|net| net.process.pidfd())),
            (EventSource::NetEvents, net.map(|net| net.events.as_fd())),
            (EventSource::NetAnswer, net.map(|net| net.control.as_fd())),
            (EventSource::InterceptExit, intercept.map(|process| process.process.pidfd())),
            (EventSource::InterceptEvents, intercept.map(|process| process.events.as_fd())),
            (EventSource::Share, self.vm.share.as_ref().map(|share| share.pidfd())),
            (EventSource::KeepalivePipe, self.clients.keepalive_fd()),
            (EventSource::Changes, self.start.changes.as_ref().map(|changes| changes.as_fd())),
            (EventSource::Prepared, self.start.ready_fd()),
            (EventSource::PauseCommand, self.pause.ready_fd()),
            (EventSource::BackupCommand, self.backup.ready_fd()),
            (EventSource::SaveCommand, self.save.ready_fd()),
            (EventSource::Monitor, monitor.map(|monitor| monitor.as_fd())),
        ];
        for (source, fd) in others {
            if let Some(fd) = fd {
                set.add_input(source, fd);
            }
        }
        self.clients.links(&self.guest.port, set, EventSource::Client);
    }

    fn deadline(&self) -> Option<Instant> {
        let deadlines = [
            self.lifecycle.deadline(),
            self.pause.deadline(),
            self.save.deadline(),
            self.jobs.deadline(),
            self.samples.due(),
        ];
        deadlines.into_iter().flatten().min()
    }

    fn handle(&mut self, ready: Vec<ReadySource<EventSource>>) -> anyhow::Result<()> {
        let mut notices = Vec::new();
        for (source, flags) in ready {
            self.handle_source(source, flags, &mut notices)?;
        }
        self.write_out(&mut notices);
        for notice in notices {
            self.handle_notice(notice)?;
        }
        if self.console.guest_exit().is_some() {
            self.drive(LifecycleEvent::ConsoleReportedEnd)?;
        }
        let upper = &self.setup.upper;
        self.samples.sample_host_if_due(|| allocated_bytes(upper.as_ref()));
        let mut gone = Vec::new();
        self.end_with_last_command(&mut gone)?;
        self.write_out(&mut gone);
        for notice in gone {
            self.handle_notice(notice)?;
        }
        let is_copied = self.backup.is_active() || self.save.is_active();
        if self.clients.relay.is_in_use() || is_copied {
            self.lifecycle.record_use(Instant::now());
        }
        self.check_deadlines()
    }

    fn fail(&mut self, error: &anyhow::Error) {
        let failed = LifecycleEvent::ProcessFailed {
            reason: Reason::SupervisorFailed,
            message: message(error),
        };
        // The end has no actions that could fail.
        let _ = self.drive(failed);
    }
}

/// Returns the properties that the sandbox's life depends on.
fn lifecycle_settings(setup: &SandboxSetup, journal: &SandboxJournal) -> LifecycleSettings {
    let spec = &setup.spec;
    LifecycleSettings {
        persistent: spec.persistent,
        volatile: spec.ephemeral && !setup.mounts.has_persistent_writes(),
        has_changes: !spec.guest.changes.is_empty() && !journal.status.changed,
        has_init: spec.guest.init.is_some(),
        can_pause: setup.engine.starts_from_memory(),
        idle_timeout: spec.idle_timeout_ms.map(Duration::from_millis),
        max_duration: spec.max_duration_ms.map(Duration::from_millis),
    }
}

/// Returns the bytes that a sparse file occupies on the host. The kernel counts blocks of 512
/// bytes.
fn allocated_bytes(file: Option<&File>) -> Option<u64> {
    file?.metadata().ok()?.blocks().checked_mul(512)
}
