//! Connections that msb-net hands over.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use libmsb::net::intercept::{HANDOVER_BYTES_MAX, Handover};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A connection: its facts, the server's socket and the guest's.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) facts: Handover,
    pub(crate) server: OwnedFd,
    pub(crate) guest: OwnedFd,
}

/// The socket from msb-net.
#[derive(Debug)]
pub(crate) struct Connections(AsyncFd<OwnedFd>);

impl Connections {
    /// Uses a non-blocking socket of sequenced packets.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Connections> {
        Ok(Connections(watch(socket)?))
    }

    /// Returns the next connection. `None`: msb-net has closed the socket. A packet that is not one
    /// is ignored, and its descriptors are closed.
    pub(crate) async fn next(&self) -> io::Result<Option<Connection>> {
        loop {
            match self.0.async_io(Interest::READABLE, receive).await? {
                Packet::Connection(connection) => return Ok(Some(*connection)),
                Packet::End => return Ok(None),
                Packet::Malformed => {}
            }
        }
    }
}

/// Registers a descriptor that is read.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the result, so it stays open as long as it is registered.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

enum Packet {
    Connection(Box<Connection>),
    Malformed,
    End,
}

fn receive(socket: &OwnedFd) -> io::Result<Packet> {
    let mut bytes = [0; HANDOVER_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(Packet::End);
    }
    let facts = serde_json::from_slice(&bytes[..received.bytes.min(bytes.len())]);
    let (Ok(facts), Some(guest), Some(server)) = (facts, descriptors.pop(), descriptors.pop())
    else {
        return Ok(Packet::Malformed);
    };
    Ok(Packet::Connection(Box::new(Connection { facts, server, guest })))
}
