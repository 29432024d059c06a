//! How the loop waits: it sleeps, but between two lines of a conversation it looks for a moment first.
//!
//! To be woken takes longer than all that is done with a small message, most of all on a processor that is idle and has to
//! be called first. Where question and answer follow each other quickly, nearly all of their time would be that. So who would
//! sleep for less time than it takes to be woken does not sleep, as a hypervisor does it for a guest's processor that halts
//! (Documentation/virt/kvm/halt-polling.rst). Nothing is looked for where messages are further apart or come in bulk, nor
//! where there is one processor, which the others need.

use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event};
use rustix::fd::AsFd;
use rustix::io::Errno;

/// Time that is looked before sleeping.
const LOOK: Duration = Duration::from_micros(100);
/// A sleep that was shorter, with the time to be woken in it, would have been worth looking.
const QUICK: Duration = Duration::from_micros(150);

/// Whether it is worth to look.
#[derive(Debug)]
pub(crate) struct Patience {
    /// There is a processor for the others meanwhile.
    has_room: bool,
    /// The last wait of the conversation was short. After one that was not it is slept, so no more than every second look
    /// is in vain.
    quick: bool,
}

impl Patience {
    pub(crate) fn new() -> Patience {
        let processors = std::thread::available_parallelism();
        Patience {
            has_room: processors.is_ok_and(|count| count.get() > 1),
            quick: true,
        }
    }

    /// Waits for events, for so long at the most; no time at all is none to look in. `converses`: the last ones belonged to
    /// a conversation.
    pub(crate) fn wait(
        &mut self,
        epoll: impl AsFd,
        events: &mut Vec<Event>,
        timeout: Option<&Timespec>,
        converses: bool,
    ) -> Result<(), Errno> {
        if timeout == Some(&Timespec::default()) {
            return epoll::wait(epoll, spare_capacity(events), timeout).map(drop);
        }
        if !converses || !self.has_room {
            self.quick = true;
            return epoll::wait(epoll, spare_capacity(events), timeout).map(drop);
        }
        let begin = Instant::now();
        while self.quick && events.is_empty() && begin.elapsed() < LOOK {
            epoll::wait(&epoll, spare_capacity(events), Some(&Timespec::default()))?;
        }
        if !events.is_empty() {
            return Ok(());
        }
        epoll::wait(epoll, spare_capacity(events), timeout)?;
        self.quick = !self.quick && begin.elapsed() < QUICK;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::epoll::{CreateFlags, EventData, EventFlags};
    use rustix::event::{EventfdFlags, eventfd};

    /// Waits for what is there already, or so long for what does not come. Gives how long it took.
    fn wait(patience: &mut Patience, after: Duration, converses: bool) -> Duration {
        let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
        let event = eventfd(u32::from(after.is_zero()), EventfdFlags::CLOEXEC).unwrap();
        epoll::add(&epoll, &event, EventData::new_u64(0), EventFlags::IN).unwrap();
        let mut events = Vec::with_capacity(1);
        let most = if after.is_zero() { 1000 * QUICK } else { after };
        let timeout = Timespec::try_from(most).unwrap();
        let begin = Instant::now();
        let waited = patience.wait(epoll, &mut events, Some(&timeout), converses);
        assert_eq!(
            (waited, events.len()),
            (Ok(()), usize::from(after.is_zero()))
        );
        begin.elapsed()
    }

    #[test]
    fn after_a_long_wait_nobody_looks_until_one_was_short() {
        let mut patience = Patience {
            has_room: true,
            quick: true,
        };
        wait(&mut patience, Duration::ZERO, true);
        assert!(patience.quick);
        let long = 10 * QUICK;
        for _ in 0..3 {
            assert!(wait(&mut patience, long, true) >= long);
            assert!(!patience.quick);
        }
        // A busy machine may take longer than that.
        let quick = (0..1000).any(|_| {
            wait(&mut patience, Duration::ZERO, true);
            patience.quick
        });
        assert!(quick);
    }

    #[test]
    fn who_has_work_to_do_does_not_look_for_more() {
        let mut patience = Patience {
            has_room: true,
            quick: true,
        };
        let mut events = Vec::with_capacity(1);
        let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
        // A look in vain would be remembered.
        let waited = patience.wait(epoll, &mut events, Some(&Timespec::default()), true);
        assert_eq!((waited, patience.quick), (Ok(()), true));
    }

    #[test]
    fn nobody_looks_outside_of_a_conversation_or_with_one_processor() {
        for (has_room, converses) in [(true, false), (false, true)] {
            let mut patience = Patience {
                has_room,
                quick: true,
            };
            wait(&mut patience, 10 * QUICK, converses);
            assert!(patience.quick, "it was not looked in vain");
        }
    }
}
