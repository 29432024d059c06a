//! The headers of a connection's frames to the guest, all but what changes.

use std::net::IpAddr;

use super::segment::HEADER;
use crate::checksum::Sum;
use crate::device::LENGTH;
use crate::flow::Flow;
use crate::ip::{self, ETHERNET, Head, protocol};
use libmsb::net::network::Network;

/// Bytes of the longest head: length, Ethernet, IPv6, TCP.
pub(crate) const HEAD_BYTES_MAX: usize = LENGTH + ETHERNET + ip::V6 + HEADER;

/// The headers of a frame.
pub(crate) type HeadBytes = [u8; HEAD_BYTES_MAX];

/// What a segment says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Says {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
}

/// The headers.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    bytes: HeadBytes,
    /// Where TCP begins.
    tcp: usize,
    /// Sum of the IPv4 header without its length; none for IPv6.
    ip_sum: Option<Sum>,
    /// Sum of the pseudo header without its length.
    pseudo_sum: Sum,
}

impl Template {
    pub(crate) fn new(network: &Network, flow: &Flow) -> Template {
        let (source, destination) = (flow.remote.address, flow.guest.address);
        let mut headers = vec![0; LENGTH];
        Head::new(source, destination, protocol::TCP).write(network, &mut headers, 0);
        let is_v4 = matches!((source, destination), (IpAddr::V4(_), IpAddr::V4(_)));
        if is_v4 {
            headers[LENGTH + ETHERNET + 2..][..2].fill(0);
            headers[LENGTH + ETHERNET + 10..][..2].fill(0);
        }
        let tcp = headers.len();
        let mut bytes = [0; HEAD_BYTES_MAX];
        bytes[..tcp].copy_from_slice(&headers);
        bytes[tcp..][..2].copy_from_slice(&flow.remote.port.to_be_bytes());
        bytes[tcp + 2..][..2].copy_from_slice(&flow.guest.port.to_be_bytes());
        Template {
            bytes,
            tcp,
            ip_sum: is_v4.then(|| Sum::default().add(&headers[LENGTH + ETHERNET..])),
            pseudo_sum: ip::pseudo(source, destination, protocol::TCP, 0),
        }
    }

    /// Bytes of a head.
    pub(crate) fn len(&self) -> usize {
        self.tcp + HEADER
    }

    /// The head of a frame whose options and bytes are these, one behind the other.
    pub(crate) fn head(&self, says: Says, options: &[u8], payload: [&[u8]; 2]) -> HeadBytes {
        let mut head = self.bytes;
        let segment = HEADER + options.len() + payload[0].len() + payload[1].len();
        let frame = (self.tcp - LENGTH + segment) as u32;
        head[..LENGTH].copy_from_slice(&frame.to_be_bytes());
        let ip = &mut head[LENGTH + ETHERNET..];
        match self.ip_sum {
            Some(sum) => {
                let total = ((ip::V4 + segment) as u16).to_be_bytes();
                ip[2..4].copy_from_slice(&total);
                ip[10..12].copy_from_slice(&sum.add(&total).finish());
            }
            None => ip[4..6].copy_from_slice(&(segment as u16).to_be_bytes()),
        }
        let tcp = &mut head[self.tcp..][..HEADER];
        tcp[4..8].copy_from_slice(&says.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&says.ack.to_be_bytes());
        tcp[12] = (((HEADER + options.len()) / 4) << 4) as u8;
        tcp[13] = says.flags;
        tcp[14..16].copy_from_slice(&says.window.to_be_bytes());
        let sum = self
            .pseudo_sum
            .add(&(segment as u32).to_be_bytes())
            .add(tcp)
            .add(options)
            .add(payload[0])
            .add(payload[1])
            .finish();
        tcp[16..18].copy_from_slice(&sum);
        head
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
        for (guest, remote) in [
            ("172.16.0.2:40000", "1.2.3.4:80"),
            ("[fd42:6d73:62::2]:1", "[2001:db8::9]:443"),
        ] {
            let flow = Flow {
                guest: guest.parse::<std::net::SocketAddr>().unwrap().into(),
                remote: remote.parse::<std::net::SocketAddr>().unwrap().into(),
            };
            let template = Template::new(&network, &flow);
            let says = Says {
                seq: 1,
                ack: 2,
                flags: 16,
                window: 9,
            };
            for (first, second) in [(0, 0), (1, 0), (7, 8), (500, 501)] {
                let (first, second) = (vec![3; first], vec![5; second]);
                let head = template.head(says, &[], [&first, &second]);
                let frame = [&head[LENGTH..template.len()], &first, &second].concat();
                assert_eq!(
                    frame.len(),
                    u32::from_be_bytes(*head.first_chunk().unwrap()) as usize
                );
                let Some(Frame::Ip(packet)) = parse(&frame) else {
                    panic!("it is no packet")
                };
                assert_eq!(
                    (packet.source, packet.protocol),
                    (flow.remote.address, protocol::TCP)
                );
                let sum = ip::pseudo(
                    packet.source,
                    packet.destination,
                    protocol::TCP,
                    packet.payload.len(),
                );
                assert_eq!(sum.add(packet.payload).finish(), [0, 0]);
                if packet.source.is_ipv4() {
                    assert_eq!(checksum::of(&packet.whole[..ip::V4]), [0, 0]);
                }
            }
        }
    }
}
