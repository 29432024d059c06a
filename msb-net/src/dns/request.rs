//! Requests of the guest that wait for the resolver until the end of a turn.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::flow::Flow;

/// A DNS request of the guest.
#[derive(Debug)]
pub(crate) enum DnsRequest {
    /// A query in a datagram.
    Datagram(Flow, Vec<u8>),
    /// A connection: the resolver's end of the socket pair.
    Stream(OwnedFd),
}

/// The requests of this turn.
#[derive(Debug, Default)]
pub(crate) struct DnsRequestQueue(Vec<DnsRequest>);

impl DnsRequestQueue {
    /// Adds a query in a datagram.
    pub(crate) fn push_datagram(&mut self, flow: Flow, message: &[u8]) {
        self.0.push(DnsRequest::Datagram(flow, message.to_vec()));
    }

    /// Connects a TCP connection of the guest to the resolver. Returns its end of the socket pair.
    pub(crate) fn connect_guest(&mut self) -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (theirs, ours) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        self.0.push(DnsRequest::Stream(ours));
        Ok(theirs)
    }

    /// Takes all requests.
    pub(crate) fn take(&mut self) -> Vec<DnsRequest> {
        std::mem::take(&mut self.0)
    }
}
