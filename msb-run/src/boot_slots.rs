//! Boot slots: a limit on the number of concurrent boots.
//!
//! A boot keeps a processor busy, in software emulation for seconds. Thirty boots at once would
//! each take thirty times as long, which exceeds the boot timeout. So there are as many slots as
//! processors. A supervisor takes a slot before it starts its VM, and holds it until the guest
//! accepts commands or has failed. A slot is a locked file: it becomes free when its holder ends,
//! for any reason.

use std::time::Duration;

use libmsb::state::lock::Lock;
use libmsb::state::{Home, layout, write};

/// Poll interval of the first supervisor in the queue.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Takes a boot slot, and waits until one is free. Waiting supervisors form a queue, and only the
/// first of them polls the slots.
pub(crate) fn acquire(home: &Home) -> anyhow::Result<Lock> {
    let directory = home.runtime().join(layout::BOOT_SLOTS);
    write::create_dir(&directory)?;
    let _first = Lock::exclusive(&directory.join(layout::BOOT_QUEUE))?;
    let slots = std::thread::available_parallelism().map_or(1, usize::from);
    loop {
        for slot in 0..slots {
            if let Some(lock) = Lock::try_exclusive(&directory.join(slot.to_string()))? {
                return Ok(lock);
            }
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_get_the_first_slot_that_becomes_free() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let slots = std::thread::available_parallelism().unwrap().get();
        let mut held: Vec<Lock> = (0..slots).map(|_| acquire(&home).unwrap()).collect();
        std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel();
            for _ in 0..3 {
                let (sender, home) = (sender.clone(), &home);
                scope.spawn(move || sender.send(acquire(home).unwrap()).unwrap());
            }
            for _ in 0..3 {
                assert!(receiver.try_recv().is_err());
                held.pop();
                // A slot arrives only after one was released; the popped lock is dropped at once,
                // for the next thread.
                held.push(receiver.recv().unwrap());
            }
        });
    }
}
