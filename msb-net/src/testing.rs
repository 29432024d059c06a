//! What tests share.

use std::net::Ipv4Addr;

use libmsb::net::network::{Network, V4, V6};

/// A network.
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
