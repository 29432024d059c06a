//! The life of a sandbox as a state machine: events in, actions out.
//!
//! ```text
//! Queued ─ slot ─> Booting ─ set up ─> Preparing ─ init started ─> Running ─ stop ─> Stopping
//!                  │   ^                                                            │
//!                  └───┘ fallback, next attempt        any phase ─ failure ─> Ended <┘
//! ```
//!
//! [`Lifecycle`] knows neither processes nor clients nor files, and reads no clock. The supervisor
//! gives it an event and the time, and performs the returned actions in their order. The result of
//! an action is the next event. An ended sandbox ignores events; its first end is the one that
//! counts.

/// Events and actions.
mod events;
/// The phases of a sandbox.
mod phase;
/// The vCPUs of the guest: running, paused, or between the two.
mod vcpus;

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
mod model;
#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
mod tests;

use std::time::{Duration, Instant};

use libmsb::state::status::Reason;

pub(crate) use self::events::{LifecycleAction, LifecycleEvent, PauseRefusal};
use self::phase::{BOOT_TIMEOUTS, PrepareStep, SandboxPhase};
pub(crate) use self::phase::{BootMethod, SandboxEnd};
pub(crate) use self::vcpus::MonitorCommand;
use self::vcpus::VcpuState;
use super::vm_outcome::VmOutcome;

/// Default timeout of a guest's shutdown; the default of microsandbox's `stop`.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of the VMM process after its guest has ended or its sockets are closed.
pub(super) const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of a ping to the agent, which is sent when the console reports the guest's end and the
/// VM still runs. It is long enough for a very busy host.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Hint for a guest that does not go on from saved memory.
const RESUME_HINT: &str = "start it from its disk alone: msb start --cold NAME";
/// Reason for the failure of a boot that took too long.
const BOOT_TIMED_OUT: &str = "the guest did not come up in time";

/// Properties of a sandbox that its life depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LifecycleSettings {
    /// The sandbox goes on after its main command.
    pub(crate) persistent: bool,
    /// All writes of the guest are discarded at the end.
    pub(crate) volatile: bool,
    /// The guest's files are changed before any program of the image runs.
    pub(crate) has_changes: bool,
    /// The image's init is started.
    pub(crate) has_init: bool,
    /// The engine can stop and continue the vCPUs.
    pub(crate) can_pause: bool,
    /// Idle timeout: the sandbox is stopped when it was not used for this time.
    pub(crate) idle_timeout: Option<Duration>,
    /// Maximum duration from the moment at which the guest takes commands.
    pub(crate) max_duration: Option<Duration>,
}

use LifecycleAction as Action;
use LifecycleEvent as Event;

/// The state machine of a sandbox.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    settings: LifecycleSettings,
    phase: SandboxPhase,
    vcpus: VcpuState,
    /// Time of the last use, for the idle timeout.
    last_used_at: Instant,
    /// Time at which the maximum duration ends.
    expires_at: Option<Instant>,
    /// Time at which the vCPUs stopped.
    paused_at: Option<Instant>,
    /// Deadline of the agent's answer to a ping.
    ping_deadline: Option<Instant>,
    end: Option<SandboxEnd>,
}

impl Lifecycle {
    /// Creates the machine of a sandbox that waits for a boot slot.
    pub(crate) fn new(settings: LifecycleSettings, now: Instant) -> Lifecycle {
        Lifecycle {
            settings,
            phase: SandboxPhase::Queued,
            vcpus: VcpuState::default(),
            last_used_at: now,
            expires_at: None,
            paused_at: None,
            ping_deadline: None,
            end: None,
        }
    }

    /// Returns whether the guest takes commands.
    pub(crate) fn is_running(&self) -> bool {
        self.phase == SandboxPhase::Running
    }

    /// Returns whether the guest is shutting down.
    pub(crate) fn is_stopping(&self) -> bool {
        matches!(self.phase, SandboxPhase::Stopping { .. })
    }

    /// Returns whether the guest is paused or changing between paused and running.
    pub(crate) fn is_pausing(&self) -> bool {
        self.vcpus != VcpuState::Running
    }

    /// Returns the end, if the sandbox has ended.
    pub(crate) fn end(&self) -> Option<&SandboxEnd> {
        self.end.as_ref()
    }

    /// Records a use of the sandbox.
    pub(crate) fn record_use(&mut self, at: Instant) {
        self.last_used_at = self.last_used_at.max(at);
    }

    /// Returns the time at which [`LifecycleEvent::Tick`] is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let phase = match self.phase {
            SandboxPhase::Booting { deadline, .. } | SandboxPhase::Stopping { deadline, .. } => {
                Some(deadline)
            }
            SandboxPhase::Running => {
                [self.idle_deadline(), self.expires_at].into_iter().flatten().min()
            }
            SandboxPhase::Queued | SandboxPhase::Preparing(_) | SandboxPhase::Ended => None,
        };
        [phase, self.ping_deadline].into_iter().flatten().min()
    }

    /// Returns the time at which the idle timeout expires if there is no further use. A paused
    /// sandbox is not idle.
    pub(crate) fn idle_deadline(&self) -> Option<Instant> {
        let idle = self.settings.idle_timeout.filter(|_| self.is_running() && !self.is_pausing());
        idle.and_then(|idle| self.last_used_at.checked_add(idle))
    }

    /// Handles an event. Returns the actions to perform, in their order.
    pub(crate) fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        use SandboxPhase::{Booting, Ended, Preparing, Queued, Running, Stopping};
        match (self.phase, event) {
            (Ended, _) => Vec::new(),
            (Queued, Event::SlotAcquired) => vec![Action::StartVm],
            (Queued | Booting { .. }, Event::VmStarted(method)) => {
                self.phase = Booting { method, deadline: now + method.timeout() };
                Vec::new()
            }
            (Queued | Booting { .. }, Event::StartFailed { message, hint }) => {
                self.finish(Reason::BootFailed, Some(message), hint)
            }
            (Booting { .. }, Event::AttemptsExhausted) => {
                self.finish(Reason::BootFailed, Some(BOOT_TIMED_OUT.to_owned()), None)
            }
            (Booting { method: BootMethod::Recording, deadline }, Event::HelloReceived) => {
                self.phase = Booting { method: BootMethod::TakingState, deadline };
                Vec::new()
            }
            (Booting { .. }, Event::GuestReady) => self.guest_ready(now),
            (Preparing(PrepareStep::Changes), Event::FilesChanged) => self.start_init(now),
            (Preparing(PrepareStep::Init), Event::InitStarted) => self.open(now),
            (Booting { .. } | Preparing(_), Event::GuestFailed(message)) => {
                self.finish(Reason::BootFailed, Some(message), None)
            }
            (Running | Stopping { .. }, Event::MainEnded { oom_killed, attached }) => {
                self.main_ended(oom_killed, attached, now)
            }
            (_, Event::StopRequested { reason, timeout }) => self.stop(reason, timeout, now),
            (_, Event::Stop(reason)) => self.stop(reason, STOP_TIMEOUT, now),
            (Stopping { reason, .. }, Event::ShutdownAnswered { clean }) => {
                // After a clean shutdown there is nothing to wait for.
                let left = if clean { Duration::ZERO } else { POWER_OFF_TIMEOUT };
                self.phase = Stopping { reason, deadline: now + left, clean };
                Vec::new()
            }
            (Stopping { reason, .. }, Event::ShutdownFailed) => self.finish(reason, None, None),
            (_, Event::PreparationFailed(why)) => self.preparation_failed(why),
            (_, Event::AgentViolation(what)) => {
                let message = format!("the guest's agent sent {what}");
                self.fall_back_or(message, |life, message| {
                    life.finish(Reason::AgentFailed, Some(message), None)
                })
            }
            (_, Event::VmExited(outcome)) => self
                .fall_back_or("the virtual machine ended".to_owned(), |life, _| {
                    life.vm_exited(outcome)
                }),
            (_, Event::GuestSilent(outcome)) => self.finish_for(outcome),
            (_, Event::ProcessFailed { reason, message }) => {
                self.finish(reason, Some(message), None)
            }
            (Running, Event::ConsoleReportedEnd) => self.ping(now),
            (_, Event::PingAnswered) => {
                self.ping_deadline = None;
                Vec::new()
            }
            (_, Event::MonitorDone { succeeded }) if self.is_pausing() => {
                self.monitor_done(succeeded, now)
            }
            (_, Event::Tick) => self.tick(now),
            // An event that comes too late or too early changes nothing.
            _ => Vec::new(),
        }
    }

    /// Takes a pause request. Returns the actions that pause the guest.
    pub(crate) fn pause(&mut self) -> Result<Vec<Action>, PauseRefusal> {
        self.require_running()?;
        if !self.settings.can_pause {
            return Err(PauseRefusal::Unsupported);
        }
        let command = self.vcpus.pause().map_err(PauseRefusal::WrongState)?;
        self.ping_deadline = None;
        Ok(vec![Action::RefuseRequests, Action::RunMonitor(command)])
    }

    /// Takes a resume request. Returns the actions that resume the guest.
    pub(crate) fn resume(&mut self) -> Result<Vec<Action>, PauseRefusal> {
        self.require_running()?;
        let command = self.vcpus.resume().map_err(PauseRefusal::WrongState)?;
        Ok(vec![Action::SendTime, Action::RunMonitor(command)])
    }

    fn require_running(&self) -> Result<(), PauseRefusal> {
        match self.phase {
            SandboxPhase::Running => Ok(()),
            SandboxPhase::Stopping { .. } | SandboxPhase::Ended => {
                Err(PauseRefusal::WrongState("is stopping"))
            }
            _ => Err(PauseRefusal::WrongState("is starting")),
        }
    }

    fn guest_ready(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = vec![Action::ReleaseSlot];
        if self.settings.has_changes {
            self.phase = SandboxPhase::Preparing(PrepareStep::Changes);
            actions.push(Action::ChangeFiles);
        } else {
            actions.extend(self.start_init(now));
        }
        actions
    }

    /// Starts the image's init, if there is one. All processes are started and all files of the
    /// host are read.
    fn start_init(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = vec![Action::Isolate];
        if self.settings.has_init {
            self.phase = SandboxPhase::Preparing(PrepareStep::Init);
            actions.push(Action::StartInit);
        } else {
            actions.extend(self.open(now));
        }
        actions
    }

    /// Enters the phase `Running`. The limits count from here, for each start of the sandbox.
    fn open(&mut self, now: Instant) -> Vec<Action> {
        self.phase = SandboxPhase::Running;
        self.last_used_at = now;
        self.expires_at = self.settings.max_duration.and_then(|limit| now.checked_add(limit));
        vec![Action::Open]
    }

    fn main_ended(&mut self, oom_killed: bool, attached: bool, now: Instant) -> Vec<Action> {
        if self.settings.persistent && !attached {
            return Vec::new();
        }
        let reason = if oom_killed { Reason::OutOfMemory } else { Reason::Completed };
        self.stop(reason, STOP_TIMEOUT, now)
    }

    /// Stops the sandbox. A VM whose disks are discarded and whose command has ended is killed
    /// without a shutdown.
    fn stop(&mut self, reason: Reason, timeout: Duration, now: Instant) -> Vec<Action> {
        let needs_no_shutdown = self.settings.volatile
            && matches!(reason, Reason::Completed | Reason::OutOfMemory | Reason::ClientGone);
        match self.phase {
            SandboxPhase::Ended => Vec::new(),
            SandboxPhase::Queued | SandboxPhase::Booting { .. } | SandboxPhase::Preparing(_) => {
                self.finish(reason, None, None);
                vec![Action::ReportStopped, Action::FlushClients]
            }
            _ if timeout.is_zero() || needs_no_shutdown => {
                self.finish(reason, None, None);
                vec![Action::FlushClients]
            }
            SandboxPhase::Stopping { reason, deadline, clean } => {
                let deadline = deadline.min(now + timeout);
                self.phase = SandboxPhase::Stopping { reason, deadline, clean };
                Vec::new()
            }
            SandboxPhase::Running => {
                let deadline = now + timeout;
                self.phase = SandboxPhase::Stopping { reason, deadline, clean: false };
                let mut actions = self.resume_to_stop();
                actions.extend([Action::PublishStopping, Action::ShutDownGuest { timeout }]);
                actions
            }
        }
    }

    /// Resumes a paused guest for its shutdown. A monitor command that is running is followed by
    /// the one that continues.
    fn resume_to_stop(&mut self) -> Vec<Action> {
        if !self.is_pausing() {
            return Vec::new();
        }
        let command = self.vcpus.resume().ok().map(Action::RunMonitor);
        [Action::AdmitRequests, Action::SendTime].into_iter().chain(command).collect()
    }

    fn monitor_done(&mut self, succeeded: bool, now: Instant) -> Vec<Action> {
        let is_stopping = !self.is_running();
        if let Some(next) = self.vcpus.done(succeeded, is_stopping) {
            return vec![Action::RunMonitor(next)];
        }
        match (self.vcpus, succeeded, is_stopping) {
            (VcpuState::Paused, true, false) => {
                self.paused_at = Some(now);
                vec![Action::PublishPaused]
            }
            (VcpuState::Running, true, false) => {
                if let Some(paused_at) = self.paused_at.take() {
                    // A pause does not count as idle time.
                    let pause = now.saturating_duration_since(paused_at);
                    let last_used_at = self.last_used_at.checked_add(pause);
                    self.last_used_at = last_used_at.map_or(now, |at| at.min(now));
                }
                vec![Action::AdmitRequests, Action::PublishResumed]
            }
            (VcpuState::Running, false, false) => vec![Action::AdmitRequests],
            _ => Vec::new(),
        }
    }

    /// Pings the agent when the console reports the guest's end but the VM still runs: libkrun does
    /// not exit after a power-off, and no engine does after a halt.
    fn ping(&mut self, now: Instant) -> Vec<Action> {
        if self.is_pausing() || self.ping_deadline.is_some() {
            return Vec::new();
        }
        self.ping_deadline = Some(now + PING_TIMEOUT);
        vec![Action::Ping]
    }

    fn tick(&mut self, now: Instant) -> Vec<Action> {
        let is_due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        match self.phase {
            SandboxPhase::Running if is_due(self.expires_at) => {
                self.stop(Reason::MaxDuration, STOP_TIMEOUT, now)
            }
            SandboxPhase::Running if is_due(self.idle_deadline()) => {
                self.stop(Reason::IdleTimeout, STOP_TIMEOUT, now)
            }
            SandboxPhase::Stopping { reason, deadline, clean } if deadline <= now => {
                let killed = "the guest did not shut down in time and was killed";
                self.finish(reason, (!clean).then(|| killed.to_owned()), None)
            }
            SandboxPhase::Booting { method, deadline } if deadline <= now => {
                self.boot_timed_out(method)
            }
            _ if is_due(self.ping_deadline) => {
                self.ping_deadline = None;
                vec![Action::KillSilent]
            }
            _ => Vec::new(),
        }
    }

    fn boot_timed_out(&mut self, method: BootMethod) -> Vec<Action> {
        match method {
            // An emulated boot can hang early when the host is very busy, whatever its purpose.
            BootMethod::Recording => vec![Action::BootUnrecorded],
            BootMethod::TakingState | BootMethod::Memory => {
                vec![Action::FallBack(BOOT_TIMED_OUT.to_owned())]
            }
            BootMethod::Cold { attempt } if (attempt as usize) + 1 < BOOT_TIMEOUTS.len() => {
                vec![Action::StartAttempt(attempt + 1)]
            }
            BootMethod::Cold { .. } | BootMethod::Resume => {
                self.finish(Reason::BootFailed, Some(BOOT_TIMED_OUT.to_owned()), None)
            }
        }
    }

    fn preparation_failed(&mut self, why: String) -> Vec<Action> {
        self.fall_back_or(why, |life, why| {
            let reason = if life.is_booting() { Reason::BootFailed } else { Reason::VmmFailed };
            let is_resumed =
                matches!(life.phase, SandboxPhase::Booting { method: BootMethod::Resume, .. });
            let hint = is_resumed.then(|| RESUME_HINT.to_owned());
            life.finish(reason, Some(why), hint)
        })
    }

    /// Falls back to a cold boot for this reason while that can replace the VM.
    fn fall_back_or(
        &mut self,
        why: String,
        otherwise: impl FnOnce(&mut Lifecycle, String) -> Vec<Action>,
    ) -> Vec<Action> {
        match self.phase {
            SandboxPhase::Booting { method, .. } if method.has_fallback() => {
                vec![Action::FallBack(why)]
            }
            _ => otherwise(self, why),
        }
    }

    fn vm_exited(&mut self, outcome: VmOutcome) -> Vec<Action> {
        match self.phase {
            SandboxPhase::Stopping { reason, .. } => self.finish(reason, None, None),
            _ => self.finish_for(outcome),
        }
    }

    /// Ends the sandbox with the outcome of its VM. Before the guest is open the boot has failed.
    fn finish_for(&mut self, outcome: VmOutcome) -> Vec<Action> {
        if self.is_booting() {
            let message =
                format!("the virtual machine ended before the guest was up: {}", outcome.message);
            return self.finish(Reason::BootFailed, Some(message), None);
        }
        self.finish(outcome.reason, Some(outcome.message), None)
    }

    /// Returns whether the guest is not open to clients yet.
    fn is_booting(&self) -> bool {
        matches!(
            self.phase,
            SandboxPhase::Queued | SandboxPhase::Booting { .. } | SandboxPhase::Preparing(_)
        )
    }

    /// Ends the sandbox. The reason of a stop that is in progress is the reason of the end.
    fn finish(
        &mut self,
        reason: Reason,
        message: Option<String>,
        hint: Option<String>,
    ) -> Vec<Action> {
        let (reason, clean) = match self.phase {
            SandboxPhase::Stopping { reason, clean, .. } => (reason, clean),
            _ => (reason, false),
        };
        self.phase = SandboxPhase::Ended;
        self.ping_deadline = None;
        self.end = Some(SandboxEnd { reason, message, hint, clean });
        Vec::new()
    }
}
