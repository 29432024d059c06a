//! How a connection begins: the guest calls somebody, or somebody calls a published port.

use std::hash::BuildHasher;
use std::os::fd::{AsFd, OwnedFd};

use libmsb::net::rule::Protocol;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::sockopt;

use super::Tcp;
use super::connection::{Connection, Over, Stage};
use super::segment::{Segment, Seq, flag};
use super::template::{Says, Template};
use crate::flow::Flow;
use crate::gate::Way;
use crate::host;
use crate::icmp;
use crate::ip::Packet;
use crate::limits::CONNECT_TIMEOUT;
use crate::policy::Facts;
use crate::resolver;
use crate::slab::Key;
use crate::world::{Kind, World};

impl Tcp {
    /// The guest calls.
    pub(super) fn call(
        &mut self,
        world: &mut World,
        flow: Flow,
        packet: &Packet<'_>,
        segment: &Segment<'_>,
    ) {
        let open = self.connections.len() - self.callers;
        if flow.remote.port == 0 || open >= self.max {
            world.log.limit(&flow, "tcp");
            return refuse(world, &flow, segment);
        }
        let (network, log) = (&world.network, &mut world.log);
        let way = world
            .gate
            .egress(network, &flow, Protocol::Tcp, (world.now, log));
        let (dialed, look, facts) = match way {
            None => return refuse(world, &flow, segment),
            Some(Way::Names) => (resolver::connect(world), false, None),
            Some(Way::To {
                target,
                look,
                facts,
            }) => (host::dial(target), look, Some(facts)),
        };
        let socket = match dialed {
            Ok(socket) => socket,
            Err(error) => return unreachable(world, &flow, segment, packet, error),
        };
        let first = self.first_seq(&flow);
        let Some(key) = self.add(world, flow, Stage::Dialing, socket, first) else {
            return refuse(world, &flow, segment);
        };
        if let Some(connection) = self.connections.get_mut(key) {
            connection.meet(&world.network, segment);
            connection.deadline = world.now + CONNECT_TIMEOUT;
            connection.look = look;
            connection.facts = facts.map(|facts| world.keeper.keep(facts));
        }
        self.settle(world, key);
    }

    /// Somebody calls a published port: the guest is called.
    pub(crate) fn accepted(
        &mut self,
        world: &mut World,
        (flow, facts): (Flow, Facts),
        socket: OwnedFd,
    ) {
        if self.callers >= self.max || self.flows.contains_key(&flow) {
            world.log.limit(&flow, "tcp");
            return host::break_off(socket);
        }
        let first = self.first_seq(&flow);
        let Some(key) = self.add(world, flow, Stage::Calling, socket, first) else {
            return;
        };
        if let Some(connection) = self.connections.get_mut(key) {
            connection.facts = Some(world.keeper.keep(facts));
            self.callers += 1;
            world.published.opened();
            connection.send_syn(&world.network, &mut world.transmitter);
            connection.arm(world.now);
        }
        self.settle(world, key);
    }

    fn add(
        &mut self,
        world: &mut World,
        flow: Flow,
        stage: Stage,
        socket: OwnedFd,
        first: Seq,
    ) -> Option<Key> {
        self.count += 1;
        let connection = Connection::new(
            &world.network,
            flow,
            (self.count, stage, socket),
            first,
            world.now,
        );
        let key = self.connections.insert(connection);
        let socket = &self.connections.get(key)?.socket;
        let events = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        if let Err(error) = world.watch(socket.as_fd(), Kind::Tcp, key.to_bits(), events) {
            world.log.trouble("cannot watch a socket", &error.into());
            self.connections.remove(key);
            return None;
        }
        self.flows.insert(flow, key);
        world.log.open(&flow, self.count);
        Some(key)
    }

    /// The first sequence number: nobody who does not know the secret can guess it (RFC 6528).
    fn first_seq(&self, flow: &Flow) -> Seq {
        Seq(self.secret.hash_one((flow, self.count)) as u32)
    }

    /// The host's socket is connected, or cannot be.
    pub(super) fn dialed(&mut self, world: &mut World, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let error = match sockopt::socket_error(&connection.socket) {
            Ok(Ok(())) => {
                connection.stage = Stage::Answered;
                connection.writable = true;
                connection.send_syn(&world.network, &mut world.transmitter);
                connection.arm(world.now);
                return self.settle(world, key);
            }
            Ok(Err(error)) | Err(error) => error,
        };
        match icmp::unreachable_code(error) {
            Some(code) => icmp::unreachable_flow(world, &connection.flow, connection.rcv, code),
            None => connection.send_reset(&mut world.transmitter),
        }
        connection.over = Some(Over::HostReset);
        self.settle(world, key);
    }
}

/// A reset for a segment of no connection (RFC 9293, 3.10.7.1).
pub(super) fn refuse(world: &mut World, flow: &Flow, segment: &Segment<'_>) {
    let says = if segment.has(flag::ACK) {
        Says {
            seq: segment.ack.0,
            ack: 0,
            flags: flag::RST,
            window: 0,
        }
    } else {
        Says {
            seq: 0,
            ack: (segment.seq + segment.length()).0,
            flags: flag::RST | flag::ACK,
            window: 0,
        }
    };
    let template = Template::new(&world.network, flow);
    let head = template.head(says, &[], [&[], &[]]);
    let head = &head[crate::device::LENGTH..template.len()];
    world.transmitter.push(|out| out.extend_from_slice(head));
}

/// The host cannot be reached, or refuses at once.
fn unreachable(
    world: &mut World,
    flow: &Flow,
    segment: &Segment<'_>,
    packet: &Packet<'_>,
    error: Errno,
) {
    match icmp::unreachable_code(error) {
        Some(code) => icmp::unreachable(world, packet, code),
        None => {
            if !matches!(error, Errno::CONNREFUSED | Errno::ACCESS | Errno::PERM) {
                world.log.trouble("cannot connect", &error.into());
            }
            refuse(world, flow, segment);
        }
    }
}
