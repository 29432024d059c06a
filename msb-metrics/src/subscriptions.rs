//! Subscriptions that ask supervisors for more frequent samples.
//!
//! A subscription is a connection without further messages; see [`msb_wire::samples`]. A supervisor
//! that cannot be reached, or has too many clients, keeps its normal interval; the subscription is
//! retried later.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use libmsb::cli::args::SandboxName;
use libmsb::samples::INTERVAL_MS;
use libmsb::state::Home;
use msb_wire::samples::SamplesRequest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Program name that is sent in the handshake.
const PROGRAM: &str = concat!("msb-metrics ", env!("CARGO_PKG_VERSION"));
/// Time after which a subscription is checked, and a failed one is retried.
const CHECK_INTERVAL_NS: u64 = INTERVAL_MS * 1_000_000;
/// Number of descriptors reserved for other purposes.
const RESERVED_DESCRIPTORS: u64 = 64;

/// Source of subscriptions with one interval.
#[derive(Debug)]
pub(crate) struct SampleSubscriber {
    interval_ms: u64,
}

/// A subscription to one run of a sandbox, without a socket if it failed. Dropping it ends the
/// subscription.
#[derive(Debug)]
pub(crate) struct SampleSubscription {
    run_id: u64,
    socket: Option<UnixStream>,
    /// Time of the subscription or of the last check, in nanoseconds since the host's boot.
    checked_ns: u64,
}

impl SampleSubscription {
    /// Returns whether the subscription needs no retry.
    fn needs_no_retry(&mut self, run_id: u64, now_ns: u64) -> bool {
        if self.run_id != run_id {
            return false;
        }
        if now_ns.saturating_sub(self.checked_ns) < CHECK_INTERVAL_NS {
            return true;
        }
        self.checked_ns = now_ns;
        self.socket.as_ref().is_some_and(is_connected)
    }
}

/// Returns whether the peer has not closed its end. Its first messages may still be unread.
fn is_connected(socket: &UnixStream) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    match poll(&mut fds, Some(&Timespec::default())) {
        Ok(_) => fds[0].revents().is_empty(),
        Err(_) => true,
    }
}

impl SampleSubscriber {
    /// Returns a source for this interval, or `None` if supervisors sample that often anyway.
    pub(crate) fn at(interval: Duration) -> Option<SampleSubscriber> {
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        (interval_ms < INTERVAL_MS).then_some(SampleSubscriber { interval_ms })
    }

    /// Subscribes to a run unless there is a subscription already or the limit is reached.
    pub(crate) fn renew(
        &self,
        subscription: &mut Option<SampleSubscription>,
        home: &Home,
        (name, run_id): (&SandboxName, u64),
        now_ns: u64,
        room: &mut usize,
    ) {
        if subscription.as_mut().is_some_and(|kept| kept.needs_no_retry(run_id, now_ns)) {
            return;
        }
        if subscription.take().is_some() {
            *room += 1;
        }
        if *room == 0 {
            return;
        }
        *room -= 1;
        let request = SamplesRequest { interval_ms: self.interval_ms };
        let socket = msb_wire::client::subscribe(&home.agent_socket(name), PROGRAM, request);
        *subscription =
            Some(SampleSubscription { run_id, socket: socket.ok(), checked_ns: now_ns });
    }
}

/// Raises the limit of open descriptors to the hard limit, and returns how many may be used.
pub(crate) fn raise_descriptor_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, ..limit };
    let reached =
        if setrlimit(Resource::Nofile, wanted).is_ok() { limit.maximum } else { limit.current };
    let room = reached.map_or(u64::MAX, |limit| limit.saturating_sub(RESERVED_DESCRIPTORS));
    usize::try_from(room).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_failed_or_lost_subscription_is_retried() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let name: SandboxName = "web".parse().unwrap();
        let socket = home.agent_socket(&name);
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let watch = SampleSubscriber::at(Duration::from_secs(1)).unwrap();
        let (mut kept, mut room) = (None, 5);
        let mut keep_at = |now_ns| {
            watch.renew(&mut kept, &home, (&name, 1), now_ns, &mut room);
            (kept.as_ref().unwrap().socket.is_some(), room)
        };
        // No socket yet.
        assert_eq!(keep_at(0), (false, 4));
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(keep_at(CHECK_INTERVAL_NS - 1), (false, 4));
        assert_eq!(keep_at(CHECK_INTERVAL_NS), (true, 4));
        let (mut first, _) = listener.accept().unwrap();
        // Read the whole request, so that the later close is seen as one.
        let asked = first.read(&mut [0; 4096]).unwrap();
        assert!(asked > 0);
        assert_eq!(keep_at(2 * CHECK_INTERVAL_NS), (true, 4));
        assert!(listener.accept().is_err(), "it is in order");
        drop(first);
        assert_eq!(keep_at(3 * CHECK_INTERVAL_NS), (true, 4));
        assert!(listener.accept().is_ok());
    }
}
