//! The table of TCP connections: finds the connection of a segment or an event, and serves those
//! that have work.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use libmsb::net::rule::Direction;
use rustix::event::epoll::EventFlags;

use super::connection::{Admission, Connection};
use super::host_socket::HOST_EVENTS;
use super::open::{self, send_refusal};
use super::ring_buffer::RingPool;
use super::segment::{Segment, SeqNumber, flag};
use super::service;
use super::state::{CloseReason, State};
use crate::context::{EventSource, StackContext};
use crate::emitter::PacketEmitter;
use crate::flow::{Flow, FlowEndpoint};
use crate::host_sockets;
use crate::ip::Packet;
use crate::limits::{CONNECT_TIMEOUT, RECEIVE_BYTES};
use crate::policy::ConnectionFacts;
use crate::slab::{Slab, SlabKey};
use crate::timer_queue::TimerQueue;

/// The table of TCP connections.
pub(crate) struct Tcp {
    connections: Slab<Connection>,
    flows: HashMap<Flow, SlabKey>,
    /// The connection of the last segment: the next segment mostly belongs to it too.
    last_lookup: Option<(Flow, SlabKey)>,
    /// Connections with bytes in this turn.
    batch: Vec<SlabKey>,
    /// Payload of this turn's reassembled packets. Offsets into it count on from the end of the
    /// receive buffer.
    reassembled: Vec<u8>,
    /// A request or response of an interactive connection passed since the last check.
    interactive: bool,
    /// Connections to serve.
    ready: VecDeque<SlabKey>,
    timers: TimerQueue<SlabKey>,
    pub(super) pool: RingPool,
    secret: RandomState,
    opened_count: u64,
    /// Limit of connections, in each direction of opening.
    max_connections: usize,
    /// Number of connections through published ports.
    inbound_count: usize,
}

impl Tcp {
    pub(crate) fn new(max_connections: usize) -> Tcp {
        Tcp {
            connections: Slab::new(),
            flows: HashMap::new(),
            last_lookup: None,
            batch: Vec::new(),
            reassembled: Vec::new(),
            interactive: false,
            ready: VecDeque::new(),
            timers: TimerQueue::new(),
            pool: RingPool::default(),
            secret: RandomState::new(),
            opened_count: 0,
            max_connections,
            inbound_count: 0,
        }
    }

    fn lookup(&mut self, flow: &Flow) -> Option<SlabKey> {
        match self.last_lookup {
            Some((last_flow, key)) if last_flow == *flow && self.connections.get(key).is_some() => {
                Some(key)
            }
            _ => {
                let key = self.flows.get(flow).copied()?;
                self.last_lookup = Some((*flow, key));
                Some(key)
            }
        }
    }

    /// Handles a segment from the guest. `offset`: position of its IP payload in the receive
    /// buffer.
    pub(crate) fn handle_packet(
        &mut self,
        context: &mut StackContext,
        packet: &Packet<'_>,
        offset: Option<usize>,
    ) {
        let Some(segment) = Segment::parse(packet.payload) else {
            return;
        };
        let endpoint = |address, port| FlowEndpoint { address, port };
        let flow = Flow {
            guest: endpoint(packet.source, segment.source),
            remote: endpoint(packet.destination, segment.destination),
        };
        let Some(key) = self.lookup(&flow) else {
            if segment.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN {
                self.handle_syn(context, flow, packet, &segment);
            } else if !segment.has(flag::RST) {
                send_refusal(&mut context.emitter, &flow, &segment);
            }
            return;
        };
        let offset = offset.unwrap_or_else(|| {
            self.reassembled.extend_from_slice(packet.payload);
            RECEIVE_BYTES + self.reassembled.len() - packet.payload.len()
        });
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let offset = offset + packet.payload.len() - segment.payload.len();
        connection.handle_segment(
            (&context.emitter.network, &mut context.emitter.transmitter, context.now),
            &mut self.pool,
            &segment,
            offset,
        );
        if !connection.batched {
            connection.batched = true;
            self.batch.push(key);
        }
    }

    /// Handles a SYN of the guest: judges the flow and starts to connect the host's socket.
    fn handle_syn(
        &mut self,
        context: &mut StackContext,
        flow: Flow,
        packet: &Packet<'_>,
        segment: &Segment<'_>,
    ) {
        let open = self.connections.len() - self.inbound_count;
        if flow.remote.port == 0 || open >= self.max_connections {
            context.log.log_limit(&flow, "tcp");
            return send_refusal(&mut context.emitter, &flow, segment);
        }
        let Some((socket, admission)) = open::dial(context, &flow, packet, segment) else {
            return;
        };
        let Some(key) = self.insert(context, (flow, admission), State::Connecting, socket) else {
            return send_refusal(&mut context.emitter, &flow, segment);
        };
        if let Some(connection) = self.connections.get_mut(key) {
            connection.apply_syn(&context.emitter.network, segment);
            connection.timers.deadline = context.now + CONNECT_TIMEOUT;
        }
        self.remove_or_rearm(context, key);
    }

    /// Opens a connection from a published port: sends a SYN to the guest.
    pub(crate) fn open_inbound(
        &mut self,
        context: &mut StackContext,
        (flow, facts): (Flow, ConnectionFacts),
        socket: OwnedFd,
    ) {
        if self.inbound_count >= self.max_connections || self.flows.contains_key(&flow) {
            context.log.log_limit(&flow, "tcp");
            return host_sockets::break_off(socket);
        }
        let admission = Admission::Allowed(context.facts_budget.store(facts));
        let Some(key) = self.insert(context, (flow, admission), State::SynSent, socket) else {
            return;
        };
        if let Some(connection) = self.connections.get_mut(key) {
            self.inbound_count += 1;
            context.port_usage.record_open();
            let PacketEmitter { network, transmitter, .. } = &mut context.emitter;
            connection.send_syn(network, transmitter);
            connection.arm_timer(context.now);
        }
        self.remove_or_rearm(context, key);
    }

    /// Adds a connection and watches its socket.
    fn insert(
        &mut self,
        context: &mut StackContext,
        (flow, admission): (Flow, Admission),
        state: State,
        socket: OwnedFd,
    ) -> Option<SlabKey> {
        let initial_seq = self.initial_seq(&flow);
        self.opened_count += 1;
        let key = self.connections.insert(Connection::new(
            &context.emitter.network,
            (flow, admission),
            (self.opened_count, state, socket),
            initial_seq,
            context.now,
        ));
        let socket = self.connections.get(key)?.host.descriptor();
        if let Err(error) = context.watch(socket, EventSource::Tcp, key.to_bits(), HOST_EVENTS) {
            context.log.log_trouble("cannot watch a socket", &error.into());
            let refused = self.connections.remove(key)?;
            if let Some(facts) = refused.admission.facts() {
                context.facts_budget.release(facts);
            }
            return None;
        }
        self.flows.insert(flow, key);
        context.log.log_open(&flow, self.opened_count);
        Some(key)
    }

    /// Returns the initial sequence number, unpredictable without the secret (RFC 6528).
    fn initial_seq(&self, flow: &Flow) -> SeqNumber {
        SeqNumber(self.secret.hash_one((flow, self.opened_count)) as u32)
    }

    /// Sets the limit of connections. Open ones beyond it stay.
    pub(crate) fn set_max_connections(&mut self, max_connections: usize) {
        self.max_connections = max_connections;
    }

    /// Resets connections that the changed policy or host addresses no longer allow.
    pub(crate) fn recheck_policy(&mut self, context: &mut StackContext) {
        for key in self.connections.keys() {
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            // A connection whose ClientHello is still to be checked is judged then.
            let Admission::Allowed(facts) = &connection.admission else {
                continue;
            };
            if !context.is_still_allowed(&connection.flow, facts) {
                connection.close_reason = Some(CloseReason::Denied);
                connection.send_reset(&mut context.emitter.transmitter);
                self.remove_or_rearm(context, key);
            }
        }
    }

    /// Returns whether a flow has a connection.
    pub(crate) fn contains(&self, flow: &Flow) -> bool {
        self.flows.contains_key(flow)
    }

    /// Handles an event of a host socket.
    pub(crate) fn handle_event(
        &mut self,
        context: &mut StackContext,
        key: SlabKey,
        flags: EventFlags,
    ) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if connection.state == State::Connecting {
            if flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP) {
                open::finish_connect(connection, context);
                self.remove_or_rearm(context, key);
            }
            return;
        }
        connection.host.note_event(flags);
        self.enqueue(key);
    }

    fn enqueue(&mut self, key: SlabKey) {
        if let Some(connection) = self.connections.get_mut(key)
            && !connection.queued
        {
            connection.queued = true;
            self.ready.push_back(key);
        }
    }

    /// Ends the batch of this turn: writes its bytes to the host and enqueues its connections.
    pub(crate) fn deliver_batches(&mut self, received: &[u8]) {
        let batch = std::mem::take(&mut self.batch);
        for key in &batch {
            if let Some(connection) = self.connections.get_mut(*key) {
                connection.batched = false;
                service::deliver_batch(connection, &mut self.pool, [received, &self.reassembled]);
            }
            self.enqueue(*key);
        }
        self.batch = batch;
        self.batch.clear();
        self.reassembled = Vec::new();
    }

    /// Returns how many connections were opened in total.
    pub(crate) fn opened_total(&self) -> u64 {
        self.opened_count
    }

    /// Returns the number of open connections.
    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Returns whether interactive traffic passed since the last call.
    pub(crate) fn take_interactive(&mut self) -> bool {
        std::mem::take(&mut self.interactive)
    }

    /// Returns whether a connection is ready to be served.
    pub(crate) fn has_ready(&self, context: &StackContext) -> bool {
        !self.ready.is_empty() && !context.emitter.transmitter.is_blocked()
    }

    /// Serves each ready connection once. Those with more work are queued again.
    pub(crate) fn serve_ready(&mut self, context: &mut StackContext) -> io::Result<()> {
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else {
                break;
            };
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            connection.queued = false;
            if service::serve((key, connection), &mut self.pool, context)? {
                self.enqueue(key);
            }
            self.remove_or_rearm(context, key);
        }
        Ok(())
    }

    /// Removes a connection that has ended; sets the timer of any other.
    fn remove_or_rearm(&mut self, context: &mut StackContext, key: SlabKey) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if let Some(reason) = connection.close_reason {
            return self.remove(context, key, reason);
        }
        let delayed_ack = &connection.receive.delayed_ack;
        self.interactive |= delayed_ack.is_interactive(context.now);
        let timers = &mut connection.timers;
        let deadline =
            delayed_ack.deadline().map_or(timers.deadline, |ack| ack.min(timers.deadline));
        self.timers.set(&mut timers.queue_entry, deadline, key);
    }

    fn remove(&mut self, context: &mut StackContext, key: SlabKey, reason: CloseReason) {
        let Some(mut connection) = self.connections.remove(key) else {
            return;
        };
        self.timers.cancel(&mut connection.timers.queue_entry, key);
        self.flows.remove(&connection.flow);
        if let Some(facts) = connection.admission.facts() {
            context.facts_budget.release(facts);
            if facts.facts().direction == Direction::Ingress {
                self.inbound_count -= 1;
                context.port_usage.record_close();
            }
        }
        connection.send.buffer.release(&mut self.pool);
        connection.receive.release(&mut self.pool);
        if self.connections.len() == 0 {
            // A guest that has closed all connections holds no memory for rings.
            self.pool.free_unused();
        }
        let bytes = connection.host.bytes_up_and_down();
        let duration = context.now.saturating_duration_since(connection.opened);
        context.log.log_close(
            &connection.flow,
            "tcp",
            connection.id,
            bytes,
            duration,
            reason.text(),
        );
        if reason != CloseReason::Closed {
            host_sockets::break_off(connection.host.into_inner());
        }
    }

    /// Returns the time of the next timer.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.next_due()
    }

    /// Handles expired timers.
    pub(crate) fn tick(&mut self, context: &mut StackContext) -> io::Result<()> {
        while let Some(key) = self.timers.pop_due(context.now) {
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            connection.timers.queue_entry = None;
            connection.receive.delayed_ack.expire(context.now);
            if connection.receive.delayed_ack.is_due() {
                connection.send_ack(&mut context.emitter.transmitter);
            }
            if connection.timers.deadline <= context.now {
                if context.emitter.transmitter.is_blocked() {
                    // The guest reads no frames: sending more would not help.
                    connection.arm_timer(context.now);
                } else {
                    connection.handle_timeout(
                        &context.emitter.network,
                        &mut context.emitter.transmitter,
                        context.now,
                    )?;
                }
            }
            self.remove_or_rearm(context, key);
        }
        Ok(())
    }
}
