//! What every protocol needs, and how it is told whose an event is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use libmsb::net::network::Network;
use libmsb::samples::boot_ns;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::device::Transmitter;
use crate::flow::Flow;
use crate::gate::Gate;
use crate::kept::{Keeper, Kept};
use crate::log::Log;
use crate::ports::{Port, Ports};
use crate::resolver::Asked;

/// The largest datagram.
pub(crate) const SCRATCH_BYTES: usize = 65536;

/// Whose event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The frame stream.
    Frames,
    /// The life pipe.
    Life,
    /// A connection.
    Tcp,
    /// A flow of datagrams.
    Udp,
    /// A flow of echoes.
    Ping,
    /// A published port.
    Port,
    /// A connection of the guest to the name server.
    Stream,
    /// A question to another name server.
    Upstream,
    /// New settings.
    Control,
    /// Addresses of the host.
    Own,
}

const KINDS: [Kind; 10] = [
    Kind::Frames,
    Kind::Life,
    Kind::Tcp,
    Kind::Udp,
    Kind::Ping,
    Kind::Port,
    Kind::Stream,
    Kind::Upstream,
    Kind::Control,
    Kind::Own,
];
/// The kind stands above the key in an event's data.
const KIND_SHIFT: u32 = 56;

/// Whose an event is: of what kind, and the key that was given for it.
pub(crate) fn whose(event: &Event) -> Option<(Kind, u64)> {
    let data = event.data.u64();
    let kind = KINDS.get((data >> KIND_SHIFT) as usize)?;
    Some((*kind, data & ((1 << KIND_SHIFT) - 1)))
}

/// What everybody needs.
pub(crate) struct World {
    pub(crate) epoll: OwnedFd,
    pub(crate) network: Network,
    pub(crate) transmitter: Transmitter,
    pub(crate) gate: Gate,
    /// What open connections were judged by.
    pub(crate) keeper: Keeper,
    pub(crate) log: Log,
    pub(crate) ports: Ports,
    /// What the guest has asked the name server in this turn.
    pub(crate) asked: Vec<Asked>,
    /// When this turn began.
    pub(crate) now: Instant,
    /// Room for one datagram.
    pub(crate) scratch: Box<[u8]>,
    /// Numbers the packets that are sent in pieces.
    pub(crate) piece_id: u32,
    /// Who uses the published ports.
    pub(crate) published: Published,
}

/// How the published ports are used, for whoever asks whether the guest is.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// Connections that are open.
    pub(crate) open: u64,
    /// Whether one came or went, or a datagram came, since this was last told of.
    is_fresh: bool,
    /// When that was, in nanoseconds since the host's boot.
    at_ns: u64,
}

impl Published {
    pub(crate) fn opened(&mut self) {
        self.open += 1;
        self.is_fresh = true;
    }

    pub(crate) fn closed(&mut self) {
        self.open = self.open.saturating_sub(1);
        self.is_fresh = true;
    }

    pub(crate) fn datagram(&mut self) {
        self.is_fresh = true;
    }

    /// When they were used last. The clock is asked once in a turn in which they were.
    pub(crate) fn at_ns(&mut self) -> u64 {
        if std::mem::take(&mut self.is_fresh) {
            self.at_ns = boot_ns();
        }
        self.at_ns
    }
}

impl World {
    /// Waits for events of a descriptor.
    pub(crate) fn watch(
        &self,
        descriptor: BorrowedFd<'_>,
        kind: Kind,
        key: u64,
        flags: EventFlags,
    ) -> Result<(), Errno> {
        let data = EventData::new_u64((kind as u64) << KIND_SHIFT | key);
        epoll::add(&self.epoll, descriptor, data, flags)
    }

    /// Whether what is open may stay, now that the policy is another or the host's addresses are.
    pub(crate) fn stays(&mut self, flow: &Flow, kept: &Kept) -> bool {
        let facts = kept.whole();
        facts.is_some_and(|facts| self.gate.stays(flow, facts, &mut self.log))
    }

    /// Waits for callers at a port.
    pub(crate) fn watch_port(&self, port: &Port, number: usize) -> Result<(), Errno> {
        let number = number as u64;
        self.watch(port.socket.as_fd(), Kind::Port, number, EventFlags::IN)
    }

    pub(crate) fn watch_frames(&self, flags: EventFlags) -> Result<(), Errno> {
        let data = EventData::new_u64((Kind::Frames as u64) << KIND_SHIFT);
        epoll::modify(&self.epoll, self.transmitter.socket(), data, flags)
    }
}
