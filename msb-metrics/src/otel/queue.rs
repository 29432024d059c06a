//! Queue of collections that wait for export. When it is full the oldest are dropped and counted.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::exits::ExitCounters;
use crate::sample::Collection;

/// A queued collection, with the exit counters up to it.
#[derive(Debug)]
pub(super) struct QueuedCollection {
    /// Sequence number, so that a collection that was dropped in the meantime is not confused with
    /// the next one.
    pub(super) number: u64,
    pub(super) collection: Collection,
    pub(super) exits: ExitCounters,
}

#[derive(Debug, Default)]
struct QueueState {
    line: VecDeque<Arc<QueuedCollection>>,
    next: u64,
    dropped: u64,
    exits: ExitCounters,
    stop: bool,
}

/// The queue of collections.
#[derive(Debug)]
pub(super) struct ExportQueue {
    state: Mutex<QueueState>,
    changed: Condvar,
    max: usize,
}

impl ExportQueue {
    pub(super) fn new(max: usize) -> ExportQueue {
        ExportQueue { state: Mutex::default(), changed: Condvar::new(), max }
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a collection. Drops the oldest if the queue is full.
    pub(super) fn push(&self, collection: Collection) {
        let mut state = self.state();
        if state.line.len() >= self.max {
            state.line.pop_front();
            state.dropped += 1;
        }
        state.put(collection);
        self.changed.notify_all();
    }

    /// Appends a collection, and waits while the queue is full: back-pressure on the process that
    /// writes to this one.
    pub(super) fn push_blocking(&self, collection: Collection) {
        let full = |state: &mut QueueState| state.line.len() >= self.max && !state.stop;
        let mut state =
            self.changed.wait_while(self.state(), full).unwrap_or_else(PoisonError::into_inner);
        state.put(collection);
        self.changed.notify_all();
    }

    /// Returns the oldest collection. It stays queued until [`ExportQueue::done`].
    pub(super) fn first(&self) -> Option<Arc<QueuedCollection>> {
        self.state().line.front().cloned()
    }

    /// Removes a collection that was exported or, with `lost`, rejected.
    pub(super) fn done(&self, number: u64, lost: bool) {
        let mut state = self.state();
        if state.line.front().is_some_and(|first| first.number == number) {
            state.line.pop_front();
            state.dropped += u64::from(lost);
        }
        self.changed.notify_all();
    }

    /// Returns the number of dropped collections.
    pub(super) fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// Returns the length of the queue.
    pub(super) fn len(&self) -> usize {
        self.state().line.len()
    }

    /// Wakes all waiters and asks the exporter to finish with one last attempt.
    pub(super) fn stop(&self) {
        self.state().stop = true;
        self.changed.notify_all();
    }

    /// Waits until `moment` or the stop. Returns whether the queue was stopped.
    pub(super) fn wait_until(&self, moment: Instant) -> bool {
        let mut state = self.state();
        loop {
            let left = moment.saturating_duration_since(Instant::now());
            if state.stop || left == Duration::ZERO {
                return state.stop;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl QueueState {
    fn put(&mut self, collection: Collection) {
        self.exits.add(&collection.exits);
        let waiting = QueuedCollection { number: self.next, collection, exits: self.exits.clone() };
        self.next += 1;
        self.line.push_back(Arc::new(waiting));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn collection(second: i64) -> Collection {
        Collection {
            at: Timestamp::from_second(second).unwrap(),
            samples: Vec::new(),
            exits: Vec::new(),
        }
    }

    #[test]
    fn a_full_queue_drops_and_counts_its_oldest() {
        let buffer = ExportQueue::new(2);
        (1..=5).for_each(|second| buffer.push(collection(second)));
        let first = buffer.first().unwrap();
        assert_eq!(first.collection.at, Timestamp::from_second(4).unwrap());
        buffer.done(first.number, false);
        assert_eq!((buffer.dropped(), buffer.len()), (3, 1));
    }

    #[test]
    fn a_collection_dropped_during_export_is_not_confused_with_the_next() {
        let buffer = ExportQueue::new(1);
        buffer.push(collection(1));
        let first = buffer.first().unwrap();
        buffer.push(collection(2));
        buffer.done(first.number, false);
        assert_eq!(buffer.len(), 1);
    }

    #[test]
    fn a_stop_ends_the_wait() {
        let buffer = ExportQueue::new(1);
        assert!(!buffer.wait_until(Instant::now()));
        buffer.stop();
        assert!(buffer.wait_until(Instant::now() + Duration::from_secs(3600)));
    }
}
