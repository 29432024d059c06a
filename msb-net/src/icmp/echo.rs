//! Echoes: ping.
//!
//! The gateway answers echo requests itself. Requests to other addresses go through ICMP sockets of
//! the host, one for each identifier and peer. If the system does not permit these, the guest gets
//! an error "administratively prohibited". All other messages are ignored.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::message::{
    ICMP_HEADER_BYTES, IcmpError, message_type, send_error, send_message, unreachable_error,
};
use crate::context::{EventSource, StackContext};
use crate::host_sockets;
use crate::ip::Packet;
use crate::limits::{PING_FLOWS_MAX, PING_TIMEOUT};
use crate::slab::{Slab, SlabKey};
use crate::timer_queue::TimerQueue;

/// The identity of an echo flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct EchoId {
    guest: IpAddr,
    remote: IpAddr,
    id: [u8; 2],
}

/// An echo flow.
struct EchoFlow {
    id: EchoId,
    socket: OwnedFd,
    used: Instant,
    timer: Option<Instant>,
}

/// The table of echo flows.
pub(crate) struct Icmp {
    flows: Slab<EchoFlow>,
    by_id: HashMap<EchoId, SlabKey>,
    timers: TimerQueue<SlabKey>,
}

impl Icmp {
    pub(crate) fn new() -> Icmp {
        Icmp { flows: Slab::new(), by_id: HashMap::new(), timers: TimerQueue::new() }
    }

    /// Handles an ICMP message from the guest.
    pub(crate) fn handle_packet(&mut self, context: &mut StackContext, packet: &Packet<'_>) {
        let Some((header, rest)) = packet.payload.split_first_chunk::<ICMP_HEADER_BYTES>() else {
            return;
        };
        let (echo, reply) = match packet.source {
            IpAddr::V4(_) => (message_type::ICMP_ECHO, message_type::ICMP_ECHOREPLY),
            IpAddr::V6(_) => (message_type::ICMPV6_ECHO_REQUEST, message_type::ICMPV6_ECHO_REPLY),
        };
        if header[0] != echo || header[1] != 0 {
            return;
        }
        if context.emitter.network.is_gateway(packet.destination) {
            let mut header = *header;
            header[0] = reply;
            return send_message(
                &mut context.emitter,
                packet.destination,
                packet.source,
                header,
                rest,
            );
        }
        let log = (context.now, &mut context.log);
        if !context.gate.allows_echo(packet.source, packet.destination, log) {
            return send_error(&mut context.emitter, packet, IcmpError::Prohibited);
        }
        self.forward_echo(context, packet, [header[4], header[5]]);
    }

    /// Sends an echo request through a host socket.
    fn forward_echo(&mut self, context: &mut StackContext, packet: &Packet<'_>, id: [u8; 2]) {
        let id = EchoId { guest: packet.source, remote: packet.destination, id };
        let key = match self.by_id.get(&id) {
            Some(key) => *key,
            None => match self.open_flow(context, id) {
                Ok(key) => key,
                Err(Errno::ACCESS | Errno::PERM) => {
                    return send_error(&mut context.emitter, packet, IcmpError::Prohibited);
                }
                Err(_) => {
                    return send_error(&mut context.emitter, packet, IcmpError::HostUnreachable);
                }
            },
        };
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        flow.used = context.now;
        if let Err(error) = send(&flow.socket, packet.payload, SendFlags::NOSIGNAL)
            && let Some(error) = unreachable_error(error)
        {
            send_error(&mut context.emitter, packet, error);
        }
    }

    fn open_flow(&mut self, context: &mut StackContext, id: EchoId) -> Result<SlabKey, Errno> {
        if self.flows.len() >= PING_FLOWS_MAX {
            return Err(Errno::NOBUFS);
        }
        let socket = host_sockets::echoes(id.remote)?;
        let key = self.flows.insert(EchoFlow { id, socket, used: context.now, timer: None });
        let watched = self.flows.get(key).ok_or(Errno::NOENT).and_then(|flow| {
            context.watch(flow.socket.as_fd(), EventSource::Echo, key.to_bits(), EventFlags::IN)
        });
        if let Err(error) = watched {
            self.flows.remove(key);
            return Err(error);
        }
        self.by_id.insert(id, key);
        if let Some(added) = self.flows.get_mut(key) {
            self.timers.set(&mut added.timer, context.now + PING_TIMEOUT, key);
        }
        Ok(key)
    }

    /// Handles an echo reply on a host socket.
    pub(crate) fn handle_event(&mut self, context: &mut StackContext, key: SlabKey) {
        let Some(flow) = self.flows.get(key) else {
            return;
        };
        let mut message = std::mem::take(&mut context.scratch);
        let received = recv(&flow.socket, &mut message[..], RecvFlags::DONTWAIT);
        if let Ok((count, _)) = received
            && let Some((header, rest)) = message[..count].split_first_chunk::<ICMP_HEADER_BYTES>()
            && matches!(header[0], message_type::ICMP_ECHOREPLY | message_type::ICMPV6_ECHO_REPLY)
        {
            let mut header = *header;
            header[4..6].copy_from_slice(&flow.id.id);
            send_message(&mut context.emitter, flow.id.remote, flow.id.guest, header, rest);
        }
        context.scratch = message;
    }

    /// Returns the time of the next timer.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.next_due()
    }

    /// Closes idle flows.
    pub(crate) fn tick(&mut self, now: Instant) {
        while let Some(key) = self.timers.pop_due(now) {
            let Some(flow) = self.flows.get_mut(key) else {
                continue;
            };
            flow.timer = None;
            let end = flow.used + PING_TIMEOUT;
            if end > now {
                self.timers.set(&mut flow.timer, end, key);
            } else if let Some(flow) = self.flows.remove(key) {
                self.by_id.remove(&flow.id);
            }
        }
    }
}
