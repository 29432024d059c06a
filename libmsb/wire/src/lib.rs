//! The protocol between the guest's agent, the supervisor of a sandbox, and the clients on the host.
//!
//! One byte stream carries many numbered streams, each a call: it is opened with a request, carries bytes
//! on channels under credit, and ends with one last event. The contract is man page msb-wire(5).

/// The first request of a guest's life: what its root, name and environment are.
pub mod boot;
/// The host's side of a call, over a Unix socket; blocking, std only.
pub mod client;
/// TCP connections from inside the guest.
pub mod connect;
/// How many bytes a sender may still send on a channel.
pub mod credit;
/// Commands in the guest: the request, what is said while they run, and how they end.
pub mod exec;
/// Files and folders, into a guest and out of it.
pub mod file;
/// Frames: the header, the checked door for bytes from the other side, and the writer.
pub mod frame;
/// What a guest may do, and what is its first process.
pub mod guest;
/// The first frame of each side: versions, operations, and what to do when they differ.
pub mod handshake;
/// Commands that go on without a client.
pub mod job;
/// A socket in the guest for the SSH agent of a client.
pub mod key_agent;
/// Every bound of the protocol.
pub mod limits;
/// What a guest mounts besides its root.
pub mod mount;
/// A network that becomes another while its sandbox runs.
pub mod network;
/// What a guest costs, as its agent sees it.
pub mod samples;
/// Requests to the supervisor itself.
pub mod sandbox;
/// A server of the SSH file transfer protocol in the guest.
pub mod sftp;
/// Strings that may hold bytes which are not UTF-8, in JSON.
pub mod text;
