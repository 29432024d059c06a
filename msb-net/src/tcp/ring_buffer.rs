//! Ring buffers for bytes in transit, which grow on demand and return to a pool when empty.
//!
//! All rings come from one [`RingPool`], which keeps some free ones for the next connection.
//! Together they hold at most [`RINGS_BYTES_TOTAL`] bytes, and the more of that is in use, the
//! smaller are new rings. A ring of [`RING_BYTES_MIN`] is always available, even beyond the total,
//! so no connection waits for another to free memory: there are at most two rings per connection,
//! and the number of connections is limited.

use crate::limits::{OUT_OF_ORDER_BYTES_TOTAL, RING_BYTES_MAX, RING_BYTES_MIN, RINGS_BYTES_TOTAL};

/// Number of size classes from [`RING_BYTES_MIN`] to [`RING_BYTES_MAX`], each twice the one before.
const SIZE_CLASSES: usize = (RING_BYTES_MAX / RING_BYTES_MIN).ilog2() as usize + 1;
/// Largest new ring, by the number of bytes in use: a few stalled connections leave much for the
/// others, and hundreds leave enough.
const SIZE_LIMITS: [(usize, usize); 3] = [
    (RINGS_BYTES_TOTAL / 2, RING_BYTES_MAX),
    (RINGS_BYTES_TOTAL / 4 * 3, 64 * 1024),
    (RINGS_BYTES_TOTAL - 16 * 1024, 16 * 1024),
];
/// Limit of free bytes kept: the largest rings of sixteen connections. A reused ring saves the page
/// faults of a new one.
const FREE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The pool of ring buffers.
#[derive(Debug, Default)]
pub(crate) struct RingPool {
    free: [Vec<Box<[u8]>>; SIZE_CLASSES],
    free_bytes: usize,
    used_bytes: usize,
    /// Bytes of out of order segments, which are in no ring.
    out_of_order_bytes: usize,
}

/// Memory that an out of order segment takes beside its bytes.
const OUT_OF_ORDER_OVERHEAD: usize = 64;

fn size_class(bytes: usize) -> usize {
    (bytes / RING_BYTES_MIN).ilog2() as usize
}

impl RingPool {
    /// Returns the bytes of all rings, free ones included.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.free_bytes + self.used_bytes
    }

    /// Returns the size of the largest ring that may be allocated now.
    fn size_limit(&self) -> usize {
        let limit = SIZE_LIMITS.iter().find(|(below, _)| self.used_bytes <= *below);
        limit.map_or(RING_BYTES_MIN, |(_, bytes)| *bytes)
    }

    fn allocate(&mut self, bytes: usize) -> Box<[u8]> {
        self.used_bytes += bytes;
        if let Some(ring) = self.free[size_class(bytes)].pop() {
            self.free_bytes -= bytes;
            return ring;
        }
        if self.used_bytes + self.free_bytes > RINGS_BYTES_TOTAL {
            self.free_unused();
        }
        vec![0; bytes].into_boxed_slice()
    }

    /// Frees all unused rings.
    pub(crate) fn free_unused(&mut self) {
        self.free = Default::default();
        self.free_bytes = 0;
    }

    /// Reserves memory for an out of order segment. Returns false when the limit is reached.
    pub(crate) fn reserve_out_of_order(&mut self, bytes: usize) -> bool {
        let more = self.out_of_order_bytes + bytes + OUT_OF_ORDER_OVERHEAD;
        let fits = more <= OUT_OF_ORDER_BYTES_TOTAL;
        if fits {
            self.out_of_order_bytes = more;
        }
        fits
    }

    /// Releases the memory of an out of order segment.
    pub(crate) fn release_out_of_order(&mut self, bytes: usize) {
        self.out_of_order_bytes -= bytes + OUT_OF_ORDER_OVERHEAD;
    }

    fn recycle(&mut self, ring: Box<[u8]>) {
        let bytes = ring.len();
        if bytes == 0 {
            return;
        }
        self.used_bytes -= bytes;
        let total = self.used_bytes + self.free_bytes + bytes;
        if self.free_bytes + bytes <= FREE_BYTES_MAX && total <= RINGS_BYTES_TOTAL {
            self.free_bytes += bytes;
            self.free[size_class(bytes)].push(ring);
        }
    }
}

/// A ring buffer of bytes in transit.
#[derive(Debug, Default)]
pub(crate) struct RingBuffer {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl RingBuffer {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of bytes it can take before the size limit.
    pub(crate) fn free_max(&self) -> usize {
        RING_BYTES_MAX - self.len
    }

    /// Grows the ring by up to `wanted` bytes, as far as the size classes and the pool allow.
    /// Returns the free space, which is never zero in an empty ring.
    pub(crate) fn reserve(&mut self, wanted: usize, pool: &mut RingPool) -> usize {
        let needed = (self.len + wanted).min(RING_BYTES_MAX);
        if needed > self.bytes.len() {
            let bytes = needed.next_power_of_two().max(RING_BYTES_MIN);
            let bytes = bytes.min(pool.size_limit());
            if bytes > self.bytes.len() {
                let larger = pool.allocate(bytes);
                self.move_to(larger, pool);
            }
        }
        self.bytes.len() - self.len
    }

    fn move_to(&mut self, mut larger: Box<[u8]>, pool: &mut RingPool) {
        let (first, second) = self.slices(0, self.len);
        larger[..first.len()].copy_from_slice(first);
        larger[first.len()..first.len() + second.len()].copy_from_slice(second);
        pool.recycle(std::mem::replace(&mut self.bytes, larger));
        self.start = 0;
    }

    /// Returns the free space in two parts. Bytes written there are added with
    /// [`RingBuffer::advance`].
    pub(crate) fn free_space(&mut self) -> (&mut [u8], &mut [u8]) {
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

    /// Adds bytes that were written into the free space.
    pub(crate) fn advance(&mut self, count: usize) {
        self.len = (self.len + count).min(self.bytes.len());
    }

    /// Appends as many bytes as fit. Returns their number.
    pub(crate) fn push(&mut self, bytes: &[u8], pool: &mut RingPool) -> usize {
        let count = self.reserve(bytes.len(), pool).min(bytes.len());
        let (first, second) = self.free_space();
        let cut = count.min(first.len());
        first[..cut].copy_from_slice(&bytes[..cut]);
        second[..count - cut].copy_from_slice(&bytes[cut..count]);
        self.advance(count);
        count
    }

    /// Returns `count` bytes from `offset` on, in two parts.
    pub(crate) fn slices(&self, offset: usize, count: usize) -> (&[u8], &[u8]) {
        let offset = offset.min(self.len);
        let count = count.min(self.len - offset);
        let size = self.bytes.len();
        let from = self.start + offset;
        let from = if from >= size && size > 0 { from - size } else { from };
        let first = count.min(size - from);
        (&self.bytes[from..from + first], &self.bytes[..count - first])
    }

    /// Removes bytes from the front.
    pub(crate) fn consume(&mut self, count: usize, pool: &mut RingPool) {
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

    /// Returns the memory to the pool.
    pub(crate) fn release(&mut self, pool: &mut RingPool) {
        pool.recycle(std::mem::take(&mut self.bytes));
        (self.start, self.len) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(ring: &RingBuffer) -> Vec<u8> {
        let (first, second) = ring.slices(0, ring.len());
        [first, second].concat()
    }

    #[test]
    fn bytes_leave_in_the_order_in_which_they_came() {
        let (mut pool, mut ring) = (RingPool::default(), RingBuffer::default());
        let mut expected = std::collections::VecDeque::<u8>::new();
        for round in 0..400usize {
            let bytes: Vec<u8> = (0..round * 37 % 9000).map(|at| (at * 7 + round) as u8).collect();
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
        let (mut pool, mut ring) = (RingPool::default(), RingBuffer::default());
        assert_eq!(ring.push(&vec![1; 3 * RING_BYTES_MAX], &mut pool), RING_BYTES_MAX);
        assert_eq!((ring.push(&[1], &mut pool), ring.free_max()), (0, 0));
        ring.consume(RING_BYTES_MAX, &mut pool);
        assert_eq!((ring.bytes.len(), pool.used_bytes), (0, 0));
    }

    #[test]
    fn all_rings_together_are_limited_and_are_reused() {
        let mut pool = RingPool::default();
        let mut rings: Vec<RingBuffer> = (0..4096).map(|_| RingBuffer::default()).collect();
        let taken: usize = rings.iter_mut().map(|ring| ring.push(&[7; 100_000], &mut pool)).sum();
        let bound = RINGS_BYTES_TOTAL + rings.len() * RING_BYTES_MIN;
        assert!(taken > RINGS_BYTES_TOTAL / 4 && pool.bytes() <= bound);
        rings.iter_mut().for_each(|ring| ring.release(&mut pool));
        assert_eq!(pool.used_bytes, 0);
        assert!(pool.bytes() <= FREE_BYTES_MAX);
        assert_eq!(rings[9].push(&[7; 100], &mut pool), 100);
    }

    #[test]
    fn an_empty_ring_always_gets_the_minimum() {
        let mut pool = RingPool::default();
        let mut rings: Vec<RingBuffer> = (0..10_000).map(|_| RingBuffer::default()).collect();
        let full = vec![7; RING_BYTES_MAX];
        for (number, ring) in rings.iter_mut().enumerate() {
            let taken = ring.push(&full, &mut pool);
            // A thousand stalled connections leave more than the minimum.
            assert!(taken >= RING_BYTES_MIN * if number < 1000 { 4 } else { 1 });
            assert_eq!(taken, ring.bytes.len());
        }
        assert!(pool.bytes() <= RINGS_BYTES_TOTAL + rings.len() * RING_BYTES_MIN);
        // A ring grows no further while much memory is in use, and grows again afterwards.
        let least = rings.last_mut().unwrap();
        assert_eq!(least.push(&full, &mut pool), 0);
        for ring in rings.iter_mut().rev().skip(1) {
            ring.release(&mut pool);
        }
        let least = rings.last_mut().unwrap();
        assert_eq!(least.push(&full, &mut pool), RING_BYTES_MAX - RING_BYTES_MIN);
    }
}
