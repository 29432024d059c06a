//! The end: why it comes, how the guest is shut down, and what is left.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use libmsb::cli::error::Failure;
use libmsb::events::{Event, What};
use libmsb::logs::LAST_REMARK;
use libmsb::state::status::{Reason, State};
use msb_wire::exec::ExecEvent;
use msb_wire::sandbox::{EndEvent, Request, StopEvent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{End, FAREWELL_TIMEOUT, Life, POWER_OFF_TIMEOUT, Phase, STOP_TIMEOUT};
use crate::startup::Startup;
use crate::supervisor::machine::Machine;
use crate::supervisor::relay::{ClientId, Own, Relay};
use crate::supervisor::{Starter, last_words};

impl Life {
    pub(super) fn main_ended(&mut self, event: &ExecEvent, starter: &mut Starter) {
        self.status.exit_code = event.exit_code();
        if let Some(log) = &mut self.log {
            let _ = log.end(None);
            let _ = log.system(&format!(
                "main command ended with {}",
                event.exit_code().unwrap_or_default()
            ));
        }
        if self.attached.is_some() || !self.setup.spec.lasting {
            self.stop(Reason::Completed, STOP_TIMEOUT, starter);
        }
    }

    /// Begins the end. A machine whose disk goes with it, and whose command has ended, needs no ceremony.
    pub(super) fn stop(&mut self, reason: Reason, timeout: Duration, starter: &mut Starter) {
        let booting = matches!(self.phase, Phase::Booting { .. });
        let volatile =
            self.setup.spec.ephemeral && matches!(reason, Reason::Completed | Reason::ClientGone);
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
        self.enter(State::Stopping, What::Stopping);
        if self
            .relay
            .request(Own::Shutdown, &Request::Shutdown, &mut self.machine.agent)
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
        self.machine.kill();
        self.machine_ended();
    }

    pub(super) fn machine_ended(&mut self) {
        if self.machine.poll_exit().is_none() {
            return;
        }
        while self.console.is_some() && self.copy_console() {}
        if let Some(reason) = self.ending {
            return self.finish(reason, None);
        }
        let words = last_words(&self.setup.sandbox)
            .map(|words| format!(": {words}"))
            .unwrap_or_default();
        match self.phase {
            Phase::Booting { .. } => {
                let message = format!("the virtual machine ended before the guest was up{words}");
                self.finish(Reason::BootFailed, Some(message));
            }
            _ => self.finish(
                Reason::VmExited,
                Some(format!("the virtual machine ended by itself{words}")),
            ),
        }
    }

    pub(super) fn finish(&mut self, reason: Reason, message: Option<String>) {
        if self.end.is_none() {
            let reason = self.ending.unwrap_or(reason);
            self.end = Some(End {
                reason,
                message,
                clean: self.clean,
            });
        }
    }

    /// The machine goes; the folder says how it ended, or goes too; the lock is free; and then everybody is told.
    pub(super) fn conclude(mut self, mut starter: Starter) -> anyhow::Result<()> {
        self.machine.kill();
        while self.console.is_some() && self.copy_console() {}
        let end = self.end.take().unwrap_or(End {
            reason: Reason::Other,
            message: None,
            clean: false,
        });
        let left = self.leave(&end);
        let ended = self.ended(&end);
        let Life {
            setup,
            mut relay,
            machine,
            socket,
            attached,
            stoppers,
            waiters,
            ..
        } = self;
        drop(socket);
        drop(setup);
        if let Some(message) = &end.message {
            let hint =
                "the guest's console and the supervisor's messages are in the sandbox's folder";
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
        left
    }

    fn leave(&mut self, end: &End) -> anyhow::Result<()> {
        if let Some(log) = &mut self.log {
            let _ = log.system(LAST_REMARK);
        }
        let (state, what) = end.state();
        let sandbox = &self.setup.sandbox;
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
            state: end.state().0.word().to_owned(),
            reason: end.reason.word(),
            message: end.message.clone(),
            exit_code: self.status.exit_code,
            clean: end.clean,
        }
    }
}

impl End {
    fn state(&self) -> (State, What) {
        match self.reason {
            Reason::BootFailed
            | Reason::VmExited
            | Reason::AgentFailed
            | Reason::SupervisorFailed => (State::Crashed, What::Crashed),
            _ => (State::Stopped, What::Stopped),
        }
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
