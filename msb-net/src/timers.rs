//! Deadlines of many things, each of which moves its own most of the time.
//!
//! Each thing has one entry, and remembers when that is due in a place of its own. A deadline that moves later, as that of a
//! busy connection does with every packet, leaves the entry as it is: when it is due, the thing is looked at and gets another.
//! So there are never more entries than things, whatever a guest does.

use std::collections::BTreeSet;
use std::time::Instant;

/// Deadlines of things of type `K`.
#[derive(Debug)]
pub(crate) struct Timers<K>(BTreeSet<(Instant, K)>);

impl<K: Ord + Copy> Timers<K> {
    pub(crate) fn new() -> Timers<K> {
        Timers(BTreeSet::new())
    }

    /// Sees to it that there is an entry not later than `when`; `entry` is where the thing remembers its own.
    pub(crate) fn set(&mut self, entry: &mut Option<Instant>, when: Instant, what: K) {
        if entry.is_some_and(|entry| entry <= when) {
            return;
        }
        self.cancel(entry, what);
        self.0.insert((when, what));
        *entry = Some(when);
    }

    /// Takes a thing's entry away.
    pub(crate) fn cancel(&mut self, entry: &mut Option<Instant>, what: K) {
        if let Some(when) = entry.take() {
            self.0.remove(&(when, what));
        }
    }

    /// Takes the next entry that is due; the thing must forget its own.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        let (when, what) = *self.0.first()?;
        if when > now {
            return None;
        }
        self.0.pop_first();
        Some(what)
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.first().map(|(when, _)| *when)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_thing_has_one_entry_however_often_its_deadline_moves() {
        let (mut timers, start) = (Timers::new(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (mut one, mut two) = (None, None);
        timers.set(&mut two, at(50), 2);
        for seconds in [90, 10, 80, 5, 70] {
            timers.set(&mut one, at(seconds), 1);
        }
        assert_eq!((timers.0.len(), one), (2, Some(at(5))));
        assert_eq!(
            (timers.pop_due(at(4)), timers.pop_due(at(6))),
            (None, Some(1))
        );
        timers.cancel(&mut two, 2);
        assert_eq!((timers.next(), two), (None, None));
    }
}
