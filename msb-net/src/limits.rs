//! Memory limits: the most that a guest can make this process hold is [`bytes_max`].
//!
//! All memory that grows with the behaviour of a guest, or of a peer outside, is counted here.
//! Tests with a hostile guest check the process against it.

use std::time::Duration;

/// Largest frame without its length: an IP packet of 65,535 bytes and the Ethernet header.
pub(crate) const FRAME_BYTES_MAX: usize = 65535 + 14;
/// Size of the frame stream's receive buffer. At least two of the largest frames must fit.
pub(crate) const RECEIVE_BYTES: usize = 512 * 1024;
/// Limit of bytes queued for the frame stream. Frames beyond it are dropped, as on any link.
pub(crate) const TRANSMIT_BYTES_MAX: usize = 1024 * 1024;
/// Requested size of the kernel's buffers of the frame stream: enough to keep the guest busy while
/// this process works.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Limit of buffered bytes of one connection in one direction.
pub(crate) const RING_BYTES_MAX: usize = 1024 * 1024;
/// Guaranteed buffer of a connection in one direction, whatever others hold. Most HTTP requests and
/// nearly every TLS ClientHello fit.
pub(crate) const RING_BYTES_MIN: usize = 4 * 1024;
/// Limit of all ring buffers together, free rings kept for reuse included. Rings of
/// [`RING_BYTES_MIN`] that are allocated beyond it do not count.
pub(crate) const RINGS_BYTES_TOTAL: usize = 64 * 1024 * 1024;
/// Limit of out of order segments of all connections together, in bytes.
pub(crate) const OUT_OF_ORDER_BYTES_TOTAL: usize = 4 * 1024 * 1024;
/// Limit of out of order segments of one connection.
pub(crate) const OUT_OF_ORDER_SEGMENTS_MAX: usize = 1024;
/// Time limit for connecting to a host.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(75);
/// Idle time after which a connection's guest is probed.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(2 * 60 * 60);
/// The same for a half-closed connection whose guest side has ended: a guest that has forgotten it
/// answers with a reset.
pub(crate) const KEEPALIVE_HALF_CLOSED: Duration = Duration::from_secs(60);

/// Limit of UDP flows opened by the guest. Beyond it the flow that was idle longest is closed.
pub(crate) const UDP_FLOWS_MAX: usize = 2048;
/// Limit of UDP flows through published ports.
pub(crate) const UDP_INBOUND_FLOWS_MAX: usize = 1024;
/// Idle time after which a UDP flow is closed (RFC 4787, REQ-5, requires at least two minutes).
pub(crate) const UDP_TIMEOUT: Duration = Duration::from_secs(120);
/// Limit of ICMP echo flows: one for each identifier and peer.
pub(crate) const PING_FLOWS_MAX: usize = 64;
/// Idle time after which an echo flow is closed.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// Limit of fragmented packets in reassembly.
pub(crate) const FRAGMENTED_PACKETS_MAX: usize = 64;
/// Limit of all fragments together, in bytes.
pub(crate) const FRAGMENTS_BYTES_TOTAL: usize = 4 * 1024 * 1024;
/// Limit of fragments of one packet.
pub(crate) const FRAGMENTS_OF_PACKET_MAX: usize = 128;
/// Time limit for the reassembly of a packet.
pub(crate) const FRAGMENTS_TIMEOUT: Duration = Duration::from_secs(15);

/// Limit of the names in the facts of all connections and flows, in bytes.
pub(crate) const NAMES_BYTES_TOTAL: usize = 4 * 1024 * 1024;
/// Limit of connections of the guest to the resolver; further ones are closed.
pub(crate) const STREAMS_MAX: usize = 256;
/// Limit of answers that the guest has not read, plus incomplete answers of upstream servers, in
/// bytes.
pub(crate) const ANSWERS_BYTES_TOTAL: usize = 4 * 1024 * 1024;

/// Size of a connection without its rings: the state, its table entries, its timer, and the spans
/// of a turn.
#[cfg(test)]
pub(crate) const CONNECTION_BYTES: usize = 2 * 1024;
/// Size of a UDP or echo flow.
#[cfg(test)]
pub(crate) const FLOW_BYTES: usize = 1024;
/// All memory that does not depend on the number of connections and has no constant above: pinned
/// names (8192 of 255 bytes), pending queries (1024), connections to the resolver (12 KiB each),
/// queued events, scratch, the program itself.
#[cfg(test)]
pub(crate) const REST_BYTES: usize = 16 * 1024 * 1024;

/// Returns the total in bytes. The limit of connections holds for each way, and each connection has
/// a ring per direction. Data that the guest sends in one turn is held twice when it comes in
/// fragments or is a DNS query.
#[cfg(test)]
pub(crate) const fn bytes_max(max_connections: usize) -> usize {
    let connections = 2 * max_connections * (2 * RING_BYTES_MIN + CONNECTION_BYTES);
    let flows = (UDP_FLOWS_MAX + UDP_INBOUND_FLOWS_MAX + PING_FLOWS_MAX) * FLOW_BYTES;
    let turn = 2 * (RECEIVE_BYTES + FRAGMENTS_BYTES_TOTAL);
    let fixed = RINGS_BYTES_TOTAL
        + 2 * TRANSMIT_BYTES_MAX
        + FRAGMENTS_BYTES_TOTAL
        + OUT_OF_ORDER_BYTES_TOTAL
        + NAMES_BYTES_TOTAL
        + ANSWERS_BYTES_TOTAL
        + REST_BYTES;
    connections + flows + turn + fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with the numbers in msb-net(1).
    #[test]
    fn the_total_matches_the_manual() {
        const MB: usize = 1_000_000;
        assert_eq!(bytes_max(0).div_ceil(MB), 116);
        assert_eq!(bytes_max(4096).div_ceil(MB), 200);
        assert_eq!(bytes_max(4097) - bytes_max(4096), 20 * 1024);
    }
}
