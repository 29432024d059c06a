//! UDP: flows of datagrams between the guest and sockets of the host.
//!
//! Datagrams larger than the MTU travel in IP fragments, in both directions.

/// Datagrams.
pub mod datagram;
/// The table of flows.
mod flows;

pub(crate) use flows::{Udp, log_undeliverable};
