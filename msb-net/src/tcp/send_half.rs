//! Send half of a connection: the bytes to the guest, their sequence numbers, the guest's window,
//! and the FIN (RFC 9293, 3.3.1). It plans segments and takes acknowledgements, and sends nothing
//! itself.

use super::ring_buffer::{RingBuffer, RingPool};
use super::segment::{Segment, SeqNumber, flag};
use super::state::SendState;
use crate::limits::RING_BYTES_MIN;

/// Maximum segment size of a peer that sends no MSS option (RFC 9293, 3.7.1).
pub(super) const MSS_DEFAULT: u16 = 536;
/// Number of duplicate acknowledgements that indicate a lost segment (RFC 5681, 3.2).
const DUP_ACK_THRESHOLD: u8 = 3;

/// The send half.
#[derive(Debug)]
pub(super) struct SendHalf {
    pub(super) state: SendState,
    /// SND.UNA: oldest unacknowledged sequence number.
    una: SeqNumber,
    /// SND.NXT: next sequence number to send.
    nxt: SeqNumber,
    /// Highest sequence number sent so far; above `nxt` after a retransmission timeout.
    max: SeqNumber,
    /// Bytes to the guest from `una` on, for transmission and retransmission.
    pub(super) buffer: RingBuffer,
    /// SND.WND: the window that the guest advertised.
    window: usize,
    /// Largest window that the guest has advertised.
    window_max: usize,
    /// Shift count of the guest's windows (window scaling, RFC 7323).
    window_shift: u8,
    /// Maximum segment size to the guest.
    mss: usize,
    /// Consecutive duplicate acknowledgements.
    dup_acks: u8,
    /// Fast recovery: highest sequence number sent when the loss was detected (RFC 6582).
    recover: Option<SeqNumber>,
}

/// Result of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckOutcome {
    /// Nothing new was acknowledged.
    Nothing,
    /// It acknowledges what was never sent, and must be answered.
    NeverSent,
    /// It is the duplicate that indicates a loss: the first segment must be retransmitted.
    Loss,
    /// New sequence numbers were acknowledged. `loss`: during fast recovery the next segment is
    /// lost as well, and must be retransmitted.
    Advanced { loss: bool },
}

impl SendHalf {
    pub(super) fn new(initial_seq: SeqNumber) -> SendHalf {
        SendHalf {
            state: SendState::Open,
            una: initial_seq,
            nxt: initial_seq,
            max: initial_seq,
            buffer: RingBuffer::default(),
            window: 0,
            window_max: 0,
            window_shift: 0,
            mss: usize::from(MSS_DEFAULT),
            dup_acks: 0,
            recover: None,
        }
    }

    /// Returns SND.UNA.
    pub(super) fn una(&self) -> SeqNumber {
        self.una
    }

    /// Returns SND.NXT.
    pub(super) fn nxt(&self) -> SeqNumber {
        self.nxt
    }

    /// Returns the highest sequence number sent so far.
    pub(super) fn max(&self) -> SeqNumber {
        self.max
    }

    /// Returns the maximum segment size.
    pub(super) fn mss(&self) -> usize {
        self.mss
    }

    /// Returns the guest's window.
    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// Takes the window and the options of the guest's SYN.
    pub(super) fn apply_syn(&mut self, window: u16, window_shift: u8, mss: usize) {
        self.mss = mss;
        self.window_shift = window_shift;
        self.window = usize::from(window);
        self.window_max = self.window;
    }

    /// Notes that our SYN was sent.
    pub(super) fn syn_sent(&mut self) {
        self.nxt = self.una + 1;
        self.max = self.nxt;
    }

    /// Returns whether sequence numbers are unacknowledged.
    pub(super) fn is_in_flight(&self) -> bool {
        self.max > self.una
    }

    /// Returns whether bytes wait, none are in flight, and the guest must open its zero window
    /// first.
    pub(super) fn is_window_blocked(&self) -> bool {
        self.una == self.max && !self.buffer.is_empty()
    }

    /// Returns whether bytes wait that the window allows to send.
    pub(super) fn has_sendable(&self) -> bool {
        self.nxt - self.una < self.buffer.len().min(self.window)
    }

    /// Takes the acknowledgement and the window of a segment. Three duplicate acknowledgements
    /// indicate a loss (RFC 5681, 3.2). `syn`: our SYN was not acknowledged yet.
    pub(super) fn handle_ack(
        &mut self,
        segment: &Segment<'_>,
        syn: bool,
        pool: &mut RingPool,
    ) -> AckOutcome {
        let ack = segment.ack;
        if ack > self.max {
            return AckOutcome::NeverSent;
        }
        if ack < self.una {
            return AckOutcome::Nothing;
        }
        let window = self.window;
        // The window of a SYN is never scaled and was taken with its options.
        if !segment.has(flag::SYN) {
            self.window = usize::from(segment.window) << self.window_shift;
            self.window_max = self.window_max.max(self.window);
        }
        if ack > self.una {
            self.advance_una(ack, syn, pool);
            let loss = self.recover.is_some_and(|end| ack < end);
            if !loss {
                self.recover = None;
            }
            return AckOutcome::Advanced { loss };
        }
        if segment.seq_len() == 0 && self.window == window && self.is_in_flight() {
            self.dup_acks = self.dup_acks.saturating_add(1);
            if self.dup_acks == DUP_ACK_THRESHOLD && self.recover.is_none() {
                self.recover = Some(self.max);
                return AckOutcome::Loss;
            }
        }
        AckOutcome::Nothing
    }

    /// Releases acknowledged bytes.
    fn advance_una(&mut self, ack: SeqNumber, syn: bool, pool: &mut RingPool) {
        self.una += usize::from(syn);
        let count = ack - self.una;
        let data = count.min(self.buffer.len());
        self.buffer.consume(data, pool);
        // Only the FIN follows the last byte.
        if count > data {
            self.state = self.state.acknowledge_fin();
        }
        self.una = ack;
        if self.nxt < ack {
            self.nxt = ack;
        }
        self.dup_acks = 0;
    }

    /// Declares all data in flight lost (go-back-N). The guest's acknowledgements skip what it has.
    pub(super) fn go_back(&mut self) {
        self.nxt = self.una;
        self.state = self.state.go_back();
        (self.recover, self.dup_acks) = (None, 0);
    }

    /// Returns the number of bytes of the first unacknowledged segment.
    pub(super) fn first_segment_len(&self) -> usize {
        self.mss.min(self.buffer.len()).min(self.max - self.una)
    }

    /// Plans the next segments: fills `sizes` and returns their number. `force`: also a small one,
    /// which fills the window.
    pub(super) fn plan_segments(&self, sizes: &mut [usize], force: bool) -> usize {
        let unsent = self.unsent();
        let usable = self.window.saturating_sub(self.nxt - self.una).min(unsent);
        let (mut count, mut left) = (0, usable);
        while count < sizes.len() && left > 0 {
            let size = self.mss.min(left);
            if size < self.mss
                && left < unsent - (usable - left)
                && !force
                && !self.passes_sws_avoidance(size)
            {
                break;
            }
            sizes[count] = size;
            count += 1;
            left -= size;
        }
        count
    }

    /// Returns the number of bytes that were not sent yet, or are to be sent again.
    pub(super) fn unsent(&self) -> usize {
        self.buffer.len().saturating_sub(self.nxt - self.una)
    }

    /// Returns whether a segment below the maximum segment size may be sent although more data
    /// waits (avoidance of the silly window syndrome, RFC 9293, 3.8.6.2.1): nothing is in flight,
    /// and it is at least half of the largest window seen.
    fn passes_sws_avoidance(&self, size: usize) -> bool {
        self.max == self.una && size >= self.window_max / 2
    }

    /// Returns whether the segment that ends at this offset carries the FIN: the host has ended its
    /// side, and the window has a sequence number left.
    pub(super) fn carries_fin(&self, end: usize) -> bool {
        self.state.is_at_end() && end == self.buffer.len() && end < self.window
    }

    /// Notes that segments up to an offset from SND.UNA were sent.
    pub(super) fn sent_up_to(&mut self, end: usize) {
        self.nxt = self.una + end;
        if self.carries_fin(end) {
            self.fin_sent();
        }
    }

    /// Returns whether a FIN alone is to be sent: all bytes of the host were sent, and the last
    /// segment could not carry it.
    pub(super) fn is_fin_due(&self) -> bool {
        self.state == SendState::Ending && self.nxt == self.una + self.buffer.len()
    }

    /// Notes that the FIN was sent.
    pub(super) fn fin_sent(&mut self) {
        self.state = self.state.send_fin();
        self.nxt += 1;
    }

    /// Takes SND.NXT as the highest number sent, if it is. Returns whether it is.
    pub(super) fn raise_max(&mut self) -> bool {
        let is_new = self.nxt > self.max;
        if is_new {
            self.max = self.nxt;
        }
        is_new
    }

    /// Returns how many bytes may be read from the host socket: the guest's window in whole
    /// segments, since more would only wait here instead of there. If nothing is in flight, a
    /// little may be read even for a zero window: it triggers a window probe in case the guest's
    /// window update was lost.
    pub(super) fn read_budget(&self) -> usize {
        let len = self.buffer.len();
        let wanted = self.window.saturating_sub(len);
        let whole_segments = wanted - wanted % self.mss;
        if len == 0 && whole_segments == 0 {
            return self.window.max(RING_BYTES_MIN);
        }
        whole_segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u32 = 1000;

    /// Returns an established half with these bytes in its buffer, and the pool.
    fn established(bytes: usize, window: u16) -> (SendHalf, RingPool) {
        let (mut send, mut pool) = (SendHalf::new(SeqNumber(START - 1)), RingPool::default());
        send.apply_syn(window, 0, 100);
        send.syn_sent();
        let ack = Segment { window, ..ack(START) };
        assert_eq!(send.handle_ack(&ack, true, &mut pool), AckOutcome::Advanced { loss: false });
        assert_eq!(send.buffer.push(&vec![7; bytes], &mut pool), bytes);
        (send, pool)
    }

    fn ack(number: u32) -> Segment<'static> {
        Segment {
            source: 1,
            destination: 2,
            seq: SeqNumber(0),
            ack: SeqNumber(number),
            flags: flag::ACK,
            window: 0,
            options: &[],
            payload: &[],
        }
    }

    fn plan(send: &SendHalf, force: bool) -> Vec<usize> {
        let mut sizes = [0; 16];
        let count = send.plan_segments(&mut sizes, force);
        sizes[..count].to_vec()
    }

    /// Sends all that is planned.
    fn send_all(send: &mut SendHalf) {
        let end = (send.nxt - send.una) + plan(send, false).iter().sum::<usize>();
        send.sent_up_to(end);
        send.raise_max();
    }

    #[test]
    fn segments_fill_the_window_and_no_more() {
        let (mut send, mut pool) = established(450, 250);
        // The last 50 bytes of the window would be a small segment while more data waits.
        assert_eq!(plan(&send, false), [100, 100]);
        assert_eq!(plan(&send, true), [100, 100, 50]);
        send_all(&mut send);
        assert!(send.is_in_flight() && send.has_sendable());
        let segment = Segment { window: 1000, ..ack(START + 200) };
        send.handle_ack(&segment, false, &mut pool);
        // The end of the data is sent whatever its size.
        assert_eq!((send.buffer.len(), plan(&send, false)), (250, vec![100, 100, 50]));
    }

    #[test]
    fn a_small_window_is_filled_when_nothing_is_in_flight() {
        let (send, _) = established(450, 60);
        assert_eq!(plan(&send, false), [60]);
        let (send, _) = established(450, 0);
        assert!(plan(&send, true).is_empty() && send.is_window_blocked());
    }

    #[test]
    fn acknowledgements_of_nothing_new_and_of_the_future_release_nothing() {
        let (mut send, mut pool) = established(300, 1000);
        send_all(&mut send);
        for (number, outcome) in [
            (START - 1, AckOutcome::Nothing),
            (START + 301, AckOutcome::NeverSent),
            (START + 300, AckOutcome::Advanced { loss: false }),
        ] {
            assert_eq!(send.handle_ack(&ack(number), false, &mut pool), outcome, "{number}");
        }
        assert!(send.buffer.is_empty() && !send.is_in_flight());
    }

    #[test]
    fn three_duplicates_indicate_one_loss_until_it_is_recovered() {
        let (mut send, mut pool) = established(500, 1000);
        send_all(&mut send);
        let repeated = Segment { window: 1000, ..ack(START) };
        let outcomes: Vec<AckOutcome> =
            (0..6).map(|_| send.handle_ack(&repeated, false, &mut pool)).collect();
        assert_eq!(outcomes.iter().filter(|outcome| **outcome == AckOutcome::Loss).count(), 1);
        assert_eq!(outcomes[2], AckOutcome::Loss);
        assert_eq!(send.first_segment_len(), 100);
        // A partial acknowledgement shows the next loss (RFC 6582), the last one ends the recovery.
        for (number, loss) in [(START + 100, true), (START + 500, false)] {
            let outcome = send.handle_ack(&ack(number), false, &mut pool);
            assert_eq!(outcome, AckOutcome::Advanced { loss });
        }
    }

    #[test]
    fn data_and_window_changes_are_no_duplicates() {
        let (mut send, mut pool) = established(500, 1000);
        send_all(&mut send);
        for round in 0..5 {
            let other = Segment { window: 900 + round, ..ack(START) };
            assert_eq!(send.handle_ack(&other, false, &mut pool), AckOutcome::Nothing);
            let data = Segment { payload: b"x", window: 900 + round, ..ack(START) };
            assert_eq!(send.handle_ack(&data, false, &mut pool), AckOutcome::Nothing);
        }
    }

    #[test]
    fn the_fin_goes_with_the_last_bytes_or_alone_and_is_acknowledged() {
        // The window decides whether the FIN fits behind the bytes.
        for (window, alone) in [(1000, false), (100, true)] {
            let (mut send, mut pool) = established(100, window);
            send.state = send.state.end();
            assert_eq!(send.carries_fin(100), !alone);
            send_all(&mut send);
            assert_eq!(send.is_fin_due(), alone);
            if alone {
                send.fin_sent();
                send.raise_max();
            }
            assert_eq!((send.state, send.nxt.0), (SendState::FinSent, START + 101));
            send.handle_ack(&ack(START + 100), false, &mut pool);
            assert_eq!(send.state, SendState::FinSent);
            send.handle_ack(&ack(START + 101), false, &mut pool);
            assert_eq!(send.state, SendState::FinAcked);
        }
    }

    #[test]
    fn after_a_timeout_all_data_and_the_fin_are_sent_again() {
        let (mut send, mut pool) = established(300, 1000);
        send.state = send.state.end();
        send_all(&mut send);
        send.go_back();
        assert_eq!((send.nxt, send.state), (send.una, SendState::Ending));
        assert_eq!(plan(&send, true), [100, 100, 100]);
        // The guest had all of it: its acknowledgement skips what is to be sent again.
        let outcome = send.handle_ack(&ack(START + 301), false, &mut pool);
        assert_eq!(outcome, AckOutcome::Advanced { loss: false });
        assert_eq!((send.state, send.nxt.0), (SendState::FinAcked, START + 301));
        assert!(!send.raise_max() && !send.is_in_flight());
    }

    #[test]
    fn the_read_budget_is_the_free_window_in_whole_segments() {
        for (buffered, window, budget) in
            [(0, 1050, 1000), (300, 1050, 700), (1000, 1050, 0), (0, 50, 4096), (0, 0, 4096)]
        {
            let (send, _) = established(buffered, window);
            assert_eq!(send.read_budget(), budget, "{buffered} of {window}");
        }
    }
}
