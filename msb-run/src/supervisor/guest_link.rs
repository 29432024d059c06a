//! The link to the guest's agent: its port, its hello, and the operations that it supports.

use std::io;
use std::os::unix::net::UnixStream;

use msb_wire::frame::{self, Assembler, FrameKind};
use msb_wire::handshake::{Hello, operation};

use super::frame_socket::{FrameSocket, ReadOutcome};
use super::operations::hello_for_agent;
use super::relay::{ProtocolViolation, Relay, RelayNotice};

/// The result of a read.
#[derive(Debug)]
pub(crate) enum LinkRead {
    /// Nothing to read for now.
    Nothing,
    /// The VM has closed the port.
    Closed,
    /// Frames were read and passed on.
    Frames,
    /// The agent has sent its hello.
    Hello(Box<Hello>),
}

/// The link to the agent of the current VM.
#[derive(Debug)]
pub(crate) struct GuestLink {
    /// The agent's port.
    pub(crate) port: FrameSocket,
    /// The other end of the port, while there is no VM.
    _no_vm: Option<UnixStream>,
    hello_received: bool,
    assembler: Assembler,
    sets_clock: bool,
    sends_samples: bool,
}

impl GuestLink {
    /// Creates a link to an agent that is silent until there is a VM.
    pub(crate) fn disconnected() -> io::Result<GuestLink> {
        let (agent, peer) = UnixStream::pair()?;
        let mut link = GuestLink::over(FrameSocket::new(agent)?);
        link._no_vm = Some(peer);
        Ok(link)
    }

    fn over(port: FrameSocket) -> GuestLink {
        GuestLink {
            port,
            _no_vm: None,
            hello_received: false,
            assembler: Assembler::new(),
            sets_clock: false,
            sends_samples: false,
        }
    }

    /// Reads the agent of a new VM from now on.
    pub(crate) fn connect(&mut self, port: FrameSocket) {
        *self = GuestLink::over(port);
    }

    /// Expects no hello: the agent has sent it before its state was recorded.
    pub(crate) fn skip_hello(&mut self) {
        self.hello_received = true;
    }

    /// Returns whether the agent supports setting the clock.
    pub(crate) fn sets_clock(&self) -> bool {
        self.sets_clock
    }

    /// Returns whether the agent supports samples.
    pub(crate) fn sends_samples(&self) -> bool {
        self.sends_samples
    }

    /// Writes queued output as far as the port takes it. An error shows up when the port is read.
    pub(crate) fn flush(&mut self) {
        let _ = self.port.flush();
    }

    /// Reads once and passes the frames to the relay.
    pub(crate) fn read(
        &mut self,
        relay: &mut Relay,
        notices: &mut Vec<RelayNotice>,
    ) -> Result<LinkRead, ProtocolViolation> {
        match self.port.receive() {
            ReadOutcome::Nothing => return Ok(LinkRead::Nothing),
            ReadOutcome::Closed => return Ok(LinkRead::Closed),
            ReadOutcome::Some => {}
        }
        let mut out = Vec::new();
        let mut read = LinkRead::Frames;
        while let Some(frame) = self.port.next_frame().map_err(violation)? {
            if frame.header.kind != FrameKind::Hello {
                relay.agent_frame(frame, &mut out, notices)?;
                continue;
            }
            let message = self.assembler.push(&frame.header, frame.payload()).map_err(violation)?;
            if let Some(message) = message {
                if std::mem::replace(&mut self.hello_received, true) {
                    return Err(ProtocolViolation("a second hello".to_owned()));
                }
                read = LinkRead::Hello(Box::new(parse_hello(&message)?));
            }
        }
        self.port.queue().extend_from_slice(&out);
        Ok(read)
    }

    /// Accepts the agent's hello if it supports the required operations, and answers it.
    pub(crate) fn accept(
        &mut self,
        hello: &Hello,
        required: &[&'static str],
    ) -> Result<(), ProtocolViolation> {
        self.resume(hello, required)?;
        let answer = serde_json::to_vec(&hello_for_agent()).map_err(violation)?;
        frame::put_message(self.port.queue(), frame::CONNECTION, FrameKind::Hello, 0, &answer);
        Ok(())
    }

    /// Accepts the hello of an agent that was answered before its memory was saved.
    pub(crate) fn resume(
        &mut self,
        hello: &Hello,
        required: &[&'static str],
    ) -> Result<(), ProtocolViolation> {
        for operation in required {
            hello.require(operation).map_err(unsupported)?;
        }
        self.sets_clock = hello.require(operation::CLOCK).is_ok();
        self.sends_samples = hello.require(operation::SAMPLES).is_ok();
        Ok(())
    }
}

fn parse_hello(message: &[u8]) -> Result<Hello, ProtocolViolation> {
    let hello: Hello = serde_json::from_slice(message)
        .map_err(|error| ProtocolViolation(format!("an invalid hello: {error}")))?;
    hello.negotiate().map_err(unsupported)?;
    Ok(hello)
}

fn unsupported(error: impl std::fmt::Display) -> ProtocolViolation {
    ProtocolViolation(format!("an unsupported hello: {error}"))
}

fn violation(error: impl std::fmt::Display) -> ProtocolViolation {
    ProtocolViolation(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    struct Agent {
        link: GuestLink,
        socket: UnixStream,
        relay: Relay,
    }

    fn agent() -> Agent {
        let (ours, socket) = UnixStream::pair().unwrap();
        let mut link = GuestLink::disconnected().unwrap();
        let mut relay = Relay::new(&Hello::of("test", &[]), false).unwrap();
        let read = link.read(&mut relay, &mut Vec::new()).unwrap();
        assert!(matches!(read, LinkRead::Nothing));
        link.connect(FrameSocket::new(ours).unwrap());
        Agent { link, socket, relay }
    }

    impl Agent {
        fn send(&mut self, kind: FrameKind, message: &[u8]) -> Result<LinkRead, ProtocolViolation> {
            let mut bytes = Vec::new();
            frame::put_message(&mut bytes, frame::CONNECTION, kind, 0, message);
            self.socket.write_all(&bytes).unwrap();
            self.link.read(&mut self.relay, &mut Vec::new())
        }

        fn hello(&mut self, operations: &[&str]) -> Result<LinkRead, ProtocolViolation> {
            let hello = serde_json::to_vec(&Hello::of("agent", operations)).unwrap();
            self.send(FrameKind::Hello, &hello)
        }
    }

    #[test]
    fn a_hello_without_a_required_operation_is_refused() {
        let mut agent = agent();
        let LinkRead::Hello(hello) = agent.hello(&[operation::BOOT, operation::CLOCK]).unwrap()
        else {
            panic!("no hello");
        };
        let refused = agent.link.accept(&hello, &[operation::BOOT, operation::NET]);
        assert!(refused.unwrap_err().0.starts_with("an unsupported hello: "));
        assert_eq!(agent.link.port.queued(), 0);

        agent.link.accept(&hello, &[operation::BOOT]).unwrap();
        assert!(agent.link.sets_clock() && !agent.link.sends_samples());
        assert!(agent.link.port.queued() > 0);
    }

    #[test]
    fn a_second_hello_is_a_violation_unless_there_is_a_new_vm() {
        let mut first = agent();
        first.hello(&[]).unwrap();
        assert_eq!(first.hello(&[]).unwrap_err().0, "a second hello");

        let mut recorded = agent();
        recorded.link.skip_hello();
        assert_eq!(recorded.hello(&[]).unwrap_err().0, "a second hello");
    }

    #[test]
    fn a_frame_before_the_hello_and_nonsense_are_violations() {
        assert!(agent().send(FrameKind::Event, b"{}").is_err());
        let invalid = agent().send(FrameKind::Hello, b"{").unwrap_err();
        assert!(invalid.0.starts_with("an invalid hello: "), "{}", invalid.0);
    }

    #[test]
    fn a_vm_that_closes_its_port_is_noticed() {
        let mut agent = agent();
        drop(agent.socket);
        let read = agent.link.read(&mut agent.relay, &mut Vec::new()).unwrap();
        assert!(matches!(read, LinkRead::Closed));
    }
}
