//! A published port: a socket of the host that leads to the guest.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use libmsb::net::network::PassedPort;
use libmsb::net::ports::Transport;

/// A published port.
pub(crate) struct PublishedPort {
    /// A listening socket, or a datagram socket.
    pub(crate) socket: OwnedFd,
    /// Host address of the socket.
    pub(crate) host: SocketAddr,
    pub(crate) guest: u16,
    pub(crate) transport: Transport,
}

/// Published ports by index. The index of a removed port is reused.
pub(crate) type PublishedPorts = Vec<Option<PublishedPort>>;

impl PublishedPort {
    /// Returns whether this is the wanted port with the same destination.
    pub(crate) fn matches(&self, wanted: &PassedPort) -> bool {
        (self.host, self.transport, self.guest) == (wanted.host, wanted.transport, wanted.guest)
    }
}
