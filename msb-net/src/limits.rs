//! What a guest can make this process hold, at most: [`bytes_max`].
//!
//! All memory that grows with what a guest does, or with what somebody outside does to it, is counted here. A test with a
//! hostile guest holds the process to it.

use std::time::Duration;

/// Largest frame, without its length: an IP packet of 65,535 bytes and the Ethernet header.
pub(crate) const FRAME_BYTES_MAX: usize = 65535 + 14;
/// What is read of the frame stream at a time. At least two of the largest frames must fit.
pub(crate) const RECEIVE_BYTES: usize = 512 * 1024;
/// What waits for the frame stream to take it, at most. Frames beyond are lost, as on any wire.
pub(crate) const TRANSMIT_BYTES_MAX: usize = 1024 * 1024;
/// Asked for as the kernel's buffer of the frame stream: enough for the other side to be busy with while we are.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Bytes of one connection that wait in one direction.
pub(crate) const RING_BYTES_MAX: usize = 1024 * 1024;
/// The least that a connection can have in one direction, whatever others hold. Most of what is asked for by HTTP, and
/// nearly every ClientHello of TLS, fits.
pub(crate) const RING_BYTES_MIN: usize = 4 * 1024;
/// Bytes that wait in all connections together, free rings that are kept for the next included, but for those of
/// [`RING_BYTES_MIN`] that were given out when so much was taken.
pub(crate) const RINGS_BYTES_TOTAL: usize = 64 * 1024 * 1024;
/// Segments of all connections together that came before those that they follow.
pub(crate) const EARLY_BYTES_TOTAL: usize = 4 * 1024 * 1024;
/// Such segments of one connection.
pub(crate) const EARLY_SEGMENTS_MAX: usize = 1024;
/// Time for a host to answer a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(75);
/// An idle connection's guest is asked whether it still knows it.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(2 * 60 * 60);
/// The same for one that the guest has closed on its side: a guest that has forgotten it says so.
pub(crate) const KEEPALIVE_HALF_CLOSED: Duration = Duration::from_secs(60);

/// Flows of UDP that the guest began. When there are more, the one that was silent for longest goes.
pub(crate) const UDP_FLOWS_MAX: usize = 2048;
/// The same for those that came through published ports.
pub(crate) const UDP_CALLERS_MAX: usize = 1024;
/// A flow that was silent for so long is over (RFC 4787, REQ-5, asks for two minutes at least).
pub(crate) const UDP_TIMEOUT: Duration = Duration::from_secs(120);
/// Flows of echo requests: one for each identifier and peer.
pub(crate) const PING_FLOWS_MAX: usize = 64;
/// Time for an echo to come back.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// Packets in pieces.
pub(crate) const FRAGMENTED_PACKETS_MAX: usize = 64;
/// Bytes of packets in pieces together.
pub(crate) const FRAGMENTS_BYTES_TOTAL: usize = 4 * 1024 * 1024;
/// Pieces of one packet.
pub(crate) const FRAGMENTS_OF_PACKET_MAX: usize = 128;
/// Time for the pieces of a packet to come together.
pub(crate) const FRAGMENTS_TIMEOUT: Duration = Duration::from_secs(15);

/// Names of the addresses of all connections and flows, which a new policy judges them by.
pub(crate) const NAMES_BYTES_TOTAL: usize = 4 * 1024 * 1024;
/// Connections of the guest to the name server; further ones are closed.
pub(crate) const STREAMS_MAX: usize = 256;
/// Answers of the name server that the guest has not taken, and of other servers that are not all there, together.
pub(crate) const ANSWERS_BYTES_TOTAL: usize = 4 * 1024 * 1024;

/// What a connection takes beside its rings: itself, its places in tables, its timer, and where bytes of a turn lie.
#[cfg(test)]
pub(crate) const CONNECTION_BYTES: usize = 2 * 1024;
/// The same for a flow of datagrams or echoes.
#[cfg(test)]
pub(crate) const FLOW_BYTES: usize = 1024;
/// All that does not depend on the number of connections, and has no line above: pinned names (8192 of 255 bytes),
/// questions that wait (1024), connections to the name server (12 KiB each), events that wait, scratch, the program itself.
#[cfg(test)]
pub(crate) const REST_BYTES: usize = 16 * 1024 * 1024;

/// All of it, in bytes. As many connections may be open each way, each with a ring for each of its directions. What the
/// guest sends in one turn is held twice: packets that came in pieces, and questions for names.
#[cfg(test)]
pub(crate) const fn bytes_max(max_connections: usize) -> usize {
    let connections = 2 * max_connections * (2 * RING_BYTES_MIN + CONNECTION_BYTES);
    let flows = (UDP_FLOWS_MAX + UDP_CALLERS_MAX + PING_FLOWS_MAX) * FLOW_BYTES;
    let turn = 2 * (RECEIVE_BYTES + FRAGMENTS_BYTES_TOTAL);
    let fixed = RINGS_BYTES_TOTAL
        + 2 * TRANSMIT_BYTES_MAX
        + FRAGMENTS_BYTES_TOTAL
        + EARLY_BYTES_TOTAL
        + NAMES_BYTES_TOTAL
        + ANSWERS_BYTES_TOTAL
        + REST_BYTES;
    connections + flows + turn + fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In msb-net(1).
    #[test]
    fn the_bound_is_the_one_that_is_stated() {
        const MB: usize = 1_000_000;
        assert_eq!(bytes_max(0).div_ceil(MB), 116);
        assert_eq!(bytes_max(4096).div_ceil(MB), 200);
        assert_eq!(bytes_max(4097) - bytes_max(4096), 20 * 1024);
    }
}
