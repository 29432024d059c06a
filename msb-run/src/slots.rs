//! Who may boot now.
//!
//! A boot keeps a processor busy, in software for seconds. Thirty at once would each take thirty times as long, and longer
//! than a guest is waited for. So there are as many slots as processors; a supervisor takes one before it starts its machine,
//! and holds it until the guest takes commands or never will. A slot is a locked file: it is free when its holder is
//! gone, however it went.

use std::time::Duration;

use libmsb::state::lock::Lock;
use libmsb::state::{Home, layout, write};

/// Pause between two looks at the slots, for the one who is next.
const LOOK: Duration = Duration::from_millis(10);

/// Takes a slot, and waits until there is one. Those who wait stand in a queue, and only its first looks for a slot.
pub(crate) fn take(home: &Home) -> anyhow::Result<Lock> {
    let folder = home.runtime().join(layout::BOOT_SLOTS);
    write::create_dir(&folder)?;
    let _first = Lock::exclusive(&folder.join(layout::BOOT_QUEUE))?;
    let slots = std::thread::available_parallelism().map_or(1, usize::from);
    loop {
        for slot in 0..slots {
            if let Some(lock) = Lock::try_exclusive(&folder.join(slot.to_string()))? {
                return Ok(lock);
            }
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_when_all_slots_are_taken_gets_the_first_that_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let slots = std::thread::available_parallelism().unwrap().get();
        let mut held: Vec<Lock> = (0..slots).map(|_| take(&home).unwrap()).collect();
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            for _ in 0..3 {
                let (tell, home) = (tell.clone(), &home);
                scope.spawn(move || tell.send(take(home).unwrap()).unwrap());
            }
            for _ in 0..3 {
                assert!(told.try_recv().is_err());
                held.pop();
                // Comes only since one was let go; what is not kept here goes at once, for the next.
                held.push(told.recv().unwrap());
            }
        });
    }
}
