//! A wire that is worse than the one between a guest and its network: frames are lost, late, and
//! overtake each other.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Severity of the faults.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// Of a million frames so many are lost.
    pub(crate) lost: u32,
    /// Of a million frames so many are held back for as long again, so that others overtake them.
    pub(crate) overtaken: u32,
    /// Delay of each frame.
    pub(crate) delay: Duration,
}

/// A frame, and what it is sorted by: when it is due, and which one it is.
type Due = Reverse<(Instant, u64, Vec<u8>)>;

impl Faults {
    /// Returns whether there is no fault.
    pub(crate) fn is_none(&self) -> bool {
        self.lost == 0 && self.overtaken == 0 && self.delay.is_zero()
    }

    /// Passes frames on, as the wire is, until nobody sends any more.
    pub(crate) fn pass(
        &self,
        frames: &Receiver<Vec<u8>>,
        mut send: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut waiting: BinaryHeap<Due> = BinaryHeap::new();
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
        let mut count = 0;
        loop {
            while let Some(Reverse((due, _, _))) = waiting.peek()
                && *due <= Instant::now()
                && let Some(Reverse((_, _, frame))) = waiting.pop()
            {
                send(&frame)?;
            }
            let patience = match waiting.peek() {
                Some(Reverse((due, _, _))) => due.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            let frame = match frames.recv_timeout(patience) {
                Ok(frame) => frame,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            if chance.is_one_of(self.lost) {
                continue;
            }
            let held_back = chance.is_one_of(self.overtaken);
            let delay = self.delay * if held_back { 2 } else { 1 };
            count += 1;
            waiting.push(Reverse((Instant::now() + delay, count, frame)));
        }
    }
}

/// The same numbers each time (xorshift64*).
struct Chance(u64);

impl Chance {
    fn is_one_of(&mut self, in_a_million: u32) -> bool {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        number * 1_000_000 < u64::from(in_a_million) << 32
    }
}
