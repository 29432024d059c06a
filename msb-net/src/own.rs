//! Addresses that the host gets and loses while we run: a policy that keeps the guest off the host means these too.
//!
//! The kernel tells of each change over a socket (rtnetlink(7)), before anybody can use the address. The socket is opened
//! before system calls are given up, and needs none but those for datagrams afterwards: it lists addresses, and whoever has
//! no privileges changes none by it. When changes were too many for it, the list is asked for again; nothing that was known
//! is forgotten for that.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

/// Kinds of messages (linux/netlink.h, linux/rtnetlink.h).
const DONE: u16 = 3;
const NEW_ADDRESS: u16 = 20;
const DELETED_ADDRESS: u16 = 21;
const GET_ADDRESSES: u16 = 22;
/// A request, for all that there are.
const DUMP: u16 = 0x301;
/// Who is told of addresses of IPv4 and IPv6: bits of `nl_groups`.
const GROUPS: u32 = 0x10 | 0x100;
/// Attributes of an address: itself, or that of the other end of a line whose own is the second (if_addr.h).
const ATTRIBUTE_ADDRESS: u16 = 1;
const ATTRIBUTE_LOCAL: u16 = 2;
/// Bytes of the header of a message, of what all messages of addresses begin with, and of the header of an attribute.
const HEADER: usize = 16;
const ADDRESS: usize = 8;
const ATTRIBUTE: usize = 4;
/// The kernel answers at once, unless something is very wrong.
const ANSWER_SECONDS: i64 = 5;
/// Larger than any message of addresses.
const BUFFER_BYTES: usize = 64 * 1024;

/// The host's own addresses.
pub(crate) struct Own {
    socket: OwnedFd,
    known: Known,
}

/// Interfaces, by their numbers, and an address of each: two may have the same.
#[derive(Debug, Default)]
struct Known(BTreeSet<(u32, IpAddr)>);

/// What became of a packet of messages.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    /// Some address came or went.
    changed: bool,
    /// It was the end of a list.
    done: bool,
}

impl Own {
    /// Lists what there is, and hears of what comes.
    pub(crate) fn open() -> Result<Own, Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        let mut own = Own {
            socket,
            known: Known::default(),
        };
        own.ask()?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let mut waits = [PollFd::new(&own.socket, PollFlags::IN)];
            let patience = Timespec {
                tv_sec: ANSWER_SECONDS,
                tv_nsec: 0,
            };
            if poll(&mut waits, Some(&patience))? == 0 {
                return Err(Errno::TIMEDOUT);
            }
            let (count, _) = recv(&own.socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
            if own.known.learn(&buffer[..count]).done {
                return Ok(own);
            }
        }
    }

    /// Ready for reading when something has changed.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The addresses that are known.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.known.0.iter().map(|(_, address)| *address)
    }

    /// Takes what the kernel has told; gives whether an address came or went.
    pub(crate) fn update(&mut self, buffer: &mut [u8]) -> bool {
        let mut changed = false;
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((count, _)) => changed |= self.known.learn(&buffer[..count]).changed,
                Err(Errno::INTR) => {}
                // Something was lost. Where the question cannot be sent, what was known stays.
                Err(Errno::NOBUFS) => drop(self.ask()),
                Err(_) => return changed,
            }
        }
    }

    /// Asks for all addresses.
    fn ask(&self) -> Result<(), Errno> {
        let mut request = Vec::with_capacity(HEADER + ADDRESS);
        request.extend_from_slice(&((HEADER + ADDRESS) as u32).to_ne_bytes());
        request.extend_from_slice(&GET_ADDRESSES.to_ne_bytes());
        request.extend_from_slice(&DUMP.to_ne_bytes());
        // A number and a sender, which one who asks once has no use for; and of which family: any.
        request.resize(HEADER + ADDRESS, 0);
        send(&self.socket, &request, SendFlags::empty()).map(drop)
    }
}

impl Known {
    /// Takes messages. What cannot be read is passed over.
    fn learn(&mut self, mut bytes: &[u8]) -> Told {
        let (mut changed, mut done) = (false, false);
        while let Some((kind, body, rest)) = message(bytes) {
            bytes = rest;
            done |= kind == DONE;
            changed |= match (kind, address(body)) {
                (NEW_ADDRESS, Some(address)) => self.0.insert(address),
                (DELETED_ADDRESS, Some(address)) => self.0.remove(&address),
                _ => false,
            };
        }
        Told { changed, done }
    }
}

/// The first message: its kind, what it says, and what follows.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (header, _) = bytes.split_first_chunk::<HEADER>()?;
    let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let body = bytes.get(HEADER..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([header[4], header[5]]), body, rest))
}

/// The interface and the address that a message is about.
fn address(body: &[u8]) -> Option<(u32, IpAddr)> {
    let (header, mut attributes) = body.split_first_chunk::<ADDRESS>()?;
    let interface = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    let mut found = None;
    while let Some((header, rest)) = attributes.split_first_chunk::<ATTRIBUTE>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let value = rest.get(..length.checked_sub(ATTRIBUTE)?)?;
        if kind == ATTRIBUTE_LOCAL || (kind == ATTRIBUTE_ADDRESS && found.is_none()) {
            found = ip(value);
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    found.map(|address| (interface, address))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| Ipv4Addr::from(bytes).into());
    let v6 = || <[u8; 16]>::try_from(bytes).map(|bytes| Ipv6Addr::from(bytes).into());
    v4.or_else(|_| v6()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(kind: u16, interface: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![2, 24, 0, 0];
        body.extend_from_slice(&interface.to_ne_bytes());
        for (kind, value) in attributes {
            body.extend_from_slice(&((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
            body.extend_from_slice(&kind.to_ne_bytes());
            body.extend_from_slice(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend_from_slice(&kind.to_ne_bytes());
        message.resize(HEADER, 0);
        message.extend(body);
        message
    }

    fn known(known: &Known) -> Vec<String> {
        known
            .0
            .iter()
            .map(|(_, address)| address.to_string())
            .collect()
    }

    #[test]
    fn addresses_come_and_go_as_the_kernel_tells() {
        let mut own = Known::default();
        let one = |kind, interface| packed(kind, interface, &[(1, &[10, 0, 0, 5])]);
        // The other end of a line, then our own, and a name that is none of our business.
        let line = packed(
            20,
            7,
            &[(1, &[10, 0, 0, 9]), (3, b"eth0\0"), (2, &[10, 0, 0, 8])],
        );
        let v6 = packed(20, 3, &[(1, &[0xfd; 16])]);
        let told = own.learn(&[one(20, 3), line, v6].concat());
        assert_eq!((told.changed, told.done), (true, false));
        let all = [
            "10.0.0.5",
            "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd",
            "10.0.0.8",
        ];
        assert_eq!(known(&own), all);
        assert!(!own.learn(&one(20, 3)).changed);
        // Another interface has it, too.
        own.learn(&[one(20, 4), one(21, 3)].concat());
        assert!(known(&own).contains(&"10.0.0.5".to_owned()));
        own.learn(&one(21, 4));
        assert!(!known(&own).contains(&"10.0.0.5".to_owned()));
        assert!(own.learn(&packed(DONE, 0, &[])).done);
    }

    #[test]
    fn messages_that_are_cut_anywhere_say_nothing_and_break_nothing() {
        let message = packed(20, 7, &[(1, &[10, 0, 0, 9]), (2, &[10, 0, 0, 8])]);
        for length in 0..message.len() {
            assert!(
                !Known::default().learn(&message[..length]).changed,
                "{length}"
            );
            let mut cut = message[..length].to_vec();
            if length > HEADER {
                cut[..4].copy_from_slice(&(length as u32).to_ne_bytes());
                Known::default().learn(&cut);
            }
        }
    }

    #[test]
    fn the_kernels_own_list_has_the_loopback_address() {
        let own = Own::open().unwrap();
        assert!(own.addresses().any(|address| address.is_loopback()));
    }
}
