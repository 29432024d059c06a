//! A socket in the guest behind which the SSH agent of a client answers.
//!
//! The stream is that of a command ([`crate::exec`]): a process of the agent's own, as the user that is asked for, makes
//! a socket that only this user reaches. Its standard output and input carry [`Piece`]s of the connections to that
//! socket: the first one out is [`Piece::Path`]. What the connections say is for the two ends to know
//! (draft-miller-ssh-agent). When the client closes the stream, the socket goes.

use serde::{Deserialize, Serialize};

use crate::text::Text;

/// Makes a socket for one client's agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyAgentRequest {
    /// `USER|UID[:GROUP|GID]`, in place of the sandbox's: whose the socket is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
}

/// Connections at a time.
pub const CONNECTIONS_MAX: usize = 16;

/// Bytes of data in one piece.
pub const PIECE_BYTES_MAX: usize = 16 * 1024;

/// Bytes before the data: the connection's number, the kind, the length of the data.
const HEAD_BYTES: usize = 4 + 1 + 4;

/// What one side says of a connection, which has a number that the guest gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// From the guest, first and once: where the socket is.
    Path(&'a [u8]),
    /// From the guest: somebody connected.
    Opened(u32),
    /// Bytes, not none.
    Data(u32, &'a [u8]),
    /// Nothing more is said on this connection, either way. Each side says so once.
    Closed(u32),
}

/// Bytes that are no piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl<'a> Piece<'a> {
    /// Takes the first piece off `bytes`; `None` when it is not all there yet.
    pub fn take(bytes: &mut &'a [u8]) -> Result<Option<Piece<'a>>, Malformed> {
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let [a, b, c, d, kind, length @ ..] = *head;
        let (id, length) = (
            u32::from_be_bytes([a, b, c, d]),
            u32::from_be_bytes(length) as usize,
        );
        if length > PIECE_BYTES_MAX {
            return Err(Malformed);
        }
        let Some((data, rest)) = rest.split_at_checked(length) else {
            return Ok(None);
        };
        let piece = match (kind, data) {
            (0, [_, ..]) if id == 0 => Piece::Path(data),
            (1, []) => Piece::Opened(id),
            (2, [_, ..]) => Piece::Data(id, data),
            (3, []) => Piece::Closed(id),
            _ => return Err(Malformed),
        };
        *bytes = rest;
        Ok(Some(piece))
    }

    /// Appends the piece. Data beyond [`PIECE_BYTES_MAX`] is for the caller to divide.
    pub fn put(self, out: &mut Vec<u8>) {
        let (id, kind, data) = match self {
            Piece::Path(path) => (0, 0, path),
            Piece::Opened(id) => (id, 1, &[][..]),
            Piece::Data(id, data) => (id, 2, data),
            Piece::Closed(id) => (id, 3, &[][..]),
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
            Piece::Path(b"/tmp/a"),
            Piece::Opened(7),
            Piece::Data(7, b"hi"),
            Piece::Closed(7),
        ];
        let mut bytes = Vec::new();
        for piece in pieces {
            piece.put(&mut bytes);
        }
        for end in 0..=bytes.len() {
            let mut rest = &bytes[..end];
            let mut seen = Vec::new();
            while let Some(piece) = Piece::take(&mut rest).unwrap() {
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
            assert_eq!(Piece::take(&mut &bytes[..]), Err(Malformed), "{bytes:?}");
        }
    }
}
