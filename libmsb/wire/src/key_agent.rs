//! SSH agent forwarding: a socket in the guest that leads to the SSH agent of a client.
//!
//! The stream is that of a command ([`crate::exec`]): a process of the guest's agent, running as
//! the requested user, creates a socket that only this user can reach. Its standard output and
//! input carry [`AgentMessage`]s about the connections to that socket; the first one from the guest
//! is [`AgentMessage::Path`]. The contents of the connections are opaque here
//! (draft-miller-ssh-agent). When the client closes the stream, the socket is removed.

use serde::{Deserialize, Serialize};

use crate::text::Text;

/// A request to create a socket for one client's SSH agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyAgentRequest {
    /// User `USER|UID[:GROUP|GID]` who owns the socket, instead of the sandbox's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
}

/// Limit of simultaneous connections.
pub const CONNECTIONS_MAX: usize = 16;

/// Limit of data in one message, in bytes.
pub const PIECE_BYTES_MAX: usize = 16 * 1024;

/// Bytes before the data: the connection's number, the kind, the length of the data.
const HEAD_BYTES: usize = 4 + 1 + 4;

/// A message about a connection, which has a number that the guest assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentMessage<'a> {
    /// From the guest, first and once: the path of the socket.
    Path(&'a [u8]),
    /// From the guest: a new connection.
    Opened(u32),
    /// Data, never empty.
    Data(u32, &'a [u8]),
    /// The connection is closed in both directions. Each side sends this once.
    Closed(u32),
}

/// An error: bytes that are not a valid message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedMessage;

impl<'a> AgentMessage<'a> {
    /// Parses the first message and removes it from `bytes`; `None` if it is incomplete.
    pub fn take(bytes: &mut &'a [u8]) -> Result<Option<AgentMessage<'a>>, MalformedMessage> {
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let [a, b, c, d, kind, length @ ..] = *head;
        let (id, length) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes(length) as usize);
        if length > PIECE_BYTES_MAX {
            return Err(MalformedMessage);
        }
        let Some((data, rest)) = rest.split_at_checked(length) else {
            return Ok(None);
        };
        let piece = match (kind, data) {
            (0, [_, ..]) if id == 0 => AgentMessage::Path(data),
            (1, []) => AgentMessage::Opened(id),
            (2, [_, ..]) => AgentMessage::Data(id, data),
            (3, []) => AgentMessage::Closed(id),
            _ => return Err(MalformedMessage),
        };
        *bytes = rest;
        Ok(Some(piece))
    }

    /// Appends the message. The caller splits data longer than [`PIECE_BYTES_MAX`].
    pub fn put(self, out: &mut Vec<u8>) {
        let (id, kind, data) = match self {
            AgentMessage::Path(path) => (0, 0, path),
            AgentMessage::Opened(id) => (id, 1, &[][..]),
            AgentMessage::Data(id, data) => (id, 2, data),
            AgentMessage::Closed(id) => (id, 3, &[][..]),
        };
        out.extend_from_slice(&id.to_be_bytes());
        out.push(kind);
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_out_as_they_went_in_and_not_before_they_are_whole() {
        let pieces = [
            AgentMessage::Path(b"/tmp/a"),
            AgentMessage::Opened(7),
            AgentMessage::Data(7, b"hi"),
            AgentMessage::Closed(7),
        ];
        let mut bytes = Vec::new();
        for piece in pieces {
            piece.put(&mut bytes);
        }
        for end in 0..=bytes.len() {
            let mut rest = &bytes[..end];
            let mut seen = Vec::new();
            while let Some(piece) = AgentMessage::take(&mut rest).unwrap() {
                seen.push(piece);
            }
            assert_eq!(seen, pieces[..seen.len()]);
            assert_eq!(seen.len() == pieces.len(), end == bytes.len());
        }
    }

    #[test]
    fn what_no_piece_is_like_is_refused() {
        let too_long = ((PIECE_BYTES_MAX + 1) as u32).to_be_bytes();
        let head = |id: u8, kind: u8, length: [u8; 4]| [&[0, 0, 0, id, kind][..], &length].concat();
        for (bytes, data) in [
            (head(1, 2, too_long), 0),
            (head(1, 2, [0; 4]), 0),
            (head(1, 9, [0; 4]), 0),
            (head(1, 1, [0, 0, 0, 1]), 1),
            (head(1, 0, [0, 0, 0, 1]), 1),
        ] {
            let bytes = [bytes, vec![0; data]].concat();
            assert_eq!(AgentMessage::take(&mut &bytes[..]), Err(MalformedMessage), "{bytes:?}");
        }
    }
}
