//! One connection: what it remembers, and what a segment of the guest does to it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::owed::Owed;
use super::ring::{Pool, Ring};
use super::segment::{Offer, Segment, Seq, flag};
use super::template::Template;
use crate::device::Transmitter;
use crate::flow::Flow;
use crate::kept::Kept;
use crate::limits::{EARLY_SEGMENTS_MAX, KEEPALIVE, KEEPALIVE_HALF_CLOSED};
use libmsb::net::network::Network;

/// Time until a segment is sent again when nothing is known about the guest's answers (RFC 6298 has 1 s; the guest is near).
const RTO_FIRST: Duration = Duration::from_millis(400);
/// A guest that is busy answers late.
pub(super) const RTO_MIN: Duration = Duration::from_millis(200);
pub(super) const RTO_MAX: Duration = Duration::from_secs(60);
/// The shift of the windows that we offer: 64 KiB × 128 are more than a ring has.
pub(super) const SHIFT: u8 = 7;
/// What a guest takes that says nothing (RFC 9293, 3.7.1).
const MSS_DEFAULT: u16 = 536;
/// Repeated acknowledgements that mean a lost segment (RFC 5681, 3.2).
const DUPLICATES: u8 = 3;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The guest called, and the host's socket is being connected.
    Dialing,
    /// The guest called, the host's socket is connected, and the guest was told.
    Answered,
    /// Somebody called a published port, and the guest was called.
    Calling,
    /// Both sides are connected.
    Open,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// Both sides have said all.
    Closed,
    /// The guest broke it off.
    GuestReset,
    /// The other side broke it off, or cannot be reached.
    HostReset,
    /// The guest answers no more.
    Silent,
    /// What the guest said first is not allowed.
    Denied,
}

impl Over {
    /// The word for it in events.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Over::Closed => "closed",
            Over::GuestReset => "reset by guest",
            Over::HostReset => "reset by peer",
            Over::Silent => "guest does not answer",
            Over::Denied => "denied",
        }
    }
}

/// A connection.
pub(crate) struct Connection {
    pub(crate) flow: Flow,
    /// Its number in events.
    pub(crate) id: u64,
    pub(crate) opened: Instant,
    pub(crate) socket: OwnedFd,
    pub(crate) stage: Stage,
    pub(super) template: Template,

    /// To the guest: the first byte that it has not acknowledged, the next to send, and the one behind all that was sent.
    pub(super) una: Seq,
    pub(super) next: Seq,
    pub(super) max: Seq,
    /// Bytes from `una` on.
    pub(super) to_guest: Ring,
    pub(super) window: usize,
    pub(super) window_max: usize,
    pub(super) guest_shift: u8,
    pub(super) scaled: bool,
    pub(super) mss: usize,
    /// The host's side has said all.
    pub(super) host_done: bool,
    pub(super) fin_sent: bool,
    pub(super) fin_acked: bool,

    /// From the guest: the next byte, and the end of what it may send.
    pub(super) rcv: Seq,
    pub(super) edge: Seq,
    /// Bytes that the host's socket has not taken.
    pub(super) to_host: Ring,
    /// Where bytes of this turn lie in the receiver's buffer: place and length.
    pub(super) parts: Vec<(usize, usize)>,
    /// Segments that came before those that they follow.
    pub(super) early: VecDeque<(Seq, Box<[u8]>)>,
    /// How many of them came in this turn: the guest is told of each, since three tell it that something was lost.
    pub(super) gaps: u8,
    /// Where the guest's side ends.
    pub(super) fin_at: Option<Seq>,
    pub(super) guest_done: bool,
    pub(super) host_shut: bool,
    pub(super) owed: Owed,

    /// What it was judged by; none of one with our own name server.
    pub(super) facts: Option<Kept>,
    /// What the guest says first must be looked at: until then it waits.
    pub(super) look: bool,
    /// The host's socket may have something, may take something, will not say more than it has.
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) hung_up: bool,
    /// An error waits there.
    pub(super) broken: bool,
    /// It stands in the queue of those that are served; it has segments of this turn.
    pub(super) queued: bool,
    pub(super) batched: bool,

    pub(super) deadline: Instant,
    /// When the entry among the timers is due.
    pub(super) timer: Option<Instant>,
    pub(super) rto: Duration,
    pub(super) round_trip: Option<(Duration, Duration)>,
    pub(super) sample: Option<(Seq, Instant)>,
    pub(super) retries: u32,
    pub(super) duplicates: u8,
    /// After a loss: all that was sent before it was seen.
    pub(super) recover: Option<Seq>,

    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
    pub(crate) over: Option<Over>,
}

impl Connection {
    /// A connection whose host's socket is there.
    pub(super) fn new(
        network: &Network,
        flow: Flow,
        (id, stage, socket): (u64, Stage, OwnedFd),
        first: Seq,
        now: Instant,
    ) -> Connection {
        Connection {
            flow,
            id,
            opened: now,
            socket,
            stage,
            template: Template::new(network, &flow),
            una: first,
            next: first,
            max: first,
            to_guest: Ring::default(),
            window: 0,
            window_max: 0,
            guest_shift: 0,
            scaled: false,
            mss: usize::from(MSS_DEFAULT),
            host_done: false,
            fin_sent: false,
            fin_acked: false,
            rcv: Seq(0),
            edge: Seq(0),
            to_host: Ring::default(),
            parts: Vec::new(),
            early: VecDeque::new(),
            gaps: 0,
            fin_at: None,
            guest_done: false,
            host_shut: false,
            owed: Owed::default(),
            facts: None,
            look: false,
            readable: false,
            writable: false,
            hung_up: false,
            broken: false,
            queued: false,
            batched: false,
            deadline: now,
            timer: None,
            rto: RTO_FIRST,
            round_trip: None,
            sample: None,
            retries: 0,
            duplicates: 0,
            recover: None,
            bytes_up: 0,
            bytes_down: 0,
            over: None,
        }
    }

    /// Takes what the guest's SYN says.
    pub(super) fn meet(&mut self, network: &Network, syn: &Segment<'_>) {
        let offer = Offer::parse(syn.options);
        self.mss = mss(network, &self.flow, offer.mss.unwrap_or(MSS_DEFAULT));
        self.scaled = offer.shift.is_some();
        self.guest_shift = offer.shift.unwrap_or(0);
        self.window = usize::from(syn.window);
        self.window_max = self.window;
        self.rcv = syn.seq + 1;
        self.edge = self.rcv;
    }

    /// A segment of the guest. Its bytes lie at `place` in the receiver's buffer.
    pub(super) fn segment(
        &mut self,
        (network, transmitter, now): (&Network, &mut Transmitter, Instant),
        pool: &mut Pool,
        segment: &Segment<'_>,
        place: usize,
    ) {
        if segment.has(flag::RST) {
            return self.reset(segment);
        }
        match self.stage {
            Stage::Dialing => return,
            Stage::Calling => {
                if !segment.has(flag::SYN | flag::ACK) || segment.ack != self.max {
                    return;
                }
                self.meet(network, segment);
                self.owed.now();
            }
            Stage::Answered if segment.has(flag::SYN) => {
                return self.send_syn(network, transmitter);
            }
            _ if segment.has(flag::SYN) => {
                // Of a guest that has forgotten this connection: it will say so (RFC 9293, 3.10.7.4).
                return self.send_ack(transmitter);
            }
            _ => {}
        }
        if !segment.has(flag::ACK) {
            return;
        }
        if self.retries > 0 {
            self.retries = 0;
            self.arm(now);
        }
        self.acknowledged(segment, pool, transmitter, now);
        if self.stage == Stage::Open && !segment.has(flag::SYN) {
            self.receive(segment, place, pool, now);
        }
    }

    /// Only a reset within the window counts.
    fn reset(&mut self, segment: &Segment<'_>) {
        let counts = match self.stage {
            Stage::Dialing => true,
            Stage::Calling => segment.has(flag::ACK) && segment.ack == self.max,
            _ => segment.seq >= self.rcv && segment.seq <= self.edge,
        };
        if counts {
            self.over = Some(Over::GuestReset);
        }
    }

    fn acknowledged(
        &mut self,
        segment: &Segment<'_>,
        pool: &mut Pool,
        transmitter: &mut Transmitter,
        now: Instant,
    ) {
        let ack = segment.ack;
        if ack > self.max || ack < self.una {
            if ack > self.max {
                self.owed.now();
            }
            return;
        }
        let window = self.window;
        if !segment.has(flag::SYN) {
            self.window = usize::from(segment.window) << self.guest_shift;
            self.window_max = self.window_max.max(self.window);
        }
        if ack > self.una {
            self.advance(ack, pool, transmitter, now);
        } else if segment.length() == 0 && self.window == window && self.max > self.una {
            self.duplicates = self.duplicates.saturating_add(1);
            if self.duplicates == DUPLICATES && self.recover.is_none() {
                self.recover = Some(self.max);
                self.send_again(transmitter);
            }
        }
    }

    fn advance(&mut self, ack: Seq, pool: &mut Pool, transmitter: &mut Transmitter, now: Instant) {
        if matches!(self.stage, Stage::Answered | Stage::Calling) {
            self.stage = Stage::Open;
            self.una += 1;
        }
        let count = ack - self.una;
        let data = count.min(self.to_guest.len());
        self.to_guest.consume(data, pool);
        // Nothing but the end stands behind the bytes.
        self.fin_acked |= count > data;
        self.fin_sent |= self.fin_acked;
        self.una = ack;
        if self.next < ack {
            self.next = ack;
        }
        self.duplicates = 0;
        self.measure(ack, now);
        match self.recover {
            Some(end) if ack < end => self.send_again(transmitter),
            _ => self.recover = None,
        }
        self.arm(now);
        if self.guest_done && self.host_shut && self.fin_acked {
            self.over = Some(Over::Closed);
        }
    }

    /// One measurement at a time; none of what was sent twice (RFC 6298).
    fn measure(&mut self, ack: Seq, now: Instant) {
        let Some((end, sent)) = self.sample.filter(|(end, _)| ack >= *end) else {
            return;
        };
        debug_assert!(ack >= end);
        self.sample = None;
        let took = now.saturating_duration_since(sent);
        let (mean, spread) = match self.round_trip {
            None => (took, took / 2),
            Some((mean, spread)) => (
                (mean * 7 + took) / 8,
                (spread * 3 + mean.abs_diff(took)) / 4,
            ),
        };
        self.round_trip = Some((mean, spread));
        self.rto = (mean + spread * 4).clamp(RTO_MIN, RTO_MAX);
    }

    /// The bytes of a segment, and its end. What comes too early waits, but for the end, which the guest sends again.
    fn receive(&mut self, segment: &Segment<'_>, place: usize, pool: &mut Pool, now: Instant) {
        if segment.length() == 0 {
            // A question whether we are there stands before what comes next (RFC 9293, 3.8.4).
            if segment.seq < self.rcv {
                self.owed.now();
            }
            return;
        }
        // What is out of order is answered at once (RFC 5681, 4.2), and so is the end.
        if segment.seq != self.rcv || segment.has(flag::FIN) || self.guest_done {
            self.owed.now();
        } else {
            self.owed.bytes(now);
        }
        if self.guest_done {
            return;
        }
        if segment.seq > self.rcv {
            return self.keep_early(segment, pool);
        }
        let known = self.rcv - segment.seq;
        if known > segment.payload.len() {
            return;
        }
        let fresh = (segment.payload.len() - known).min(self.edge - self.rcv);
        if fresh > 0 {
            self.parts.push((place + known, fresh));
            self.rcv += fresh;
        }
        let whole = known + fresh == segment.payload.len();
        if !whole {
            self.owed.now();
        }
        if segment.has(flag::FIN) && whole && self.fin_at.is_none() {
            self.fin_at = Some(self.rcv);
        }
    }

    fn keep_early(&mut self, segment: &Segment<'_>, pool: &mut Pool) {
        self.gaps = self.gaps.saturating_add(1);
        let bytes = segment.payload;
        let is_known = self.early.iter().any(|(seq, _)| *seq == segment.seq);
        let fits = segment.seq + bytes.len() <= self.edge && self.early.len() < EARLY_SEGMENTS_MAX;
        if !bytes.is_empty() && !is_known && fits && pool.keep_early(bytes.len()) {
            self.early.push_back((segment.seq, bytes.into()));
        }
    }

    /// What came too early, and is next now: its bytes that are new.
    pub(super) fn next_early(&mut self, pool: &mut Pool) -> Option<Vec<u8>> {
        loop {
            let place = self.early.iter().position(|(seq, _)| *seq <= self.rcv)?;
            let (seq, bytes) = self.early.remove(place)?;
            pool.drop_early(bytes.len());
            let known = self.rcv - seq;
            if known < bytes.len() {
                return Some(bytes[known..].to_vec());
            }
        }
    }

    /// Nothing that came too early is of use any more.
    pub(super) fn drop_early(&mut self, pool: &mut Pool) {
        for (_, bytes) in self.early.drain(..) {
            pool.drop_early(bytes.len());
        }
    }

    /// Sets the deadline anew: for what the guest must answer, or for asking whether it is there.
    pub(super) fn arm(&mut self, now: Instant) {
        let wait = if self.stage != Stage::Open || self.max > self.una || self.is_stalled() {
            self.rto
        } else if self.guest_done {
            KEEPALIVE_HALF_CLOSED
        } else {
            KEEPALIVE
        };
        self.deadline = now + wait;
    }

    /// Bytes wait, nothing is under way, and the guest must tell before more can be sent.
    pub(super) fn is_stalled(&self) -> bool {
        self.una == self.max && !self.to_guest.is_empty()
    }
}

/// The largest segment: what the guest takes, and what goes through the wire.
fn mss(network: &Network, flow: &Flow, offered: u16) -> usize {
    let headers = if flow.guest.address.is_ipv4() { 40 } else { 60 };
    usize::from(offered.clamp(64, network.mtu - headers))
}
