//! Service of a connection in a turn: bytes move in both directions, and segments are sent.

use std::io;
use std::os::fd::AsFd;

use libmsb::net::intercept::Handover;
use rustix::event::epoll;
use rustix::io::Errno;

use super::connection::{Admission, Connection};
use super::host_socket::{HOST_EVENTS, HostSocket, PeerEnd};
use super::ring_buffer::RingPool;
use super::state::{CloseReason, State};
use super::transfer::{self, ReadOutcome};
use crate::client_hello::{self, PeekResult};
use crate::context::{EventSource, StackContext};
use crate::interceptor;
use crate::policy::TlsPeek;
use crate::policy_gate::Course;
use crate::slab::SlabKey;

/// Reads of one connection per turn, before others get theirs.
const READS_PER_TURN: usize = 4;

/// Moves bytes in both directions. Returns whether the connection must be served again.
pub(super) fn serve(
    (key, connection): (SlabKey, &mut Connection),
    pool: &mut RingPool,
    context: &mut StackContext,
) -> io::Result<bool> {
    if connection.state != State::Established || connection.close_reason.is_some() {
        connection.send_due_acks(&mut context.emitter.transmitter);
        return Ok(false);
    }
    peek_client_hello(connection, key, context);
    if !connection.is_peek_pending() {
        let Connection { receive, host, .. } = connection;
        let drained = transfer::drain_to_host(receive, host, pool);
        connection.note_failure(drained);
        connection.shutdown_host();
    }
    let at_end = connection.send.state.is_at_end();
    if connection.host.peer_end() == PeerEnd::Failed && at_end && connection.close_reason.is_none()
    {
        // The end of the stream was read already, so no read will report the error.
        connection.close_reason = Some(CloseReason::HostReset);
    }
    let transmitter = &mut context.emitter.transmitter;
    let mut more_work = true;
    for _ in 0..READS_PER_TURN {
        let read = read_host(connection, pool);
        let hung_up = connection.host.peer_end() > PeerEnd::Open;
        if read == ReadOutcome::Progress && connection.host.is_readable() && hung_up {
            // The end of the stream is probably there, and fits into the frame of the last bytes.
            read_host(connection, pool);
        }
        let before = connection.send.nxt();
        connection.transmit(transmitter, context.now)?;
        if read == ReadOutcome::Nothing && connection.send.nxt() == before {
            more_work = false;
            break;
        }
        if transmitter.is_blocked() {
            break;
        }
    }
    if matches!(connection.close_reason, Some(CloseReason::HostReset | CloseReason::Denied)) {
        connection.send_reset(transmitter);
        return Ok(false);
    }
    connection.send_due_acks(transmitter);
    // Bytes that wait for the full frame stream are sent when it is writable.
    Ok(more_work || (connection.send.has_sendable() && transmitter.is_blocked()))
}

/// Reads from the host socket, unless the connection is over.
fn read_host(connection: &mut Connection, pool: &mut RingPool) -> ReadOutcome {
    if connection.close_reason.is_some() || connection.is_interception_pending() {
        return ReadOutcome::Nothing;
    }
    let read = transfer::read_host(&mut connection.host, &mut connection.send, pool);
    connection.note_failure(read.map(drop));
    read.unwrap_or(ReadOutcome::Nothing)
}

/// Delivers the bytes of a turn to the host's side.
pub(super) fn deliver_batch(
    connection: &mut Connection,
    pool: &mut RingPool,
    received: [&[u8]; 2],
) {
    let direct = !connection.is_peek_pending() && connection.close_reason.is_none();
    let Connection { receive, host, .. } = connection;
    let delivered = transfer::deliver_batch(receive, host, pool, received, direct);
    connection.note_failure(delivered);
}

/// Checks the guest's first bytes on a connection that a rule on a name has allowed: the server
/// name in the TLS ClientHello must match the rule. Until then no byte goes to the host's side;
/// bytes from there are not delayed. On an intercepted port they are, and the connection is handed
/// over to `msb-intercept`.
fn peek_client_hello(connection: &mut Connection, key: SlabKey, context: &mut StackContext) {
    let (Admission::PeekPending(before) | Admission::InterceptionPending(before)) =
        &connection.admission
    else {
        return;
    };
    let (buffer, at_end) = (&connection.receive.buffer, connection.receive.state.is_at_end());
    if buffer.is_empty() && !at_end {
        return;
    }
    let count = buffer.len().min(client_hello::PEEK_BYTES_MAX);
    let (first, second) = buffer.slices(0, count);
    let tls = match client_hello::peek(&[first, second].concat()) {
        PeekResult::Final(tls) => tls,
        PeekResult::Incomplete if !at_end => return,
        PeekResult::Incomplete if count == 0 => TlsPeek::Plain,
        PeekResult::Incomplete => client_hello::NO_SERVER_NAME,
    };
    let log = (context.now, &mut context.log);
    let facts = match context.gate.check_client_hello(&connection.flow, tls, log) {
        Course::Relay(facts) => facts,
        Course::Denied => return connection.close_reason = Some(CloseReason::Denied),
        Course::Intercept { facts, sni, pinned } => {
            let handover =
                Handover { id: connection.id, remote: connection.flow.remote.into(), sni, pinned };
            if let Err(error) = hand_over(&mut connection.host, key, &handover, context) {
                context.log.log_trouble("cannot hand a connection over", &error.into());
                return connection.close_reason = Some(CloseReason::Denied);
            }
            facts
        }
    };
    context.facts_budget.release(before);
    connection.admission = Admission::Allowed(context.facts_budget.store(facts));
}

/// Hands the server's socket over to `msb-intercept` and takes one end of a new socket pair in its
/// place. The other end goes with it.
fn hand_over(
    host: &mut HostSocket,
    key: SlabKey,
    handover: &Handover,
    context: &StackContext,
) -> Result<(), Errno> {
    let interceptor = context.interceptor.as_ref().ok_or(Errno::NOTCONN)?;
    let (ours, theirs) = interceptor::pair()?;
    interceptor.send(handover, host.descriptor(), theirs.as_fd())?;
    // The kernel would go on reporting events of a socket that another process has open.
    epoll::delete(&context.epoll, host.descriptor())?;
    context.watch(ours.as_fd(), EventSource::Tcp, key.to_bits(), HOST_EVENTS)?;
    host.replace(ours);
    Ok(())
}
