//! What the host says, frame by frame.

use std::fmt;
use std::time::Duration;

use msb_wire::exec::{ExecControl, FailureKind};
use msb_wire::frame::{Decoder, FrameError, Header, Kind, STDIN};
use msb_wire::handshake::{Hello, VersionMismatch};
use msb_wire::samples::SamplesEvent;
use rustix::event::PollFlags;

use super::Agent;
use crate::console::reason;
use crate::exec::Refusal;
use crate::samples::Samples;
use crate::session::CreditViolation;

/// Time for the host's end of the port to be opened; before that it looks as if it were gone.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

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

impl Agent {
    /// Reads frames and acts on them.
    pub(super) fn read_port(&mut self, events: PollFlags) {
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
}
