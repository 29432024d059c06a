//! Connections that have not authenticated yet.
//!
//! They cost memory and descriptors, and any peer that reaches the port can open them, so their
//! number is limited. One more connection closes the oldest one of the source with the most of
//! them. A flood thus closes its own connections, and a client that logs in promptly is through
//! before its turn comes.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Connections that have not authenticated yet.
#[derive(Debug)]
pub(crate) struct PendingLogins {
    max: usize,
    entries: Mutex<LoginQueue>,
}

#[derive(Debug, Default)]
struct LoginQueue {
    next: u64,
    /// Connections, oldest first.
    waiting: Vec<PendingLogin>,
}

#[derive(Debug)]
struct PendingLogin {
    id: u64,
    source: IpAddr,
    cut: oneshot::Sender<()>,
}

/// Slot of one connection, freed when dropped.
#[derive(Debug)]
pub(crate) struct LoginSlot {
    pending: Arc<PendingLogins>,
    id: u64,
}

impl PendingLogins {
    /// Returns a queue with room for `max` connections.
    pub(crate) fn new(max: usize) -> Arc<PendingLogins> {
        Arc::new(PendingLogins { max, entries: Mutex::default() })
    }

    fn entries(&self) -> MutexGuard<'_, LoginQueue> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection, and evicts another one if there is no free slot. A message on `cut` asks
    /// for the connection to be closed.
    pub(crate) fn add(
        self: &Arc<PendingLogins>,
        source: IpAddr,
        cut: oneshot::Sender<()>,
    ) -> LoginSlot {
        let mut entries = self.entries();
        if entries.waiting.len() >= self.max {
            let at = oldest_of_busiest(&entries.waiting);
            let _ = entries.waiting.remove(at).cut.send(());
        }
        let id = entries.next;
        entries.next += 1;
        entries.waiting.push(PendingLogin { id, source, cut });
        LoginSlot { pending: Arc::clone(self), id }
    }
}

fn oldest_of_busiest(waiting: &[PendingLogin]) -> usize {
    let count = |source: IpAddr| waiting.iter().filter(|entry| entry.source == source).count();
    let mut busiest = (0, 0);
    for (at, entry) in waiting.iter().enumerate() {
        let count = count(entry.source);
        if count > busiest.1 {
            busiest = (at, count);
        }
    }
    busiest.0
}

impl Drop for LoginSlot {
    fn drop(&mut self) {
        let mut entries = self.pending.entries();
        entries.waiting.retain(|entry| entry.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_evicts_its_own_connections() {
        let pending = PendingLogins::new(3);
        let (flood, user): (IpAddr, IpAddr) =
            ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let add = |source| {
            let (cut, was_cut) = oneshot::channel();
            (pending.add(source, cut), was_cut)
        };
        let mut users = add(user);
        let mut first = add(flood);
        let mut second = add(flood);
        let mut third = add(flood);
        assert_eq!(first.1.try_recv(), Ok(()));
        assert!(second.1.try_recv().is_err());
        let _fourth = add(flood);
        assert_eq!(second.1.try_recv(), Ok(()));
        assert!(users.1.try_recv().is_err() && third.1.try_recv().is_err());
    }

    #[test]
    fn a_closed_connection_frees_its_slot() {
        let pending = PendingLogins::new(1);
        let source = "10.0.0.1".parse().unwrap();
        let (cut, _was_cut) = oneshot::channel();
        drop(pending.add(source, cut));
        assert!(pending.entries().waiting.is_empty());
    }
}
