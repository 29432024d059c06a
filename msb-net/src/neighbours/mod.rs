//! ARP, neighbour and router discovery, and DHCP: a guest finds its gateway and its addresses with
//! these.
//!
//! Sandboxes get their addresses from the agent; these protocols serve other programs on the frame
//! stream.

/// ARP.
pub(crate) mod arp;
/// DHCP.
pub(crate) mod dhcp;
/// Neighbour and router discovery.
pub(crate) mod discovery;
