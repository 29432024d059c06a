//! Datagrams of the guest and to it (RFC 768).

use crate::emitter::PacketEmitter;
use crate::flow::{Flow, FlowEndpoint};
use crate::icmp::{self, IcmpError};
use crate::ip::{IpHeader, Packet, protocol};

/// Size of the header.
const UDP_HEADER_BYTES: usize = 8;

/// Parses a datagram: its flow and its payload.
pub fn parse<'a>(packet: &Packet<'a>) -> Option<(Flow, &'a [u8])> {
    let (header, rest) = packet.payload.split_first_chunk::<UDP_HEADER_BYTES>()?;
    let be16 = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let payload = rest.get(..usize::from(be16(4)).checked_sub(UDP_HEADER_BYTES)?)?;
    let end = |address, port| FlowEndpoint { address, port };
    let flow =
        Flow { guest: end(packet.source, be16(0)), remote: end(packet.destination, be16(2)) };
    (flow.remote.port != 0).then_some((flow, payload))
}

/// Sends a datagram to the guest.
pub(crate) fn send(emitter: &mut PacketEmitter, flow: &Flow, payload: &[u8]) {
    let head = IpHeader::new(flow.remote.address, flow.guest.address, protocol::UDP);
    let length = UDP_HEADER_BYTES + payload.len();
    let Ok(length_field) = u16::try_from(length) else {
        return;
    };
    let mut datagram = Vec::with_capacity(length);
    datagram.extend_from_slice(&flow.remote.port.to_be_bytes());
    datagram.extend_from_slice(&flow.guest.port.to_be_bytes());
    datagram.extend_from_slice(&length_field.to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    let sum = match head.pseudo_header_sum(length).add(&datagram).finish() {
        // Zero means "no checksum" (RFC 768).
        [0, 0] => [0xff, 0xff],
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum);
    emitter.send_packet(&head, &datagram);
}

/// Sends an ICMP error about a datagram to the guest. The original datagram is gone, so its header
/// is rebuilt.
pub(super) fn send_error(emitter: &mut PacketEmitter, flow: &Flow, error: IcmpError) {
    let mut header = [0; UDP_HEADER_BYTES];
    header[..2].copy_from_slice(&flow.guest.port.to_be_bytes());
    header[2..4].copy_from_slice(&flow.remote.port.to_be_bytes());
    header[5] = UDP_HEADER_BYTES as u8;
    icmp::send_flow_error(emitter, flow, (protocol::UDP, UDP_HEADER_BYTES, header), error);
}
