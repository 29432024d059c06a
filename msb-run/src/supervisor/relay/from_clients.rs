//! Frames from the clients to the agent. Requests are parsed; all other frames are renumbered and
//! passed on.

use msb_wire::exec::{ExecEvent, FailureKind};
use msb_wire::frame::{self, Frame, FrameHeader, FrameKind, STDIN};
use msb_wire::handshake::Hello;
use msb_wire::job::DetachControl;
use msb_wire::limits::CLIENT_STREAMS_MAX;
use msb_wire::sandbox::Request;

use super::jobs::TerminalCommand;
use super::{ClientId, Relay, RelayClient, RelayNotice, StreamOwner};
use crate::supervisor::frame_socket::{FrameSocket, ReadOutcome};

impl Relay {
    /// Reads once from a client and passes its frames on.
    pub(crate) fn read_client(
        &mut self,
        id: ClientId,
        agent: &mut FrameSocket,
        notices: &mut Vec<RelayNotice>,
    ) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let received = client.link.receive();
        if received == ReadOutcome::Nothing {
            return;
        }
        if received == ReadOutcome::Closed || self.client_frames(id, agent, notices).is_err() {
            self.remove_client(id, agent, notices);
        }
    }

    /// Handles the complete frames of a client. Returns an error when the client broke the protocol
    /// or cannot be served.
    pub(super) fn client_frames(
        &mut self,
        id: ClientId,
        agent: &mut FrameSocket,
        notices: &mut Vec<RelayNotice>,
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
            if header.kind.is_message() && header.kind != FrameKind::Control {
                let message = client.assembler.push(&header, frame.payload()).map_err(drop)?;
                let Some(message) = message else { continue };
                self.client_message(id, &header, &message, agent, notices)?;
                continue;
            }
            if let Some(agent_stream) = client.attached.get(&header.stream).copied() {
                let payload = frame.payload().to_vec();
                let parts = (header.kind, header.channel, header.flags, payload);
                self.job_frame((id, header.stream), agent_stream, parts, agent)?;
                continue;
            }
            // A frame of a stream that has ended was sent before the client received the end.
            let Some(stream) = client.streams.get(&header.stream) else {
                continue;
            };
            let Some(route) = self.routes.get_mut(stream) else {
                continue;
            };
            if let Some(command) = &mut route.command {
                if header.kind == FrameKind::Data && header.channel == STDIN {
                    command.send_input(header.length);
                }
                if let Some(timeout_ms) = detach_request(&frame) {
                    let requester = (id, header.stream);
                    notices.push(RelayNotice::Detach { requester, timeout_ms });
                    continue;
                }
            }
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
        header: &FrameHeader,
        message: &[u8],
        agent: &mut FrameSocket,
        notices: &mut Vec<RelayNotice>,
    ) -> Result<(), ()> {
        let Some(client) = self.clients.get_mut(&id) else {
            return Ok(());
        };
        match header.kind {
            FrameKind::Hello if !client.hello_received => {
                let hello: Hello = serde_json::from_slice(message).map_err(drop)?;
                client.hello_received = true;
                client.link.queue().extend_from_slice(&self.hello);
                hello.negotiate().map(drop).map_err(drop)
            }
            FrameKind::Open if client.hello_received && !client.has_open(header.stream) => {
                match serde_json::from_slice(message) {
                    Ok(request) => self.handle_request(id, header.stream, request, agent, notices),
                    Err(error) => {
                        let message = format!("unsupported request: {error}");
                        self.refuse(id, header.stream, FailureKind::UnsupportedOperation, message);
                    }
                }
                Ok(())
            }
            _ => Err(()),
        }
    }

    /// Dispatches a client's request to the supervisor or the agent, or refuses it.
    fn handle_request(
        &mut self,
        client: ClientId,
        stream: u32,
        request: Request,
        agent: &mut FrameSocket,
        notices: &mut Vec<RelayNotice>,
    ) {
        match request {
            Request::Stop(stop) => {
                notices.push(RelayNotice::Stop { client, stream, timeout_ms: stop.timeout_ms })
            }
            Request::Drain => notices.push(RelayNotice::Drain { requester: (client, stream) }),
            Request::Pause => notices.push(RelayNotice::Pause { requester: (client, stream) }),
            Request::Resume => notices.push(RelayNotice::Resume { requester: (client, stream) }),
            Request::StartBackup => {
                notices.push(RelayNotice::StartBackup { requester: (client, stream) })
            }
            Request::EndBackup => {
                notices.push(RelayNotice::EndBackup { requester: (client, stream) })
            }
            Request::SaveMemory => {
                notices.push(RelayNotice::SaveMemory { requester: (client, stream) })
            }
            Request::EndSave => notices.push(RelayNotice::EndSave { requester: (client, stream) }),
            Request::Wait => notices.push(RelayNotice::Wait { client, stream }),
            Request::Samples(samples) => {
                notices.push(RelayNotice::Watch { client, interval_ms: samples.interval_ms })
            }
            Request::Signal(request) => match self.paused.clone() {
                Some(message) => self.refuse(client, stream, FailureKind::Paused, message),
                None => notices.push(RelayNotice::Signal { requester: (client, stream), request }),
            },
            Request::Attach(request) => {
                let requester = (client, stream);
                notices.push(RelayNotice::Attach {
                    requester,
                    attached: self.attach_to_job(&request.job, requester, request.stdin),
                    job: request.job,
                });
            }
            Request::Network(request) => {
                notices.push(RelayNotice::Network { requester: (client, stream), request })
            }
            request @ (Request::Connect(_)
            | Request::Exec(_)
            | Request::Files(_)
            | Request::Freeze(_)
            | Request::KeyAgent(_)
            | Request::Ping
            | Request::Sftp(_)) => {
                self.forward_or_queue(client, stream, request, agent, notices);
            }
            request @ (Request::Boot(_)
            | Request::Clock(_)
            | Request::Init(_)
            | Request::Quiesce
            | Request::Shutdown(_)
            | Request::Wake(_)) => {
                let message =
                    format!("operation '{}' is not available to clients", request.operation());
                self.refuse(client, stream, FailureKind::UnsupportedOperation, message);
            }
        }
    }

    /// Forwards a request to the agent, or queues it until the guest is up.
    fn forward_or_queue(
        &mut self,
        id: ClientId,
        stream: u32,
        request: Request,
        agent: &mut FrameSocket,
        notices: &mut Vec<RelayNotice>,
    ) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.streams.len() + client.waiting.len() >= CLIENT_STREAMS_MAX {
            let message = format!("too many open streams: the limit is {CLIENT_STREAMS_MAX}");
            self.refuse(id, stream, FailureKind::ResourceLimit, message);
        } else if let Some(message) = self.paused.clone() {
            self.refuse(id, stream, FailureKind::Paused, message);
        } else if self.open || client.is_internal {
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
        agent: &mut FrameSocket,
        notices: &mut Vec<RelayNotice>,
    ) {
        // The agent may be of another release: operations that it does not support are refused one
        // by one.
        let mut needs = request.agent_operations().into_iter();
        if let Some(error) = needs.find_map(|operation| self.agent.require(operation).err()) {
            let kind = FailureKind::UnsupportedOperation;
            return self.refuse(id, stream, kind, error.to_string());
        }
        let mut request = request;
        let is_command = matches!(request, Request::Exec(_));
        if is_command && self.closed {
            let message = "the sandbox is stopping".to_owned();
            return self.refuse(id, stream, FailureKind::Other, message);
        }
        if let Request::Exec(exec) = &mut request
            && exec.job
        {
            let request = Box::new(std::mem::take(exec));
            let requester = (id, stream);
            return notices.push(RelayNotice::Job { requester, request });
        }
        let (mut main, mut tty, mut holds) = (false, false, false);
        let (mut session, mut command) = (None, None);
        if let Request::Exec(exec) = &mut request {
            // Only the client that started the sandbox can make a command its main one.
            exec.main &= self.attached == Some(id);
            (main, tty) = (exec.main, exec.tty.is_some());
            holds = std::mem::take(&mut exec.hold) && !main;
            session = (exec.log && !main).then(session_id);
            command = tty.then(|| TerminalCommand::of(exec));
        }
        let Ok(message) = serde_json::to_vec(&request) else {
            return;
        };
        self.active = true;
        let agent_stream = self.route(StreamOwner::Client(Some((id, stream))), main);
        if let Some(route) = self.routes.get_mut(&agent_stream) {
            (route.tty, route.session, route.command) = (tty, session, command);
            (route.is_command, route.holds) = (is_command, holds);
        }
        if let Some(client) = self.clients.get_mut(&id) {
            client.streams.insert(stream, agent_stream);
        }
        frame::put_message(agent.queue(), agent_stream, FrameKind::Open, 0, &message);
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
            FrameKind::Event,
            frame::flags::END,
            &message,
        );
    }

    /// Writes the queued output of a client.
    pub(crate) fn write_client(
        &mut self,
        id: ClientId,
        agent: &mut FrameSocket,
        notices: &mut Vec<RelayNotice>,
    ) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.link.flush().is_err() || (client.is_closing && client.link.queued() == 0) {
            self.remove_client(id, agent, notices);
        }
    }

    pub(super) fn remove_client(
        &mut self,
        id: ClientId,
        agent: &mut FrameSocket,
        notices: &mut Vec<RelayNotice>,
    ) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        for (number, agent_stream) in client.attached {
            self.release_input((id, number), agent_stream);
        }
        for stream in client.streams.into_values() {
            if let Some(route) = self.routes.get_mut(&stream) {
                route.owner = StreamOwner::Client(None);
                frame::put_frame(agent.queue(), stream, FrameKind::Close, 0, 0, &[]);
            }
        }
        notices.push(RelayNotice::Gone(id));
    }
}

/// Returns the timeout of a request to detach. `None` for any other frame.
fn detach_request(frame: &Frame<'_>) -> Option<Option<u64>> {
    let header = &frame.header;
    if header.kind != FrameKind::Control || header.flags & frame::flags::MORE != 0 {
        return None;
    }
    let DetachControl::Detach { timeout_ms } = serde_json::from_slice(frame.payload()).ok()?;
    Some(timeout_ms)
}

impl RelayClient {
    /// Returns whether the stream number is in use.
    fn has_open(&self, stream: u32) -> bool {
        self.streams.contains_key(&stream) || self.attached.contains_key(&stream)
    }
}

/// Returns an ID for a logged session. Without random bytes the ID is not unique.
pub(crate) fn session_id() -> String {
    libmsb::state::write::random_hex()
        .map_or_else(|_| "session".to_owned(), |hex| hex[..8].to_owned())
}
