//! DHCP (RFC 2131): the guest's address, from the gateway.

use std::net::Ipv4Addr;

use crate::emitter::PacketEmitter;
use crate::flow::{Flow, FlowEndpoint};
use crate::ip::Packet;
use crate::udp::datagram;
use libmsb::net::network::Network;

/// Ports of DHCP (RFC 2131).
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Offset of the options, after the magic cookie.
const OPTIONS_OFFSET: usize = 240;
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Lease time of a week: the address stays the guest's as long as this process runs.
const LEASE_SECONDS: u32 = 7 * 24 * 60 * 60;

/// Message types: values of the option [`option::MESSAGE_TYPE`] (RFC 2132, 9.6).
mod message_type {
    pub(super) const DHCPDISCOVER: u8 = 1;
    pub(super) const DHCPOFFER: u8 = 2;
    pub(super) const DHCPREQUEST: u8 = 3;
    pub(super) const DHCPACK: u8 = 5;
    pub(super) const DHCPNAK: u8 = 6;
}

/// Options (RFC 2132).
mod option {
    pub(super) const PAD: u8 = 0;
    pub(super) const SUBNET_MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DOMAIN_NAME_SERVER: u8 = 6;
    pub(super) const INTERFACE_MTU: u8 = 26;
    pub(super) const REQUESTED_IP_ADDRESS: u8 = 50;
    pub(super) const IP_ADDRESS_LEASE_TIME: u8 = 51;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER_IDENTIFIER: u8 = 54;
    pub(super) const END: u8 = 255;
}

/// Handles a packet to a DHCP server. Returns false if it is another packet.
pub(crate) fn answer(emitter: &mut PacketEmitter, packet: &Packet<'_>) -> bool {
    let Some((flow, message)) = datagram::parse(packet) else {
        return false;
    };
    if flow.remote.port != SERVER_PORT || flow.guest.port != CLIENT_PORT {
        return false;
    }
    if let Some((reply, v4)) = reply_to(&emitter.network, message) {
        let end = |address: Ipv4Addr, port| FlowEndpoint { address: address.into(), port };
        let flow =
            Flow { guest: end(Ipv4Addr::BROADCAST, CLIENT_PORT), remote: end(v4, SERVER_PORT) };
        datagram::send(emitter, &flow, &reply);
    }
    true
}

/// Returns the reply and the server's address. There is one address, and every client gets it.
fn reply_to(network: &Network, message: &[u8]) -> Option<(Vec<u8>, Ipv4Addr)> {
    const BOOT_REQUEST: u8 = 1;
    const BOOT_REPLY: u8 = 2;
    let v4 = network.v4?;
    let (header, options) = message.split_first_chunk::<OPTIONS_OFFSET>()?;
    if header[0] != BOOT_REQUEST || header[236..240] != MAGIC_COOKIE {
        return None;
    }
    let requested = match find_option(options, option::REQUESTED_IP_ADDRESS) {
        Some(address) => <[u8; 4]>::try_from(address).ok().map(Ipv4Addr::from),
        None => header[12..16].first_chunk().map(|address| Ipv4Addr::from(*address)),
    };
    let reply_type = match find_option(options, option::MESSAGE_TYPE)? {
        [message_type::DHCPDISCOVER] => message_type::DHCPOFFER,
        [message_type::DHCPREQUEST] if requested == Some(v4.guest) => message_type::DHCPACK,
        [message_type::DHCPREQUEST] => message_type::DHCPNAK,
        _ => return None,
    };
    let mut reply = header.to_vec();
    reply[0] = BOOT_REPLY;
    if reply_type != message_type::DHCPNAK {
        reply[16..20].copy_from_slice(&v4.guest.octets());
    }
    reply[20..24].copy_from_slice(&v4.gateway.octets());
    let mask = u32::MAX << (32 - u32::from(v4.prefix));
    let gateway = v4.gateway.octets();
    let mut put = |number: u8, value: &[u8]| {
        reply.extend_from_slice(&[number, value.len() as u8]);
        reply.extend_from_slice(value);
    };
    put(option::MESSAGE_TYPE, &[reply_type]);
    put(option::SERVER_IDENTIFIER, &gateway);
    if reply_type != message_type::DHCPNAK {
        put(option::IP_ADDRESS_LEASE_TIME, &LEASE_SECONDS.to_be_bytes());
        put(option::SUBNET_MASK, &mask.to_be_bytes());
        put(option::ROUTER, &gateway);
        put(option::DOMAIN_NAME_SERVER, &gateway);
        put(option::INTERFACE_MTU, &network.mtu.to_be_bytes());
    }
    reply.push(option::END);
    Some((reply, v4.gateway))
}

fn find_option(mut options: &[u8], code: u8) -> Option<&[u8]> {
    loop {
        match options {
            [option::PAD, rest @ ..] => options = rest,
            [number, length, rest @ ..] if *number != option::END => {
                let (value, rest) = rest.split_at_checked(usize::from(*length))?;
                if *number == code {
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
        let mut message = vec![0; OPTIONS_OFFSET];
        message[0] = 1;
        message[4..8].copy_from_slice(b"\x01\x02\x03\x04");
        message[236..240].copy_from_slice(&MAGIC_COOKIE);
        message.extend_from_slice(options);
        message
    }

    fn kind_and_address(options: &[u8]) -> Option<(u8, Ipv4Addr)> {
        let (reply, _) = reply_to(&network(), &request(options))?;
        let reply_type = find_option(&reply[OPTIONS_OFFSET..], option::MESSAGE_TYPE)?[0];
        assert_eq!(reply[4..8], *b"\x01\x02\x03\x04");
        Some((reply_type, Ipv4Addr::from(*reply[16..20].first_chunk()?)))
    }

    #[test]
    fn every_dhcp_client_gets_the_guests_address_and_no_other() {
        let guest = network().v4.unwrap().guest;
        assert_eq!(kind_and_address(&[53, 1, 1, 255]), Some((message_type::DHCPOFFER, guest)));
        assert_eq!(
            kind_and_address(&[0, 53, 1, 3, 50, 4, 172, 16, 0, 2]),
            Some((message_type::DHCPACK, guest))
        );
        assert_eq!(
            kind_and_address(&[53, 1, 3, 50, 4, 10, 0, 0, 9, 255]),
            Some((message_type::DHCPNAK, Ipv4Addr::UNSPECIFIED))
        );
    }

    #[test]
    fn truncated_and_other_dhcp_messages_are_not_answered() {
        assert_eq!(kind_and_address(&[]), None);
        assert_eq!(kind_and_address(&[53]), None);
        assert_eq!(kind_and_address(&[53, 9, 1]), None);
        assert_eq!(kind_and_address(&[53, 1, 7]), None);
        let whole = request(&[53, 1, 1]);
        for length in 0..OPTIONS_OFFSET {
            assert!(reply_to(&network(), &whole[..length]).is_none());
        }
    }
}
