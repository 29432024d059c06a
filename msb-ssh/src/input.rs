//! Input queue of each channel: bytes from the client that the guest has not taken yet.
//!
//! The SSH library extends a channel's window when a packet arrives, not when its bytes are
//! consumed. Its only back-pressure is to stop reading the whole connection, and then a guest
//! program that waits for its output to be read before it reads on would deadlock. So each channel
//! has a queue here. While any queue of a client is too full, the library is given a window of
//! [`THROTTLED_WINDOW_BYTES`]: a channel may still use up the window that it was granted, and after
//! that it sends a few bytes at a time, each of which is delayed by [`THROTTLE_DELAY`] or until the
//! queue has room. The rest of the connection is not affected.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use msb_wire::limits::DATA_BYTES;
use tokio::sync::Notify;

use crate::limits::{CLIENT_QUEUE_BYTES, QUEUE_BYTES, WINDOW_BYTES};

/// Smallest window that the library still extends, namely when the client has used up every byte of
/// the previous one.
const THROTTLED_WINDOW_BYTES: u32 = 2;

/// Delay of a packet while the queue is too full. A hundred packets a second cost almost nothing
/// and delay no other channel noticeably.
const THROTTLE_DELAY: Duration = Duration::from_millis(10);

/// Totals over the queues of one client.
#[derive(Debug, Default)]
pub(crate) struct QueueTotals {
    waiting: AtomicUsize,
    full: AtomicUsize,
}

impl QueueTotals {
    /// Returns the window size to which a channel is extended.
    pub(crate) fn window(&self) -> u32 {
        if self.full.load(Ordering::Relaxed) > 0 { THROTTLED_WINDOW_BYTES } else { WINDOW_BYTES }
    }
}

#[derive(Debug, Default)]
struct QueueState {
    parts: VecDeque<Vec<u8>>,
    bytes: usize,
    ended: bool,
    full: bool,
}

/// Input queue of one channel.
#[derive(Debug)]
pub(crate) struct InputQueue {
    account: Arc<QueueTotals>,
    waiting: Mutex<QueueState>,
    came: Notify,
    taken: Notify,
}

/// Error: the client sent more than its windows allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueOverflow;

impl InputQueue {
    /// Returns an empty queue.
    pub(crate) fn new(account: &Arc<QueueTotals>) -> Arc<InputQueue> {
        Arc::new(InputQueue {
            account: Arc::clone(account),
            waiting: Mutex::default(),
            came: Notify::new(),
            taken: Notify::new(),
        })
    }

    fn waiting(&self) -> MutexGuard<'_, QueueState> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes. Waits for a limited time while the queue is too full.
    pub(crate) async fn push(&self, bytes: &[u8]) -> Result<(), QueueOverflow> {
        let full = {
            let mut waiting = self.waiting();
            waiting.bytes += bytes.len();
            waiting.parts.push_back(bytes.to_vec());
            let all = self.account.waiting.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
            if all > CLIENT_QUEUE_BYTES {
                return Err(QueueOverflow);
            }
            let full = waiting.bytes > QUEUE_BYTES;
            self.mark(&mut waiting, full);
            full
        };
        self.came.notify_one();
        if full {
            // The result does not matter: the next packet checks again.
            let _ = tokio::time::timeout(THROTTLE_DELAY, self.taken.notified()).await;
        }
        Ok(())
    }

    fn mark(&self, waiting: &mut QueueState, full: bool) {
        if waiting.full == full {
            return;
        }
        waiting.full = full;
        if full {
            self.account.full.fetch_add(1, Ordering::Relaxed);
        } else {
            self.account.full.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Marks the end of the input.
    pub(crate) fn end(&self) {
        self.waiting().ended = true;
        self.came.notify_one();
    }

    /// Waits for the next bytes; returns `None` at the end. Joins small packets up to the size of
    /// one frame, because each frame has a cost in the guest. Only one task may wait.
    pub(crate) async fn next(&self) -> Option<Vec<u8>> {
        loop {
            {
                let mut waiting = self.waiting();
                if let Some(mut part) = waiting.parts.pop_front() {
                    while let Some(more) = waiting.parts.front()
                        && part.len() + more.len() <= DATA_BYTES
                    {
                        part.extend_from_slice(more);
                        waiting.parts.pop_front();
                    }
                    self.used(&mut waiting, part.len());
                    return Some(part);
                }
                if waiting.ended {
                    return None;
                }
            }
            self.came.notified().await;
        }
    }

    fn used(&self, waiting: &mut QueueState, bytes: usize) {
        waiting.bytes -= bytes;
        self.account.waiting.fetch_sub(bytes, Ordering::Relaxed);
        if waiting.full && waiting.bytes <= QUEUE_BYTES / 2 {
            self.mark(waiting, false);
            self.taken.notify_waiters();
        }
    }
}

impl Drop for InputQueue {
    fn drop(&mut self) {
        let mut waiting = std::mem::take(&mut *self.waiting());
        self.account.waiting.fetch_sub(waiting.bytes, Ordering::Relaxed);
        self.mark(&mut waiting, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn input_is_joined_into_frames_in_order() {
        let account = Arc::new(QueueTotals::default());
        let input = InputQueue::new(&account);
        let large = vec![7; DATA_BYTES - 2];
        for part in [b"ab", &b"c"[..], &large, b"d"] {
            input.push(part).await.unwrap();
        }
        input.end();
        assert_eq!(input.next().await.unwrap(), b"abc");
        assert_eq!(input.next().await.unwrap(), [&large[..], b"d"].concat());
        assert_eq!(input.next().await, None);
        assert_eq!(account.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_full_queue_narrows_the_window_until_it_is_half_empty() {
        let account = Arc::new(QueueTotals::default());
        let input = InputQueue::new(&account);
        let part = vec![0; QUEUE_BYTES / 4];
        for _ in 0..4 {
            input.push(&part).await.unwrap();
        }
        assert_eq!(account.window(), WINDOW_BYTES);
        input.push(&part).await.unwrap();
        assert_eq!(account.window(), THROTTLED_WINDOW_BYTES);
        for _ in 0..2 {
            input.next().await;
        }
        assert_eq!(account.window(), THROTTLED_WINDOW_BYTES);
        input.next().await;
        assert_eq!(account.window(), WINDOW_BYTES);
    }

    #[tokio::test]
    async fn a_dropped_channel_releases_its_bytes() {
        let account = Arc::new(QueueTotals::default());
        let input = InputQueue::new(&account);
        input.push(&vec![0; QUEUE_BYTES + 1]).await.unwrap();
        assert_eq!(account.window(), THROTTLED_WINDOW_BYTES);
        drop(input);
        assert_eq!(account.window(), WINDOW_BYTES);
        assert_eq!(account.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_client_that_ignores_its_windows_overflows() {
        let account = Arc::new(QueueTotals::default());
        let input = InputQueue::new(&account);
        let part = vec![0; CLIENT_QUEUE_BYTES / 4];
        for _ in 0..4 {
            input.push(&part).await.unwrap();
        }
        assert_eq!(input.push(&[0]).await, Err(QueueOverflow));
    }
}
