//! A test guest without a kernel: it writes frames and reads the frames that come back.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use libmsb::net::network::{Ipv4Network, Ipv6Network, Network};
use libmsb::net::policy::Policy;
use libmsb::net::rule::{Direction, Protocol};
use rustix::event::Timespec;
use rustix::event::epoll::Event;

use crate::address::HostFacts;
use crate::dns::{DnsServer, DnsSettings};
use crate::event_log::EventLog;
use crate::flow::{Flow, FlowEndpoint};
use crate::ip::{self, Fragment, Frame, IpHeader, Packet, protocol};
use crate::policy::{ConnectionFacts, PolicyEngine, TlsPeek};
use crate::policy_gate::PolicyGate;
use crate::published_port::PublishedPort;
use crate::stack::{EVENTS_MAX, Stack, StackConfig};

/// Control bit FIN.
pub const FIN: u8 = 1;
/// Control bit SYN.
pub const SYN: u8 = 2;
/// Control bit RST.
pub const RST: u8 = 4;
/// Control bit PSH.
pub const PSH: u8 = 8;
/// Control bit ACK.
pub const ACK: u8 = 16;

/// Returns the network of the test guest.
pub fn network() -> Network {
    Network {
        gateway_mac: [2, 0x6d, 0x73, 0, 0, 1],
        guest_mac: [2, 0x6d, 0x73, 0, 0, 2],
        mtu: 1500,
        v4: Some(Ipv4Network {
            guest: Ipv4Addr::new(172, 16, 0, 2),
            gateway: Ipv4Addr::new(172, 16, 0, 1),
            prefix: 30,
        }),
        v6: Some(Ipv6Network {
            guest: "fd42:6d73:62::2".parse().unwrap(),
            gateway: "fd42:6d73:62::1".parse().unwrap(),
            prefix: 64,
        }),
    }
}

/// Returns the flow between a port of the guest and a remote address.
pub fn flow(guest_port: u16, remote: &str) -> Flow {
    let remote = FlowEndpoint::from(remote.parse::<SocketAddr>().unwrap());
    let network = network();
    let guest = match remote.address {
        IpAddr::V4(_) => network.v4.unwrap().guest.into(),
        IpAddr::V6(_) => network.v6.unwrap().guest.into(),
    };
    let guest = FlowEndpoint { address: guest, port: guest_port };
    Flow { guest, remote }
}

/// Builds a frame of the guest.
pub fn frame(flow: &Flow, protocol: u8, fragment: Option<Fragment>, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(64 + payload.len());
    IpHeader::new(flow.guest.address, flow.remote.address, protocol).write_fragment(
        &network(),
        &mut frame,
        payload.len(),
        fragment,
    );
    frame.extend_from_slice(payload);
    frame
}

/// Builds a datagram of the guest.
pub fn datagram(flow: &Flow, payload: &[u8]) -> Vec<u8> {
    let mut bytes = ports(flow);
    bytes.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(payload);
    bytes
}

fn ports(flow: &Flow) -> Vec<u8> {
    [flow.guest.port.to_be_bytes(), flow.remote.port.to_be_bytes()].concat()
}

/// A TCP segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpSegment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Control bits.
    pub flags: u8,
    /// Window, unscaled.
    pub window: u16,
    /// Payload.
    pub payload: Vec<u8>,
}

impl TcpSegment {
    /// Returns the segment as the guest sends it, without IP.
    pub fn bytes(&self, flow: &Flow) -> Vec<u8> {
        let mut bytes = ports(flow);
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        bytes.extend_from_slice(&self.ack.to_be_bytes());
        bytes.extend_from_slice(&[0x50, self.flags]);
        bytes.extend_from_slice(&self.window.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Parses a segment to the guest; returns it with the guest's port.
    fn parse(packet: &Packet<'_>) -> Option<(u16, TcpSegment)> {
        let bytes = packet.payload;
        let be16 = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let be32 = |at: usize| u32::from(be16(at)) << 16 | u32::from(be16(at + 2));
        let segment = TcpSegment {
            seq: be32(4),
            ack: be32(8),
            flags: bytes[13],
            window: be16(14),
            payload: bytes[usize::from(bytes[12] >> 4) * 4..].to_vec(),
        };
        (packet.protocol == protocol::TCP).then(|| (be16(2), segment))
    }
}

/// A guest and its network stack.
pub struct TestGuest {
    pub(crate) stack: Stack,
    wire: UnixStream,
    events: Vec<Event>,
    /// Received bytes up to the first incomplete frame.
    incoming: Vec<u8>,
}

impl TestGuest {
    /// Creates a guest under a policy with these rules.
    pub fn new(rules: &str, max_connections: usize) -> TestGuest {
        TestGuest::with_ports(rules, max_connections, Vec::new())
    }

    /// Creates a guest under a policy with these rules, and published ports.
    pub(crate) fn with_ports(
        rules: &str,
        max_connections: usize,
        ports: Vec<PublishedPort>,
    ) -> TestGuest {
        let policy = Policy {
            rules: match rules {
                "" => Vec::new(),
                rules => libmsb::net::rule::parse_list(rules).unwrap(),
            },
            ..Policy::nothing()
        };
        TestGuest::with_policy(policy, max_connections, ports, Vec::new())
    }

    /// Creates a guest under a policy, with upstream name servers.
    pub(crate) fn with_policy(
        policy: Policy,
        max_connections: usize,
        ports: Vec<PublishedPort>,
        upstreams: Vec<SocketAddr>,
    ) -> TestGuest {
        let (ours, wire) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        wire.set_nonblocking(true).unwrap();
        let host = HostFacts { gateways: network().gateways(), ..HostFacts::default() };
        let settings = DnsSettings { upstreams, timeout: Duration::from_secs(20) };
        let dns = DnsServer::new(settings, Box::new(|| Some(7)));
        let stack = Stack::new(StackConfig {
            frames: ours.into(),
            life_pipe: None,
            control: None,
            host_addresses: None,
            samples: None,
            network: network(),
            gate: PolicyGate::new(PolicyEngine::new(policy, true, host), dns),
            log: EventLog::new(None),
            ports,
            interceptor: None,
            max_connections,
        });
        TestGuest {
            stack: stack.unwrap(),
            wire,
            events: Vec::with_capacity(EVENTS_MAX),
            incoming: Vec::new(),
        }
    }

    /// Returns the number of open TCP connections.
    pub fn connections(&self) -> usize {
        self.stack.tcp().len()
    }

    /// Runs one turn of the stack without waiting.
    pub fn turn(&mut self) {
        self.wait(0);
    }

    /// Runs one turn of the stack, waiting for events.
    fn wait(&mut self, nanoseconds: i64) {
        let timeout = Timespec { tv_sec: 0, tv_nsec: nanoseconds };
        let end = self.stack.step(&mut self.events, Some(&timeout)).unwrap();
        assert_eq!(end, None);
    }

    /// Sends a frame.
    pub fn send(&mut self, frame: &[u8]) {
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
    pub fn send_segment(&mut self, flow: &Flow, segment: &TcpSegment) {
        self.send(&frame(flow, protocol::TCP, None, &segment.bytes(flow)));
        self.turn();
    }

    /// Returns the frames that have arrived.
    pub fn frames(&mut self) -> Vec<Vec<u8>> {
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

    /// Returns the segments that have arrived, with the guest's ports.
    pub fn segments(&mut self) -> Vec<(u16, TcpSegment)> {
        let frames = self.frames();
        let packets = frames.iter().filter_map(|frame| match ip::parse(frame) {
            Some(Frame::Ip(packet)) => TcpSegment::parse(&packet),
            _ => None,
        });
        packets.collect()
    }

    /// Runs the stack until the closure returns a value.
    pub fn poll_until<T>(
        &mut self,
        what: &str,
        mut find: impl FnMut(&mut TestGuest) -> Option<T>,
    ) -> T {
        for _ in 0..2000 {
            if let Some(found) = find(self) {
                return found;
            }
            self.wait(10_000_000);
        }
        panic!("waited in vain: {what}");
    }

    /// Returns the next segment for a port that is more than an acknowledgement.
    pub fn next_segment(&mut self, port: u16) -> TcpSegment {
        self.poll_until("a segment", |guest| {
            let mut segments = guest.segments().into_iter();
            let carries_more =
                |segment: &TcpSegment| segment.flags != ACK || !segment.payload.is_empty();
            let next = segments.find(|(to, segment)| *to == port && carries_more(segment));
            next.map(|(_, segment)| segment)
        })
    }

    /// Opens a connection to the guest from outside, with this receive window.
    pub fn connect_inbound(&mut self, flow: &Flow, socket: OwnedFd, window: u16) -> TcpSegment {
        let facts = ConnectionFacts {
            direction: Direction::Ingress,
            protocol: Protocol::Tcp,
            address: flow.remote.address,
            port: Some(flow.guest.port),
            names: Vec::new(),
            tls: TlsPeek::Unseen,
        };
        self.stack.open_inbound((*flow, facts), socket);
        self.turn();
        let syn = self.next_segment(flow.guest.port);
        assert_eq!(syn.flags, SYN);
        let mut next = TcpSegment {
            seq: 1000,
            ack: syn.seq.wrapping_add(1),
            flags: SYN | ACK,
            window,
            payload: Vec::new(),
        };
        self.send_segment(flow, &next);
        (next.seq, next.flags) = (1001, ACK);
        next
    }
}
