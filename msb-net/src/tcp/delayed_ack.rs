//! Delayed acknowledgements (delayed ACKs).
//!
//! Data is acknowledged at once, except in a request-response exchange: when the guest sends a
//! request, gets a response soon, and only then sends the next request, the acknowledgement goes
//! out with the response. That saves one frame and one interrupt in the guest. RFC 1122 (4.2.3.2)
//! permits a delay of half a second for at most one segment. Here the delay is a fiftieth of that,
//! and is used only if the last delays paid off. A guest that waits for an acknowledgement before
//! it sends the rest of its request (Nagle's algorithm) sends two segments without a response
//! between them, and so gets immediate acknowledgements.

use std::time::{Duration, Instant};

/// Longest delay of an acknowledgement; a response within this time counts as prompt.
const ACK_DELAY: Duration = Duration::from_millis(10);
/// Number of consecutive prompt responses after which acknowledgements are delayed.
const PROMPT_RESPONSES: u8 = 3;

/// Urgency of the pending acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum AckDue {
    #[default]
    Nothing,
    /// With the next bytes to the guest, or when the delay expires.
    Delayed,
    Now,
}

/// The pending acknowledgement of one connection.
#[derive(Debug, Default)]
pub(super) struct DelayedAck {
    due: AckDue,
    /// Time of the last request without a response.
    request_at: Option<Instant>,
    /// Time of the first bytes of the last response.
    response_at: Option<Instant>,
    /// Number of consecutive prompt responses.
    prompt_responses: u8,
}

impl DelayedAck {
    /// Requires an immediate acknowledgement.
    pub(super) fn require_now(&mut self) {
        self.due = AckDue::Now;
    }

    /// Notes bytes that arrived in order.
    pub(super) fn data_received(&mut self, now: Instant) {
        if self.request_at.replace(now).is_some() {
            self.prompt_responses = 0;
        }
        self.due = if self.prompt_responses == PROMPT_RESPONSES && self.due == AckDue::Nothing {
            AckDue::Delayed
        } else {
            AckDue::Now
        };
    }

    /// Notes that an acknowledgement without data was sent.
    pub(super) fn ack_sent(&mut self) {
        self.due = AckDue::Nothing;
    }

    /// Notes that data was sent, which acknowledges and may be a response.
    pub(super) fn data_sent(&mut self, now: Instant) {
        self.due = AckDue::Nothing;
        if let Some(request_at) = self.request_at.take() {
            self.response_at = Some(now);
            let prompt = now.saturating_duration_since(request_at) < ACK_DELAY;
            self.prompt_responses =
                if prompt { PROMPT_RESPONSES.min(self.prompt_responses + 1) } else { 0 };
        }
    }

    /// Returns whether an acknowledgement must be sent now.
    pub(super) fn is_due(&self) -> bool {
        self.due == AckDue::Now
    }

    /// Returns the time by which a delayed acknowledgement must be sent.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let request_at = self.request_at.filter(|_| self.due == AckDue::Delayed)?;
        Some(request_at + ACK_DELAY)
    }

    /// Returns whether a request waits for its response, or was answered just now, after other
    /// prompt responses.
    pub(super) fn is_interactive(&self, now: Instant) -> bool {
        self.prompt_responses == PROMPT_RESPONSES
            && (self.due == AckDue::Delayed || self.response_at == Some(now))
    }

    /// Handles an expired delay: acknowledges now, and does not delay the next ones.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.due = AckDue::Now;
            self.prompt_responses = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: Duration = Duration::from_millis(1);

    /// Returns a state after a number of responses, each after the given delay, and the current
    /// time.
    fn answered(times: u8, after: Duration) -> (DelayedAck, Instant) {
        let (mut ack, mut now) = (DelayedAck::default(), Instant::now());
        for _ in 0..times {
            ack.data_received(now);
            assert!(ack.is_due());
            ack.ack_sent();
            now += after;
            ack.data_sent(now);
        }
        (ack, now)
    }

    #[test]
    fn acks_are_delayed_after_three_prompt_responses() {
        let (mut ack, now) = answered(PROMPT_RESPONSES, PROMPT);
        ack.data_received(now);
        assert_eq!((ack.is_due(), ack.deadline()), (false, Some(now + ACK_DELAY)));
        assert!(ack.is_interactive(now));
        ack.data_sent(now + PROMPT);
        assert_eq!((ack.is_due(), ack.deadline()), (false, None));
        assert!(ack.is_interactive(now + PROMPT));
        // The rest of a long response does not count.
        ack.data_sent(now + 2 * PROMPT);
        assert!(!ack.is_interactive(now + 2 * PROMPT));
    }

    #[test]
    fn acks_are_not_delayed_after_slow_responses() {
        let (mut ack, now) = answered(2 * PROMPT_RESPONSES, ACK_DELAY);
        ack.data_received(now);
        assert!(ack.is_due());
    }

    #[test]
    fn two_segments_without_a_response_are_acknowledged_at_once() {
        let (mut ack, now) = answered(PROMPT_RESPONSES, PROMPT);
        ack.data_received(now);
        ack.data_received(now);
        assert!(ack.is_due());
        ack.data_sent(now);
        ack.data_received(now);
        assert!(ack.is_due());
    }

    #[test]
    fn an_expired_delay_acknowledges_now_and_ends_delaying() {
        let (mut ack, now) = answered(PROMPT_RESPONSES, PROMPT);
        ack.data_received(now);
        ack.expire(now + PROMPT);
        assert!(!ack.is_due());
        ack.expire(now + ACK_DELAY);
        assert!(ack.is_due());
        ack.ack_sent();
        ack.data_sent(now + ACK_DELAY);
        ack.data_received(now + ACK_DELAY);
        assert!(ack.is_due());
    }

    #[test]
    fn a_required_ack_is_not_delayed() {
        let (mut ack, now) = answered(PROMPT_RESPONSES, PROMPT);
        ack.require_now();
        ack.data_received(now);
        assert!(ack.is_due());
        ack.ack_sent();
        assert!(!ack.is_due());
    }
}
