//! The end: why it comes, how the guest is shut down, and what is left.

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use libmsb::cli::error::{self, Failure};
use libmsb::cli::exit;
use libmsb::events::{Event, What};
use libmsb::logs::LAST_REMARK;
use libmsb::state::status::{Reason, State};
use msb_wire::exec::ExecEvent;
use msb_wire::sandbox::{EndEvent, Request, ShutdownRequest, StopEvent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::outcome::{self, Outcome};
use super::{End, FAREWELL_TIMEOUT, Life, PING_TIMEOUT, POWER_OFF_TIMEOUT, Phase, STOP_TIMEOUT};
use crate::startup::Startup;
use crate::supervisor::machine::Machine;
use crate::supervisor::process::Process;
use crate::supervisor::relay::{ClientId, Own, Relay};
use crate::supervisor::{Starter, last_words};

impl Life {
    pub(super) fn main_ended(&mut self, event: &ExecEvent, starter: &mut Starter) {
        let oom_killed = matches!(event, ExecEvent::Exited { oom_killed, .. } if *oom_killed);
        let by_itself = matches!(event, ExecEvent::Exited { code: Some(_), .. });
        let timed_out = self.jobs.was_timed_out(Own::Main, by_itself);
        self.status.exit_code = if timed_out {
            Some(i32::from(exit::TIMED_OUT))
        } else {
            event.exit_code()
        };
        self.status.oom_killed = oom_killed;
        if let Some(log) = &mut self.log {
            let _ = log.end(None);
            let why = match (oom_killed, timed_out) {
                (true, _) => ", killed since the guest had run out of memory",
                (_, true) => ", killed since its time was over",
                _ => "",
            };
            let _ = log.system(&format!(
                "main command ended with {}{why}",
                self.status.exit_code.unwrap_or_default()
            ));
        }
        if self.attached.is_some() || !self.setup.spec.lasting {
            let reason = if oom_killed {
                Reason::OutOfMemory
            } else {
                Reason::Completed
            };
            self.stop(reason, STOP_TIMEOUT, starter);
        } else {
            self.write_status();
        }
    }

    /// Begins the end. A machine whose disks go with it, and whose command has ended, needs no ceremony.
    pub(super) fn stop(&mut self, reason: Reason, timeout: Duration, starter: &mut Starter) {
        let booting = self.is_booting();
        let volatile = self.setup.spec.ephemeral
            && !self.setup.mounts.outlive()
            && matches!(
                reason,
                Reason::Completed | Reason::OutOfMemory | Reason::ClientGone
            );
        if timeout.is_zero() || volatile || booting {
            if booting {
                starter.tell(&Startup::failed(
                    &Failure::wrong_state("it was stopped before the guest was up").into(),
                ));
            }
            // What is ready for clients goes out before the machine is taken down: that takes a moment.
            self.write_out(&mut Vec::new());
            return self.finish(reason, None);
        }
        let deadline = Instant::now() + timeout;
        if let Phase::Stopping { deadline: earlier } = self.phase {
            self.phase = Phase::Stopping {
                deadline: deadline.min(earlier),
            };
            return;
        }
        self.phase = Phase::Stopping { deadline };
        self.ending = Some(reason);
        self.resume_to_stop();
        self.enter(State::Stopping, What::Stopping);
        let request = Request::Shutdown(ShutdownRequest {
            timeout_ms: timeout.as_millis().try_into().unwrap_or(u64::MAX),
        });
        if self
            .relay
            .request(Own::Shutdown, &request, &mut self.machine.agent)
            .is_err()
        {
            self.finish(reason, None);
        }
    }

    /// The guest has shut down. When all is flushed and clean, there is nothing to be waited for.
    pub(super) fn shut_down(&mut self, message: &[u8]) {
        if let Ok(StopEvent::Stopped { clean }) = serde_json::from_slice(message) {
            self.clean = clean;
            let patience = if clean {
                Duration::ZERO
            } else {
                POWER_OFF_TIMEOUT
            };
            self.phase = Phase::Stopping {
                deadline: Instant::now() + patience,
            };
        }
    }

    /// The engine closes its sockets a moment before its process is gone.
    pub(super) fn agent_closed(&mut self) {
        let deadline = Instant::now() + POWER_OFF_TIMEOUT;
        while self.machine.poll_exit().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.machine.poll_exit().is_some() {
            return self.machine_ended();
        }
        self.machine.kill();
        let message = "the virtual machine closed the agent's port, did not end, and was killed";
        self.finish(Reason::VmmFailed, Some(message.to_owned()));
    }

    /// The console says that the guest has ended, and the machine has not: libkrun does not end for a power-off, and none
    /// does for a halt. The agent knows better, if it is there.
    pub(super) fn ping_if_suspect(&mut self) {
        let suspect = self.phase == Phase::Running
            && !self.pause.is_on()
            && self.pinged.is_none()
            && self.end.is_none()
            && self.last_line.farewell().is_some();
        if suspect {
            self.pinged = Some(Instant::now() + PING_TIMEOUT);
            // What cannot be asked is not answered either.
            let _ = self
                .relay
                .request(Own::Ping, &Request::Ping, &mut self.machine.agent);
        }
    }

    /// The agent does not answer: it is as the console says.
    pub(super) fn fell_silent(&mut self) {
        self.machine.kill();
        while self.console.is_some() && self.copy_console() {}
        self.finish_for(outcome::of_guest(self.last_line.farewell()));
    }

    pub(super) fn machine_ended(&mut self) {
        if self.machine.poll_exit().is_none() {
            return;
        }
        if self.is_replaceable() {
            return self.boot_instead("the virtual machine ended");
        }
        while self.console.is_some() && self.copy_console() {}
        if let Some(reason) = self.ending {
            return self.finish(reason, None);
        }
        let outcome = outcome::of_machine(
            self.machine.poll_exit(),
            self.last_line.farewell(),
            last_words(&self.setup.sandbox),
        );
        self.finish_for(outcome);
    }

    /// A guest whose folders are gone hangs at the first file that it asks for. A server ends well only when the machine
    /// has hung up, whose own end says why.
    pub(super) fn share_ended(&mut self) {
        let exit = self.machine.share.as_mut().and_then(Process::poll_exit);
        let Some(exit) = exit else { return };
        self.machine.share = None;
        if exit.success() {
            return;
        }
        let how = match exit.signal() {
            Some(signal) => format!("died of signal {signal}"),
            None => last_words(&self.setup.sandbox).unwrap_or_else(|| exit.to_string()),
        };
        self.finish(
            Reason::ShareFailed,
            Some(format!(
                "the process that shares folders with the guest: {how}"
            )),
        );
    }

    /// Ends with what the machine left, in the words for where the sandbox stood.
    fn finish_for(&mut self, outcome: Outcome) {
        let (reason, message) = if self.is_booting() {
            let message = format!(
                "the virtual machine ended before the guest was up: {}",
                outcome.message
            );
            (Reason::BootFailed, message)
        } else {
            (outcome.reason, outcome.message)
        };
        self.finish(reason, Some(message));
    }

    pub(super) fn finish(&mut self, reason: Reason, message: Option<String>) {
        if self.end.is_none() {
            let reason = self.ending.unwrap_or(reason);
            self.end = Some(End {
                reason,
                message,
                hint: None,
                clean: self.clean,
            });
        }
    }

    /// Ends it before there was a machine.
    pub(super) fn finish_unborn(&mut self, error: &anyhow::Error) {
        self.finish(Reason::BootFailed, Some(error::message(error)));
        if let Some(end) = &mut self.end {
            end.hint = error::hint(error).map(str::to_owned);
        }
    }

    /// Whether the guest is not open yet.
    fn is_booting(&self) -> bool {
        matches!(
            self.phase,
            Phase::Queued | Phase::Booting { .. } | Phase::Preparing
        )
    }

    /// What can be done about an end.
    fn hint(&self, end: &End) -> String {
        let spec = &self.setup.spec;
        if let Some(hint) = &end.hint {
            return hint.clone();
        }
        match end.reason {
            Reason::OutOfMemory => {
                format!("give it more memory than {} MiB: --memory", spec.memory_mib)
            }
            _ if spec.ephemeral => {
                "give the sandbox a name, and its console and messages are kept: --name".to_owned()
            }
            _ => "the guest's console and the supervisor's messages are in the sandbox's folder"
                .to_owned(),
        }
    }

    /// The machine goes; the folder says how it ended, or goes too; the lock is free; and then everybody is told.
    pub(super) fn conclude(mut self, mut starter: Starter) -> anyhow::Result<()> {
        self.machine.kill();
        while self.console.is_some() && self.copy_console() {}
        let end = self.end.take().unwrap_or(End {
            reason: Reason::Other,
            message: None,
            hint: None,
            clean: false,
        });
        let hint = self.hint(&end);
        let left = self.leave(&end);
        let ended = self.ended(&end);
        let Life {
            setup,
            mut relay,
            machine,
            socket,
            samples,
            attached,
            stoppers,
            waiters,
            mut start,
            ..
        } = self;
        drop(samples);
        drop(socket);
        drop(setup);
        if let Some(message) = &end.message {
            starter.tell(&Startup::failed(
                &Failure::failed(message.clone()).hint(hint).into(),
            ));
        }
        for (client, stream) in stoppers {
            relay.answer(client, stream, &StopEvent::Stopped { clean: end.clean });
        }
        for (client, stream) in waiters {
            relay.answer(client, stream, &ended);
        }
        farewell(relay, machine, attached);
        start.finish_publishing();
        left
    }

    fn leave(&mut self, end: &End) -> anyhow::Result<()> {
        if let Some(log) = &mut self.log {
            let why = end.reason.trouble().map(|why| format!(": {why}"));
            let _ = log.system(&format!("{LAST_REMARK}{}", why.unwrap_or_default()));
        }
        let (state, what) = end.state(self.status.exit_code.is_some());
        let sandbox = &self.setup.sandbox;
        if !self.setup.spec.ephemeral {
            self.jobs.end_all(sandbox);
        }
        let event = Event {
            reason: Some(end.reason),
            message: end.message.clone(),
            exit_code: self.status.exit_code,
            clean: Some(end.clean),
            ..Event::now(what, sandbox.name.as_str())
        };
        if self.setup.spec.ephemeral {
            sandbox.record(&event);
            return sandbox.remove_held();
        }
        self.status.state = state;
        self.status.since = event.t;
        self.status.reason = Some(end.reason);
        self.status.message = end.message.clone();
        self.status.clean = Some(end.clean);
        let written = sandbox.set_status(&self.status);
        sandbox.record(&event);
        written
    }

    fn ended(&self, end: &End) -> EndEvent {
        EndEvent::Ended {
            state: end
                .state(self.status.exit_code.is_some())
                .0
                .word()
                .to_owned(),
            reason: end.reason.word(),
            message: end.message.clone(),
            exit_code: self.status.exit_code,
            clean: end.clean,
        }
    }
}

impl End {
    /// `completed`: the main command has ended.
    fn state(&self, completed: bool) -> (State, What) {
        if has_crashed(self.reason, completed) {
            (State::Crashed, What::Crashed)
        } else {
            (State::Stopped, What::Stopped)
        }
    }
}

/// Whether it ended without anybody, also in the guest, having asked for it. `completed`: the main command has ended, and
/// the rest went in order.
fn has_crashed(reason: Reason, completed: bool) -> bool {
    match reason {
        Reason::BootFailed
        | Reason::GuestPanicked
        | Reason::VmExited
        | Reason::VmmFailed
        | Reason::ShareFailed
        | Reason::NetFailed
        | Reason::AgentFailed
        | Reason::SupervisorFailed => true,
        Reason::OutOfMemory => !completed,
        _ => false,
    }
}

/// Lets the clients take what is theirs.
fn farewell(mut relay: Relay, mut machine: Machine, attached: Option<ClientId>) {
    let deadline = Instant::now() + FAREWELL_TIMEOUT;
    loop {
        let mut notices = Vec::new();
        for id in relay.unflushed() {
            relay.write_client(id, &mut machine.agent, &mut notices);
        }
        let unflushed = relay.unflushed();
        let waited_for = unflushed.iter().any(|id| attached == Some(*id));
        if unflushed.is_empty() || (!waited_for && deadline <= Instant::now()) {
            return;
        }
        let mut fds: Vec<PollFd<'_>> = relay
            .links()
            .filter(|(id, ..)| unflushed.contains(id))
            .map(|(_, link, _)| PollFd::from_borrowed_fd(link.as_fd(), PollFlags::OUT))
            .collect();
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        let _ = poll(&mut fds, Some(&pause));
    }
}
