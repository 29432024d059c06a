//! The network of one guest: its addresses, and the settings of `msb-net`.
//!
//! The link has two nodes, the guest and its gateway, which is msb-net. Every other address is
//! behind the gateway.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::NetSpec;
use super::ports::Transport;

/// Largest MTU: the largest IPv4 packet, rounded down as is common (a multiple of 16, with room for
/// a header).
pub const MTU_MAX: u16 = 65520;
/// Smallest MTU: the minimum of IPv6 (RFC 8200, 5).
pub const MTU_MIN: u16 = 1280;

/// A hardware address.
pub type Mac = [u8; 6];

/// The gateway's link-local address: the IPv6 router of the guest.
pub const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The addresses of the guest and its gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The gateway's hardware address.
    pub gateway_mac: Mac,
    /// The guest's hardware address, until its frames show another one.
    pub guest_mac: Mac,
    /// Maximum transmission unit, in bytes.
    pub mtu: u16,
    /// The IPv4 network, if the guest has IPv4.
    pub v4: Option<Ipv4Network>,
    /// The IPv6 network, if the guest has IPv6.
    pub v6: Option<Ipv6Network>,
}

/// The IPv4 network of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipv4Network {
    /// Address of the guest.
    pub guest: Ipv4Addr,
    /// Address of the gateway, which is also the name server and the guest's address of the host.
    pub gateway: Ipv4Addr,
    /// Length of the network prefix, in bits.
    pub prefix: u8,
}

/// The IPv6 network of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipv6Network {
    /// Address of the guest.
    pub guest: Ipv6Addr,
    /// Address of the gateway, which is also the name server and the guest's address of the host.
    pub gateway: Ipv6Addr,
    /// Length of the network prefix, in bits.
    pub prefix: u8,
}

/// First bytes of hardware addresses: the locally administered bit (2), and "ms".
const MAC_PREFIX: [u8; 3] = [2, 0x6d, 0x73];
/// Length of the prefix of a guest's IPv4 network, in bits: four addresses, of which two are the
/// guest's and the gateway's.
const V4_BITS: u8 = 30;
const V6_BITS: u8 = 64;

impl Network {
    /// Returns the network of a sandbox. Its addresses are taken from the pools at an offset
    /// derived from its name, so they are the same after every start. Two sandboxes may have the
    /// same addresses, since their networks are not connected.
    pub fn of_sandbox(name: &str, net: &NetSpec) -> Network {
        let place = fnv(name.as_bytes());
        let [.., high, low] = place.to_be_bytes();
        let mac = |last| {
            let [a, b, c] = MAC_PREFIX;
            [a, b, c, high, low, last]
        };
        let v4 = match net.ipv4_pool.address() {
            IpAddr::V4(first) => {
                let places = 1u128 << V4_BITS.saturating_sub(net.ipv4_pool.length());
                let first = first.to_bits() + ((place % places) << (32 - V4_BITS)) as u32;
                Some(Ipv4Network {
                    gateway: Ipv4Addr::from_bits(first + 1),
                    guest: Ipv4Addr::from_bits(first + 2),
                    prefix: V4_BITS,
                })
            }
            IpAddr::V6(_) => None,
        };
        let v6 = match net.ipv6_pool.address() {
            IpAddr::V6(first) => {
                let places = 1u128 << V6_BITS.saturating_sub(net.ipv6_pool.length());
                let first = first.to_bits() + ((place % places) << (128 - V6_BITS));
                Some(Ipv6Network {
                    gateway: Ipv6Addr::from_bits(first + 1),
                    guest: Ipv6Addr::from_bits(first + 2),
                    prefix: V6_BITS,
                })
            }
            IpAddr::V4(_) => None,
        };
        Network { gateway_mac: mac(1), guest_mac: mac(2), mtu: MTU_MAX, v4, v6 }
    }

    /// Returns the gateway's addresses.
    pub fn gateways(&self) -> Vec<IpAddr> {
        let v4 = self.v4.map(|v4| IpAddr::V4(v4.gateway));
        let v6 = self.v6.map(|v6| IpAddr::V6(v6.gateway));
        v4.into_iter().chain(v6).collect()
    }

    /// Checks that the values are consistent.
    pub fn check(&self) -> Result<(), &'static str> {
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            return Err("the MTU must be 1280 to 65520");
        }
        if self.v4.is_some_and(|v4| !(1..=30).contains(&v4.prefix)) {
            return Err("the IPv4 prefix length must be 1 to 30");
        }
        if self.v6.is_some_and(|v6| !(1..=126).contains(&v6.prefix)) {
            return Err("the IPv6 prefix length must be 1 to 126");
        }
        Ok(())
    }

    /// Returns the gateway's address of the same family as another one.
    pub fn gateway(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.v4.map(|v4| v4.gateway.into()),
            IpAddr::V6(_) => self.v6.map(|v6| v6.gateway.into()),
        }
    }

    /// Returns whether an address is the gateway's own.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        self.gateway(address) == Some(address) || address == GATEWAY_LINK_LOCAL
    }

    /// Returns whether the guest may use this source address; any other is forged. In its IPv6
    /// network a guest may choose addresses (RFC 4862, RFC 8981).
    pub fn is_guest(&self, address: IpAddr) -> bool {
        match (address, self.v4, self.v6) {
            (IpAddr::V4(address), Some(v4), _) => address == v4.guest,
            (IpAddr::V6(address), _, Some(v6)) => {
                address == v6.guest
                    || (same_prefix(address, v6.guest, v6.prefix) && address != v6.gateway)
            }
            _ => false,
        }
    }

    /// Returns whether an address is on the link, which has two nodes.
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        match (address, self.v4, self.v6) {
            (IpAddr::V4(address), Some(v4), _) => {
                let mask = u32::MAX << (32 - u32::from(v4.prefix));
                address.to_bits() & mask == v4.guest.to_bits() & mask
            }
            (IpAddr::V6(address), _, Some(v6)) => {
                same_prefix(address, v6.guest, v6.prefix) || address.is_unicast_link_local()
            }
            _ => false,
        }
    }
}

/// Returns the FNV-1a hash of 128 bits (RFC 9923). It spreads names well, and collisions do no
/// harm.
fn fnv(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

fn same_prefix(one: Ipv6Addr, other: Ipv6Addr, bits: u8) -> bool {
    let mask = u128::MAX << (128 - u32::from(bits));
    one.to_bits() & mask == other.to_bits() & mask
}

/// Longest settings, in bytes.
pub const SETTINGS_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// First byte of a packet to `msb-net` with published ports, as descriptors (unix(7),
/// `SCM_RIGHTS`).
pub const PACKET_PORTS: u8 = b'p';
/// First byte of a packet to `msb-net` with a file of [`NetSettings`] in JSON, as its only
/// descriptor. Answered by [`SettingsReply`].
pub const PACKET_SETTINGS: u8 = b's';
/// Limit of descriptors in a packet: slightly below the kernel's (`SCM_MAX_FD`).
pub const PACKET_DESCRIPTORS_MAX: usize = 250;

/// The reply to new settings, in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsReply {
    /// Error, if the settings were refused. Then the old ones stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Settings of `msb-net serve`, at its start and while it runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSettings {
    /// Addresses of the guest and its gateway.
    pub network: Network,
    /// Policy, DNS and published ports.
    pub net: NetSpec,
    /// The host's own addresses. A connection to one of them is a connection to the host.
    #[serde(default)]
    pub own: Vec<IpAddr>,
    /// Name servers, in the order of use.
    #[serde(default)]
    pub nameservers: Vec<SocketAddr>,
    /// Published ports, already bound.
    #[serde(default)]
    pub ports: Vec<PassedPort>,
}

/// A socket of the host for a published port.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassedPort {
    /// The socket, which listens or receives datagrams: at the start its descriptor, later its
    /// index among the descriptors that came for these settings. `None`: msb-net has it already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// Bound address. With `transport`, it identifies the port of the host.
    pub host: SocketAddr,
    /// Port of the guest.
    pub guest: u16,
    /// Transport protocol.
    pub transport: Transport,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network {
            gateway_mac: [2, 0x6d, 0x73, 0, 0, 1],
            guest_mac: [2, 0x6d, 0x73, 0, 0, 2],
            mtu: 1500,
            v4: Some(Ipv4Network {
                guest: Ipv4Addr::new(172, 16, 0, 2),
                gateway: Ipv4Addr::new(172, 16, 0, 1),
                prefix: 30,
            }),
            v6: Some(Ipv6Network {
                guest: "fd42:6d73:62::2".parse().unwrap(),
                gateway: "fd42:6d73:62::1".parse().unwrap(),
                prefix: 64,
            }),
        }
    }

    #[test]
    fn a_name_has_the_same_addresses_every_time_and_they_are_of_the_pools() {
        let spec = NetSpec::public();
        for name in ["a", "web", "x".repeat(128).as_str()] {
            let network = Network::of_sandbox(name, &spec);
            assert_eq!(network, Network::of_sandbox(name, &spec));
            assert_eq!(network.check(), Ok(()));
            let (v4, v6) = (network.v4.unwrap(), network.v6.unwrap());
            assert!(
                spec.ipv4_pool.contains(v4.guest.into())
                    && spec.ipv6_pool.contains(v6.guest.into())
            );
            assert_eq!(v4.guest.to_bits() % 4, 2);
            assert!(network.is_guest(v4.guest.into()) && network.is_gateway(v4.gateway.into()));
        }
    }

    #[test]
    fn a_pool_of_one_network_has_one_place() {
        let mut spec = NetSpec::public();
        spec.ipv4_pool = "10.9.8.4/30".parse().unwrap();
        spec.ipv6_pool = "fd00:1:2:3::/64".parse().unwrap();
        let network = Network::of_sandbox("x", &spec);
        assert_eq!(network.v4.unwrap().guest, Ipv4Addr::new(10, 9, 8, 6));
        assert_eq!(network.v6.unwrap().gateway.to_string(), "fd00:1:2:3::1");
    }

    #[test]
    fn a_guest_has_its_own_addresses_and_no_others() {
        let network = network();
        let is_guest = |text: &str| network.is_guest(text.parse().unwrap());
        assert!(
            is_guest("172.16.0.2") && is_guest("fd42:6d73:62::2") && is_guest("fd42:6d73:62::99")
        );
        for forged in
            ["172.16.0.1", "172.16.0.3", "8.8.8.8", "fd42:6d73:62::1", "fd42:6d73:62:1::2", "::1"]
        {
            assert!(!is_guest(forged), "{forged}");
        }
    }
}
