//! A guest made of tests: it writes frames, sees what comes back, and has no kernel that would be fair.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use libmsb::net::network::{Network, V4, V6};
use libmsb::net::policy::Policy;
use libmsb::net::rule::{Direction, Protocol};
use rustix::event::Timespec;
use rustix::event::epoll::Event;

use crate::address::HostFacts;
use crate::dns::{Server, Settings};
use crate::flow::{End, Flow};
use crate::gate::Gate;
use crate::ip::{self, Frame, Head, Packet, Piece, protocol};
use crate::log::Log;
use crate::policy::{Facts, Judge, Tls};
use crate::ports::Port;
use crate::stack::{EVENTS, Parts, Stack};

/// Flags of a segment.
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

/// A network.
pub(crate) fn network() -> Network {
    Network {
        gateway_mac: [2, 0x6d, 0x73, 0, 0, 1],
        guest_mac: [2, 0x6d, 0x73, 0, 0, 2],
        mtu: 1500,
        v4: Some(V4 {
            guest: Ipv4Addr::new(172, 16, 0, 2),
            gateway: Ipv4Addr::new(172, 16, 0, 1),
            prefix: 30,
        }),
        v6: Some(V6 {
            guest: "fd42:6d73:62::2".parse().unwrap(),
            gateway: "fd42:6d73:62::1".parse().unwrap(),
            prefix: 64,
        }),
    }
}

/// What goes through between a port of the guest's and somebody.
pub(crate) fn flow(guest_port: u16, remote: &str) -> Flow {
    let remote = End::from(remote.parse::<SocketAddr>().unwrap());
    let network = network();
    let guest = match remote.address {
        IpAddr::V4(_) => network.v4.unwrap().guest.into(),
        IpAddr::V6(_) => network.v6.unwrap().guest.into(),
    };
    let guest = End {
        address: guest,
        port: guest_port,
    };
    Flow { guest, remote }
}

/// A frame of the guest's.
pub(crate) fn frame(flow: &Flow, protocol: u8, piece: Option<Piece>, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(64 + payload.len());
    Head::new(flow.guest.address, flow.remote.address, protocol).write_piece(
        &network(),
        &mut frame,
        payload.len(),
        piece,
    );
    frame.extend_from_slice(payload);
    frame
}

/// A datagram of the guest's.
pub(crate) fn datagram(flow: &Flow, payload: &[u8]) -> Vec<u8> {
    let mut bytes = ports(flow);
    bytes.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(payload);
    bytes
}

fn ports(flow: &Flow) -> Vec<u8> {
    [
        flow.guest.port.to_be_bytes(),
        flow.remote.port.to_be_bytes(),
    ]
    .concat()
}

/// A segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) payload: Vec<u8>,
}

impl Said {
    /// As the guest sends it, without IP.
    pub(crate) fn bytes(&self, flow: &Flow) -> Vec<u8> {
        let mut bytes = ports(flow);
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        bytes.extend_from_slice(&self.ack.to_be_bytes());
        bytes.extend_from_slice(&[0x50, self.flags]);
        bytes.extend_from_slice(&self.window.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// What the guest got; with the guest's port.
    fn parse(packet: &Packet<'_>) -> Option<(u16, Said)> {
        let bytes = packet.payload;
        let be16 = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let be32 = |at: usize| u32::from(be16(at)) << 16 | u32::from(be16(at + 2));
        let said = Said {
            seq: be32(4),
            ack: be32(8),
            flags: bytes[13],
            window: be16(14),
            payload: bytes[usize::from(bytes[12] >> 4) * 4..].to_vec(),
        };
        (packet.protocol == protocol::TCP).then(|| (be16(2), said))
    }
}

/// A guest and its network.
pub(crate) struct Guest {
    pub(crate) stack: Stack,
    wire: UnixStream,
    events: Vec<Event>,
    /// What came, up to the first frame that is not whole.
    incoming: Vec<u8>,
}

impl Guest {
    /// A guest under a policy of such rules.
    pub(crate) fn new(rules: &str, max_connections: usize, ports: Vec<Port>) -> Guest {
        let policy = Policy {
            rules: match rules {
                "" => Vec::new(),
                rules => libmsb::net::rule::parse_list(rules).unwrap(),
            },
            ..Policy::nothing()
        };
        Guest::under(policy, max_connections, ports, Vec::new())
    }

    /// The same, with servers to ask for names.
    pub(crate) fn under(
        policy: Policy,
        max_connections: usize,
        ports: Vec<Port>,
        upstreams: Vec<SocketAddr>,
    ) -> Guest {
        let (ours, wire) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        wire.set_nonblocking(true).unwrap();
        let host = HostFacts {
            gateways: network().gateways(),
            ..HostFacts::default()
        };
        let settings = Settings {
            upstreams,
            timeout: Duration::from_secs(20),
        };
        let names = Server::new(settings, Box::new(|| Some(7)));
        let stack = Stack::new(Parts {
            frames: ours.into(),
            life: None,
            control: None,
            own: None,
            samples: None,
            network: network(),
            gate: Gate::new(Judge::new(policy, true, host), names),
            log: Log::new(None),
            ports,
            max_connections,
        });
        Guest {
            stack: stack.unwrap(),
            wire,
            events: Vec::with_capacity(EVENTS),
            incoming: Vec::new(),
        }
    }

    /// Has the network do what it can do now.
    pub(crate) fn turn(&mut self) {
        self.wait(0);
    }

    /// The same, when something happens.
    fn wait(&mut self, nanoseconds: i64) {
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: nanoseconds,
        };
        let end = self.stack.step(&mut self.events, Some(&timeout)).unwrap();
        assert_eq!(end, None);
    }

    /// Sends a frame.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        let bytes = [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match self.wire.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(_) => self.turn(),
            }
        }
    }

    /// Sends a segment.
    pub(crate) fn say(&mut self, flow: &Flow, said: &Said) {
        self.send(&frame(flow, protocol::TCP, None, &said.bytes(flow)));
        self.turn();
    }

    /// Takes the frames that have come.
    pub(crate) fn frames(&mut self) -> Vec<Vec<u8>> {
        let mut buffer = [0; 65536];
        while let Ok(count) = self.wire.read(&mut buffer) {
            self.incoming.extend_from_slice(&buffer[..count]);
        }
        let mut frames = Vec::new();
        while let Some(length) = self.incoming.first_chunk::<4>() {
            let end = 4 + u32::from_be_bytes(*length) as usize;
            if self.incoming.len() < end {
                break;
            }
            frames.push(self.incoming[4..end].to_vec());
            self.incoming.drain(..end);
        }
        frames
    }

    /// Takes the segments that have come, with the guest's ports.
    pub(crate) fn segments(&mut self) -> Vec<(u16, Said)> {
        let frames = self.frames();
        let packets = frames.iter().filter_map(|frame| match ip::parse(frame) {
            Some(Frame::Ip(packet)) => Said::parse(&packet),
            _ => None,
        });
        packets.collect()
    }

    /// Goes on until something is found.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        mut find: impl FnMut(&mut Guest) -> Option<T>,
    ) -> T {
        for _ in 0..2000 {
            if let Some(found) = find(self) {
                return found;
            }
            self.wait(10_000_000);
        }
        panic!("waited in vain: {what}");
    }

    /// The segment for a port that comes next, and is more than an acknowledgement.
    pub(crate) fn heard(&mut self, port: u16) -> Said {
        self.until("a segment", |guest| {
            let mut segments = guest.segments().into_iter();
            let says = |said: &Said| said.flags != ACK || !said.payload.is_empty();
            let heard = segments.find(|(to, said)| *to == port && says(said));
            heard.map(|(_, said)| said)
        })
    }

    /// Has somebody call the guest: the connection stands, with such a window.
    pub(crate) fn called(&mut self, flow: &Flow, socket: OwnedFd, window: u16) -> Said {
        let facts = Facts {
            direction: Direction::Ingress,
            protocol: Protocol::Tcp,
            address: flow.remote.address,
            port: Some(flow.guest.port),
            names: Vec::new(),
            tls: Tls::Unseen,
        };
        self.stack.accepted((*flow, facts), socket);
        self.turn();
        let call = self.heard(flow.guest.port);
        assert_eq!(call.flags, SYN);
        let mut next = Said {
            seq: 1000,
            ack: call.seq.wrapping_add(1),
            flags: SYN | ACK,
            window,
            payload: Vec::new(),
        };
        self.say(flow, &next);
        (next.seq, next.flags) = (1001, ACK);
        next
    }
}
