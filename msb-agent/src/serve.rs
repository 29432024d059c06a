//! The loop over the port, the commands and their ends.
//!
//! One turn: wait until something is ready; write what the port takes; read frames and act on them; reap; move bytes of
//! the commands that are ready, each channel once and each time another command first; write again. What is to be
//! written is bounded, as output is read only while the port has room and frames only while the host reads answers.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use msb_wire::boot::{BootEvent, BootRequest};
use msb_wire::connect::{ConnectFailure, ConnectRequest};
use msb_wire::exec::{ExecControl, ExecEvent, FailureKind};
use msb_wire::frame::{Assembler, Decoder, FrameError, Header, Kind, STDIN, flags, put_message};
use msb_wire::guest::{InitEvent, InitRequest};
use msb_wire::handshake::{Hello, VersionMismatch};
use msb_wire::samples::{SamplesEvent, SamplesRequest};
use msb_wire::sandbox::{ClockEvent, PingEvent, Request, ShutdownRequest, StopEvent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use crate::boot::{self, Guest};
use crate::connection::{CONNECTIONS_MAX, Connection, put_connect_event};
use crate::console::{log, reason};
use crate::exec::{self, Refusal};
use crate::init::OPERATIONS;
use crate::modules::Modules;
use crate::port::Port;
use crate::samples::Samples;
use crate::session::{CreditViolation, Session, put_event, scratch};
use crate::spawn::Spawner;
use crate::{clock, files, handover, key_agent, sftp, shutdown, sys};

/// Commands at a time.
const SESSIONS_MAX: usize = 1024;

/// What is left of the time for a shutdown when processes are killed: for the disk to be flushed, and the host to be told.
const FLUSH_RESERVE: Duration = Duration::from_secs(2);

/// Longest time for a shutdown that is kept: a clock can count so far, and the supervisor keeps the time too.
const SHUTDOWN_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Time that processes have to vanish after SIGKILL, and the host to take their last words.
const KILL_PATIENCE: Duration = Duration::from_millis(300);

/// Time for the host to read the last answers, and to hang up.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);

/// Time between the last byte to the host and the restart.
const FAREWELL: Duration = Duration::from_millis(10);

/// Time for the host's end of the port to be opened; before that it looks as if it were gone.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Time between a guest that takes commands and the modules that can wait: a command that is short, or just starts, is not
/// held up by them.
const LATER: Duration = Duration::from_secs(1);

/// Why the connection cannot go on.
enum Broken {
    Frame(FrameError),
    Versions(VersionMismatch),
    Hello(String),
    StreamInUse(u32),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Frame(error) => write!(f, "the host sent {error}"),
            Broken::Versions(error) => error.fmt(f),
            Broken::Hello(why) => write!(f, "the host said no hello: {why}"),
            Broken::StreamInUse(stream) => {
                write!(f, "the host opened stream {stream}, which is open")
            }
        }
    }
}

impl From<FrameError> for Broken {
    fn from(error: FrameError) -> Broken {
        Broken::Frame(error)
    }
}

/// On the way to the end.
struct Stopping {
    stream: u32,
    killed: bool,
    until: Instant,
}

/// What was ready after a wait.
struct Ready {
    port: PollFlags,
    children: bool,
    /// Streams with something to move, and whether it is that nobody reads the input.
    sessions: Vec<(u32, bool)>,
    /// Streams of connections, and what is ready.
    connections: Vec<(u32, PollFlags)>,
}

/// The agent at work.
pub(crate) struct Agent {
    port: Port,
    children: OwnedFd,
    modules: Modules,
    guest: Option<Guest>,
    /// The image's own init, if it runs.
    init: Option<Pid>,
    greeted: bool,
    started: Instant,
    messages: Assembler,
    /// Streams whose request is not complete.
    opening: HashSet<u32>,
    sessions: BTreeMap<u32, Session>,
    connections: BTreeMap<u32, Connection>,
    spawner: Spawner,
    scratch: Box<[u8]>,
    turn: usize,
    /// Whether processes were left when the last was reaped.
    has_children: bool,
    /// When the modules that can wait are loaded.
    later: Option<Instant>,
    samples: Option<Samples>,
    stopping: Option<Stopping>,
}

impl Agent {
    /// With the port open and our hello said.
    pub(crate) fn new(port: Port, modules: Modules) -> Result<Agent, String> {
        let children = sys::child_signals()
            .map_err(|error| format!("cannot wait for processes: {}", reason(error)))?;
        Ok(Agent {
            port,
            children,
            modules,
            guest: None,
            init: None,
            greeted: false,
            started: Instant::now(),
            messages: Assembler::new(),
            opening: HashSet::new(),
            sessions: BTreeMap::new(),
            connections: BTreeMap::new(),
            spawner: Spawner::new(),
            scratch: scratch(),
            turn: 0,
            has_children: false,
            later: None,
            samples: None,
            stopping: None,
        })
    }

    /// Serves until the machine ends.
    pub(crate) fn serve(mut self) -> ! {
        loop {
            let ready = self.wait();
            self.turn = self.turn.wrapping_add(1);
            if let Err(error) = self.port.write() {
                self.lost(&reason(error));
            }
            self.read_port(ready.port);
            if ready.children {
                self.reap();
            }
            self.move_bytes(ready.sessions);
            self.advance_connections(&ready.connections);
            self.end_sessions();
            self.end_connections();
            self.stop_further();
            self.load_later();
            self.sample();
            if let Err(error) = self.port.write() {
                self.lost(&reason(error));
            }
        }
    }

    fn wait(&self) -> Ready {
        let count = 2 + 3 * self.sessions.len() + self.connections.len();
        let mut polled = Vec::with_capacity(count);
        let mut owners = Vec::with_capacity(3 * self.sessions.len());
        polled.push(PollFd::from_borrowed_fd(self.port.fd(), self.port_events()));
        polled.push(PollFd::from_borrowed_fd(
            self.children.as_fd(),
            PollFlags::IN,
        ));
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
        let sessions = owners
            .iter()
            .enumerate()
            .filter_map(|(at, (stream, is_input))| {
                let events = flags(at + 2);
                (!events.is_empty())
                    .then(|| (*stream, *is_input && events.contains(PollFlags::ERR)))
            });
        let connections = connected
            .iter()
            .map(|(stream, at)| (*stream, flags(*at)))
            .filter(|(_, events)| !events.is_empty());
        Ready {
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
        let sample = self.samples.as_ref().map(Samples::due);
        let connecting = self.connections.values().filter_map(Connection::wake_at);
        let until = [stopping, self.later, sample]
            .into_iter()
            .flatten()
            .chain(connecting)
            .min()?;
        Timespec::try_from(until.saturating_duration_since(Instant::now())).ok()
    }

    /// Reads frames and acts on them.
    fn read_port(&mut self, events: PollFlags) {
        let gone = events.intersects(PollFlags::HUP | PollFlags::ERR);
        if !gone && !events.contains(PollFlags::IN) {
            return;
        }
        let (count, ended) = match self.port.read() {
            Ok(read) => read,
            Err(error) => self.lost(&reason(error)),
        };
        let mut decoder = std::mem::take(&mut self.port.incoming);
        let result = self.take_frames(&mut decoder);
        self.port.incoming = decoder;
        if let Err(broken) = result {
            self.give_up(&broken.to_string());
        }
        if count == 0 && (gone || ended) {
            self.host_is_away();
        }
    }

    /// The host's end of the port is not open: not yet, or not any more.
    fn host_is_away(&mut self) {
        if self.greeted || self.started.elapsed() > CONNECT_PATIENCE {
            self.lost("it hung up");
        }
        std::thread::sleep(Duration::from_millis(1));
    }

    fn take_frames(&mut self, decoder: &mut Decoder) -> Result<(), Broken> {
        while let Some(frame) = decoder.next_frame()? {
            let header = frame.header;
            if !self.greeted && header.kind != Kind::Hello {
                return Err(Broken::Hello(format!(
                    "a frame of kind {:?} came first",
                    header.kind
                )));
            }
            match header.kind {
                Kind::Hello => self.take_hello(&header, frame.payload())?,
                Kind::Open => self.take_open(&header, frame.payload())?,
                Kind::Data => self.take_data(&header, frame.payload()),
                Kind::Credit => self.take_credit(&header, frame.credit().unwrap_or(0)),
                Kind::Control => self.take_control(&header, frame.payload())?,
                Kind::Close => self.take_close(header.stream),
                Kind::Event => return Err(FrameError::Malformed { kind: Kind::Event }.into()),
            }
        }
        Ok(())
    }

    fn take_hello(&mut self, header: &Header, payload: &[u8]) -> Result<(), Broken> {
        if self.greeted {
            return Err(FrameError::Malformed { kind: Kind::Hello }.into());
        }
        let Some(message) = self.messages.push(header, payload)? else {
            return Ok(());
        };
        let hello: Hello =
            serde_json::from_slice(&message).map_err(|error| Broken::Hello(error.to_string()))?;
        hello.agree().map_err(Broken::Versions)?;
        self.greeted = true;
        Ok(())
    }

    fn take_open(&mut self, header: &Header, payload: &[u8]) -> Result<(), Broken> {
        let stream = header.stream;
        if self.sessions.contains_key(&stream)
            || self.connections.contains_key(&stream)
            || Samples::on(&mut self.samples, stream).is_some()
        {
            return Err(Broken::StreamInUse(stream));
        }
        match self.messages.push(header, payload)? {
            None => {
                self.opening.insert(stream);
            }
            Some(message) => {
                self.opening.remove(&stream);
                self.open(stream, &message);
            }
        }
        Ok(())
    }

    fn open(&mut self, stream: u32, message: &[u8]) {
        match serde_json::from_slice(message) {
            Ok(Request::Boot(request)) => self.boot(stream, request),
            Ok(Request::Connect(request)) => self.connect(stream, &request),
            Ok(Request::Sftp(request)) => self.start(stream, |guest, spawner| {
                sftp::start(guest, stream, &request, spawner)
            }),
            Ok(Request::KeyAgent(request)) => self.start(stream, |guest, spawner| {
                key_agent::start(guest, stream, &request, spawner)
            }),
            Ok(Request::Exec(request)) => self.start(stream, |guest, spawner| {
                exec::start(guest, stream, &request, spawner)
            }),
            Ok(Request::Files(request)) => {
                self.start(stream, |_, spawner| files::start(stream, &request, spawner))
            }
            Ok(Request::Clock(request)) => {
                let event = match clock::correct(request.unix_ns) {
                    Ok((behind_ms, stepped)) => ClockEvent::Clock { behind_ms, stepped },
                    Err(error) => ClockEvent::Failed {
                        message: reason(error),
                    },
                };
                self.put_last(stream, serde_json::to_vec(&event));
            }
            Ok(Request::Samples(request)) => self.start_samples(stream, request),
            Ok(Request::Init(request)) => self.hand_over(stream, &request),
            Ok(Request::Shutdown(request)) => self.shut_down(stream, &request),
            Ok(Request::Ping) => self.put_last(stream, serde_json::to_vec(&PingEvent::Pong)),
            Ok(
                request @ (Request::Stop(_)
                | Request::Wait
                | Request::Signal(_)
                | Request::Attach(_)
                | Request::Network(_)),
            ) => {
                self.refuse(stream, unsupported(request.operation()));
            }
            Err(error) => self.refuse(stream, misunderstood(message, &error)),
        }
    }

    fn boot(&mut self, stream: u32, request: BootRequest) {
        let event = if self.guest.is_some() {
            BootEvent::Failed {
                stage: "request".into(),
                message: "the guest is set up already".into(),
            }
        } else {
            match boot::boot(request, &self.modules) {
                Ok(guest) => {
                    self.guest = Some(guest);
                    self.later = Some(Instant::now() + LATER);
                    boot::ready()
                }
                Err(failed) => failed,
            }
        };
        self.put_last(stream, serde_json::to_vec(&event));
    }

    /// Starts the image's init, in whose namespace all that comes later is.
    fn hand_over(&mut self, stream: u32, request: &InitRequest) {
        let started = match &self.guest {
            None => Err("the guest is not set up".to_owned()),
            Some(_) if self.init.is_some() => Err("it runs already".to_owned()),
            // What serves the last change of the files may still be there: it is ours, and about to end.
            Some(guest) => handover::start(guest, request, &mut self.spawner),
        };
        let event = match started {
            Ok((pid, path)) => {
                self.init = Some(pid);
                self.has_children = true;
                InitEvent::Started { path }
            }
            Err(message) => InitEvent::Failed { message },
        };
        self.put_last(stream, serde_json::to_vec(&event));
    }

    /// The init has ended, and everything in its namespace with it.
    fn init_ended(&mut self, status: WaitStatus) {
        self.init = None;
        handover::uncover_proc();
        if self.stopping.is_none() {
            self.port.flush(FLUSH_PATIENCE);
            if let Some(guest) = &self.guest {
                shutdown::flush_disks(&guest.disks);
            }
            handover::end_machine(status);
        }
    }

    /// Starts a command, or a process of our own that serves a stream as a command does.
    fn start(
        &mut self,
        stream: u32,
        start: impl FnOnce(&Guest, &mut Spawner) -> Result<(Session, Pid), Refusal>,
    ) {
        match self.try_start(start) {
            Ok((session, event)) => {
                self.has_children = true;
                self.sessions.insert(stream, session);
                put_event(&mut self.port.outgoing, stream, 0, &event);
            }
            Err(refusal) => self.refuse(stream, refusal),
        }
    }

    fn try_start(
        &mut self,
        start: impl FnOnce(&Guest, &mut Spawner) -> Result<(Session, Pid), Refusal>,
    ) -> Result<(Session, ExecEvent), Refusal> {
        let Some(guest) = &self.guest else {
            return Err(Refusal::new(FailureKind::Other, "the guest is not set up"));
        };
        if self.stopping.is_some() {
            return Err(Refusal::new(
                FailureKind::Other,
                "the guest is shutting down",
            ));
        }
        if self.sessions.len() >= SESSIONS_MAX {
            let message = format!("{SESSIONS_MAX} commands are running already");
            return Err(Refusal::new(FailureKind::ResourceLimit, message));
        }
        let (session, pid) = start(guest, &mut self.spawner)?;
        Ok((
            session,
            ExecEvent::Started {
                pid: pid.as_raw_pid().unsigned_abs(),
            },
        ))
    }

    fn connect(&mut self, stream: u32, request: &ConnectRequest) {
        let refused = if self.guest.is_none() || self.stopping.is_some() {
            Some((ConnectFailure::Other, "the guest is not up".to_owned()))
        } else if self.connections.len() >= CONNECTIONS_MAX {
            let message = format!("{CONNECTIONS_MAX} connections are open already");
            Some((ConnectFailure::ResourceLimit, message))
        } else {
            None
        };
        if let Some((kind, message)) = refused {
            let event = Connection::refused(kind, message);
            put_connect_event(&mut self.port.outgoing, stream, flags::END, &event);
        } else {
            self.connections
                .insert(stream, Connection::start(stream, request));
        }
    }

    fn refuse(&mut self, stream: u32, refusal: Refusal) {
        let event = ExecEvent::Failed {
            kind: refusal.kind,
            message: refusal.message,
        };
        put_event(&mut self.port.outgoing, stream, flags::END, &event);
    }

    fn put_last(&mut self, stream: u32, event: serde_json::Result<Vec<u8>>) {
        if let Ok(json) = event {
            put_message(
                &mut self.port.outgoing,
                stream,
                Kind::Event,
                flags::END,
                &json,
            );
        }
    }

    /// Frames of streams that are over are on their way still when the last event is sent: they mean nothing.
    fn take_data(&mut self, header: &Header, payload: &[u8]) {
        let out = &mut self.port.outgoing;
        if let Some(connection) = self.connections.get_mut(&header.stream) {
            if header.channel == STDIN
                && connection.take_input(payload, header.ends(), out).is_err()
            {
                self.violated(header.stream);
            }
            return;
        }
        let Some(session) = self.sessions.get_mut(&header.stream) else {
            return;
        };
        if header.channel == STDIN && session.take_input(payload, header.ends(), out).is_err() {
            self.violated(header.stream);
        }
    }

    fn take_credit(&mut self, header: &Header, bytes: u32) {
        if let Some(connection) = self.connections.get_mut(&header.stream) {
            if connection.take_credit(header.channel, bytes).is_err() {
                self.violated(header.stream);
            } else {
                // It may have been left alone for want of credit, with bytes to be read.
                connection.advance(
                    PollFlags::empty(),
                    self.port.has_room(),
                    &mut self.port.outgoing,
                    &mut self.scratch,
                );
            }
            return;
        }
        let Some(session) = self.sessions.get_mut(&header.stream) else {
            return;
        };
        if let Err(CreditViolation) = session.take_credit(header.channel, bytes) {
            self.violated(header.stream);
        }
    }

    /// The call ends here, for the host; what is left of the process is reaped like any other.
    fn violated(&mut self, stream: u32) {
        if let Some(connection) = self.connections.get_mut(&stream) {
            connection.end(Some("the client sent more than it was granted".into()));
        }
        if let Some(session) = self.sessions.remove(&stream) {
            session.hang_up();
            self.messages.forget(stream);
            self.refuse(
                stream,
                Refusal::new(
                    FailureKind::Other,
                    "the client sent more than it was granted",
                ),
            );
        }
    }

    fn take_control(&mut self, header: &Header, payload: &[u8]) -> Result<(), Broken> {
        if let Some(samples) = Samples::on(&mut self.samples, header.stream) {
            if let Some(message) = self.messages.push(header, payload)? {
                samples.control(&message);
            }
            return Ok(());
        }
        let Some(session) = self.sessions.get_mut(&header.stream) else {
            return Ok(());
        };
        let Some(message) = self.messages.push(header, payload)? else {
            return Ok(());
        };
        // A control of a later version is no reason to end a command.
        if let Ok(control) = serde_json::from_slice::<ExecControl>(&message) {
            session.control(&control);
        }
        Ok(())
    }

    fn take_close(&mut self, stream: u32) {
        self.messages.forget(stream);
        if self.opening.remove(&stream) {
            self.refuse(
                stream,
                Refusal::new(FailureKind::Other, "closed before the request was complete"),
            );
        }
        if Samples::on(&mut self.samples, stream).is_some() {
            self.samples = None;
            self.put_last(stream, serde_json::to_vec(&SamplesEvent::Closed));
        }
        if let Some(session) = self.sessions.get_mut(&stream) {
            session.close();
        }
        if let Some(connection) = self.connections.get_mut(&stream) {
            connection.close();
        }
    }

    /// There is one host, and one stream of samples for it.
    fn start_samples(&mut self, stream: u32, request: SamplesRequest) {
        let refused = match &self.guest {
            None => "the guest is not set up".to_owned(),
            Some(_) if self.samples.is_some() => "samples are being taken already".to_owned(),
            Some(guest) => match Samples::start(stream, request, &guest.upper) {
                Ok(samples) => {
                    self.samples = Some(samples);
                    return;
                }
                Err(error) => reason(error),
            },
        };
        self.refuse(stream, Refusal::new(FailureKind::Other, refused));
    }

    /// The next sample, when it is time. While the host does not read, there is none.
    fn sample(&mut self) {
        let has_room = self.port.has_room();
        if let Some(samples) = &mut self.samples
            && let Some(sample) = samples.next()
            && has_room
            && let Ok(json) = serde_json::to_vec(&SamplesEvent::Sample(Box::new(sample)))
        {
            put_message(
                &mut self.port.outgoing,
                samples.stream(),
                Kind::Event,
                0,
                &json,
            );
        }
    }

    /// Takes the status of every process that has ended; those of no command were orphans.
    fn reap(&mut self) {
        // The signals say no more than that there is something to wait for.
        let mut ignored = [0; 1024];
        while rustix::io::read(&self.children, &mut ignored).is_ok() {}
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if self.init == Some(pid) => self.init_ended(status),
                Ok(Some((pid, status))) => {
                    let session = self
                        .sessions
                        .values_mut()
                        .find(|session| session.pid() == pid);
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
        // Another one is first each time, since the port may have room for few.
        let count = streams.len().max(1);
        streams.rotate_left(self.turn % count);
        for (stream, reader_is_gone) in streams {
            let Some(session) = self.sessions.get_mut(&stream) else {
                continue;
            };
            if reader_is_gone {
                session.lost_reader(&mut self.port.outgoing);
            }
            session.pump(
                self.port.has_room(),
                &mut self.port.outgoing,
                &mut self.scratch,
            );
        }
    }

    /// Connections that are ready, or whose time has come.
    fn advance_connections(&mut self, ready: &[(u32, PollFlags)]) {
        let now = Instant::now();
        let due = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.wake_at().is_some_and(|at| at <= now))
            .map(|(stream, _)| (*stream, PollFlags::empty()));
        let mut turns: Vec<(u32, PollFlags)> = due.chain(ready.iter().copied()).collect();
        // Another one is first each time, since the port may have room for few.
        let count = turns.len().max(1);
        turns.rotate_left(self.turn % count);
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
            put_event(&mut self.port.outgoing, stream, flags::END, &event);
        }
    }

    fn shut_down(&mut self, stream: u32, request: &ShutdownRequest) {
        if self.stopping.is_some() {
            let event = StopEvent::Failed {
                message: "the guest is shutting down already".into(),
            };
            return self.put_last(stream, serde_json::to_vec(&event));
        }
        self.stopping = Some(Stopping {
            stream,
            killed: false,
            until: Instant::now() + patience(Duration::from_millis(request.timeout_ms)),
        });
        if let Some(init) = self.init {
            return handover::ask_to_end(init);
        }
        sys::kill_all(libc::SIGTERM);
        // Interactive shells take no notice of SIGTERM, and who is stopped hears nothing before it goes on.
        for session in self
            .sessions
            .values()
            .filter(|session| session.holds_terminal())
        {
            sys::kill_group(session.pid().as_raw_pid(), libc::SIGHUP);
        }
        sys::kill_all(libc::SIGCONT);
        for connection in self.connections.values_mut() {
            connection.end(Some("the guest is shutting down".into()));
        }
        self.reap();
    }

    fn load_later(&mut self) {
        if self.later.is_some_and(|time| time <= Instant::now()) {
            self.later = None;
            self.modules.load_later();
        }
    }

    /// The next step of a shutdown, when it is time.
    fn stop_further(&mut self) {
        let Some(stopping) = &mut self.stopping else {
            return;
        };
        let now = Instant::now();
        let quiet = !self.has_children && self.sessions.is_empty();
        if quiet || (stopping.killed && now >= stopping.until) {
            let stream = stopping.stream;
            self.finish(stream);
        }
        if !stopping.killed && (!self.has_children || now >= stopping.until) {
            sys::kill_all(libc::SIGKILL);
            stopping.killed = true;
            stopping.until = now + KILL_PATIENCE;
        }
    }

    fn finish(&mut self, stream: u32) -> ! {
        let clean = self
            .guest
            .as_ref()
            .is_none_or(|guest| shutdown::flush_disks(&guest.disks));
        self.put_last(stream, serde_json::to_vec(&StopEvent::Stopped { clean }));
        if self.port.flush(FLUSH_PATIENCE) {
            // The last bytes are in the device's queue; a host that has read them hangs up or ends the machine itself.
            let mut port = [PollFd::from_borrowed_fd(self.port.fd(), PollFlags::empty())];
            let _ = poll(&mut port, Timespec::try_from(FAREWELL).ok().as_ref());
        }
        shutdown::end()
    }

    /// The host breaks the protocol: nothing that it says can be trusted to mean what it says.
    fn give_up(&mut self, why: &str) -> ! {
        log(&format!("error: {why}"));
        self.end_at_once()
    }

    fn lost(&mut self, why: &str) -> ! {
        log(&format!("error: lost the host: {why}"));
        self.end_at_once()
    }

    fn end_at_once(&mut self) -> ! {
        sys::kill_all(libc::SIGKILL);
        if let Some(guest) = &self.guest {
            shutdown::flush_disks(&guest.disks);
        }
        shutdown::end()
    }
}

/// How long processes have that are asked to end, if all of the shutdown has so long.
fn patience(timeout: Duration) -> Duration {
    let timeout = timeout.min(SHUTDOWN_MAX);
    timeout - FLUSH_RESERVE.min(timeout / 2)
}

fn unsupported(operation: &str) -> Refusal {
    let hello = Hello::of(concat!("msb-agent ", env!("CARGO_PKG_VERSION")), &[]);
    let message = hello
        .require(operation)
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    Refusal::new(FailureKind::UnsupportedOperation, message)
}

/// A request that is none of ours: another version's, or nonsense.
fn misunderstood(message: &[u8], error: &serde_json::Error) -> Refusal {
    let value: serde_json::Value = serde_json::from_slice(message).unwrap_or_default();
    match value.get("op").and_then(|op| op.as_str()) {
        Some(op) if !OPERATIONS.contains(&op) => unsupported(op),
        _ => Refusal::new(
            FailureKind::Other,
            format!("the request cannot be read: {error}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str) -> Refusal {
        misunderstood(
            json.as_bytes(),
            &serde_json::from_slice::<Request>(json.as_bytes()).unwrap_err(),
        )
    }

    #[test]
    fn an_operation_of_another_version_is_refused_by_name() {
        let refusal = refusal(r#"{"op":"teleport","to":"mars"}"#);
        assert_eq!(refusal.kind, FailureKind::UnsupportedOperation);
        assert!(
            refusal
                .message
                .ends_with("does not know the operation 'teleport'"),
            "{}",
            refusal.message
        );
    }

    #[test]
    fn there_is_time_to_flush_after_the_last_process() {
        let seconds = Duration::from_secs;
        assert_eq!(patience(seconds(10)), seconds(8));
        assert_eq!(patience(seconds(1)), Duration::from_millis(500));
        assert!(patience(Duration::from_millis(u64::MAX)) < SHUTDOWN_MAX);
    }

    #[test]
    fn a_broken_request_for_a_known_operation_says_what_is_wrong() {
        for json in [r#"{"op":"exec"}"#, "{", r#"{"op":5}"#] {
            assert_eq!(refusal(json).kind, FailureKind::Other, "{json}");
        }
    }
}
