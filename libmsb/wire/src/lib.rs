//! The protocol between the guest's agent, the supervisor of a sandbox, and the clients on the
//! host.
//!
//! One byte stream multiplexes many numbered streams, each a call. A request opens a call, bytes go
//! on its channels under credit-based flow control, and one last event ends it. The specification
//! is man page msb-wire(5).

/// Keeping overwritten blocks for a copy of the upper disk.
pub mod backup;
/// The boot request: root, name, network and environment of a guest.
pub mod boot;
/// The host's client, over a Unix socket; blocking, std only.
pub mod client;
/// TCP connections from inside the guest.
pub mod connect;
/// Credit: flow control of a channel.
pub mod credit;
/// Commands in the guest: request, control messages, events.
pub mod exec;
/// Copies of files and directories, into a guest and out of it.
pub mod file;
/// Frames: header, decoder and encoder.
pub mod frame;
/// Freezing the guest's upper file system.
pub mod freeze;
/// Security settings of a guest, and its init.
pub mod guest;
/// The handshake: versions and operations of each side.
pub mod handshake;
/// Jobs: commands that continue without a client.
pub mod job;
/// SSH agent forwarding.
pub mod key_agent;
/// Limits of the protocol.
pub mod limits;
/// Mounts of a guest besides its root.
pub mod memory;
pub mod mount;
/// Changes of the network of a running sandbox.
pub mod network;
/// Samples of a guest's resource use, as its agent measures it.
pub mod samples;
/// All requests, and those to the supervisor itself.
pub mod sandbox;
/// SFTP: a file server in the guest.
pub mod sftp;
/// Byte strings that need not be UTF-8, in JSON.
pub mod text;
