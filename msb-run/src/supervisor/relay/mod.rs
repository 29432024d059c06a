//! The relay multiplexes the clients' connections on the host onto the one connection to the
//! guest's agent.
//!
//! Each client chooses its own stream numbers, and each stream gets another number on the agent's
//! connection. The relay rewrites frame headers and moves payloads unparsed; it parses only
//! requests, some of which are for the supervisor, and credit. It keeps the flow-control account of
//! each stream. The output queued for a slow client is therefore bounded by that client's own
//! windows, and an agent that exceeds its credit is detected. The streams of a client that
//! disconnects are closed.

/// Frames from the agent to the clients.
mod from_agent;
/// Frames from the clients to the agent.
mod from_clients;
/// Commands that run without a client.
mod jobs;
/// Streams of commands in saved memory.
mod saved;
/// The test harness, the tests, and the fuzz target for the agent's frames.
#[cfg(any(test, fuzzing))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
pub(crate) mod tests;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::net::UnixStream;

use msb_wire::credit::ReceiveCredit;
use msb_wire::exec::{ExecEvent, ExecRequest};
use msb_wire::frame::{self, Assembler, CHANNELS, FrameKind};
use msb_wire::handshake::Hello;
use msb_wire::job::SignalRequest;
use msb_wire::limits::{CLIENT_STREAMS_MAX, CLIENTS_MAX, WINDOW_BYTES};
use msb_wire::network::NetworkRequest;
use msb_wire::sandbox::Request;

pub(crate) use from_clients::session_id;
pub(crate) use jobs::ClientStream;
use jobs::TerminalCommand;
pub(crate) use saved::OpenCommand;

use super::frame_socket::FrameSocket;

/// Size of the agent's queue, in bytes, at which clients are not read any more (back-pressure).
const AGENT_QUEUE_BYTES: usize = 512 * 1024;

/// Maximum size of a client's queue, in bytes: all its windows, and as much again for messages,
/// which have no window. Only an agent that floods a client which does not read exceeds it.
const CLIENT_QUEUE_BYTES_MAX: usize = 2 * CLIENT_STREAMS_MAX * CHANNELS * WINDOW_BYTES as usize;

/// Number of a client.
pub(crate) type ClientId = u32;

/// The owner of a stream on the agent's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamOwner {
    /// A client and its own number of the stream; `None` when the client has disconnected.
    Client(Option<(ClientId, u32)>),
    /// The supervisor.
    Supervisor(InternalStream),
}

/// Streams of the supervisor itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InternalStream {
    /// Set-up of the guest.
    Boot,
    /// Start of the image's init.
    Init,
    /// The main command of a sandbox without an attached client.
    Main,
    /// Setting the guest's clock.
    Clock,
    /// Samples of the guest.
    Samples,
    /// Shutdown of the guest.
    Shutdown,
    /// Ping of the agent.
    Ping,
    /// Quiescence of the agent, before its memory is saved.
    Quiesce,
    /// Wake of the agent, after that.
    Wake,
    /// A job, by its number.
    Job(u32),
}

#[derive(Debug)]
struct StreamRoute {
    owner: StreamOwner,
    main: bool,
    /// The output is one stream, that of a terminal.
    tty: bool,
    /// ID under which the output is logged; none for the main command and for commands that are not
    /// logged.
    session: Option<String>,
    /// The command, if a client may detach from it.
    command: Option<TerminalCommand>,
    /// It is a command of a client or the supervisor, not another call.
    is_command: bool,
    /// The sandbox does not end with its main command before this command.
    holds: bool,
    /// Bytes that the agent sent and that were not granted again, by channel.
    outstanding: [u32; CHANNELS],
    /// Credit of the supervisor's own streams, which consume all data at once.
    consumed: [ReceiveCredit; CHANNELS],
}

impl StreamRoute {
    fn is_job(&self) -> bool {
        matches!(self.owner, StreamOwner::Supervisor(InternalStream::Job(_)))
    }
}

#[derive(Debug)]
struct RelayClient {
    link: FrameSocket,
    assembler: Assembler,
    hello_received: bool,
    /// The client is served before the guest is open to others.
    is_internal: bool,
    /// The connection is closed when its queue is empty.
    is_closing: bool,
    /// Stream numbers of the client, with those on the agent's connection.
    streams: HashMap<u32, u32>,
    /// Stream numbers of the client that are attached to jobs, with those of the jobs on the
    /// agent's connection.
    attached: HashMap<u32, u32>,
    /// Requests of the client from before the guest was up.
    waiting: Vec<(u32, Request)>,
}

/// An event of the relay for the supervisor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RelayNotice {
    /// The agent sent a message on one of the supervisor's streams.
    Event {
        /// The stream.
        internal: InternalStream,
        /// The message, in JSON.
        message: Vec<u8>,
    },
    /// A logged command wrote output.
    Output {
        /// ID of the session; none for the main command.
        session: Option<String>,
        /// The command has a terminal.
        tty: bool,
        /// Channel of the output.
        channel: u8,
        /// The output.
        bytes: Vec<u8>,
    },
    /// A logged command other than the main one has ended.
    SessionEnded {
        /// ID of the session.
        session: String,
    },
    /// The main command ended, or could not be started.
    MainEnded(ExecEvent),
    /// A client requests a stop of the sandbox.
    Stop {
        /// The client.
        client: ClientId,
        /// The client's stream, on which the answer goes.
        stream: u32,
        /// Timeout of the guest's shutdown.
        timeout_ms: u64,
    },
    /// A client requests that the sandbox stops when its commands have ended.
    Drain {
        /// The client's stream, on which the answer goes.
        requester: ClientStream,
    },
    /// A command that holds the sandbox has ended.
    HoldEnded(ClientId),
    /// A client requests a pause.
    Pause {
        /// The client's stream, on which the answer goes.
        requester: ClientStream,
    },
    /// A client requests a resume.
    Resume {
        /// The client's stream, on which the answer goes.
        requester: ClientStream,
    },
    /// A client requests that overwritten blocks of the upper disk are kept.
    StartBackup {
        /// The client's stream, on which the answer goes.
        requester: ClientStream,
    },
    /// A client requests the end of that.
    EndBackup {
        /// The client's stream, on which the answer goes.
        requester: ClientStream,
    },
    /// A client requests that the memory is saved.
    SaveMemory {
        /// The client's stream, on which the answer goes.
        requester: ClientStream,
    },
    /// A client requests the end of that.
    EndSave {
        /// The client's stream, on which the answer goes.
        requester: ClientStream,
    },
    /// A client waits for the end of the sandbox.
    Wait {
        /// The client.
        client: ClientId,
        /// The client's stream, on which the answer goes.
        stream: u32,
    },
    /// A client requests samples at an interval while it is connected.
    Watch {
        /// The client.
        client: ClientId,
        /// Time between two samples.
        interval_ms: u64,
    },
    /// A client requests a job.
    Job {
        /// The client's stream, on which the answer goes.
        requester: ClientStream,
        /// The command.
        request: Box<ExecRequest>,
    },
    /// A client requests a change of the network.
    Network {
        /// The client's stream, on which the answer goes.
        requester: ClientStream,
        /// The network.
        request: NetworkRequest,
    },
    /// A client sends a signal to a job.
    Signal {
        /// The client's stream, on which the answer goes.
        requester: ClientStream,
        /// The signal and the job.
        request: SignalRequest,
    },
    /// A client detaches from its command on a terminal.
    Detach {
        /// The client's stream, on which the answer goes.
        requester: ClientStream,
        /// Time after which the command is killed.
        timeout_ms: Option<u64>,
    },
    /// A client attaches to a job until the job ends.
    Attach {
        /// The client's stream.
        requester: ClientStream,
        /// ID of the job.
        job: String,
        /// The client was attached if the job exists; otherwise another client sends the job's
        /// input.
        attached: bool,
    },
    /// A client has disconnected.
    Gone(ClientId),
}

/// A violation of the protocol by the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProtocolViolation(pub(crate) String);

/// The relay between clients and agent.
#[derive(Debug)]
pub(crate) struct Relay {
    hello: Vec<u8>,
    clients: BTreeMap<ClientId, RelayClient>,
    routes: HashMap<u32, StreamRoute>,
    /// Pending input of jobs, by their streams.
    inputs: HashMap<u32, jobs::JobInput>,
    next_client: ClientId,
    next_stream: u32,
    agent_assembler: Assembler,
    /// The attached client, with whose main command the sandbox ends.
    attached: Option<ClientId>,
    log_main: bool,
    open: bool,
    /// New commands are refused: the sandbox stops, or is about to.
    closed: bool,
    /// Reason for refusing requests for the agent while the guest is paused.
    paused: Option<String>,
    /// The agent's hello: only operations that it supports are forwarded.
    agent: Hello,
    /// Traffic has passed since [`Relay::is_in_use`] was last called.
    active: bool,
}

impl Relay {
    /// Creates a relay that sends `hello` to its clients. Requests wait until [`Relay::open`].
    pub(crate) fn new(hello: &Hello, log_main: bool) -> serde_json::Result<Relay> {
        let mut bytes = Vec::new();
        frame::put_message(
            &mut bytes,
            frame::CONNECTION,
            FrameKind::Hello,
            0,
            &serde_json::to_vec(hello)?,
        );
        Ok(Relay {
            hello: bytes,
            clients: BTreeMap::new(),
            routes: HashMap::new(),
            inputs: HashMap::new(),
            next_client: 1,
            next_stream: 1,
            agent_assembler: Assembler::new(),
            attached: None,
            log_main,
            open: false,
            closed: false,
            paused: None,
            agent: Hello::of("msb-agent", &[]),
            active: false,
        })
    }

    /// Adds a client. Returns `None`, and closes the socket, beyond the limit of clients.
    pub(crate) fn add_client(&mut self, socket: UnixStream) -> Option<ClientId> {
        if self.clients.len() >= CLIENTS_MAX {
            return None;
        }
        let link = FrameSocket::new(socket).ok()?;
        let id = self.next_client;
        self.next_client += 1;
        let client = RelayClient {
            link,
            assembler: Assembler::new(),
            hello_received: false,
            is_internal: false,
            is_closing: false,
            streams: HashMap::new(),
            attached: HashMap::new(),
            waiting: Vec::new(),
        };
        self.clients.insert(id, client);
        Some(id)
    }

    /// Adds the client to which the sandbox is attached.
    pub(crate) fn attach(&mut self, socket: UnixStream) -> Option<ClientId> {
        self.attached = self.add_client(socket);
        self.attached
    }

    /// Adds a client that is this process itself. It is served before the guest is open to others.
    pub(crate) fn add_early_client(&mut self, socket: UnixStream) {
        let client = self.add_client(socket);
        if let Some(client) = client.and_then(|id| self.clients.get_mut(&id)) {
            client.is_internal = true;
        }
    }

    /// Sets the agent's hello.
    pub(crate) fn set_peer(&mut self, agent: Hello) {
        self.agent = agent;
    }

    /// Returns the agent's hello.
    pub(crate) fn peer(&self) -> &Hello {
        &self.agent
    }

    /// Returns whether the sandbox is in use: a client has an open stream, a job runs, or traffic
    /// has passed since the last call.
    pub(crate) fn is_in_use(&mut self) -> bool {
        let called = self.clients.values().any(|client| !client.streams.is_empty())
            || self.routes.values().any(StreamRoute::is_job);
        std::mem::take(&mut self.active) || called
    }

    /// Opens the guest to clients and forwards the waiting requests.
    pub(crate) fn open(&mut self, agent: &mut FrameSocket, notices: &mut Vec<RelayNotice>) {
        self.open = true;
        let clients: Vec<ClientId> = self.clients.keys().copied().collect();
        for id in clients {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            for (stream, request) in std::mem::take(&mut client.waiting) {
                self.forward(id, stream, request, agent, notices);
            }
            // Frames after the request were read with it and have been waiting too.
            if self.client_frames(id, agent, notices).is_err() {
                self.remove_client(id, agent, notices);
            }
        }
    }

    /// Refuses new commands from now on.
    pub(crate) fn close_to_commands(&mut self) {
        self.closed = true;
    }

    /// Returns whether a command runs, of a client, a job or the main one.
    pub(crate) fn has_commands(&self) -> bool {
        let waits = |client: &RelayClient| {
            client.waiting.iter().any(|(_, request)| matches!(request, Request::Exec(_)))
        };
        self.routes.values().any(|route| route.is_command) || self.clients.values().any(waits)
    }

    /// Returns whether a command runs that holds the sandbox.
    pub(crate) fn is_held(&self) -> bool {
        self.routes.values().any(|route| route.holds)
    }

    /// Closes the connection of a client when its queue is empty.
    pub(crate) fn finish_client(
        &mut self,
        id: ClientId,
        agent: &mut FrameSocket,
        notices: &mut Vec<RelayNotice>,
    ) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.is_closing = true;
            self.write_client(id, agent, notices);
        }
    }

    /// Refuses requests for the agent with this message; `None` forwards them again.
    pub(crate) fn pause(&mut self, message: Option<String>) {
        self.paused = message;
    }

    /// Returns whether a client is read although the agent's queue is full. While the guest is
    /// paused, a client without a stream sends nothing to the agent, and it may be the one that
    /// requests the resume.
    pub(crate) fn may_resume(&self, id: ClientId) -> bool {
        let is_idle =
            |client: &RelayClient| client.streams.is_empty() && client.attached.is_empty();
        self.paused.is_some() && self.clients.get(&id).is_some_and(is_idle)
    }

    /// Opens an internal stream with a request.
    pub(crate) fn request(
        &mut self,
        internal: InternalStream,
        request: &Request,
        agent: &mut FrameSocket,
    ) -> serde_json::Result<()> {
        let message = serde_json::to_vec(request)?;
        let stream =
            self.route(StreamOwner::Supervisor(internal), internal == InternalStream::Main);
        frame::put_message(agent.queue(), stream, FrameKind::Open, 0, &message);
        Ok(())
    }

    fn route(&mut self, owner: StreamOwner, main: bool) -> u32 {
        while self.next_stream == frame::CONNECTION || self.routes.contains_key(&self.next_stream) {
            self.next_stream = self.next_stream.wrapping_add(1);
        }
        let stream = self.next_stream;
        self.next_stream = self.next_stream.wrapping_add(1);
        self.routes.insert(
            stream,
            StreamRoute {
                owner,
                main,
                tty: false,
                session: None,
                command: None,
                is_command: main,
                holds: false,
                outstanding: [0; CHANNELS],
                consumed: Default::default(),
            },
        );
        stream
    }

    /// Returns whether clients are read: not while the agent's queue is full.
    pub(crate) fn takes_more(&self, agent: &FrameSocket) -> bool {
        agent.queued() < AGENT_QUEUE_BYTES
    }

    /// Returns the clients with their sockets and whether they are read.
    pub(crate) fn links(&self) -> impl Iterator<Item = (ClientId, &FrameSocket, bool)> {
        self.clients
            .iter()
            .map(|(id, client)| (*id, &client.link, self.open || client.waiting.is_empty()))
    }

    /// Returns whether a client's queue is empty.
    pub(crate) fn is_flushed(&self, id: ClientId) -> bool {
        self.clients.get(&id).is_none_or(|client| client.link.queued() == 0)
    }

    /// Returns the clients whose queue is not empty.
    pub(crate) fn unflushed(&self) -> Vec<ClientId> {
        self.clients.keys().copied().filter(|id| !self.is_flushed(*id)).collect()
    }
}
