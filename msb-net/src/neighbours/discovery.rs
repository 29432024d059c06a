//! Neighbour and router discovery of IPv6 (RFC 4861).

use std::net::{IpAddr, Ipv6Addr};

use crate::checksum::PartialSum;
use crate::emitter::PacketEmitter;
use crate::ip::{IpHeader, Packet, protocol};
use libmsb::net::network::GATEWAY_LINK_LOCAL;

/// Message types of neighbour discovery (RFC 4861, 4).
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Options of these messages, with the names of RFC 4861, 4.6, and RFC 8106, 5.1. A length counts
/// units of eight bytes.
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
const PREFIX_INFORMATION: u8 = 3;
const MTU: u8 = 5;
const RECURSIVE_DNS_SERVER: u8 = 25;
/// Flags of a prefix: on-link, and autonomous address configuration (RFC 4861, 4.6.2).
const PREFIX_FLAGS: u8 = 0x80 | 0x40;
/// Hop limit that guests are to use.
const CUR_HOP_LIMIT: u8 = 64;
/// Multicast address of all nodes on the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Lifetime of the router: the largest value permitted (RFC 4861, 6.2.1).
const ROUTER_SECONDS: u16 = 9000;
const INFINITE_LIFETIME: [u8; 4] = [0xff; 4];
/// Hop limit of neighbour discovery messages, which proves that no router forwarded them.
const ND_HOP_LIMIT: u8 = 255;

/// Handles a message of neighbour discovery. Returns false if it is another message.
pub(crate) fn answer(emitter: &mut PacketEmitter, packet: &Packet<'_>) -> bool {
    let Some(&message_type) = packet.payload.first() else {
        return false;
    };
    match message_type {
        ROUTER_SOLICITATION if packet.hop_limit == ND_HOP_LIMIT => {
            advertise_router(emitter, packet)
        }
        NEIGHBOUR_SOLICITATION if packet.hop_limit == ND_HOP_LIMIT => {
            advertise_gateway(emitter, packet)
        }
        ROUTER_SOLICITATION..=NEIGHBOUR_ADVERTISEMENT => {}
        _ => return false,
    }
    true
}

/// Answers a neighbour solicitation for the gateway.
fn advertise_gateway(emitter: &mut PacketEmitter, packet: &Packet<'_>) {
    let Some(target) = packet.payload.get(8..24).and_then(|bytes| bytes.first_chunk::<16>()) else {
        return;
    };
    let target = Ipv6Addr::from(*target);
    if !emitter.network.is_gateway(IpAddr::V6(target)) {
        return;
    }
    // A node without an address is answered at the address of all nodes.
    const ROUTER: u8 = 0x80;
    const SOLICITED: u8 = 0x40;
    const OVERRIDE: u8 = 0x20;
    let (destination, solicited) = match packet.source {
        IpAddr::V6(source) if !source.is_unspecified() => (source, SOLICITED),
        _ => (ALL_NODES, 0),
    };
    let mut message =
        vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, ROUTER | OVERRIDE | solicited, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message.extend_from_slice(&[TARGET_LINK_LAYER_ADDRESS, 1]);
    message.extend_from_slice(&emitter.network.gateway_mac);
    send_message(emitter, target, destination, message);
}

/// Answers a router solicitation.
fn advertise_router(emitter: &mut PacketEmitter, packet: &Packet<'_>) {
    let Some(v6) = emitter.network.v6 else { return };
    let destination = match packet.source {
        IpAddr::V6(source) if !source.is_unspecified() => source,
        _ => ALL_NODES,
    };
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, CUR_HOP_LIMIT, 0];
    message.extend_from_slice(&ROUTER_SECONDS.to_be_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[SOURCE_LINK_LAYER_ADDRESS, 1]);
    message.extend_from_slice(&emitter.network.gateway_mac);
    message.extend_from_slice(&[MTU, 1, 0, 0]);
    message.extend_from_slice(&u32::from(emitter.network.mtu).to_be_bytes());
    // The guest forms its own addresses from this prefix.
    message.extend_from_slice(&[PREFIX_INFORMATION, 4, v6.prefix, PREFIX_FLAGS]);
    message.extend_from_slice(&INFINITE_LIFETIME);
    message.extend_from_slice(&INFINITE_LIFETIME);
    message.extend_from_slice(&[0; 4]);
    let mask = u128::MAX << (128 - u32::from(v6.prefix));
    message.extend_from_slice(&(v6.guest.to_bits() & mask).to_be_bytes());
    message.extend_from_slice(&[RECURSIVE_DNS_SERVER, 3, 0, 0]);
    message.extend_from_slice(&INFINITE_LIFETIME);
    message.extend_from_slice(&v6.gateway.octets());
    send_message(emitter, GATEWAY_LINK_LOCAL, destination, message);
}

fn send_message(
    emitter: &mut PacketEmitter,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    mut message: Vec<u8>,
) {
    let head = IpHeader {
        hop_limit: ND_HOP_LIMIT,
        ..IpHeader::new(source.into(), destination.into(), protocol::ICMPV6)
    };
    let sum: PartialSum = head.pseudo_header_sum(message.len()).add(&message);
    message[2..4].copy_from_slice(&sum.finish());
    emitter.send_packet(&head, &message);
}
