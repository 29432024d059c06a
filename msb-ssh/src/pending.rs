//! Connections from which nobody has logged in yet.
//!
//! They cost memory and descriptors, and whoever can reach the port can open them. So there may be a number of them, and
//! one more drives the oldest one of the busiest source out: a flood drives itself out, and who logs in at once is
//! through before it is his turn.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// All of them.
#[derive(Debug)]
pub(crate) struct Pending {
    most: usize,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    /// The oldest first.
    waiting: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    source: IpAddr,
    cut: oneshot::Sender<()>,
}

/// The place of one connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    pending: Arc<Pending>,
    id: u64,
}

impl Pending {
    /// Room for so many.
    pub(crate) fn new(most: usize) -> Arc<Pending> {
        Arc::new(Pending {
            most,
            entries: Mutex::default(),
        })
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, from another one if there is none left. When `cut` is sent, the connection is to be closed.
    pub(crate) fn enter(self: &Arc<Pending>, source: IpAddr, cut: oneshot::Sender<()>) -> Place {
        let mut entries = self.entries();
        if entries.waiting.len() >= self.most {
            let at = oldest_of_busiest(&entries.waiting);
            let _ = entries.waiting.remove(at).cut.send(());
        }
        let id = entries.next;
        entries.next += 1;
        entries.waiting.push(Entry { id, source, cut });
        Place {
            pending: Arc::clone(self),
            id,
        }
    }
}

fn oldest_of_busiest(waiting: &[Entry]) -> usize {
    let count = |source: IpAddr| {
        waiting
            .iter()
            .filter(|entry| entry.source == source)
            .count()
    };
    let mut busiest = (0, 0);
    for (at, entry) in waiting.iter().enumerate() {
        let count = count(entry.source);
        if count > busiest.1 {
            busiest = (at, count);
        }
    }
    busiest.0
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut entries = self.pending.entries();
        entries.waiting.retain(|entry| entry.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_drives_itself_out() {
        let pending = Pending::new(3);
        let (flood, user): (IpAddr, IpAddr) =
            ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let enter = |source| {
            let (cut, was_cut) = oneshot::channel();
            (pending.enter(source, cut), was_cut)
        };
        let mut users = enter(user);
        let mut first = enter(flood);
        let mut second = enter(flood);
        let mut third = enter(flood);
        assert_eq!(first.1.try_recv(), Ok(()));
        assert!(second.1.try_recv().is_err());
        let _fourth = enter(flood);
        assert_eq!(second.1.try_recv(), Ok(()));
        assert!(users.1.try_recv().is_err() && third.1.try_recv().is_err());
    }

    #[test]
    fn who_has_gone_takes_no_place() {
        let pending = Pending::new(1);
        let source = "10.0.0.1".parse().unwrap();
        let (cut, _was_cut) = oneshot::channel();
        drop(pending.enter(source, cut));
        assert!(pending.entries().waiting.is_empty());
    }
}
