//! Address groups, and addresses embedded in other addresses.
//!
//! IPv6 has many ways to embed an IPv4 address, and each has been used to bypass a filter. So every
//! address has a list of *possible destinations*: addresses that a packet to it may end up at. A
//! rule that denies matches if it matches any of them; a rule that allows matches only if it
//! matches all of them.
//!
//! Sources: the IANA registries of special-purpose addresses (RFC 6890), RFC 4291 (mapped,
//! compatible), RFC 6052 and 8215 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 5214 (ISATAP),
//! RFC 2765 (SIIT).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libmsb::net::network::GATEWAY_LINK_LOCAL;
use libmsb::net::prefix::Prefix;
use libmsb::net::rule::Group;
use serde::{Deserialize, Serialize};

/// Addresses of this host and this sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostFacts {
    /// The guest's gateways, which stand for the host.
    pub(crate) gateways: Vec<IpAddr>,
    /// Addresses of the host's own interfaces.
    pub(crate) host_addresses: Vec<IpAddr>,
    /// Prefixes that the host's network translates to IPv4, beside [`NAT64`].
    pub(crate) nat64: Vec<Prefix>,
}

/// The well-known prefix of NAT64 (RFC 6052, 2.1).
const NAT64: Prefix = Prefix::v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);
/// Range of NAT64 prefixes for local use, whose length only the network knows (RFC 8215).
const NAT64_LOCAL: Prefix = Prefix::v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48);
/// IPv4-mapped addresses (RFC 4291, 2.5.5.2): a socket connects to them over IPv4.
const MAPPED: Prefix = Prefix::v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96);
/// IPv4-translated addresses (RFC 2765, 2.1).
const TRANSLATED: Prefix = Prefix::v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96);
/// IPv4-compatible addresses (RFC 4291, 2.5.5.1).
const COMPATIBLE: Prefix = Prefix::v6([0; 8], 96);
const SIX_TO_FOUR: Prefix = Prefix::v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16);
const TEREDO: Prefix = Prefix::v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32);
/// All addresses that IANA has assigned for use on the Internet.
const GLOBAL_UNICAST: Prefix = Prefix::v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// Metadata services of cloud providers, which hand out credentials.
const CLOUD_METADATA: [Prefix; 8] = [
    // AWS, Google, Azure, DigitalOcean, Oracle and most others.
    Prefix::v4([169, 254, 169, 254], 32),
    // AWS: credentials of tasks and of pods.
    Prefix::v4([169, 254, 170, 2], 32),
    Prefix::v4([169, 254, 170, 23], 32),
    Prefix::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
    Prefix::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128),
    // Alibaba.
    Prefix::v4([100, 100, 100, 200], 32),
    // Azure's host agent, at an address that looks public.
    Prefix::v4([168, 63, 129, 16], 32),
    // Oracle, formerly.
    Prefix::v4([192, 0, 0, 192], 32),
];
const LOOPBACK: [Prefix; 4] = [
    Prefix::v4([127, 0, 0, 0], 8),
    // Linux connects to itself for the unspecified address.
    Prefix::v4([0, 0, 0, 0], 32),
    Prefix::v6([0, 0, 0, 0, 0, 0, 0, 1], 128),
    Prefix::v6([0; 8], 128),
];
const PRIVATE: [Prefix; 6] = [
    Prefix::v4([10, 0, 0, 0], 8),
    Prefix::v4([172, 16, 0, 0], 12),
    Prefix::v4([192, 168, 0, 0], 16),
    // Carrier-grade NAT (RFC 6598).
    Prefix::v4([100, 64, 0, 0], 10),
    Prefix::v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
    // Site-local, the predecessor of fc00::/7 (RFC 3879).
    Prefix::v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
];
const LINK_LOCAL: [Prefix; 2] =
    [Prefix::v4([169, 254, 0, 0], 16), Prefix::v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10)];
const MULTICAST: [Prefix; 2] =
    [Prefix::v4([224, 0, 0, 0], 4), Prefix::v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8)];
/// Addresses in no group: neither on the Internet nor on a local network. IPv6 outside
/// [`GLOBAL_UNICAST`] is not listed.
const SPECIAL_PURPOSE: [Prefix; 14] = [
    Prefix::v4([0, 0, 0, 0], 8),
    Prefix::v4([192, 0, 0, 0], 24),
    // Documentation.
    Prefix::v4([192, 0, 2, 0], 24),
    Prefix::v4([198, 51, 100, 0], 24),
    Prefix::v4([203, 0, 113, 0], 24),
    Prefix::v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    Prefix::v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
    // Relays of 6to4.
    Prefix::v4([192, 88, 99, 0], 24),
    // Benchmarks.
    Prefix::v4([198, 18, 0, 0], 15),
    Prefix::v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48),
    // ORCHID, both versions: hashes of keys, not locations.
    Prefix::v6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28),
    Prefix::v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28),
    // Reserved, and broadcast.
    Prefix::v4([240, 0, 0, 0], 4),
    // The rest that IANA reserves below 2001::/23. AS112 and Teredo's neighbours are ordinary
    // destinations.
    Prefix::v6([0x2001, 0x100, 0, 0, 0, 0, 0, 0], 24),
];

impl HostFacts {
    /// Returns the group of an address, without looking at embedded addresses. `None`: it is
    /// reserved for special use.
    pub(crate) fn group(&self, address: IpAddr) -> Option<Group> {
        let within = |prefixes: &[Prefix]| prefixes.iter().any(|prefix| prefix.contains(address));
        let is_special = within(&SPECIAL_PURPOSE);
        // In the reference's order: host, meta, loopback, private, link-local, multicast, public.
        let gateway = self.gateways.contains(&address) || address == GATEWAY_LINK_LOCAL;
        if gateway || (self.host_addresses.contains(&address) && !within(&LOOPBACK)) {
            Some(Group::Host)
        } else if within(&CLOUD_METADATA) {
            Some(Group::Meta)
        } else if within(&LOOPBACK) {
            Some(Group::Loopback)
        } else if within(&PRIVATE) {
            Some(Group::Private)
        } else if within(&LINK_LOCAL) {
            Some(Group::LinkLocal)
        } else if within(&MULTICAST) {
            Some(Group::Multicast)
        } else if is_special || (address.is_ipv6() && !GLOBAL_UNICAST.contains(address)) {
            None
        } else {
            Some(Group::Public)
        }
    }

    /// Returns the addresses that a packet to this one may end up at, first the one it names. Never
    /// empty.
    pub(crate) fn possible_destinations(&self, address: IpAddr) -> Vec<IpAddr> {
        let IpAddr::V6(v6) = address else {
            return vec![address];
        };
        let translated = self.nat64.iter().chain([&NAT64, &MAPPED]);
        let translated = translated.filter(|prefix| prefix.contains(address));
        let translated: Vec<IpAddr> =
            translated.filter_map(|prefix| translated_by(*prefix, v6)).collect();
        if !translated.is_empty() {
            return translated;
        }
        let mut destinations = vec![address];
        destinations.extend(tunnel_endpoints(v6).into_iter().flatten().map(IpAddr::V4));
        destinations
    }
}

/// Returns the IPv4 endpoints of a tunnel that such an IPv6 address stands for.
fn tunnel_endpoints(v6: Ipv6Addr) -> [Option<Ipv4Addr>; 3] {
    let address = IpAddr::V6(v6);
    let segments = v6.segments();
    let embedded_at = |index: usize| ipv4_from_halves(segments[index], segments[index + 1]);
    let mut endpoints = [None; 3];
    if SIX_TO_FOUR.contains(address) {
        endpoints[0] = Some(embedded_at(1));
    } else if TEREDO.contains(address) {
        // The server, and the client, whose bits are inverted.
        endpoints[0] = Some(embedded_at(2));
        endpoints[1] = Some(ipv4_from_halves(!segments[6], !segments[7]));
    } else if TRANSLATED.contains(address) || (COMPATIBLE.contains(address) && !is_loopback(v6)) {
        endpoints[0] = Some(embedded_at(6));
    } else if NAT64_LOCAL.contains(address) {
        endpoints[0] = Some(embedded_at(6));
        endpoints[1] = embedded(48, v6);
    }
    // ISATAP, below any prefix.
    if matches!((segments[4], segments[5]), (0 | 0x200, 0x5efe)) {
        endpoints[2] = Some(embedded_at(6));
    }
    endpoints
}

fn is_loopback(v6: Ipv6Addr) -> bool {
    v6.is_loopback() || v6.is_unspecified()
}

fn ipv4_from_halves(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))
}

fn translated_by(prefix: Prefix, v6: Ipv6Addr) -> Option<IpAddr> {
    embedded(prefix.length(), v6).map(IpAddr::V4)
}

/// Returns the IPv4 address embedded after a prefix of this length (RFC 6052, 2.2), skipping bits
/// 64 to 71.
fn embedded(length: u8, v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = v6.octets();
    let places: [usize; 4] = match length {
        32 => [4, 5, 6, 7],
        40 => [5, 6, 7, 9],
        48 => [6, 7, 9, 10],
        56 => [7, 9, 10, 11],
        64 => [9, 10, 11, 12],
        96 => [12, 13, 14, 15],
        _ => return None,
    };
    Some(places.map(|index| octets[index]).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_address_has_its_group() {
        let host = HostFacts {
            gateways: vec![address("172.16.0.1"), address("fd42:6d73:62::1")],
            host_addresses: vec![
                address("203.0.113.9"),
                address("192.168.1.5"),
                address("127.0.0.1"),
            ],
            nat64: Vec::new(),
        };
        for (text, group) in [
            ("1.1.1.1", Some(Group::Public)),
            ("2606:4700::1111", Some(Group::Public)),
            ("172.16.0.1", Some(Group::Host)),
            ("fd42:6d73:62::1", Some(Group::Host)),
            ("203.0.113.9", Some(Group::Host)),
            ("192.168.1.5", Some(Group::Host)),
            ("127.0.0.1", Some(Group::Loopback)),
            ("127.255.255.254", Some(Group::Loopback)),
            ("0.0.0.0", Some(Group::Loopback)),
            ("::", Some(Group::Loopback)),
            ("::1", Some(Group::Loopback)),
            ("10.0.0.1", Some(Group::Private)),
            ("172.31.255.255", Some(Group::Private)),
            ("172.32.0.0", Some(Group::Public)),
            ("100.64.0.1", Some(Group::Private)),
            ("100.128.0.1", Some(Group::Public)),
            ("fdff::1", Some(Group::Private)),
            ("fec0::1", Some(Group::Private)),
            ("169.254.0.1", Some(Group::LinkLocal)),
            // The gateway's link-local address, the same on every link.
            ("fe80::1", Some(Group::Host)),
            ("fe80::2", Some(Group::LinkLocal)),
            ("169.254.169.254", Some(Group::Meta)),
            ("fd00:ec2::254", Some(Group::Meta)),
            ("100.100.100.200", Some(Group::Meta)),
            ("168.63.129.16", Some(Group::Meta)),
            ("224.0.0.251", Some(Group::Multicast)),
            ("ff02::fb", Some(Group::Multicast)),
            ("255.255.255.255", None),
            ("0.1.2.3", None),
            ("198.18.0.1", None),
            ("192.0.2.1", None),
            ("2001:db8::1", None),
            ("64:ff9b::1.1.1.1", None),
            ("::1.1.1.1", None),
            ("4000::1", None),
            ("100::1", None),
        ] {
            assert_eq!(host.group(address(text)), group, "{text}");
        }
    }

    #[test]
    fn an_address_has_all_its_possible_destinations() {
        let host = HostFacts {
            nat64: vec!["2001:db8:64::/48".parse().unwrap(), "2001:db8:96::/96".parse().unwrap()],
            ..HostFacts::default()
        };
        for (text, destinations) in [
            ("10.0.0.1", &["10.0.0.1"][..]),
            ("2606:4700::1", &["2606:4700::1"]),
            ("::", &["::"]),
            ("::1", &["::1"]),
            ("::ffff:169.254.169.254", &["169.254.169.254"]),
            ("64:ff9b::a9fe:a9fe", &["169.254.169.254"]),
            ("::ffff:0:10.0.0.1", &["::ffff:0:a00:1", "10.0.0.1"]),
            ("::10.0.0.1", &["::10.0.0.1", "10.0.0.1"]),
            ("2002:a00:1::1", &["2002:a00:1::1", "10.0.0.1"]),
            ("2001:0:808:808::f5ff:fffe", &["2001:0:808:808::f5ff:fffe", "8.8.8.8", "10.0.0.1"]),
            ("2606:4700::5efe:10.0.0.1", &["2606:4700::5efe:10.0.0.1", "10.0.0.1"]),
            ("2606:4700::200:5efe:10.0.0.1", &["2606:4700::200:5efe:a00:1", "10.0.0.1"]),
            (
                "64:ff9b:1:a00:0:100:a9fe:a9fe",
                &["64:ff9b:1:a00:0:100:a9fe:a9fe", "169.254.169.254", "10.0.0.1"],
            ),
            ("2001:db8:64:a00:0:100::", &["10.0.0.1"]),
            ("2001:db8:96::a00:1", &["10.0.0.1"]),
        ] {
            let expected: Vec<IpAddr> =
                destinations.iter().map(|destination| address(destination)).collect();
            assert_eq!(host.possible_destinations(address(text)), expected, "{text}");
        }
    }
}
