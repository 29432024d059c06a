//! Header templates: the constant part of the headers of a connection's frames to the guest.

use std::net::IpAddr;

use super::segment::TCP_HEADER_BYTES;
use crate::checksum::PartialSum;
use crate::device::LENGTH_BYTES;
use crate::flow::Flow;
use crate::ip::{self, ETHERNET_HEADER_BYTES, IpHeader, protocol};
use libmsb::net::network::Network;

/// Size of the longest headers: length, Ethernet, IPv6, TCP.
pub(crate) const HEADERS_BYTES_MAX: usize =
    LENGTH_BYTES + ETHERNET_HEADER_BYTES + ip::IPV6_HEADER_BYTES + TCP_HEADER_BYTES;

/// The headers of a frame.
pub(crate) type HeaderBytes = [u8; HEADERS_BYTES_MAX];

/// The variable fields of a TCP header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentFields {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
}

/// The constant headers of a connection.
#[derive(Clone, Debug)]
pub(crate) struct HeaderTemplate {
    bytes: HeaderBytes,
    /// Offset of the TCP header.
    tcp: usize,
    /// Checksum of the IPv4 header without its length; `None` for IPv6.
    ip_sum: Option<PartialSum>,
    /// Checksum of the pseudo header without its length.
    pseudo_sum: PartialSum,
}

impl HeaderTemplate {
    pub(crate) fn new(network: &Network, flow: &Flow) -> HeaderTemplate {
        let (source, destination) = (flow.remote.address, flow.guest.address);
        let mut headers = vec![0; LENGTH_BYTES];
        IpHeader::new(source, destination, protocol::TCP).write(network, &mut headers, 0);
        let is_v4 = matches!((source, destination), (IpAddr::V4(_), IpAddr::V4(_)));
        if is_v4 {
            headers[LENGTH_BYTES + ETHERNET_HEADER_BYTES + 2..][..2].fill(0);
            headers[LENGTH_BYTES + ETHERNET_HEADER_BYTES + 10..][..2].fill(0);
        }
        let tcp = headers.len();
        let mut bytes = [0; HEADERS_BYTES_MAX];
        bytes[..tcp].copy_from_slice(&headers);
        bytes[tcp..][..2].copy_from_slice(&flow.remote.port.to_be_bytes());
        bytes[tcp + 2..][..2].copy_from_slice(&flow.guest.port.to_be_bytes());
        HeaderTemplate {
            bytes,
            tcp,
            ip_sum: is_v4.then(|| {
                PartialSum::default().add(&headers[LENGTH_BYTES + ETHERNET_HEADER_BYTES..])
            }),
            pseudo_sum: ip::pseudo_header_sum(source, destination, protocol::TCP, 0),
        }
    }

    /// Returns the size of the headers.
    pub(crate) fn len(&self) -> usize {
        self.tcp + TCP_HEADER_BYTES
    }

    /// Returns the headers of a frame with these options and this payload in two parts.
    pub(crate) fn headers(
        &self,
        fields: SegmentFields,
        options: &[u8],
        payload: [&[u8]; 2],
    ) -> HeaderBytes {
        let mut headers = self.bytes;
        let segment = TCP_HEADER_BYTES + options.len() + payload[0].len() + payload[1].len();
        let frame = (self.tcp - LENGTH_BYTES + segment) as u32;
        headers[..LENGTH_BYTES].copy_from_slice(&frame.to_be_bytes());
        let ip = &mut headers[LENGTH_BYTES + ETHERNET_HEADER_BYTES..];
        match self.ip_sum {
            Some(sum) => {
                let total = ((ip::IPV4_HEADER_BYTES + segment) as u16).to_be_bytes();
                ip[2..4].copy_from_slice(&total);
                ip[10..12].copy_from_slice(&sum.add(&total).finish());
            }
            None => ip[4..6].copy_from_slice(&(segment as u16).to_be_bytes()),
        }
        let tcp = &mut headers[self.tcp..][..TCP_HEADER_BYTES];
        tcp[4..8].copy_from_slice(&fields.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&fields.ack.to_be_bytes());
        tcp[12] = (((TCP_HEADER_BYTES + options.len()) / 4) << 4) as u8;
        tcp[13] = fields.flags;
        tcp[14..16].copy_from_slice(&fields.window.to_be_bytes());
        let sum = self
            .pseudo_sum
            .add(&(segment as u32).to_be_bytes())
            .add(tcp)
            .add(options)
            .add(payload[0])
            .add(payload[1])
            .finish();
        tcp[16..18].copy_from_slice(&sum);
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum;
    use crate::ip::{Frame, parse};
    use crate::testing::network;

    #[test]
    fn sums_are_right_for_both_families_and_for_bytes_in_two_parts() {
        let network = network();
        for (guest, remote) in
            [("172.16.0.2:40000", "1.2.3.4:80"), ("[fd42:6d73:62::2]:1", "[2001:db8::9]:443")]
        {
            let flow = Flow {
                guest: guest.parse::<std::net::SocketAddr>().unwrap().into(),
                remote: remote.parse::<std::net::SocketAddr>().unwrap().into(),
            };
            let template = HeaderTemplate::new(&network, &flow);
            let fields = SegmentFields { seq: 1, ack: 2, flags: 16, window: 9 };
            for (first, second) in [(0, 0), (1, 0), (7, 8), (500, 501)] {
                let (first, second) = (vec![3; first], vec![5; second]);
                let headers = template.headers(fields, &[], [&first, &second]);
                let frame = [&headers[LENGTH_BYTES..template.len()], &first, &second].concat();
                assert_eq!(
                    frame.len(),
                    u32::from_be_bytes(*headers.first_chunk().unwrap()) as usize
                );
                let Some(Frame::Ip(packet)) = parse(&frame) else { panic!("it is no packet") };
                assert_eq!((packet.source, packet.protocol), (flow.remote.address, protocol::TCP));
                let sum = ip::pseudo_header_sum(
                    packet.source,
                    packet.destination,
                    protocol::TCP,
                    packet.payload.len(),
                );
                assert_eq!(sum.add(packet.payload).finish(), [0, 0]);
                if packet.source.is_ipv4() {
                    assert_eq!(checksum::of(&packet.ip_bytes[..ip::IPV4_HEADER_BYTES]), [0, 0]);
                }
            }
        }
    }
}
