//! Collections at an interval, until a signal comes.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::signals::{Signals, signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Moments at an interval. What was missed, when the machine slept, is not made up for.
pub(crate) struct Ticks {
    signals: Signals,
    interval: Duration,
    next: Instant,
}

impl Ticks {
    /// The first moment is now. SIGINT and SIGTERM are kept from acting from here on, in this thread and those it starts.
    pub(crate) fn every(interval: Duration) -> anyhow::Result<Ticks> {
        let signals =
            Signals::of(&[signal::SIGINT, signal::SIGTERM]).context("cannot wait for signals")?;
        Ok(Ticks {
            signals,
            interval,
            next: Instant::now(),
        })
    }

    /// Waits for the next moment. `false` when a signal came instead.
    pub(crate) fn wait(&mut self) -> anyhow::Result<bool> {
        loop {
            let now = Instant::now();
            if now >= self.next {
                self.next = (self.next + self.interval).max(now);
                // A signal that has come by now is not put off by a collection that takes long.
                return Ok(!self.signaled(Duration::ZERO)?);
            }
            if self.signaled(self.next - now)? {
                return Ok(false);
            }
        }
    }

    /// Forgets the signal that has come: what comes now is another one.
    pub(crate) fn forget(&self) {
        if self.signaled(Duration::ZERO).unwrap_or(false) {
            // It is there, so this does not wait.
            let _ = self.signals.wait();
        }
    }

    /// Whether a signal comes within a time. It stays there.
    pub(crate) fn signaled(&self, patience: Duration) -> anyhow::Result<bool> {
        let timeout = Timespec::try_from(patience).ok();
        let mut fds = [PollFd::from_borrowed_fd(
            self.signals.as_fd(),
            PollFlags::IN,
        )];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error).context("cannot wait"),
        }
    }
}

impl AsFd for Ticks {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.signals.as_fd()
    }
}
