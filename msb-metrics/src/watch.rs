//! Asking supervisors to look more often, for as long as somebody does.
//!
//! A subscription is a connection on which nothing is ever said again; see [`msb_wire::samples`]. A supervisor that cannot
//! be reached, or is too busy, looks as often as it did.

use std::time::Duration;

use libmsb::cli::args::SandboxName;
use libmsb::samples::INTERVAL_MS;
use libmsb::state::Home;
use msb_wire::samples::SamplesRequest;

/// What we call ourselves to a supervisor.
const PROGRAM: &str = concat!("msb-metrics ", env!("CARGO_PKG_VERSION"));
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
    _socket: Option<std::os::unix::net::UnixStream>,
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
        room: &mut usize,
    ) {
        if subscription
            .as_ref()
            .is_some_and(|kept| kept.run_id == run_id)
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
            _socket: socket.ok(),
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
