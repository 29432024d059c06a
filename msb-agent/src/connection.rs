//! TCP connections from inside the guest, for port forwarding from the host.
//!
//! A connection is a socket in the agent's event loop, without a process. It is resolved and
//! connected, and then moves bytes like a command: each direction has its own flow control and its
//! own end. It is over when both directions have ended, on an error, or when the client closes it.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use msb_wire::connect::{ConnectEvent, ConnectFailure, ConnectRequest, TIMEOUT_MS_MAX};
use msb_wire::credit::{ReceiveCredit, SendCredit};
use msb_wire::frame::{
    FrameKind, STDIN, STDOUT, flags, put_credit, put_data, put_frame, put_message,
};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, connect, getpeername,
    recv, send, shutdown, socket_with, sockopt,
};

use crate::console::reason;
use crate::resolve::{self, Lookup, LookupResult};
use crate::session::CreditViolation;

/// Maximum number of connections.
pub(crate) const CONNECTIONS_MAX: usize = 1024;

/// One connection.
pub(crate) struct TcpConnection {
    stream: u32,
    port: u16,
    /// Deadline of the connection attempt.
    deadline: Instant,
    state: ConnectionState,
    /// Bytes to the peer.
    queue: VecDeque<u8>,
    window: SendCredit,
    used: ReceiveCredit,
    /// Set when the client has sent its last data.
    input_ended: bool,
    /// Set when the write side of the socket is shut down.
    input_shut: bool,
    credit: SendCredit,
    /// Set when the peer has closed its write side.
    output_ended: bool,
}

enum ConnectionState {
    Resolving(Lookup),
    Connecting {
        socket: OwnedFd,
        address: SocketAddr,
        /// Deadline of this address; then the next one is tried.
        until: Instant,
        rest: Vec<IpAddr>,
    },
    Open(OwnedFd),
    Over(ConnectEvent),
}

impl TcpConnection {
    /// Starts to connect.
    pub(crate) fn start(stream: u32, request: &ConnectRequest) -> TcpConnection {
        let timeout = request.timeout_ms.min(TIMEOUT_MS_MAX);
        let mut connection = TcpConnection {
            stream,
            port: request.port,
            deadline: Instant::now() + Duration::from_millis(timeout.into()),
            state: ConnectionState::Over(ConnectEvent::Ended { error: None }),
            queue: VecDeque::new(),
            window: SendCredit::default(),
            used: ReceiveCredit::default(),
            input_ended: false,
            input_shut: false,
            credit: SendCredit::default(),
            output_ended: false,
        };
        match resolve::find(&request.host) {
            Ok(LookupResult::Addresses(addresses)) => connection.try_addresses(addresses),
            Ok(LookupResult::Pending(lookup)) => {
                connection.state = ConnectionState::Resolving(lookup)
            }
            Err(error) => connection.fail_lookup(&error),
        }
        connection
    }

    /// Returns the event for a connection that is refused immediately.
    pub(crate) fn refused(kind: ConnectFailure, message: impl Into<String>) -> ConnectEvent {
        ConnectEvent::Failed { kind, message: message.into() }
    }

    /// Returns the socket and the events to poll. Returns `None` while there is nothing to do,
    /// since poll(2) would report the end of both directions again and again.
    pub(crate) fn watch(&self, port_has_room: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.state {
            ConnectionState::Resolving(lookup) => Some((lookup.fd(), PollFlags::IN)),
            ConnectionState::Connecting { socket, .. } => Some((socket.as_fd(), PollFlags::OUT)),
            ConnectionState::Open(socket) => {
                let mut events = PollFlags::empty();
                events.set(PollFlags::OUT, !self.queue.is_empty());
                let reads = !self.output_ended && port_has_room && self.credit.available() > 0;
                events.set(PollFlags::IN, reads);
                // A peer that has closed its write side may still reset the connection, which
                // poll(2) reports anyway.
                let listens = self.output_ended && !self.input_shut;
                (listens || !events.is_empty()).then_some((socket.as_fd(), events))
            }
            ConnectionState::Over(_) => None,
        }
    }

    /// Returns the time of the next timeout.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        match &self.state {
            ConnectionState::Resolving(lookup) => Some(lookup.deadline().min(self.deadline)),
            ConnectionState::Connecting { until, .. } => Some(*until),
            ConnectionState::Open(_) | ConnectionState::Over(_) => None,
        }
    }

    /// Queues bytes for the peer.
    pub(crate) fn take_input(
        &mut self,
        data: &[u8],
        ends: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), CreditViolation> {
        if !self.window.spend(data.len()) {
            return Err(CreditViolation);
        }
        if self.input_ended || matches!(self.state, ConnectionState::Over(_)) {
            self.return_credit(data.len(), out);
        } else {
            self.queue.extend(data);
        }
        self.input_ended |= ends;
        self.write(out);
        Ok(())
    }

    /// Adds credit for data from the peer.
    pub(crate) fn take_credit(&mut self, channel: u8, bytes: u32) -> Result<(), CreditViolation> {
        if channel != STDOUT || self.credit.grant(bytes) { Ok(()) } else { Err(CreditViolation) }
    }

    /// Closes the connection for the client.
    pub(crate) fn close(&mut self) {
        self.end(None);
    }

    /// Ends the connection, with an error if there was one.
    pub(crate) fn end(&mut self, error: Option<String>) {
        self.queue.clear();
        self.state = ConnectionState::Over(ConnectEvent::Ended { error });
    }

    /// Returns the last event once the connection is over.
    pub(crate) fn last_event(&self) -> Option<&ConnectEvent> {
        match &self.state {
            ConnectionState::Over(event) => Some(event),
            _ => None,
        }
    }

    /// Continues with all that is ready or timed out. `scratch` holds one payload.
    pub(crate) fn advance(
        &mut self,
        events: PollFlags,
        port_has_room: bool,
        out: &mut Vec<u8>,
        scratch: &mut [u8],
    ) {
        match &mut self.state {
            ConnectionState::Resolving(lookup) => match lookup.advance() {
                Some(Ok(addresses)) => self.try_addresses(addresses),
                Some(Err(error)) => self.fail_lookup(&error),
                None if Instant::now() >= self.deadline => {
                    self.fail_lookup(&io::ErrorKind::TimedOut.into());
                }
                None => {}
            },
            ConnectionState::Connecting { .. } => self.advance_connecting(events, out),
            ConnectionState::Open(_) => {
                if events.contains(PollFlags::ERR) || events.contains(PollFlags::HUP) {
                    self.check_socket_error();
                }
                self.write(out);
                if port_has_room {
                    self.read(out, scratch);
                }
            }
            ConnectionState::Over(_) => {}
        }
    }

    fn fail(&mut self, kind: ConnectFailure, message: impl Into<String>) {
        self.state = ConnectionState::Over(TcpConnection::refused(kind, message));
    }

    fn fail_lookup(&mut self, error: &io::Error) {
        let (kind, message) = match error.kind() {
            io::ErrorKind::NotFound => (ConnectFailure::NameNotFound, "host not found"),
            io::ErrorKind::TimedOut => (ConnectFailure::TimedOut, "DNS query timed out"),
            _ => (ConnectFailure::Unreachable, "no DNS resolver is reachable"),
        };
        self.fail(kind, message);
    }

    /// Tries the first address, and the next ones if it fails immediately.
    fn try_addresses(&mut self, mut addresses: Vec<IpAddr>) {
        let mut last = Errno::ADDRNOTAVAIL;
        while !addresses.is_empty() {
            let address = SocketAddr::new(addresses.remove(0), self.port);
            match start_connect(address) {
                Ok(socket) => {
                    let now = Instant::now();
                    let left = self.deadline.saturating_duration_since(now);
                    let share = left / u32::try_from(addresses.len() + 1).unwrap_or(u32::MAX);
                    self.state = ConnectionState::Connecting {
                        socket,
                        address,
                        until: now + share,
                        rest: addresses,
                    };
                    return;
                }
                Err(error) => last = error,
            }
        }
        self.fail(kind_of(last), reason(last));
    }

    fn advance_connecting(&mut self, events: PollFlags, out: &mut Vec<u8>) {
        let ConnectionState::Connecting { socket, address, until, rest } = &mut self.state else {
            return;
        };
        let result = if events.is_empty() {
            if Instant::now() < *until {
                return;
            }
            Err(Errno::TIMEDOUT)
        } else {
            sockopt::socket_error(&*socket).unwrap_or_else(Err)
        };
        // poll(2) may have reported a socket that is not connected yet.
        if result.is_ok() && getpeername(&*socket).is_err() {
            return;
        }
        match result {
            Ok(()) => {
                let peer = address.to_string();
                let ended = ConnectionState::Over(ConnectEvent::Ended { error: None });
                if let ConnectionState::Connecting { socket, .. } =
                    std::mem::replace(&mut self.state, ended)
                {
                    let _ = sockopt::set_tcp_nodelay(&socket, true);
                    self.state = ConnectionState::Open(socket);
                }
                put_connect_event(out, self.stream, 0, &ConnectEvent::Connected { peer });
                self.write(out);
            }
            Err(error) if rest.is_empty() => self.fail(kind_of(error), reason(error)),
            Err(_) => {
                let rest = std::mem::take(rest);
                self.try_addresses(rest);
            }
        }
    }

    fn check_socket_error(&mut self) {
        let ConnectionState::Open(socket) = &self.state else {
            return;
        };
        if let Ok(Err(error)) = sockopt::socket_error(socket) {
            self.end(Some(reason(error)));
        }
    }

    fn write(&mut self, out: &mut Vec<u8>) {
        let mut sent = 0;
        let mut broken = None;
        if let ConnectionState::Open(socket) = &self.state {
            while !self.queue.is_empty() {
                match send(socket, self.queue.as_slices().0, SendFlags::NOSIGNAL) {
                    Ok(count) => {
                        self.queue.drain(..count);
                        sent += count;
                    }
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    Err(error) => {
                        broken = Some(error);
                        break;
                    }
                }
            }
            if self.input_ended && self.queue.is_empty() && !self.input_shut {
                self.input_shut = true;
                let _ = shutdown(socket, Shutdown::Write);
            }
        }
        self.return_credit(sent, out);
        match broken {
            Some(error) => self.end(Some(reason(error))),
            None => self.end_if_done(),
        }
    }

    fn read(&mut self, out: &mut Vec<u8>, scratch: &mut [u8]) {
        let ConnectionState::Open(socket) = &self.state else {
            return;
        };
        let max = scratch.len().min(self.credit.available());
        if max == 0 || self.output_ended {
            return;
        }
        match recv(socket, &mut scratch[..max], RecvFlags::DONTWAIT) {
            Ok((0, _)) => {
                self.output_ended = true;
                put_frame(out, self.stream, FrameKind::Data, STDOUT, flags::END, &[]);
            }
            Ok((count, _)) => {
                let within = self.credit.spend(count);
                debug_assert!(within, "more was read than the credit allows");
                put_data(out, self.stream, STDOUT, &scratch[..count]);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => self.end(Some(reason(error))),
        }
        self.end_if_done();
    }

    fn end_if_done(&mut self) {
        if self.output_ended && self.input_shut {
            self.end(None);
        }
    }

    fn return_credit(&mut self, count: usize, out: &mut Vec<u8>) {
        if let Some(grant) = self.used.used(count) {
            let _ = self.window.grant(grant);
            put_credit(out, self.stream, STDIN, grant);
        }
    }
}

/// Appends a connection event.
pub(crate) fn put_connect_event(out: &mut Vec<u8>, stream: u32, last: u16, event: &ConnectEvent) {
    if let Ok(json) = serde_json::to_vec(event) {
        put_message(out, stream, FrameKind::Event, last, &json);
    }
}

/// Opens a socket and starts to connect it.
fn start_connect(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(error) => Err(error),
    }
}

fn kind_of(error: Errno) -> ConnectFailure {
    match error {
        Errno::CONNREFUSED | Errno::PERM | Errno::ACCESS | Errno::CONNRESET => {
            ConnectFailure::Refused
        }
        Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ADDRNOTAVAIL | Errno::NETDOWN => {
            ConnectFailure::Unreachable
        }
        Errno::TIMEDOUT => ConnectFailure::TimedOut,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS => ConnectFailure::ResourceLimit,
        _ => ConnectFailure::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::scratch;
    use msb_wire::frame::Decoder;
    use rustix::event::{PollFd, Timespec, poll};
    use std::io::{Read, Write};
    use std::net::TcpListener;

    struct TestClient {
        connection: TcpConnection,
        out: Vec<u8>,
        scratch: Box<[u8]>,
    }

    impl TestClient {
        fn to(host: &str, port: u16) -> TestClient {
            let request = ConnectRequest { host: host.into(), port, timeout_ms: 5_000 };
            TestClient {
                connection: TcpConnection::start(9, &request),
                out: Vec::new(),
                scratch: scratch(),
            }
        }

        /// Runs one iteration of the event loop.
        fn turn(&mut self) {
            let mut events = PollFlags::empty();
            if let Some((fd, wanted)) = self.connection.watch(true) {
                let mut fds = [PollFd::from_borrowed_fd(fd, wanted)];
                let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
                poll(&mut fds, Some(&patience)).unwrap();
                events = fds[0].revents();
            }
            self.connection.advance(events, true, &mut self.out, &mut self.scratch);
        }

        fn until(&mut self, done: impl Fn(&TestClient) -> bool) {
            while !done(self) {
                self.turn();
            }
        }

        /// Returns the data from the peer, and whether its end was received.
        fn received(&self) -> (Vec<u8>, bool) {
            let mut decoder = Decoder::new();
            let mut source = self.out.as_slice();
            let (mut data, mut ended) = (Vec::new(), false);
            while decoder.fill(&mut source).unwrap() > 0 {
                while let Some(frame) = decoder.next_frame().unwrap() {
                    if frame.header.kind == FrameKind::Data {
                        data.extend_from_slice(frame.payload());
                        ended |= frame.header.ends();
                    }
                }
            }
            (data, ended)
        }
    }

    #[test]
    fn each_direction_ends_separately() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut bench = TestClient::to("127.0.0.1", listener.local_addr().unwrap().port());
        bench.until(|bench| !bench.out.is_empty());
        let (mut peer, _) = listener.accept().unwrap();
        let mut out = Vec::new();
        bench.connection.take_input(b"question", true, &mut out).unwrap();
        let mut question = String::new();
        peer.read_to_string(&mut question).unwrap();
        assert_eq!(question, "question");
        assert!(bench.connection.last_event().is_none());
        peer.write_all(b"answer").unwrap();
        drop(peer);
        bench.until(|bench| bench.connection.last_event().is_some());
        assert_eq!(bench.received(), (b"answer".to_vec(), true));
        let ended = ConnectEvent::Ended { error: None };
        assert_eq!(bench.connection.last_event(), Some(&ended));
    }

    #[test]
    fn a_closed_port_refuses_the_connection() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut bench = TestClient::to("127.0.0.1", port);
        bench.until(|bench| bench.connection.last_event().is_some());
        let event = bench.connection.last_event();
        let Some(ConnectEvent::Failed { kind, message }) = event else { panic!("{event:?}") };
        assert_eq!(*kind, ConnectFailure::Refused);
        assert_eq!(message, "connection refused");
    }

    #[test]
    fn a_peer_is_read_only_within_the_credit() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut bench = TestClient::to("127.0.0.1", listener.local_addr().unwrap().port());
        bench.until(|bench| !bench.out.is_empty());
        let (mut peer, _) = listener.accept().unwrap();
        let window = msb_wire::limits::WINDOW_BYTES as usize;
        let writer = std::thread::spawn(move || {
            let _ = peer.write_all(&vec![7; 2 * window]);
            peer
        });
        bench.until(|bench| bench.received().0.len() == window);
        assert!(bench.connection.watch(true).is_none());
        bench.connection.take_credit(STDOUT, 10).unwrap();
        bench.until(|bench| bench.received().0.len() == window + 10);
        assert!(bench.connection.take_credit(STDOUT, u32::MAX).is_err());
        bench.connection.close();
        let _ = writer.join();
    }

    #[test]
    fn a_reset_connection_reports_the_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut bench = TestClient::to("localhost", listener.local_addr().unwrap().port());
        bench.until(|bench| !bench.out.is_empty());
        let (peer, _) = listener.accept().unwrap();
        sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
        drop(peer);
        bench.until(|bench| bench.connection.last_event().is_some());
        let error = Some("connection reset by peer".to_owned());
        assert_eq!(bench.connection.last_event(), Some(&ConnectEvent::Ended { error }));
    }
}
