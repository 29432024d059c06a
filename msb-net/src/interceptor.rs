//! Hand-over of connections to `msb-intercept`, the process that intercepts TLS.
//!
//! One packet hands over one connection ([`libmsb::net::intercept::Handover`]), with the connected
//! socket of the server and one end of a socket pair, whose other end stays here. This process never
//! sees what the connection says, and the other one cannot open a connection.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use libmsb::net::intercept::Handover;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};

/// The socket to `msb-intercept`.
#[derive(Debug)]
pub(crate) struct InterceptorLink(OwnedFd);

impl InterceptorLink {
    pub(crate) fn new(socket: OwnedFd) -> InterceptorLink {
        InterceptorLink(socket)
    }

    /// Sends a connection. It fails if the process is behind by a full socket: this one never waits.
    pub(crate) fn send(
        &self,
        handover: &Handover,
        server: BorrowedFd<'_>,
        guest: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let packet = serde_json::to_vec(handover).map_err(|_| Errno::INVAL)?;
        let descriptors = [server, guest];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = sendmsg(&self.0, &[IoSlice::new(&packet)], &mut ancillary, flags)?;
        if sent == packet.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
    }
}

/// Creates the socket pair that takes the place of a server's socket.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}
