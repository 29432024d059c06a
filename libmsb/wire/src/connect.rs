//! TCP connections from inside the guest.
//!
//! The client opens a stream with a [`ConnectRequest`]. The agent connects a TCP socket in the
//! guest, so `127.0.0.1` is the guest's own address and the sandbox's network policy applies. It
//! answers [`ConnectEvent::Connected`] or [`ConnectEvent::Failed`] (last). Bytes to the peer use
//! the channel of standard input, bytes from the peer that of standard output. A data frame with
//! `END` closes one direction and leaves the other open. [`ConnectEvent::Ended`] is last, after
//! both directions have ended. If the client closes the stream, the connection is aborted.

use serde::{Deserialize, Serialize};

/// A request to connect to a TCP port from inside the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// A host name, an IPv4 or an IPv6 address. The guest resolves names: in its `/etc/hosts`, then
    /// by its resolvers.
    pub host: String,
    /// The port, not 0.
    pub port: u16,
    /// Timeout of name resolution and connection together, in milliseconds; at most
    /// [`TIMEOUT_MS_MAX`].
    pub timeout_ms: u32,
}

/// Longest timeout of a connection attempt, in milliseconds. Longer requests are cut to it.
pub const TIMEOUT_MS_MAX: u32 = 120_000;

/// An event of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ConnectEvent {
    /// The connection is established.
    Connected {
        /// Address and port of the peer.
        peer: String,
    },
    /// Last: the connection was never established.
    Failed {
        /// The kind of failure.
        kind: ConnectFailure,
        /// The reason, for people.
        message: String,
    },
    /// Last: the connection has ended.
    Ended {
        /// The error, if the connection broke.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
}

/// The reason why a connection was not established.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectFailure {
    /// No process listens there, or a policy denies it.
    Refused,
    /// There is no route.
    Unreachable,
    /// No answer came in time.
    TimedOut,
    /// The name has no address.
    NameNotFound,
    /// The guest is out of sockets or memory.
    ResourceLimit,
    /// The agent does not serve the operation.
    UnsupportedOperation,
    /// Any other reason, and reasons of later versions.
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{ExecEvent, FailureKind};

    #[test]
    fn a_refusal_of_the_supervisor_reads_as_a_failed_connection() {
        let refused = |kind| {
            let message = "no".to_owned();
            serde_json::to_string(&ExecEvent::Failed { kind, message }).unwrap()
        };
        let read = |json: &str| serde_json::from_str::<ConnectEvent>(json).unwrap();
        for (kind, seen) in [
            (FailureKind::UnsupportedOperation, ConnectFailure::UnsupportedOperation),
            (FailureKind::ResourceLimit, ConnectFailure::ResourceLimit),
            (FailureKind::BadCwd, ConnectFailure::Other),
        ] {
            let message = "no".to_owned();
            assert_eq!(read(&refused(kind)), ConnectEvent::Failed { kind: seen, message });
        }
    }
}
