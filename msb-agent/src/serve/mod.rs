//! Event loop over the port, commands and signals.
//!
//! One iteration: wait for events; write what the port accepts; read frames and handle them; reap
//! processes; move data of the commands that are ready, each channel once, starting with another
//! command each time; write again. Buffered data is bounded, because output is read only while the
//! port has room, and frames only while the host reads answers.

mod frames;
mod quiesce;
mod requests;
mod shutdown;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use msb_wire::exec::ExecEvent;
use msb_wire::frame::{Assembler, FrameKind, flags, put_message};
use msb_wire::freeze::FreezeRequest;
use msb_wire::samples::SamplesEvent;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, wait};

use self::shutdown::ShutdownState;
use crate::boot::GuestState;
use crate::connection::{TcpConnection, put_connect_event};
use crate::console::{log, reason};
use crate::modules::KernelModules;
use crate::port::AgentPort;
use crate::samples::SampleStream;
use crate::session::{CommandSession, put_event, scratch};
use crate::spawn::Spawner;
use crate::sys;

/// Result of a wait.
struct PollResult {
    port: PollFlags,
    children: bool,
    /// Streams with data to move, and whether their input has lost its reader.
    sessions: Vec<(u32, bool)>,
    /// Streams of connections with events.
    connections: Vec<(u32, PollFlags)>,
}

/// State of the agent.
pub(crate) struct Agent {
    port: AgentPort,
    children: OwnedFd,
    modules: KernelModules,
    guest: Option<GuestState>,
    /// The image's own init, if it runs.
    init: Option<Pid>,
    hello_received: bool,
    started: Instant,
    messages: Assembler,
    /// Streams whose request is incomplete.
    opening: BTreeSet<u32>,
    sessions: BTreeMap<u32, CommandSession>,
    /// Stream of the main command.
    main: Option<u32>,
    connections: BTreeMap<u32, TcpConnection>,
    spawner: Spawner,
    scratch: Box<[u8]>,
    iteration: usize,
    /// Set if processes were left after the last reap.
    has_children: bool,
    /// Time at which the remaining modules are loaded.
    modules_due: Option<Instant>,
    samples: Option<SampleStream>,
    stopping: Option<ShutdownState>,
    /// Stream that has the upper file system frozen.
    frozen: Option<u32>,
    /// Request to freeze it again, while the client that has it frozen is gone.
    next_freeze: Option<(u32, FreezeRequest)>,
    /// The agent sends nothing and waits for the host.
    is_quiescent: bool,
}

impl Agent {
    /// Returns an agent with an open port, on which its Hello was sent.
    pub(crate) fn new(port: AgentPort, modules: KernelModules) -> Result<Agent, String> {
        let children = sys::child_signals()
            .map_err(|error| format!("cannot wait for processes: {}", reason(error)))?;
        Ok(Agent {
            port,
            children,
            modules,
            guest: None,
            init: None,
            hello_received: false,
            started: Instant::now(),
            messages: Assembler::new(),
            opening: BTreeSet::new(),
            sessions: BTreeMap::new(),
            main: None,
            connections: BTreeMap::new(),
            spawner: Spawner::new(),
            scratch: scratch(),
            iteration: 0,
            has_children: false,
            modules_due: None,
            samples: None,
            stopping: None,
            frozen: None,
            next_freeze: None,
            is_quiescent: false,
        })
    }

    /// Serves until the VM ends.
    pub(crate) fn serve(mut self) -> ! {
        loop {
            let ready = self.wait();
            self.iteration = self.iteration.wrapping_add(1);
            if let Err(error) = self.port.write() {
                self.end_on_lost_host(&reason(error));
            }
            self.read_port(ready.port);
            if self.is_quiescent {
                continue;
            }
            if ready.children {
                self.reap();
            }
            self.move_bytes(ready.sessions);
            self.advance_connections(&ready.connections);
            self.end_sessions();
            self.end_connections();
            self.continue_shutdown();
            self.load_later();
            self.sample();
            if let Err(error) = self.port.write() {
                self.end_on_lost_host(&reason(error));
            }
        }
    }

    fn wait(&self) -> PollResult {
        if self.is_quiescent {
            return self.wait_for_host();
        }
        let count = 2 + 3 * self.sessions.len() + self.connections.len();
        let mut polled = Vec::with_capacity(count);
        let mut owners = Vec::with_capacity(3 * self.sessions.len());
        polled.push(PollFd::from_borrowed_fd(self.port.fd(), self.port_events()));
        polled.push(PollFd::from_borrowed_fd(self.children.as_fd(), PollFlags::IN));
        let has_room = self.port.has_room();
        for (stream, session) in &self.sessions {
            for watch in session.watches(has_room) {
                polled.push(PollFd::from_borrowed_fd(watch.fd, watch.events));
                owners.push((*stream, watch.is_input));
            }
        }
        let mut connected = Vec::with_capacity(self.connections.len());
        for (stream, connection) in &self.connections {
            if let Some((fd, events)) = connection.watch(has_room) {
                connected.push((*stream, polled.len()));
                polled.push(PollFd::from_borrowed_fd(fd, events));
            }
        }
        match poll(&mut polled, self.timeout().as_ref()) {
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => {
                log(&format!("cannot wait for events: {}", reason(error)));
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let flags = |at: usize| polled.get(at).map_or(PollFlags::empty(), |fd| fd.revents());
        let sessions = owners.iter().enumerate().filter_map(|(at, (stream, is_input))| {
            let events = flags(at + 2);
            (!events.is_empty()).then(|| (*stream, *is_input && events.contains(PollFlags::ERR)))
        });
        let connections = connected
            .iter()
            .map(|(stream, at)| (*stream, flags(*at)))
            .filter(|(_, events)| !events.is_empty());
        PollResult {
            port: flags(0),
            children: !flags(1).is_empty(),
            sessions: sessions.collect(),
            connections: connections.collect(),
        }
    }

    fn port_events(&self) -> PollFlags {
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, self.port.takes_frames());
        events.set(PollFlags::OUT, self.port.backlog() > 0);
        events
    }

    fn timeout(&self) -> Option<Timespec> {
        let stopping = self.stopping.as_ref().map(|stopping| stopping.until);
        let sample = self.samples.as_ref().map(SampleStream::due);
        let connecting = self.connections.values().filter_map(TcpConnection::wake_at);
        let until =
            [stopping, self.modules_due, sample].into_iter().flatten().chain(connecting).min()?;
        Timespec::try_from(until.saturating_duration_since(Instant::now())).ok()
    }

    /// Sends a sample if one is due. None is sent while the host does not read.
    fn sample(&mut self) {
        let has_room = self.port.has_room();
        if let Some(samples) = &mut self.samples
            && let Some(sample) = samples.next()
            && has_room
            && let Ok(json) = serde_json::to_vec(&SamplesEvent::Sample(Box::new(sample)))
        {
            put_message(&mut self.port.outgoing, samples.stream(), FrameKind::Event, 0, &json);
        }
    }

    /// Reaps all processes that have ended: commands, and orphans.
    fn reap(&mut self) {
        // The signals only mean that there may be processes to reap.
        let mut ignored = [0; 1024];
        while rustix::io::read(&self.children, &mut ignored).is_ok() {}
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if self.init == Some(pid) => self.init_ended(status),
                Ok(Some((pid, status))) => {
                    let session = self.sessions.values_mut().find(|session| session.pid() == pid);
                    if let Some(session) = session.filter(|session| !session.is_draining()) {
                        session.ended(status);
                    }
                }
                Ok(None) => break,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.has_children = false;
                    break;
                }
            }
        }
    }

    fn move_bytes(&mut self, ready: Vec<(u32, bool)>) {
        let ended = self
            .sessions
            .iter()
            .filter(|(_, session)| session.is_draining())
            .map(|(stream, _)| (*stream, false));
        let mut streams: Vec<(u32, bool)> = ready.into_iter().chain(ended).collect();
        streams.dedup();
        // Start with another one each time, because the port may have room for few.
        let count = streams.len().max(1);
        streams.rotate_left(self.iteration % count);
        for (stream, reader_is_gone) in streams {
            let Some(session) = self.sessions.get_mut(&stream) else {
                continue;
            };
            if reader_is_gone {
                session.input_lost_reader(&mut self.port.outgoing);
            }
            session.pump(self.port.has_room(), &mut self.port.outgoing, &mut self.scratch);
        }
    }

    /// Continues connections that are ready or have timed out.
    fn advance_connections(&mut self, ready: &[(u32, PollFlags)]) {
        let now = Instant::now();
        let due = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.wake_at().is_some_and(|at| at <= now))
            .map(|(stream, _)| (*stream, PollFlags::empty()));
        let mut turns: Vec<(u32, PollFlags)> = due.chain(ready.iter().copied()).collect();
        // Start with another one each time, because the port may have room for few.
        let count = turns.len().max(1);
        turns.rotate_left(self.iteration % count);
        for (stream, events) in turns {
            if let Some(connection) = self.connections.get_mut(&stream) {
                connection.advance(
                    events,
                    self.port.has_room(),
                    &mut self.port.outgoing,
                    &mut self.scratch,
                );
            }
        }
    }

    fn end_connections(&mut self) {
        let out = &mut self.port.outgoing;
        self.connections.retain(|stream, connection| {
            let Some(event) = connection.last_event() else {
                return true;
            };
            put_connect_event(out, *stream, flags::END, event);
            false
        });
    }

    fn end_sessions(&mut self) {
        let over: Vec<(u32, ExecEvent)> = self
            .sessions
            .iter()
            .filter_map(|(stream, session)| Some((*stream, session.last_event()?)))
            .collect();
        for (stream, event) in over {
            self.sessions.remove(&stream);
            self.messages.forget(stream);
            let was_frozen = self.frozen == Some(stream);
            if was_frozen {
                self.thaw();
            }
            self.main = self.main.filter(|main| *main != stream);
            put_event(&mut self.port.outgoing, stream, flags::END, &event);
            if was_frozen && let Some((stream, request)) = self.next_freeze.take() {
                self.freeze(stream, &request);
            }
        }
    }

    /// Thaws the upper file system, if a helper that was killed has left it frozen.
    fn thaw(&mut self) {
        if self.frozen.take().is_some()
            && let Some(guest) = &self.guest
        {
            // It fails if the helper has thawed it.
            let _ = sys::thaw(guest.upper.as_fd());
        }
    }

    fn load_later(&mut self) {
        if self.modules_due.is_some_and(|time| time <= Instant::now()) {
            self.modules_due = None;
            self.modules.load_later();
        }
    }
}
