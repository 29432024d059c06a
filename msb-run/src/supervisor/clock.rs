//! Detection of the moments at which the guest's clock must be set.
//!
//! A guest does not notice that its host slept, that the host's clock was set, or that its VM was
//! stopped for a while. The kernel reports the first two with a timer that is cancelled when the
//! clock is set, as also happens after sleep. It reports the third with SIGCHLD when a child
//! continues. A periodic timer handles slow drift; there are no other wake-ups.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

/// Seconds between two periodic settings of the guest's clock. A bad crystal is 30 milliseconds off
/// by then, a third of what the guest corrects.
const PERIOD_S: i64 = 600;

/// A timer that is readable when the guest's clock must be set.
#[derive(Debug)]
pub(crate) struct HostClock {
    timer: OwnedFd,
}

impl HostClock {
    /// Starts to watch the host's clock.
    pub(crate) fn new() -> io::Result<HostClock> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let clock = HostClock { timer: timerfd_create(TimerfdClockId::Realtime, flags)? };
        clock.arm()?;
        Ok(clock)
    }

    fn arm(&self) -> io::Result<()> {
        let now = clock_gettime(ClockId::Realtime);
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let next = Itimerspec {
            it_interval: never,
            it_value: Timespec { tv_sec: now.tv_sec.saturating_add(PERIOD_S), ..now },
        };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        timerfd_settime(&self.timer, flags, &next)?;
        Ok(())
    }

    /// Returns whether the timer expired or the clock was set, and arms the timer again.
    pub(crate) fn is_due(&self) -> io::Result<bool> {
        let mut count = [0; 8];
        match rustix::io::read(&self.timer, &mut count) {
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Ok(_) | Err(Errno::CANCELED) => {}
            Err(error) => return Err(error.into()),
        }
        self.arm()?;
        Ok(true)
    }
}

impl AsFd for HostClock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// Returns whether a stopped child was continued. Reports it once, and leaves the child's exit
/// status to be waited for.
pub(crate) fn was_continued(child: Pid) -> bool {
    let options = WaitIdOptions::CONTINUED | WaitIdOptions::NOHANG;
    matches!(waitid(WaitId::Pid(child), options), Ok(Some(_)))
}

/// Returns nanoseconds since 1970.
pub(crate) fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_goes_on_is_noticed_once() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert!(!was_continued(pid));
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let stopped = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
        assert!(stopped.is_some());
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        assert!(was_continued(pid));
        assert!(!was_continued(pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn nothing_is_due_at_first() {
        assert!(!HostClock::new().unwrap().is_due().unwrap());
    }
}
