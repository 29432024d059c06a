//! TCP: each connection of the guest is terminated here and relayed to a socket of the host.
//!
//! TCP segments do not pass through. The guest speaks TCP with this module, the host's kernel with
//! the peer, and bytes move between the two:
//!
//! * *From the guest.* Bytes in order are written to the host's socket from the receive buffer,
//!   those of all segments of a turn at once, and then acknowledged (see `delayed_ack.rs`). Bytes
//!   that the socket does not accept wait in a ring, and the window offered to the guest is the
//!   free space of that ring. This is the back-pressure: the guest waits for the slowest reader,
//!   and other connections do not. A frame stream neither loses nor reorders frames. If one does,
//!   segments that arrive out of order are kept, within limits, and the guest retransmits the
//!   missing ones.
//! * *To the guest.* Bytes are read from the host's socket into a ring and stay there until the
//!   guest has acknowledged them. They are sent as far as its window allows. There is no congestion
//!   control: the path is a buffer, not a network, and when it is full the sender waits. Lost
//!   segments are retransmitted after three duplicate acknowledgements or a timeout (RFC 5681, RFC
//!   6298).
//! * *Opening.* The host's socket is connected first, and the guest's SYN is answered only after
//!   that. The guest therefore sees a refusal as a reset and an unreachable host as an ICMP
//!   message, as without a relay.
//! * *Closing.* Each direction ends by itself (half-close): the end of the host's stream becomes a
//!   FIN after the last byte, the guest's FIN a shutdown(2) after the last byte. A connection is
//!   removed when both have ended, or when one side resets it; the other side is then reset too. A
//!   half-closed connection keeps its entry, as in any kernel; keepalive probes detect a guest that
//!   has forgotten it.
//!
//! A connection consists of a send half, a receive half, the host's socket and timers. The halves
//! do no I/O and are tested alone; the connection makes segments of what they say.
//!
//! Memory: see `limits.rs`. Only as much is read from a host's socket as the guest's window takes,
//! so data for a guest that does not read stays in the host's socket. Data from the guest beyond
//! its ring is not acknowledged. When much memory is in use, rings are small, but every connection
//! gets one.

/// A connection.
mod connection;
/// Delayed acknowledgements.
mod delayed_ack;
/// Headers of a connection's segments.
mod header_template;
/// The host's socket of a connection.
mod host_socket;
/// Opening of connections.
mod open;
/// Bytes from the guest.
mod receive_half;
/// Ring buffers.
mod ring_buffer;
/// Segments and sequence numbers.
mod segment;
/// Writing of segments to the frame stream.
mod segment_writer;
/// Bytes to the guest.
mod send_half;
/// Service of a connection in a turn.
mod service;
/// States of a connection.
mod state;
/// The table of connections.
mod table;
#[cfg(test)]
mod tests;
/// Timers of a connection.
mod timers;
/// Transfer between a connection and its host socket.
mod transfer;

pub(crate) use table::Tcp;
