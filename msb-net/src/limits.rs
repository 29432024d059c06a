//! What a guest can make this process hold, at most.
//!
//! All memory that grows with what a guest does is one of: rings of TCP ([`RINGS_BYTES_TOTAL`]), connections and flows
//! (under a kilobyte each, at most `max_connections` + [`UDP_FLOWS_MAX`] + [`PING_FLOWS_MAX`]), fragments
//! ([`FRAGMENTS_BYTES_TOTAL`]), and the two buffers of the frame stream ([`RECEIVE_BYTES`], [`TRANSMIT_BYTES_MAX`]).

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
/// Bytes that wait in all connections together, free rings that are kept for the next included.
pub(crate) const RINGS_BYTES_TOTAL: usize = 64 * 1024 * 1024;
/// Time for a host to answer a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(75);
/// An idle connection's guest is asked whether it still knows it.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(2 * 60 * 60);
/// The same for one that the guest has closed on its side: a guest that has forgotten it says so.
pub(crate) const KEEPALIVE_HALF_CLOSED: Duration = Duration::from_secs(60);

/// Flows of UDP. When there are more, the one that was silent for longest goes.
pub(crate) const UDP_FLOWS_MAX: usize = 2048;
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
