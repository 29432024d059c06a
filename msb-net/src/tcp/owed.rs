//! When the guest is told that its bytes have come.
//!
//! At once, but in a conversation: a guest that asks, gets an answer soon, and only then asks again, hears of its bytes with
//! the answer. That is one frame to the guest in place of two, and one interrupt. RFC 1122 (4.2.3.2) lets an acknowledgement
//! wait for half a second, and for one segment only. Here it waits for a fiftieth of that, and only when waiting paid off
//! the last times: a guest that waits for an acknowledgement to send the rest of its question (Nagle's algorithm) says two
//! things without an answer between, and so is always told at once.

use std::time::{Duration, Instant};

/// Time in which an answer counts as soon, and that an acknowledgement waits for one.
const WAIT: Duration = Duration::from_millis(10);
/// Answers that came soon, one after the other, after which the next is waited for.
const ANSWERS: u8 = 3;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Due {
    #[default]
    Nothing,
    /// With the next bytes to the guest, or when the time is over.
    Soon,
    Now,
}

/// The acknowledgement that one guest is owed.
#[derive(Debug, Default)]
pub(super) struct Owed {
    due: Due,
    /// When the guest said what was not answered yet.
    asked: Option<Instant>,
    /// When it got the first bytes of the last answer.
    answered: Option<Instant>,
    /// Answers that came soon, without one that did not.
    answers: u8,
}

impl Owed {
    /// It must be told.
    pub(super) fn now(&mut self) {
        self.due = Due::Now;
    }

    /// Bytes have come, in order.
    pub(super) fn bytes(&mut self, now: Instant) {
        if self.asked.replace(now).is_some() {
            self.answers = 0;
        }
        self.due = if self.answers == ANSWERS && self.due == Due::Nothing {
            Due::Soon
        } else {
            Due::Now
        };
    }

    /// It is told, without bytes.
    pub(super) fn told(&mut self) {
        self.due = Due::Nothing;
    }

    /// It is told with bytes, which may be an answer.
    pub(super) fn answered(&mut self, now: Instant) {
        self.due = Due::Nothing;
        if let Some(asked) = self.asked.take() {
            self.answered = Some(now);
            let soon = now.saturating_duration_since(asked) < WAIT;
            self.answers = if soon {
                ANSWERS.min(self.answers + 1)
            } else {
                0
            };
        }
    }

    /// Whether it is to be told now.
    pub(super) fn is_due(&self) -> bool {
        self.due == Due::Now
    }

    /// When it is to be told at the latest, if that can wait.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let asked = self.asked.filter(|_| self.due == Due::Soon)?;
        Some(asked + WAIT)
    }

    /// Whether a question waits for its answer, or was answered just now, as those before.
    pub(super) fn converses(&self, now: Instant) -> bool {
        self.answers == ANSWERS && (self.due == Due::Soon || self.answered == Some(now))
    }

    /// No answer came: it is told, and the next times at once.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.due = Due::Now;
            self.answers = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    /// A guest that was answered so often, each time after so long; and the time.
    fn answered(times: u8, after: Duration) -> (Owed, Instant) {
        let (mut owed, mut now) = (Owed::default(), Instant::now());
        for _ in 0..times {
            owed.bytes(now);
            assert!(owed.is_due());
            owed.told();
            now += after;
            owed.answered(now);
        }
        (owed, now)
    }

    #[test]
    fn after_three_answers_that_came_soon_the_next_is_waited_for() {
        let (mut owed, now) = answered(ANSWERS, SOON);
        owed.bytes(now);
        assert_eq!((owed.is_due(), owed.deadline()), (false, Some(now + WAIT)));
        assert!(owed.converses(now));
        owed.answered(now + SOON);
        assert_eq!((owed.is_due(), owed.deadline()), (false, None));
        assert!(owed.converses(now + SOON));
        // The rest of a long answer is no part of a conversation.
        owed.answered(now + 2 * SOON);
        assert!(!owed.converses(now + 2 * SOON));
    }

    #[test]
    fn answers_that_take_long_are_not_waited_for() {
        let (mut owed, now) = answered(2 * ANSWERS, WAIT);
        owed.bytes(now);
        assert!(owed.is_due());
    }

    #[test]
    fn who_says_two_things_is_told_at_once_and_so_from_then_on() {
        let (mut owed, now) = answered(ANSWERS, SOON);
        owed.bytes(now);
        owed.bytes(now);
        assert!(owed.is_due());
        owed.answered(now);
        owed.bytes(now);
        assert!(owed.is_due());
    }

    #[test]
    fn without_an_answer_the_guest_is_told_when_the_time_is_over_and_then_at_once() {
        let (mut owed, now) = answered(ANSWERS, SOON);
        owed.bytes(now);
        owed.expire(now + SOON);
        assert!(!owed.is_due());
        owed.expire(now + WAIT);
        assert!(owed.is_due());
        owed.told();
        owed.answered(now + WAIT);
        owed.bytes(now + WAIT);
        assert!(owed.is_due());
    }

    #[test]
    fn what_must_be_told_now_waits_for_nothing() {
        let (mut owed, now) = answered(ANSWERS, SOON);
        owed.now();
        owed.bytes(now);
        assert!(owed.is_due());
        owed.told();
        assert!(!owed.is_due());
    }
}
