//! Limits of time and memory. A connection that waits takes some 100 KiB.

use std::time::Duration;

/// Limit of open connections.
pub(crate) const CONNECTIONS_MAX: usize = 1024;
/// Timeout of the guest's ClientHello.
pub(crate) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a TLS handshake.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Timeout of a request's head.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest head of a request or response, in bytes.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Largest number of header fields.
pub(crate) const HEADERS_MAX: usize = 256;
/// Largest number of concurrent streams of an HTTP/2 connection.
pub(crate) const STREAMS_MAX: u32 = 128;
/// Largest body in which placeholders are replaced, in bytes.
pub(crate) const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest number of certificates that are kept for later connections.
pub(crate) const CERTIFICATES_MAX: usize = 1000;
/// Shortest value that is searched for in answers, in bytes. A shorter one occurs by accident.
pub(crate) const WATCHED_BYTES_MIN: usize = 8;
