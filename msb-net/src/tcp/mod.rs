//! TCP: the guest's connections, each beside a socket of the host.
//!
//! Nothing of TCP passes through. The guest speaks with this module, the host's kernel with the other side, and bytes
//! move between the two:
//!
//! * *From the guest.* Bytes that come in order are written to the host's socket from where they lie in the receiver's
//!   buffer, those of all segments of a turn at once, and then acknowledged (see `owed.rs`). What the socket does not take
//!   waits in a ring, and the window that the guest is offered is what is free in there: so the guest waits for the slowest
//!   reader, and nobody else does. A frame stream neither loses nor reorders; where one does, bytes that come too early are
//!   kept, within bounds, and the guest sends what is missing.
//! * *To the guest.* Bytes are read from the host's socket into a ring and stay there until the guest has acknowledged
//!   them; they are sent as far as its window goes. There is no congestion control: between the two there is no network,
//!   only a buffer, and when that is full we wait. What is lost nevertheless is sent again after three repeated
//!   acknowledgements or after a time (RFC 5681, RFC 6298).
//! * *The begin.* The host's socket is connected first, and the guest's SYN is answered when that has succeeded: a refusal
//!   is a reset, a host that cannot be reached an ICMP message, as without us.
//! * *The end.* Each direction ends by itself: the end of the host's stream becomes a FIN behind the last byte, the guest's
//!   FIN a shutdown(2) behind the last byte. A connection is gone when both have, or when one side breaks it off; the
//!   other is then broken off too. Who keeps half a connection open keeps its place, as with any kernel; a guest that has
//!   forgotten such a one is found out by asking it after a while.
//!
//! Memory: see `limits.rs`. Of a host's socket no more is read than the guest takes now, so what a reader that stands still
//! leaves waits in the host's socket, and not here. What the guest sends beyond what its ring holds is not acknowledged. When
//! much is held, rings are small, but everybody has one.

mod connection;
mod open;
mod owed;
mod ring;
mod segment;
mod send;
mod template;
#[cfg(test)]
mod tests;
mod transfer;

use std::collections::{HashMap, VecDeque};
use std::hash::RandomState;
use std::io;
use std::time::Instant;

use libmsb::net::rule::Direction;
use rustix::event::epoll::EventFlags;

use self::connection::{Connection, Over, Stage};
use self::open::refuse;
use self::ring::Pool;
pub(crate) use self::segment::Seq;
use self::segment::{Segment, flag};
use self::transfer::{Read, commit, drain_to_host, read_host, shut_host};
use crate::flow::{End, Flow};
use crate::host;
use crate::ip::Packet;
use crate::limits::RECEIVE_BYTES;
use crate::policy::Tls;
use crate::slab::{Key, Slab};
use crate::timers::Timers;
use crate::tls::{self, Peek};
use crate::world::World;

/// Times that one connection is read in its turn, before others have theirs.
const READS: usize = 4;

/// All connections.
pub(crate) struct Tcp {
    connections: Slab<Connection>,
    flows: HashMap<Flow, Key>,
    /// The connection that the last segment was of: the next is, mostly, too.
    last: Option<(Flow, Key)>,
    /// Those with bytes of this turn.
    batch: Vec<Key>,
    /// Segments of this turn that came in pieces: their places are counted on from the end of the receiver's buffer.
    joined: Vec<u8>,
    /// Something of a conversation has gone through.
    conversed: bool,
    /// Those to be served.
    ready: VecDeque<Key>,
    timers: Timers<Key>,
    pool: Pool,
    secret: RandomState,
    count: u64,
    /// How many there may be, each way.
    max: usize,
    /// How many came through published ports.
    callers: usize,
}

impl Tcp {
    pub(crate) fn new(max: usize) -> Tcp {
        Tcp {
            connections: Slab::new(),
            flows: HashMap::new(),
            last: None,
            batch: Vec::new(),
            joined: Vec::new(),
            conversed: false,
            ready: VecDeque::new(),
            timers: Timers::new(),
            pool: Pool::default(),
            secret: RandomState::new(),
            count: 0,
            max,
            callers: 0,
        }
    }

    fn find(&mut self, flow: &Flow) -> Option<Key> {
        match self.last {
            Some((last, key)) if last == *flow && self.connections.get(key).is_some() => Some(key),
            _ => {
                let key = self.flows.get(flow).copied()?;
                self.last = Some((*flow, key));
                Some(key)
            }
        }
    }

    /// A segment from the guest. `place`: where its payload lies in the receiver's buffer.
    pub(crate) fn packet(&mut self, world: &mut World, packet: &Packet<'_>, place: Option<usize>) {
        let Some(segment) = Segment::parse(packet.payload) else {
            return;
        };
        let end = |address, port| End { address, port };
        let flow = Flow {
            guest: end(packet.source, segment.source),
            remote: end(packet.destination, segment.destination),
        };
        let Some(key) = self.find(&flow) else {
            if segment.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN {
                self.call(world, flow, packet, &segment);
            } else if !segment.has(flag::RST) {
                refuse(world, &flow, &segment);
            }
            return;
        };
        let place = place.unwrap_or_else(|| {
            self.joined.extend_from_slice(packet.payload);
            RECEIVE_BYTES + self.joined.len() - packet.payload.len()
        });
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let place = place + packet.payload.len() - segment.payload.len();
        connection.segment(
            (&world.network, &mut world.transmitter, world.now),
            &mut self.pool,
            &segment,
            place,
        );
        if !connection.batched {
            connection.batched = true;
            self.batch.push(key);
        }
    }

    /// So many connections there may be. Of too many, all stay.
    pub(crate) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// The policy is another, or the host's addresses are: breaks off those that could not be opened any more.
    pub(crate) fn renew(&mut self, world: &mut World) {
        for key in self.connections.keys() {
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            let Some(facts) = &connection.facts else {
                continue;
            };
            // One that is still to be looked at is judged then.
            if !connection.look && !world.stays(&connection.flow, facts) {
                connection.over = Some(Over::Denied);
                connection.send_reset(&mut world.transmitter);
                self.settle(world, key);
            }
        }
    }

    /// Whether there is a connection between these two.
    pub(crate) fn has(&self, flow: &Flow) -> bool {
        self.flows.contains_key(flow)
    }

    /// Something happened at a host's socket.
    pub(crate) fn event(&mut self, world: &mut World, key: Key, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if connection.stage == Stage::Dialing {
            if flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP) {
                self.dialed(world, key);
            }
            return;
        }
        let ended = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        connection.writable |= flags.contains(EventFlags::OUT);
        connection.readable |= flags.intersects(EventFlags::IN | ended);
        connection.hung_up |= flags.intersects(ended);
        connection.broken |= flags.contains(EventFlags::ERR);
        self.queue(key);
    }

    fn queue(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key)
            && !connection.queued
        {
            connection.queued = true;
            self.ready.push_back(key);
        }
    }

    /// The segments of this turn are all there: their bytes go to the host, and the guest hears of it.
    pub(crate) fn commit(&mut self, received: &[u8]) {
        let batch = std::mem::take(&mut self.batch);
        for key in &batch {
            if let Some(connection) = self.connections.get_mut(*key) {
                connection.batched = false;
                commit(connection, &mut self.pool, [received, &self.joined]);
            }
            self.queue(*key);
        }
        self.batch = batch;
        self.batch.clear();
        self.joined = Vec::new();
    }

    /// Connections that were opened, all in all.
    pub(crate) fn opened(&self) -> u64 {
        self.count
    }

    /// Connections that are open.
    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether something of a conversation has gone through since the last time.
    pub(crate) fn has_conversed(&mut self) -> bool {
        std::mem::take(&mut self.conversed)
    }

    /// Whether somebody waits to be served.
    pub(crate) fn is_busy(&self, world: &World) -> bool {
        !self.ready.is_empty() && !world.transmitter.is_blocked()
    }

    /// Serves those that wait: each once, and those that have more to do next time again.
    pub(crate) fn serve(&mut self, world: &mut World) -> io::Result<()> {
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else {
                break;
            };
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            connection.queued = false;
            if serve(connection, &mut self.pool, world)? {
                self.queue(key);
            }
            self.settle(world, key);
        }
        Ok(())
    }

    /// What follows from the state that a connection is in: it goes, or has a timer.
    fn settle(&mut self, world: &mut World, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if let Some(over) = connection.over {
            return self.remove(world, key, over);
        }
        self.conversed |= connection.owed.converses(world.now);
        let owed = connection.owed.deadline();
        let deadline = owed.map_or(connection.deadline, |owed| owed.min(connection.deadline));
        self.timers.set(&mut connection.timer, deadline, key);
    }

    fn remove(&mut self, world: &mut World, key: Key, over: Over) {
        let Some(mut connection) = self.connections.remove(key) else {
            return;
        };
        self.timers.cancel(&mut connection.timer, key);
        self.flows.remove(&connection.flow);
        if let Some(kept) = &connection.facts {
            world.keeper.forget(kept);
            if kept.facts().direction == Direction::Ingress {
                self.callers -= 1;
                world.published.closed();
            }
        }
        connection.to_guest.release(&mut self.pool);
        connection.to_host.release(&mut self.pool);
        connection.drop_early(&mut self.pool);
        if self.connections.len() == 0 {
            // A guest that is done with its network costs what one costs that never began.
            self.pool.keep_nothing();
        }
        let bytes = (connection.bytes_up, connection.bytes_down);
        let lasted = world.now.saturating_duration_since(connection.opened);
        world.log.close(
            &connection.flow,
            "tcp",
            connection.id,
            bytes,
            lasted,
            over.word(),
        );
        if over == Over::Closed {
            drop(connection);
        } else {
            host::break_off(connection.socket);
        }
    }

    /// When the next timer is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Handles the timers that are due.
    pub(crate) fn tick(&mut self, world: &mut World) -> io::Result<()> {
        while let Some(key) = self.timers.pop_due(world.now) {
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            connection.timer = None;
            connection.owed.expire(world.now);
            if connection.owed.is_due() {
                connection.send_ack(&mut world.transmitter);
            }
            if connection.deadline <= world.now {
                if world.transmitter.is_blocked() {
                    // The guest takes nothing at all: that is no reason to send more.
                    connection.arm(world.now);
                } else {
                    connection.expire(&world.network, &mut world.transmitter, world.now)?;
                }
            }
            self.settle(world, key);
        }
        Ok(())
    }
}

/// Moves what there is to be moved. Gives whether it is to be served again.
fn serve(connection: &mut Connection, pool: &mut Pool, world: &mut World) -> io::Result<bool> {
    if connection.stage != Stage::Open || connection.over.is_some() {
        acknowledge(connection, world);
        return Ok(false);
    }
    look(connection, world);
    if !connection.look {
        drain_to_host(connection, pool);
        shut_host(connection);
    }
    if connection.broken && connection.host_done && connection.over.is_none() {
        // The end was read already, so nobody will read of this.
        connection.over = Some(Over::HostReset);
    }
    let mut again = true;
    for _ in 0..READS {
        let read = read_host(connection, pool);
        if read == Read::Some && connection.readable && connection.hung_up {
            // Its end is there, most likely, and goes with the last bytes in one frame.
            read_host(connection, pool);
        }
        let before = connection.next;
        connection.transmit(&mut world.transmitter, world.now)?;
        if read == Read::Nothing && connection.next == before {
            again = false;
            break;
        }
        if world.transmitter.is_blocked() {
            break;
        }
    }
    if matches!(connection.over, Some(Over::HostReset | Over::Denied)) {
        connection.send_reset(&mut world.transmitter);
        return Ok(false);
    }
    acknowledge(connection, world);
    // Bytes that wait for the stream, which is full, are sent when it is not.
    let waits = connection.next - connection.una < connection.to_guest.len().min(connection.window);
    Ok(again || (waits && world.transmitter.is_blocked()))
}

/// Looks at what the guest says first, where a rule on a name has let it in: the name that TLS asks for must be the rule's.
/// Until that is known nothing of it goes to the host's side; what comes from there is not held up.
fn look(connection: &mut Connection, world: &mut World) {
    if !connection.look || (connection.to_host.is_empty() && !connection.guest_done) {
        return;
    }
    let count = connection.to_host.len().min(tls::PEEK_BYTES_MAX);
    let (first, second) = connection.to_host.slices(0, count);
    let seen = match tls::peek(&[first, second].concat()) {
        Peek::Known(seen) => seen,
        Peek::More if !connection.guest_done => return,
        Peek::More if count == 0 => Tls::Plain,
        Peek::More => tls::NAMELESS,
    };
    let told = (world.now, &mut world.log);
    match world.gate.look(&connection.flow, seen, told) {
        Some(facts) => {
            connection.look = false;
            if let Some(before) = connection.facts.take() {
                world.keeper.forget(&before);
            }
            connection.facts = Some(world.keeper.keep(facts));
        }
        None => connection.over = Some(Over::Denied),
    }
}

fn acknowledge(connection: &mut Connection, world: &mut World) {
    if connection.owed.is_due() {
        // Of three that say the same.
        for _ in 0..=std::mem::take(&mut connection.gaps).min(3) {
            connection.send_ack(&mut world.transmitter);
        }
    } else if connection.stage == Stage::Open && !connection.guest_done {
        connection.send_ack_if_window_opened(&mut world.transmitter);
    }
}
