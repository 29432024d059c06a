//! How the guest finds its gateway and its addresses: ARP, neighbour and router discovery, DHCP.
//!
//! Sandboxes are told their addresses by the agent; all of this is for whoever else speaks the frame stream.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::Sum;
use crate::flow::{End, Flow};
use crate::ip::{Head, Packet, ether, protocol};
use crate::udp;
use crate::world::World;
use libmsb::net::network::{GATEWAY_LINK_LOCAL, Network};

/// A request of ARP for IPv4 over Ethernet (RFC 826), from its first byte on.
const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const ARP_REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];

/// Answers a question for the gateway's hardware address.
pub(crate) fn arp(world: &mut World, packet: &[u8]) {
    let Some((packet, _)) = packet.split_first_chunk::<28>() else {
        return;
    };
    let Some(v4) = world.network.v4 else { return };
    if packet[..8] != ARP_REQUEST || packet[24..28] != v4.gateway.octets() {
        return;
    }
    let network = &world.network;
    world.transmitter.push(|out| {
        out.extend_from_slice(&packet[8..14]);
        out.extend_from_slice(&network.gateway_mac);
        out.extend_from_slice(&ether::ARP.to_be_bytes());
        out.extend_from_slice(&ARP_REPLY);
        out.extend_from_slice(&network.gateway_mac);
        out.extend_from_slice(&v4.gateway.octets());
        out.extend_from_slice(&packet[8..18]);
    });
}

/// Types of messages of neighbour discovery (RFC 4861, 4).
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Everybody on the wire.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Time for which the router and its prefix are good: as long as they are told to be, at most (RFC 4861, 6.2.1).
const ROUTER_SECONDS: u16 = 9000;
const FOR_EVER: [u8; 4] = [0xff; 4];
/// Messages of neighbour discovery come from the wire itself: no router has passed them on.
const HOP_LIMIT: u8 = 255;

/// Handles a message of neighbour discovery. `false`: it is another one.
pub(crate) fn discovery(world: &mut World, packet: &Packet<'_>) -> bool {
    let Some(&kind) = packet.payload.first() else {
        return false;
    };
    match kind {
        ROUTER_SOLICITATION if packet.hop_limit == HOP_LIMIT => advertise_router(world, packet),
        NEIGHBOUR_SOLICITATION if packet.hop_limit == HOP_LIMIT => advertise(world, packet),
        ROUTER_SOLICITATION..=NEIGHBOUR_ADVERTISEMENT => {}
        _ => return false,
    }
    true
}

fn advertise(world: &mut World, packet: &Packet<'_>) {
    let Some(target) = packet
        .payload
        .get(8..24)
        .and_then(|bytes| bytes.first_chunk::<16>())
    else {
        return;
    };
    let target = Ipv6Addr::from(*target);
    if !world.network.is_gateway(IpAddr::V6(target)) {
        return;
    }
    // Of somebody who has no address yet, everybody hears.
    let (destination, solicited) = match packet.source {
        IpAddr::V6(source) if !source.is_unspecified() => (source, 0x40),
        _ => (ALL_NODES, 0),
    };
    const ROUTER: u8 = 0x80;
    const OVERRIDE: u8 = 0x20;
    let mut message = vec![
        NEIGHBOUR_ADVERTISEMENT,
        0,
        0,
        0,
        ROUTER | OVERRIDE | solicited,
        0,
        0,
        0,
    ];
    message.extend_from_slice(&target.octets());
    // Option 2: the target's hardware address, of eight bytes with its header.
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&world.network.gateway_mac);
    send(world, target, destination, message);
}

fn advertise_router(world: &mut World, packet: &Packet<'_>) {
    let Some(v6) = world.network.v6 else { return };
    let destination = match packet.source {
        IpAddr::V6(source) if !source.is_unspecified() => source,
        _ => ALL_NODES,
    };
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0];
    message.extend_from_slice(&ROUTER_SECONDS.to_be_bytes());
    message.extend_from_slice(&[0; 8]);
    // Option 1: the router's hardware address.
    message.extend_from_slice(&[1, 1]);
    message.extend_from_slice(&world.network.gateway_mac);
    // Option 5: the MTU.
    message.extend_from_slice(&[5, 1, 0, 0]);
    message.extend_from_slice(&u32::from(world.network.mtu).to_be_bytes());
    // Option 3: the prefix, on the wire, from which the guest makes addresses of its own.
    message.extend_from_slice(&[3, 4, v6.prefix, 0xc0]);
    message.extend_from_slice(&FOR_EVER);
    message.extend_from_slice(&FOR_EVER);
    message.extend_from_slice(&[0; 4]);
    let mask = u128::MAX << (128 - u32::from(v6.prefix));
    message.extend_from_slice(&(v6.guest.to_bits() & mask).to_be_bytes());
    // Option 25: the name server (RFC 8106).
    message.extend_from_slice(&[25, 3, 0, 0]);
    message.extend_from_slice(&FOR_EVER);
    message.extend_from_slice(&v6.gateway.octets());
    send(world, GATEWAY_LINK_LOCAL, destination, message);
}

fn send(world: &mut World, source: Ipv6Addr, destination: Ipv6Addr, mut message: Vec<u8>) {
    let head = Head {
        hop_limit: HOP_LIMIT,
        ..Head::new(source.into(), destination.into(), protocol::ICMPV6)
    };
    let sum: Sum = head.pseudo(message.len()).add(&message);
    message[2..4].copy_from_slice(&sum.finish());
    udp::send_packet(world, &head, &message);
}

/// Ports of DHCP (RFC 2131).
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
/// Where the options begin, after the magic number.
const DHCP_OPTIONS: usize = 240;
const DHCP_MAGIC: [u8; 4] = [99, 130, 83, 99];
/// A week: the address is the guest's as long as we are there.
const LEASE_SECONDS: u32 = 7 * 24 * 60 * 60;

/// Kinds of messages (option 53).
mod dhcp {
    pub(super) const DISCOVER: u8 = 1;
    pub(super) const OFFER: u8 = 2;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const ACK: u8 = 5;
    pub(super) const NAK: u8 = 6;
}

/// Handles a packet to a DHCP server. `false`: it is another one.
pub(crate) fn lease(world: &mut World, packet: &Packet<'_>) -> bool {
    let Some((flow, message)) = udp::parse(packet) else {
        return false;
    };
    if flow.remote.port != DHCP_SERVER || flow.guest.port != DHCP_CLIENT {
        return false;
    }
    if let Some((reply, v4)) = answer(&world.network, message) {
        let end = |address: Ipv4Addr, port| End {
            address: address.into(),
            port,
        };
        let flow = Flow {
            guest: end(Ipv4Addr::BROADCAST, DHCP_CLIENT),
            remote: end(v4, DHCP_SERVER),
        };
        udp::send_datagram(world, &flow, &reply);
    }
    true
}

/// The answer, and who gives it. There is one address, and whoever asks gets it.
fn answer(network: &Network, message: &[u8]) -> Option<(Vec<u8>, Ipv4Addr)> {
    const BOOT_REQUEST: u8 = 1;
    const BOOT_REPLY: u8 = 2;
    let v4 = network.v4?;
    let (header, options) = message.split_first_chunk::<DHCP_OPTIONS>()?;
    if header[0] != BOOT_REQUEST || header[236..240] != DHCP_MAGIC {
        return None;
    }
    let option = |wanted| find_option(options, wanted);
    let asked = match option(50) {
        Some(address) => <[u8; 4]>::try_from(address).ok().map(Ipv4Addr::from),
        None => header[12..16]
            .first_chunk()
            .map(|address| Ipv4Addr::from(*address)),
    };
    let kind = match option(53)? {
        [dhcp::DISCOVER] => dhcp::OFFER,
        [dhcp::REQUEST] if asked == Some(v4.guest) => dhcp::ACK,
        [dhcp::REQUEST] => dhcp::NAK,
        _ => return None,
    };
    let mut reply = header.to_vec();
    reply[0] = BOOT_REPLY;
    if kind != dhcp::NAK {
        reply[16..20].copy_from_slice(&v4.guest.octets());
    }
    reply[20..24].copy_from_slice(&v4.gateway.octets());
    let mask = u32::MAX << (32 - u32::from(v4.prefix));
    let gateway = v4.gateway.octets();
    let mut put = |number: u8, value: &[u8]| {
        reply.extend_from_slice(&[number, value.len() as u8]);
        reply.extend_from_slice(value);
    };
    put(53, &[kind]);
    put(54, &gateway);
    if kind != dhcp::NAK {
        put(51, &LEASE_SECONDS.to_be_bytes());
        put(1, &mask.to_be_bytes());
        put(3, &gateway);
        put(6, &gateway);
        put(26, &network.mtu.to_be_bytes());
    }
    reply.push(255);
    Some((reply, v4.gateway))
}

fn find_option(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        match options {
            [0, rest @ ..] => options = rest,
            [number, length, rest @ ..] if *number != 255 => {
                let (value, rest) = rest.split_at_checked(usize::from(*length))?;
                if *number == wanted {
                    return Some(value);
                }
                options = rest;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::network;

    fn request(options: &[u8]) -> Vec<u8> {
        let mut message = vec![0; DHCP_OPTIONS];
        message[0] = 1;
        message[4..8].copy_from_slice(b"\x01\x02\x03\x04");
        message[236..240].copy_from_slice(&DHCP_MAGIC);
        message.extend_from_slice(options);
        message
    }

    fn kind_and_address(options: &[u8]) -> Option<(u8, Ipv4Addr)> {
        let (reply, _) = answer(&network(), &request(options))?;
        let kind = find_option(&reply[DHCP_OPTIONS..], 53)?[0];
        assert_eq!(reply[4..8], *b"\x01\x02\x03\x04");
        Some((kind, Ipv4Addr::from(*reply[16..20].first_chunk()?)))
    }

    #[test]
    fn whoever_asks_gets_the_guests_address_and_no_other() {
        let guest = network().v4.unwrap().guest;
        assert_eq!(
            kind_and_address(&[53, 1, 1, 255]),
            Some((dhcp::OFFER, guest))
        );
        assert_eq!(
            kind_and_address(&[0, 53, 1, 3, 50, 4, 172, 16, 0, 2]),
            Some((dhcp::ACK, guest))
        );
        assert_eq!(
            kind_and_address(&[53, 1, 3, 50, 4, 10, 0, 0, 9, 255]),
            Some((dhcp::NAK, Ipv4Addr::UNSPECIFIED))
        );
    }

    #[test]
    fn what_is_cut_or_no_question_is_not_answered() {
        assert_eq!(kind_and_address(&[]), None);
        assert_eq!(kind_and_address(&[53]), None);
        assert_eq!(kind_and_address(&[53, 9, 1]), None);
        assert_eq!(kind_and_address(&[53, 1, 7]), None);
        let whole = request(&[53, 1, 1]);
        for length in 0..DHCP_OPTIONS {
            assert!(answer(&network(), &whole[..length]).is_none());
        }
    }
}
