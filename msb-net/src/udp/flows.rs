//! Flows of datagrams between the guest and sockets of the host.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use libmsb::net::rule::Protocol;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sendto};

use super::datagram;
use crate::context::{EventSource, StackContext};
use crate::flow::Flow;
use crate::host_sockets;
use crate::icmp::{self, IcmpError};
use crate::ip::{Packet, protocol};
use crate::limits::{UDP_FLOWS_MAX, UDP_INBOUND_FLOWS_MAX, UDP_TIMEOUT};
use crate::policy::ConnectionFacts;
use crate::policy_gate::{DNS_PORT, Egress};
use crate::slab::{Slab, SlabKey};
use crate::timer_queue::TimerQueue;
use crate::verdict_facts::VerdictFacts;

/// Close reasons in events: idle for too long, or denied by a new policy.
const REASON_SILENT: &str = "silent";
const REASON_DENIED: &str = "denied";
/// Limit of datagrams read from one flow per turn.
const READS_PER_TURN: usize = 64;

/// The host's side of a flow.
enum FlowSide {
    /// A socket of a flow that the guest opened.
    Guest(OwnedFd),
    /// A peer of a published port; replies leave from there.
    Published { port: u32, peer: SocketAddr },
}

/// A UDP flow.
struct UdpFlow {
    flow: Flow,
    /// Facts behind the verdict.
    facts: VerdictFacts,
    id: u64,
    side: FlowSide,
    opened: Instant,
    used: Instant,
    timer: Option<Instant>,
    bytes_up: u64,
    bytes_down: u64,
}

/// The table of UDP flows.
pub(crate) struct Udp {
    flows: Slab<UdpFlow>,
    by_flow: HashMap<Flow, SlabKey>,
    timers: TimerQueue<SlabKey>,
    opened_count: u64,
    /// Number of flows through published ports.
    inbound_count: usize,
}

impl FlowSide {
    fn is_published(&self) -> bool {
        matches!(self, FlowSide::Published { .. })
    }
}

impl Udp {
    pub(crate) fn new() -> Udp {
        Udp {
            flows: Slab::new(),
            by_flow: HashMap::new(),
            timers: TimerQueue::new(),
            opened_count: 0,
            inbound_count: 0,
        }
    }

    /// Handles a datagram from the guest.
    pub(crate) fn handle_packet(&mut self, context: &mut StackContext, packet: &Packet<'_>) {
        let Some((flow, payload)) = datagram::parse(packet) else {
            return;
        };
        let key = match self.by_flow.get(&flow) {
            Some(key) => *key,
            None if flow.remote.port == DNS_PORT => {
                return context.dns_requests.push_datagram(flow, payload);
            }
            None => match self.open(context, flow) {
                Ok(Some(key)) => key,
                Ok(None) => {
                    return icmp::send_error(&mut context.emitter, packet, IcmpError::Prohibited);
                }
                Err(error) => {
                    let code = icmp::datagram_error(error).unwrap_or(IcmpError::Prohibited);
                    return icmp::send_error(&mut context.emitter, packet, code);
                }
            },
        };
        let Some(flow_state) = self.flows.get_mut(key) else {
            return;
        };
        flow_state.used = context.now;
        flow_state.bytes_up += payload.len() as u64;
        let sent = match &flow_state.side {
            FlowSide::Guest(socket) => send(socket, payload, SendFlags::NOSIGNAL),
            FlowSide::Published { port, peer } => match context.ports.get(*port as usize) {
                Some(Some(port)) => sendto(&port.socket, payload, SendFlags::NOSIGNAL, peer),
                _ => Ok(0),
            },
        };
        match sent {
            Err(Errno::MSGSIZE) => {
                icmp::send_error(&mut context.emitter, packet, IcmpError::TooBig(ip_mtu(packet)))
            }
            // An error may belong to the datagram before; this one was not sent.
            Err(error) => {
                if let Some(code) = icmp::datagram_error(error) {
                    icmp::send_error(&mut context.emitter, packet, code);
                }
            }
            Ok(_) => {}
        }
    }

    /// Opens a flow; `None` if it is denied.
    fn open(&mut self, context: &mut StackContext, flow: Flow) -> Result<Option<SlabKey>, Errno> {
        let (network, log) = (&context.emitter.network, &mut context.log);
        let egress = context.gate.egress(network, &flow, Protocol::Udp, (context.now, log));
        let Some(Egress::Host { target, facts, .. }) = egress else {
            return Ok(None);
        };
        let socket = host_sockets::datagrams(target)?;
        let key = self.insert(context, (flow, facts), FlowSide::Guest(socket));
        let Some(FlowSide::Guest(socket)) = self.flows.get(key).map(|flow| &flow.side) else {
            return Err(Errno::NOENT);
        };
        if let Err(error) =
            context.watch(socket.as_fd(), EventSource::Udp, key.to_bits(), EventFlags::IN)
        {
            self.remove(context, key, REASON_SILENT);
            return Err(error);
        }
        Ok(Some(key))
    }

    fn insert(
        &mut self,
        context: &mut StackContext,
        (flow, facts): (Flow, ConnectionFacts),
        side: FlowSide,
    ) -> SlabKey {
        let is_published = side.is_published();
        let (count, max) = if is_published {
            (self.inbound_count, UDP_INBOUND_FLOWS_MAX)
        } else {
            (self.flows.len() - self.inbound_count, UDP_FLOWS_MAX)
        };
        if count >= max {
            self.evict(context, is_published);
        }
        self.inbound_count += usize::from(is_published);
        self.opened_count += 1;
        let key = self.flows.insert(UdpFlow {
            flow,
            facts: context.facts_budget.store(facts),
            id: self.opened_count,
            side,
            opened: context.now,
            used: context.now,
            timer: None,
            bytes_up: 0,
            bytes_down: 0,
        });
        self.by_flow.insert(flow, key);
        if let Some(added) = self.flows.get_mut(key) {
            self.timers.set(&mut added.timer, context.now + UDP_TIMEOUT, key);
        }
        context.log.log_open(&flow, self.opened_count);
        key
    }

    /// Closes the flow that was idle longest, among those of the same kind. So peers of a published
    /// port, even with forged addresses, close no flow of the guest.
    fn evict(&mut self, context: &mut StackContext, is_published: bool) {
        let flows = self.flows.keys().into_iter();
        let flows = flows.filter_map(|key| Some((key, self.flows.get(key)?)));
        let used = flows
            .filter(|(_, flow)| flow.side.is_published() == is_published)
            .map(|(key, flow)| (flow.used, key));
        if let Some((_, key)) = used.min() {
            self.remove(context, key, REASON_SILENT);
        }
    }

    /// Closes flows that the changed policy no longer allows, and those of removed ports.
    pub(crate) fn recheck_policy(&mut self, context: &mut StackContext) {
        for key in self.flows.keys() {
            let Some(flow) = self.flows.get(key) else {
                continue;
            };
            let has_port = match flow.side {
                FlowSide::Guest(_) => true,
                FlowSide::Published { port, .. } => {
                    matches!(context.ports.get(port as usize), Some(Some(_)))
                }
            };
            if !has_port || !context.is_still_allowed(&flow.flow, &flow.facts) {
                self.remove(context, key, REASON_DENIED);
            }
        }
    }

    fn remove(&mut self, context: &mut StackContext, key: SlabKey, how: &'static str) {
        let Some(mut flow) = self.flows.remove(key) else {
            return;
        };
        self.timers.cancel(&mut flow.timer, key);
        self.by_flow.remove(&flow.flow);
        context.facts_budget.release(&flow.facts);
        self.inbound_count -= usize::from(flow.side.is_published());
        let bytes = (flow.bytes_up, flow.bytes_down);
        let duration = context.now.saturating_duration_since(flow.opened);
        context.log.log_close(&flow.flow, "udp", flow.id, bytes, duration, how);
    }

    /// Handles an event of a flow's socket.
    pub(crate) fn handle_event(&mut self, context: &mut StackContext, key: SlabKey) {
        let mut buffer = std::mem::take(&mut context.scratch);
        for _ in 0..READS_PER_TURN {
            let Some(flow_state) = self.flows.get_mut(key) else {
                break;
            };
            let FlowSide::Guest(socket) = &flow_state.side else {
                break;
            };
            match recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((count, _)) => {
                    flow_state.used = context.now;
                    flow_state.bytes_down += count as u64;
                    let flow = flow_state.flow;
                    datagram::send(&mut context.emitter, &flow, &buffer[..count]);
                }
                Err(error) => {
                    let Some(error) = icmp::datagram_error(error) else {
                        break;
                    };
                    let flow = flow_state.flow;
                    datagram::send_error(&mut context.emitter, &flow, error);
                }
            }
        }
        context.scratch = buffer;
    }

    /// Opens a flow from a published port.
    pub(crate) fn open_inbound(
        &mut self,
        context: &mut StackContext,
        judged: (Flow, ConnectionFacts),
        (port, peer): (u32, SocketAddr),
    ) {
        self.insert(context, judged, FlowSide::Published { port, peer });
    }

    /// Forwards a datagram from a published port to the guest.
    pub(crate) fn forward_published(
        &mut self,
        context: &mut StackContext,
        flow: &Flow,
        payload: &[u8],
    ) {
        let key = self.by_flow.get(flow).copied();
        if let Some(flow_state) = key.and_then(|key| self.flows.get_mut(key)) {
            flow_state.used = context.now;
            flow_state.bytes_down += payload.len() as u64;
        }
        context.port_usage.record_datagram();
        datagram::send(&mut context.emitter, flow, payload);
    }

    /// Returns the numbers of flows opened by the guest and through published ports.
    #[cfg(test)]
    pub(crate) fn flow_counts(&self) -> (usize, usize) {
        (self.flows.len() - self.inbound_count, self.inbound_count)
    }

    /// Returns whether a flow exists.
    pub(crate) fn contains(&self, flow: &Flow) -> bool {
        self.by_flow.contains_key(flow)
    }

    /// Returns whether a flow belongs to another caller, or to the guest.
    pub(crate) fn is_taken(&self, flow: &Flow, port: u32, peer: SocketAddr) -> bool {
        let side = self.by_flow.get(flow).and_then(|key| self.flows.get(*key));
        match side.map(|flow| &flow.side) {
            None => false,
            Some(FlowSide::Guest(_)) => true,
            Some(FlowSide::Published { port: other, peer: owner }) => {
                *other != port || *owner != peer
            }
        }
    }

    /// Returns how many flows were opened in total.
    pub(crate) fn opened_total(&self) -> u64 {
        self.opened_count
    }

    /// Returns the number of open flows.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Returns the time of the next timer.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.next_due()
    }

    /// Closes idle flows.
    pub(crate) fn tick(&mut self, context: &mut StackContext) {
        while let Some(key) = self.timers.pop_due(context.now) {
            let Some(flow) = self.flows.get_mut(key) else {
                continue;
            };
            flow.timer = None;
            let end = flow.used + UDP_TIMEOUT;
            if end > context.now {
                self.timers.set(&mut flow.timer, end, key);
            } else {
                self.remove(context, key, REASON_SILENT);
            }
        }
    }
}

/// Returns the largest packet size that the path certainly accepts.
fn ip_mtu(packet: &Packet<'_>) -> u16 {
    (packet.ip_bytes.len() / 2).clamp(1280, 65535) as u16
}

/// Reports a datagram to an address that cannot be reached. It is dropped; the event log gets it if
/// the policy has a reason. No ICMP error is sent (RFC 1122, 3.2.2).
pub(crate) fn log_undeliverable(context: &mut StackContext, packet: &Packet<'_>) {
    let is_udp = packet.protocol == protocol::UDP && packet.fragment.is_none();
    if let Some((flow, _)) = is_udp.then(|| datagram::parse(packet)).flatten() {
        context.gate.log_undeliverable(&flow, (context.now, &mut context.log));
    }
}
