//! Timers of a connection: retransmission timeout, round-trip time, and the deadline of the next
//! retransmission or probe (RFC 6298).

use std::time::{Duration, Instant};

use super::segment::SeqNumber;

/// Initial retransmission timeout (RFC 6298 uses 1 s; the guest is near).
const RTO_FIRST: Duration = Duration::from_millis(400);
/// Lower bound of the retransmission timeout: a busy guest answers late.
const RTO_MIN: Duration = Duration::from_millis(200);
pub(super) const RTO_MAX: Duration = Duration::from_secs(60);

/// The timers of a connection.
#[derive(Debug)]
pub(super) struct Timers {
    /// Time of the next retransmission or probe.
    pub(super) deadline: Instant,
    /// Time of the entry in the timer queue.
    pub(super) queue_entry: Option<Instant>,
    /// Retransmission timeout.
    rto: Duration,
    /// Smoothed round-trip time and its variation (SRTT and RTTVAR).
    rtt: Option<(Duration, Duration)>,
    /// Round-trip measurement under way: the sequence number to be acknowledged, and the send time.
    sample: Option<(SeqNumber, Instant)>,
    /// Consecutive retransmissions or probes without an acknowledgement.
    pub(super) retransmissions: u32,
}

impl Timers {
    pub(super) fn new(now: Instant) -> Timers {
        Timers {
            deadline: now,
            queue_entry: None,
            rto: RTO_FIRST,
            rtt: None,
            sample: None,
            retransmissions: 0,
        }
    }

    /// Sets the deadline to the retransmission timeout.
    pub(super) fn arm_retransmission(&mut self, now: Instant) {
        self.deadline = now + self.rto;
    }

    /// Sets the deadline to the retransmission timeout, unless it is earlier.
    pub(super) fn arm_retransmission_by(&mut self, now: Instant) {
        self.deadline = self.deadline.min(now + self.rto);
    }

    /// Doubles the retransmission timeout (RFC 6298, 5.5).
    pub(super) fn back_off(&mut self) {
        self.rto = (self.rto * 2).min(RTO_MAX);
    }

    /// Starts a round-trip measurement, if none is under way.
    pub(super) fn start_sample(&mut self, end: SeqNumber, now: Instant) {
        self.sample.get_or_insert((end, now));
    }

    /// Discards the measurement under way: after a retransmission an acknowledgement is ambiguous
    /// (Karn's algorithm).
    pub(super) fn discard_sample(&mut self) {
        self.sample = None;
    }

    /// Updates the round-trip time and the retransmission timeout with an acknowledgement. One
    /// sample is taken at a time, never from a retransmission.
    pub(super) fn acknowledge(&mut self, ack: SeqNumber, now: Instant) {
        let Some((_, sent)) = self.sample.take_if(|(end, _)| ack >= *end) else {
            return;
        };
        let sample = now.saturating_duration_since(sent);
        let (srtt, rttvar) = match self.rtt {
            None => (sample, sample / 2),
            Some((srtt, rttvar)) => {
                ((srtt * 7 + sample) / 8, (rttvar * 3 + srtt.abs_diff(sample)) / 4)
            }
        };
        self.rtt = Some((srtt, rttvar));
        self.rto = (srtt + rttvar * 4).clamp(RTO_MIN, RTO_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_timeout_follows_the_round_trip_time_and_doubles_without_an_answer() {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        assert_eq!(timers.rto, RTO_FIRST);
        timers.start_sample(SeqNumber(10), start);
        // A second measurement does not replace the one under way.
        timers.start_sample(SeqNumber(20), start + 500 * MS);
        timers.acknowledge(SeqNumber(9), start + 100 * MS);
        assert_eq!(timers.rto, RTO_FIRST);
        timers.acknowledge(SeqNumber(10), start + 100 * MS);
        // RFC 6298, 2.2: SRTT is R, RTTVAR is R/2, and RTO is SRTT + 4 × RTTVAR.
        assert_eq!(timers.rto, 300 * MS);
        timers.start_sample(SeqNumber(30), start);
        timers.acknowledge(SeqNumber(40), start + 100 * MS);
        // RFC 6298, 2.3: SRTT stays, RTTVAR shrinks by a quarter.
        assert_eq!(timers.rto, 250 * MS);
        for _ in 0..20 {
            timers.back_off();
        }
        assert_eq!(timers.rto, RTO_MAX);
        for number in 0..10 {
            timers.start_sample(SeqNumber(50 + number), start);
            timers.acknowledge(SeqNumber(50 + number), start + 100 * MS);
        }
        assert_eq!(timers.rto, RTO_MIN);
    }

    #[test]
    fn a_discarded_measurement_changes_nothing() {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        timers.start_sample(SeqNumber(10), start);
        timers.discard_sample();
        timers.acknowledge(SeqNumber(10), start + 9000 * MS);
        assert_eq!((timers.rto, timers.rtt), (RTO_FIRST, None));
    }

    #[test]
    fn a_deadline_is_moved_forward_only_by_a_new_timeout() {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        timers.arm_retransmission(start);
        assert_eq!(timers.deadline, start + RTO_FIRST);
        timers.arm_retransmission_by(start + 100 * MS);
        assert_eq!(timers.deadline, start + RTO_FIRST);
        timers.deadline = start + RTO_MAX;
        timers.arm_retransmission_by(start);
        assert_eq!(timers.deadline, start + RTO_FIRST);
    }
}
