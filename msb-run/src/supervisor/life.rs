//! The loop: from the start of the machine to its end.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use libmsb::cli::error::{Failure, print_warning};
use libmsb::machine::{SERIAL_ROOT, SERIAL_UPPER};
use libmsb::signals::{Signals, signal};
use libmsb::state::status::{Reason, State, Status};
use libmsb::state::{layout, write};
use msb_wire::boot::{BootEvent, BootRequest, Root};
use msb_wire::exec::{ExecEvent, ExecRequest};
use msb_wire::frame::{self, Assembler, Kind};
use msb_wire::handshake::{Hello, operation};
use msb_wire::sandbox::{Request, StopEvent};
use msb_wire::text::to_hex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::exec_log::ExecLog;
use super::link::{Link, Received};
use super::machine::Machine;
use super::relay::{ClientId, Notice, Own, Relay, Violation};
use super::rotate::{Bounds, RotatedFile};
use super::socket::Socket;
use super::{Aborted, Setup, Starter, TOOL, last_words, start_machine};
use crate::startup::{Stamps, Startup, monotonic_ns};

const PROGRAM: &str = concat!("msb-supervisor ", env!("CARGO_PKG_VERSION"));

/// Time for a guest to say that it takes commands, by attempt. In software, on a host that does much else, a boot
/// of two seconds takes many times that.
const BOOT_TIMEOUTS: [Duration; 2] = [Duration::from_secs(45), Duration::from_secs(120)];
/// Time for a guest to shut down when nobody said how long; the reference's default for `stop`.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the machine to end when its guest is at its end, or its sockets are closed.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for clients to take what was said to them at the end. The attached one is waited for without end.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
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
    Booting { deadline: Instant },
    Running,
    Stopping { deadline: Instant },
}

/// How the sandbox ended.
#[derive(Debug)]
struct End {
    reason: Reason,
    message: Option<String>,
    clean: bool,
}

/// A sandbox that lives.
pub(crate) struct Life {
    setup: Setup,
    machine: Machine,
    attempt: u32,
    signals: Signals,
    socket: Socket,
    relay: Relay,
    phase: Phase,
    status: Status,
    stamps: Stamps,
    greeted: bool,
    assembler: Assembler,
    console: Option<RotatedFile>,
    log: Option<ExecLog>,
    attached: Option<ClientId>,
    /// Clients that asked for the end: they are told when it has come.
    stoppers: Vec<(ClientId, u32)>,
    /// Why it is stopping.
    ending: Option<Reason>,
    clean: bool,
    end: Option<End>,
}

/// Starts the machine and all that serves it.
pub(crate) fn begin(setup: Setup, starter: &mut Starter) -> Result<Life, Aborted> {
    let parts = (|| {
        let machine =
            start_machine(&setup, 0)?.context("the engine has no way to start a machine")?;
        let started_ns = monotonic_ns();
        let signals = Signals::of(&[signal::SIGTERM, signal::SIGINT, signal::SIGHUP])
            .context("cannot wait for signals")?;
        let socket = Socket::listen(setup.home.agent_socket(&setup.sandbox.name))?;
        let hello = Hello::of(PROGRAM, &[operation::EXEC, operation::STOP]);
        // Of a sandbox that goes with its command, and whose client sees all, nobody could read a log.
        let logged = !setup.spec.ephemeral || starter.client.is_none();
        let mut relay = Relay::new(&hello, logged)?;
        let attached = starter.client.take().map(|client| {
            relay
                .attach(client)
                .context("cannot use the client's socket")
        });
        let attached = attached.transpose()?;
        let log = logged
            .then(|| ExecLog::open(&setup.sandbox.path(layout::EXEC_LOG), false))
            .transpose();
        let log = log.context("cannot open the log of the main command")?;
        let console = RotatedFile::open(&setup.sandbox.path(layout::CONSOLE_LOG), CONSOLE_BOUNDS);
        let console = console.context("cannot open the log of the console")?;
        let status = Status {
            started_at: Some(jiff::Timestamp::now()),
            engine: Some(setup.engine.name().to_owned()),
            ..Status::new(State::Starting)
        };
        setup.sandbox.set_status(&status)?;
        Ok((
            machine, started_ns, signals, socket, relay, attached, log, console, status,
        ))
    })();
    let (machine, machine_ns, signals, socket, relay, attached, log, console, status) = match parts
    {
        Ok(parts) => parts,
        Err(error) => return Err((error, setup.lock)),
    };
    Ok(Life {
        setup,
        machine,
        attempt: 0,
        signals,
        socket,
        relay,
        phase: Phase::Booting {
            deadline: Instant::now() + BOOT_TIMEOUTS[0],
        },
        status,
        stamps: Stamps {
            machine_ns,
            ..Stamps::default()
        },
        greeted: false,
        assembler: Assembler::new(),
        console: Some(console),
        log,
        attached,
        stoppers: Vec::new(),
        ending: None,
        clean: false,
        end: None,
    })
}

/// What there is to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Agent,
    Console,
    Exit,
    Listener,
    Signals,
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
        self.write_out(&mut Vec::new());
        self.check_deadline()
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
        ];
        if self.console.is_some() {
            sources.push((Source::Console, self.machine.console.as_fd(), PollFlags::IN));
        }
        for (id, link, readable) in self.relay.links() {
            sources.push((
                Source::Client(id),
                link.as_fd(),
                interest(readable && takes_more, link) | PollFlags::RDHUP,
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
        let deadline = match self.phase {
            Phase::Booting { deadline } | Phase::Stopping { deadline } => deadline,
            Phase::Running => return None,
        };
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
            Source::Agent => self.read_agent(notices),
            Source::Console => self.read_console(),
            Source::Exit => self.machine_ended(),
            Source::Listener => self.accept(),
            Source::Signals => {
                self.signals.wait().context("cannot read a signal")?;
                self.stop(Reason::Signal, STOP_TIMEOUT, starter);
            }
            Source::Client(id) => {
                let gone = flags.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP);
                if flags.contains(PollFlags::IN) || gone {
                    self.relay.read_client(id, &mut self.machine.agent, notices);
                }
            }
        }
        Ok(())
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
            self.relay.add_client(socket);
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
                return self.finish(
                    Reason::AgentFailed,
                    Some(format!("the guest's agent sent {what}")),
                );
            }
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

    /// The agent said hello: answer, and set the guest up.
    fn greet(&mut self, message: &[u8]) -> Result<(), Violation> {
        if std::mem::replace(&mut self.greeted, true) {
            return Err(Violation("a second hello".to_owned()));
        }
        let peer: Hello = serde_json::from_slice(message)
            .map_err(|error| Violation(format!("a hello that cannot be understood: {error}")))?;
        peer.agree()
            .map_err(|error| Violation(format!("a hello: {error}")))?;
        peer.require(operation::BOOT)
            .map_err(|error| Violation(format!("a hello: {error}")))?;
        self.stamps.guest_agent_ns = peer.agent_start_ns.unwrap_or(0);
        let hello = serde_json::to_vec(&Hello::of(PROGRAM, &[]))
            .map_err(|error| Violation(error.to_string()))?;
        let agent = &mut self.machine.agent;
        frame::put_message(agent.queue(), frame::CONNECTION, Kind::Hello, 0, &hello);
        let boot = self
            .boot_request()
            .map_err(|error| Violation(error.to_string()))?;
        self.relay
            .request(Own::Boot, &Request::Boot(boot), &mut self.machine.agent)
            .map_err(|error| Violation(error.to_string()))
    }

    fn boot_request(&self) -> anyhow::Result<BootRequest> {
        let spec = &self.setup.spec;
        let mut entropy = [0; 32];
        write::random(&mut entropy)?;
        let clock = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Ok(BootRequest {
            root: Root::Overlay {
                lower: SERIAL_ROOT.to_owned(),
                upper: SERIAL_UPPER.to_owned(),
            },
            hostname: spec.hostname.clone(),
            env: spec.env.clone(),
            cwd: spec.workdir.clone(),
            user: spec.user.clone(),
            clock_unix_ns: clock.as_nanos() as u64,
            entropy_hex: to_hex(&entropy),
        })
    }

    /// The engine closes its sockets a moment before its process is gone.
    fn agent_closed(&mut self) {
        let deadline = Instant::now() + POWER_OFF_TIMEOUT;
        while self.machine.poll_exit().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.machine.kill();
        self.machine_ended();
    }

    fn machine_ended(&mut self) {
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

    fn read_console(&mut self) {
        self.copy_console();
    }

    /// Moves what the guest printed to its log. `false` when there is nothing more for now. A full disk must not stop the
    /// sandbox: then what the guest prints is lost.
    fn copy_console(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match (&self.machine.console).read(&mut bytes) {
            Ok(0) => self.console = None,
            Ok(count) => {
                let _ = self.console.as_mut().map(|log| log.append(&bytes[..count]));
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
                own: Own::Shutdown,
                message,
            } => self.shut_down(&message),
            Notice::Event { own: Own::Main, .. } => {}
            Notice::MainOutput { channel, bytes } => {
                // A full disk must not stop the command.
                let _ = self.log.as_mut().map(|log| log.output(channel, &bytes));
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
            Notice::Gone(id) if self.attached == Some(id) => {
                self.attached = None;
                // When the main command has ended, the client has no reason to stay.
                if self.status.exit_code.is_none() {
                    self.stop(Reason::ClientGone, STOP_TIMEOUT, starter);
                }
            }
            Notice::Gone(_) => {}
        }
        Ok(())
    }

    fn booted(&mut self, message: &[u8], starter: &mut Starter) -> anyhow::Result<()> {
        match serde_json::from_slice(message)
            .context("the agent's answer to the boot cannot be understood")?
        {
            BootEvent::Failed { stage, message } => {
                self.finish(
                    Reason::BootFailed,
                    Some(format!(
                        "the guest failed in its stage '{stage}': {message}"
                    )),
                );
                Ok(())
            }
            BootEvent::Ready { kernel, ready_ns } => {
                self.stamps.ready_ns = monotonic_ns();
                self.stamps.guest_ready_ns = ready_ns;
                if matches!(self.phase, Phase::Booting { .. }) {
                    self.phase = Phase::Running;
                }
                // The commands first: they run while the files are written.
                let mut notices = Vec::new();
                self.relay.open(&mut self.machine.agent, &mut notices);
                self.start_main()?;
                let _ = self.machine.agent.flush();
                self.status.state = State::Running;
                self.status.since = jiff::Timestamp::now();
                self.status.kernel = Some(kernel);
                self.write_status();
                if let Some(log) = &mut self.log {
                    let _ = log.system("sandbox started");
                }
                starter.tell(&Startup::Ready(self.stamps));
                notices
                    .into_iter()
                    .try_for_each(|notice| self.act_on(notice, starter))
            }
        }
    }

    /// The file informs others; a full disk must not end the sandbox.
    fn write_status(&self) {
        if let Err(error) = self.setup.sandbox.set_status(&self.status) {
            print_warning(TOOL, &libmsb::cli::error::message(&error));
        }
    }

    /// Nobody is attached: the main command, if there is one, is ours to run.
    fn start_main(&mut self) -> anyhow::Result<()> {
        if self.attached.is_some() || self.setup.spec.command.is_empty() {
            return Ok(());
        }
        let exec = ExecRequest {
            argv: self.setup.spec.command.clone(),
            main: true,
            ..ExecRequest::default()
        };
        self.relay
            .request(Own::Main, &Request::Exec(exec), &mut self.machine.agent)?;
        Ok(())
    }

    fn main_ended(&mut self, event: &ExecEvent, starter: &mut Starter) {
        self.status.exit_code = event.exit_code();
        if let Some(log) = &mut self.log {
            let _ = log.end();
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
    fn stop(&mut self, reason: Reason, timeout: Duration, starter: &mut Starter) {
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
        self.status.state = State::Stopping;
        self.write_status();
        if self
            .relay
            .request(Own::Shutdown, &Request::Shutdown, &mut self.machine.agent)
            .is_err()
        {
            self.finish(reason, None);
        }
    }

    /// The guest has shut down. When all is flushed and clean, there is nothing to be waited for.
    fn shut_down(&mut self, message: &[u8]) {
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

    fn check_deadline(&mut self) -> anyhow::Result<()> {
        match self.phase {
            Phase::Stopping { deadline } if deadline <= Instant::now() => {
                let reason = self.ending.unwrap_or(Reason::StopRequested);
                let message = (!self.clean)
                    .then(|| "the guest did not shut down in time and was killed".to_owned());
                self.finish(reason, message);
            }
            Phase::Booting { deadline } if deadline <= Instant::now() => self.boot_hung()?,
            _ => {}
        }
        Ok(())
    }

    /// The guest says nothing: perhaps the engine knows another way.
    fn boot_hung(&mut self) -> anyhow::Result<()> {
        self.machine.kill();
        let attempt = self.attempt + 1;
        let machine = BOOT_TIMEOUTS
            .get(attempt as usize)
            .map(|_| start_machine(&self.setup, attempt))
            .transpose()?
            .flatten();
        let Some(machine) = machine else {
            self.finish(
                Reason::BootFailed,
                Some("the guest did not come up in time".to_owned()),
            );
            return Ok(());
        };
        self.machine = machine;
        self.attempt = attempt;
        self.greeted = false;
        self.assembler = Assembler::new();
        self.phase = Phase::Booting {
            deadline: Instant::now() + BOOT_TIMEOUTS[attempt as usize],
        };
        Ok(())
    }

    fn finish(&mut self, reason: Reason, message: Option<String>) {
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
    fn conclude(mut self, mut starter: Starter) -> anyhow::Result<()> {
        self.machine.kill();
        while self.console.is_some() && self.copy_console() {}
        let end = self.end.take().unwrap_or(End {
            reason: Reason::Other,
            message: None,
            clean: false,
        });
        let left = self.leave(&end);
        let Life {
            setup,
            relay,
            machine,
            socket,
            attached,
            stoppers,
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
        farewell(relay, machine, attached, &stoppers, &end);
        left
    }

    fn leave(&mut self, end: &End) -> anyhow::Result<()> {
        if let Some(log) = &mut self.log {
            let _ = log.system("sandbox stopped");
        }
        if self.setup.spec.ephemeral {
            return self.setup.sandbox.remove_held();
        }
        let crashed = matches!(
            end.reason,
            Reason::BootFailed | Reason::VmExited | Reason::AgentFailed | Reason::SupervisorFailed
        );
        self.status.state = if crashed {
            State::Crashed
        } else {
            State::Stopped
        };
        self.status.since = jiff::Timestamp::now();
        self.status.reason = Some(end.reason);
        self.status.message = end.message.clone();
        self.status.clean = Some(end.clean);
        self.setup.sandbox.set_status(&self.status)
    }
}

/// Answers those who asked for the end, and lets the clients take what is theirs.
fn farewell(
    mut relay: Relay,
    mut machine: Machine,
    attached: Option<ClientId>,
    stoppers: &[(ClientId, u32)],
    end: &End,
) {
    for (client, stream) in stoppers {
        relay.answer_stop(*client, *stream, &StopEvent::Stopped { clean: end.clean });
    }
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
