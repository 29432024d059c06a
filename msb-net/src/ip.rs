//! Ethernet and IP: what a frame says, and the beginning of a frame to the guest.
//!
//! A frame crosses one door, [`parse`], which checks every length. Checksums of what the guest sends are not checked: the
//! frame stream does not lose bits, and whoever sends wrong ones on purpose could send other bytes with right ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{self, Sum};
use libmsb::net::network::{Mac, Network};

/// Bytes of the Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub(crate) const V4: usize = 20;
/// Bytes of an IPv6 header.
pub(crate) const V6: usize = 40;

/// Types of Ethernet frames.
pub(crate) mod ether {
    pub(crate) const IPV4: u16 = 0x0800;
    pub(crate) const ARP: u16 = 0x0806;
    pub(crate) const IPV6: u16 = 0x86dd;
}

/// Protocols over IP.
pub(crate) mod protocol {
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const ICMPV6: u8 = 58;
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// An ARP packet.
    Arp(&'a [u8]),
    /// An IP packet.
    Ip(Packet<'a>),
}

/// A packet, or a piece of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    /// The hardware address that it came from.
    pub(crate) mac: Mac,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// See [`protocol`].
    pub(crate) protocol: u8,
    pub(crate) hop_limit: u8,
    pub(crate) piece: Option<Piece>,
    pub(crate) payload: &'a [u8],
    /// The packet from its IP header on, as much as came: an ICMP error quotes it.
    pub(crate) whole: &'a [u8],
}

/// Where a piece of a packet stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) id: u32,
    pub(crate) offset: usize,
    pub(crate) more: bool,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Reads a frame. `None`: it is broken, or of no kind that we know.
pub(crate) fn parse(frame: &[u8]) -> Option<Frame<'_>> {
    let (header, payload) = frame.split_at_checked(ETHERNET)?;
    let mac = *header.get(6..)?.first_chunk()?;
    match be16(header, 12)? {
        ether::ARP => Some(Frame::Arp(payload)),
        ether::IPV4 => parse_v4(mac, payload).map(Frame::Ip),
        ether::IPV6 => parse_v6(mac, payload).map(Frame::Ip),
        _ => None,
    }
}

fn parse_v4(mac: Mac, bytes: &[u8]) -> Option<Packet<'_>> {
    let first = *bytes.first()?;
    let header = usize::from(first & 15) * 4;
    let total = usize::from(be16(bytes, 2)?);
    if first >> 4 != 4 || header < V4 || total < header {
        return None;
    }
    let whole = bytes.get(..total)?;
    let place = be16(whole, 6)?;
    let (more, offset) = (place & 0x2000 != 0, usize::from(place & 0x1fff) * 8);
    let piece = (more || offset > 0).then_some(Piece {
        id: u32::from(be16(whole, 4)?),
        offset,
        more,
    });
    let address = |at: usize| Some(Ipv4Addr::from(*whole.get(at..)?.first_chunk::<4>()?));
    Some(Packet {
        mac,
        source: address(12)?.into(),
        destination: address(16)?.into(),
        protocol: *whole.get(9)?,
        hop_limit: *whole.get(8)?,
        piece,
        payload: whole.get(header..)?,
        whole,
    })
}

fn parse_v6(mac: Mac, bytes: &[u8]) -> Option<Packet<'_>> {
    let (header, _) = bytes.split_at_checked(V6)?;
    let length = usize::from(be16(header, 4)?);
    if header[0] >> 4 != 6 {
        return None;
    }
    let whole = bytes.get(..V6 + length)?;
    let address = |at: usize| Some(Ipv6Addr::from(*header.get(at..)?.first_chunk::<16>()?));
    let (protocol, piece, payload) = skip_extensions(header[6], whole.get(V6..)?)?;
    Some(Packet {
        mac,
        source: address(8)?.into(),
        destination: address(24)?.into(),
        protocol,
        hop_limit: header[7],
        piece,
        payload,
        whole,
    })
}

/// Extension headers (RFC 8200, 4). A piece that is not the first holds nothing that could be read further.
fn skip_extensions(mut next: u8, mut bytes: &[u8]) -> Option<(u8, Option<Piece>, &[u8])> {
    /// More headers than this have no honest use.
    const HEADERS_MAX: usize = 8;
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    for _ in 0..HEADERS_MAX {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let length = (usize::from(*bytes.get(1)?) + 1) * 8;
                next = bytes[0];
                bytes = bytes.get(length..)?;
            }
            protocol::FRAGMENT => {
                let (header, rest) = bytes.split_first_chunk::<8>()?;
                let place = u16::from_be_bytes([header[2], header[3]]);
                let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                let piece = Piece {
                    id,
                    offset: usize::from(place & 0xfff8),
                    more: place & 1 != 0,
                };
                return Some((header[0], Some(piece), rest));
            }
            _ => return Some((next, None, bytes)),
        }
    }
    None
}

/// A frame to the guest, from the gateway.
pub(crate) struct Head {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) hop_limit: u8,
}

impl Head {
    /// The head of a packet as most are.
    pub(crate) fn new(source: IpAddr, destination: IpAddr, protocol: u8) -> Head {
        Head {
            source,
            destination,
            protocol,
            hop_limit: 64,
        }
    }

    /// Writes the Ethernet and the IP header.
    pub(crate) fn write(&self, network: &Network, out: &mut Vec<u8>, payload: usize) {
        self.write_piece(network, out, payload, None);
    }

    /// The same for a piece of a packet.
    pub(crate) fn write_piece(
        &self,
        network: &Network,
        out: &mut Vec<u8>,
        payload: usize,
        piece: Option<Piece>,
    ) {
        out.extend_from_slice(&network.guest_mac);
        out.extend_from_slice(&network.gateway_mac);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = self.v4(source, destination, payload, piece);
                out.extend_from_slice(&ether::IPV4.to_be_bytes());
                out.extend_from_slice(&header);
            }
            (source, destination) => {
                out.extend_from_slice(&ether::IPV6.to_be_bytes());
                self.v6(to_v6(source), to_v6(destination), payload, piece, out);
            }
        }
    }

    fn v4(
        &self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        payload: usize,
        piece: Option<Piece>,
    ) -> [u8; V4] {
        let mut header = [0; V4];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&((V4 + payload) as u16).to_be_bytes());
        let place = match piece {
            // Never to be cut further: there is nobody behind us who could.
            None => 0x4000,
            Some(piece) => {
                header[4..6].copy_from_slice(&(piece.id as u16).to_be_bytes());
                (piece.offset / 8) as u16 | if piece.more { 0x2000 } else { 0 }
            }
        };
        header[6..8].copy_from_slice(&place.to_be_bytes());
        header[8] = self.hop_limit;
        header[9] = self.protocol;
        header[12..16].copy_from_slice(&source.octets());
        header[16..20].copy_from_slice(&destination.octets());
        let sum = checksum::of(&header);
        header[10..12].copy_from_slice(&sum);
        header
    }

    fn v6(
        &self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        payload: usize,
        piece: Option<Piece>,
        out: &mut Vec<u8>,
    ) {
        let extension = if piece.is_some() { 8 } else { 0 };
        let next = if piece.is_some() {
            protocol::FRAGMENT
        } else {
            self.protocol
        };
        out.extend_from_slice(&[0x60, 0, 0, 0]);
        out.extend_from_slice(&((payload + extension) as u16).to_be_bytes());
        out.extend_from_slice(&[next, self.hop_limit]);
        out.extend_from_slice(&source.octets());
        out.extend_from_slice(&destination.octets());
        if let Some(piece) = piece {
            out.extend_from_slice(&[self.protocol, 0]);
            out.extend_from_slice(&(piece.offset as u16 | u16::from(piece.more)).to_be_bytes());
            out.extend_from_slice(&piece.id.to_be_bytes());
        }
    }

    /// The sum of the pseudo header that TCP, UDP and ICMPv6 have in their checksums.
    pub(crate) fn pseudo(&self, payload: usize) -> Sum {
        pseudo(self.source, self.destination, self.protocol, payload)
    }
}

/// The sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1).
pub(crate) fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, payload: usize) -> Sum {
    let sum = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Sum::default()
            .add(&source.octets())
            .add(&destination.octets()),
        (source, destination) => Sum::default()
            .add(&to_v6(source).octets())
            .add(&to_v6(destination).octets()),
    };
    sum.add(&(payload as u32).to_be_bytes())
        .add(&[0, 0, 0, protocol])
}

fn to_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::network;

    fn built(source: &str, destination: &str, piece: Option<Piece>, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        Head::new(
            source.parse().unwrap(),
            destination.parse().unwrap(),
            protocol::UDP,
        )
        .write_piece(&network(), &mut frame, payload.len(), piece);
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn what_is_written_is_read_again() {
        let piece = Piece {
            id: 77,
            offset: 1480,
            more: true,
        };
        for (source, destination) in [("1.2.3.4", "172.16.0.2"), ("2001:db8::1", "fd42::2")] {
            for piece in [None, Some(piece)] {
                let frame = built(source, destination, piece, b"payload");
                let Some(Frame::Ip(packet)) = parse(&frame) else {
                    panic!("{source}: it is no packet")
                };
                assert_eq!(packet.source, source.parse::<IpAddr>().unwrap());
                assert_eq!(packet.destination, destination.parse::<IpAddr>().unwrap());
                assert_eq!(packet.protocol, protocol::UDP);
                assert_eq!(packet.piece, piece);
                assert_eq!(packet.payload, b"payload");
            }
        }
    }

    #[test]
    fn a_packet_that_is_cut_anywhere_is_none() {
        for destination in ["172.16.0.2", "fd42::2"] {
            let source = if destination.contains(':') {
                "fd42::1"
            } else {
                "1.1.1.1"
            };
            let frame = built(source, destination, None, b"payload");
            for length in 0..frame.len() {
                assert_eq!(parse(&frame[..length]), None, "{destination} {length}");
            }
        }
    }

    #[test]
    fn padding_behind_a_packet_is_no_part_of_it() {
        let mut frame = built("1.1.1.1", "172.16.0.2", None, b"x");
        frame.resize(60, 0);
        assert!(matches!(parse(&frame), Some(Frame::Ip(packet)) if packet.payload == b"x"));
    }
}
