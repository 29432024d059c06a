//! Access to the store: shared for those who add images, exclusive for those who remove them.

use std::io::IsTerminal;

use anyhow::Result;
use libmsb::state::Home;
use libmsb::state::images::Store;
use libmsb::state::lock::Lock;

use crate::report::print_note;
use crate::store::garbage::{CollectMode, GarbageCollector};

/// Prepares the store for writing and returns its lock, shared. Removes leftovers first, if no
/// other process uses the store.
pub(crate) fn open_for_adding(home: &Home) -> Result<(Store, Lock)> {
    home.prepare()?;
    let store = home.images();
    store.prepare()?;
    if let Some(lock) = Lock::try_exclusive(&store.lock())? {
        // Leftovers that cannot be removed do no harm.
        drop(GarbageCollector::new(&store, CollectMode::Remove).collect_leftovers());
        drop(lock);
    }
    let lock = Lock::shared(&store.lock())?;
    Ok((store, lock))
}

/// Takes the store's lock exclusively. Waits for running loads, pulls and starts.
pub(crate) fn lock_exclusively(store: &Store) -> Result<Lock> {
    if let Some(lock) = Lock::try_exclusive(&store.lock())? {
        return Ok(lock);
    }
    if std::io::stderr().is_terminal() {
        print_note("Waiting for other processes that use the image store");
    }
    Lock::exclusive(&store.lock())
}
