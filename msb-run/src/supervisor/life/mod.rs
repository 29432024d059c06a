//! The loop: from the start of the machine to its end.

/// The begin.
mod boot;
/// The end.
mod end;
/// Commands that go on without a client.
mod jobs;
/// The network's process and its log.
mod net;
/// How a machine that ended by itself came to that.
mod outcome;
/// What serves the sandbox.
mod parts;
/// Stopping the guest's processors, and letting them run again.
mod pause;
/// Between a guest that is set up and one that is open.
mod prepare;
mod renewal;
/// How a machine comes to run.
mod start;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::cli::error::print_warning;
use libmsb::events::{Event, What};
use libmsb::signals::{Signals, signal};
use libmsb::state::lock::Lock;
use libmsb::state::status::{Reason, State, Status};
use msb_wire::client::check_peer;
use msb_wire::frame::{Assembler, Kind};
use msb_wire::handshake::operation;
use msb_wire::samples::SamplesControl;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::net::NetLog;
use self::parts::Parts;
use self::pause::Pause;
use self::renewal::Renewal;
use self::start::Start;
use super::clock::{HostClock, went_on};
use super::error_log;
use super::exec_log::ExecLog;
use super::last_line::LastLine;
use super::link::{Link, Received};
use super::machine::Machine;
use super::relay::{ClientId, Notice, Own, Relay, Violation};
use super::rotate::{Bounds, RotatedFile};
use super::samples::Samples;
use super::socket::Socket;
use super::task::Task;
use super::{Aborted, Setup, Starter, TOOL};
use crate::boot_state::Monitor;
use crate::startup::Stamps;

const PROGRAM: &str = concat!("msb-supervisor ", env!("CARGO_PKG_VERSION"));

/// What clients may ask: of us, or through us of the guest's agent.
const OPERATIONS: &[&str] = &[
    operation::CONNECT,
    operation::EXEC,
    operation::EXEC_LOG,
    operation::EXEC_LOGIN,
    operation::EXEC_RLIMIT,
    operation::FILES,
    operation::FILES_CHANGE,
    operation::JOBS,
    operation::KEY_AGENT,
    operation::NETWORK,
    operation::PAUSE,
    operation::PING,
    operation::RESUME,
    operation::SAMPLES,
    operation::SFTP,
    operation::STOP,
    operation::WAIT,
];

/// Time for a guest to say that it takes commands, by attempt. In software, on a host that does much else, a boot
/// of two seconds takes many times that.
const BOOT_TIMEOUTS: [Duration; 2] = [Duration::from_secs(45), Duration::from_secs(120)];
/// Time for a guest to shut down when nobody said how long; the reference's default for `stop`.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the machine to end when its guest is at its end, or its sockets are closed.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for clients to take what was said to them at the end. The attached one is waited for without end.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for the agent to say that it is there, when the console says that the guest has ended and the machine has not. A
/// host that is very busy must not make it look silent.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// What is kept of the console.
const CONSOLE_BOUNDS: Bounds = Bounds {
    file_bytes: 1024 * 1024,
    kept: 1,
};
/// Frames of the agent that are handled before others have their turn.
const AGENT_READS: usize = 16;

/// Where the sandbox stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Others boot, and there is no machine yet.
    Queued,
    Booting {
        deadline: Instant,
    },
    /// The guest is set up, its files are changed, and its init is started: nobody else is served yet.
    Preparing,
    Running,
    Stopping {
        deadline: Instant,
    },
}

/// When a running sandbox is to end, though nobody asked for it then.
#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    /// Nobody has used it for so long.
    idle: Option<Duration>,
    /// When it has run for as long as it may.
    end: Option<Instant>,
}

/// How the sandbox ended.
#[derive(Debug)]
struct End {
    reason: Reason,
    message: Option<String>,
    /// What can be done about it, where that is known better than from the reason.
    hint: Option<String>,
    clean: bool,
}

/// A sandbox that lives.
pub(crate) struct Life {
    setup: Setup,
    machine: Machine,
    attempt: u32,
    /// How the machine comes to run.
    start: Start,
    /// The way to a slot for the boot.
    queue: Option<Task<Lock>>,
    /// The slot: let go when the guest is up, so that the next one may boot.
    slot: Option<Lock>,
    signals: Signals,
    clock: HostClock,
    samples: Samples,
    /// Whether the agent takes the time.
    tells_time: bool,
    /// Whether it says what the guest costs.
    tells_costs: bool,
    socket: Socket,
    relay: Relay,
    phase: Phase,
    status: Status,
    stamps: Stamps,
    greeted: bool,
    assembler: Assembler,
    console: Option<RotatedFile>,
    /// What the guest said last of itself.
    last_line: LastLine,
    /// Whether the guest's processors run.
    pause: Pause,
    /// The agent was asked whether it is there, and must answer until then.
    pinged: Option<Instant>,
    log: Option<ExecLog>,
    net_log: NetLog,
    /// Another network that `msb-net` was told of.
    renewal: Option<Renewal>,
    attached: Option<ClientId>,
    /// The changes before anything of the image runs.
    changing: Option<Task<()>>,
    /// A pipe that is closed when nobody needs the sandbox any more.
    bond: Option<File>,
    /// Clients that asked for the end: they are told when it has come.
    stoppers: Vec<(ClientId, u32)>,
    /// Clients that want to know how it ends.
    waiters: Vec<(ClientId, u32)>,
    limits: Limits,
    jobs: jobs::Table,
    /// When somebody last used it.
    used_at: Instant,
    /// Why it is stopping.
    ending: Option<Reason>,
    clean: bool,
    end: Option<End>,
}

/// Sets up all that serves the sandbox. The machine starts when there is a slot for its boot; until then the sandbox can
/// be asked, and stopped.
pub(crate) fn begin(setup: Setup, starter: &mut Starter) -> Result<Life, Aborted> {
    let parts = match Parts::open(&setup, starter) {
        Ok(parts) => parts,
        Err(error) => return Err((error, setup.lock)),
    };
    let jobs = jobs::Table::of(&setup.sandbox);
    Ok(Life {
        setup,
        machine: parts.machine,
        samples: parts.samples,
        attempt: 0,
        start: Start::default(),
        queue: Some(parts.queue),
        slot: None,
        signals: parts.signals,
        clock: parts.clock,
        tells_time: false,
        tells_costs: false,
        socket: parts.socket,
        relay: parts.relay,
        phase: Phase::Queued,
        status: parts.status,
        stamps: Stamps::default(),
        greeted: false,
        assembler: Assembler::new(),
        console: Some(parts.console),
        last_line: LastLine::default(),
        pause: Pause::default(),
        pinged: None,
        log: parts.log,
        net_log: parts.net_log,
        renewal: None,
        attached: parts.attached,
        changing: None,
        bond: starter.bond.take(),
        stoppers: Vec::new(),
        waiters: Vec::new(),
        limits: Limits::default(),
        jobs,
        used_at: Instant::now(),
        ending: None,
        clean: false,
        end: None,
    })
}

/// What there is to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Slot,
    Agent,
    Console,
    Exit,
    NetExit,
    NetEvents,
    NetAnswer,
    Share,
    Listener,
    Signals,
    Clock,
    Errors,
    Bond,
    Changes,
    Ready,
    Monitor,
    Command,
    Client(ClientId),
}

impl Life {
    /// Serves the sandbox to its end and leaves its folder as it should be.
    pub(crate) fn live(mut self, mut starter: Starter) -> anyhow::Result<()> {
        while self.end.is_none() {
            if let Err(error) = self.turn(&mut starter) {
                self.finish(
                    Reason::SupervisorFailed,
                    Some(libmsb::cli::error::message(&error)),
                );
            }
        }
        self.conclude(starter)
    }

    /// Waits for something to happen and handles it.
    fn turn(&mut self, starter: &mut Starter) -> anyhow::Result<()> {
        let ready = self.wait()?;
        let mut notices = Vec::new();
        for (source, flags) in ready {
            self.handle(source, flags, &mut notices, starter)?;
        }
        self.write_out(&mut notices);
        for notice in notices {
            self.act_on(notice, starter)?;
        }
        self.ping_if_suspect();
        let upper = &self.setup.upper;
        self.samples.look_if_due(|| allocated_bytes(upper.as_ref()));
        self.write_out(&mut Vec::new());
        if self.relay.is_in_use() {
            self.used_at = Instant::now();
        }
        self.check_deadlines(starter)
    }

    fn wait(&self) -> anyhow::Result<Vec<(Source, PollFlags)>> {
        let takes_more = self.relay.takes_more(&self.machine.agent);
        let mut sources: Vec<(Source, BorrowedFd<'_>, PollFlags)> = vec![
            (
                Source::Agent,
                self.machine.agent.as_fd(),
                interest(true, &self.machine.agent),
            ),
            (Source::Exit, self.machine.pidfd(), PollFlags::IN),
            (
                Source::Listener,
                self.socket.listener.as_fd(),
                PollFlags::IN,
            ),
            (Source::Signals, self.signals.as_fd(), PollFlags::IN),
            (Source::Clock, self.clock.as_fd(), PollFlags::IN),
        ];
        if let Some(errors) = error_log::reader() {
            sources.push((Source::Errors, errors, PollFlags::IN));
        }
        if let Some(queue) = &self.queue {
            sources.push((Source::Slot, queue.as_fd(), PollFlags::IN));
        }
        if self.console.is_some() {
            sources.push((Source::Console, self.machine.console.as_fd(), PollFlags::IN));
        }
        if let Some(net) = &self.machine.net {
            sources.push((Source::NetExit, net.process.pidfd(), PollFlags::IN));
            sources.push((Source::NetEvents, net.events.as_fd(), PollFlags::IN));
            sources.push((Source::NetAnswer, net.control.as_fd(), PollFlags::IN));
        }
        if let Some(share) = &self.machine.share {
            sources.push((Source::Share, share.pidfd(), PollFlags::IN));
        }
        if let Some(bond) = &self.bond {
            sources.push((Source::Bond, bond.as_fd(), PollFlags::IN));
        }
        if let Some(changing) = &self.changing {
            sources.push((Source::Changes, changing.as_fd(), PollFlags::IN));
        }
        if let Some(ready) = self.start.ready_fd() {
            sources.push((Source::Ready, ready, PollFlags::IN));
        }
        if let Some(ready) = self.pause.ready_fd() {
            sources.push((Source::Command, ready, PollFlags::IN));
        }
        if let Some(monitor) = self.machine.monitor.as_ref().filter(|it| it.is_open()) {
            sources.push((Source::Monitor, monitor.as_fd(), PollFlags::IN));
        }
        for (id, link, readable) in self.relay.links() {
            sources.push((
                Source::Client(id),
                link.as_fd(),
                interest(readable && (takes_more || self.relay.may_resume(id)), link)
                    | PollFlags::RDHUP,
            ));
        }
        let mut fds: Vec<PollFd<'_>> = sources
            .iter()
            .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        match poll(&mut fds, self.timeout().as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for events"),
        }
        let happened = sources
            .iter()
            .zip(&fds)
            .map(|((source, ..), fd)| (*source, fd.revents()));
        Ok(happened.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn timeout(&self) -> Option<Timespec> {
        let phase = match self.phase {
            Phase::Booting { deadline } | Phase::Stopping { deadline } => Some(deadline),
            Phase::Queued | Phase::Preparing => None,
            Phase::Running => [self.idle_deadline(), self.limits.end]
                .into_iter()
                .flatten()
                .min(),
        };
        let deadlines = [
            phase,
            self.pinged,
            self.pause.deadline(),
            self.jobs.deadline(),
            self.samples.due(),
        ];
        let deadline = deadlines.into_iter().flatten().min()?;
        let left = deadline.saturating_duration_since(Instant::now());
        Some(Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        })
    }

    fn handle(
        &mut self,
        source: Source,
        flags: PollFlags,
        notices: &mut Vec<Notice>,
        starter: &mut Starter,
    ) -> anyhow::Result<()> {
        match source {
            Source::Slot => self.turn_came(),
            Source::Agent => self.read_agent(notices),
            Source::Console => drop(self.copy_console()),
            Source::Exit => self.machine_ended(),
            Source::NetExit => self.net_ended(),
            Source::NetEvents => self.copy_net_events(),
            Source::NetAnswer => self.net_answered(),
            Source::Share => self.share_ended(),
            Source::Listener => self.accept(),
            Source::Signals => {
                let number = self.signals.wait().context("cannot read a signal")?;
                if number != signal::SIGCHLD {
                    self.stop(Reason::Signal, STOP_TIMEOUT, starter);
                } else if self.machine.pid().is_some_and(went_on) {
                    self.tell_time();
                }
            }
            Source::Errors => error_log::copy(),
            Source::Clock => {
                if self.clock.is_time().context("cannot read the clock")? {
                    self.tell_time();
                }
            }
            Source::Bond => self.read_bond(starter),
            Source::Changes => self.changes_made(starter)?,
            Source::Ready => self.readied()?,
            Source::Monitor => self.drain_monitor(),
            Source::Command => self.command_done(),
            Source::Client(id) => {
                let gone = flags.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP);
                if flags.contains(PollFlags::IN) || gone {
                    self.relay.read_client(id, &mut self.machine.agent, notices);
                }
            }
        }
        Ok(())
    }

    /// A byte lets the sandbox go; the end of the pipe ends it.
    fn read_bond(&mut self, starter: &mut Starter) {
        let mut byte = [0];
        let bond = self.bond.take();
        if !matches!(
            bond.as_ref().map(|mut pipe| pipe.read(&mut byte)),
            Some(Ok(1))
        ) {
            self.stop(Reason::ClientGone, STOP_TIMEOUT, starter);
        }
    }

    /// Writes what waits, as far as it goes now.
    fn write_out(&mut self, notices: &mut Vec<Notice>) {
        // When the agent's port is broken, reading from it tells.
        let _ = self.machine.agent.flush();
        for id in self.relay.unflushed() {
            self.relay
                .write_client(id, &mut self.machine.agent, notices);
        }
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.socket.listener.accept() {
            if check_peer(&socket).is_err() {
                // Another user's: its folder lets nobody in, but a descriptor can be handed over.
                continue;
            }
            if is_ours(&socket) {
                self.relay.add_early_client(socket);
            } else {
                self.relay.add_client(socket);
            }
        }
    }

    fn read_agent(&mut self, notices: &mut Vec<Notice>) {
        for _ in 0..AGENT_READS {
            match self.machine.agent.receive() {
                Received::Nothing => return,
                // The machine's end will be seen on its own; until then there is nothing to be read.
                Received::Closed => return self.agent_closed(),
                Received::Some => {}
            }
            if let Err(Violation(what)) = self.agent_frames(notices) {
                if self.is_replaceable() {
                    return self.boot_instead(&format!("the guest's agent sent {what}"));
                }
                return self.finish(
                    Reason::AgentFailed,
                    Some(format!("the guest's agent sent {what}")),
                );
            }
        }
    }

    /// QEMU tells of itself. When it has hung up, its end says more.
    fn drain_monitor(&mut self) {
        if !self.machine.monitor.as_mut().is_some_and(Monitor::drain) {
            self.machine.monitor = None;
        }
    }

    fn agent_frames(&mut self, notices: &mut Vec<Notice>) -> Result<(), Violation> {
        let mut out = Vec::new();
        loop {
            let frame = self
                .machine
                .agent
                .next_frame()
                .map_err(|error| Violation(error.to_string()))?;
            let Some(frame) = frame else { break };
            if frame.header.kind != Kind::Hello {
                self.relay.agent_frame(frame, &mut out, notices)?;
                continue;
            }
            let message = self
                .assembler
                .push(&frame.header, frame.payload())
                .map_err(|e| Violation(e.to_string()))?;
            if let Some(message) = message {
                self.greet(&message)?;
            }
        }
        self.machine.agent.queue().extend_from_slice(&out);
        Ok(())
    }

    /// Moves what the guest printed to its log. `false` when there is nothing more for now. A full disk must not stop the
    /// sandbox: then what the guest prints is lost.
    fn copy_console(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match (&self.machine.console).read(&mut bytes) {
            Ok(0) => self.console = None,
            Ok(count) => {
                let _ = self.console.as_mut().map(|log| log.append(&bytes[..count]));
                self.last_line.follow(&bytes[..count]);
                return true;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => self.console = None,
        }
        false
    }

    fn act_on(&mut self, notice: Notice, starter: &mut Starter) -> anyhow::Result<()> {
        match notice {
            Notice::Event {
                own: Own::Boot,
                message,
            } => self.booted(&message, starter)?,
            Notice::Event {
                own: Own::Init,
                message,
            } => self.handed_over(&message, starter)?,
            Notice::Event {
                own: Own::Shutdown,
                message,
            } => self.shut_down(&message),
            Notice::Event { own: Own::Ping, .. } => {
                self.pinged = None;
                self.last_line.goes_on();
            }
            Notice::Event {
                own: Own::Samples,
                message,
            } => self
                .samples
                .take(&message, allocated_bytes(self.setup.upper.as_ref())),
            Notice::Event {
                own: Own::Job(number),
                message,
            } => self.job_event(number, &message),
            Notice::Event {
                own: Own::Clock, ..
            } => self.clock_told(),
            Notice::Event { own: Own::Main, .. } => {}
            Notice::Output {
                session,
                tty,
                channel,
                bytes,
            } => {
                let log = self.log.as_mut();
                // A full disk must not stop the command.
                let _ = log.map(|log| log.output(session.as_deref(), tty, channel, &bytes));
            }
            Notice::SessionEnded { session } => {
                let _ = self.log.as_mut().map(|log| log.end(Some(&session)));
            }
            Notice::MainEnded(event) => self.main_ended(&event, starter),
            Notice::Stop {
                client,
                stream,
                timeout_ms,
            } => {
                self.stoppers.push((client, stream));
                let reason = if timeout_ms == 0 {
                    Reason::KillRequested
                } else {
                    Reason::StopRequested
                };
                self.stop(reason, Duration::from_millis(timeout_ms), starter);
            }
            Notice::Pause { asker } => self.pause(asker),
            Notice::Resume { asker } => self.resume(asker),
            Notice::Wait { client, stream } => self.waiters.push((client, stream)),
            Notice::Watch {
                client,
                interval_ms,
            } => {
                let interval_ms = self.samples.watch(client, interval_ms);
                self.ask_for_samples(interval_ms);
            }
            Notice::Job { asker, request } => self.start_job(asker, *request),
            Notice::Network { asker, request } => self.renew_net(asker, request),
            Notice::Signal { asker, request } => self.signal_job(asker, &request),
            Notice::Attach {
                asker,
                job,
                attached,
            } => self.attached_to_job(asker, &job, attached),
            Notice::Gone(id) if self.attached == Some(id) => {
                self.attached = None;
                let interval_ms = self.samples.gone(id);
                self.ask_for_samples(interval_ms);
                // When the main command has ended, the client has no reason to stay.
                if self.status.exit_code.is_none() {
                    self.stop(Reason::ClientGone, STOP_TIMEOUT, starter);
                }
            }
            Notice::Gone(id) => {
                self.forget_client(id);
                let interval_ms = self.samples.gone(id);
                self.ask_for_samples(interval_ms);
            }
        }
        Ok(())
    }

    /// Samples at another interval. A guest that cannot be asked goes on as it did. One that is paused is asked later:
    /// what waits for it must not grow.
    fn ask_for_samples(&mut self, interval_ms: Option<u64>) {
        if self.pause.is_on() {
            self.pause.interval_ms = interval_ms.or(self.pause.interval_ms);
        } else if let Some(interval_ms) = interval_ms {
            let control = SamplesControl::Interval { interval_ms };
            self.relay
                .control(Own::Samples, &control, &mut self.machine.agent);
        }
    }

    /// A change of state, for those who look and those who listen.
    fn enter(&mut self, state: State, event: What) {
        self.status.state = state;
        self.status.since = jiff::Timestamp::now();
        self.write_status();
        self.setup
            .sandbox
            .record(&Event::now(event, self.setup.sandbox.name.as_str()));
    }

    /// When it will have been idle for too long, if nobody uses it until then. One that is paused is not idle.
    fn idle_deadline(&self) -> Option<Instant> {
        let idle = self.limits.idle.filter(|_| !self.pause.is_on());
        idle.map(|idle| self.used_at + idle)
    }

    /// The file informs others; a full disk must not end the sandbox.
    fn write_status(&self) {
        if let Err(error) = self.setup.sandbox.set_status(&self.status) {
            print_warning(TOOL, &libmsb::cli::error::message(&error));
        }
    }

    fn check_deadlines(&mut self, starter: &mut Starter) -> anyhow::Result<()> {
        let now = Instant::now();
        if self.jobs.deadline().is_some_and(|end| end <= now) {
            self.end_late_commands();
        }
        if self.pause.deadline().is_some_and(|end| end <= now) {
            self.answer_resume(true);
        }
        if self.idle_deadline().is_some_and(|end| end <= now) {
            self.note_published_use();
        }
        match self.phase {
            Phase::Running if self.limits.end.is_some_and(|end| end <= now) => {
                self.stop(Reason::MaxDuration, STOP_TIMEOUT, starter);
            }
            Phase::Running if self.idle_deadline().is_some_and(|end| end <= now) => {
                self.stop(Reason::IdleTimeout, STOP_TIMEOUT, starter);
            }
            Phase::Stopping { deadline } if deadline <= Instant::now() => {
                let reason = self.ending.unwrap_or(Reason::StopRequested);
                let message = (!self.clean)
                    .then(|| "the guest did not shut down in time and was killed".to_owned());
                self.finish(reason, message);
            }
            Phase::Booting { deadline } if deadline <= Instant::now() => self.boot_hung()?,
            _ if self
                .pinged
                .is_some_and(|deadline| deadline <= Instant::now()) =>
            {
                self.fell_silent()
            }
            _ => {}
        }
        Ok(())
    }
}

/// What a sparse file takes on the host: the kernel counts in blocks of 512 bytes.
fn allocated_bytes(file: Option<&File>) -> Option<u64> {
    file?.metadata().ok()?.blocks().checked_mul(512)
}

/// Whether the other end is this process.
fn is_ours(socket: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(socket)
        .is_ok_and(|peer| peer.pid == rustix::process::getpid())
}

fn interest(readable: bool, link: &Link) -> PollFlags {
    let read = if readable {
        PollFlags::IN
    } else {
        PollFlags::empty()
    };
    let write = if link.queued() > 0 {
        PollFlags::OUT
    } else {
        PollFlags::empty()
    };
    read | write
}
