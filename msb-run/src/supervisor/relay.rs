//! The relay between the clients on the host and the agent in the guest.
//!
//! Every client numbers its streams as it likes; towards the agent each gets a number of its own. The relay rewrites the
//! headers and moves payloads unparsed; it looks only into requests (one of them may be for the supervisor) and
//! grants of credit. It keeps each stream's account, so what waits for a slow client is bounded by that
//! client's own windows, and an agent that sends more than it may is found out. A client that goes has its streams
//! closed.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::net::UnixStream;

use msb_wire::credit::ReceiveCredit;
use msb_wire::exec::{ExecEvent, FailureKind};
use msb_wire::frame::{self, Assembler, CHANNELS, Frame, Header, Kind};
use msb_wire::handshake::Hello;
use msb_wire::limits::{CLIENT_STREAMS_MAX, CLIENTS_MAX, WINDOW_BYTES};
use msb_wire::sandbox::{Request, StopEvent};

use super::link::{Link, Received};

/// What may wait for the agent before clients are not read any more, in bytes.
const AGENT_QUEUE_BYTES: usize = 512 * 1024;

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
    /// The main command of a sandbox that no client is attached to.
    Main,
    /// Shutting the guest down.
    Shutdown,
}

#[derive(Debug)]
struct Route {
    owner: Owner,
    main: bool,
    /// Bytes that the agent sent and that were not granted back, by channel.
    outstanding: [u32; CHANNELS],
    /// For streams of the supervisor: it uses up what comes at once.
    used: [ReceiveCredit; CHANNELS],
}

#[derive(Debug)]
struct Client {
    link: Link,
    assembler: Assembler,
    greeted: bool,
    /// Its numbers of open streams, and those towards the agent.
    streams: HashMap<u32, u32>,
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
    /// The main command printed something.
    MainOutput {
        /// Where.
        channel: u8,
        /// What.
        bytes: Vec<u8>,
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
    next_client: ClientId,
    next_stream: u32,
    agent_assembler: Assembler,
    /// The client whose main command makes the sandbox's life.
    attached: Option<ClientId>,
    log_main: bool,
    open: bool,
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
            next_client: 1,
            next_stream: 1,
            agent_assembler: Assembler::new(),
            attached: None,
            log_main,
            open: false,
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
            streams: HashMap::new(),
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

    /// The guest takes commands: what waited goes on.
    pub(crate) fn open(&mut self, agent: &mut Link, notices: &mut Vec<Notice>) {
        self.open = true;
        let clients: Vec<ClientId> = self.clients.keys().copied().collect();
        for id in clients {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            for (stream, request) in std::mem::take(&mut client.waiting) {
                self.forward(id, stream, request, agent);
            }
            // What came behind the request was read with it and has been waiting too.
            if self.client_frames(id, agent, notices).is_err() {
                self.remove_client(id, agent, notices);
            }
        }
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

    /// Reads from a client once and passes on what came.
    pub(crate) fn read_client(
        &mut self,
        id: ClientId,
        agent: &mut Link,
        notices: &mut Vec<Notice>,
    ) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let received = client.link.receive();
        if received == Received::Nothing {
            return;
        }
        if received == Received::Closed || self.client_frames(id, agent, notices).is_err() {
            self.remove_client(id, agent, notices);
        }
    }

    /// Handles the whole frames of a client. `Err`: it broke the protocol, or cannot be served.
    fn client_frames(
        &mut self,
        id: ClientId,
        agent: &mut Link,
        notices: &mut Vec<Notice>,
    ) -> Result<(), ()> {
        loop {
            let Some(client) = self.clients.get_mut(&id) else {
                return Ok(());
            };
            if !self.open && !client.waiting.is_empty() {
                return Ok(());
            }
            let Some(mut frame) = client.link.next_frame().map_err(drop)? else {
                return Ok(());
            };
            let header = frame.header;
            if header.kind.is_message() && header.kind != Kind::Control {
                let message = client
                    .assembler
                    .push(&header, frame.payload())
                    .map_err(drop)?;
                let Some(message) = message else { continue };
                self.client_message(id, &header, &message, agent, notices)?;
                continue;
            }
            // A frame of a stream that is over by now was on its way when the end was told.
            let Some(stream) = client.streams.get(&header.stream) else {
                continue;
            };
            let Some(route) = self.routes.get_mut(stream) else {
                continue;
            };
            if let Some(credit) = frame.credit() {
                let outstanding = &mut route.outstanding[usize::from(header.channel)];
                *outstanding = outstanding.checked_sub(credit).ok_or(())?;
            }
            agent.queue().extend_from_slice(frame.renumbered(*stream));
        }
    }

    fn client_message(
        &mut self,
        id: ClientId,
        header: &Header,
        message: &[u8],
        agent: &mut Link,
        notices: &mut Vec<Notice>,
    ) -> Result<(), ()> {
        let Some(client) = self.clients.get_mut(&id) else {
            return Ok(());
        };
        match header.kind {
            Kind::Hello if !client.greeted => {
                let hello: Hello = serde_json::from_slice(message).map_err(drop)?;
                client.greeted = true;
                client.link.queue().extend_from_slice(&self.hello);
                hello.agree().map(drop).map_err(drop)
            }
            Kind::Open if client.greeted && !client.streams.contains_key(&header.stream) => {
                let open = client.streams.len() + client.waiting.len();
                match serde_json::from_slice::<Request>(message) {
                    Ok(Request::Stop(stop)) => {
                        notices.push(Notice::Stop {
                            client: id,
                            stream: header.stream,
                            timeout_ms: stop.timeout_ms,
                        });
                    }
                    Ok(request @ Request::Exec(_)) if open < CLIENT_STREAMS_MAX => {
                        if self.open {
                            self.forward(id, header.stream, request, agent);
                        } else {
                            client.waiting.push((header.stream, request));
                        }
                    }
                    Ok(Request::Exec(_)) => {
                        let message = format!(
                            "{CLIENT_STREAMS_MAX} streams are open, and more are not served"
                        );
                        self.refuse(id, header.stream, FailureKind::ResourceLimit, message);
                    }
                    Ok(request) => {
                        let message =
                            format!("the operation '{}' is not for clients", request.operation());
                        self.refuse(
                            id,
                            header.stream,
                            FailureKind::UnsupportedOperation,
                            message,
                        );
                    }
                    Err(error) => {
                        let message =
                            format!("the supervisor does not understand the request: {error}");
                        self.refuse(
                            id,
                            header.stream,
                            FailureKind::UnsupportedOperation,
                            message,
                        );
                    }
                }
                Ok(())
            }
            _ => Err(()),
        }
    }

    fn forward(&mut self, id: ClientId, stream: u32, request: Request, agent: &mut Link) {
        let Request::Exec(mut exec) = request else {
            return;
        };
        // Only the client that started the sandbox can make a command its main one.
        exec.main &= self.attached == Some(id);
        let main = exec.main;
        let Ok(message) = serde_json::to_vec(&Request::Exec(exec)) else {
            return;
        };
        let towards = self.route(Owner::Client(Some((id, stream))), main);
        if let Some(client) = self.clients.get_mut(&id) {
            client.streams.insert(stream, towards);
        }
        frame::put_message(agent.queue(), towards, Kind::Open, 0, &message);
    }

    fn refuse(&mut self, id: ClientId, stream: u32, kind: FailureKind, message: String) {
        self.last_event(id, stream, &ExecEvent::Failed { kind, message });
    }

    /// Answers a client's request to stop.
    pub(crate) fn answer_stop(&mut self, id: ClientId, stream: u32, event: &StopEvent) {
        self.last_event(id, stream, event);
    }

    fn last_event(&mut self, id: ClientId, stream: u32, event: &impl serde::Serialize) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let Ok(message) = serde_json::to_vec(event) else {
            return;
        };
        frame::put_message(
            client.link.queue(),
            stream,
            Kind::Event,
            frame::flags::END,
            &message,
        );
    }

    /// Writes what waits for a client.
    pub(crate) fn write_client(
        &mut self,
        id: ClientId,
        agent: &mut Link,
        notices: &mut Vec<Notice>,
    ) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.link.flush().is_err() {
            self.remove_client(id, agent, notices);
        }
    }

    fn remove_client(&mut self, id: ClientId, agent: &mut Link, notices: &mut Vec<Notice>) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        for stream in client.streams.into_values() {
            if let Some(route) = self.routes.get_mut(&stream) {
                route.owner = Owner::Client(None);
                frame::put_frame(agent.queue(), stream, Kind::Close, 0, 0, &[]);
            }
        }
        notices.push(Notice::Gone(id));
    }

    /// Passes on a frame of the agent.
    pub(crate) fn agent_frame(
        &mut self,
        frame: Frame<'_>,
        out: &mut Vec<u8>,
        notices: &mut Vec<Notice>,
    ) -> Result<(), Violation> {
        let header = frame.header;
        let Some(route) = self.routes.get_mut(&header.stream) else {
            return Err(Violation(format!(
                "a frame of stream {}, which is not open",
                header.stream
            )));
        };
        match header.kind {
            Kind::Data => {
                book(route, &header)?;
                if route.main && self.log_main {
                    notices.push(Notice::MainOutput {
                        channel: header.channel,
                        bytes: frame.payload().to_vec(),
                    });
                }
            }
            Kind::Credit | Kind::Event => {}
            kind => {
                return Err(Violation(format!(
                    "a {kind:?} frame, which is not the agent's to send"
                )));
            }
        }
        match route.owner {
            Owner::Client(client) => self.pass_to_client(client, frame, notices),
            Owner::Supervisor(own) => self.pass_to_supervisor(own, frame, out, notices),
        }
    }

    fn pass_to_client(
        &mut self,
        client: Option<(ClientId, u32)>,
        mut frame: Frame<'_>,
        notices: &mut Vec<Notice>,
    ) -> Result<(), Violation> {
        let header = frame.header;
        let main = self
            .routes
            .get(&header.stream)
            .is_some_and(|route| route.main);
        if header.kind == Kind::Event && main {
            self.main_event(&header, frame.payload(), notices)?;
        }
        let last = header.kind == Kind::Event && header.ends();
        if let Some((id, stream)) = client
            && let Some(client) = self.clients.get_mut(&id)
        {
            client
                .link
                .queue()
                .extend_from_slice(frame.renumbered(stream));
            if last {
                client.streams.remove(&stream);
            }
        }
        if last {
            self.forget(header.stream);
        }
        Ok(())
    }

    fn pass_to_supervisor(
        &mut self,
        own: Own,
        frame: Frame<'_>,
        out: &mut Vec<u8>,
        notices: &mut Vec<Notice>,
    ) -> Result<(), Violation> {
        let header = frame.header;
        if header.kind == Kind::Data
            && let Some(route) = self.routes.get_mut(&header.stream)
        {
            let channel = usize::from(header.channel);
            if let Some(grant) = route.used[channel].used(header.length) {
                route.outstanding[channel] = route.outstanding[channel].saturating_sub(grant);
                frame::put_credit(out, header.stream, header.channel, grant);
            }
        }
        if header.kind == Kind::Event && own == Own::Main {
            self.main_event(&header, frame.payload(), notices)?;
        } else if header.kind == Kind::Event {
            let message = self
                .agent_assembler
                .push(&header, frame.payload())
                .map_err(|e| Violation(e.to_string()))?;
            notices.extend(message.map(|message| Notice::Event { own, message }));
        }
        if header.kind == Kind::Event && header.ends() {
            self.forget(header.stream);
        }
        Ok(())
    }

    fn main_event(
        &mut self,
        header: &Header,
        payload: &[u8],
        notices: &mut Vec<Notice>,
    ) -> Result<(), Violation> {
        let message = self
            .agent_assembler
            .push(header, payload)
            .map_err(|error| Violation(error.to_string()))?;
        let Some(message) = message.filter(|_| header.ends()) else {
            return Ok(());
        };
        let event = serde_json::from_slice(&message)
            .map_err(|error| Violation(format!("an event that cannot be understood: {error}")))?;
        notices.push(Notice::MainEnded(event));
        Ok(())
    }

    fn forget(&mut self, stream: u32) {
        self.routes.remove(&stream);
        self.agent_assembler.forget(stream);
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

/// Books data of the agent on the stream's account.
fn book(route: &mut Route, header: &Header) -> Result<(), Violation> {
    let outstanding = &mut route.outstanding[usize::from(header.channel)];
    *outstanding = outstanding.saturating_add(header.length as u32);
    if *outstanding > WINDOW_BYTES {
        return Err(Violation(format!(
            "more data on stream {} than there was credit for",
            header.stream
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb_wire::exec::ExecRequest;
    use msb_wire::frame::{Decoder, STDIN, STDOUT};
    use msb_wire::handshake::operation;
    use std::io::{Read, Write};

    struct Bench {
        relay: Relay,
        agent: Link,
        agent_end: UnixStream,
        notices: Vec<Notice>,
    }

    impl Bench {
        fn new() -> Bench {
            let (ours, agent_end) = UnixStream::pair().unwrap();
            agent_end.set_nonblocking(true).unwrap();
            let hello = Hello::of("supervisor", &[operation::EXEC, operation::STOP]);
            let mut relay = Relay::new(&hello, false).unwrap();
            let mut agent = Link::new(ours).unwrap();
            relay.open(&mut agent, &mut Vec::new());
            Bench {
                relay,
                agent,
                agent_end,
                notices: Vec::new(),
            }
        }

        fn client(&mut self) -> (ClientId, UnixStream) {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let id = self.relay.add_client(ours).unwrap();
            let mut out = Vec::new();
            let hello = serde_json::to_vec(&Hello::of("client", &[])).unwrap();
            frame::put_message(&mut out, 0, Kind::Hello, 0, &hello);
            (&theirs).write_all(&out).unwrap();
            self.relay
                .read_client(id, &mut self.agent, &mut self.notices);
            (id, theirs)
        }

        fn send(&mut self, id: ClientId, mut socket: &UnixStream, bytes: &[u8]) {
            socket.write_all(bytes).unwrap();
            self.relay
                .read_client(id, &mut self.agent, &mut self.notices);
        }

        fn open(&mut self, id: ClientId, socket: &UnixStream, stream: u32) {
            let request = Request::Exec(ExecRequest {
                argv: vec!["x".into()],
                ..ExecRequest::default()
            });
            let mut out = Vec::new();
            frame::put_message(
                &mut out,
                stream,
                Kind::Open,
                0,
                &serde_json::to_vec(&request).unwrap(),
            );
            self.send(id, socket, &out);
        }

        fn at_agent(&mut self) -> Vec<Header> {
            self.agent.flush().unwrap();
            headers(&self.agent_end)
        }

        fn agent_sends(&mut self, bytes: &[u8]) -> Result<(), Violation> {
            let mut decoder = Decoder::new();
            let mut source = bytes;
            decoder.fill(&mut source).unwrap();
            let mut out = Vec::new();
            while let Some(frame) = decoder.next_frame().unwrap() {
                self.relay.agent_frame(frame, &mut out, &mut self.notices)?;
            }
            Ok(())
        }

        fn at_client(&mut self, id: ClientId, socket: &UnixStream) -> Vec<Header> {
            self.relay
                .write_client(id, &mut self.agent, &mut self.notices);
            headers(socket)
        }
    }

    fn headers(mut socket: &UnixStream) -> Vec<Header> {
        socket.set_nonblocking(true).unwrap();
        let mut bytes = Vec::new();
        let _ = socket.read_to_end(&mut bytes);
        let (mut decoder, mut source, mut all) = (Decoder::new(), &bytes[..], Vec::new());
        while decoder.fill(&mut source).unwrap() > 0 {
            while let Some(frame) = decoder.next_frame().unwrap() {
                all.push(frame.header);
            }
        }
        all
    }

    #[test]
    fn streams_of_two_clients_with_the_same_number_stay_apart() {
        let mut bench = Bench::new();
        let (one, one_socket) = bench.client();
        let (two, two_socket) = bench.client();
        bench.open(one, &one_socket, 1);
        bench.open(two, &two_socket, 1);
        let opened: Vec<u32> = bench
            .at_agent()
            .iter()
            .map(|header| header.stream)
            .collect();
        assert_eq!(opened.len(), 2);
        assert_ne!(opened[0], opened[1]);
        let mut out = Vec::new();
        frame::put_data(&mut out, opened[1], STDOUT, b"for two");
        bench.agent_sends(&out).unwrap();
        let kinds = |headers: Vec<Header>| {
            headers
                .iter()
                .map(|h| (h.kind, h.stream))
                .collect::<Vec<_>>()
        };
        assert_eq!(kinds(bench.at_client(one, &one_socket)), [(Kind::Hello, 0)]);
        assert_eq!(
            kinds(bench.at_client(two, &two_socket)),
            [(Kind::Hello, 0), (Kind::Data, 1)]
        );
    }

    #[test]
    fn a_client_that_goes_has_its_streams_closed_and_what_still_comes_for_them_is_dropped() {
        let mut bench = Bench::new();
        let (id, socket) = bench.client();
        bench.open(id, &socket, 5);
        let stream = bench.at_agent()[0].stream;
        drop(socket);
        bench
            .relay
            .read_client(id, &mut bench.agent, &mut bench.notices);
        assert_eq!(bench.notices, [Notice::Gone(id)]);
        assert_eq!(
            bench
                .at_agent()
                .iter()
                .map(|h| (h.kind, h.stream))
                .collect::<Vec<_>>(),
            [(Kind::Close, stream)]
        );
        let mut out = Vec::new();
        frame::put_data(&mut out, stream, STDOUT, b"late");
        frame::put_message(&mut out, stream, Kind::Event, frame::flags::END, b"{}");
        bench.agent_sends(&out).unwrap();
        assert!(bench.agent_sends(&out).is_err(), "the stream is over");
    }

    #[test]
    fn an_agent_that_sends_without_credit_is_found_out() {
        let mut bench = Bench::new();
        let (id, socket) = bench.client();
        bench.open(id, &socket, 1);
        let stream = bench.at_agent()[0].stream;
        let part = vec![0; 60 * 1024];
        let mut out = Vec::new();
        frame::put_data(&mut out, stream, STDOUT, &part);
        for _ in 0..WINDOW_BYTES as usize / part.len() {
            bench.agent_sends(&out).unwrap();
        }
        assert!(bench.agent_sends(&out).is_err());
    }

    #[test]
    fn a_client_that_grants_what_it_never_got_is_cut_off() {
        let mut bench = Bench::new();
        let (id, socket) = bench.client();
        bench.open(id, &socket, 1);
        let mut out = Vec::new();
        frame::put_credit(&mut out, 1, STDIN, 1);
        bench.send(id, &socket, &out);
        assert_eq!(bench.notices, [Notice::Gone(id)]);
    }

    #[test]
    fn a_request_to_stop_is_for_the_supervisor_and_others_are_not_for_clients() {
        let mut bench = Bench::new();
        let (id, socket) = bench.client();
        let mut out = Vec::new();
        frame::put_message(
            &mut out,
            1,
            Kind::Open,
            0,
            br#"{"op":"stop","timeout_ms":5}"#,
        );
        frame::put_message(&mut out, 2, Kind::Open, 0, br#"{"op":"shutdown"}"#);
        frame::put_message(&mut out, 3, Kind::Open, 0, br#"{"op":"teleport"}"#);
        bench.send(id, &socket, &out);
        assert_eq!(
            bench.notices,
            [Notice::Stop {
                client: id,
                stream: 1,
                timeout_ms: 5
            }]
        );
        let ended: Vec<u32> = bench
            .at_client(id, &socket)
            .iter()
            .filter(|h| h.kind == Kind::Event && h.ends())
            .map(|h| h.stream)
            .collect();
        assert_eq!(ended, [2, 3]);
        assert!(bench.at_agent().is_empty());
    }

    #[test]
    fn what_a_client_sends_behind_its_request_is_not_lost_while_the_guest_boots() {
        let mut bench = Bench::new();
        bench.relay.open = false;
        let (id, socket) = bench.client();
        let request = Request::Exec(ExecRequest {
            argv: vec!["cat".into()],
            ..ExecRequest::default()
        });
        let mut out = Vec::new();
        let message = serde_json::to_vec(&request).unwrap();
        frame::put_message(&mut out, 1, Kind::Open, 0, &message);
        frame::put_frame(&mut out, 1, Kind::Data, STDIN, frame::flags::END, b"x");
        bench.send(id, &socket, &out);
        assert!(bench.at_agent().is_empty());
        bench.relay.open(&mut bench.agent, &mut bench.notices);
        let kinds: Vec<Kind> = bench.at_agent().iter().map(|header| header.kind).collect();
        assert_eq!(kinds, [Kind::Open, Kind::Data]);
    }

    #[test]
    fn a_client_that_says_no_hello_or_nonsense_is_cut_off() {
        let mut bench = Bench::new();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let id = bench.relay.add_client(ours).unwrap();
        bench.send(id, &theirs, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(bench.notices, [Notice::Gone(id)]);
    }
}
