//! Flows: the two endpoints of a connection, as the guest sees them.

use std::net::{IpAddr, SocketAddr};

/// The two endpoints of a connection or of a flow of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    pub(crate) guest: FlowEndpoint,
    pub(crate) remote: FlowEndpoint,
}

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowEndpoint {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

impl From<FlowEndpoint> for SocketAddr {
    fn from(end: FlowEndpoint) -> SocketAddr {
        SocketAddr::new(end.address, end.port)
    }
}

impl From<SocketAddr> for FlowEndpoint {
    fn from(address: SocketAddr) -> FlowEndpoint {
        FlowEndpoint { address: address.ip().to_canonical(), port: address.port() }
    }
}
