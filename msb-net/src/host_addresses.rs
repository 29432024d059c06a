//! The host's own addresses, kept current while the process runs. A policy that denies the host
//! denies these too.
//!
//! The kernel reports each change over an rtnetlink(7) socket before the address can be used. The
//! socket is opened before system calls are given up, and needs only calls for datagrams
//! afterwards. It lists addresses; without privileges it cannot change any. When the socket's queue
//! overflows, the list is requested again, and known addresses are kept.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

/// Message types (linux/netlink.h, linux/rtnetlink.h).
const NLMSG_DONE: u16 = 3;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
/// `NLM_F_REQUEST | NLM_F_DUMP`: a request for all entries.
const DUMP_REQUEST: u16 = 0x301;
/// Multicast groups of address changes, as bits of `nl_groups`: `RTMGRP_IPV4_IFADDR |
/// RTMGRP_IPV6_IFADDR`.
const GROUPS: u32 = 0x10 | 0x100;
/// Attributes of an address (linux/if_addr.h). On a point-to-point link `IFA_ADDRESS` is the peer's
/// address and `IFA_LOCAL` the host's.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Sizes of `struct nlmsghdr`, `struct ifaddrmsg` and `struct rtattr`.
const NLMSG_HDRLEN: usize = 16;
const IFADDRMSG_LEN: usize = 8;
const RTA_HDRLEN: usize = 4;
/// Time limit for the kernel's first answer, which normally comes at once.
const ANSWER_SECONDS: i64 = 5;
/// Size of the receive buffer: larger than any address message.
const BUFFER_BYTES: usize = 64 * 1024;

/// The host's own addresses.
pub(crate) struct HostAddresses {
    socket: OwnedFd,
    known: AddressSet,
}

/// Pairs of an interface index and an address. Two interfaces may have the same address.
#[derive(Debug, Default)]
struct AddressSet(BTreeSet<(u32, IpAddr)>);

/// Result of reading a packet of netlink messages.
#[derive(Debug, PartialEq, Eq)]
struct AppliedMessages {
    /// An address was added or removed.
    changed: bool,
    /// The packet ended a dump.
    done: bool,
}

impl HostAddresses {
    /// Opens the netlink socket and reads the current addresses.
    pub(crate) fn open() -> Result<HostAddresses, Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        let mut addresses = HostAddresses { socket, known: AddressSet::default() };
        addresses.request_dump()?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let mut waits = [PollFd::new(&addresses.socket, PollFlags::IN)];
            let timeout = Timespec { tv_sec: ANSWER_SECONDS, tv_nsec: 0 };
            if poll(&mut waits, Some(&timeout))? == 0 {
                return Err(Errno::TIMEDOUT);
            }
            let (count, _) = recv(&addresses.socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
            if addresses.known.apply(&buffer[..count]).done {
                return Ok(addresses);
            }
        }
    }

    /// Returns the socket, which becomes readable after a change.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Returns the known addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.known.0.iter().map(|(_, address)| *address)
    }

    /// Reads pending messages. Returns whether an address was added or removed.
    pub(crate) fn update(&mut self, buffer: &mut [u8]) -> bool {
        let mut changed = false;
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((count, _)) => changed |= self.known.apply(&buffer[..count]).changed,
                Err(Errno::INTR) => {}
                // Messages were lost: request the list again. If that fails, the known addresses
                // stay.
                Err(Errno::NOBUFS) => drop(self.request_dump()),
                Err(_) => return changed,
            }
        }
    }

    /// Requests a dump of all addresses.
    fn request_dump(&self) -> Result<(), Errno> {
        let mut request = Vec::with_capacity(NLMSG_HDRLEN + IFADDRMSG_LEN);
        request.extend_from_slice(&((NLMSG_HDRLEN + IFADDRMSG_LEN) as u32).to_ne_bytes());
        request.extend_from_slice(&RTM_GETADDR.to_ne_bytes());
        request.extend_from_slice(&DUMP_REQUEST.to_ne_bytes());
        // Sequence number, port and address family stay zero: one request, any family.
        request.resize(NLMSG_HDRLEN + IFADDRMSG_LEN, 0);
        send(&self.socket, &request, SendFlags::empty()).map(drop)
    }
}

impl AddressSet {
    /// Applies netlink messages. Messages that cannot be parsed are ignored.
    fn apply(&mut self, mut bytes: &[u8]) -> AppliedMessages {
        let (mut changed, mut done) = (false, false);
        while let Some((kind, body, rest)) = split_message(bytes) {
            bytes = rest;
            done |= kind == NLMSG_DONE;
            changed |= match (kind, parse_address(body)) {
                (RTM_NEWADDR, Some(address)) => self.0.insert(address),
                (RTM_DELADDR, Some(address)) => self.0.remove(&address),
                _ => false,
            };
        }
        AppliedMessages { changed, done }
    }
}

/// Splits off the first message: its type, its body, and the remaining bytes.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (header, _) = bytes.split_first_chunk::<NLMSG_HDRLEN>()?;
    let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let body = bytes.get(NLMSG_HDRLEN..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([header[4], header[5]]), body, rest))
}

/// Returns the interface and the address of an address message.
fn parse_address(body: &[u8]) -> Option<(u32, IpAddr)> {
    let (header, mut attributes) = body.split_first_chunk::<IFADDRMSG_LEN>()?;
    let interface = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    let mut address = None;
    while let Some((header, rest)) = attributes.split_first_chunk::<RTA_HDRLEN>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let value = rest.get(..length.checked_sub(RTA_HDRLEN)?)?;
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && address.is_none()) {
            address = ip_address(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    address.map(|address| (interface, address))
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| Ipv4Addr::from(bytes).into());
    let v6 = || <[u8; 16]>::try_from(bytes).map(|bytes| Ipv6Addr::from(bytes).into());
    v4.or_else(|_| v6()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build_message(kind: u16, interface: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![2, 24, 0, 0];
        body.extend_from_slice(&interface.to_ne_bytes());
        for (kind, value) in attributes {
            body.extend_from_slice(&((RTA_HDRLEN + value.len()) as u16).to_ne_bytes());
            body.extend_from_slice(&kind.to_ne_bytes());
            body.extend_from_slice(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = ((NLMSG_HDRLEN + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend_from_slice(&kind.to_ne_bytes());
        message.resize(NLMSG_HDRLEN, 0);
        message.extend(body);
        message
    }

    fn known(known: &AddressSet) -> Vec<String> {
        known.0.iter().map(|(_, address)| address.to_string()).collect()
    }

    #[test]
    fn addresses_follow_the_kernels_messages() {
        let mut addresses = AddressSet::default();
        let one = |kind, interface| build_message(kind, interface, &[(1, &[10, 0, 0, 5])]);
        // The peer's address, an interface name, and the host's address.
        let line =
            build_message(20, 7, &[(1, &[10, 0, 0, 9]), (3, b"eth0\0"), (2, &[10, 0, 0, 8])]);
        let v6 = build_message(20, 3, &[(1, &[0xfd; 16])]);
        let applied = addresses.apply(&[one(20, 3), line, v6].concat());
        assert_eq!((applied.changed, applied.done), (true, false));
        let all = ["10.0.0.5", "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd", "10.0.0.8"];
        assert_eq!(known(&addresses), all);
        assert!(!addresses.apply(&one(20, 3)).changed);
        // Another interface has the same address.
        addresses.apply(&[one(20, 4), one(21, 3)].concat());
        assert!(known(&addresses).contains(&"10.0.0.5".to_owned()));
        addresses.apply(&one(21, 4));
        assert!(!known(&addresses).contains(&"10.0.0.5".to_owned()));
        assert!(addresses.apply(&build_message(NLMSG_DONE, 0, &[])).done);
    }

    #[test]
    fn truncated_messages_are_ignored() {
        let message = build_message(20, 7, &[(1, &[10, 0, 0, 9]), (2, &[10, 0, 0, 8])]);
        for length in 0..message.len() {
            assert!(!AddressSet::default().apply(&message[..length]).changed, "{length}");
            let mut cut = message[..length].to_vec();
            if length > NLMSG_HDRLEN {
                cut[..4].copy_from_slice(&(length as u32).to_ne_bytes());
                AddressSet::default().apply(&cut);
            }
        }
    }

    #[test]
    fn the_kernels_own_list_has_the_loopback_address() {
        let addresses = HostAddresses::open().unwrap();
        assert!(addresses.addresses().any(|address| address.is_loopback()));
    }
}
