//! Sockets of the host.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt,
};

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    }
}

/// Opens a TCP socket and starts to connect it.
pub(crate) fn dial(target: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = socket_with(family(target.ip()), SocketType::STREAM, FLAGS, Some(ipproto::TCP))?;
    prepare(&socket);
    match connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Sets options of a TCP socket: no delay for small segments, and keepalive to detect a vanished
/// peer.
pub(crate) fn prepare(socket: impl AsFd) {
    // These fail only on a socket that is not TCP.
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    let _ = sockopt::set_socket_keepalive(&socket, true);
}

/// Opens a UDP socket connected to one peer. The kernel chooses a random port, accepts only the
/// peer's datagrams, and reports ICMP errors.
pub(crate) fn datagrams(target: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = socket_with(family(target.ip()), SocketType::DGRAM, FLAGS, Some(ipproto::UDP))?;
    connect(&socket, &target)?;
    Ok(socket)
}

/// Opens a socket for echo requests to one peer. The system grants these to some groups (sysctl
/// net.ipv4.ping_group_range).
pub(crate) fn echoes(target: IpAddr) -> Result<OwnedFd, Errno> {
    let protocol: Protocol = match target {
        IpAddr::V4(_) => ipproto::ICMP,
        IpAddr::V6(_) => ipproto::ICMPV6,
    };
    let socket = socket_with(family(target), SocketType::DGRAM, FLAGS, Some(protocol))?;
    connect(&socket, &SocketAddr::new(target, 0))?;
    Ok(socket)
}

/// Closes a connection with a reset.
pub(crate) fn break_off(socket: OwnedFd) {
    // If this fails, the peer sees a normal close instead of a reset.
    let _ = sockopt::set_socket_linger(&socket, Some(std::time::Duration::ZERO));
}
