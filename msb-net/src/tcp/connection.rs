//! One TCP connection: a send half, a receive half, the host's socket and timers, and the segments
//! that they cause.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::header_template::{HeaderTemplate, SegmentFields};
use super::host_socket::{HostFailure, HostSocket};
use super::receive_half::{ReceiveHalf, WINDOW_SHIFT};
use super::ring_buffer::RingPool;
use super::segment::{Segment, SeqNumber, SynOptions, flag};
use super::segment_writer::{SEGMENTS_MAX, push_options, push_segment, write_segments};
use super::send_half::{AckOutcome, MSS_DEFAULT, SendHalf};
use super::state::{CloseReason, ReceiveState, SendState, State};
use super::timers::{RTO_MAX, Timers};
use crate::device::FrameTransmitter;
use crate::flow::Flow;
use crate::limits::{KEEPALIVE, KEEPALIVE_HALF_CLOSED};
use crate::verdict_facts::VerdictFacts;
use libmsb::net::network::Network;

/// Limit of retransmissions of one segment: about ten minutes.
const RETRANSMISSIONS_MAX: u32 = 14;
/// Limit of retransmissions of a SYN: about half a minute. A guest is local, so a longer wait does
/// not help.
const SYN_RETRANSMISSIONS_MAX: u32 = 6;

/// Reason why a connection is allowed.
#[derive(Debug)]
pub(super) enum Admission {
    /// The resolver is always reached.
    Resolver,
    /// The policy allows the connection, by these facts.
    Allowed(VerdictFacts),
    /// The policy allows the connection if its first bytes are a ClientHello that it allows. No
    /// byte of the guest is sent on before.
    PeekPending(VerdictFacts),
    /// The same on an intercepted port: no byte of the server is read either, since
    /// `msb-intercept` gets its socket.
    InterceptionPending(VerdictFacts),
}

impl Admission {
    /// Returns the facts behind the verdict.
    pub(super) fn facts(&self) -> Option<&VerdictFacts> {
        match self {
            Admission::Resolver => None,
            Admission::Allowed(facts)
            | Admission::PeekPending(facts)
            | Admission::InterceptionPending(facts) => Some(facts),
        }
    }
}

/// A TCP connection.
pub(super) struct Connection {
    pub(super) flow: Flow,
    /// Number of the connection in events.
    pub(super) id: u64,
    pub(super) opened: Instant,
    pub(super) state: State,
    pub(super) admission: Admission,
    pub(super) close_reason: Option<CloseReason>,
    pub(super) host: HostSocket,
    pub(super) send: SendHalf,
    pub(super) receive: ReceiveHalf,
    pub(super) timers: Timers,
    template: HeaderTemplate,
    /// The connection is in the queue of ready connections.
    pub(super) queued: bool,
    /// The connection is in the batch of this turn.
    pub(super) batched: bool,
}

impl Connection {
    /// Creates a connection around a host socket.
    pub(super) fn new(
        network: &Network,
        (flow, admission): (Flow, Admission),
        (id, state, socket): (u64, State, OwnedFd),
        initial_seq: SeqNumber,
        now: Instant,
    ) -> Connection {
        Connection {
            flow,
            id,
            opened: now,
            state,
            admission,
            close_reason: None,
            host: HostSocket::new(socket),
            send: SendHalf::new(initial_seq),
            receive: ReceiveHalf::new(),
            timers: Timers::new(now),
            template: HeaderTemplate::new(network, &flow),
            queued: false,
            batched: false,
        }
    }

    /// Returns whether the guest's first bytes must be checked before they are sent on.
    pub(super) fn is_peek_pending(&self) -> bool {
        matches!(self.admission, Admission::PeekPending(_)) || self.is_interception_pending()
    }

    /// Returns whether the host's socket must not be read, because it may be handed over.
    pub(super) fn is_interception_pending(&self) -> bool {
        matches!(self.admission, Admission::InterceptionPending(_))
    }

    /// Notes that the host's socket failed.
    pub(super) fn note_failure(&mut self, result: Result<(), HostFailure>) {
        if result.is_err() {
            self.close_reason = Some(CloseReason::HostReset);
        }
    }

    /// Takes the sequence number, window and options of the guest's SYN.
    pub(super) fn apply_syn(&mut self, network: &Network, syn: &Segment<'_>) {
        let options = SynOptions::parse(syn.options);
        let mss = mss(network, &self.flow, options.mss.unwrap_or(MSS_DEFAULT));
        self.send.apply_syn(syn.window, options.window_scale.unwrap_or(0), mss);
        self.receive.apply_syn(syn.seq, options.window_scale.is_some());
    }

    /// Handles a segment of the guest. Its payload is at `offset` in the receive buffer.
    pub(super) fn handle_segment(
        &mut self,
        (network, transmitter, now): (&Network, &mut FrameTransmitter, Instant),
        pool: &mut RingPool,
        segment: &Segment<'_>,
        offset: usize,
    ) {
        if segment.has(flag::RST) {
            return self.handle_reset(segment);
        }
        match self.state {
            State::Connecting => return,
            State::SynSent => {
                if !segment.has(flag::SYN | flag::ACK) || segment.ack != self.send.max() {
                    return;
                }
                self.apply_syn(network, segment);
                self.receive.delayed_ack.require_now();
            }
            State::SynReceived if segment.has(flag::SYN) => {
                return self.send_syn(network, transmitter);
            }
            _ if segment.has(flag::SYN) => {
                // The guest has forgotten this connection and answers with a reset (RFC 9293,
                // 3.10.7.4).
                return self.send_ack(transmitter);
            }
            _ => {}
        }
        if !segment.has(flag::ACK) {
            return;
        }
        if self.timers.retransmissions > 0 {
            self.timers.retransmissions = 0;
            self.arm_timer(now);
        }
        self.handle_ack(segment, pool, transmitter, now);
        if self.state == State::Established && !segment.has(flag::SYN) {
            self.receive.accept(segment, offset, pool, now);
        }
    }

    /// Handles a reset. Only one within the window counts.
    fn handle_reset(&mut self, segment: &Segment<'_>) {
        let accepted = match self.state {
            State::Connecting => true,
            State::SynSent => segment.has(flag::ACK) && segment.ack == self.send.max(),
            _ => self.receive.is_in_window(segment.seq),
        };
        if accepted {
            self.close_reason = Some(CloseReason::GuestReset);
        }
    }

    /// Handles the acknowledgement and the window of a segment. The acknowledgement of the SYN
    /// establishes the connection.
    fn handle_ack(
        &mut self,
        segment: &Segment<'_>,
        pool: &mut RingPool,
        transmitter: &mut FrameTransmitter,
        now: Instant,
    ) {
        let syn = matches!(self.state, State::SynReceived | State::SynSent);
        match self.send.handle_ack(segment, syn, pool) {
            AckOutcome::Nothing => {}
            AckOutcome::NeverSent => self.receive.delayed_ack.require_now(),
            AckOutcome::Loss => self.retransmit_first(transmitter),
            AckOutcome::Advanced { loss } => {
                self.state = State::Established;
                self.timers.acknowledge(segment.ack, now);
                if loss {
                    self.retransmit_first(transmitter);
                }
                self.arm_timer(now);
                self.close_if_both_ended();
            }
        }
    }

    /// Closes the connection when the guest has acknowledged our FIN, and all its bytes are
    /// delivered.
    fn close_if_both_ended(&mut self) {
        if (self.send.state, self.receive.state) == (SendState::FinAcked, ReceiveState::Delivered) {
            self.close_reason = Some(CloseReason::Closed);
        }
    }

    /// Shuts down the sending half of the host socket once the guest has sent its FIN and all its
    /// bytes are written (half-close).
    pub(super) fn shutdown_host(&mut self) {
        if self.receive.state != ReceiveState::FinReceived || !self.receive.buffer.is_empty() {
            return;
        }
        self.receive.state = self.receive.state.deliver();
        self.close_if_both_ended();
        // Closing the socket shuts it down too.
        if self.send.state != SendState::FinAcked {
            self.host.shut_down_sending();
        }
    }

    /// Sets the deadline: retransmission while data is unacknowledged, otherwise the next keepalive
    /// probe.
    pub(super) fn arm_timer(&mut self, now: Instant) {
        if self.state != State::Established
            || self.send.is_in_flight()
            || self.send.is_window_blocked()
        {
            self.timers.arm_retransmission(now);
        } else if self.receive.state.is_at_end() {
            self.timers.deadline = now + KEEPALIVE_HALF_CLOSED;
        } else {
            self.timers.deadline = now + KEEPALIVE;
        }
    }

    /// Returns the header fields of a segment, with the current acknowledgement and window.
    fn segment_fields(&mut self, seq: SeqNumber, flags: u8) -> SegmentFields {
        let window = self.receive.advertise_window();
        SegmentFields { seq: seq.0, ack: self.receive.nxt().0, flags, window }
    }

    /// Queues a segment without payload.
    fn push_empty(&mut self, transmitter: &mut FrameTransmitter, seq: SeqNumber, flags: u8) {
        let fields = self.segment_fields(seq, flags);
        push_segment(&self.template, transmitter, fields, (&[], &[]));
    }

    /// Sends a SYN, with an acknowledgement if the guest opened the connection.
    pub(super) fn send_syn(&mut self, network: &Network, transmitter: &mut FrameTransmitter) {
        let by_guest = self.state == State::SynReceived;
        let scaling = self.receive.scales_windows() || !by_guest;
        let syn_options = SynOptions {
            mss: Some(network.mtu - headers_bytes(&self.flow)),
            window_scale: scaling.then_some(WINDOW_SHIFT),
        };
        let mut options = Vec::with_capacity(8);
        syn_options.write(&mut options);
        let fields = SegmentFields {
            seq: self.send.una().0,
            ack: if by_guest { self.receive.nxt().0 } else { 0 },
            flags: flag::SYN | if by_guest { flag::ACK } else { 0 },
            window: self.receive.advertise_syn_window(),
        };
        push_options(&self.template, transmitter, fields, &options);
        self.send.syn_sent();
    }

    /// Sends an acknowledgement.
    pub(super) fn send_ack(&mut self, transmitter: &mut FrameTransmitter) {
        self.receive.delayed_ack.ack_sent();
        self.push_empty(transmitter, self.send.nxt(), flag::ACK);
    }

    /// Sends the acknowledgements that are due, or a window update if the window has grown by much.
    pub(super) fn send_due_acks(&mut self, transmitter: &mut FrameTransmitter) {
        if self.receive.delayed_ack.is_due() {
            // Three duplicate acknowledgements are enough.
            for _ in 0..=self.receive.take_dup_acks().min(3) {
                self.send_ack(transmitter);
            }
        } else if self.state == State::Established
            && !self.receive.state.is_at_end()
            && self.receive.has_window_opened(self.send.mss())
        {
            self.send_ack(transmitter);
        }
    }

    /// Sends a reset.
    pub(super) fn send_reset(&mut self, transmitter: &mut FrameTransmitter) {
        let connecting = self.state == State::Connecting;
        let seq = if connecting { SeqNumber(0) } else { self.send.nxt() };
        self.push_empty(transmitter, seq, flag::RST | flag::ACK);
    }

    /// Sends a probe: a segment before SND.UNA, which the guest answers with its current
    /// acknowledgement and window. It serves as keepalive and as zero window probe.
    fn send_probe(&mut self, transmitter: &mut FrameTransmitter) {
        let seq = SeqNumber(self.send.una().0.wrapping_sub(1));
        self.push_empty(transmitter, seq, flag::ACK);
    }

    /// Retransmits the first unacknowledged segment.
    fn retransmit_first(&mut self, transmitter: &mut FrameTransmitter) {
        self.timers.discard_sample();
        let count = self.send.first_segment_len();
        if count > 0 {
            let fields = self.segment_fields(self.send.una(), flag::ACK | flag::PSH);
            let payload = self.send.buffer.slices(0, count);
            push_segment(&self.template, transmitter, fields, payload);
        } else if self.send.state == SendState::FinSent {
            self.push_empty(transmitter, self.send.una(), flag::FIN | flag::ACK);
        }
    }

    /// Handles an expired deadline: retransmits, probes, or gives up.
    pub(super) fn handle_timeout(
        &mut self,
        network: &Network,
        transmitter: &mut FrameTransmitter,
        now: Instant,
    ) -> io::Result<()> {
        self.timers.retransmissions += 1;
        let max = if self.state == State::Established {
            RETRANSMISSIONS_MAX
        } else {
            SYN_RETRANSMISSIONS_MAX
        };
        if self.timers.retransmissions > max {
            self.send_reset(transmitter);
            self.close_reason = Some(CloseReason::GuestSilent);
            return Ok(());
        }
        self.timers.discard_sample();
        match self.state {
            State::Connecting => {
                self.send_reset(transmitter);
                self.close_reason = Some(CloseReason::HostReset);
                return Ok(());
            }
            State::SynReceived | State::SynSent => self.send_syn(network, transmitter),
            State::Established if self.send.is_in_flight() => {
                self.send.go_back();
                self.transmit_segments(transmitter, now, 1, true)?;
            }
            State::Established => {
                if self.send.is_window_blocked() && self.send.window() > 0 {
                    self.transmit_segments(transmitter, now, 1, true)?;
                } else {
                    self.send_probe(transmitter);
                }
            }
        }
        self.timers.back_off();
        self.arm_timer(now);
        if !self.send.is_in_flight() && !self.send.is_window_blocked() {
            // A keepalive probe was sent.
            self.timers.deadline = now + RTO_MAX;
        }
        Ok(())
    }

    /// Sends what the guest's window allows.
    pub(super) fn transmit(
        &mut self,
        transmitter: &mut FrameTransmitter,
        now: Instant,
    ) -> io::Result<()> {
        if self.state != State::Established {
            return Ok(());
        }
        while !transmitter.is_blocked() {
            if self.transmit_segments(transmitter, now, SEGMENTS_MAX, false)? == 0 {
                break;
            }
        }
        self.transmit_fin(transmitter, now);
        if self.send.is_window_blocked() {
            self.timers.arm_retransmission_by(now);
        }
        Ok(())
    }

    /// Sends a FIN alone, once all bytes of the host are sent.
    fn transmit_fin(&mut self, transmitter: &mut FrameTransmitter, now: Instant) {
        if self.send.is_fin_due() {
            self.push_empty(transmitter, self.send.nxt(), flag::FIN | flag::ACK);
            self.send.fin_sent();
            self.record_send(now);
        }
    }

    /// Updates timers and counters after SND.NXT has advanced.
    fn record_send(&mut self, now: Instant) {
        self.receive.delayed_ack.data_sent(now);
        if !self.send.is_in_flight() {
            self.timers.arm_retransmission(now);
        }
        if self.send.raise_max() {
            self.timers.start_sample(self.send.nxt(), now);
        }
    }

    /// Sends segments and returns their number. `force`: also a small one, which fills the window.
    fn transmit_segments(
        &mut self,
        transmitter: &mut FrameTransmitter,
        now: Instant,
        max_segments: usize,
        force: bool,
    ) -> io::Result<usize> {
        let mut sizes = [0; SEGMENTS_MAX];
        let count = self.send.plan_segments(&mut sizes[..max_segments], force);
        if count == 0 {
            if force && self.send.unsent() == 0 {
                self.transmit_fin(transmitter, now);
            }
            return Ok(0);
        }
        let (sizes, sent) = (&sizes[..count], self.send.nxt() - self.send.una());
        let fields = self.segment_fields(self.send.nxt(), flag::ACK);
        let taken = write_segments(&self.template, transmitter, &self.send, fields, sizes)?;
        if taken > 0 {
            self.send.sent_up_to(sent + sizes[..taken].iter().sum::<usize>());
            self.record_send(now);
        }
        Ok(taken)
    }
}

/// Returns the size of the IP and TCP headers.
fn headers_bytes(flow: &Flow) -> u16 {
    if flow.guest.address.is_ipv4() { 40 } else { 60 }
}

/// Returns the maximum segment size: the smaller of the guest's MSS option and the MTU without
/// headers.
fn mss(network: &Network, flow: &Flow, offered: u16) -> usize {
    usize::from(offered.clamp(64, network.mtu - headers_bytes(flow)))
}
