//! A timer queue for deadlines that move often.
//!
//! Each value has at most one entry and stores its time itself. When a deadline moves to a later
//! time, as that of a busy connection does with every packet, the entry stays: when it expires, the
//! value is checked and gets another entry. So there are never more entries than values, whatever a
//! guest does.

use std::collections::BTreeSet;
use std::time::Instant;

/// Deadlines of values with keys of type `K`.
#[derive(Debug)]
pub(crate) struct TimerQueue<K>(BTreeSet<(Instant, K)>);

impl<K: Ord + Copy> TimerQueue<K> {
    pub(crate) fn new() -> TimerQueue<K> {
        TimerQueue(BTreeSet::new())
    }

    /// Ensures that there is an entry not later than `when`. `entry` is the field in which the
    /// value stores the time of its entry.
    pub(crate) fn set(&mut self, entry: &mut Option<Instant>, when: Instant, key: K) {
        if entry.is_some_and(|entry| entry <= when) {
            return;
        }
        self.cancel(entry, key);
        self.0.insert((when, key));
        *entry = Some(when);
    }

    /// Removes an entry.
    pub(crate) fn cancel(&mut self, entry: &mut Option<Instant>, key: K) {
        if let Some(when) = entry.take() {
            self.0.remove(&(when, key));
        }
    }

    /// Removes and returns the next expired entry; the caller must clear the stored time.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        let (when, key) = *self.0.first()?;
        if when > now {
            return None;
        }
        self.0.pop_first();
        Some(key)
    }

    /// Returns the time of the next entry.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.0.first().map(|(when, _)| *when)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_value_has_one_entry_however_often_its_deadline_moves() {
        let (mut timers, start) = (TimerQueue::new(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (mut one, mut two) = (None, None);
        timers.set(&mut two, at(50), 2);
        for seconds in [90, 10, 80, 5, 70] {
            timers.set(&mut one, at(seconds), 1);
        }
        assert_eq!((timers.0.len(), one), (2, Some(at(5))));
        assert_eq!((timers.pop_due(at(4)), timers.pop_due(at(6))), (None, Some(1)));
        timers.cancel(&mut two, 2);
        assert_eq!((timers.next_due(), two), (None, None));
    }
}
