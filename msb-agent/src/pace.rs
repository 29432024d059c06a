//! How often the port is written when a command writes little at a time.
//!
//! A write to the port costs the host and the guest an interrupt each, many times what it costs to carry a few more
//! kilobytes. So after a run of small writes with no pause between them the agent rests for a moment before it looks
//! again, in which the command fills its pipe. A command that says something now and then never waits.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Turns in a row that say little, after which it rests.
const RUN: u32 = 32;

/// What is little, in bytes.
const LITTLE: usize = 32 * 1024;

/// A pause that ends a run: nothing was to be said.
const PAUSE: Duration = Duration::from_millis(2);

/// How long it rests.
const REST: Duration = Duration::from_micros(500);

/// Counts turns.
pub(crate) struct Pace {
    run: u32,
    last: Instant,
}

impl Pace {
    /// With nothing said.
    pub(crate) fn new() -> Pace {
        Pace {
            run: 0,
            last: Instant::now(),
        }
    }

    /// Rests if this many bytes were one of a run of little writes.
    pub(crate) fn rest_after(&mut self, said: usize) {
        if said == 0 {
            return;
        }
        if self.is_in_a_run(said, Instant::now()) {
            sleep(REST);
            self.last = Instant::now();
        }
    }

    fn is_in_a_run(&mut self, said: usize, now: Instant) -> bool {
        self.run = if now.duration_since(self.last) < PAUSE {
            self.run.saturating_add(1)
        } else {
            0
        };
        self.last = now;
        self.run > RUN && said < LITTLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_long_run_of_little_writes_makes_it_rest() {
        let mut pace = Pace::new();
        let mut now = pace.last;
        let mut say = |bytes, after| {
            now += after;
            pace.is_in_a_run(bytes, now)
        };
        let moment = Duration::from_micros(100);
        assert!((0..RUN).all(|_| !say(100, moment)));
        assert!(say(100, moment));
        assert!(!say(LITTLE, moment));
        assert!(say(100, moment));
        assert!(!say(100, PAUSE));
        assert!(!say(100, moment));
    }
}
