//! Userspace network of a sandbox: Ethernet frames on a descriptor, sockets of the host, and a
//! network policy between them.
//!
//! The library is for the program `msb-net`, its fuzz targets and its benchmarks. Its interface may
//! change with every release.

/// Address groups, and addresses embedded in other addresses.
pub mod address;
/// Command-line arguments.
mod args;
mod busy_poll;
/// The Internet checksum.
mod checksum;
/// Server name in a TLS ClientHello.
pub mod client_hello;
mod context;
mod control;
/// The frame stream: Ethernet frames on a stream socket.
mod device;
/// The DNS resolver of the guest.
pub mod dns;
/// Sending of packets to the guest.
mod emitter;
/// The event log.
mod event_log;
/// `msb net explain`.
mod explain;
/// The two endpoints of a connection.
pub mod flow;
/// Reassembly of fragmented IP packets.
pub mod fragments;
/// The host's own addresses, from rtnetlink.
mod host_addresses;
/// Sockets of the host.
mod host_sockets;
/// ICMP echoes and errors.
mod icmp;
/// Hand-over of connections to the process that intercepts TLS.
mod interceptor;
/// Ethernet and IP headers.
pub mod ip;
/// Privileges and system calls that the process gives up.
mod isolate;
/// Memory limits.
mod limits;
/// Memory tests with a hostile guest.
#[cfg(test)]
mod memory_tests;
/// ARP, neighbour discovery and DHCP.
mod neighbours;
/// Policy evaluation.
pub mod policy;
/// The policy gate: verdicts on new connections and flows.
mod policy_gate;
/// The policy engine's settings.
mod policy_settings;
/// Use of the published ports.
mod port_usage;
/// A published port.
mod published_port;
/// Connections and datagrams at published ports.
mod published_ports;
/// `msb net replay`.
mod replay;
/// Sockets of the DNS resolver.
mod resolver;
/// `msb-net serve`.
mod serve;
/// A slab: values under stable keys.
mod slab;
/// The network stack and its event loop.
mod stack;
/// TCP connections.
mod tcp;
/// A guest for unit tests, fuzz targets and benchmarks.
#[cfg(any(test, feature = "testing"))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
pub mod testing;
/// Timer queue.
mod timer_queue;
/// UDP flows.
pub mod udp;
/// Facts behind the verdicts on open connections.
mod verdict_facts;

pub use args::Args;
use args::Command;

/// Runs the program.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Serve(args) => serve::serve(&args),
        Command::Explain(args) => explain::run(args),
        Command::Replay(args) => replay::run(args),
    }
}
