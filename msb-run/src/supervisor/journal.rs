//! The records of a run in the sandbox's directory: its status, its events, and the log of its
//! commands.
//!
//! Records inform others. A full disk must not end the sandbox, nor stop a command.

use anyhow::Context;
use libmsb::cli::error::{message, warn};
use libmsb::cli::exit;
use libmsb::events::{Event, EventKind};
use libmsb::logs::LAST_MESSAGE;
use libmsb::state::layout;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::status::{Reason, State, Status};
use msb_wire::exec::ExecEvent;
use msb_wire::sandbox::EndEvent;

use super::exec_log::ExecLog;
use super::lifecycle::SandboxEnd;
use super::setup::SandboxSetup;

/// The records of one run of a sandbox.
#[derive(Debug)]
pub(crate) struct SandboxJournal {
    sandbox: Sandbox,
    ephemeral: bool,
    pub(crate) status: Status,
    /// None while nothing is logged.
    log: Option<ExecLog>,
}

impl SandboxJournal {
    /// Publishes the start. `logged`: commands are logged.
    pub(crate) fn open(setup: &SandboxSetup, logged: bool) -> anyhow::Result<SandboxJournal> {
        let sandbox = setup.sandbox.clone();
        let log = logged.then(|| ExecLog::open(&sandbox.path(layout::EXEC_LOG)));
        let log = log.transpose().context("cannot open the log of the main command")?;
        let status = Status {
            started_at: Some(jiff::Timestamp::now()),
            engine: Some(setup.engine.name().to_owned()),
            changed: sandbox.status().is_ok_and(|status| status.changed),
            ..Status::new(State::Starting)
        };
        sandbox.set_status(&status)?;
        sandbox.record(&Event::now(EventKind::Starting, sandbox.name.as_str()));
        Ok(SandboxJournal { sandbox, ephemeral: setup.spec.ephemeral, status, log })
    }

    /// Returns the sandbox.
    pub(crate) fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Writes a change of state to the status file and the event log.
    pub(crate) fn enter(&mut self, state: State, event: EventKind) {
        self.status.state = state;
        self.status.since = jiff::Timestamp::now();
        self.write_status();
        self.sandbox.record(&Event::now(event, self.sandbox.name.as_str()));
    }

    /// Writes the status file.
    pub(crate) fn write_status(&self) {
        if let Err(error) = self.sandbox.set_status(&self.status) {
            warn(&message(&error));
        }
    }

    /// Writes a remark to the log.
    pub(crate) fn remark(&mut self, text: &str) {
        let _ = self.log.as_mut().map(|log| log.system(text));
    }

    /// Opens the log of an ephemeral sandbox, which has none until there is a job.
    pub(crate) fn require_log(&mut self) {
        if self.log.is_none() {
            self.log = ExecLog::open(&self.sandbox.path(layout::EXEC_LOG)).ok();
        }
    }

    /// Writes the output of a command to the log.
    pub(crate) fn output(&mut self, session: Option<&str>, tty: bool, channel: u8, bytes: &[u8]) {
        let _ = self.log.as_mut().map(|log| log.output(session, tty, channel, bytes));
    }

    /// Writes the remaining output of a command that has ended: of the main command without a
    /// session.
    pub(crate) fn end_session(&mut self, session: Option<&str>) {
        let _ = self.log.as_mut().map(|log| log.end(session));
    }

    /// Records the end of the main command. The status is written by the caller.
    pub(crate) fn end_main(&mut self, event: &ExecEvent, timed_out: bool) {
        let oom_killed = matches!(event, ExecEvent::Exited { oom_killed, .. } if *oom_killed);
        self.status.exit_code =
            if timed_out { Some(i32::from(exit::TIMED_OUT)) } else { event.exit_code() };
        self.status.oom_killed = oom_killed;
        self.end_session(None);
        let why = match (oom_killed, timed_out) {
            (true, _) => ", killed because the guest was out of memory",
            (_, true) => ", killed at its timeout",
            _ => "",
        };
        let code = self.status.exit_code.unwrap_or_default();
        self.remark(&format!("main command ended with {code}{why}"));
    }

    /// Writes the last message of the log.
    pub(crate) fn log_end(&mut self, end: &SandboxEnd) {
        let why = end.reason.problem().map(|why| format!(": {why}"));
        self.remark(&format!("{LAST_MESSAGE}{}", why.unwrap_or_default()));
    }

    /// Records the end in the sandbox's directory, or removes the directory of an ephemeral
    /// sandbox.
    pub(crate) fn record_end(&mut self, end: &SandboxEnd) -> anyhow::Result<()> {
        let (state, what) = final_state(end.reason, self.status.exit_code.is_some());
        let event = Event {
            reason: Some(end.reason),
            message: end.message.clone(),
            exit_code: self.status.exit_code,
            clean: Some(end.clean),
            ..Event::now(what, self.sandbox.name.as_str())
        };
        if self.ephemeral {
            self.sandbox.record(&event);
            return self.sandbox.remove_locked();
        }
        self.status.state = state;
        self.status.since = event.t;
        self.status.reason = Some(end.reason);
        self.status.message = end.message.clone();
        self.status.clean = Some(end.clean);
        let written = self.sandbox.set_status(&self.status);
        self.sandbox.record(&event);
        written
    }

    /// Returns the answer for clients that wait for the end.
    pub(crate) fn end_event(&self, end: &SandboxEnd) -> EndEvent {
        let (state, _) = final_state(end.reason, self.status.exit_code.is_some());
        EndEvent::Ended {
            state: state.name().to_owned(),
            reason: end.reason.name(),
            message: end.message.clone(),
            exit_code: self.status.exit_code,
            clean: end.clean,
        }
    }
}

/// Returns the final state and event. `completed`: the main command has ended.
fn final_state(reason: Reason, completed: bool) -> (State, EventKind) {
    if has_crashed(reason, completed) {
        (State::Crashed, EventKind::Crashed)
    } else {
        (State::Stopped, EventKind::Stopped)
    }
}

/// Returns whether the end is a crash: nothing on the host or in the guest asked for it.
/// `completed`: the main command has ended, and the rest was orderly.
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
