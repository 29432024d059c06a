//! ICMP and ICMPv6: echoes, and the errors that the guest is told.
//!
//! The gateway answers echoes itself. Those to others go through the host's sockets for echoes, one for each identifier and
//! peer; where the system does not grant these, the guest is told that they are forbidden. Nothing else passes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::checksum::Sum;
use crate::flow::Flow;
use crate::host;
use crate::ip::{Head, Packet, protocol};
use crate::limits::{PING_FLOWS_MAX, PING_TIMEOUT};
use crate::slab::{Key, Slab};
use crate::tcp::Seq;
use crate::timers::Timers;
use crate::world::{Kind, World};

/// Types of messages.
mod kind {
    pub(super) const V4_REPLY: u8 = 0;
    pub(super) const V4_UNREACHABLE: u8 = 3;
    pub(super) const V4_ECHO: u8 = 8;
    pub(super) const V6_UNREACHABLE: u8 = 1;
    pub(super) const V6_TOO_BIG: u8 = 2;
    pub(super) const V6_ECHO: u8 = 128;
    pub(super) const V6_REPLY: u8 = 129;
}

/// Bytes of a message's header.
const HEADER: usize = 8;
/// Bytes of a packet that an error quotes: IPv4's packets stay below 576 bytes (RFC 1812, 4.3.2.3), IPv6's below 1280.
const QUOTE_V4: usize = 548;
const QUOTE_V6: usize = 1232;

/// What an error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// There is no way to the host.
    Host,
    /// Nobody listens at the port.
    Port,
    /// It is forbidden.
    Forbidden,
    /// Only packets of so many bytes get there.
    TooBig(u16),
}

/// What an error of the host's sockets means, if it is about reaching somebody.
pub(crate) fn unreachable_code(error: Errno) -> Option<Code> {
    match error {
        Errno::HOSTUNREACH
        | Errno::NETUNREACH
        | Errno::TIMEDOUT
        | Errno::HOSTDOWN
        | Errno::NETDOWN => Some(Code::Host),
        _ => None,
    }
}

/// Tells the guest that its packet got nowhere.
pub(crate) fn unreachable(world: &mut World, packet: &Packet<'_>, code: Code) {
    error(world, packet.source, packet.destination, packet.whole, code);
}

/// The same for a connection, whose packet is not there any more: what is quoted of it, the ports and the first sequence
/// number, is made again.
pub(crate) fn unreachable_flow(world: &mut World, flow: &Flow, rcv: Seq, code: Code) {
    let mut quote = Vec::with_capacity(crate::ip::ETHERNET + crate::ip::V6 + HEADER);
    Head::new(flow.guest.address, flow.remote.address, protocol::TCP).write(
        &world.network,
        &mut quote,
        20,
    );
    quote.extend_from_slice(&flow.guest.port.to_be_bytes());
    quote.extend_from_slice(&flow.remote.port.to_be_bytes());
    quote.extend_from_slice(&rcv.0.wrapping_sub(1).to_be_bytes());
    let quote = &quote[crate::ip::ETHERNET..];
    error(world, flow.guest.address, flow.remote.address, quote, code);
}

fn error(world: &mut World, guest: IpAddr, remote: IpAddr, quote: &[u8], code: Code) {
    let Some(gateway) = world.network.gateway(guest) else {
        return;
    };
    // An error that is about a port comes from the host itself.
    let source = if code == Code::Port { remote } else { gateway };
    let (kind, code, mtu, quoted) = match (guest, code) {
        (IpAddr::V4(_), Code::Host) => (kind::V4_UNREACHABLE, 1, 0, QUOTE_V4),
        (IpAddr::V4(_), Code::Port) => (kind::V4_UNREACHABLE, 3, 0, QUOTE_V4),
        (IpAddr::V4(_), Code::Forbidden) => (kind::V4_UNREACHABLE, 13, 0, QUOTE_V4),
        (IpAddr::V4(_), Code::TooBig(mtu)) => (kind::V4_UNREACHABLE, 4, mtu, QUOTE_V4),
        (IpAddr::V6(_), Code::Host) => (kind::V6_UNREACHABLE, 3, 0, QUOTE_V6),
        (IpAddr::V6(_), Code::Port) => (kind::V6_UNREACHABLE, 4, 0, QUOTE_V6),
        (IpAddr::V6(_), Code::Forbidden) => (kind::V6_UNREACHABLE, 1, 0, QUOTE_V6),
        (IpAddr::V6(_), Code::TooBig(mtu)) => (kind::V6_TOO_BIG, 0, mtu, QUOTE_V6),
    };
    let [high, low] = mtu.to_be_bytes();
    let header = [kind, code, 0, 0, 0, 0, high, low];
    let quote = &quote[..quote.len().min(quoted)];
    send_message(world, source, guest, header, quote);
}

/// Sends a message, its checksum filled in, if it fits into a packet.
fn send_message(
    world: &mut World,
    source: IpAddr,
    guest: IpAddr,
    mut header: [u8; HEADER],
    rest: &[u8],
) {
    let head = Head::new(source, guest, number(guest));
    let length = HEADER + rest.len();
    header[2..4].fill(0);
    let sum = if guest.is_ipv4() {
        Sum::default()
    } else {
        head.pseudo(length)
    };
    let sum = sum.add(&header).add(rest).finish();
    header[2..4].copy_from_slice(&sum);
    let message = [&header[..], rest].concat();
    crate::udp::send_packet(world, &head, &message);
}

/// The protocol's number.
fn number(address: IpAddr) -> u8 {
    if address.is_ipv4() {
        protocol::ICMP
    } else {
        protocol::ICMPV6
    }
}

/// Who asks whom for an echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Asks {
    guest: IpAddr,
    remote: IpAddr,
    id: [u8; 2],
}

struct Echoes {
    asks: Asks,
    socket: OwnedFd,
    used: Instant,
    timer: Option<Instant>,
}

/// Echoes that are under way.
pub(crate) struct Icmp {
    flows: Slab<Echoes>,
    by_asks: HashMap<Asks, Key>,
    timers: Timers<Key>,
}

impl Icmp {
    pub(crate) fn new() -> Icmp {
        Icmp {
            flows: Slab::new(),
            by_asks: HashMap::new(),
            timers: Timers::new(),
        }
    }

    /// A message from the guest.
    pub(crate) fn packet(&mut self, world: &mut World, packet: &Packet<'_>) {
        let Some((header, rest)) = packet.payload.split_first_chunk::<HEADER>() else {
            return;
        };
        let (echo, reply) = match packet.source {
            IpAddr::V4(_) => (kind::V4_ECHO, kind::V4_REPLY),
            IpAddr::V6(_) => (kind::V6_ECHO, kind::V6_REPLY),
        };
        if header[0] != echo || header[1] != 0 {
            return;
        }
        if world.network.is_gateway(packet.destination) {
            let mut header = *header;
            header[0] = reply;
            return send_message(world, packet.destination, packet.source, header, rest);
        }
        let told = (world.now, &mut world.log);
        if !world.gate.ping(packet.source, packet.destination, told) {
            return unreachable(world, packet, Code::Forbidden);
        }
        self.ask(world, packet, [header[4], header[5]]);
    }

    fn ask(&mut self, world: &mut World, packet: &Packet<'_>, id: [u8; 2]) {
        let asks = Asks {
            guest: packet.source,
            remote: packet.destination,
            id,
        };
        let key = match self.by_asks.get(&asks) {
            Some(key) => *key,
            None => match self.open(world, asks) {
                Ok(key) => key,
                Err(Errno::ACCESS | Errno::PERM) => {
                    return unreachable(world, packet, Code::Forbidden);
                }
                Err(_) => return unreachable(world, packet, Code::Host),
            },
        };
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        flow.used = world.now;
        if let Err(error) = send(&flow.socket, packet.payload, SendFlags::NOSIGNAL)
            && let Some(code) = unreachable_code(error)
        {
            unreachable(world, packet, code);
        }
    }

    fn open(&mut self, world: &mut World, asks: Asks) -> Result<Key, Errno> {
        if self.flows.len() >= PING_FLOWS_MAX {
            return Err(Errno::NOBUFS);
        }
        let socket = host::echoes(asks.remote)?;
        let key = self.flows.insert(Echoes {
            asks,
            socket,
            used: world.now,
            timer: None,
        });
        let watched = self.flows.get(key).ok_or(Errno::NOENT).and_then(|flow| {
            world.watch(
                flow.socket.as_fd(),
                Kind::Ping,
                key.to_bits(),
                EventFlags::IN,
            )
        });
        if let Err(error) = watched {
            self.flows.remove(key);
            return Err(error);
        }
        self.by_asks.insert(asks, key);
        if let Some(added) = self.flows.get_mut(key) {
            self.timers
                .set(&mut added.timer, world.now + PING_TIMEOUT, key);
        }
        Ok(key)
    }

    /// An echo came back.
    pub(crate) fn event(&mut self, world: &mut World, key: Key) {
        let Some(flow) = self.flows.get(key) else {
            return;
        };
        let mut message = std::mem::take(&mut world.scratch);
        let received = recv(&flow.socket, &mut message[..], RecvFlags::DONTWAIT);
        if let Ok((count, _)) = received
            && let Some((header, rest)) = message[..count].split_first_chunk::<HEADER>()
            && matches!(header[0], kind::V4_REPLY | kind::V6_REPLY)
        {
            let mut header = *header;
            header[4..6].copy_from_slice(&flow.asks.id);
            send_message(world, flow.asks.remote, flow.asks.guest, header, rest);
        }
        world.scratch = message;
    }

    /// When the next timer is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Ends those that nobody uses.
    pub(crate) fn tick(&mut self, now: Instant) {
        while let Some(key) = self.timers.pop_due(now) {
            let Some(flow) = self.flows.get_mut(key) else {
                continue;
            };
            flow.timer = None;
            let end = flow.used + PING_TIMEOUT;
            if end > now {
                self.timers.set(&mut flow.timer, end, key);
            } else if let Some(flow) = self.flows.remove(key) {
                self.by_asks.remove(&flow.asks);
            }
        }
    }
}
