//! Pausing a sandbox: its guest's processors stop, and go on when the sandbox is resumed or stopped.
//!
//! [`Processors`] is the state machine. Commands to the machine's monitor block, so a thread makes them. Requests for the
//! guest's agent are refused from the request to pause until the guest runs again. A resume is answered when the guest's
//! clock is set.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use libmsb::cli::error::{self, Code, Failure, Kind, message, print_warning};
use libmsb::events::What;
use libmsb::state::status::State;
use msb_wire::sandbox::{PauseEvent, PauseFailure};
use serde_json::json;

use super::{Life, Phase, TOOL};
use crate::boot_state::Monitor;
use crate::supervisor::relay::ClientStream;
use crate::supervisor::task::Task;

/// Time for the agent to set the guest's clock before a resume is answered anyway.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// The state of the guest's processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Processors {
    #[default]
    Running,
    /// The machine was told to stop them.
    Pausing,
    Paused,
    /// The machine was told to let them run.
    Resuming,
}

/// A command to the machine's monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Stop,
    Cont,
}

impl Command {
    /// Returns the name of the command in QEMU's machine protocol.
    fn name(self) -> &'static str {
        match self {
            Command::Stop => "stop",
            Command::Cont => "cont",
        }
    }
}

impl Processors {
    /// Returns the command for a request to pause, or why it is refused: words that follow the name of the sandbox.
    fn pause(&mut self) -> Result<Command, &'static str> {
        match self {
            Processors::Running => {
                *self = Processors::Pausing;
                Ok(Command::Stop)
            }
            Processors::Pausing => Err("is being paused already"),
            Processors::Paused => Err("is paused already"),
            Processors::Resuming => Err("is being resumed"),
        }
    }

    /// Returns the command for a request to resume, or why it is refused.
    fn resume(&mut self) -> Result<Command, &'static str> {
        match self {
            Processors::Paused => {
                *self = Processors::Resuming;
                Ok(Command::Cont)
            }
            Processors::Running => Err("is not paused"),
            Processors::Pausing => Err("is being paused"),
            Processors::Resuming => Err("is being resumed already"),
        }
    }

    /// Enters the state after a command, and returns the next command. A sandbox that is stopping must run.
    fn done(&mut self, succeeded: bool, is_stopping: bool) -> Option<Command> {
        *self = match (*self, succeeded) {
            (Processors::Pausing, true) | (Processors::Resuming, false) => Processors::Paused,
            _ => Processors::Running,
        };
        // A command that failed is not repeated: the time for the shutdown ends such a machine.
        (is_stopping && succeeded)
            .then(|| self.resume().ok())
            .flatten()
    }
}

/// What is known of a pause.
#[derive(Debug, Default)]
pub(super) struct Pause {
    processors: Processors,
    /// The command that runs, and the monitor with it.
    task: Option<Task<Outcome>>,
    /// The client that is answered when the command is done.
    asker: Option<ClientStream>,
    /// The time at which the processors stopped.
    since: Option<Instant>,
    /// The client that is answered when the guest's clock is set, or at this time.
    clock: Option<(ClientStream, Instant)>,
    /// Answers of the agent about its clock that have not come.
    clock_answers: u32,
    /// The interval of the guest's samples that it is told of when it runs again.
    pub(super) interval_ms: Option<u64>,
}

/// The monitor, and the result of a command.
type Outcome = (Monitor, anyhow::Result<()>);

impl Pause {
    /// Returns whether the guest may not run.
    pub(super) fn is_on(&self) -> bool {
        self.processors != Processors::Running
    }

    /// Returns the descriptor that is ready when the command is done.
    pub(super) fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.task.as_ref().map(AsFd::as_fd)
    }

    /// Returns when a resume is answered although the guest's clock is not set.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.clock.map(|(_, at)| at)
    }

    /// Counts a message to the agent that has the time.
    pub(super) fn expect_clock(&mut self) {
        self.clock_answers = self.clock_answers.saturating_add(1);
    }
}

impl Life {
    /// Pauses the sandbox for a client.
    pub(super) fn pause(&mut self, asker: ClientStream) {
        if let Err(error) = self.begin_pause(asker) {
            self.answer_pause(Some(asker), &failed(&error));
        }
    }

    fn begin_pause(&mut self, asker: ClientStream) -> anyhow::Result<()> {
        self.require_running()?;
        let name = self.setup.sandbox.name.clone();
        if !self.setup.engine.starts_from_memory() {
            let engine = self.setup.engine.name();
            let message = format!("the engine '{engine}' cannot pause a sandbox");
            return Err(Failure::failed(message)
                .code(Code::UnsupportedOperation)
                .hint("create the sandbox with the engine qemu: --engine qemu")
                .into());
        }
        // The guest of a machine from memory answers before its start is complete, by milliseconds.
        if self.start.ready_fd().is_some() {
            self.readied()?;
        }
        let command = self.pause.processors.pause();
        let command = command.map_err(|why| wrong_state(format!("the sandbox '{name}' {why}")))?;
        self.relay
            .pause(Some(format!("the sandbox '{name}' is paused")));
        self.pinged = None;
        self.run_command(command, Some(asker))
    }

    /// Resumes the sandbox for a client.
    pub(super) fn resume(&mut self, asker: ClientStream) {
        let begun = self.require_running().and_then(|()| {
            let command = self.pause.processors.resume();
            let name = &self.setup.sandbox.name;
            let command =
                command.map_err(|why| wrong_state(format!("the sandbox '{name}' {why}")))?;
            self.send_time();
            self.run_command(command, Some(asker))
        });
        if let Err(error) = begun {
            self.answer_pause(Some(asker), &failed(&error));
        }
    }

    /// Lets the guest of a sandbox that is to be shut down run.
    pub(super) fn resume_to_stop(&mut self) {
        if !self.pause.is_on() {
            return;
        }
        self.relay.pause(None);
        self.send_time();
        // A command that runs now is followed by this one.
        if let Ok(command) = self.pause.processors.resume()
            && let Err(error) = self.run_command(command, None)
        {
            print_warning(TOOL, &message(&error));
        }
    }

    /// Refuses requests of a sandbox that does not take commands yet, or no more.
    fn require_running(&self) -> anyhow::Result<()> {
        let name = &self.setup.sandbox.name;
        match self.phase {
            Phase::Running => Ok(()),
            Phase::Stopping { .. } => {
                Err(wrong_state(format!("the sandbox '{name}' is stopping")).into())
            }
            Phase::Queued | Phase::Booting { .. } | Phase::Preparing => {
                Err(wrong_state(format!("the sandbox '{name}' is starting")).into())
            }
        }
    }

    /// Has the monitor make a command, in a thread. Without a monitor it has failed.
    fn run_command(&mut self, command: Command, asker: Option<ClientStream>) -> anyhow::Result<()> {
        let _ = self.machine.agent.flush();
        let begun = match self.machine.monitor.take() {
            Some(mut monitor) => Task::begin("pause", move || {
                let result = monitor.execute(command.name(), json!({})).map(drop);
                if result.is_err() && command == Command::Stop {
                    // QEMU may have stopped all the same.
                    let _ = monitor.execute(Command::Cont.name(), json!({}));
                }
                Ok((monitor, result))
            }),
            None => Err(Failure::failed("the machine's monitor does not answer").into()),
        };
        match begun {
            Ok(task) => {
                self.pause.task = Some(task);
                self.pause.asker = asker;
                Ok(())
            }
            Err(error) => {
                self.pause.processors.done(false, false);
                if !self.pause.is_on() {
                    self.relay.pause(None);
                }
                Err(error)
            }
        }
    }

    /// A command of the monitor is done.
    pub(super) fn command_done(&mut self) {
        let Some(task) = self.pause.task.take() else {
            return;
        };
        let result = task.finish().and_then(|(monitor, result)| {
            self.machine.monitor = Some(monitor);
            result
        });
        let is_stopping = !matches!(self.phase, Phase::Running);
        let next = self.pause.processors.done(result.is_ok(), is_stopping);
        let asker = self.pause.asker.take();
        if let Err(error) = &result {
            print_warning(TOOL, &message(error));
            self.answer_pause(asker, &failed(error));
        } else if is_stopping {
            let error = wrong_state("the sandbox is stopping".to_owned()).into();
            self.answer_pause(asker, &failed(&error));
        }
        if let Some(next) = next {
            if let Err(error) = self.run_command(next, None) {
                print_warning(TOOL, &message(&error));
            }
            return;
        }
        match (self.pause.processors, result, is_stopping) {
            (Processors::Paused, Ok(()), false) => self.paused(asker),
            (Processors::Running, Ok(()), false) => self.resumed(asker),
            (Processors::Running, Err(_), false) => self.relay.pause(None),
            _ => {}
        }
    }

    fn paused(&mut self, asker: Option<ClientStream>) {
        self.pause.since = Some(Instant::now());
        self.enter(State::Paused, What::Paused);
        self.remark("sandbox paused");
        self.answer_pause(asker, &PauseEvent::Paused);
    }

    fn resumed(&mut self, asker: Option<ClientStream>) {
        self.relay.pause(None);
        if let Some(since) = self.pause.since.take() {
            // The time of a pause is no idle time.
            let used_at = self.used_at.checked_add(since.elapsed());
            self.used_at = used_at.map_or_else(Instant::now, |at| at.min(Instant::now()));
        }
        self.enter(State::Running, What::Resumed);
        self.remark("sandbox resumed");
        let interval_ms = self.pause.interval_ms.take();
        self.ask_for_samples(interval_ms);
        // The first one was written before the command, which may have taken its time.
        self.tell_time();
        self.pause.clock = asker.map(|asker| (asker, Instant::now() + CLOCK_TIMEOUT));
        self.answer_resume(false);
    }

    /// The agent has answered about its clock.
    pub(super) fn clock_told(&mut self) {
        self.pause.clock_answers = self.pause.clock_answers.saturating_sub(1);
        self.answer_resume(false);
    }

    /// Answers a resume, if the guest's clock is set or `is_late`.
    pub(super) fn answer_resume(&mut self, is_late: bool) {
        if is_late || self.pause.clock_answers == 0 {
            let asker = self.pause.clock.take().map(|(asker, _)| asker);
            self.answer_pause(asker, &PauseEvent::Resumed);
        }
    }

    fn answer_pause(&mut self, asker: Option<ClientStream>, event: &PauseEvent) {
        if let Some((client, stream)) = asker {
            self.relay.answer(client, stream, event);
        }
    }

    /// Writes a remark into the log. A full disk must not stop the sandbox.
    fn remark(&mut self, text: &str) {
        let _ = self.log.as_mut().map(|log| log.system(text));
    }
}

fn wrong_state(message: String) -> Failure {
    Failure::wrong_state(message)
}

fn failed(error: &anyhow::Error) -> PauseEvent {
    let failure = error.downcast_ref::<Failure>();
    PauseEvent::Failed {
        kind: match failure.map(Failure::kind) {
            Some(Kind::WrongState) => PauseFailure::WrongState,
            _ if error::code(error) == Code::UnsupportedOperation => {
                PauseFailure::UnsupportedOperation
            }
            _ => PauseFailure::Other,
        },
        message: message(error),
        hint: error::hint(error).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_stop_and_go_on_by_one_command_each() {
        let mut processors = Processors::default();
        assert_eq!(processors.resume(), Err("is not paused"));
        assert_eq!(processors.pause(), Ok(Command::Stop));
        assert_eq!(processors.pause(), Err("is being paused already"));
        assert_eq!(processors.resume(), Err("is being paused"));
        assert_eq!(processors.done(true, false), None);
        assert_eq!(processors, Processors::Paused);
        assert_eq!(processors.pause(), Err("is paused already"));
        assert_eq!(processors.resume(), Ok(Command::Cont));
        assert_eq!(processors.pause(), Err("is being resumed"));
        assert_eq!(processors.resume(), Err("is being resumed already"));
        assert_eq!(processors.done(true, false), None);
        assert_eq!(processors, Processors::Running);
    }

    #[test]
    fn a_command_that_fails_leaves_the_state_before_it() {
        let mut processors = Processors::default();
        processors.pause().unwrap();
        assert_eq!(processors.done(false, false), None);
        assert_eq!(processors, Processors::Running);
        processors.pause().unwrap();
        processors.done(true, false);
        processors.resume().unwrap();
        assert_eq!(processors.done(false, true), None);
        assert_eq!(processors, Processors::Paused);
    }

    #[test]
    fn a_sandbox_that_stops_while_it_is_paused_runs_again() {
        let mut processors = Processors::default();
        processors.pause().unwrap();
        assert_eq!(processors.done(true, true), Some(Command::Cont));
        assert_eq!(processors, Processors::Resuming);
        assert_eq!(processors.done(true, true), None);
        assert_eq!(processors, Processors::Running);
    }
}
