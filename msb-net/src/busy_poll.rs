//! Busy polling between the messages of a request-response exchange.
//!
//! Waking a sleeping thread takes longer than processing a small message, above all on an idle
//! processor that must first leave its sleep state. When requests and responses follow each other
//! quickly, that latency dominates. So the event loop polls for a short time before it sleeps, as a
//! hypervisor does for a halted virtual processor (Documentation/virt/kvm/halt-polling.rst). It
//! does not poll when messages are far apart or arrive in bulk, nor on a single processor, which
//! other processes need.

use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event};
use rustix::fd::AsFd;
use rustix::io::Errno;

/// Time to busy-poll before sleeping.
const POLL_TIME: Duration = Duration::from_micros(100);
/// Longest wait, including the wake-up, that would have been worth polling for.
const SHORT_WAIT: Duration = Duration::from_micros(150);

/// The decision whether to busy-poll before the next sleep.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    /// More than one processor is available.
    has_spare_cpu: bool,
    /// The last wait of the exchange was short. After a long wait the loop sleeps, so at most every
    /// second poll is wasted.
    last_wait_short: bool,
}

impl BusyPoll {
    pub(crate) fn new() -> BusyPoll {
        let processors = std::thread::available_parallelism();
        BusyPoll {
            has_spare_cpu: processors.is_ok_and(|count| count.get() > 1),
            last_wait_short: true,
        }
    }

    /// Waits for events until the timeout. A timeout of zero returns at once and never polls.
    /// `interactive`: the last events belonged to a request-response exchange.
    pub(crate) fn wait(
        &mut self,
        epoll: impl AsFd,
        events: &mut Vec<Event>,
        timeout: Option<&Timespec>,
        interactive: bool,
    ) -> Result<(), Errno> {
        if timeout == Some(&Timespec::default()) {
            return epoll::wait(epoll, spare_capacity(events), timeout).map(drop);
        }
        if !interactive || !self.has_spare_cpu {
            self.last_wait_short = true;
            return epoll::wait(epoll, spare_capacity(events), timeout).map(drop);
        }
        let start = Instant::now();
        while self.last_wait_short && events.is_empty() && start.elapsed() < POLL_TIME {
            epoll::wait(&epoll, spare_capacity(events), Some(&Timespec::default()))?;
        }
        if !events.is_empty() {
            return Ok(());
        }
        epoll::wait(epoll, spare_capacity(events), timeout)?;
        self.last_wait_short = !self.last_wait_short && start.elapsed() < SHORT_WAIT;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::epoll::{CreateFlags, EventData, EventFlags};
    use rustix::event::{EventfdFlags, eventfd};

    /// Waits for an event that is ready (`after` is zero), or for a timeout of `after`. Returns the
    /// elapsed time.
    fn wait(poll: &mut BusyPoll, after: Duration, interactive: bool) -> Duration {
        let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
        let event = eventfd(u32::from(after.is_zero()), EventfdFlags::CLOEXEC).unwrap();
        epoll::add(&epoll, &event, EventData::new_u64(0), EventFlags::IN).unwrap();
        let mut events = Vec::with_capacity(1);
        let timeout = if after.is_zero() { 1000 * SHORT_WAIT } else { after };
        let timeout = Timespec::try_from(timeout).unwrap();
        let start = Instant::now();
        let result = poll.wait(epoll, &mut events, Some(&timeout), interactive);
        assert_eq!((result, events.len()), (Ok(()), usize::from(after.is_zero())));
        start.elapsed()
    }

    #[test]
    fn after_a_long_wait_there_is_no_poll_until_a_short_one() {
        let mut poll = BusyPoll { has_spare_cpu: true, last_wait_short: true };
        wait(&mut poll, Duration::ZERO, true);
        assert!(poll.last_wait_short);
        let long = 10 * SHORT_WAIT;
        for _ in 0..3 {
            assert!(wait(&mut poll, long, true) >= long);
            assert!(!poll.last_wait_short);
        }
        // A loaded computer may take longer than that.
        let last_wait_short = (0..1000).any(|_| {
            wait(&mut poll, Duration::ZERO, true);
            poll.last_wait_short
        });
        assert!(last_wait_short);
    }

    #[test]
    fn a_zero_timeout_never_polls() {
        let mut poll = BusyPoll { has_spare_cpu: true, last_wait_short: true };
        let mut events = Vec::with_capacity(1);
        let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
        // A wasted poll would be recorded.
        let result = poll.wait(epoll, &mut events, Some(&Timespec::default()), true);
        assert_eq!((result, poll.last_wait_short), (Ok(()), true));
    }

    #[test]
    fn there_is_no_poll_without_interaction_or_a_spare_processor() {
        for (has_spare_cpu, interactive) in [(true, false), (false, true)] {
            let mut poll = BusyPoll { has_spare_cpu, last_wait_short: true };
            wait(&mut poll, 10 * SHORT_WAIT, interactive);
            assert!(poll.last_wait_short, "it was not looked in vain");
        }
    }
}
