//! Connections from inside the guest.
//!
//! The stream of a connection: the client opens it with a [`ConnectRequest`]; the agent connects a TCP socket in the
//! guest, so `127.0.0.1` is the guest's and the sandbox's network policy applies, and answers
//! [`ConnectEvent::Connected`] or [`ConnectEvent::Failed`] (last). Bytes for the peer go on the channel of standard
//! input, bytes of the peer on that of standard output; each direction is ended by a data frame with `END` and leaves
//! the other one open. [`ConnectEvent::Ended`] is last, after both have ended. A stream that the client closes is
//! broken off.

use serde::{Deserialize, Serialize};

/// Connects to a TCP port, from inside the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// A name, an IPv4 or an IPv6 address. Names are looked up by the guest: in its `/etc/hosts`, then by its resolvers.
    pub host: String,
    /// The port, not 0.
    pub port: u16,
    /// Time to find the name and connect, in milliseconds; at most [`TIMEOUT_MS_MAX`].
    pub timeout_ms: u32,
}

/// Time after which an attempt to connect is given up, whatever was asked for.
pub const TIMEOUT_MS_MAX: u32 = 120_000;

/// What the agent says of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ConnectEvent {
    /// It stands.
    Connected {
        /// Address and port of the peer.
        peer: String,
    },
    /// Last: it was never there.
    Failed {
        /// The sort of failure.
        kind: ConnectFailure,
        /// Why, for people.
        message: String,
    },
    /// Last: it is over.
    Ended {
        /// Why it broke, when it did not end as it should.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectFailure {
    /// Nobody listens there, or a policy refuses it.
    Refused,
    /// There is no way there.
    Unreachable,
    /// Nobody answered in time.
    TimedOut,
    /// The name has no address.
    NameNotFound,
    /// The guest is out of sockets or memory.
    ResourceLimit,
    /// The agent does not serve this operation.
    UnsupportedOperation,
    /// Anything else, and kinds of later versions.
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
            (
                FailureKind::UnsupportedOperation,
                ConnectFailure::UnsupportedOperation,
            ),
            (FailureKind::ResourceLimit, ConnectFailure::ResourceLimit),
            (FailureKind::BadCwd, ConnectFailure::Other),
        ] {
            let message = "no".to_owned();
            assert_eq!(
                read(&refused(kind)),
                ConnectEvent::Failed {
                    kind: seen,
                    message
                }
            );
        }
    }
}
