//! From the clients to the agent: requests are looked into, everything else is renumbered and passed on.

use msb_wire::exec::{ExecEvent, FailureKind};
use msb_wire::frame::{self, Header, Kind};
use msb_wire::handshake::Hello;
use msb_wire::limits::CLIENT_STREAMS_MAX;
use msb_wire::sandbox::Request;

use super::{Client, ClientId, Notice, Owner, Relay};
use crate::supervisor::link::{Link, Received};

impl Relay {
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
    pub(super) fn client_frames(
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
            if let Some(towards) = client.attached.get(&header.stream).copied() {
                let payload = frame.payload().to_vec();
                let parts = (header.kind, header.channel, header.flags, payload);
                self.attached_frame((id, header.stream), towards, parts, agent)?;
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
            self.active = true;
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
            Kind::Open if client.greeted && !client.has_open(header.stream) => {
                match serde_json::from_slice(message) {
                    Ok(request) => self.opened(id, header.stream, request, agent, notices),
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

    /// A client's request: for the supervisor, for the agent, or not for clients.
    fn opened(
        &mut self,
        client: ClientId,
        stream: u32,
        request: Request,
        agent: &mut Link,
        notices: &mut Vec<Notice>,
    ) {
        match request {
            Request::Stop(stop) => notices.push(Notice::Stop {
                client,
                stream,
                timeout_ms: stop.timeout_ms,
            }),
            Request::Pause => notices.push(Notice::Pause {
                asker: (client, stream),
            }),
            Request::Resume => notices.push(Notice::Resume {
                asker: (client, stream),
            }),
            Request::Wait => notices.push(Notice::Wait { client, stream }),
            Request::Samples(samples) => notices.push(Notice::Watch {
                client,
                interval_ms: samples.interval_ms,
            }),
            Request::Signal(request) => match self.paused.clone() {
                Some(message) => self.refuse(client, stream, FailureKind::Paused, message),
                None => notices.push(Notice::Signal {
                    asker: (client, stream),
                    request,
                }),
            },
            Request::Attach(request) => {
                let asker = (client, stream);
                notices.push(Notice::Attach {
                    asker,
                    attached: self.attach_to_job(&request.job, asker, request.stdin),
                    job: request.job,
                });
            }
            Request::Network(request) => notices.push(Notice::Network {
                asker: (client, stream),
                request,
            }),
            request @ (Request::Connect(_)
            | Request::Exec(_)
            | Request::Files(_)
            | Request::KeyAgent(_)
            | Request::Ping
            | Request::Sftp(_)) => {
                self.take_request(client, stream, request, agent, notices);
            }
            request @ (Request::Boot(_)
            | Request::Clock(_)
            | Request::Init(_)
            | Request::Shutdown(_)) => {
                let message = format!("the operation '{}' is not for clients", request.operation());
                self.refuse(client, stream, FailureKind::UnsupportedOperation, message);
            }
        }
    }

    /// A request for the agent goes on, or waits until the guest is up.
    fn take_request(
        &mut self,
        id: ClientId,
        stream: u32,
        request: Request,
        agent: &mut Link,
        notices: &mut Vec<Notice>,
    ) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.streams.len() + client.waiting.len() >= CLIENT_STREAMS_MAX {
            let message = format!("{CLIENT_STREAMS_MAX} streams are open, and more are not served");
            self.refuse(id, stream, FailureKind::ResourceLimit, message);
        } else if let Some(message) = self.paused.clone() {
            self.refuse(id, stream, FailureKind::Paused, message);
        } else if self.open || client.early {
            self.forward(id, stream, request, agent, notices);
        } else {
            client.waiting.push((stream, request));
        }
    }

    pub(super) fn forward(
        &mut self,
        id: ClientId,
        stream: u32,
        request: Request,
        agent: &mut Link,
        notices: &mut Vec<Notice>,
    ) {
        // The guest's agent may be of another release: what it lacks is refused, and only that.
        let mut needs = request.needs_of_agent().into_iter();
        if let Some(error) = needs.find_map(|operation| self.agent.require(operation).err()) {
            let kind = FailureKind::UnsupportedOperation;
            return self.refuse(id, stream, kind, error.to_string());
        }
        let mut request = request;
        if let Request::Exec(exec) = &mut request
            && exec.job
        {
            let request = Box::new(std::mem::take(exec));
            let asker = (id, stream);
            return notices.push(Notice::Job { asker, request });
        }
        let (mut main, mut tty, mut session) = (false, false, None);
        if let Request::Exec(exec) = &mut request {
            // Only the client that started the sandbox can make a command its main one.
            exec.main &= self.attached == Some(id);
            (main, tty) = (exec.main, exec.tty.is_some());
            session = (exec.log && !main).then(session_id);
        }
        let Ok(message) = serde_json::to_vec(&request) else {
            return;
        };
        self.active = true;
        let towards = self.route(Owner::Client(Some((id, stream))), main);
        if let Some(route) = self.routes.get_mut(&towards) {
            (route.tty, route.session) = (tty, session);
        }
        if let Some(client) = self.clients.get_mut(&id) {
            client.streams.insert(stream, towards);
        }
        frame::put_message(agent.queue(), towards, Kind::Open, 0, &message);
    }

    pub(crate) fn refuse(&mut self, id: ClientId, stream: u32, kind: FailureKind, message: String) {
        self.answer(id, stream, &ExecEvent::Failed { kind, message });
    }

    /// Answers a client's request to the supervisor.
    pub(crate) fn answer(&mut self, id: ClientId, stream: u32, event: &impl serde::Serialize) {
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

    pub(super) fn remove_client(
        &mut self,
        id: ClientId,
        agent: &mut Link,
        notices: &mut Vec<Notice>,
    ) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        for (number, towards) in client.attached {
            self.release_input((id, number), towards);
        }
        for stream in client.streams.into_values() {
            if let Some(route) = self.routes.get_mut(&stream) {
                route.owner = Owner::Client(None);
                frame::put_frame(agent.queue(), stream, Kind::Close, 0, 0, &[]);
            }
        }
        notices.push(Notice::Gone(id));
    }
}

impl Client {
    /// Whether it uses this number.
    fn has_open(&self, stream: u32) -> bool {
        self.streams.contains_key(&stream) || self.attached.contains_key(&stream)
    }
}

/// A name for a session that is logged. Should there be no random bytes, it is a poor one.
pub(crate) fn session_id() -> String {
    libmsb::state::write::random_hex()
        .map_or_else(|_| "session".to_owned(), |hex| hex[..8].to_owned())
}
