//! What a client sends and the guest has not taken yet.
//!
//! The SSH library grants a channel new window when a packet comes, not when somebody has used it up, and would only ever
//! stop by stopping the whole connection, output and all: a guest program that waits for its output to be read before it
//! reads on would then wait forever. So each channel has a queue here, and while one is too full the library is told of a
//! window of [`DRIP_BYTES`]: each channel may still use up what it was granted, and then sends drops, each of which is
//! held for [`DRIP_TIME`] or until the queue has room. Everything else of the connection goes on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use msb_wire::limits::DATA_BYTES;
use tokio::sync::Notify;

use crate::limits::{CLIENT_QUEUE_BYTES, QUEUE_BYTES, WINDOW_BYTES};

/// The smallest window at which the library grants at all: when the client has used up every byte of the last one.
const DRIP_BYTES: u32 = 2;

/// Time that a drop is held. A hundred of them a second cost nothing and hold up nobody.
const DRIP_TIME: Duration = Duration::from_millis(10);

/// All queues of one client.
#[derive(Debug, Default)]
pub(crate) struct Account {
    waiting: AtomicUsize,
    full: AtomicUsize,
}

impl Account {
    /// The window that a channel is brought back to.
    pub(crate) fn window(&self) -> u32 {
        if self.full.load(Ordering::Relaxed) > 0 {
            DRIP_BYTES
        } else {
            WINDOW_BYTES
        }
    }
}

#[derive(Debug, Default)]
struct Waiting {
    parts: VecDeque<Vec<u8>>,
    bytes: usize,
    ended: bool,
    full: bool,
}

/// The queue of one channel.
#[derive(Debug)]
pub(crate) struct Input {
    account: Arc<Account>,
    waiting: Mutex<Waiting>,
    came: Notify,
    taken: Notify,
}

/// The client sent more than any that keeps to its windows can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overflow;

impl Input {
    /// An empty queue.
    pub(crate) fn new(account: &Arc<Account>) -> Arc<Input> {
        Arc::new(Input {
            account: Arc::clone(account),
            waiting: Mutex::default(),
            came: Notify::new(),
            taken: Notify::new(),
        })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what came. While the queue is too full, it takes its time.
    pub(crate) async fn push(&self, bytes: &[u8]) -> Result<(), Overflow> {
        let full = {
            let mut waiting = self.waiting();
            waiting.bytes += bytes.len();
            waiting.parts.push_back(bytes.to_vec());
            let all = self
                .account
                .waiting
                .fetch_add(bytes.len(), Ordering::Relaxed)
                + bytes.len();
            if all > CLIENT_QUEUE_BYTES {
                return Err(Overflow);
            }
            let full = waiting.bytes > QUEUE_BYTES;
            self.mark(&mut waiting, full);
            full
        };
        self.came.notify_one();
        if full {
            // Whether there is room by then or not: the next drop asks again.
            let _ = tokio::time::timeout(DRIP_TIME, self.taken.notified()).await;
        }
        Ok(())
    }

    fn mark(&self, waiting: &mut Waiting, full: bool) {
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

    /// Nothing more comes.
    pub(crate) fn end(&self) {
        self.waiting().ended = true;
        self.came.notify_one();
    }

    /// Waits for what comes next; `None` at the end. Small parts that wait are put together, up to what one frame carries: a
    /// guest pays for each. For one task.
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

    fn used(&self, waiting: &mut Waiting, bytes: usize) {
        waiting.bytes -= bytes;
        self.account.waiting.fetch_sub(bytes, Ordering::Relaxed);
        if waiting.full && waiting.bytes <= QUEUE_BYTES / 2 {
            self.mark(waiting, false);
            self.taken.notify_waiters();
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let mut waiting = std::mem::take(&mut *self.waiting());
        self.account
            .waiting
            .fetch_sub(waiting.bytes, Ordering::Relaxed);
        self.mark(&mut waiting, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_came_is_taken_in_order_a_frame_at_a_time_and_ends() {
        let account = Arc::new(Account::default());
        let input = Input::new(&account);
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
    async fn a_full_queue_narrows_the_window_until_half_of_it_is_taken() {
        let account = Arc::new(Account::default());
        let input = Input::new(&account);
        let part = vec![0; QUEUE_BYTES / 4];
        for _ in 0..4 {
            input.push(&part).await.unwrap();
        }
        assert_eq!(account.window(), WINDOW_BYTES);
        input.push(&part).await.unwrap();
        assert_eq!(account.window(), DRIP_BYTES);
        for _ in 0..2 {
            input.next().await;
        }
        assert_eq!(account.window(), DRIP_BYTES);
        input.next().await;
        assert_eq!(account.window(), WINDOW_BYTES);
    }

    #[tokio::test]
    async fn a_channel_that_goes_takes_its_bytes_with_it() {
        let account = Arc::new(Account::default());
        let input = Input::new(&account);
        input.push(&vec![0; QUEUE_BYTES + 1]).await.unwrap();
        assert_eq!(account.window(), DRIP_BYTES);
        drop(input);
        assert_eq!(account.window(), WINDOW_BYTES);
        assert_eq!(account.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_client_that_ignores_its_windows_is_found_out() {
        let account = Arc::new(Account::default());
        let input = Input::new(&account);
        let part = vec![0; CLIENT_QUEUE_BYTES / 4];
        for _ in 0..4 {
            input.push(&part).await.unwrap();
        }
        assert_eq!(input.push(&[0]).await, Err(Overflow));
    }
}
