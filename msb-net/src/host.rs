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

/// A socket that is being connected.
pub(crate) fn dial(target: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = socket_with(
        family(target.ip()),
        SocketType::STREAM,
        FLAGS,
        Some(ipproto::TCP),
    )?;
    prepare(&socket);
    match connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Bytes are passed on as they come, and a peer that vanished is noticed.
pub(crate) fn prepare(socket: impl AsFd) {
    // Each fails for what is no socket of TCP only.
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    let _ = sockopt::set_socket_keepalive(&socket, true);
}

/// A socket of datagrams to one peer: the kernel gives it a random port, takes only the peer's datagrams, and tells what
/// ICMP says about it.
pub(crate) fn datagrams(target: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = socket_with(
        family(target.ip()),
        SocketType::DGRAM,
        FLAGS,
        Some(ipproto::UDP),
    )?;
    connect(&socket, &target)?;
    Ok(socket)
}

/// A socket for echo requests to one peer, which the system grants to some groups (sysctl net.ipv4.ping_group_range).
pub(crate) fn echoes(target: IpAddr) -> Result<OwnedFd, Errno> {
    let protocol: Protocol = match target {
        IpAddr::V4(_) => ipproto::ICMP,
        IpAddr::V6(_) => ipproto::ICMPV6,
    };
    let socket = socket_with(family(target), SocketType::DGRAM, FLAGS, Some(protocol))?;
    connect(&socket, &SocketAddr::new(target, 0))?;
    Ok(socket)
}

/// Closes a connection so that its peer knows that it was broken off.
pub(crate) fn break_off(socket: OwnedFd) {
    // Where this fails the peer sees an end in place of a reset.
    let _ = sockopt::set_socket_linger(&socket, Some(std::time::Duration::ZERO));
}
