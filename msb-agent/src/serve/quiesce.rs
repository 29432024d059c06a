//! Standing still while the host saves the memory, and waking up afterwards; see
//! [`msb_wire::memory`].

use msb_wire::boot::BootEvent;
use msb_wire::exec::FailureKind;
use msb_wire::frame::Assembler;
use msb_wire::memory::{QuiesceEvent, WakeIdentity, WakeRequest};
use rustix::event::{PollFd, poll};

use super::{Agent, PollResult};
use crate::console::{log, reason};
use crate::env::BaseEnvironment;
use crate::exec::StartRefusal;
use crate::{boot, clock, identity, machine_id, net};

impl Agent {
    /// Flushes the upper file system, and sends nothing after the answer.
    pub(super) fn quiesce(&mut self, stream: u32) {
        let event = match &self.guest {
            Some(guest) if self.stopping.is_none() => {
                if let Err(error) = rustix::fs::syncfs(&guest.upper) {
                    log(&format!("cannot flush the upper file system: {}", reason(error)));
                }
                self.is_quiescent = true;
                QuiesceEvent::Quiescent { uptime_ns: clock::boottime_ns() }
            }
            _ => QuiesceEvent::Failed { message: "the guest is not running".to_owned() },
        };
        self.put_last(stream, serde_json::to_vec(&event));
    }

    /// Waits for the host alone.
    pub(super) fn wait_for_host(&self) -> PollResult {
        let mut polled = [PollFd::from_borrowed_fd(self.port.fd(), self.port_events())];
        // After an error nothing is ready, and the next iteration waits again.
        let _ = poll(&mut polled, None);
        PollResult {
            port: polled[0].revents(),
            children: false,
            sessions: Vec::new(),
            connections: Vec::new(),
        }
    }

    /// Goes on, with a new identity in a guest from saved memory.
    pub(super) fn wake(&mut self, stream: u32, request: WakeRequest) {
        if !self.is_quiescent {
            let why = "the agent does not wait for the host";
            return self.refuse(stream, StartRefusal::new(FailureKind::Other, why));
        }
        self.is_quiescent = false;
        let event = match request.identity {
            Some(identity) => self.change_identity(*identity),
            None => boot::ready(),
        };
        self.put_last(stream, serde_json::to_vec(&event));
        // Processes may have ended meanwhile.
        self.reap();
    }

    fn change_identity(&mut self, new: WakeIdentity) -> BootEvent {
        let WakeIdentity { boot: request, keep } = new;
        if let Err(error) = clock::set(request.clock_unix_ns) {
            log(&format!("cannot set the clock: {}", reason(error)));
        }
        boot::add_entropy(&request.entropy_hex);
        self.close_streams(&keep);
        let failed = |stage: &str, message| BootEvent::Failed { stage: stage.to_owned(), message };
        let Some(guest) = &mut self.guest else {
            return failed("request", "the guest is not set up".to_owned());
        };
        let hosts = request.net.as_ref().map_or(&[][..], |net| net.hosts.as_slice());
        if let Err(message) = identity::set(&request.hostname, hosts) {
            return failed("hostname", message);
        }
        if let Some(new) = &request.net
            && let Err(message) = net::change(guest.net.as_ref(), new)
        {
            return failed("network", message);
        }
        if let Some(id) = &request.machine_id {
            machine_id::replace(id);
        }
        guest.env = BaseEnvironment::new(&request.hostname, &request.env, request.guest.scripts);
        (guest.cwd, guest.user) = (request.cwd, request.user);
        (guest.security, guest.rlimits) = (request.guest.security, request.guest.rlimits);
        guest.net = request.net;
        boot::ready()
    }

    /// Closes all streams of the old host but some, without an event: the new host does not know
    /// them.
    fn close_streams(&mut self, keep: &[u32]) {
        self.messages = Assembler::new();
        self.opening.clear();
        self.samples = None;
        self.next_freeze = None;
        // The helper process that has it frozen ends with its pipes, and thaws it again in vain.
        self.thaw();
        self.connections.clear();
        for (stream, mut session) in std::mem::take(&mut self.sessions) {
            if keep.contains(&stream) {
                session.reset_credit();
                self.sessions.insert(stream, session);
            } else {
                // The process is reaped like any other.
                session.hang_up();
            }
        }
        self.main = self.main.filter(|main| self.sessions.contains_key(main));
    }
}
