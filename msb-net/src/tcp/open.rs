//! Opening of connections: the host's socket is connected first, and the guest's SYN is answered
//! after that.

use std::os::fd::OwnedFd;

use libmsb::net::rule::Protocol;
use rustix::io::Errno;

use super::connection::{Admission, Connection};
use super::header_template::{HeaderTemplate, SegmentFields};
use super::segment::{Segment, SeqNumber, TCP_HEADER_BYTES, flag};
use super::state::{CloseReason, State};
use crate::context::StackContext;
use crate::emitter::PacketEmitter;
use crate::flow::Flow;
use crate::host_sockets;
use crate::icmp::{self, IcmpError};
use crate::ip::{Packet, protocol};
use crate::policy_gate::{Egress, Peek};

/// Judges a flow that the guest opens, and starts to connect the host's socket. `None`: the guest
/// was told that it cannot be reached.
pub(super) fn dial(
    context: &mut StackContext,
    flow: &Flow,
    packet: &Packet<'_>,
    segment: &Segment<'_>,
) -> Option<(OwnedFd, Admission)> {
    let (network, log) = (&context.emitter.network, &mut context.log);
    let egress = context.gate.egress(network, flow, Protocol::Tcp, (context.now, log));
    let Some(egress) = egress else {
        send_refusal(&mut context.emitter, flow, segment);
        return None;
    };
    let socket = match &egress {
        Egress::Resolver => context.dns_requests.connect_guest(),
        Egress::Host { target, .. } => host_sockets::dial(*target),
    };
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => {
            report_connect_error(context, flow, segment, packet, error);
            return None;
        }
    };
    let admission = match egress {
        Egress::Resolver => Admission::Resolver,
        Egress::Host { peek, facts, .. } => {
            let facts = context.facts_budget.store(facts);
            match peek {
                Peek::No => Admission::Allowed(facts),
                Peek::Name => Admission::PeekPending(facts),
                Peek::Interception => Admission::InterceptionPending(facts),
            }
        }
    };
    Some((socket, admission))
}

/// Handles the result of connecting the host's socket.
pub(super) fn finish_connect(connection: &mut Connection, context: &mut StackContext) {
    let emitter = &mut context.emitter;
    let Err(error) = connection.host.finish_connect() else {
        connection.state = State::SynReceived;
        connection.send_syn(&emitter.network, &mut emitter.transmitter);
        return connection.arm_timer(context.now);
    };
    match icmp::unreachable_error(error) {
        Some(code) => send_unreachable(emitter, &connection.flow, connection.receive.nxt(), code),
        None => connection.send_reset(&mut emitter.transmitter),
    }
    connection.close_reason = Some(CloseReason::HostReset);
}

/// Sends a reset for a segment that belongs to no connection (RFC 9293, 3.10.7.1).
pub(super) fn send_refusal(emitter: &mut PacketEmitter, flow: &Flow, segment: &Segment<'_>) {
    let fields = if segment.has(flag::ACK) {
        SegmentFields { seq: segment.ack.0, ack: 0, flags: flag::RST, window: 0 }
    } else {
        SegmentFields {
            seq: 0,
            ack: (segment.seq + segment.seq_len()).0,
            flags: flag::RST | flag::ACK,
            window: 0,
        }
    };
    let template = HeaderTemplate::new(&emitter.network, flow);
    let headers = template.headers(fields, &[], [&[], &[]]);
    let headers = &headers[crate::device::LENGTH_BYTES..template.len()];
    emitter.transmitter.push_frame(|out| out.extend_from_slice(headers));
}

/// Sends an ICMP error about the SYN of a connection. The segment is gone, so the start of its
/// header is rebuilt.
fn send_unreachable(
    emitter: &mut PacketEmitter,
    flow: &Flow,
    rcv_nxt: SeqNumber,
    error: IcmpError,
) {
    let mut start = [0; 8];
    start[..2].copy_from_slice(&flow.guest.port.to_be_bytes());
    start[2..4].copy_from_slice(&flow.remote.port.to_be_bytes());
    start[4..].copy_from_slice(&rcv_nxt.0.wrapping_sub(1).to_be_bytes());
    icmp::send_flow_error(emitter, flow, (protocol::TCP, TCP_HEADER_BYTES, start), error);
}

/// Tells the guest that the host could not be reached or refused at once.
fn report_connect_error(
    context: &mut StackContext,
    flow: &Flow,
    segment: &Segment<'_>,
    packet: &Packet<'_>,
    error: Errno,
) {
    match icmp::unreachable_error(error) {
        Some(code) => icmp::send_error(&mut context.emitter, packet, code),
        None => {
            if !matches!(error, Errno::CONNREFUSED | Errno::ACCESS | Errno::PERM) {
                context.log.log_trouble("cannot connect", &error.into());
            }
            send_refusal(&mut context.emitter, flow, segment);
        }
    }
}
