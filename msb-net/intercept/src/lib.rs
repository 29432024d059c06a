//! TLS interception of one sandbox.
//!
//! `msb-net` reads the ClientHello of a connection to an intercepted port and hands the connection
//! over: the connected socket of the server, and one end of a socket pair in the place of the guest.
//! Here the guest's TLS ends with a certificate of the sandbox's own authority, a TLS connection to
//! the server is made and verified, and requests go from one to the other. Each is parsed and
//! written again, so that the server reads exactly what was judged here.
//!
//! Goals:
//!
//! * A value leaves this process only in a request over a connection whose certificate was verified
//!   here for a name that the secret is bound to, and whose address `msb-net` resolved from it.
//! * The process opens nothing: no socket, no file, no program. It has the values and the
//!   connections that it was given.
//! * If it ends, the sandbox ends. There is no way around it.
//!
//! The library is for the program and its fuzz targets. Its interface may change with every
//! release.

/// Answers to requests that are refused.
mod answer;
/// Command-line arguments.
mod args;
/// The certificate authority of the sandbox.
mod authority;
/// Bodies of requests and responses.
mod body;
/// One intercepted connection.
mod connection;
/// Events.
mod event_log;
/// One request and its response.
mod exchange;
/// Connections from msb-net.
mod handover;
/// Headers that never get a secret by default.
mod headers;
/// State that all connections share.
mod interceptor;
/// Privileges and system calls that the process gives up.
mod isolate;
/// Limits.
mod limits;
/// Search for placeholders and values.
pub mod search;
/// Secrets with their values.
pub mod secrets;
/// The event loop.
mod serve;
/// The host that a request names.
pub mod target;
#[cfg(test)]
mod tests;
/// Encoded forms of placeholders and values.
pub mod text_forms;
/// TLS connections to servers.
mod upstream;

pub use args::Args;

/// Runs the program.
pub fn run(args: Args) -> anyhow::Result<()> {
    serve::serve(&args)
}
