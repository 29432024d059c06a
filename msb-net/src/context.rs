//! State shared by all protocols of the stack, and the sources of epoll events.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::dns::DnsRequestQueue;
use crate::emitter::PacketEmitter;
use crate::event_log::EventLog;
use crate::flow::Flow;
use crate::interceptor::InterceptorLink;
use crate::policy_gate::PolicyGate;
use crate::port_usage::PortUsage;
use crate::published_port::{PublishedPort, PublishedPorts};
use crate::verdict_facts::{FactsBudget, VerdictFacts};

/// Size of the scratch buffer in bytes: the largest datagram.
pub(crate) const SCRATCH_BYTES: usize = 65536;

/// The source of an epoll event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EventSource {
    /// The frame stream.
    Frames,
    /// The pipe whose closing ends the process.
    LifePipe,
    /// A TCP connection's host socket.
    Tcp,
    /// A UDP flow's host socket.
    Udp,
    /// An ICMP echo socket.
    Echo,
    /// A published port.
    PublishedPort,
    /// A connection of the guest to the resolver.
    DnsStream,
    /// A query to an upstream name server.
    DnsUpstream,
    /// The control socket.
    ControlSocket,
    /// The netlink socket for the host's addresses.
    HostAddresses,
}

const EVENT_SOURCES: [EventSource; 10] = [
    EventSource::Frames,
    EventSource::LifePipe,
    EventSource::Tcp,
    EventSource::Udp,
    EventSource::Echo,
    EventSource::PublishedPort,
    EventSource::DnsStream,
    EventSource::DnsUpstream,
    EventSource::ControlSocket,
    EventSource::HostAddresses,
];
/// Position of the source in an event's data, above the key.
const SOURCE_SHIFT: u32 = 56;

/// Returns the source of an event and the key it was registered with.
pub(crate) fn event_source(event: &Event) -> Option<(EventSource, u64)> {
    let data = event.data.u64();
    let source = EVENT_SOURCES.get((data >> SOURCE_SHIFT) as usize)?;
    Some((*source, data & ((1 << SOURCE_SHIFT) - 1)))
}

/// State that every protocol of the stack uses.
pub(crate) struct StackContext {
    pub(crate) epoll: OwnedFd,
    pub(crate) emitter: PacketEmitter,
    pub(crate) gate: PolicyGate,
    /// Memory budget for the facts of open connections.
    pub(crate) facts_budget: FactsBudget,
    pub(crate) log: EventLog,
    pub(crate) ports: PublishedPorts,
    /// DNS requests that the guest made in this turn.
    pub(crate) dns_requests: DnsRequestQueue,
    /// Time at the start of this turn.
    pub(crate) now: Instant,
    /// Buffer for one datagram.
    pub(crate) scratch: Box<[u8]>,
    /// Use of the published ports.
    pub(crate) port_usage: PortUsage,
    /// The process that intercepts TLS, if the sandbox has one.
    pub(crate) interceptor: Option<InterceptorLink>,
}

impl StackContext {
    /// Registers a descriptor with epoll.
    pub(crate) fn watch(
        &self,
        descriptor: BorrowedFd<'_>,
        source: EventSource,
        key: u64,
        flags: EventFlags,
    ) -> Result<(), Errno> {
        let data = EventData::new_u64((source as u64) << SOURCE_SHIFT | key);
        epoll::add(&self.epoll, descriptor, data, flags)
    }

    /// Returns whether an open connection is still allowed after a change of the policy or of the
    /// host's addresses.
    pub(crate) fn is_still_allowed(&mut self, flow: &Flow, facts: &VerdictFacts) -> bool {
        let complete = facts.complete();
        complete.is_some_and(|facts| self.gate.is_still_allowed(flow, facts, &mut self.log))
    }

    /// Registers a published port's socket for incoming connections or datagrams.
    pub(crate) fn watch_port(&self, port: &PublishedPort, number: usize) -> Result<(), Errno> {
        let number = number as u64;
        self.watch(port.socket.as_fd(), EventSource::PublishedPort, number, EventFlags::IN)
    }

    /// Changes the events awaited on the frame stream.
    pub(crate) fn watch_frames(&self, flags: EventFlags) -> Result<(), Errno> {
        let data = EventData::new_u64((EventSource::Frames as u64) << SOURCE_SHIFT);
        epoll::modify(&self.epoll, self.emitter.transmitter.socket(), data, flags)
    }
}
