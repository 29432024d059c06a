//! Deadlines of many things, each of which moves its own most of the time.
//!
//! A deadline that moves later, as that of a busy connection does with every packet, costs nothing: the entry in the heap
//! stays, and is put back when its time has come and the thing says that its own has not.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Deadlines of things of type `K`.
#[derive(Debug)]
pub(crate) struct Timers<K>(BinaryHeap<Reverse<(Instant, K)>>);

impl<K: Ord + Copy> Timers<K> {
    pub(crate) fn new() -> Timers<K> {
        Timers(BinaryHeap::new())
    }

    /// Adds an entry.
    pub(crate) fn add(&mut self, when: Instant, what: K) {
        self.0.push(Reverse((when, what)));
    }

    /// The next one that is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        let Reverse((when, _)) = self.0.peek()?;
        if *when > now {
            return None;
        }
        self.0.pop().map(|Reverse((_, what))| what)
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((when, _))| *when)
    }
}
