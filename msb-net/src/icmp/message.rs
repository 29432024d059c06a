//! Messages of ICMP and ICMPv6 to the guest.

use std::net::IpAddr;

use rustix::io::Errno;

use crate::checksum::PartialSum;
use crate::emitter::PacketEmitter;
use crate::flow::Flow;
use crate::ip::{ETHERNET_HEADER_BYTES, IPV6_HEADER_BYTES, IpHeader, Packet, protocol};

/// Message types.
pub(super) mod message_type {
    pub(in crate::icmp) const ICMP_ECHOREPLY: u8 = 0;
    pub(in crate::icmp) const ICMP_DEST_UNREACH: u8 = 3;
    pub(in crate::icmp) const ICMP_ECHO: u8 = 8;
    pub(in crate::icmp) const ICMPV6_DEST_UNREACH: u8 = 1;
    pub(in crate::icmp) const ICMPV6_PKT_TOOBIG: u8 = 2;
    pub(in crate::icmp) const ICMPV6_ECHO_REQUEST: u8 = 128;
    pub(in crate::icmp) const ICMPV6_ECHO_REPLY: u8 = 129;
}

/// Size of a message's header.
pub(super) const ICMP_HEADER_BYTES: usize = 8;
/// Bytes of the packet that an error quotes: an IPv4 error stays below 576 bytes (RFC 1812,
/// 4.3.2.3), an IPv6 error below 1280.
const QUOTE_BYTES_IPV4: usize = 548;
const QUOTE_BYTES_IPV6: usize = 1232;

/// Reason of an error message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IcmpError {
    /// Host unreachable.
    HostUnreachable,
    /// No route to the destination of a datagram.
    NoRoute,
    /// No answer from the host that a datagram is for.
    HostUnknown,
    /// Port unreachable.
    PortUnreachable,
    /// Communication administratively prohibited.
    Prohibited,
    /// Packet too big, with the MTU.
    TooBig(u16),
}

/// Returns the ICMP reason for an error of a host socket, if the error is about reachability.
pub(crate) fn unreachable_error(error: Errno) -> Option<IcmpError> {
    match error {
        Errno::HOSTUNREACH
        | Errno::NETUNREACH
        | Errno::TIMEDOUT
        | Errno::HOSTDOWN
        | Errno::NETDOWN => Some(IcmpError::HostUnreachable),
        _ => None,
    }
}

/// Returns the ICMP reason for an error of a host socket for datagrams. Linux does not report the
/// usual codes of an unreachable network or host to a socket for datagrams (ip(7), `IP_RECVERR`),
/// and a sender would wait for its own timeout. So these reasons have codes that it reports.
pub(crate) fn datagram_error(error: Errno) -> Option<IcmpError> {
    match error {
        Errno::NETUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT => {
            Some(IcmpError::NoRoute)
        }
        Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::TIMEDOUT => Some(IcmpError::HostUnknown),
        Errno::CONNREFUSED => Some(IcmpError::PortUnreachable),
        Errno::PERM | Errno::ACCESS => Some(IcmpError::Prohibited),
        _ => None,
    }
}

/// Sends an error about a packet to the guest.
pub(crate) fn send_error(emitter: &mut PacketEmitter, packet: &Packet<'_>, error: IcmpError) {
    send_quote(emitter, packet.source, packet.destination, packet.ip_bytes, error);
}

/// Sends an error about a packet of a flow that is no longer available: its header is rebuilt, with
/// the first eight bytes of its payload, which is `length` bytes long.
pub(crate) fn send_flow_error(
    emitter: &mut PacketEmitter,
    flow: &Flow,
    (protocol, length, start): (u8, usize, [u8; 8]),
    error: IcmpError,
) {
    let mut quote =
        Vec::with_capacity(ETHERNET_HEADER_BYTES + IPV6_HEADER_BYTES + ICMP_HEADER_BYTES);
    IpHeader::new(flow.guest.address, flow.remote.address, protocol).write(
        &emitter.network,
        &mut quote,
        length,
    );
    quote.extend_from_slice(&start);
    let quote = &quote[ETHERNET_HEADER_BYTES..];
    send_quote(emitter, flow.guest.address, flow.remote.address, quote, error);
}

fn send_quote(
    emitter: &mut PacketEmitter,
    guest: IpAddr,
    remote: IpAddr,
    quote: &[u8],
    error: IcmpError,
) {
    let Some(gateway) = emitter.network.gateway(guest) else {
        return;
    };
    // A port error comes from the remote host itself.
    let source = if error == IcmpError::PortUnreachable { remote } else { gateway };
    let (kind, error, mtu, quoted) = match (guest, error) {
        (IpAddr::V4(_), IcmpError::HostUnreachable) => {
            (message_type::ICMP_DEST_UNREACH, 1, 0, QUOTE_BYTES_IPV4)
        }
        // "Destination network unknown" and "destination host unknown".
        (IpAddr::V4(_), IcmpError::NoRoute) => {
            (message_type::ICMP_DEST_UNREACH, 6, 0, QUOTE_BYTES_IPV4)
        }
        (IpAddr::V4(_), IcmpError::HostUnknown) => {
            (message_type::ICMP_DEST_UNREACH, 7, 0, QUOTE_BYTES_IPV4)
        }
        (IpAddr::V4(_), IcmpError::PortUnreachable) => {
            (message_type::ICMP_DEST_UNREACH, 3, 0, QUOTE_BYTES_IPV4)
        }
        (IpAddr::V4(_), IcmpError::Prohibited) => {
            (message_type::ICMP_DEST_UNREACH, 13, 0, QUOTE_BYTES_IPV4)
        }
        (IpAddr::V4(_), IcmpError::TooBig(mtu)) => {
            (message_type::ICMP_DEST_UNREACH, 4, mtu, QUOTE_BYTES_IPV4)
        }
        (IpAddr::V6(_), IcmpError::HostUnreachable) => {
            (message_type::ICMPV6_DEST_UNREACH, 3, 0, QUOTE_BYTES_IPV6)
        }
        // "Reject route to destination".
        (IpAddr::V6(_), IcmpError::NoRoute | IcmpError::HostUnknown) => {
            (message_type::ICMPV6_DEST_UNREACH, 6, 0, QUOTE_BYTES_IPV6)
        }
        (IpAddr::V6(_), IcmpError::PortUnreachable) => {
            (message_type::ICMPV6_DEST_UNREACH, 4, 0, QUOTE_BYTES_IPV6)
        }
        (IpAddr::V6(_), IcmpError::Prohibited) => {
            (message_type::ICMPV6_DEST_UNREACH, 1, 0, QUOTE_BYTES_IPV6)
        }
        (IpAddr::V6(_), IcmpError::TooBig(mtu)) => {
            (message_type::ICMPV6_PKT_TOOBIG, 0, mtu, QUOTE_BYTES_IPV6)
        }
    };
    let [high, low] = mtu.to_be_bytes();
    let header = [kind, error, 0, 0, 0, 0, high, low];
    let quote = &quote[..quote.len().min(quoted)];
    send_message(emitter, source, guest, header, quote);
}

/// Sends a message with its checksum, if it fits into a packet.
pub(super) fn send_message(
    emitter: &mut PacketEmitter,
    source: IpAddr,
    guest: IpAddr,
    mut header: [u8; ICMP_HEADER_BYTES],
    rest: &[u8],
) {
    let head = IpHeader::new(source, guest, icmp_protocol(guest));
    let length = ICMP_HEADER_BYTES + rest.len();
    header[2..4].fill(0);
    let sum = if guest.is_ipv4() { PartialSum::default() } else { head.pseudo_header_sum(length) };
    let sum = sum.add(&header).add(rest).finish();
    header[2..4].copy_from_slice(&sum);
    let message = [&header[..], rest].concat();
    emitter.send_packet(&head, &message);
}

/// Returns the IP protocol number of ICMP for the family of an address.
fn icmp_protocol(address: IpAddr) -> u8 {
    if address.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 }
}
