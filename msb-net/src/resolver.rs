//! Sockets of the resolver: queries of the guest on one side, exchanges with upstream name servers
//! on the other. [`crate::dns`] decides what to send.
//!
//! A query in a datagram is answered with one. A connection to port 53 of any address is connected
//! to the resolver through a socket pair, so TCP needs no special case. Each query to an upstream
//! server has its own socket, with a random port chosen by the kernel, which accepts only packets
//! from that server (RFC 5452).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::{Errno, read, write};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::context::{EventSource, StackContext};
use crate::dns::{DnsOutput, DnsRequest, DnsTransport, QUERY_BYTES_MAX, framing};
use crate::flow::Flow;
use crate::host_sockets;
use crate::limits::{ANSWERS_BYTES_TOTAL, STREAMS_MAX};
use crate::slab::{Slab, SlabKey};
use crate::udp::datagram;

/// Limit of pending queries of one connection; further ones are read later.
const PENDING_MAX: usize = 32;
/// Bytes read at once.
const READ_BYTES: usize = 8 * 1024;
/// Limit of answers that the guest has not read on one connection, in bytes. Beyond it no further
/// query is read.
const OUTGOING_BYTES_MAX: usize = 64 * 1024;
/// Limit of messages on one upstream connection that answer another query and are ignored.
const UNRELATED_MAX: usize = 16;

/// The client that waits for an answer.
#[derive(Clone, Copy, Debug)]
enum DnsClient {
    Datagram(Flow),
    Stream(SlabKey),
}

/// A connection of the guest.
#[derive(Debug)]
struct DnsStream {
    socket: OwnedFd,
    /// Received bytes up to the first incomplete query.
    incoming: Vec<u8>,
    /// Bytes that the guest has not read.
    outgoing: Vec<u8>,
    pending: usize,
    closed: bool,
}

/// A query to an upstream server.
#[derive(Debug)]
struct UpstreamExchange {
    exchange: u64,
    socket: OwnedFd,
    transport: DnsTransport,
    /// Over TCP: bytes to send, and bytes received.
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    /// Over TCP: number of messages that answered another query.
    unrelated: usize,
}

/// The sockets of the resolver.
#[derive(Debug)]
pub(crate) struct Resolver {
    clients: HashMap<u64, DnsClient>,
    client_count: u64,
    streams: Slab<DnsStream>,
    upstreams: Slab<UpstreamExchange>,
    by_exchange: HashMap<u64, SlabKey>,
    /// Connections that may have space for waiting queries, or may have ended.
    streams_to_check: Vec<SlabKey>,
    /// Bytes of unread answers and of incomplete upstream answers.
    bytes: usize,
}

impl Resolver {
    pub(crate) fn new() -> Resolver {
        Resolver {
            clients: HashMap::new(),
            client_count: 0,
            streams: Slab::new(),
            upstreams: Slab::new(),
            by_exchange: HashMap::new(),
            streams_to_check: Vec::new(),
            bytes: 0,
        }
    }

    /// Handles the requests that the guest made in this turn.
    pub(crate) fn serve_requests(&mut self, context: &mut StackContext) {
        for request in context.dns_requests.take() {
            match request {
                DnsRequest::Datagram(flow, message) => {
                    self.query(context, DnsClient::Datagram(flow), DnsTransport::Udp, &message);
                }
                DnsRequest::Stream(socket) => self.accept(context, socket),
            }
        }
        if self.deadline(context).is_some_and(|deadline| deadline <= context.now) {
            let outputs = context.gate.dns_tick(context.now);
            self.perform_outputs(context, outputs);
        }
        // Answers make space for waiting queries, and the last one ends a connection.
        while let Some(key) = self.streams_to_check.pop() {
            self.handle_stream(context, key);
        }
    }

    /// Returns the time of the next timeout.
    pub(crate) fn deadline(&self, context: &StackContext) -> Option<Instant> {
        context.gate.dns_deadline()
    }

    /// Passes a query to the server and performs its outputs.
    fn query(
        &mut self,
        context: &mut StackContext,
        client: DnsClient,
        transport: DnsTransport,
        message: &[u8],
    ) {
        self.client_count += 1;
        let number = self.client_count;
        self.clients.insert(number, client);
        let outputs = context.gate.dns_query(context.now, number, transport, message);
        let is_pending =
            |output: &DnsOutput| matches!(output, DnsOutput::Ask { .. } | DnsOutput::Reply { .. });
        if !outputs.iter().any(is_pending) {
            // It was not a query.
            self.clients.remove(&number);
            self.query_done(client);
        }
        self.perform_outputs(context, outputs);
    }

    /// Performs the server's outputs, and those that result from them.
    fn perform_outputs(&mut self, context: &mut StackContext, outputs: Vec<DnsOutput>) {
        let mut outputs = std::collections::VecDeque::from(outputs);
        while let Some(output) = outputs.pop_front() {
            match output {
                DnsOutput::Reply { client, message } => self.reply(context, client, &message),
                DnsOutput::Done { exchange } => self.close_exchange(exchange),
                DnsOutput::Event(event) => context.log.log_dns(&event),
                DnsOutput::Ask { exchange, server, transport, message } => {
                    if self.send_query(context, (exchange, server, transport), &message).is_err() {
                        outputs.extend(context.gate.dns_failed(context.now, exchange));
                    }
                }
            }
        }
    }

    /// Sends a reply to the client.
    fn reply(&mut self, context: &mut StackContext, client: u64, message: &[u8]) {
        let Some(client) = self.clients.remove(&client) else {
            return;
        };
        match client {
            DnsClient::Datagram(flow) => datagram::send(&mut context.emitter, &flow, message),
            DnsClient::Stream(key) => {
                self.query_done(client);
                self.queue_answer(key, message);
            }
        }
    }

    /// Queues an answer for a connection of the guest. When the limit is exceeded, that connection
    /// is closed.
    fn queue_answer(&mut self, key: SlabKey, message: &[u8]) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        let message = framing::frame_message(message);
        self.bytes += message.len();
        stream.outgoing.extend(message);
        self.flush(key);
        if self.bytes > ANSWERS_BYTES_TOTAL {
            self.close_stream(key);
        }
    }

    fn query_done(&mut self, client: DnsClient) {
        if let DnsClient::Stream(key) = client
            && let Some(stream) = self.streams.get_mut(key)
        {
            stream.pending = stream.pending.saturating_sub(1);
            self.streams_to_check.push(key);
        }
    }

    /// Opens a socket to an upstream server and sends a query.
    fn send_query(
        &mut self,
        context: &StackContext,
        (exchange, server, transport): (u64, SocketAddr, DnsTransport),
        message: &[u8],
    ) -> Result<(), Errno> {
        let (socket, outgoing) = match transport {
            DnsTransport::Udp => (host_sockets::datagrams(server)?, Vec::new()),
            DnsTransport::Tcp => (host_sockets::dial(server)?, framing::frame_message(message)),
        };
        if transport == DnsTransport::Udp {
            send(&socket, message, SendFlags::NOSIGNAL)?;
        }
        let key = self.upstreams.insert(UpstreamExchange {
            exchange,
            socket,
            transport,
            outgoing,
            incoming: Vec::new(),
            unrelated: 0,
        });
        let Some(upstream) = self.upstreams.get(key) else {
            return Err(Errno::NOENT);
        };
        let flags = match transport {
            DnsTransport::Udp => EventFlags::IN,
            DnsTransport::Tcp => EventFlags::IN | EventFlags::OUT | EventFlags::ET,
        };
        if let Err(error) =
            context.watch(upstream.socket.as_fd(), EventSource::DnsUpstream, key.to_bits(), flags)
        {
            self.upstreams.remove(key);
            return Err(error);
        }
        self.by_exchange.insert(exchange, key);
        Ok(())
    }

    /// Handles an event of an upstream socket.
    pub(crate) fn handle_upstream(&mut self, context: &mut StackContext, key: SlabKey) {
        // Over TCP the answer may follow others, for which there is no further event.
        while let Some(upstream) = self.upstreams.get_mut(key) {
            let exchange = upstream.exchange;
            let before = upstream.incoming.len();
            let read_result = match upstream.transport {
                DnsTransport::Udp => read_datagram(upstream, &mut context.scratch),
                DnsTransport::Tcp => read_message(upstream),
            };
            self.bytes = self.bytes - before + upstream.incoming.len();
            let too_much = self.bytes > ANSWERS_BYTES_TOTAL || upstream.unrelated > UNRELATED_MAX;
            let is_stream = upstream.transport == DnsTransport::Tcp;
            let outputs = match read_result {
                UpstreamRead::Nothing if !too_much => return,
                UpstreamRead::Message(message) if !too_much => {
                    context.gate.dns_answer(context.now, exchange, &message)
                }
                _ => {
                    self.close_exchange(exchange);
                    context.gate.dns_failed(context.now, exchange)
                }
            };
            self.perform_outputs(context, outputs);
            if !is_stream {
                return;
            }
        }
    }

    /// Closes the socket of an exchange.
    fn close_exchange(&mut self, exchange: u64) {
        let key = self.by_exchange.remove(&exchange);
        let upstream = key.and_then(|key| self.upstreams.remove(key));
        self.bytes -= upstream.map_or(0, |upstream| upstream.incoming.len());
    }

    fn accept(&mut self, context: &mut StackContext, socket: OwnedFd) {
        // Dropping the socket ends the guest's connection.
        if self.streams.len() >= STREAMS_MAX {
            return;
        }
        let stream = DnsStream {
            socket,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            pending: 0,
            closed: false,
        };
        let key = self.streams.insert(stream);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let watched = self.streams.get(key).map(|stream| {
            context.watch(stream.socket.as_fd(), EventSource::DnsStream, key.to_bits(), flags)
        });
        if !matches!(watched, Some(Ok(()))) {
            self.streams.remove(key);
        }
    }

    /// Handles an event of a connection of the guest.
    pub(crate) fn handle_stream(&mut self, context: &mut StackContext, key: SlabKey) {
        self.flush(key);
        while let Some(query) = self.next_query(key) {
            self.query(context, DnsClient::Stream(key), DnsTransport::Tcp, &query);
        }
        let over = self.streams.get(key).is_some_and(|stream| {
            stream.closed && stream.pending == 0 && stream.outgoing.is_empty()
        });
        if over {
            self.streams.remove(key);
        }
    }

    /// Returns the next complete query of a connection, unless too many are pending.
    fn next_query(&mut self, key: SlabKey) -> Option<Vec<u8>> {
        let stream = self.streams.get_mut(key)?;
        if stream.pending >= PENDING_MAX || stream.outgoing.len() > OUTGOING_BYTES_MAX {
            return None;
        }
        loop {
            if let Some((message, taken)) = framing::first_message(&stream.incoming) {
                let message = message.to_vec();
                stream.incoming.drain(..taken);
                stream.pending += 1;
                return Some(message);
            }
            // No valid query is that long.
            stream.closed |= stream.incoming.len() > framing::LENGTH_BYTES + QUERY_BYTES_MAX;
            if stream.closed {
                return None;
            }
            let mut buffer = [0; READ_BYTES];
            match read(&stream.socket, &mut buffer[..]) {
                Ok(0) => stream.closed = true,
                Ok(count) => stream.incoming.extend_from_slice(&buffer[..count]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(_) => stream.closed = true,
            }
        }
    }

    /// Writes queued answers.
    fn flush(&mut self, key: SlabKey) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        let before = stream.outgoing.len();
        let result = write_queued(&stream.socket, &mut stream.outgoing);
        self.bytes = self.bytes - before + stream.outgoing.len();
        if result.is_err() {
            self.close_stream(key);
        }
    }

    /// Closes a connection of the guest.
    fn close_stream(&mut self, key: SlabKey) {
        let stream = self.streams.remove(key);
        self.bytes -= stream.map_or(0, |stream| stream.outgoing.len());
    }
}

/// Result of reading an upstream socket.
enum UpstreamRead {
    Nothing,
    Message(Vec<u8>),
    Failed,
}

fn read_datagram(upstream: &UpstreamExchange, buffer: &mut [u8]) -> UpstreamRead {
    match recv(&upstream.socket, &mut *buffer, RecvFlags::DONTWAIT) {
        Ok((count, _)) => UpstreamRead::Message(buffer[..count].to_vec()),
        Err(Errno::AGAIN | Errno::INTR) => UpstreamRead::Nothing,
        Err(_) => UpstreamRead::Failed,
    }
}

fn read_message(upstream: &mut UpstreamExchange) -> UpstreamRead {
    if write_queued(&upstream.socket, &mut upstream.outgoing).is_err() {
        return UpstreamRead::Failed;
    }
    loop {
        if let Some((message, taken)) = framing::first_message(&upstream.incoming) {
            let message = message.to_vec();
            upstream.incoming.drain(..taken);
            upstream.unrelated += 1;
            return UpstreamRead::Message(message);
        }
        let mut buffer = [0; READ_BYTES];
        match read(&upstream.socket, &mut buffer[..]) {
            Ok(0) => return UpstreamRead::Failed,
            Ok(count) => upstream.incoming.extend_from_slice(&buffer[..count]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::NOTCONN) => return UpstreamRead::Nothing,
            Err(_) => return UpstreamRead::Failed,
        }
    }
}

/// Writes as much as the socket accepts.
fn write_queued(socket: &OwnedFd, bytes: &mut Vec<u8>) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(socket, bytes) {
            Ok(count) => drop(bytes.drain(..count)),
            Err(Errno::INTR) => {}
            // A socket that is still connecting accepts nothing.
            Err(Errno::AGAIN | Errno::NOTCONN) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, UdpSocket};

    use crate::ip::{self, Frame, protocol};
    use crate::testing::{TestGuest, datagram, flow, frame};
    use libmsb::net::policy::Policy;

    /// A query for the address of a.example.com.
    const QUESTION: &[u8] = b"\0\x09\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\x03com\0\0\x01\0\x01";
    /// Message identifier that the test guest's resolver uses.
    const ID: [u8; 2] = [0, 7];

    /// Builds an answer with this identifier and address; truncated if there is no address.
    fn answer(id: [u8; 2], address: Option<[u8; 4]>) -> Vec<u8> {
        let mut message = QUESTION.to_vec();
        message[..2].copy_from_slice(&id);
        message[2..4].copy_from_slice(&[0x83, 0x80]);
        if let Some(address) = address {
            message[2] = 0x81;
            message[7] = 1;
            message.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04");
            message.extend_from_slice(&address);
        }
        message
    }

    #[test]
    fn an_answer_over_tcp_is_found_after_unrelated_ones() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = UdpSocket::bind(address).unwrap();
        server.set_nonblocking(true).unwrap();
        let mut guest = TestGuest::with_policy(Policy::public(), 16, Vec::new(), vec![address]);
        let flow = flow(1234, "8.8.8.8:53");
        guest.send(&frame(&flow, protocol::UDP, None, &datagram(&flow, QUESTION)));
        let mut buffer = [0; 512];
        let (_, from) = guest.poll_until("a question", |_| server.recv_from(&mut buffer).ok());
        server.send_to(&answer(ID, None), from).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (mut peer, _) = guest.poll_until("a connection", |_| listener.accept().ok());
        peer.set_nonblocking(true).unwrap();
        guest.poll_until("a question over TCP", |_| peer.read(&mut buffer).ok());
        let messages = [answer([0, 8], Some([9, 9, 9, 9])), answer(ID, Some([1, 2, 3, 4]))];
        peer.write_all(&messages.map(|message| framing::frame_message(&message)).concat()).unwrap();
        let reply = guest.poll_until("an answer", |guest| {
            guest.frames().into_iter().find_map(|frame| match ip::parse(&frame) {
                Some(Frame::Ip(packet)) => {
                    crate::udp::datagram::parse(&packet).map(|reply| reply.1.to_vec())
                }
                _ => None,
            })
        });
        assert_eq!(reply[..2], QUESTION[..2]);
        assert_eq!(reply[reply.len() - 4..], [1, 2, 3, 4]);
    }
}
