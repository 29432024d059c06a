//! Receive half of a connection: the bytes from the guest, their sequence numbers, the window that
//! is advertised, and the guest's FIN (RFC 9293, 3.3.1). It accepts segments and does no I/O.

use std::collections::VecDeque;

use std::time::Instant;

use super::delayed_ack::DelayedAck;
use super::ring_buffer::{RingBuffer, RingPool};
use super::segment::{Segment, SeqNumber, flag};
use super::state::ReceiveState;
use crate::limits::{OUT_OF_ORDER_SEGMENTS_MAX, RING_BYTES_MAX};

/// Window scale factor of the windows that we advertise (RFC 7323): 64 KiB × 128 is more than a
/// ring holds.
pub(super) const WINDOW_SHIFT: u8 = 7;
/// Capacity of the span list that a connection keeps between turns.
const SPANS_KEPT: usize = 32;

/// Bytes of one segment in this turn: their offset, which counts on from the receive buffer into
/// the reassembled payload, and their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: usize,
    pub(super) len: usize,
}

/// The receive half.
#[derive(Debug)]
pub(super) struct ReceiveHalf {
    pub(super) state: ReceiveState,
    /// RCV.NXT: next sequence number expected from the guest.
    nxt: SeqNumber,
    /// Right edge of the window that was advertised to the guest.
    adv: SeqNumber,
    /// Shift count of the advertised windows; 0 if the guest does not scale windows.
    window_shift: u8,
    /// Bytes that the host's socket has not accepted yet.
    pub(super) buffer: RingBuffer,
    /// Spans of this turn's bytes.
    spans: Vec<Span>,
    /// Segments that arrived out of order, before the ones they follow.
    out_of_order: VecDeque<(SeqNumber, Box<[u8]>)>,
    /// Number of out of order segments in this turn. Each needs a duplicate acknowledgement: three
    /// tell the guest of a loss.
    pending_dup_acks: u8,
    pub(super) delayed_ack: DelayedAck,
}

impl ReceiveHalf {
    pub(super) fn new() -> ReceiveHalf {
        ReceiveHalf {
            state: ReceiveState::Open,
            nxt: SeqNumber(0),
            adv: SeqNumber(0),
            window_shift: 0,
            buffer: RingBuffer::default(),
            spans: Vec::new(),
            out_of_order: VecDeque::new(),
            pending_dup_acks: 0,
            delayed_ack: DelayedAck::default(),
        }
    }

    /// Returns RCV.NXT.
    pub(super) fn nxt(&self) -> SeqNumber {
        self.nxt
    }

    /// Returns whether windows are scaled.
    pub(super) fn scales_windows(&self) -> bool {
        self.window_shift > 0
    }

    /// Takes the sequence number of the guest's SYN. `scaling`: it offers window scaling.
    pub(super) fn apply_syn(&mut self, seq: SeqNumber, scaling: bool) {
        self.window_shift = if scaling { WINDOW_SHIFT } else { 0 };
        self.nxt = seq + 1;
        self.adv = self.nxt;
    }

    /// Returns the window to advertise, and records it. An advertised window is never reduced.
    pub(super) fn advertise_window(&mut self) -> u16 {
        let adv = self.nxt + self.buffer.free_max();
        if adv > self.adv {
            self.adv = adv;
        }
        let window = (self.adv - self.nxt).div_ceil(1 << self.window_shift).min(0xffff);
        let advertised = self.nxt + (window << self.window_shift);
        if advertised < self.adv || window < 0xffff {
            self.adv = advertised;
        }
        window as u16
    }

    /// Returns the window of our SYN, which is never scaled (RFC 7323, 2.2), and records it.
    pub(super) fn advertise_syn_window(&mut self) -> u16 {
        let window = RING_BYTES_MAX.min(0xffff);
        self.adv = self.nxt + window;
        window as u16
    }

    /// Returns whether the window has grown by much since the last advertisement.
    pub(super) fn has_window_opened(&self, mss: usize) -> bool {
        let room = self.buffer.free_max().min(0xffff << self.window_shift);
        let offered = self.adv - self.nxt;
        room >= offered + RING_BYTES_MAX / 4 || (offered < mss && room >= 2 * mss)
    }

    /// Returns whether a sequence number lies within the window.
    pub(super) fn is_in_window(&self, seq: SeqNumber) -> bool {
        seq >= self.nxt && seq <= self.adv
    }

    /// Accepts the payload and the FIN of a segment, whose payload is at `offset`. Payload that is
    /// out of order is kept; an early FIN is not, since the guest retransmits it.
    pub(super) fn accept(
        &mut self,
        segment: &Segment<'_>,
        offset: usize,
        pool: &mut RingPool,
        now: Instant,
    ) {
        if segment.seq_len() == 0 {
            // A keepalive probe has a sequence number before the next one (RFC 9293, 3.8.4).
            if segment.seq < self.nxt {
                self.delayed_ack.require_now();
            }
            return;
        }
        // Segments out of order are acknowledged at once (RFC 5681, 4.2), and so is a FIN.
        if segment.seq != self.nxt || segment.has(flag::FIN) || self.state.is_at_end() {
            self.delayed_ack.require_now();
        } else {
            self.delayed_ack.data_received(now);
        }
        if self.state.is_at_end() {
            return;
        }
        if segment.seq > self.nxt {
            return self.keep_out_of_order(segment, pool);
        }
        let skip = self.nxt - segment.seq;
        if skip > segment.payload.len() {
            return;
        }
        let len = (segment.payload.len() - skip).min(self.adv - self.nxt);
        if len > 0 {
            self.spans.push(Span { offset: offset + skip, len });
            self.nxt += len;
        }
        let is_whole = skip + len == segment.payload.len();
        if !is_whole {
            self.delayed_ack.require_now();
        }
        if segment.has(flag::FIN) && is_whole {
            self.state = self.state.announce_fin(self.nxt);
        }
    }

    /// Keeps a segment that is out of order, if the limits allow it.
    fn keep_out_of_order(&mut self, segment: &Segment<'_>, pool: &mut RingPool) {
        self.pending_dup_acks = self.pending_dup_acks.saturating_add(1);
        let bytes = segment.payload;
        let is_known = self.out_of_order.iter().any(|(seq, _)| *seq == segment.seq);
        let fits = segment.seq + bytes.len() <= self.adv
            && self.out_of_order.len() < OUT_OF_ORDER_SEGMENTS_MAX;
        if !bytes.is_empty() && !is_known && fits && pool.reserve_out_of_order(bytes.len()) {
            self.out_of_order.push_back((segment.seq, bytes.into()));
        }
    }

    /// Takes the spans of this turn. They are returned with [`ReceiveHalf::finish_batch`].
    pub(super) fn take_spans(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.spans)
    }

    /// Notes that `refused` bytes at the end of the spans did not fit: they are not acknowledged,
    /// and the guest retransmits them.
    pub(super) fn finish_batch(&mut self, mut spans: Vec<Span>, refused: usize) {
        spans.clear();
        spans.shrink_to(SPANS_KEPT);
        self.spans = spans;
        if refused > 0 {
            self.delayed_ack.require_now();
            self.nxt = SeqNumber(self.nxt.0.wrapping_sub(refused as u32));
            self.state = self.state.refuse_fin();
        }
    }

    /// Notes that bytes of kept segments were delivered.
    pub(super) fn advance(&mut self, count: usize) {
        self.nxt += count;
    }

    /// Takes the guest's FIN, once all bytes before it are received.
    pub(super) fn take_fin(&mut self) {
        let before = self.state;
        self.state = self.state.receive_up_to(self.nxt);
        if self.state != before {
            // The FIN has a sequence number of its own.
            self.nxt += 1;
            self.adv += 1;
        }
    }

    /// Returns the new bytes of a kept segment that is now next in order.
    pub(super) fn next_in_order(&mut self, pool: &mut RingPool) -> Option<Vec<u8>> {
        loop {
            let index = self.out_of_order.iter().position(|(seq, _)| *seq <= self.nxt)?;
            let (seq, bytes) = self.out_of_order.remove(index)?;
            pool.release_out_of_order(bytes.len());
            let skip = self.nxt - seq;
            if skip < bytes.len() {
                return Some(bytes[skip..].to_vec());
            }
        }
    }

    /// Takes the number of duplicate acknowledgements to send.
    pub(super) fn take_dup_acks(&mut self) -> u8 {
        std::mem::take(&mut self.pending_dup_acks)
    }

    /// Returns all memory to the pool.
    pub(super) fn release(&mut self, pool: &mut RingPool) {
        self.buffer.release(pool);
        for (_, bytes) in self.out_of_order.drain(..) {
            pool.release_out_of_order(bytes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u32 = 1000;

    /// Returns a half after the guest's SYN, with a window advertised, and the pool.
    fn opened() -> (ReceiveHalf, RingPool) {
        let mut receive = ReceiveHalf::new();
        receive.apply_syn(SeqNumber(START - 1), true);
        receive.advertise_window();
        (receive, RingPool::default())
    }

    fn segment(seq: u32, flags: u8, payload: &[u8]) -> Segment<'_> {
        Segment {
            source: 1,
            destination: 2,
            seq: SeqNumber(seq),
            ack: SeqNumber(0),
            flags: flag::ACK | flags,
            window: 0,
            options: &[],
            payload,
        }
    }

    fn accept(receive: &mut ReceiveHalf, pool: &mut RingPool, segment: &Segment<'_>) {
        receive.accept(segment, 0, pool, Instant::now());
    }

    fn spans(receive: &mut ReceiveHalf) -> Vec<(usize, usize)> {
        receive.take_spans().iter().map(|span| (span.offset, span.len)).collect()
    }

    #[test]
    fn bytes_in_order_become_spans_without_what_was_received_before() {
        let (mut receive, mut pool) = opened();
        let now = Instant::now();
        receive.accept(&segment(START, 0, &[1; 100]), 500, &mut pool, now);
        receive.accept(&segment(START + 60, 0, &[1; 100]), 700, &mut pool, now);
        receive.accept(&segment(START + 20, 0, &[1; 50]), 900, &mut pool, now);
        assert_eq!(receive.nxt().0, START + 160);
        assert_eq!(spans(&mut receive), [(500, 100), (740, 60)]);
    }

    #[test]
    fn bytes_beyond_the_window_are_not_accepted() {
        let (mut receive, mut pool) = opened();
        let room = receive.adv - receive.nxt;
        let bytes = vec![1; room + 10];
        accept(&mut receive, &mut pool, &segment(START, flag::FIN, &bytes));
        assert_eq!(spans(&mut receive), [(0, room)]);
        // Without its last bytes the segment's FIN does not count.
        assert_eq!(receive.state, ReceiveState::Open);
        assert!(receive.delayed_ack.is_due());
    }

    #[test]
    fn segments_out_of_order_are_returned_in_order_once_the_gap_is_filled() {
        let (mut receive, mut pool) = opened();
        for number in [2, 1, 2] {
            let bytes = [number as u8; 10];
            accept(&mut receive, &mut pool, &segment(START + 10 * number, 0, &bytes));
        }
        assert_eq!(receive.next_in_order(&mut pool), None);
        assert_eq!((receive.take_dup_acks(), receive.take_dup_acks()), (3, 0));
        // The segment that fills the gap overlaps the next one.
        accept(&mut receive, &mut pool, &segment(START, 0, &[0; 15]));
        for (number, len) in [(1, 5), (2, 10)] {
            assert_eq!(receive.next_in_order(&mut pool), Some(vec![number; len]));
            receive.advance(len);
        }
        assert_eq!((receive.next_in_order(&mut pool), receive.nxt().0), (None, START + 30));
    }

    #[test]
    fn a_refused_end_of_a_batch_is_expected_again() {
        let (mut receive, mut pool) = opened();
        accept(&mut receive, &mut pool, &segment(START, flag::FIN, &[1; 100]));
        assert_eq!(receive.state, ReceiveState::Ending(SeqNumber(START + 100)));
        let spans = receive.take_spans();
        receive.finish_batch(spans, 30);
        receive.take_fin();
        assert_eq!((receive.nxt().0, receive.state), (START + 70, ReceiveState::Open));
        accept(&mut receive, &mut pool, &segment(START + 70, flag::FIN, &[1; 30]));
        let spans = receive.take_spans();
        receive.finish_batch(spans, 0);
        receive.take_fin();
        assert_eq!((receive.nxt().0, receive.state), (START + 101, ReceiveState::FinReceived));
        // Nothing follows a FIN.
        accept(&mut receive, &mut pool, &segment(START + 101, 0, &[1; 30]));
        assert_eq!((receive.nxt().0, receive.take_spans()), (START + 101, Vec::new()));
    }

    #[test]
    fn an_advertised_window_is_never_reduced() {
        let (mut receive, mut pool) = opened();
        let edge = receive.adv;
        receive.buffer.push(&vec![1; 300_000], &mut pool);
        receive.advertise_window();
        assert_eq!(receive.adv, edge);
        receive.advance(300_000);
        // Scaled windows are rounded up.
        assert!(receive.advertise_window() < 8192);
        assert!(receive.adv >= edge && receive.adv < edge + (1 << WINDOW_SHIFT));
        assert!(!receive.has_window_opened(1460));
        receive.buffer.consume(300_000, &mut pool);
        assert!(receive.has_window_opened(1460));
        receive.advertise_window();
        assert!(receive.adv >= edge + 300_000);
    }

    #[test]
    fn windows_without_scaling_stay_within_sixteen_bits() {
        let mut receive = ReceiveHalf::new();
        receive.apply_syn(SeqNumber(START - 1), false);
        assert_eq!(receive.advertise_syn_window(), 0xffff);
        assert_eq!((receive.advertise_window(), receive.scales_windows()), (0xffff, false));
        assert!(receive.is_in_window(SeqNumber(START)));
        assert!(!receive.is_in_window(SeqNumber(START - 1)));
    }
}
