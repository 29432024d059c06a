//! Frames of a guest, made by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// The header of pieces of IPv6 packets.
const FRAGMENT: u8 = 44;
const SYN: u8 = 2;
const ETHER_ARP: u16 = 0x0806;
const ETHER_V4: u16 = 0x0800;
const ETHER_V6: u16 = 0x86dd;

/// A guest's place on its wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) mac: [u8; 6],
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    /// The gateway's IPv4 address.
    pub(crate) gateway: IpAddr,
}

impl Default for Link {
    fn default() -> Link {
        Link {
            mac: [0; 6],
            v4: Ipv4Addr::UNSPECIFIED,
            v6: Ipv6Addr::UNSPECIFIED,
            gateway: Ipv4Addr::UNSPECIFIED.into(),
        }
    }
}

impl Link {
    /// The guest's own address, of the family of another one.
    fn own(&self, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => self.v4.into(),
            IpAddr::V6(_) => self.v6.into(),
        }
    }

    fn ethernet(&self, kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut gateway = self.mac;
        gateway[5] = 1;
        [&gateway[..], &self.mac, &kind.to_be_bytes(), payload].concat()
    }

    /// A packet of these two, whoever they are.
    fn packet(&self, ends: (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> Vec<u8> {
        let length = payload.len() as u16;
        match ends {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = v4(from, to, protocol, (0, 0), payload.len());
                self.ethernet(ETHER_V4, &[&header, payload].concat())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let [high, low] = length.to_be_bytes();
                let head = [0x60, 0, 0, 0, high, low, protocol, 64];
                let packet = [&head[..], &from.octets(), &to.octets(), payload].concat();
                self.ethernet(ETHER_V6, &packet)
            }
            _ => panic!("{ends:?}"),
        }
    }

    /// The first packet of a connection to a peer.
    pub(crate) fn syn(&self, to: IpAddr, port: u16, own_port: u16) -> Vec<u8> {
        self.syn_from(self.own(to), to, port, own_port)
    }

    /// The same from any address.
    pub(crate) fn syn_from(&self, from: IpAddr, to: IpAddr, port: u16, own_port: u16) -> Vec<u8> {
        let ports = [own_port.to_be_bytes(), port.to_be_bytes()].concat();
        let rest = [0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, SYN, 0xff, 0xff, 0, 0, 0, 0];
        let mut segment = [&ports[..], &rest].concat();
        let sum = checksum(&[&pseudo((from, to), TCP, segment.len()), &segment]);
        segment[16..18].copy_from_slice(&sum);
        self.packet((from, to), TCP, &segment)
    }

    /// A datagram to a peer.
    pub(crate) fn datagram(&self, to: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
        self.datagram_from(self.own(to), to, port, payload)
    }

    /// The same from any address.
    pub(crate) fn datagram_from(
        &self,
        from: IpAddr,
        to: IpAddr,
        port: u16,
        payload: &[u8],
    ) -> Vec<u8> {
        self.packet((from, to), UDP, &udp((from, to), port, payload))
    }

    /// A datagram in pieces of IPv4, of so many bytes each, as a packet of that number.
    pub(crate) fn pieces(
        &self,
        to: Ipv4Addr,
        port: u16,
        payload: &[u8],
        (number, bytes): (u16, usize),
    ) -> Vec<Vec<u8>> {
        let datagram = udp((self.v4.into(), to.into()), port, payload);
        let count = datagram.len().div_ceil(bytes);
        let pieces = datagram.chunks(bytes).enumerate();
        let frames = pieces.map(|(place, piece)| {
            let more = u16::from(place + 1 < count) << 13;
            let offset = (place * bytes / 8) as u16;
            let header = v4(self.v4, to, UDP, (number, more | offset), piece.len());
            self.ethernet(ETHER_V4, &[&header, piece].concat())
        });
        frames.collect()
    }

    /// The first piece of an IPv6 packet whose others never come.
    pub(crate) fn begun(&self, to: Ipv6Addr, number: u32, payload: &[u8]) -> Vec<u8> {
        let head = [&[UDP, 0, 0, 1][..], &number.to_be_bytes(), payload].concat();
        self.packet((self.v6.into(), to.into()), FRAGMENT, &head)
    }

    /// Somebody asks for a hardware address.
    pub(crate) fn arp(&self, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let head = [0, 1, 8, 0, 6, 4, 0, 1];
        let (from, to) = (from.octets(), to.octets());
        self.ethernet(ETHER_ARP, &[&head[..], &self.mac, &from, &[0; 6], &to].concat())
    }
}

fn udp(ends: (IpAddr, IpAddr), port: u16, payload: &[u8]) -> Vec<u8> {
    let own_port: u16 = 40000;
    let length = (payload.len() + 8) as u16;
    let head = [own_port, port, length, 0].map(u16::to_be_bytes).concat();
    let mut datagram = [&head[..], payload].concat();
    let sum = checksum(&[&pseudo(ends, UDP, datagram.len()), &datagram]);
    datagram[6..8].copy_from_slice(&sum);
    datagram
}

/// An IPv4 header. `piece`: the packet's number, and the place of this piece of it.
fn v4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, piece: (u16, u16), payload: usize) -> Vec<u8> {
    let length = ((20 + payload) as u16).to_be_bytes();
    let (number, place) = (piece.0.to_be_bytes(), piece.1.to_be_bytes());
    let head = [&[0x45, 0][..], &length, &number, &place];
    let head = [&head.concat()[..], &[64, protocol, 0, 0]].concat();
    let mut header = [&head[..], &from.octets(), &to.octets()].concat();
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum);
    header
}

/// Returns the pseudo-header of a segment's checksum (RFC 9293, 3.1).
fn pseudo((from, to): (IpAddr, IpAddr), protocol: u8, length: usize) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V4(address) => Ipv4Addr::octets(&address).to_vec(),
        IpAddr::V6(address) => Ipv6Addr::octets(&address).to_vec(),
    };
    let length = (length as u32).to_be_bytes();
    [octets(from), octets(to), length.to_vec(), vec![0, 0, 0, protocol]].concat()
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes = parts.concat();
    let words = bytes.chunks(2);
    let words = words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
