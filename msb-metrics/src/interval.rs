//! Timer for collections at an interval, until a signal arrives.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::signals::{Signals, signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A timer with a fixed interval. Ticks that were missed, for example while the host was suspended,
/// are skipped.
pub(crate) struct IntervalTimer {
    signals: Signals,
    interval: Duration,
    next: Instant,
}

impl IntervalTimer {
    /// Returns a timer whose first tick is now. SIGINT and SIGTERM are blocked from here on, in
    /// this thread and in threads it starts.
    pub(crate) fn new(interval: Duration) -> anyhow::Result<IntervalTimer> {
        let signals =
            Signals::of(&[signal::SIGINT, signal::SIGTERM]).context("cannot wait for signals")?;
        Ok(IntervalTimer { signals, interval, next: Instant::now() })
    }

    /// Waits for the next tick. Returns `false` if a signal arrived instead.
    pub(crate) fn wait(&mut self) -> anyhow::Result<bool> {
        loop {
            let now = Instant::now();
            if now >= self.next {
                self.next = (self.next + self.interval).max(now);
                // A pending signal must not be delayed by a long collection.
                return Ok(!self.wait_for_signal(Duration::ZERO)?);
            }
            if self.wait_for_signal(self.next - now)? {
                return Ok(false);
            }
        }
    }

    /// Consumes the pending signal, so that the next one is a different one.
    pub(crate) fn forget(&self) {
        if self.wait_for_signal(Duration::ZERO).unwrap_or(false) {
            // The signal is pending, so this does not block.
            let _ = self.signals.wait();
        }
    }

    /// Waits for a signal up to a timeout, without consuming it. Returns whether there is one.
    pub(crate) fn wait_for_signal(&self, timeout: Duration) -> anyhow::Result<bool> {
        let timeout = Timespec::try_from(timeout).ok();
        let mut fds = [PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error).context("cannot poll"),
        }
    }
}

impl AsFd for IntervalTimer {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.signals.as_fd()
    }
}
