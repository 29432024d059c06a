//! Collections that wait to be exported: a bounded line, whose oldest go when it is full, and are counted.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::exits::Counters;
use crate::sample::Collection;

/// A collection in the line, with what was counted up to it.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Its number: one that was dropped meanwhile is not taken for the one behind it.
    pub(super) number: u64,
    pub(super) collection: Collection,
    pub(super) exits: Counters,
}

#[derive(Debug, Default)]
struct State {
    line: VecDeque<Arc<Waiting>>,
    next: u64,
    dropped: u64,
    exits: Counters,
    stop: bool,
}

/// The line.
#[derive(Debug)]
pub(super) struct Buffer {
    state: Mutex<State>,
    changed: Condvar,
    max: usize,
}

impl Buffer {
    pub(super) fn new(max: usize) -> Buffer {
        Buffer {
            state: Mutex::default(),
            changed: Condvar::new(),
            max,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a collection behind the others. When the line is full the oldest goes.
    pub(super) fn push(&self, collection: Collection) {
        let mut state = self.state();
        if state.line.len() >= self.max {
            state.line.pop_front();
            state.dropped += 1;
        }
        state.put(collection);
        self.changed.notify_all();
    }

    /// Puts a collection behind the others, and waits for room: whoever writes to us can wait, too.
    pub(super) fn push_when_there_is_room(&self, collection: Collection) {
        let full = |state: &mut State| state.line.len() >= self.max && !state.stop;
        let mut state = self
            .changed
            .wait_while(self.state(), full)
            .unwrap_or_else(PoisonError::into_inner);
        state.put(collection);
        self.changed.notify_all();
    }

    /// The one that has waited longest. It stays in the line until it is [`Buffer::done`].
    pub(super) fn first(&self) -> Option<Arc<Waiting>> {
        self.state().line.front().cloned()
    }

    /// A collection needs to wait no more: it was exported, or never will be. `lost`: the latter.
    pub(super) fn done(&self, number: u64, lost: bool) {
        let mut state = self.state();
        if state
            .line
            .front()
            .is_some_and(|first| first.number == number)
        {
            state.line.pop_front();
            state.dropped += u64::from(lost);
        }
        self.changed.notify_all();
    }

    /// How many were lost so far.
    pub(super) fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.state().line.len()
    }

    /// Tells who waits to come to an end, with one last try for what is in the line.
    pub(super) fn stop(&self) {
        self.state().stop = true;
        self.changed.notify_all();
    }

    /// Waits until a moment, or for the stop; whether that has come.
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

impl State {
    fn put(&mut self, collection: Collection) {
        self.exits.add(&collection.exits);
        let waiting = Waiting {
            number: self.next,
            collection,
            exits: self.exits.clone(),
        };
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
    fn a_full_line_loses_its_oldest_and_counts_them() {
        let buffer = Buffer::new(2);
        (1..=5).for_each(|second| buffer.push(collection(second)));
        let first = buffer.first().unwrap();
        assert_eq!(first.collection.at, Timestamp::from_second(4).unwrap());
        buffer.done(first.number, false);
        assert_eq!((buffer.dropped(), buffer.len()), (3, 1));
    }

    #[test]
    fn one_that_was_dropped_while_it_was_exported_is_not_taken_for_the_next() {
        let buffer = Buffer::new(1);
        buffer.push(collection(1));
        let first = buffer.first().unwrap();
        buffer.push(collection(2));
        buffer.done(first.number, false);
        assert_eq!(buffer.len(), 1);
    }

    #[test]
    fn a_stop_ends_the_wait() {
        let buffer = Buffer::new(1);
        assert!(!buffer.wait_until(Instant::now()));
        buffer.stop();
        assert!(buffer.wait_until(Instant::now() + Duration::from_secs(3600)));
    }
}
