//! Jobs: commands on the supervisor's own streams, and the clients that are attached to them.
//!
//! The output of a job goes to the log only. Its input comes from one attached client at a time.
//! The relay keeps a window towards either side, so clients may come and go while the command does
//! not read.

use std::collections::VecDeque;

use msb_wire::credit::{ReceiveCredit, SendCredit};
use msb_wire::exec::ExecRequest;
use msb_wire::frame::{self, Frame, FrameKind, STDIN, flags};
use msb_wire::limits::DATA_BYTES;
use msb_wire::sandbox::Request;
use msb_wire::text::Text;

use super::from_clients::session_id;
use super::{ClientId, InternalStream, ProtocolViolation, Relay, StreamOwner};
use crate::supervisor::frame_socket::FrameSocket;

/// A client and the number of one of its streams.
pub(crate) type ClientStream = (ClientId, u32);

/// A client's command on a terminal, from which the client may detach.
#[derive(Debug)]
pub(super) struct TerminalCommand {
    argv: Vec<Text>,
    stdin: bool,
    started_at: jiff::Timestamp,
    /// Credit that the client has left for the standard input.
    credit: SendCredit,
}

impl TerminalCommand {
    pub(super) fn of(request: &ExecRequest) -> TerminalCommand {
        TerminalCommand {
            argv: request.argv.clone(),
            stdin: request.stdin,
            started_at: jiff::Timestamp::now(),
            credit: SendCredit::default(),
        }
    }

    /// Counts input of the client. When it exceeds the credit, the agent ends the command, as it
    /// does without a terminal; other calls of the client go on.
    pub(super) fn send_input(&mut self, bytes: usize) {
        let _ = self.credit.spend(bytes);
    }

    /// Counts credit of the agent. The client sees a grant that is too large.
    pub(super) fn grant_input(&mut self, credit: u32) {
        let _ = self.credit.grant(credit);
    }
}

/// A command that a client has detached from.
pub(crate) struct AdoptedCommand {
    /// ID of the job, under which the output is logged.
    pub(crate) id: String,
    pub(crate) argv: Vec<Text>,
    pub(crate) stdin: bool,
    pub(crate) started_at: jiff::Timestamp,
    /// It is the main command of the sandbox.
    pub(crate) main: bool,
}

/// Pending standard input of a job.
#[derive(Debug, Default)]
pub(super) struct JobInput {
    /// The client that sends the input.
    from: Option<ClientStream>,
    /// The input; at most one window of the client.
    queue: VecDeque<u8>,
    /// Bytes at the front of the queue that an earlier client has sent.
    inherited: usize,
    /// The input ends after the queue, and the agent was sent the end.
    ended: bool,
    end_sent: bool,
    /// Credit that the agent has granted.
    credit: SendCredit,
    /// The client's window, and the part of it that is used up.
    window: SendCredit,
    consumed: ReceiveCredit,
}

impl JobInput {
    /// Makes a client the sender of the input, with a new window.
    fn assign_sender(&mut self, client: ClientStream) {
        self.from = Some(client);
        self.inherited = self.queue.len();
        self.window = SendCredit::default();
        self.consumed = ReceiveCredit::default();
    }

    /// Sends as much as the agent takes. Returns the credit to grant to the client.
    fn send_pending(&mut self, stream: u32, out: &mut Vec<u8>) -> u32 {
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
            if let Some(grant) = self.consumed.used(count - of_others)
                && self.window.grant(grant)
            {
                granted += grant;
            }
        }
        if self.queue.is_empty() && self.ended && !self.end_sent {
            self.end_sent = true;
            frame::put_frame(out, stream, FrameKind::Data, STDIN, flags::END, &[]);
        }
        granted
    }
}

impl Relay {
    /// Starts a job.
    pub(crate) fn start_job(
        &mut self,
        number: u32,
        id: &str,
        request: ExecRequest,
        agent: &mut FrameSocket,
    ) -> serde_json::Result<()> {
        let tty = request.tty.is_some();
        let message = serde_json::to_vec(&Request::Exec(request))?;
        let stream = self.route(StreamOwner::Supervisor(InternalStream::Job(number)), false);
        if let Some(route) = self.routes.get_mut(&stream) {
            (route.tty, route.session) = (tty, Some(id.to_owned()));
            route.is_command = true;
        }
        self.inputs.insert(stream, JobInput::default());
        frame::put_message(agent.queue(), stream, FrameKind::Open, 0, &message);
        self.active = true;
        Ok(())
    }

    /// Makes a client's command on a terminal the job of this number. The client's stream is closed
    /// for the client only. Returns `None` if the stream has no such command.
    pub(crate) fn adopt_command(
        &mut self,
        (client, number): ClientStream,
        job: u32,
        agent: &mut FrameSocket,
    ) -> Option<AdoptedCommand> {
        let client = self.clients.get_mut(&client)?;
        let stream = *client.streams.get(&number)?;
        let route = self.routes.get_mut(&stream)?;
        let command = route.command.take()?;
        client.streams.remove(&number);
        route.owner = StreamOwner::Supervisor(InternalStream::Job(job));
        let id = route.session.get_or_insert_with(session_id).clone();
        // The client grants no more credit for output that it was sent.
        for (channel, owed) in (0..).zip(&mut route.outstanding) {
            let owed = std::mem::take(owed);
            if owed > 0 {
                frame::put_credit(agent.queue(), stream, channel, owed);
            }
        }
        let input = JobInput { credit: command.credit, ..JobInput::default() };
        self.inputs.insert(stream, input);
        let TerminalCommand { argv, stdin, started_at, .. } = command;
        Some(AdoptedCommand { id, argv, stdin, started_at, main: route.main })
    }

    /// Returns the number of an internal stream, while it is open.
    fn internal_stream(&self, internal: InternalStream) -> Option<u32> {
        let mut routes = self.routes.iter();
        let found = routes.find(|(_, route)| route.owner == StreamOwner::Supervisor(internal));
        found.map(|(stream, _)| *stream)
    }

    /// Sends a control message to a command of the supervisor. Returns `false` when the command has
    /// ended.
    pub(crate) fn control(
        &mut self,
        internal: InternalStream,
        control: &impl serde::Serialize,
        agent: &mut FrameSocket,
    ) -> bool {
        let (Some(stream), Ok(message)) =
            (self.internal_stream(internal), serde_json::to_vec(control))
        else {
            return false;
        };
        frame::put_message(agent.queue(), stream, FrameKind::Control, 0, &message);
        true
    }

    /// Closes a command of the supervisor: the agent kills it and all processes on its terminal.
    pub(crate) fn close(&mut self, internal: InternalStream, agent: &mut FrameSocket) {
        if let Some(stream) = self.internal_stream(internal) {
            frame::put_frame(agent.queue(), stream, FrameKind::Close, 0, 0, &[]);
        }
    }

    /// Attaches a client's stream to a job, at once: input may follow the request directly. Returns
    /// `false` when the client is to send input and another one does already.
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
            input.assign_sender(client);
        }
        if let Some(known) = self.clients.get_mut(&client.0) {
            known.attached.insert(client.1, stream);
        }
        true
    }

    /// Handles a client's frame on a stream that is attached to a job. Returns an error when the
    /// client broke the protocol.
    pub(super) fn job_frame(
        &mut self,
        client: ClientStream,
        agent_stream: u32,
        (kind, channel, flags, payload): (FrameKind, u8, u16, Vec<u8>),
        agent: &mut FrameSocket,
    ) -> Result<(), ()> {
        self.active = true;
        match kind {
            FrameKind::Data if channel == STDIN => {
                let Some(input) = self.inputs.get_mut(&agent_stream) else {
                    return Ok(());
                };
                if input.from != Some(client) || !input.window.spend(payload.len()) {
                    return Err(());
                }
                input.queue.extend(payload);
                input.ended |= flags & flags::END != 0;
                self.pump_input(agent_stream, agent.queue());
                Ok(())
            }
            // Complete in one frame, so that messages of two clients cannot mix.
            FrameKind::Control if flags & flags::MORE == 0 => {
                frame::put_frame(agent.queue(), agent_stream, kind, channel, flags, &payload);
                Ok(())
            }
            FrameKind::Close => {
                self.release_input(client, agent_stream);
                Ok(())
            }
            // Credit for output, which is never sent.
            FrameKind::Credit => Ok(()),
            _ => Err(()),
        }
    }

    /// Forwards input and grants credit to its client.
    fn pump_input(&mut self, stream: u32, out: &mut Vec<u8>) {
        let Some(input) = self.inputs.get_mut(&stream) else {
            return;
        };
        let grant = input.send_pending(stream, out);
        if grant > 0
            && let Some((id, number)) = input.from
            && let Some(client) = self.clients.get_mut(&id)
        {
            frame::put_credit(client.link.queue(), number, STDIN, grant);
        }
    }

    /// Adds credit from the agent for a job's input.
    pub(super) fn job_credit(
        &mut self,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), ProtocolViolation> {
        let stream = frame.header.stream;
        if let Some(input) = self.inputs.get_mut(&stream)
            && !input.credit.grant(frame.credit().unwrap_or(0))
        {
            return Err(ProtocolViolation("more credit than a window".to_owned()));
        }
        self.pump_input(stream, out);
        Ok(())
    }

    /// Releases the input of a job, so that another client may send it.
    pub(super) fn release_input(&mut self, client: ClientStream, agent_stream: u32) {
        if let Some(input) = self.inputs.get_mut(&agent_stream)
            && input.from == Some(client)
        {
            input.from = None;
        }
    }
}
