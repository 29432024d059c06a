//! Messages to the kernel about interfaces, addresses and routes: rtnetlink(7).
//!
//! Each is sent by itself and waited for: the kernel answers at once.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// Kinds of messages (linux/rtnetlink.h).
mod kind {
    pub(super) const ERROR: u16 = 2;
    pub(super) const NEW_LINK: u16 = 16;
    pub(super) const NEW_ADDRESS: u16 = 20;
    pub(super) const NEW_ROUTE: u16 = 24;
}

/// Do it, and say how it went (linux/netlink.h).
const DO: u16 = 0x1 | 0x4;
/// Make it, or replace what is there. Of an interface, which is there, this is refused.
const MAKE: u16 = DO | 0x100 | 0x400;
/// Bytes of a message's header.
const HEADER: usize = 16;
/// Bytes of the longest answer: it quotes the message.
const ANSWER: usize = 1024;

const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// The address may be used at once: there is nobody else on the wire who could have it.
const IFA_F_NODAD: u8 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

/// A way to the kernel.
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    pub(crate) fn open() -> io::Result<Netlink> {
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Netlink(socket))
    }

    /// Changes the hardware address of an interface.
    pub(crate) fn set_hardware_address(&self, interface: u32, mac: [u8; 6]) -> io::Result<()> {
        let mut body = vec![0; 4];
        body.extend_from_slice(&interface.to_ne_bytes());
        body.extend_from_slice(&[0; 8]);
        put(&mut body, IFLA_ADDRESS, &mac);
        self.ask(kind::NEW_LINK, DO, &body)
    }

    /// Brings an interface up.
    pub(crate) fn bring_up(&self, interface: u32, mtu: u32) -> io::Result<()> {
        let mut body = vec![0; 4];
        body.extend_from_slice(&interface.to_ne_bytes());
        body.extend_from_slice(&IFF_UP.to_ne_bytes());
        body.extend_from_slice(&IFF_UP.to_ne_bytes());
        put(&mut body, IFLA_MTU, &mtu.to_ne_bytes());
        self.ask(kind::NEW_LINK, DO, &body)
    }

    /// Gives an interface an address.
    pub(crate) fn add_address(
        &self,
        interface: u32,
        address: IpAddr,
        prefix: u8,
    ) -> io::Result<()> {
        let mut body = vec![family(address), prefix, IFA_F_NODAD, 0];
        body.extend_from_slice(&interface.to_ne_bytes());
        put(&mut body, IFA_LOCAL, &bytes(address));
        put(&mut body, IFA_ADDRESS, &bytes(address));
        self.ask(kind::NEW_ADDRESS, MAKE, &body)
    }

    /// Leads everything that no other route leads anywhere to a gateway.
    pub(crate) fn add_default_route(&self, interface: u32, gateway: IpAddr) -> io::Result<()> {
        let mut body = vec![
            family(gateway),
            0,
            0,
            0,
            RT_TABLE_MAIN,
            RTPROT_BOOT,
            0,
            RTN_UNICAST,
        ];
        body.extend_from_slice(&[0; 4]);
        put(&mut body, RTA_GATEWAY, &bytes(gateway));
        put(&mut body, RTA_OIF, &interface.to_ne_bytes());
        self.ask(kind::NEW_ROUTE, MAKE, &body)
    }

    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        send(&self.0, &message(kind, flags, body), SendFlags::empty())?;
        let mut answer = [0; ANSWER];
        let (count, _) = recv(&self.0, &mut answer, RecvFlags::empty())?;
        result(&answer[..count])
    }
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = (HEADER + body.len()) as u32;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    // Neither number nor sender: one question is open at a time.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    message
}

/// The answer to a message: a negative number of an error, or 0.
fn result(answer: &[u8]) -> io::Result<()> {
    let wrong = || io::Error::other("the kernel's answer cannot be understood");
    let kind = answer.get(4..6).and_then(|bytes| bytes.first_chunk());
    let error = answer.get(HEADER..).and_then(|bytes| bytes.first_chunk());
    match (
        kind.copied().map(u16::from_ne_bytes),
        error.copied().map(i32::from_ne_bytes),
    ) {
        (Some(kind::ERROR), Some(0)) => Ok(()),
        (Some(kind::ERROR), Some(error)) => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
        _ => Err(wrong()),
    }
}

/// Appends an attribute: length, kind, value, padded to four bytes.
fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
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
    fn an_answer_is_an_error_or_none() {
        let answer = |error: i32| message(kind::ERROR, 0, &error.to_ne_bytes());
        assert!(result(&answer(0)).is_ok());
        assert_eq!(result(&answer(-17)).unwrap_err().raw_os_error(), Some(17));
        assert!(result(&answer(0)[..HEADER + 3]).is_err());
        assert!(result(&message(3, 0, &[0; 4])).is_err() && result(&[]).is_err());
    }

    #[test]
    fn attributes_begin_at_multiples_of_four() {
        let mut body = Vec::new();
        put(&mut body, 1, &[7]);
        assert_eq!(body, [5, 0, 1, 0, 7, 0, 0, 0]);
    }
}
