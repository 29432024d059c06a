//! Who speaks with whom, as the guest sees it.

use std::net::{IpAddr, SocketAddr};

/// The two ends of a connection or a flow of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    pub(crate) guest: End,
    pub(crate) remote: End,
}

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct End {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

impl From<End> for SocketAddr {
    fn from(end: End) -> SocketAddr {
        SocketAddr::new(end.address, end.port)
    }
}

impl From<SocketAddr> for End {
    fn from(address: SocketAddr) -> End {
        End {
            address: address.ip().to_canonical(),
            port: address.port(),
        }
    }
}
