//! The relay between the clients on the host and the agent in the guest.
//!
//! Every client numbers its streams as it likes; towards the agent each gets a number of its own. The relay rewrites the
//! headers and moves payloads unparsed; it looks only into requests (one of them may be for the supervisor) and
//! grants of credit. It keeps each stream's account, so what waits for a slow client is bounded by that
//! client's own windows, and an agent that sends more than it may is found out. A client that goes has its streams
//! closed.

/// From the agent to the clients.
mod downward;
/// Commands that go on without a client.
mod jobs;
/// The bench, and on it the tests and the door for what an agent sends.
#[cfg(any(test, fuzzing))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
pub(crate) mod tests;
/// From the clients to the agent.
mod upward;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::net::UnixStream;

use msb_wire::credit::ReceiveCredit;
use msb_wire::exec::{ExecEvent, ExecRequest};
use msb_wire::frame::{self, Assembler, CHANNELS, Kind};
use msb_wire::handshake::Hello;
use msb_wire::job::SignalRequest;
use msb_wire::limits::{CLIENT_STREAMS_MAX, CLIENTS_MAX, WINDOW_BYTES};
use msb_wire::network::NetworkRequest;
use msb_wire::sandbox::Request;

pub(crate) use jobs::ClientStream;
pub(crate) use upward::session_id;

use super::link::Link;

/// What may wait for the agent before clients are not read any more, in bytes.
const AGENT_QUEUE_BYTES: usize = 512 * 1024;

/// What may wait for a client, in bytes: all its windows, and as much again for messages, which have none. Beyond it an
/// agent floods a client that does not read.
const CLIENT_QUEUE_BYTES_MAX: usize = 2 * CLIENT_STREAMS_MAX * CHANNELS * WINDOW_BYTES as usize;

/// Number of a client.
pub(crate) type ClientId = u32;

/// A stream towards the agent: whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// A client's, under its own number. `None` when the client has gone.
    Client(Option<(ClientId, u32)>),
    /// The supervisor's own.
    Supervisor(Own),
}

/// Streams of the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// Setting the guest up.
    Boot,
    /// Handing over to the image's init.
    Init,
    /// The main command of a sandbox that no client is attached to.
    Main,
    /// Telling the guest the time.
    Clock,
    /// Hearing what the guest costs.
    Samples,
    /// Shutting the guest down.
    Shutdown,
    /// Asking whether the agent is there.
    Ping,
    /// A command that goes on without a client, by its number.
    Job(u32),
}

#[derive(Debug)]
struct Route {
    owner: Owner,
    main: bool,
    /// Whether its output is one stream, that of a terminal.
    tty: bool,
    /// The id under which its output is logged, if it is and is not the main command.
    session: Option<String>,
    /// Bytes that the agent sent and that were not granted back, by channel.
    outstanding: [u32; CHANNELS],
    /// For streams of the supervisor: it uses up what comes at once.
    used: [ReceiveCredit; CHANNELS],
}

impl Route {
    fn is_job(&self) -> bool {
        matches!(self.owner, Owner::Supervisor(Own::Job(_)))
    }
}

#[derive(Debug)]
struct Client {
    link: Link,
    assembler: Assembler,
    greeted: bool,
    /// It is served before the guest is open to others.
    early: bool,
    /// Its numbers of open streams, and those towards the agent.
    streams: HashMap<u32, u32>,
    /// Its numbers of streams that are attached to jobs, and those of the jobs towards the agent.
    attached: HashMap<u32, u32>,
    /// Its requests from before the guest was up.
    waiting: Vec<(u32, Request)>,
}

/// What the relay has for the supervisor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The agent said something on one of the supervisor's streams.
    Event {
        /// Which.
        own: Own,
        /// The message, in JSON.
        message: Vec<u8>,
    },
    /// A command that is logged printed something.
    Output {
        /// Its id; none for the main command.
        session: Option<String>,
        /// Whether it has a terminal.
        tty: bool,
        /// Where.
        channel: u8,
        /// What.
        bytes: Vec<u8>,
    },
    /// A command that is logged, other than the main one, has ended.
    SessionEnded {
        /// Its id.
        session: String,
    },
    /// The main command ended, or was never started.
    MainEnded(ExecEvent),
    /// A client wants the sandbox to stop.
    Stop {
        /// The client.
        client: ClientId,
        /// Its stream, on which the answer goes.
        stream: u32,
        /// Time for the guest to shut down.
        timeout_ms: u64,
    },
    /// A client wants the guest's processors to stop.
    Pause {
        /// The client's stream, on which the answer goes.
        asker: ClientStream,
    },
    /// A client wants the guest's processors to run again.
    Resume {
        /// The client's stream, on which the answer goes.
        asker: ClientStream,
    },
    /// A client wants to know how the sandbox ends.
    Wait {
        /// The client.
        client: ClientId,
        /// Its stream, on which the answer goes.
        stream: u32,
    },
    /// A client wants samples at an interval, as long as it is there.
    Watch {
        /// The client.
        client: ClientId,
        /// Time between two samples.
        interval_ms: u64,
    },
    /// A client wants a command that goes on without it.
    Job {
        /// The client's stream, on which the answer goes.
        asker: ClientStream,
        /// The command.
        request: Box<ExecRequest>,
    },
    /// A client wants another network.
    Network {
        /// The client's stream, on which the answer goes.
        asker: ClientStream,
        /// The network.
        request: NetworkRequest,
    },
    /// A client sends a signal to a job.
    Signal {
        /// The client's stream, on which the answer goes.
        asker: ClientStream,
        /// What is sent, and to which.
        request: SignalRequest,
    },
    /// A client wants to be with a job until it ends.
    Attach {
        /// The client's stream.
        asker: ClientStream,
        /// To which: its id.
        job: String,
        /// Whether it is, if there is such a job; else another client sends input.
        attached: bool,
    },
    /// A client has gone.
    Gone(ClientId),
}

/// The agent broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) String);

/// The relay.
#[derive(Debug)]
pub(crate) struct Relay {
    hello: Vec<u8>,
    clients: BTreeMap<ClientId, Client>,
    routes: HashMap<u32, Route>,
    /// What is on its way to jobs, by their streams.
    inputs: HashMap<u32, jobs::Input>,
    next_client: ClientId,
    next_stream: u32,
    agent_assembler: Assembler,
    /// The client whose main command makes the sandbox's life.
    attached: Option<ClientId>,
    log_main: bool,
    open: bool,
    /// Why requests for the agent are refused, while the guest is paused.
    paused: Option<String>,
    /// What the agent said of itself: nothing that it does not serve is asked of it.
    agent: Hello,
    /// Whether anything has passed since that was last asked.
    active: bool,
}

impl Relay {
    /// A relay that says `hello` to its clients. Requests wait until it is opened.
    pub(crate) fn new(hello: &Hello, log_main: bool) -> serde_json::Result<Relay> {
        let mut bytes = Vec::new();
        frame::put_message(
            &mut bytes,
            frame::CONNECTION,
            Kind::Hello,
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
            paused: None,
            agent: Hello::of("msb-agent", &[]),
            active: false,
        })
    }

    /// Takes a client. One that is beyond the limit is closed at once.
    pub(crate) fn add_client(&mut self, socket: UnixStream) -> Option<ClientId> {
        if self.clients.len() >= CLIENTS_MAX {
            return None;
        }
        let link = Link::new(socket).ok()?;
        let id = self.next_client;
        self.next_client += 1;
        let client = Client {
            link,
            assembler: Assembler::new(),
            greeted: false,
            early: false,
            streams: HashMap::new(),
            attached: HashMap::new(),
            waiting: Vec::new(),
        };
        self.clients.insert(id, client);
        Some(id)
    }

    /// Takes the client that the sandbox is attached to.
    pub(crate) fn attach(&mut self, socket: UnixStream) -> Option<ClientId> {
        self.attached = self.add_client(socket);
        self.attached
    }

    /// Takes a client that is this process itself, and is served before the guest is open to others.
    pub(crate) fn add_early_client(&mut self, socket: UnixStream) {
        let client = self.add_client(socket);
        if let Some(client) = client.and_then(|id| self.clients.get_mut(&id)) {
            client.early = true;
        }
    }

    /// The agent has introduced itself.
    pub(crate) fn meet(&mut self, agent: Hello) {
        self.agent = agent;
    }

    /// Whether the sandbox is in use: a call of a client is open, a job runs, or something has passed since this was last asked.
    pub(crate) fn is_in_use(&mut self) -> bool {
        let called = self
            .clients
            .values()
            .any(|client| !client.streams.is_empty())
            || self.routes.values().any(Route::is_job);
        std::mem::take(&mut self.active) || called
    }

    /// The guest takes commands: what waited goes on.
    pub(crate) fn open(&mut self, agent: &mut Link, notices: &mut Vec<Notice>) {
        self.open = true;
        let clients: Vec<ClientId> = self.clients.keys().copied().collect();
        for id in clients {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            for (stream, request) in std::mem::take(&mut client.waiting) {
                self.forward(id, stream, request, agent, notices);
            }
            // What came behind the request was read with it and has been waiting too.
            if self.client_frames(id, agent, notices).is_err() {
                self.remove_client(id, agent, notices);
            }
        }
    }

    /// Refuses requests for the agent with a message, or passes them on again.
    pub(crate) fn pause(&mut self, message: Option<String>) {
        self.paused = message;
    }

    /// Returns whether a client is to be read although much waits for the agent. While the guest is paused, nothing of a
    /// client without a call goes to the agent, and it may be the one that asks for the guest to go on.
    pub(crate) fn may_resume(&self, id: ClientId) -> bool {
        let is_idle = |client: &Client| client.streams.is_empty() && client.attached.is_empty();
        self.paused.is_some() && self.clients.get(&id).is_some_and(is_idle)
    }

    /// Opens a stream of the supervisor's own.
    pub(crate) fn request(
        &mut self,
        own: Own,
        request: &Request,
        agent: &mut Link,
    ) -> serde_json::Result<()> {
        let message = serde_json::to_vec(request)?;
        let stream = self.route(Owner::Supervisor(own), own == Own::Main);
        frame::put_message(agent.queue(), stream, Kind::Open, 0, &message);
        Ok(())
    }

    fn route(&mut self, owner: Owner, main: bool) -> u32 {
        while self.next_stream == frame::CONNECTION || self.routes.contains_key(&self.next_stream) {
            self.next_stream = self.next_stream.wrapping_add(1);
        }
        let stream = self.next_stream;
        self.next_stream = self.next_stream.wrapping_add(1);
        self.routes.insert(
            stream,
            Route {
                owner,
                main,
                tty: false,
                session: None,
                outstanding: [0; CHANNELS],
                used: Default::default(),
            },
        );
        stream
    }

    /// Whether bytes of clients may be taken: not while too much waits for the agent.
    pub(crate) fn takes_more(&self, agent: &Link) -> bool {
        agent.queued() < AGENT_QUEUE_BYTES
    }

    /// The clients, with their links and whether they are to be read.
    pub(crate) fn links(&self) -> impl Iterator<Item = (ClientId, &Link, bool)> {
        self.clients
            .iter()
            .map(|(id, client)| (*id, &client.link, self.open || client.waiting.is_empty()))
    }

    /// Whether anything still waits for a client.
    pub(crate) fn is_flushed(&self, id: ClientId) -> bool {
        self.clients
            .get(&id)
            .is_none_or(|client| client.link.queued() == 0)
    }

    /// Numbers of the clients for whom something waits.
    pub(crate) fn unflushed(&self) -> Vec<ClientId> {
        self.clients
            .keys()
            .copied()
            .filter(|id| !self.is_flushed(*id))
            .collect()
    }
}
