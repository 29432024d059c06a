//! The sockets of the name server: the guest's questions on one side, those to others on the other. What to say is told by
//! [`crate::dns`].
//!
//! A question in a datagram is answered in one. A connection to port 53 of anybody is connected to us: its other end is a
//! pair of sockets, so that TCP needs to know nothing of it. Each question to somebody else has a socket of its own, whose
//! port the kernel chooses at random, and which takes nothing but what that server sends (RFC 5452).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::{Errno, read, write};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use crate::dns::{Output, QUERY_BYTES_MAX, Transport, framing};
use crate::flow::Flow;
use crate::host;
use crate::limits::{ANSWERS_BYTES_TOTAL, STREAMS_MAX};
use crate::slab::{Key, Slab};
use crate::udp::send_datagram;
use crate::world::{Kind, World};

/// Most questions of one connection that wait for an answer; further ones are read when there is room.
const WAITING_MAX: usize = 32;
/// Bytes that are read at once.
const READ_BYTES: usize = 8 * 1024;
/// Answers of one connection that the guest has not taken, in bytes; when there are more, no further question is read.
const OUTGOING_BYTES_MAX: usize = 64 * 1024;
/// Messages over one connection to a server that answer another question than ours, and are passed over.
const FOREIGN_MAX: usize = 16;

/// What the guest has for the name server.
#[derive(Debug)]
pub(crate) enum Asked {
    /// A question.
    Datagram(Flow, Vec<u8>),
    /// A connection: our end of it.
    Stream(OwnedFd),
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
enum Client {
    Datagram(Flow),
    Stream(Key),
}

/// A connection of the guest's.
#[derive(Debug)]
struct Stream {
    socket: OwnedFd,
    /// What came, up to the first question that is not whole.
    incoming: Vec<u8>,
    /// What the guest has not taken.
    outgoing: Vec<u8>,
    waiting: usize,
    ended: bool,
}

/// A question to somebody else.
#[derive(Debug)]
struct Upstream {
    exchange: u64,
    socket: OwnedFd,
    transport: Transport,
    /// Over TCP: what is to be said yet, and what came.
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    /// Over TCP: messages that answered something else.
    foreign: usize,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Resolver {
    clients: HashMap<u64, Client>,
    count: u64,
    streams: Slab<Stream>,
    upstreams: Slab<Upstream>,
    by_exchange: HashMap<u64, Key>,
    /// Connections of the guest's that may have room for questions that waited, or be at their end.
    answered: Vec<Key>,
    /// Bytes of answers that nobody has taken, and of those that are not all there.
    bytes: usize,
}

impl Resolver {
    pub(crate) fn new() -> Resolver {
        Resolver {
            clients: HashMap::new(),
            count: 0,
            streams: Slab::new(),
            upstreams: Slab::new(),
            by_exchange: HashMap::new(),
            answered: Vec::new(),
            bytes: 0,
        }
    }

    /// Takes what the guest has asked in this turn.
    pub(crate) fn serve(&mut self, world: &mut World) {
        for asked in std::mem::take(&mut world.asked) {
            match asked {
                Asked::Datagram(flow, message) => {
                    self.query(world, Client::Datagram(flow), Transport::Udp, &message);
                }
                Asked::Stream(socket) => self.accept(world, socket),
            }
        }
        if self
            .deadline(world)
            .is_some_and(|deadline| deadline <= world.now)
        {
            let outputs = world.gate.names_tick(world.now);
            self.perform(world, outputs);
        }
        // Answers make room for questions that waited, and the last one ends a connection.
        while let Some(key) = self.answered.pop() {
            self.stream(world, key);
        }
    }

    /// When something is to be done that nobody sends anything for.
    pub(crate) fn deadline(&self, world: &World) -> Option<Instant> {
        world.gate.names_deadline()
    }

    fn query(&mut self, world: &mut World, client: Client, transport: Transport, message: &[u8]) {
        self.count += 1;
        let number = self.count;
        self.clients.insert(number, client);
        let outputs = world.gate.query(world.now, number, transport, message);
        let waits = |output: &Output| matches!(output, Output::Ask { .. } | Output::Reply { .. });
        if !outputs.iter().any(waits) {
            // It was no question.
            self.clients.remove(&number);
            self.replied(client);
        }
        self.perform(world, outputs);
    }

    /// Does what the server says. What comes of that is done in turn.
    fn perform(&mut self, world: &mut World, outputs: Vec<Output>) {
        let mut outputs = std::collections::VecDeque::from(outputs);
        while let Some(output) = outputs.pop_front() {
            match output {
                Output::Reply { client, message } => self.reply(world, client, &message),
                Output::Done { exchange } => self.forget(exchange),
                Output::Event(event) => world.log.dns(&event),
                Output::Ask {
                    exchange,
                    server,
                    transport,
                    message,
                } => {
                    if self
                        .ask(world, (exchange, server, transport), &message)
                        .is_err()
                    {
                        outputs.extend(world.gate.names_failed(world.now, exchange));
                    }
                }
            }
        }
    }

    fn reply(&mut self, world: &mut World, client: u64, message: &[u8]) {
        let Some(client) = self.clients.remove(&client) else {
            return;
        };
        match client {
            Client::Datagram(flow) => send_datagram(world, &flow, message),
            Client::Stream(key) => {
                self.replied(client);
                self.put_answer(key, message);
            }
        }
    }

    /// An answer for a connection of the guest's. When too much waits, the one that does not take this one ends.
    fn put_answer(&mut self, key: Key, message: &[u8]) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        let message = framing::framed(message);
        self.bytes += message.len();
        stream.outgoing.extend(message);
        self.flush(key);
        if self.bytes > ANSWERS_BYTES_TOTAL {
            self.give_up(key);
        }
    }

    fn replied(&mut self, client: Client) {
        if let Client::Stream(key) = client
            && let Some(stream) = self.streams.get_mut(key)
        {
            stream.waiting = stream.waiting.saturating_sub(1);
            self.answered.push(key);
        }
    }

    fn ask(
        &mut self,
        world: &World,
        (exchange, server, transport): (u64, SocketAddr, Transport),
        message: &[u8],
    ) -> Result<(), Errno> {
        let (socket, outgoing) = match transport {
            Transport::Udp => (host::datagrams(server)?, Vec::new()),
            Transport::Tcp => (host::dial(server)?, framing::framed(message)),
        };
        if transport == Transport::Udp {
            send(&socket, message, SendFlags::NOSIGNAL)?;
        }
        let key = self.upstreams.insert(Upstream {
            exchange,
            socket,
            transport,
            outgoing,
            incoming: Vec::new(),
            foreign: 0,
        });
        let Some(upstream) = self.upstreams.get(key) else {
            return Err(Errno::NOENT);
        };
        let flags = match transport {
            Transport::Udp => EventFlags::IN,
            Transport::Tcp => EventFlags::IN | EventFlags::OUT | EventFlags::ET,
        };
        if let Err(error) = world.watch(
            upstream.socket.as_fd(),
            Kind::Upstream,
            key.to_bits(),
            flags,
        ) {
            self.upstreams.remove(key);
            return Err(error);
        }
        self.by_exchange.insert(exchange, key);
        Ok(())
    }

    /// Something came from somebody who was asked.
    pub(crate) fn upstream(&mut self, world: &mut World, key: Key) {
        // Over TCP the answer may stand behind others, of which nothing more will tell.
        while let Some(upstream) = self.upstreams.get_mut(key) {
            let exchange = upstream.exchange;
            let before = upstream.incoming.len();
            let come = match upstream.transport {
                Transport::Udp => datagram(upstream, &mut world.scratch),
                Transport::Tcp => message(upstream),
            };
            self.bytes = self.bytes - before + upstream.incoming.len();
            let too_much = self.bytes > ANSWERS_BYTES_TOTAL || upstream.foreign > FOREIGN_MAX;
            let is_stream = upstream.transport == Transport::Tcp;
            let outputs = match come {
                Come::Nothing if !too_much => return,
                Come::Message(message) if !too_much => {
                    world.gate.answer(world.now, exchange, &message)
                }
                _ => {
                    self.forget(exchange);
                    world.gate.names_failed(world.now, exchange)
                }
            };
            self.perform(world, outputs);
            if !is_stream {
                return;
            }
        }
    }

    /// Nothing more is wanted of a server.
    fn forget(&mut self, exchange: u64) {
        let key = self.by_exchange.remove(&exchange);
        let upstream = key.and_then(|key| self.upstreams.remove(key));
        self.bytes -= upstream.map_or(0, |upstream| upstream.incoming.len());
    }

    fn accept(&mut self, world: &mut World, socket: OwnedFd) {
        // Where it is not taken its end is closed, and the guest's connection ends.
        if self.streams.len() >= STREAMS_MAX {
            return;
        }
        let stream = Stream {
            socket,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            waiting: 0,
            ended: false,
        };
        let key = self.streams.insert(stream);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let watched = self
            .streams
            .get(key)
            .map(|stream| world.watch(stream.socket.as_fd(), Kind::Stream, key.to_bits(), flags));
        if !matches!(watched, Some(Ok(()))) {
            self.streams.remove(key);
        }
    }

    /// A connection of the guest's has something, or takes something.
    pub(crate) fn stream(&mut self, world: &mut World, key: Key) {
        self.flush(key);
        while let Some(question) = self.next_question(key) {
            self.query(world, Client::Stream(key), Transport::Tcp, &question);
        }
        let over = self.streams.get(key).is_some_and(|stream| {
            stream.ended && stream.waiting == 0 && stream.outgoing.is_empty()
        });
        if over {
            self.streams.remove(key);
        }
    }

    /// The next question of a connection, if it is whole, and may be asked now.
    fn next_question(&mut self, key: Key) -> Option<Vec<u8>> {
        let stream = self.streams.get_mut(key)?;
        if stream.waiting >= WAITING_MAX || stream.outgoing.len() > OUTGOING_BYTES_MAX {
            return None;
        }
        loop {
            if let Some((message, taken)) = framing::first(&stream.incoming) {
                let message = message.to_vec();
                stream.incoming.drain(..taken);
                stream.waiting += 1;
                return Some(message);
            }
            // No question is so long: it is not waited for.
            stream.ended |= stream.incoming.len() > framing::LENGTH + QUERY_BYTES_MAX;
            if stream.ended {
                return None;
            }
            let mut buffer = [0; READ_BYTES];
            match read(&stream.socket, &mut buffer[..]) {
                Ok(0) => stream.ended = true,
                Ok(count) => stream.incoming.extend_from_slice(&buffer[..count]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(_) => stream.ended = true,
            }
        }
    }

    /// Writes what waits for the guest to take it.
    fn flush(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        let before = stream.outgoing.len();
        let put = put(&stream.socket, &mut stream.outgoing);
        self.bytes = self.bytes - before + stream.outgoing.len();
        if put.is_err() {
            self.give_up(key);
        }
    }

    /// Ends a connection of the guest's that takes nothing.
    fn give_up(&mut self, key: Key) {
        let stream = self.streams.remove(key);
        self.bytes -= stream.map_or(0, |stream| stream.outgoing.len());
    }
}

/// What came of reading.
enum Come {
    Nothing,
    Message(Vec<u8>),
    Failure,
}

fn datagram(upstream: &Upstream, buffer: &mut [u8]) -> Come {
    match recv(&upstream.socket, &mut *buffer, RecvFlags::DONTWAIT) {
        Ok((count, _)) => Come::Message(buffer[..count].to_vec()),
        Err(Errno::AGAIN | Errno::INTR) => Come::Nothing,
        Err(_) => Come::Failure,
    }
}

fn message(upstream: &mut Upstream) -> Come {
    if put(&upstream.socket, &mut upstream.outgoing).is_err() {
        return Come::Failure;
    }
    loop {
        if let Some((message, taken)) = framing::first(&upstream.incoming) {
            let message = message.to_vec();
            upstream.incoming.drain(..taken);
            upstream.foreign += 1;
            return Come::Message(message);
        }
        let mut buffer = [0; READ_BYTES];
        match read(&upstream.socket, &mut buffer[..]) {
            Ok(0) => return Come::Failure,
            Ok(count) => upstream.incoming.extend_from_slice(&buffer[..count]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::NOTCONN) => return Come::Nothing,
            Err(_) => return Come::Failure,
        }
    }
}

/// Writes as much as is taken.
fn put(socket: &OwnedFd, bytes: &mut Vec<u8>) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(socket, bytes) {
            Ok(count) => drop(bytes.drain(..count)),
            Err(Errno::INTR) => {}
            // A connection that is not there yet takes nothing.
            Err(Errno::AGAIN | Errno::NOTCONN) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A connection to ourselves: the end that TCP has. The other is taken when the turn is over.
pub(crate) fn connect(world: &mut World) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (theirs, ours) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    world.asked.push(Asked::Stream(ours));
    Ok(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, UdpSocket};

    use crate::ip::{self, Frame, protocol};
    use crate::testing::{Guest, datagram, flow, frame};
    use libmsb::net::policy::Policy;

    /// A question for the address of a.example.com.
    const QUESTION: &[u8] = b"\0\x09\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\x03com\0\0\x01\0\x01";
    /// The number that the tests' guest has the name server ask with.
    const ID: [u8; 2] = [0, 7];

    /// An answer to it, with such a number and address; cut if there is none.
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
    fn an_answer_over_tcp_is_found_behind_those_to_other_questions() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = UdpSocket::bind(address).unwrap();
        server.set_nonblocking(true).unwrap();
        let mut guest = Guest::under(Policy::public(), 16, Vec::new(), vec![address]);
        let flow = flow(1234, "8.8.8.8:53");
        guest.send(&frame(
            &flow,
            protocol::UDP,
            None,
            &datagram(&flow, QUESTION),
        ));
        let mut buffer = [0; 512];
        let (_, from) = guest.until("a question", |_| server.recv_from(&mut buffer).ok());
        server.send_to(&answer(ID, None), from).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (mut peer, _) = guest.until("a connection", |_| listener.accept().ok());
        peer.set_nonblocking(true).unwrap();
        guest.until("a question over TCP", |_| peer.read(&mut buffer).ok());
        let messages = [
            answer([0, 8], Some([9, 9, 9, 9])),
            answer(ID, Some([1, 2, 3, 4])),
        ];
        peer.write_all(&messages.map(|message| framing::framed(&message)).concat())
            .unwrap();
        let told = guest.until("an answer", |guest| {
            guest
                .frames()
                .into_iter()
                .find_map(|frame| match ip::parse(&frame) {
                    Some(Frame::Ip(packet)) => {
                        crate::udp::parse(&packet).map(|told| told.1.to_vec())
                    }
                    _ => None,
                })
        });
        assert_eq!(told[..2], QUESTION[..2]);
        assert_eq!(told[told.len() - 4..], [1, 2, 3, 4]);
    }
}
