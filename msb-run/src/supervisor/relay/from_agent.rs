//! Frames from the agent to the clients, and to the supervisor's own streams.

use msb_wire::frame::{self, Frame, FrameHeader, FrameKind, STDIN};
use msb_wire::limits::WINDOW_BYTES;

use super::{
    CLIENT_QUEUE_BYTES_MAX, ClientId, InternalStream, ProtocolViolation, Relay, RelayNotice,
    StreamOwner, StreamRoute,
};

impl Relay {
    /// Passes a frame of the agent on.
    pub(crate) fn agent_frame(
        &mut self,
        frame: Frame<'_>,
        out: &mut Vec<u8>,
        notices: &mut Vec<RelayNotice>,
    ) -> Result<(), ProtocolViolation> {
        let header = frame.header;
        let Some(route) = self.routes.get_mut(&header.stream) else {
            return Err(ProtocolViolation(format!(
                "a frame on stream {}, which is not open",
                header.stream
            )));
        };
        match header.kind {
            FrameKind::Data => {
                account_data(route, &header)?;
                self.active = true;
                if route.session.is_some() || (route.main && self.log_main) {
                    notices.push(RelayNotice::Output {
                        session: route.session.clone(),
                        tty: route.tty,
                        channel: header.channel,
                        bytes: frame.payload().to_vec(),
                    });
                }
            }
            FrameKind::Credit if header.channel == STDIN => {
                if let (Some(command), Some(credit)) = (&mut route.command, frame.credit()) {
                    command.grant_input(credit);
                }
            }
            FrameKind::Credit | FrameKind::Event => {}
            kind => {
                return Err(ProtocolViolation(format!(
                    "a {kind:?} frame, which only clients send"
                )));
            }
        }
        match route.owner {
            StreamOwner::Client(client) => self.pass_to_client(client, frame, notices),
            StreamOwner::Supervisor(internal) => {
                self.pass_to_supervisor(internal, frame, out, notices)
            }
        }
    }

    fn pass_to_client(
        &mut self,
        client: Option<(ClientId, u32)>,
        mut frame: Frame<'_>,
        notices: &mut Vec<RelayNotice>,
    ) -> Result<(), ProtocolViolation> {
        let header = frame.header;
        let main = self.routes.get(&header.stream).is_some_and(|route| route.main);
        if header.kind == FrameKind::Event && main {
            self.main_event(&header, frame.payload(), notices)?;
        }
        let last = header.kind == FrameKind::Event && header.ends();
        if last {
            let route = self.routes.get_mut(&header.stream);
            let session = route.and_then(|route| route.session.take());
            notices.extend(session.map(|session| RelayNotice::SessionEnded { session }));
        }
        if let Some((id, stream)) = client
            && let Some(client) = self.clients.get_mut(&id)
        {
            client.link.queue().extend_from_slice(frame.renumbered(stream));
            if client.link.queued() > CLIENT_QUEUE_BYTES_MAX {
                return Err(ProtocolViolation("more than a client's queue can hold".to_owned()));
            }
            if last {
                client.streams.remove(&stream);
            }
        }
        if last {
            let holds = self.routes.get(&header.stream).is_some_and(|route| route.holds);
            self.remove_stream(header.stream);
            notices.extend(client.filter(|_| holds).map(|(id, _)| RelayNotice::HoldEnded(id)));
        }
        Ok(())
    }

    fn pass_to_supervisor(
        &mut self,
        internal: InternalStream,
        frame: Frame<'_>,
        out: &mut Vec<u8>,
        notices: &mut Vec<RelayNotice>,
    ) -> Result<(), ProtocolViolation> {
        let header = frame.header;
        if header.kind == FrameKind::Data
            && let Some(route) = self.routes.get_mut(&header.stream)
        {
            let channel = usize::from(header.channel);
            if let Some(grant) = route.consumed[channel].used(header.length) {
                route.outstanding[channel] = route.outstanding[channel].saturating_sub(grant);
                frame::put_credit(out, header.stream, header.channel, grant);
            }
        }
        if header.kind == FrameKind::Credit {
            self.job_credit(&frame, out)?;
        }
        if header.kind == FrameKind::Event && internal == InternalStream::Main {
            self.main_event(&header, frame.payload(), notices)?;
        } else if header.kind == FrameKind::Event {
            let message = self
                .agent_assembler
                .push(&header, frame.payload())
                .map_err(|e| ProtocolViolation(e.to_string()))?;
            if let Some(message) = message {
                let main = self.routes.get(&header.stream).is_some_and(|route| route.main);
                // The main command that a client has detached from is a job too.
                let ended = (main && header.ends()).then(|| serde_json::from_slice(&message));
                let ended = ended.transpose().map_err(invalid_event)?;
                notices.push(RelayNotice::Event { internal, message });
                notices.extend(ended.map(RelayNotice::MainEnded));
            }
        }
        if header.kind == FrameKind::Event && header.ends() {
            self.remove_stream(header.stream);
        }
        Ok(())
    }

    fn main_event(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        notices: &mut Vec<RelayNotice>,
    ) -> Result<(), ProtocolViolation> {
        let message = self
            .agent_assembler
            .push(header, payload)
            .map_err(|error| ProtocolViolation(error.to_string()))?;
        let Some(message) = message.filter(|_| header.ends()) else {
            return Ok(());
        };
        let event = serde_json::from_slice(&message).map_err(invalid_event)?;
        notices.push(RelayNotice::MainEnded(event));
        Ok(())
    }

    fn remove_stream(&mut self, stream: u32) {
        self.routes.remove(&stream);
        if self.inputs.remove(&stream).is_some() {
            for client in self.clients.values_mut() {
                client.attached.retain(|_, agent_stream| *agent_stream != stream);
            }
        }
        self.agent_assembler.forget(stream);
    }
}

fn invalid_event(error: serde_json::Error) -> ProtocolViolation {
    ProtocolViolation(format!("an invalid event: {error}"))
}

/// Counts data of the agent against the stream's window.
fn account_data(route: &mut StreamRoute, header: &FrameHeader) -> Result<(), ProtocolViolation> {
    let outstanding = &mut route.outstanding[usize::from(header.channel)];
    *outstanding = outstanding.saturating_add(header.length as u32);
    if *outstanding > WINDOW_BYTES {
        return Err(ProtocolViolation(format!(
            "more data on stream {} than its credit allows",
            header.stream
        )));
    }
    Ok(())
}
