//! Asking supervisors to look more often, for as long as somebody does.
//!
//! A subscription is a connection on which nothing is ever said again; see [`msb_wire::samples`]. A supervisor that cannot
//! be reached, or is too busy, looks as often as it did, and is asked again after a while.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use libmsb::cli::args::SandboxName;
use libmsb::samples::INTERVAL_MS;
use libmsb::state::Home;
use msb_wire::samples::SamplesRequest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What we call ourselves to a supervisor.
const PROGRAM: &str = concat!("msb-metrics ", env!("CARGO_PKG_VERSION"));
/// Time after which a subscription is looked at, and one that is lost, or could not be had, is tried again.
const LOOK_NS: u64 = INTERVAL_MS * 1_000_000;
/// Descriptors that are left for everything else.
const DESCRIPTORS_KEPT: u64 = 64;

/// How often.
#[derive(Debug)]
pub(crate) struct Watch {
    interval_ms: u64,
}

/// A subscription to one life of a sandbox; no socket, if it could not be had. It is over with this value.
#[derive(Debug)]
pub(crate) struct Subscription {
    run_id: u64,
    socket: Option<UnixStream>,
    /// When it was begun, or found to be in order: nanoseconds since the host's boot.
    looked_ns: u64,
}

impl Subscription {
    /// Whether it need not be tried again.
    fn is_in_order(&mut self, run_id: u64, now_ns: u64) -> bool {
        if self.run_id != run_id {
            return false;
        }
        if now_ns.saturating_sub(self.looked_ns) < LOOK_NS {
            return true;
        }
        self.looked_ns = now_ns;
        self.socket.as_ref().is_some_and(is_connected)
    }
}

/// Whether the other side has not closed its end. What it said in the beginning is still there to be read.
fn is_connected(socket: &UnixStream) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    match poll(&mut fds, Some(&Timespec::default())) {
        Ok(_) => fds[0].revents().is_empty(),
        Err(_) => true,
    }
}

impl Watch {
    /// At this interval; none when supervisors look that often anyway.
    pub(crate) fn at(interval: Duration) -> Option<Watch> {
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        (interval_ms < INTERVAL_MS).then_some(Watch { interval_ms })
    }

    /// Subscribes to a life, unless that was done, or there is no room for more.
    pub(crate) fn keep(
        &self,
        subscription: &mut Option<Subscription>,
        home: &Home,
        (name, run_id): (&SandboxName, u64),
        now_ns: u64,
        room: &mut usize,
    ) {
        if subscription
            .as_mut()
            .is_some_and(|kept| kept.is_in_order(run_id, now_ns))
        {
            return;
        }
        if subscription.take().is_some() {
            *room += 1;
        }
        if *room == 0 {
            return;
        }
        *room -= 1;
        let request = SamplesRequest {
            interval_ms: self.interval_ms,
        };
        let socket = msb_wire::client::subscribe(&home.agent_socket(name), PROGRAM, request);
        *subscription = Some(Subscription {
            run_id,
            socket: socket.ok(),
            looked_ns: now_ns,
        });
    }
}

/// How many descriptors there may be: as many as the system lets us have.
pub(crate) fn descriptors() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let reached = if setrlimit(Resource::Nofile, wanted).is_ok() {
        limit.maximum
    } else {
        limit.current
    };
    let room = reached.map_or(u64::MAX, |limit| limit.saturating_sub(DESCRIPTORS_KEPT));
    usize::try_from(room).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_subscription_that_failed_or_was_lost_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let name: SandboxName = "web".parse().unwrap();
        let socket = home.agent_socket(&name);
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let watch = Watch::at(Duration::from_secs(1)).unwrap();
        let (mut kept, mut room) = (None, 5);
        let mut keep_at = |now_ns| {
            watch.keep(&mut kept, &home, (&name, 1), now_ns, &mut room);
            (kept.as_ref().unwrap().socket.is_some(), room)
        };
        // Nobody listens yet.
        assert_eq!(keep_at(0), (false, 4));
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(keep_at(LOOK_NS - 1), (false, 4));
        assert_eq!(keep_at(LOOK_NS), (true, 4));
        let (mut first, _) = listener.accept().unwrap();
        // All that was asked is taken, or the close would be another one.
        let asked = first.read(&mut [0; 4096]).unwrap();
        assert!(asked > 0);
        assert_eq!(keep_at(2 * LOOK_NS), (true, 4));
        assert!(listener.accept().is_err(), "it is in order");
        drop(first);
        assert_eq!(keep_at(3 * LOOK_NS), (true, 4));
        assert!(listener.accept().is_ok());
    }
}
