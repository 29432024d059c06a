//! End of the agent: a shutdown request, the end of the init, or the loss of the host.

use std::time::{Duration, Instant};

use msb_wire::sandbox::{ShutdownRequest, StopEvent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitStatus};

use super::Agent;
use crate::console::log;
use crate::{handover, shutdown, sys};

/// Part of the shutdown timeout that is reserved after the processes are killed: for flushing the
/// disks and reporting to the host.
const FLUSH_RESERVE: Duration = Duration::from_secs(2);

/// Maximum shutdown timeout: it must not overflow a clock, and the supervisor has a timeout too.
const SHUTDOWN_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Timeout for processes to end after SIGKILL, and for the host to read the output.
const KILL_TIMEOUT: Duration = Duration::from_millis(300);

/// Numbers of signals.
const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;

/// Timeout for the host to read the last answers.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Delay between the last byte to the host and the restart.
const RESTART_DELAY: Duration = Duration::from_millis(10);

/// State of a shutdown.
pub(super) struct ShutdownState {
    stream: u32,
    /// Stream of the main command, until it has ended after its stop signal.
    main: Option<u32>,
    killed: bool,
    pub(super) until: Instant,
}

impl Agent {
    pub(super) fn shut_down(&mut self, stream: u32, request: &ShutdownRequest) {
        if self.stopping.is_some() {
            let event = StopEvent::Failed { message: "the guest is shutting down already".into() };
            return self.put_last(stream, serde_json::to_vec(&event));
        }
        // Nothing that waits for a frozen file system can end.
        self.thaw();
        self.stopping = Some(ShutdownState {
            stream,
            main: None,
            killed: false,
            until: Instant::now() + timeout(Duration::from_millis(request.timeout_ms)),
        });
        let signal = request.signal.filter(|signal| SIGNALS.contains(signal));
        if let Some(init) = self.init {
            return handover::request_shutdown(init, signal);
        }
        match signal.zip(self.running_main()) {
            Some((signal, (main, pid))) => self.end_main_first(signal, main, pid),
            None => self.end_all(),
        }
    }

    /// Returns the stream and the process of the main command, if it runs.
    fn running_main(&self) -> Option<(u32, Pid)> {
        let stream = self.main?;
        let session = self.sessions.get(&stream)?;
        (!session.is_draining()).then(|| (stream, session.pid()))
    }

    /// Sends the stop signal to the main command alone, as docker does: its child processes may be
    /// what it ends in order. The other commands get SIGTERM.
    fn end_main_first(&mut self, signal: i32, main: u32, pid: Pid) {
        if let Some(stopping) = &mut self.stopping {
            stopping.main = Some(main);
        }
        sys::kill_process(pid.as_raw_pid(), signal);
        sys::kill_process(pid.as_raw_pid(), libc::SIGCONT);
        for (_, session) in self.sessions.iter().filter(|(stream, _)| **stream != main) {
            let group = session.pid().as_raw_pid();
            sys::kill_group(group, libc::SIGTERM);
            if session.holds_terminal() {
                sys::kill_group(group, libc::SIGHUP);
            }
            sys::kill_group(group, libc::SIGCONT);
        }
    }

    /// Asks all processes to end.
    fn end_all(&mut self) {
        sys::kill_all(libc::SIGTERM);
        // Interactive shells ignore SIGTERM, and a stopped process handles it only when it is
        // continued.
        for session in self.sessions.values().filter(|session| session.holds_terminal()) {
            sys::kill_group(session.pid().as_raw_pid(), libc::SIGHUP);
        }
        sys::kill_all(libc::SIGCONT);
        for connection in self.connections.values_mut() {
            connection.end(Some("the guest is shutting down".into()));
        }
        self.reap();
    }

    /// Continues the shutdown when it is time.
    pub(super) fn continue_shutdown(&mut self) {
        if let Some(main) = self.stopping.as_ref().and_then(|stopping| stopping.main)
            && self.running_main().is_none_or(|(stream, _)| stream != main)
        {
            if let Some(stopping) = &mut self.stopping {
                stopping.main = None;
            }
            self.end_all();
        }
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
            stopping.until = now + KILL_TIMEOUT;
        }
    }

    fn finish(&mut self, stream: u32) -> ! {
        self.thaw();
        let clean = self.guest.as_ref().is_none_or(|guest| shutdown::flush_disks(&guest.disks));
        self.put_last(stream, serde_json::to_vec(&StopEvent::Stopped { clean }));
        if self.port.flush(FLUSH_TIMEOUT) {
            // The last bytes are in the device's queue. A host that has read them hangs up or ends
            // the VM itself.
            let mut port = [PollFd::from_borrowed_fd(self.port.fd(), PollFlags::empty())];
            let _ = poll(&mut port, Timespec::try_from(RESTART_DELAY).ok().as_ref());
        }
        shutdown::end_vm()
    }

    /// Handles the end of the init, which has ended all processes in its namespace.
    pub(super) fn init_ended(&mut self, status: WaitStatus) {
        self.init = None;
        handover::uncover_proc();
        if self.stopping.is_none() {
            self.port.flush(FLUSH_TIMEOUT);
            if let Some(guest) = &self.guest {
                shutdown::flush_disks(&guest.disks);
            }
            handover::end_machine(status);
        }
    }

    /// Ends the VM after a protocol violation of the host: its frames cannot be trusted any more.
    pub(super) fn end_on_violation(&mut self, why: &str) -> ! {
        log(&format!("error: {why}"));
        self.end_at_once()
    }

    pub(super) fn end_on_lost_host(&mut self, why: &str) -> ! {
        log(&format!("error: lost the host: {why}"));
        self.end_at_once()
    }

    fn end_at_once(&mut self) -> ! {
        sys::kill_all(libc::SIGKILL);
        if let Some(guest) = &self.guest {
            shutdown::flush_disks(&guest.disks);
        }
        shutdown::end_vm()
    }
}

/// Returns the time that processes get to end, given the timeout of the whole shutdown.
fn timeout(timeout: Duration) -> Duration {
    let timeout = timeout.min(SHUTDOWN_MAX);
    timeout - FLUSH_RESERVE.min(timeout / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_time_to_flush_after_the_last_process() {
        let seconds = Duration::from_secs;
        assert_eq!(timeout(seconds(10)), seconds(8));
        assert_eq!(timeout(seconds(1)), Duration::from_millis(500));
        assert!(timeout(Duration::from_millis(u64::MAX)) < SHUTDOWN_MAX);
    }
}
