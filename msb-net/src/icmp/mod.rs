//! ICMP and ICMPv6.

/// Echoes.
mod echo;
/// Messages, among them the errors that other protocols send.
mod message;

pub(crate) use echo::Icmp;
pub(crate) use message::{
    IcmpError, datagram_error, send_error, send_flow_error, unreachable_error,
};
