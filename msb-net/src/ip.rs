//! Ethernet and IP: parses frames of the guest and writes the headers of frames to it.
//!
//! [`parse`] is the only entry point for frames and checks every length. Checksums from the guest
//! are not verified: the frame stream does not corrupt bits, and a guest that sends wrong ones on
//! purpose could as well send other bytes with correct ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{self, PartialSum};
use libmsb::net::network::{Mac, Network};

/// Size of the Ethernet header.
pub const ETHERNET_HEADER_BYTES: usize = 14;
/// Size of an IPv4 header without options.
pub(crate) const IPV4_HEADER_BYTES: usize = 20;
/// Size of an IPv6 header.
pub(crate) const IPV6_HEADER_BYTES: usize = 40;

/// EtherType values.
pub(crate) mod ether {
    pub(crate) const IPV4: u16 = 0x0800;
    pub(crate) const ARP: u16 = 0x0806;
    pub(crate) const IPV6: u16 = 0x86dd;
}

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// The fragment header of IPv6.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// The content of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// An ARP packet.
    Arp(&'a [u8]),
    /// An IP packet.
    Ip(Packet<'a>),
}

/// An IP packet, or a fragment of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Source hardware address.
    pub mac: Mac,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// One of [`protocol`].
    pub protocol: u8,
    /// Hop limit; of IPv4, the time to live.
    pub hop_limit: u8,
    /// Position of a fragment; `None` for a whole packet.
    pub fragment: Option<Fragment>,
    /// Bytes behind the headers.
    pub payload: &'a [u8],
    /// The bytes from the IP header on, which an ICMP error quotes.
    pub ip_bytes: &'a [u8],
}

/// Position of a fragment in its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification of the packet.
    pub id: u32,
    /// Offset of its payload in that of the packet, in bytes.
    pub offset: usize,
    /// Further fragments follow.
    pub more: bool,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Parses a frame. `None`: it is invalid or of an unknown type.
pub fn parse(frame: &[u8]) -> Option<Frame<'_>> {
    let (header, payload) = frame.split_at_checked(ETHERNET_HEADER_BYTES)?;
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
    if first >> 4 != 4 || header < IPV4_HEADER_BYTES || total < header {
        return None;
    }
    let ip_bytes = bytes.get(..total)?;
    let flags_and_offset = be16(ip_bytes, 6)?;
    let (more, offset) =
        (flags_and_offset & 0x2000 != 0, usize::from(flags_and_offset & 0x1fff) * 8);
    let fragment = (more || offset > 0).then_some(Fragment {
        id: u32::from(be16(ip_bytes, 4)?),
        offset,
        more,
    });
    let address = |at: usize| Some(Ipv4Addr::from(*ip_bytes.get(at..)?.first_chunk::<4>()?));
    Some(Packet {
        mac,
        source: address(12)?.into(),
        destination: address(16)?.into(),
        protocol: *ip_bytes.get(9)?,
        hop_limit: *ip_bytes.get(8)?,
        fragment,
        payload: ip_bytes.get(header..)?,
        ip_bytes,
    })
}

fn parse_v6(mac: Mac, bytes: &[u8]) -> Option<Packet<'_>> {
    let (header, _) = bytes.split_at_checked(IPV6_HEADER_BYTES)?;
    let length = usize::from(be16(header, 4)?);
    if header[0] >> 4 != 6 {
        return None;
    }
    let ip_bytes = bytes.get(..IPV6_HEADER_BYTES + length)?;
    let address = |at: usize| Some(Ipv6Addr::from(*header.get(at..)?.first_chunk::<16>()?));
    let (protocol, fragment, payload) =
        skip_extensions(header[6], ip_bytes.get(IPV6_HEADER_BYTES..)?)?;
    Some(Packet {
        mac,
        source: address(8)?.into(),
        destination: address(24)?.into(),
        protocol,
        hop_limit: header[7],
        fragment,
        payload,
        ip_bytes,
    })
}

/// Skips extension headers (RFC 8200, 4). Only the first fragment has headers after the fragment
/// header.
fn skip_extensions(mut next: u8, mut bytes: &[u8]) -> Option<(u8, Option<Fragment>, &[u8])> {
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
                let flags_and_offset = u16::from_be_bytes([header[2], header[3]]);
                let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                let fragment = Fragment {
                    id,
                    offset: usize::from(flags_and_offset & 0xfff8),
                    more: flags_and_offset & 1 != 0,
                };
                return Some((header[0], Some(fragment), rest));
            }
            _ => return Some((next, None, bytes)),
        }
    }
    None
}

/// Headers of a frame from the gateway to the guest.
pub struct IpHeader {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// One of [`protocol`].
    pub protocol: u8,
    /// Hop limit; of IPv4, the time to live.
    pub hop_limit: u8,
}

impl IpHeader {
    /// Creates headers with the usual hop limit.
    pub(crate) fn new(source: IpAddr, destination: IpAddr, protocol: u8) -> IpHeader {
        IpHeader { source, destination, protocol, hop_limit: 64 }
    }

    /// Writes the Ethernet and the IP header.
    pub(crate) fn write(&self, network: &Network, out: &mut Vec<u8>, payload: usize) {
        self.write_fragment(network, out, payload, None);
    }

    /// Writes the headers of a fragment.
    pub fn write_fragment(
        &self,
        network: &Network,
        out: &mut Vec<u8>,
        payload: usize,
        fragment: Option<Fragment>,
    ) {
        out.extend_from_slice(&network.guest_mac);
        out.extend_from_slice(&network.gateway_mac);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = self.ipv4_header(source, destination, payload, fragment);
                out.extend_from_slice(&ether::IPV4.to_be_bytes());
                out.extend_from_slice(&header);
            }
            (source, destination) => {
                out.extend_from_slice(&ether::IPV6.to_be_bytes());
                self.write_ipv6_headers(to_v6(source), to_v6(destination), payload, fragment, out);
            }
        }
    }

    fn ipv4_header(
        &self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        payload: usize,
        fragment: Option<Fragment>,
    ) -> [u8; IPV4_HEADER_BYTES] {
        let mut header = [0; IPV4_HEADER_BYTES];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&((IPV4_HEADER_BYTES + payload) as u16).to_be_bytes());
        let flags_and_offset = match fragment {
            // Don't fragment: there is no further router.
            None => 0x4000,
            Some(fragment) => {
                header[4..6].copy_from_slice(&(fragment.id as u16).to_be_bytes());
                (fragment.offset / 8) as u16 | if fragment.more { 0x2000 } else { 0 }
            }
        };
        header[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
        header[8] = self.hop_limit;
        header[9] = self.protocol;
        header[12..16].copy_from_slice(&source.octets());
        header[16..20].copy_from_slice(&destination.octets());
        let sum = checksum::of(&header);
        header[10..12].copy_from_slice(&sum);
        header
    }

    fn write_ipv6_headers(
        &self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        payload: usize,
        fragment: Option<Fragment>,
        out: &mut Vec<u8>,
    ) {
        let extension = if fragment.is_some() { 8 } else { 0 };
        let next = if fragment.is_some() { protocol::FRAGMENT } else { self.protocol };
        out.extend_from_slice(&[0x60, 0, 0, 0]);
        out.extend_from_slice(&((payload + extension) as u16).to_be_bytes());
        out.extend_from_slice(&[next, self.hop_limit]);
        out.extend_from_slice(&source.octets());
        out.extend_from_slice(&destination.octets());
        if let Some(fragment) = fragment {
            out.extend_from_slice(&[self.protocol, 0]);
            out.extend_from_slice(
                &(fragment.offset as u16 | u16::from(fragment.more)).to_be_bytes(),
            );
            out.extend_from_slice(&fragment.id.to_be_bytes());
        }
    }

    /// Returns the checksum of the pseudo header of TCP, UDP and ICMPv6.
    pub(crate) fn pseudo_header_sum(&self, payload: usize) -> PartialSum {
        pseudo_header_sum(self.source, self.destination, self.protocol, payload)
    }
}

/// Returns the checksum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1).
pub(crate) fn pseudo_header_sum(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: usize,
) -> PartialSum {
    let sum = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PartialSum::default().add(&source.octets()).add(&destination.octets())
        }
        (source, destination) => {
            PartialSum::default().add(&to_v6(source).octets()).add(&to_v6(destination).octets())
        }
    };
    sum.add(&(payload as u32).to_be_bytes()).add(&[0, 0, 0, protocol])
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

    fn built(
        source: &str,
        destination: &str,
        fragment: Option<Fragment>,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut frame = Vec::new();
        IpHeader::new(source.parse().unwrap(), destination.parse().unwrap(), protocol::UDP)
            .write_fragment(&network(), &mut frame, payload.len(), fragment);
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn written_packets_are_parsed_again() {
        let fragment = Fragment { id: 77, offset: 1480, more: true };
        for (source, destination) in [("1.2.3.4", "172.16.0.2"), ("2001:db8::1", "fd42::2")] {
            for fragment in [None, Some(fragment)] {
                let frame = built(source, destination, fragment, b"payload");
                let Some(Frame::Ip(packet)) = parse(&frame) else {
                    panic!("{source}: it is no packet")
                };
                assert_eq!(packet.source, source.parse::<IpAddr>().unwrap());
                assert_eq!(packet.destination, destination.parse::<IpAddr>().unwrap());
                assert_eq!(packet.protocol, protocol::UDP);
                assert_eq!(packet.fragment, fragment);
                assert_eq!(packet.payload, b"payload");
            }
        }
    }

    #[test]
    fn a_truncated_packet_is_rejected() {
        for destination in ["172.16.0.2", "fd42::2"] {
            let source = if destination.contains(':') { "fd42::1" } else { "1.1.1.1" };
            let frame = built(source, destination, None, b"payload");
            for length in 0..frame.len() {
                assert_eq!(parse(&frame[..length]), None, "{destination} {length}");
            }
        }
    }

    #[test]
    fn padding_after_a_packet_is_ignored() {
        let mut frame = built("1.1.1.1", "172.16.0.2", None, b"x");
        frame.resize(60, 0);
        assert!(matches!(parse(&frame), Some(Frame::Ip(packet)) if packet.payload == b"x"));
    }
}
