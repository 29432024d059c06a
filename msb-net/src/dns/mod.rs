//! The guest's DNS resolver: a server without sockets, which takes events and returns outputs.
//!
//! Every message that the guest sends to port 53, over UDP or TCP and to any address, is a query to
//! this server. The server
//!
//! - accepts one question per message, of class IN, and checks the name against the policy: a name
//!   that may not be queried is answered NXDOMAIN at once, without asking any upstream server;
//! - asks the host's own name servers, one after the other, each time with a new random identifier
//!   and (by its caller) from a new socket, so that an answer cannot be forged without seeing the
//!   query;
//! - accepts only what was asked for: records of the name and of its aliases, of the queried type.
//!   An address that is not public rejects the whole answer (rebinding protection), unless a rule
//!   lets the guest reach it. Address hints and ECH keys are removed from SVCB and HTTPS records,
//!   so that addresses come from A and AAAA records only and names stay visible;
//! - pins each address to the queried name for the lifetime of the answer ([`pins`]): rules on
//!   names use these pins.
//!
//! Every message to the guest is built from scratch; no upstream message is forwarded as it is.
//!
//! Sources: RFC 1034 and 1035, 2308 (NXDOMAIN), 6891 (EDNS), 7766 (TCP), 9460 (SVCB), 9849 (ECH),
//! 5452 (forgery).

/// Validation of upstream answers.
mod answer;
/// Framing of messages on a TCP stream.
pub mod framing;
/// Names that addresses were resolved from.
mod pins;
/// Queries of the guest.
mod query;
/// Replies to the guest.
mod reply;
/// Requests of the guest in a turn.
mod request;
/// The server.
mod server;

#[cfg(test)]
mod tests;

pub(crate) use request::{DnsRequest, DnsRequestQueue};
pub use server::{DnsEvent, DnsOutput, DnsServer, DnsSettings};

/// Limit of a query in bytes: a name of 255, and space for options.
pub(crate) const QUERY_BYTES_MAX: usize = 4096;
/// Limit of a message over UDP, to the guest and from upstream; longer ones go over TCP. The
/// upstream limit fits into the packets of any path (DNS flag day 2020).
const UDP_BYTES_MAX: u16 = 4096;
const UPSTREAM_UDP_BYTES: u16 = 1232;
/// Limit of a reply over UDP to a client without EDNS (RFC 1035, 4.2.1).
const UDP_BYTES_MIN: u16 = 512;
/// Limit of any message: its length has two bytes over TCP.
const MESSAGE_BYTES_MAX: usize = 65_535;
/// Longest lifetime of an answer in seconds: a day.
const TTL_SECONDS_MAX: u32 = 86_400;

/// Transport of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsTransport {
    /// One message per datagram.
    Udp,
    /// Messages on a stream, see [`framing`].
    Tcp,
}
