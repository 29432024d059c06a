//! Sending of packets to the guest. Every protocol emits its packets through this.

use crate::device::FrameTransmitter;
use crate::ip::{Fragment, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, IpHeader};
use libmsb::net::network::Network;

/// The way to the guest: its addresses, and the frame stream.
pub(crate) struct PacketEmitter {
    pub(crate) network: Network,
    pub(crate) transmitter: FrameTransmitter,
    /// Identification of the last packet that was sent in fragments.
    fragment_id: u32,
}

impl PacketEmitter {
    pub(crate) fn new(network: Network, transmitter: FrameTransmitter) -> PacketEmitter {
        PacketEmitter { network, transmitter, fragment_id: 0 }
    }

    /// Sends a packet, in fragments if it exceeds the MTU.
    pub(crate) fn send_packet(&mut self, head: &IpHeader, payload: &[u8]) {
        let network = &self.network;
        let header = if head.source.is_ipv4() { IPV4_HEADER_BYTES } else { IPV6_HEADER_BYTES };
        let room = usize::from(network.mtu) - header;
        if payload.len() <= room {
            return self.transmitter.push_frame(|out| {
                head.write(network, out, payload.len());
                out.extend_from_slice(payload);
            });
        }
        // An IPv6 fragment has one more header, and all fragments but the last hold a multiple of
        // 8 bytes.
        let room = (if head.source.is_ipv4() { room } else { room - 8 }) & !7;
        self.fragment_id = self.fragment_id.wrapping_add(1);
        for (number, part) in payload.chunks(room).enumerate() {
            let fragment = Fragment {
                id: self.fragment_id,
                offset: number * room,
                more: (number + 1) * room < payload.len(),
            };
            self.transmitter.push_frame(|out| {
                head.write_fragment(network, out, part.len(), Some(fragment));
                out.extend_from_slice(part);
            });
        }
    }
}
