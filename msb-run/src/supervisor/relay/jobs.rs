//! Jobs: commands whose streams are the supervisor's own, and clients that are attached to them.
//!
//! What a job prints goes to the log and nowhere else. Its input comes from one attached client at a time. The relay
//! stands between the two with a window on either side, so that a client may go and another one come while the command
//! does not read.

use std::collections::VecDeque;

use msb_wire::credit::{ReceiveCredit, SendCredit};
use msb_wire::exec::ExecRequest;
use msb_wire::frame::{self, Frame, Kind, STDIN, flags};
use msb_wire::limits::DATA_BYTES;
use msb_wire::sandbox::Request;

use super::{ClientId, Own, Owner, Relay, Violation};
use crate::supervisor::link::Link;

/// A client's stream.
pub(crate) type ClientStream = (ClientId, u32);

/// What is on its way to the standard input of a job.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// Who sends it.
    from: Option<ClientStream>,
    /// Not more than the client's window.
    queue: VecDeque<u8>,
    /// Bytes at its begin that an earlier client has left.
    inherited: usize,
    /// Nothing follows, and whether the agent knows.
    ended: bool,
    told: bool,
    /// What the agent takes.
    credit: SendCredit,
    /// What the client may send, and what of it is used up.
    window: SendCredit,
    used: ReceiveCredit,
}

impl Input {
    /// Another client sends, from the begin of a new window.
    fn take_from(&mut self, client: ClientStream) {
        self.from = Some(client);
        self.inherited = self.queue.len();
        self.window = SendCredit::default();
        self.used = ReceiveCredit::default();
    }

    /// Sends what the agent takes. Gives what the client may send again.
    fn pump(&mut self, stream: u32, out: &mut Vec<u8>) -> u32 {
        let mut granted = 0;
        loop {
            let ready = self.queue.as_slices().0.len();
            let count = ready.min(self.credit.available()).min(DATA_BYTES);
            if count == 0 || !self.credit.spend(count) {
                break;
            }
            frame::put_data(out, stream, STDIN, &self.queue.as_slices().0[..count]);
            self.queue.drain(..count);
            let of_others = count.min(self.inherited);
            self.inherited -= of_others;
            if let Some(grant) = self.used.used(count - of_others)
                && self.window.grant(grant)
            {
                granted += grant;
            }
        }
        if self.queue.is_empty() && self.ended && !self.told {
            self.told = true;
            frame::put_frame(out, stream, Kind::Data, STDIN, flags::END, &[]);
        }
        granted
    }
}

impl Relay {
    /// Has a job started.
    pub(crate) fn start_job(
        &mut self,
        number: u32,
        id: &str,
        request: ExecRequest,
        agent: &mut Link,
    ) -> serde_json::Result<()> {
        let tty = request.tty.is_some();
        let message = serde_json::to_vec(&Request::Exec(request))?;
        let stream = self.route(Owner::Supervisor(Own::Job(number)), false);
        if let Some(route) = self.routes.get_mut(&stream) {
            (route.tty, route.session) = (tty, Some(id.to_owned()));
        }
        self.inputs.insert(stream, Input::default());
        frame::put_message(agent.queue(), stream, Kind::Open, 0, &message);
        self.active = true;
        Ok(())
    }

    /// The stream of the supervisor's own command, as long as it is open.
    fn own_stream(&self, own: Own) -> Option<u32> {
        let mut routes = self.routes.iter();
        let found = routes.find(|(_, route)| route.owner == Owner::Supervisor(own));
        found.map(|(stream, _)| *stream)
    }

    /// Tells one of the supervisor's own commands something. `false` when it has ended.
    pub(crate) fn control(
        &mut self,
        own: Own,
        control: &impl serde::Serialize,
        agent: &mut Link,
    ) -> bool {
        let (Some(stream), Ok(message)) = (self.own_stream(own), serde_json::to_vec(control))
        else {
            return false;
        };
        frame::put_message(agent.queue(), stream, Kind::Control, 0, &message);
        true
    }

    /// Has the agent kill one of the supervisor's own commands, with all that it left on its terminal.
    pub(crate) fn close(&mut self, own: Own, agent: &mut Link) {
        if let Some(stream) = self.own_stream(own) {
            frame::put_frame(agent.queue(), stream, Kind::Close, 0, 0, &[]);
        }
    }

    /// Attaches a client's stream to a job, at once: input may come right behind the request. `false` when it is to send
    /// input, and another client does.
    pub(super) fn attach_to_job(&mut self, id: &str, client: ClientStream, stdin: bool) -> bool {
        let mut routes = self.routes.iter();
        let job = routes.find(|(_, route)| route.is_job() && route.session.as_deref() == Some(id));
        let Some(stream) = job.map(|(stream, _)| *stream) else {
            return true;
        };
        if stdin && let Some(input) = self.inputs.get_mut(&stream) {
            if input.from.is_some() {
                return false;
            }
            input.take_from(client);
        }
        if let Some(known) = self.clients.get_mut(&client.0) {
            known.attached.insert(client.1, stream);
        }
        true
    }

    /// A frame of a client on a stream that is attached to a job. `Err`: it broke the protocol.
    pub(super) fn attached_frame(
        &mut self,
        client: ClientStream,
        towards: u32,
        (kind, channel, flags, payload): (Kind, u8, u16, Vec<u8>),
        agent: &mut Link,
    ) -> Result<(), ()> {
        self.active = true;
        match kind {
            Kind::Data if channel == STDIN => {
                let Some(input) = self.inputs.get_mut(&towards) else {
                    return Ok(());
                };
                if input.from != Some(client) || !input.window.spend(payload.len()) {
                    return Err(());
                }
                input.queue.extend(payload);
                input.ended |= flags & flags::END != 0;
                self.pump_input(towards, agent.queue());
                Ok(())
            }
            // Whole in one frame, so that those of two clients cannot mix.
            Kind::Control if flags & flags::MORE == 0 => {
                frame::put_frame(agent.queue(), towards, kind, channel, flags, &payload);
                Ok(())
            }
            Kind::Close => {
                self.release_input(client, towards);
                Ok(())
            }
            // Grants for output, of which none comes.
            Kind::Credit => Ok(()),
            _ => Err(()),
        }
    }

    /// Moves input on, and lets its client send more.
    fn pump_input(&mut self, stream: u32, out: &mut Vec<u8>) {
        let Some(input) = self.inputs.get_mut(&stream) else {
            return;
        };
        let grant = input.pump(stream, out);
        if grant > 0
            && let Some((id, number)) = input.from
            && let Some(client) = self.clients.get_mut(&id)
        {
            frame::put_credit(client.link.queue(), number, STDIN, grant);
        }
    }

    /// The agent takes more input of a job.
    pub(super) fn job_credit(
        &mut self,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Violation> {
        let stream = frame.header.stream;
        if let Some(input) = self.inputs.get_mut(&stream)
            && !input.credit.grant(frame.credit().unwrap_or(0))
        {
            return Err(Violation("more credit than a window".to_owned()));
        }
        self.pump_input(stream, out);
        Ok(())
    }

    /// A client sends no more to a job; another one may.
    pub(super) fn release_input(&mut self, client: ClientStream, towards: u32) {
        if let Some(input) = self.inputs.get_mut(&towards)
            && input.from == Some(client)
        {
            input.from = None;
        }
    }
}
