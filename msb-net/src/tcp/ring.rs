//! Bytes that wait, in a ring that grows and that is given back when it is empty.
//!
//! Rings come out of one [`Pool`], which keeps some free ones for the next connection. Together they have at most
//! [`RINGS_BYTES_TOTAL`] bytes, and the more of that is taken, the smaller is a ring that can be had. A ring of
//! [`RING_BYTES_MIN`] can always be had, beyond that too, so nobody waits for others to let go: there are at most two for a
//! connection, and the number of connections is bounded.

use crate::limits::{EARLY_BYTES_TOTAL, RING_BYTES_MAX, RING_BYTES_MIN, RINGS_BYTES_TOTAL};

/// Sizes from [`RING_BYTES_MIN`] to [`RING_BYTES_MAX`], each twice the one before.
const SIZES: usize = (RING_BYTES_MAX / RING_BYTES_MIN).ilog2() as usize + 1;
/// How large a ring may be while less than so much is taken: some connections that stand still leave much for the others,
/// and hundreds enough.
const STEPS: [(usize, usize); 3] = [
    (RINGS_BYTES_TOTAL / 2, RING_BYTES_MAX),
    (RINGS_BYTES_TOTAL / 4 * 3, 64 * 1024),
    (RINGS_BYTES_TOTAL - 16 * 1024, 16 * 1024),
];
/// Free bytes that are kept: the largest rings of sixteen connections. What is kept is not made anew, page by page.
const FREE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Where rings come from.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: [Vec<Box<[u8]>>; SIZES],
    free_bytes: usize,
    used_bytes: usize,
    /// What segments take that came too early; they are in no ring.
    early_bytes: usize,
}

/// What such a segment takes beside its bytes.
const EARLY_OVERHEAD: usize = 64;

fn size_number(bytes: usize) -> usize {
    (bytes / RING_BYTES_MIN).ilog2() as usize
}

impl Pool {
    /// Bytes that rings take, free ones included.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.free_bytes + self.used_bytes
    }

    /// How large a ring may be now.
    fn largest(&self) -> usize {
        let step = STEPS.iter().find(|(below, _)| self.used_bytes <= *below);
        step.map_or(RING_BYTES_MIN, |(_, bytes)| *bytes)
    }

    fn take(&mut self, bytes: usize) -> Box<[u8]> {
        self.used_bytes += bytes;
        if let Some(ring) = self.free[size_number(bytes)].pop() {
            self.free_bytes -= bytes;
            return ring;
        }
        if self.used_bytes + self.free_bytes > RINGS_BYTES_TOTAL {
            self.keep_nothing();
        }
        vec![0; bytes].into_boxed_slice()
    }

    /// Keeps no free ring any more.
    pub(crate) fn keep_nothing(&mut self) {
        self.free = Default::default();
        self.free_bytes = 0;
    }

    /// Whether a segment that came too early may be kept, which is counted then.
    pub(crate) fn keep_early(&mut self, bytes: usize) -> bool {
        let more = self.early_bytes + bytes + EARLY_OVERHEAD;
        let fits = more <= EARLY_BYTES_TOTAL;
        if fits {
            self.early_bytes = more;
        }
        fits
    }

    /// It is kept no more.
    pub(crate) fn drop_early(&mut self, bytes: usize) {
        self.early_bytes -= bytes + EARLY_OVERHEAD;
    }

    fn give(&mut self, ring: Box<[u8]>) {
        let bytes = ring.len();
        if bytes == 0 {
            return;
        }
        self.used_bytes -= bytes;
        let total = self.used_bytes + self.free_bytes + bytes;
        if self.free_bytes + bytes <= FREE_BYTES_MAX && total <= RINGS_BYTES_TOTAL {
            self.free_bytes += bytes;
            self.free[size_number(bytes)].push(ring);
        }
    }
}

/// Bytes that wait.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Ring {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that it may take before it is full for good.
    pub(crate) fn room_max(&self) -> usize {
        RING_BYTES_MAX - self.len
    }

    /// Makes room for `wanted` bytes more, as far as sizes and the pool allow; gives the room that there is, which is some
    /// where nothing waits.
    pub(crate) fn reserve(&mut self, wanted: usize, pool: &mut Pool) -> usize {
        let needed = (self.len + wanted).min(RING_BYTES_MAX);
        if needed > self.bytes.len() {
            let bytes = needed.next_power_of_two().max(RING_BYTES_MIN);
            let bytes = bytes.min(pool.largest());
            if bytes > self.bytes.len() {
                let larger = pool.take(bytes);
                self.move_to(larger, pool);
            }
        }
        self.bytes.len() - self.len
    }

    fn move_to(&mut self, mut larger: Box<[u8]>, pool: &mut Pool) {
        let (first, second) = self.slices(0, self.len);
        larger[..first.len()].copy_from_slice(first);
        larger[first.len()..first.len() + second.len()].copy_from_slice(second);
        pool.give(std::mem::replace(&mut self.bytes, larger));
        self.start = 0;
    }

    /// The room, in two parts: what is read into them is added with [`Ring::advance`].
    pub(crate) fn room(&mut self) -> (&mut [u8], &mut [u8]) {
        let size = self.bytes.len();
        let end = self.start + self.len;
        if end >= size {
            let end = end - size;
            (&mut self.bytes[end..self.start], &mut [])
        } else {
            let (front, back) = self.bytes.split_at_mut(end);
            (back, &mut front[..self.start])
        }
    }

    /// Counts bytes that were put into the room.
    pub(crate) fn advance(&mut self, count: usize) {
        self.len = (self.len + count).min(self.bytes.len());
    }

    /// Adds bytes, as many as fit; gives how many.
    pub(crate) fn push(&mut self, bytes: &[u8], pool: &mut Pool) -> usize {
        let count = self.reserve(bytes.len(), pool).min(bytes.len());
        let (first, second) = self.room();
        let cut = count.min(first.len());
        first[..cut].copy_from_slice(&bytes[..cut]);
        second[..count - cut].copy_from_slice(&bytes[cut..count]);
        self.advance(count);
        count
    }

    /// Bytes from `offset` on, in two parts.
    pub(crate) fn slices(&self, offset: usize, count: usize) -> (&[u8], &[u8]) {
        let offset = offset.min(self.len);
        let count = count.min(self.len - offset);
        let size = self.bytes.len();
        let from = self.start + offset;
        let from = if from >= size && size > 0 {
            from - size
        } else {
            from
        };
        let first = count.min(size - from);
        (
            &self.bytes[from..from + first],
            &self.bytes[..count - first],
        )
    }

    /// Takes bytes away from the front.
    pub(crate) fn consume(&mut self, count: usize, pool: &mut Pool) {
        let count = count.min(self.len);
        self.len -= count;
        if self.len == 0 {
            self.release(pool);
            return;
        }
        self.start += count;
        if self.start >= self.bytes.len() {
            self.start -= self.bytes.len();
        }
    }

    /// Gives everything back.
    pub(crate) fn release(&mut self, pool: &mut Pool) {
        pool.give(std::mem::take(&mut self.bytes));
        (self.start, self.len) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(ring: &Ring) -> Vec<u8> {
        let (first, second) = ring.slices(0, ring.len());
        [first, second].concat()
    }

    #[test]
    fn bytes_leave_in_the_order_in_which_they_came() {
        let (mut pool, mut ring) = (Pool::default(), Ring::default());
        let mut expected = std::collections::VecDeque::<u8>::new();
        for round in 0..400usize {
            let bytes: Vec<u8> = (0..round * 37 % 9000)
                .map(|at| (at * 7 + round) as u8)
                .collect();
            let taken = ring.push(&bytes, &mut pool);
            expected.extend(&bytes[..taken]);
            let gone = (round * 53 % 8500).min(expected.len());
            ring.consume(gone, &mut pool);
            expected.drain(..gone);
            assert_eq!(contents(&ring), expected.make_contiguous(), "{round}");
        }
    }

    #[test]
    fn an_empty_ring_holds_nothing_and_a_full_one_takes_nothing() {
        let (mut pool, mut ring) = (Pool::default(), Ring::default());
        assert_eq!(
            ring.push(&vec![1; 3 * RING_BYTES_MAX], &mut pool),
            RING_BYTES_MAX
        );
        assert_eq!((ring.push(&[1], &mut pool), ring.room_max()), (0, 0));
        ring.consume(RING_BYTES_MAX, &mut pool);
        assert_eq!((ring.bytes.len(), pool.used_bytes), (0, 0));
    }

    #[test]
    fn all_rings_together_have_a_bound_and_come_back_when_others_go() {
        let mut pool = Pool::default();
        let mut rings: Vec<Ring> = (0..4096).map(|_| Ring::default()).collect();
        let taken: usize = rings
            .iter_mut()
            .map(|ring| ring.push(&[7; 100_000], &mut pool))
            .sum();
        let bound = RINGS_BYTES_TOTAL + rings.len() * RING_BYTES_MIN;
        assert!(taken > RINGS_BYTES_TOTAL / 4 && pool.bytes() <= bound);
        rings.iter_mut().for_each(|ring| ring.release(&mut pool));
        assert_eq!(pool.used_bytes, 0);
        assert!(pool.bytes() <= FREE_BYTES_MAX);
        assert_eq!(rings[9].push(&[7; 100], &mut pool), 100);
    }

    #[test]
    fn who_has_nothing_finds_room_whatever_others_hold() {
        let mut pool = Pool::default();
        let mut rings: Vec<Ring> = (0..10_000).map(|_| Ring::default()).collect();
        let full = vec![7; RING_BYTES_MAX];
        for (number, ring) in rings.iter_mut().enumerate() {
            let taken = ring.push(&full, &mut pool);
            // A thousand that stand still leave more than the least.
            assert!(taken >= RING_BYTES_MIN * if number < 1000 { 4 } else { 1 });
            assert_eq!(taken, ring.bytes.len());
        }
        assert!(pool.bytes() <= RINGS_BYTES_TOTAL + rings.len() * RING_BYTES_MIN);
        // Nobody gets more than that while much is taken, and again when it is not.
        let least = rings.last_mut().unwrap();
        assert_eq!(least.push(&full, &mut pool), 0);
        for ring in rings.iter_mut().rev().skip(1) {
            ring.release(&mut pool);
        }
        let least = rings.last_mut().unwrap();
        assert_eq!(
            least.push(&full, &mut pool),
            RING_BYTES_MAX - RING_BYTES_MIN
        );
    }
}
