//! UDP: the guest's datagrams, a socket of the host for each pair of ends.
//!
//! Datagrams that are larger than the wire takes travel in pieces, in both directions, as IP has it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use libmsb::net::rule::Protocol;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sendto};

use crate::flow::{End, Flow};
use crate::gate::{DNS_PORT, Way};
use crate::host;
use crate::icmp::{self, Code};
use crate::ip::{self, Head, Packet, Piece, protocol};
use crate::kept::Kept;
use crate::limits::{UDP_CALLERS_MAX, UDP_FLOWS_MAX, UDP_TIMEOUT};
use crate::policy::Facts;
use crate::resolver::Asked;
use crate::slab::{Key, Slab};
use crate::timers::Timers;
use crate::world::{Kind, World};

/// Bytes of the header.
const HEADER: usize = 8;
/// How a flow ends, in events: nothing came for long, or the policy has become another.
const SILENT: &str = "silent";
const DENIED: &str = "denied";
/// Datagrams of one flow that are read in its turn.
const READS: usize = 64;

/// The host's side of a flow.
enum Side {
    /// The guest began it.
    Own(OwnedFd),
    /// Somebody wrote to a published port; answers leave from there.
    Published { port: u32, peer: SocketAddr },
}

struct Datagrams {
    flow: Flow,
    /// What it was judged by.
    facts: Kept,
    id: u64,
    side: Side,
    opened: Instant,
    used: Instant,
    timer: Option<Instant>,
    bytes_up: u64,
    bytes_down: u64,
}

/// All flows.
pub(crate) struct Udp {
    flows: Slab<Datagrams>,
    by_flow: HashMap<Flow, Key>,
    timers: Timers<Key>,
    count: u64,
    /// How many of them came through published ports.
    callers: usize,
}

impl Side {
    fn is_published(&self) -> bool {
        matches!(self, Side::Published { .. })
    }
}

impl Udp {
    pub(crate) fn new() -> Udp {
        Udp {
            flows: Slab::new(),
            by_flow: HashMap::new(),
            timers: Timers::new(),
            count: 0,
            callers: 0,
        }
    }

    /// A datagram from the guest.
    pub(crate) fn packet(&mut self, world: &mut World, packet: &Packet<'_>) {
        let Some((flow, payload)) = parse(packet) else {
            return;
        };
        let key = match self.by_flow.get(&flow) {
            Some(key) => *key,
            None if flow.remote.port == DNS_PORT => {
                return world.asked.push(Asked::Datagram(flow, payload.to_vec()));
            }
            None => match self.open(world, flow) {
                Ok(Some(key)) => key,
                Ok(None) => return icmp::unreachable(world, packet, Code::Forbidden),
                Err(error) => {
                    let code = icmp::unreachable_code(error).unwrap_or(Code::Forbidden);
                    return icmp::unreachable(world, packet, code);
                }
            },
        };
        let Some(datagrams) = self.flows.get_mut(key) else {
            return;
        };
        datagrams.used = world.now;
        datagrams.bytes_up += payload.len() as u64;
        let sent = match &datagrams.side {
            Side::Own(socket) => send(socket, payload, SendFlags::NOSIGNAL),
            Side::Published { port, peer } => match world.ports.get(*port as usize) {
                Some(Some(port)) => sendto(&port.socket, payload, SendFlags::NOSIGNAL, peer),
                _ => Ok(0),
            },
        };
        match sent {
            Err(Errno::MSGSIZE) => icmp::unreachable(world, packet, Code::TooBig(ip_mtu(packet))),
            // Of the datagram before this one; this one was not sent.
            Err(Errno::CONNREFUSED) => icmp::unreachable(world, packet, Code::Port),
            Err(error) => {
                if let Some(code) = icmp::unreachable_code(error) {
                    icmp::unreachable(world, packet, code);
                }
            }
            Ok(_) => {}
        }
    }

    /// `None`: it is forbidden.
    fn open(&mut self, world: &mut World, flow: Flow) -> Result<Option<Key>, Errno> {
        let (network, log) = (&world.network, &mut world.log);
        let way = world
            .gate
            .egress(network, &flow, Protocol::Udp, (world.now, log));
        let Some(Way::To { target, facts, .. }) = way else {
            return Ok(None);
        };
        let socket = host::datagrams(target)?;
        let key = self.add(world, (flow, facts), Side::Own(socket));
        let Some(Side::Own(socket)) = self.flows.get(key).map(|flow| &flow.side) else {
            return Err(Errno::NOENT);
        };
        if let Err(error) = world.watch(socket.as_fd(), Kind::Udp, key.to_bits(), EventFlags::IN) {
            self.remove(world, key, SILENT);
            return Err(error);
        }
        Ok(Some(key))
    }

    fn add(&mut self, world: &mut World, (flow, facts): (Flow, Facts), side: Side) -> Key {
        let is_published = side.is_published();
        let (count, max) = if is_published {
            (self.callers, UDP_CALLERS_MAX)
        } else {
            (self.flows.len() - self.callers, UDP_FLOWS_MAX)
        };
        if count >= max {
            self.evict(world, is_published);
        }
        self.callers += usize::from(is_published);
        self.count += 1;
        let key = self.flows.insert(Datagrams {
            flow,
            facts: world.keeper.keep(facts),
            id: self.count,
            side,
            opened: world.now,
            used: world.now,
            timer: None,
            bytes_up: 0,
            bytes_down: 0,
        });
        self.by_flow.insert(flow, key);
        if let Some(added) = self.flows.get_mut(key) {
            self.timers
                .set(&mut added.timer, world.now + UDP_TIMEOUT, key);
        }
        world.log.open(&flow, self.count);
        key
    }

    /// The flow that was silent for longest makes room, of those of the same side: whoever calls at a published port, under
    /// as many addresses as he likes, ends none of the guest's own.
    fn evict(&mut self, world: &mut World, is_published: bool) {
        let flows = self.flows.keys().into_iter();
        let flows = flows.filter_map(|key| Some((key, self.flows.get(key)?)));
        let used = flows
            .filter(|(_, flow)| flow.side.is_published() == is_published)
            .map(|(key, flow)| (flow.used, key));
        if let Some((_, key)) = used.min() {
            self.remove(world, key, SILENT);
        }
    }

    /// The policy, or the ports, are others: ends the flows that could not be opened any more, and those of ports that are
    /// gone.
    pub(crate) fn renew(&mut self, world: &mut World) {
        for key in self.flows.keys() {
            let Some(flow) = self.flows.get(key) else {
                continue;
            };
            let has_port = match flow.side {
                Side::Own(_) => true,
                Side::Published { port, .. } => {
                    matches!(world.ports.get(port as usize), Some(Some(_)))
                }
            };
            if !has_port || !world.stays(&flow.flow, &flow.facts) {
                self.remove(world, key, DENIED);
            }
        }
    }

    fn remove(&mut self, world: &mut World, key: Key, how: &'static str) {
        let Some(mut flow) = self.flows.remove(key) else {
            return;
        };
        self.timers.cancel(&mut flow.timer, key);
        self.by_flow.remove(&flow.flow);
        world.keeper.forget(&flow.facts);
        self.callers -= usize::from(flow.side.is_published());
        let bytes = (flow.bytes_up, flow.bytes_down);
        let lasted = world.now.saturating_duration_since(flow.opened);
        world
            .log
            .close(&flow.flow, "udp", flow.id, bytes, lasted, how);
    }

    /// Something came for a flow.
    pub(crate) fn event(&mut self, world: &mut World, key: Key) {
        let mut buffer = std::mem::take(&mut world.scratch);
        for _ in 0..READS {
            let Some(datagrams) = self.flows.get_mut(key) else {
                break;
            };
            let Side::Own(socket) = &datagrams.side else {
                break;
            };
            match recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((count, _)) => {
                    datagrams.used = world.now;
                    datagrams.bytes_down += count as u64;
                    let flow = datagrams.flow;
                    send_datagram(world, &flow, &buffer[..count]);
                }
                Err(Errno::CONNREFUSED) => {
                    let flow = datagrams.flow;
                    tell_refused(world, &flow);
                }
                Err(_) => break,
            }
        }
        world.scratch = buffer;
    }

    /// Somebody may write to a published port.
    pub(crate) fn admit(
        &mut self,
        world: &mut World,
        admitted: (Flow, Facts),
        (port, peer): (u32, SocketAddr),
    ) {
        self.add(world, admitted, Side::Published { port, peer });
    }

    /// Somebody who may has written to a published port.
    pub(crate) fn published(&mut self, world: &mut World, flow: &Flow, payload: &[u8]) {
        let key = self.by_flow.get(flow).copied();
        if let Some(datagrams) = key.and_then(|key| self.flows.get_mut(key)) {
            datagrams.used = world.now;
            datagrams.bytes_down += payload.len() as u64;
        }
        world.published.datagram();
        send_datagram(world, flow, payload);
    }

    /// Flows that the guest began, and those that came through published ports.
    #[cfg(test)]
    pub(crate) fn sides(&self) -> (usize, usize) {
        (self.flows.len() - self.callers, self.callers)
    }

    /// Whether there is a flow between these two.
    pub(crate) fn has(&self, flow: &Flow) -> bool {
        self.by_flow.contains_key(flow)
    }

    /// Whether a flow belongs to another caller, or to the guest.
    pub(crate) fn is_of_another(&self, flow: &Flow, port: u32, peer: SocketAddr) -> bool {
        let side = self.by_flow.get(flow).and_then(|key| self.flows.get(*key));
        match side.map(|flow| &flow.side) {
            None => false,
            Some(Side::Own(_)) => true,
            Some(Side::Published {
                port: other,
                peer: caller,
            }) => *other != port || *caller != peer,
        }
    }

    /// Flows that were opened, all in all.
    pub(crate) fn opened(&self) -> u64 {
        self.count
    }

    /// Flows that are open.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// When the next timer is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Ends those that nobody uses.
    pub(crate) fn tick(&mut self, world: &mut World) {
        while let Some(key) = self.timers.pop_due(world.now) {
            let Some(flow) = self.flows.get_mut(key) else {
                continue;
            };
            flow.timer = None;
            let end = flow.used + UDP_TIMEOUT;
            if end > world.now {
                self.timers.set(&mut flow.timer, end, key);
            } else {
                self.remove(world, key, SILENT);
            }
        }
    }
}

/// The largest packet that the other side certainly takes.
fn ip_mtu(packet: &Packet<'_>) -> u16 {
    (packet.whole.len() / 2).clamp(1280, 65535) as u16
}

/// The ends and the bytes of a datagram.
pub(crate) fn parse<'a>(packet: &Packet<'a>) -> Option<(Flow, &'a [u8])> {
    let (header, rest) = packet.payload.split_first_chunk::<HEADER>()?;
    let be16 = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let payload = rest.get(..usize::from(be16(4)).checked_sub(HEADER)?)?;
    let end = |address, port| End { address, port };
    let flow = Flow {
        guest: end(packet.source, be16(0)),
        remote: end(packet.destination, be16(2)),
    };
    (flow.remote.port != 0).then_some((flow, payload))
}

/// A datagram to an address that nobody has. It is not carried, and is told of where the policy has a reason for that; nobody
/// is told that it cannot be reached (RFC 1122, 3.2.2).
pub(crate) fn nobody(world: &mut World, packet: &Packet<'_>) {
    let whole = packet.protocol == protocol::UDP && packet.piece.is_none();
    if let Some((flow, _)) = whole.then(|| parse(packet)).flatten() {
        world.gate.nobody(&flow, (world.now, &mut world.log));
    }
}

/// Sends a datagram to the guest.
pub(crate) fn send_datagram(world: &mut World, flow: &Flow, payload: &[u8]) {
    let head = Head::new(flow.remote.address, flow.guest.address, protocol::UDP);
    let length = HEADER + payload.len();
    let Ok(said) = u16::try_from(length) else {
        return;
    };
    let mut datagram = Vec::with_capacity(length);
    datagram.extend_from_slice(&flow.remote.port.to_be_bytes());
    datagram.extend_from_slice(&flow.guest.port.to_be_bytes());
    datagram.extend_from_slice(&said.to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    let sum = match head.pseudo(length).add(&datagram).finish() {
        // Zero means that there is none (RFC 768).
        [0, 0] => [0xff, 0xff],
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum);
    send_packet(world, &head, &datagram);
}

/// Sends a packet to the guest, in pieces if it is larger than the wire takes.
pub(crate) fn send_packet(world: &mut World, head: &Head, payload: &[u8]) {
    let header = if head.source.is_ipv4() {
        ip::V4
    } else {
        ip::V6
    };
    let room = usize::from(world.network.mtu) - header;
    if payload.len() <= room {
        let network = &world.network;
        return world.transmitter.push(|out| {
            head.write(network, out, payload.len());
            out.extend_from_slice(payload);
        });
    }
    // A packet of IPv6 in pieces has one header more, and all pieces but the last hold a multiple of 8 bytes.
    let room = (if head.source.is_ipv4() {
        room
    } else {
        room - 8
    }) & !7;
    world.piece_id = world.piece_id.wrapping_add(1);
    for (number, part) in payload.chunks(room).enumerate() {
        let piece = Piece {
            id: world.piece_id,
            offset: number * room,
            more: (number + 1) * room < payload.len(),
        };
        let network = &world.network;
        world.transmitter.push(|out| {
            head.write_piece(network, out, part.len(), Some(piece));
            out.extend_from_slice(part);
        });
    }
}

/// Tells the guest that nobody listens; the datagram itself is not there any more, but its ports are.
fn tell_refused(world: &mut World, flow: &Flow) {
    let mut quote = Vec::with_capacity(64);
    Head::new(flow.guest.address, flow.remote.address, protocol::UDP).write(
        &world.network,
        &mut quote,
        HEADER,
    );
    let quote_start = ip::ETHERNET;
    quote.extend_from_slice(&flow.guest.port.to_be_bytes());
    quote.extend_from_slice(&flow.remote.port.to_be_bytes());
    quote.extend_from_slice(&[0, HEADER as u8, 0, 0]);
    let packet = Packet {
        mac: world.network.guest_mac,
        source: flow.guest.address,
        destination: flow.remote.address,
        protocol: protocol::UDP,
        hop_limit: 64,
        piece: None,
        payload: &[],
        whole: &quote[quote_start..],
    };
    icmp::unreachable(world, &packet, Code::Port);
}
