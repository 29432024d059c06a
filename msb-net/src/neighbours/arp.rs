//! ARP (RFC 826): the gateway's hardware address.

use crate::emitter::PacketEmitter;
use crate::ip::ether;

/// Start of an ARP request for IPv4 over Ethernet (RFC 826).
const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const ARP_REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];

/// Answers an ARP request for the gateway's hardware address.
pub(crate) fn answer(emitter: &mut PacketEmitter, packet: &[u8]) {
    let Some((packet, _)) = packet.split_first_chunk::<28>() else {
        return;
    };
    let Some(v4) = emitter.network.v4 else { return };
    if packet[..8] != ARP_REQUEST || packet[24..28] != v4.gateway.octets() {
        return;
    }
    let network = &emitter.network;
    emitter.transmitter.push_frame(|out| {
        out.extend_from_slice(&packet[8..14]);
        out.extend_from_slice(&network.gateway_mac);
        out.extend_from_slice(&ether::ARP.to_be_bytes());
        out.extend_from_slice(&ARP_REPLY);
        out.extend_from_slice(&network.gateway_mac);
        out.extend_from_slice(&v4.gateway.octets());
        out.extend_from_slice(&packet[8..18]);
    });
}
