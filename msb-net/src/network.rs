//! The network of one guest: who is on it, and by which addresses.
//!
//! There are two on the wire, the guest and its gateway, which is this process. Every other address is behind the gateway.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::limits::{MTU_MAX, MTU_MIN};

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// The gateway's link-local address: the router of the guest's IPv6.
pub(crate) const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Addresses of the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    /// The gateway's hardware address.
    pub(crate) gateway_mac: Mac,
    /// The guest's hardware address, until its frames show another.
    pub(crate) guest_mac: Mac,
    /// Largest packet, in bytes.
    pub(crate) mtu: u16,
    /// IPv4, if the guest has it.
    pub(crate) v4: Option<V4>,
    /// IPv6, if the guest has it.
    pub(crate) v6: Option<V6>,
}

/// A guest's IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct V4 {
    /// The guest.
    pub(crate) guest: Ipv4Addr,
    /// The gateway, which is also the name server and stands for the host.
    pub(crate) gateway: Ipv4Addr,
    /// Bits of the network's prefix.
    pub(crate) prefix: u8,
}

/// A guest's IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct V6 {
    /// The guest.
    pub(crate) guest: Ipv6Addr,
    /// The gateway, which is also the name server and stands for the host.
    pub(crate) gateway: Ipv6Addr,
    /// Bits of the network's prefix.
    pub(crate) prefix: u8,
}

impl Network {
    /// Whether the numbers make sense.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            return Err("the MTU must be 1280 to 65520");
        }
        if self.v4.is_some_and(|v4| !(1..=30).contains(&v4.prefix)) {
            return Err("the prefix of IPv4 must have 1 to 30 bits");
        }
        if self.v6.is_some_and(|v6| !(1..=126).contains(&v6.prefix)) {
            return Err("the prefix of IPv6 must have 1 to 126 bits");
        }
        Ok(())
    }

    /// The guest's address of the same family as another one.
    pub(crate) fn guest(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.v4.map(|v4| v4.guest.into()),
            IpAddr::V6(_) => self.v6.map(|v6| v6.guest.into()),
        }
    }

    /// The gateway's address of the same family as another one.
    pub(crate) fn gateway(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.v4.map(|v4| v4.gateway.into()),
            IpAddr::V6(_) => self.v6.map(|v6| v6.gateway.into()),
        }
    }

    /// Whether an address is the gateway's own.
    pub(crate) fn is_gateway(&self, address: IpAddr) -> bool {
        self.gateway(address) == Some(address) || address == GATEWAY_LINK_LOCAL
    }

    /// Whether the guest may use this address as its own: any other is forged. In the network of IPv6 a guest may choose
    /// its addresses (RFC 4862, RFC 8981).
    pub(crate) fn is_guest(&self, address: IpAddr) -> bool {
        match (address, self.v4, self.v6) {
            (IpAddr::V4(address), Some(v4), _) => address == v4.guest,
            (IpAddr::V6(address), _, Some(v6)) => {
                address == v6.guest
                    || (same_prefix(address, v6.guest, v6.prefix) && address != v6.gateway)
            }
            _ => false,
        }
    }

    /// Whether an address is on the wire itself, where only the two of us are.
    pub(crate) fn is_on_link(&self, address: IpAddr) -> bool {
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

fn same_prefix(one: Ipv6Addr, other: Ipv6Addr, bits: u8) -> bool {
    let mask = u128::MAX << (128 - u32::from(bits));
    one.to_bits() & mask == other.to_bits() & mask
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A network for tests.
    pub(crate) fn network() -> Network {
        Network {
            gateway_mac: [2, 0x6d, 0x73, 0, 0, 1],
            guest_mac: [2, 0x6d, 0x73, 0, 0, 2],
            mtu: 1500,
            v4: Some(V4 {
                guest: Ipv4Addr::new(172, 16, 0, 2),
                gateway: Ipv4Addr::new(172, 16, 0, 1),
                prefix: 30,
            }),
            v6: Some(V6 {
                guest: "fd42:6d73:62::2".parse().unwrap(),
                gateway: "fd42:6d73:62::1".parse().unwrap(),
                prefix: 64,
            }),
        }
    }

    #[test]
    fn a_guest_has_its_own_addresses_and_no_others() {
        let network = network();
        let is_guest = |text: &str| network.is_guest(text.parse().unwrap());
        assert!(
            is_guest("172.16.0.2") && is_guest("fd42:6d73:62::2") && is_guest("fd42:6d73:62::99")
        );
        for forged in [
            "172.16.0.1",
            "172.16.0.3",
            "8.8.8.8",
            "fd42:6d73:62::1",
            "fd42:6d73:62:1::2",
            "::1",
        ] {
            assert!(!is_guest(forged), "{forged}");
        }
    }
}
