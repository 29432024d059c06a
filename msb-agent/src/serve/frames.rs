//! Frames from the host.

use std::fmt;
use std::time::Duration;

use msb_wire::exec::{ExecControl, FailureKind};
use msb_wire::frame::{Decoder, FrameError, FrameHeader, FrameKind, STDIN};
use msb_wire::handshake::{Hello, VersionMismatch};
use msb_wire::samples::SamplesEvent;
use rustix::event::PollFlags;

use super::Agent;
use crate::console::reason;
use crate::exec::StartRefusal;
use crate::samples::SampleStream;
use crate::session::CreditViolation;

/// Timeout for the host to open its end of the port; before that the port looks disconnected.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason why the connection cannot continue.
enum ProtocolError {
    Frame(FrameError),
    Versions(VersionMismatch),
    Hello(String),
    StreamInUse(u32),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::Frame(error) => write!(f, "the host sent {error}"),
            ProtocolError::Versions(error) => error.fmt(f),
            ProtocolError::Hello(why) => write!(f, "invalid Hello from the host: {why}"),
            ProtocolError::StreamInUse(stream) => {
                write!(f, "the host opened stream {stream}, which is open already")
            }
        }
    }
}

impl From<FrameError> for ProtocolError {
    fn from(error: FrameError) -> ProtocolError {
        ProtocolError::Frame(error)
    }
}

impl Agent {
    /// Reads frames and handles them.
    pub(super) fn read_port(&mut self, events: PollFlags) {
        let gone = events.intersects(PollFlags::HUP | PollFlags::ERR);
        if !gone && !events.contains(PollFlags::IN) {
            return;
        }
        let (count, ended) = match self.port.read() {
            Ok(read) => read,
            Err(error) => self.end_on_lost_host(&reason(error)),
        };
        let mut decoder = std::mem::take(&mut self.port.incoming);
        let result = self.take_frames(&mut decoder);
        self.port.incoming = decoder;
        if let Err(violation) = result {
            self.end_on_violation(&violation.to_string());
        }
        if count == 0 && (gone || ended) {
            self.handle_disconnect();
        }
    }

    /// Handles a port whose other end is not open: not yet, or not any more.
    fn handle_disconnect(&mut self) {
        if self.hello_received || self.started.elapsed() > CONNECT_TIMEOUT {
            self.end_on_lost_host("it closed the connection");
        }
        std::thread::sleep(Duration::from_millis(1));
    }

    fn take_frames(&mut self, decoder: &mut Decoder) -> Result<(), ProtocolError> {
        while let Some(frame) = decoder.next_frame()? {
            let header = frame.header;
            if !self.hello_received && header.kind != FrameKind::Hello {
                return Err(ProtocolError::Hello(format!(
                    "the first frame is of kind {:?}",
                    header.kind
                )));
            }
            match header.kind {
                FrameKind::Hello => self.take_hello(&header, frame.payload())?,
                FrameKind::Open => self.take_open(&header, frame.payload())?,
                FrameKind::Data => self.take_data(&header, frame.payload()),
                FrameKind::Credit => self.take_credit(&header, frame.credit().unwrap_or(0)),
                FrameKind::Control => self.take_control(&header, frame.payload())?,
                FrameKind::Close => self.take_close(header.stream),
                FrameKind::Event => {
                    return Err(FrameError::Malformed { kind: FrameKind::Event }.into());
                }
            }
        }
        Ok(())
    }

    fn take_hello(&mut self, header: &FrameHeader, payload: &[u8]) -> Result<(), ProtocolError> {
        if self.hello_received {
            return Err(FrameError::Malformed { kind: FrameKind::Hello }.into());
        }
        let Some(message) = self.messages.push(header, payload)? else {
            return Ok(());
        };
        let hello: Hello = serde_json::from_slice(&message)
            .map_err(|error| ProtocolError::Hello(error.to_string()))?;
        hello.negotiate().map_err(ProtocolError::Versions)?;
        self.hello_received = true;
        Ok(())
    }

    fn take_open(&mut self, header: &FrameHeader, payload: &[u8]) -> Result<(), ProtocolError> {
        let stream = header.stream;
        if self.sessions.contains_key(&stream)
            || self.connections.contains_key(&stream)
            || SampleStream::on(&mut self.samples, stream).is_some()
        {
            return Err(ProtocolError::StreamInUse(stream));
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

    /// Handles input data. Frames of ended streams are ignored: they may have been sent before the
    /// last event arrived.
    fn take_data(&mut self, header: &FrameHeader, payload: &[u8]) {
        let out = &mut self.port.outgoing;
        if let Some(connection) = self.connections.get_mut(&header.stream) {
            if header.channel == STDIN
                && connection.take_input(payload, header.ends(), out).is_err()
            {
                self.end_violating_stream(header.stream);
            }
            return;
        }
        let Some(session) = self.sessions.get_mut(&header.stream) else {
            return;
        };
        if header.channel == STDIN && session.take_input(payload, header.ends(), out).is_err() {
            self.end_violating_stream(header.stream);
        }
    }

    fn take_credit(&mut self, header: &FrameHeader, bytes: u32) {
        if let Some(connection) = self.connections.get_mut(&header.stream) {
            if connection.take_credit(header.channel, bytes).is_err() {
                self.end_violating_stream(header.stream);
            } else {
                // It may have had data to read and no credit.
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
            self.end_violating_stream(header.stream);
        }
    }

    /// Ends a stream after a violation of flow control. The process, if any is left, is reaped like
    /// any other.
    fn end_violating_stream(&mut self, stream: u32) {
        if let Some(connection) = self.connections.get_mut(&stream) {
            connection.end(Some("the client exceeded its flow control window".into()));
        }
        if let Some(session) = self.sessions.remove(&stream) {
            session.hang_up();
            self.messages.forget(stream);
            self.refuse(
                stream,
                StartRefusal::new(
                    FailureKind::Other,
                    "the client exceeded its flow control window",
                ),
            );
        }
    }

    fn take_control(&mut self, header: &FrameHeader, payload: &[u8]) -> Result<(), ProtocolError> {
        if let Some(samples) = SampleStream::on(&mut self.samples, header.stream) {
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
        // A control of a later version does not end the command.
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
                StartRefusal::new(FailureKind::Other, "closed before the request was complete"),
            );
        }
        if SampleStream::on(&mut self.samples, stream).is_some() {
            self.samples = None;
            self.put_last(stream, serde_json::to_vec(&SamplesEvent::Closed));
        }
        if let Some((next, _)) = self.next_freeze.take_if(|(next, _)| *next == stream) {
            let why = "closed before the file system was frozen";
            self.refuse(next, StartRefusal::new(FailureKind::Other, why));
        }
        if let Some(session) = self.sessions.get_mut(&stream) {
            session.close();
        }
        if let Some(connection) = self.connections.get_mut(&stream) {
            connection.close();
        }
    }
}
