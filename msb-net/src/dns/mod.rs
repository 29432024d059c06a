//! The guest's one way to find names: a server without sockets, which is told what came and says what to send.
//!
//! Whatever the guest sends to port 53, over UDP or TCP and to any address, is a question for this server. It
//!
//! - takes one question at a time, of class IN, and tells apart names that may be asked for from those that may not: these
//!   are answered NXDOMAIN at once, and nobody outside learns of them;
//! - asks the host's own servers, one after the other, each time with a new random number and (in the hands of the caller)
//!   from a new socket, so that an answer cannot be forged without seeing the question;
//! - believes of an answer what was asked for and nothing else: the records of the name and of its aliases, of the type that
//!   was asked for. Addresses that are not public spoil an answer, unless a rule lets the guest reach them. Hints of
//!   addresses and keys for encrypted names are taken out of SVCB and HTTPS records, so that addresses come by A and AAAA
//!   only and names stay visible;
//! - pins each address to the name that was asked for, for as long as the answer lives ([`pins`]): rules on names go by that.
//!
//! Every message to the guest is built anew; nothing from outside is passed on as it came.
//!
//! Sources: RFC 1034 and 1035, 2308 (NXDOMAIN), 6891 (EDNS), 7766 (TCP), 9460 (SVCB), 9849 (ECH), 5452 (forgery).

/// What is believed of an answer.
mod answer;
/// Messages on a TCP stream.
pub(crate) mod framing;
/// Which names an address was found for.
mod pins;
/// What the guest asks.
mod query;
/// What the guest is told.
mod reply;
/// The server.
mod server;

#[cfg(test)]
mod tests;

pub(crate) use server::{Event, Output, Server, Settings};

/// Longest question of a guest, in bytes: a name of 255, and room for options.
pub(crate) const QUERY_BYTES_MAX: usize = 4096;
/// Longest answer over UDP, to the guest and from outside: more goes over TCP. Outside, what fits into any path's packets
/// (DNS flag day 2020).
const UDP_BYTES_MAX: u16 = 4096;
const UPSTREAM_UDP_BYTES: u16 = 1232;
/// Longest answer over UDP to who does not say that he takes more (RFC 1035, 4.2.1).
const UDP_BYTES_MIN: u16 = 512;
/// Longest message at all: TCP has two bytes for its length.
const MESSAGE_BYTES_MAX: usize = 65_535;
/// Longest life of an answer, in seconds: a day.
const TTL_SECONDS_MAX: u32 = 86_400;

/// What a message travels over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// One message, one datagram.
    Udp,
    /// Messages on a stream, see [`framing`].
    Tcp,
}
