//! When the guest's clock must be told the time.
//!
//! A guest does not notice that its host slept, that the host's clock was set, or that its machine was stopped for a
//! while. The kernel tells us of the first two (a timer that is cancelled when the clock is set, as it also is after
//! sleep) and of the third (SIGCHLD when a child goes on). For clocks that merely drift apart the timer runs out now and
//! then; between that nobody is woken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

/// Seconds after which the guest is told the time without a reason. A bad crystal is 30 milliseconds off by then, a
/// third of what the guest corrects.
const PERIOD_S: i64 = 600;

/// Ready for reading when the guest must be told the time.
#[derive(Debug)]
pub(crate) struct HostClock {
    timer: OwnedFd,
}

impl HostClock {
    /// Begins to watch the host's clock.
    pub(crate) fn new() -> io::Result<HostClock> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let clock = HostClock {
            timer: timerfd_create(TimerfdClockId::Realtime, flags)?,
        };
        clock.arm()?;
        Ok(clock)
    }

    fn arm(&self) -> io::Result<()> {
        let now = clock_gettime(ClockId::Realtime);
        let never = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let next = Itimerspec {
            it_interval: never,
            it_value: Timespec {
                tv_sec: now.tv_sec.saturating_add(PERIOD_S),
                ..now
            },
        };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        timerfd_settime(&self.timer, flags, &next)?;
        Ok(())
    }

    /// Whether it is time: it ran out, or the clock was set. It is wound up again.
    pub(crate) fn is_time(&self) -> io::Result<bool> {
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

/// Whether a child goes on that was stopped. Says so once, and takes nothing of its end.
pub(crate) fn went_on(child: Pid) -> bool {
    let options = WaitIdOptions::CONTINUED | WaitIdOptions::NOHANG;
    matches!(waitid(WaitId::Pid(child), options), Ok(Some(_)))
}

/// Nanoseconds since 1970.
pub(crate) fn unix_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_goes_on_is_noticed_once() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        assert!(!went_on(pid));
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let stopped = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
        assert!(stopped.is_some());
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        assert!(went_on(pid));
        assert!(!went_on(pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn nothing_is_due_at_first() {
        assert!(!HostClock::new().unwrap().is_time().unwrap());
    }
}
