//! From the agent to the clients, and to the supervisor, which has streams of its own.

use msb_wire::frame::{self, Frame, Header, Kind};
use msb_wire::limits::WINDOW_BYTES;

use super::{CLIENT_QUEUE_BYTES_MAX, ClientId, Notice, Own, Owner, Relay, Route, Violation};

impl Relay {
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
                self.active = true;
                if route.session.is_some() || (route.main && self.log_main) {
                    notices.push(Notice::Output {
                        session: route.session.clone(),
                        tty: route.tty,
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
        if last {
            let route = self.routes.get_mut(&header.stream);
            let session = route.and_then(|route| route.session.take());
            notices.extend(session.map(|session| Notice::SessionEnded { session }));
        }
        if let Some((id, stream)) = client
            && let Some(client) = self.clients.get_mut(&id)
        {
            client
                .link
                .queue()
                .extend_from_slice(frame.renumbered(stream));
            if client.link.queued() > CLIENT_QUEUE_BYTES_MAX {
                return Err(Violation("more than a client can take".to_owned()));
            }
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
        if header.kind == Kind::Credit {
            self.job_credit(&frame, out)?;
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
        if self.inputs.remove(&stream).is_some() {
            for client in self.clients.values_mut() {
                client.attached.retain(|_, towards| *towards != stream);
            }
        }
        self.agent_assembler.forget(stream);
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
