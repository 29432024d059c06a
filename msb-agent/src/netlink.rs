//! Netlink requests for interfaces, addresses and routes: rtnetlink(7).
//!
//! Requests are sent one at a time, and the kernel answers each at once.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

// Message types and flags (linux/netlink.h, linux/rtnetlink.h).
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;

/// Flags of a request with acknowledgement.
const REQUEST_FLAGS: u16 = NLM_F_REQUEST | NLM_F_ACK;
/// Flags to create an object or replace it. For an interface, which exists already, the kernel
/// refuses them.
const CREATE_FLAGS: u16 = REQUEST_FLAGS | NLM_F_REPLACE | NLM_F_CREATE;
/// Size of `struct nlmsghdr` in bytes.
const NLMSG_HDRLEN: usize = 16;
/// Maximum size of a response in bytes: it quotes the request.
const RESPONSE_BYTES_MAX: usize = 1024;

const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Use the address without duplicate address detection: no other host on the link can have it.
const IFA_F_NODAD: u8 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

/// A netlink socket.
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    pub(crate) fn open() -> io::Result<Netlink> {
        // Protocol 0 is NETLINK_ROUTE.
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Netlink(socket))
    }

    /// Sets the hardware address of an interface.
    pub(crate) fn set_hardware_address(&self, interface: u32, mac: [u8; 6]) -> io::Result<()> {
        let mut body = vec![0; 4];
        body.extend_from_slice(&interface.to_ne_bytes());
        body.extend_from_slice(&[0; 8]);
        put_attribute(&mut body, IFLA_ADDRESS, &mac);
        self.request(RTM_NEWLINK, REQUEST_FLAGS, &body)
    }

    /// Sets the MTU of an interface and brings it up.
    pub(crate) fn bring_up(&self, interface: u32, mtu: u32) -> io::Result<()> {
        let mut body = vec![0; 4];
        body.extend_from_slice(&interface.to_ne_bytes());
        body.extend_from_slice(&IFF_UP.to_ne_bytes());
        body.extend_from_slice(&IFF_UP.to_ne_bytes());
        put_attribute(&mut body, IFLA_MTU, &mtu.to_ne_bytes());
        self.request(RTM_NEWLINK, REQUEST_FLAGS, &body)
    }

    /// Brings an interface down.
    pub(crate) fn bring_down(&self, interface: u32) -> io::Result<()> {
        let mut body = vec![0; 4];
        body.extend_from_slice(&interface.to_ne_bytes());
        body.extend_from_slice(&0_u32.to_ne_bytes());
        body.extend_from_slice(&IFF_UP.to_ne_bytes());
        self.request(RTM_NEWLINK, REQUEST_FLAGS, &body)
    }

    /// Deletes an address of an interface.
    pub(crate) fn delete_address(
        &self,
        interface: u32,
        address: IpAddr,
        prefix: u8,
    ) -> io::Result<()> {
        let mut body = vec![family(address), prefix, 0, 0];
        body.extend_from_slice(&interface.to_ne_bytes());
        put_attribute(&mut body, IFA_LOCAL, &bytes(address));
        put_attribute(&mut body, IFA_ADDRESS, &bytes(address));
        self.request(RTM_DELADDR, REQUEST_FLAGS, &body)
    }

    /// Adds an address to an interface.
    pub(crate) fn add_address(
        &self,
        interface: u32,
        address: IpAddr,
        prefix: u8,
    ) -> io::Result<()> {
        let mut body = vec![family(address), prefix, IFA_F_NODAD, 0];
        body.extend_from_slice(&interface.to_ne_bytes());
        put_attribute(&mut body, IFA_LOCAL, &bytes(address));
        put_attribute(&mut body, IFA_ADDRESS, &bytes(address));
        self.request(RTM_NEWADDR, CREATE_FLAGS, &body)
    }

    /// Adds the default route.
    pub(crate) fn add_default_route(&self, interface: u32, gateway: IpAddr) -> io::Result<()> {
        let mut body = vec![family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST];
        body.extend_from_slice(&[0; 4]);
        put_attribute(&mut body, RTA_GATEWAY, &bytes(gateway));
        put_attribute(&mut body, RTA_OIF, &interface.to_ne_bytes());
        self.request(RTM_NEWROUTE, CREATE_FLAGS, &body)
    }

    fn request(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        send(&self.0, &message(kind, flags, body), SendFlags::empty())?;
        let mut answer = [0; RESPONSE_BYTES_MAX];
        let (count, _) = recv(&self.0, &mut answer, RecvFlags::empty())?;
        parse_response(&answer[..count])
    }
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = (NLMSG_HDRLEN + body.len()) as u32;
    let mut message = Vec::with_capacity(NLMSG_HDRLEN + body.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    // Sequence number and port id stay 0: there is one request at a time.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    message
}

/// Parses the response: a negative errno, or 0.
fn parse_response(answer: &[u8]) -> io::Result<()> {
    let wrong = || io::Error::other("invalid netlink response");
    let kind = answer.get(4..6).and_then(|bytes| bytes.first_chunk());
    let error = answer.get(NLMSG_HDRLEN..).and_then(|bytes| bytes.first_chunk());
    match (kind.copied().map(u16::from_ne_bytes), error.copied().map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
        _ => Err(wrong()),
    }
}

/// Appends an attribute: length, type, value, padding to four bytes.
fn put_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (4 + value.len()) as u16;
    body.extend_from_slice(&length.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_an_error_or_success() {
        let answer = |error: i32| message(NLMSG_ERROR, 0, &error.to_ne_bytes());
        assert!(parse_response(&answer(0)).is_ok());
        assert_eq!(parse_response(&answer(-17)).unwrap_err().raw_os_error(), Some(17));
        assert!(parse_response(&answer(0)[..NLMSG_HDRLEN + 3]).is_err());
        assert!(parse_response(&message(3, 0, &[0; 4])).is_err() && parse_response(&[]).is_err());
    }

    #[test]
    fn attributes_are_padded_to_four_bytes() {
        let mut body = Vec::new();
        put_attribute(&mut body, 1, &[7]);
        assert_eq!(body, [5, 0, 1, 0, 7, 0, 0, 0]);
    }
}
