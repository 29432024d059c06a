//! How it all ends: the guest is shut down, its init ends, or the host is lost.

use std::time::{Duration, Instant};

use msb_wire::sandbox::{ShutdownRequest, StopEvent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::WaitStatus;

use super::Agent;
use crate::console::log;
use crate::{handover, shutdown, sys};

/// What is left of the time for a shutdown when processes are killed: for the disk to be flushed, and the host to be told.
const FLUSH_RESERVE: Duration = Duration::from_secs(2);

/// Longest time for a shutdown that is kept: a clock can count so far, and the supervisor keeps the time too.
const SHUTDOWN_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Time that processes have to vanish after SIGKILL, and the host to take their last words.
const KILL_PATIENCE: Duration = Duration::from_millis(300);

/// Time for the host to read the last answers, and to hang up.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);

/// Time between the last byte to the host and the restart.
const FAREWELL: Duration = Duration::from_millis(10);

/// On the way to the end.
pub(super) struct Stopping {
    stream: u32,
    killed: bool,
    pub(super) until: Instant,
}

impl Agent {
    pub(super) fn shut_down(&mut self, stream: u32, request: &ShutdownRequest) {
        if self.stopping.is_some() {
            let event = StopEvent::Failed {
                message: "the guest is shutting down already".into(),
            };
            return self.put_last(stream, serde_json::to_vec(&event));
        }
        self.stopping = Some(Stopping {
            stream,
            killed: false,
            until: Instant::now() + patience(Duration::from_millis(request.timeout_ms)),
        });
        if let Some(init) = self.init {
            return handover::ask_to_end(init);
        }
        sys::kill_all(libc::SIGTERM);
        // Interactive shells take no notice of SIGTERM, and who is stopped hears nothing before it goes on.
        for session in self
            .sessions
            .values()
            .filter(|session| session.holds_terminal())
        {
            sys::kill_group(session.pid().as_raw_pid(), libc::SIGHUP);
        }
        sys::kill_all(libc::SIGCONT);
        for connection in self.connections.values_mut() {
            connection.end(Some("the guest is shutting down".into()));
        }
        self.reap();
    }

    /// The next step of a shutdown, when it is time.
    pub(super) fn stop_further(&mut self) {
        let Some(stopping) = &mut self.stopping else {
            return;
        };
        let now = Instant::now();
        let quiet = !self.has_children && self.sessions.is_empty();
        if quiet || (stopping.killed && now >= stopping.until) {
            let stream = stopping.stream;
            self.finish(stream);
        }
        if !stopping.killed && (!self.has_children || now >= stopping.until) {
            sys::kill_all(libc::SIGKILL);
            stopping.killed = true;
            stopping.until = now + KILL_PATIENCE;
        }
    }

    fn finish(&mut self, stream: u32) -> ! {
        let clean = self
            .guest
            .as_ref()
            .is_none_or(|guest| shutdown::flush_disks(&guest.disks));
        self.put_last(stream, serde_json::to_vec(&StopEvent::Stopped { clean }));
        if self.port.flush(FLUSH_PATIENCE) {
            // The last bytes are in the device's queue; a host that has read them hangs up or ends the machine itself.
            let mut port = [PollFd::from_borrowed_fd(self.port.fd(), PollFlags::empty())];
            let _ = poll(&mut port, Timespec::try_from(FAREWELL).ok().as_ref());
        }
        shutdown::end()
    }

    /// The init has ended, and everything in its namespace with it.
    pub(super) fn init_ended(&mut self, status: WaitStatus) {
        self.init = None;
        handover::uncover_proc();
        if self.stopping.is_none() {
            self.port.flush(FLUSH_PATIENCE);
            if let Some(guest) = &self.guest {
                shutdown::flush_disks(&guest.disks);
            }
            handover::end_machine(status);
        }
    }

    /// The host breaks the protocol: nothing that it says can be trusted to mean what it says.
    pub(super) fn give_up(&mut self, why: &str) -> ! {
        log(&format!("error: {why}"));
        self.end_at_once()
    }

    pub(super) fn lost(&mut self, why: &str) -> ! {
        log(&format!("error: lost the host: {why}"));
        self.end_at_once()
    }

    fn end_at_once(&mut self) -> ! {
        sys::kill_all(libc::SIGKILL);
        if let Some(guest) = &self.guest {
            shutdown::flush_disks(&guest.disks);
        }
        shutdown::end()
    }
}

/// How long processes have that are asked to end, if all of the shutdown has so long.
fn patience(timeout: Duration) -> Duration {
    let timeout = timeout.min(SHUTDOWN_MAX);
    timeout - FLUSH_RESERVE.min(timeout / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_time_to_flush_after_the_last_process() {
        let seconds = Duration::from_secs;
        assert_eq!(patience(seconds(10)), seconds(8));
        assert_eq!(patience(seconds(1)), Duration::from_millis(500));
        assert!(patience(Duration::from_millis(u64::MAX)) < SHUTDOWN_MAX);
    }
}
