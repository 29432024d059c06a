//! Frames: a header of twelve bytes, then the payload.
//!
//! ```text
//!  0        4        8      9        10       12
//!  | length | stream | kind | channel | flags | payload …
//! ```
//!
//! All numbers are big-endian. `length` is that of the payload alone. Stream 0 belongs to the
//! connection itself (hello); every other stream is one call, so one connection multiplexes many
//! calls. [`Decoder`] is the parser of bytes from the other side: frames that it returns are valid.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};

use crate::limits::{DATA_BYTES, HEADER_BYTES, MESSAGE_BYTES_MAX, PAYLOAD_BYTES_MAX};

/// The stream of the connection itself.
pub const CONNECTION: u32 = 0;

/// Standard input, from the client to the guest.
pub const STDIN: u8 = 0;
/// Standard output, from the guest to the client; a terminal's output too.
pub const STDOUT: u8 = 1;
/// Standard error, from the guest to the client.
pub const STDERR: u8 = 2;
/// Number of channels that a stream may have.
pub const CHANNELS: usize = 3;

/// Bits of a header's flags. Undefined bits must be zero.
pub mod flags {
    /// The message continues in the next frame of the same stream and kind.
    pub const MORE: u16 = 1;
    /// Data: nothing follows on this channel. Event: the call is over and its stream number is
    /// free.
    pub const END: u16 = 2;
}

/// Kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// First frame of each side: [`crate::handshake::Hello`] as JSON.
    Hello = 1,
    /// Client to guest: opens a stream with a request (JSON with the field `op`).
    Open = 2,
    /// Raw bytes of a channel, subject to flow control.
    Data = 3,
    /// Flow control. Payload: a `u32`, the number of further bytes that the receiver of the channel
    /// accepts.
    Credit = 4,
    /// Client to guest: JSON about an open stream (resize, signal).
    Control = 5,
    /// Guest to client: JSON about an open stream. The last one has [`flags::END`].
    Event = 6,
    /// Client to guest: ends the call. The guest still sends its last event.
    Close = 7,
}

impl FrameKind {
    fn parse(byte: u8) -> Option<FrameKind> {
        [
            FrameKind::Hello,
            FrameKind::Open,
            FrameKind::Data,
            FrameKind::Credit,
            FrameKind::Control,
            FrameKind::Event,
            FrameKind::Close,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }

    /// Returns whether the payload is a JSON message, which may span several frames.
    pub fn is_message(self) -> bool {
        matches!(self, FrameKind::Hello | FrameKind::Open | FrameKind::Control | FrameKind::Event)
    }
}

/// A valid header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Payload length in bytes, at most [`PAYLOAD_BYTES_MAX`].
    pub length: usize,
    /// Number of the stream, 0 for the connection.
    pub stream: u32,
    /// Kind of the frame.
    pub kind: FrameKind,
    /// The channel, for data and credit; 0 otherwise.
    pub channel: u8,
    /// [`flags`].
    pub flags: u16,
}

impl FrameHeader {
    /// Parses and checks a header.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<FrameHeader, FrameError> {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, channel, f0, f1] = *bytes;
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        if length as usize > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong { length });
        }
        let header = FrameHeader {
            length: length as usize,
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            kind: FrameKind::parse(kind).ok_or(FrameError::UnknownKind { kind })?,
            channel,
            flags: u16::from_be_bytes([f0, f1]),
        };
        header.check_shape()?;
        Ok(header)
    }

    fn check_shape(&self) -> Result<(), FrameError> {
        let allowed = match self.kind {
            FrameKind::Hello | FrameKind::Open | FrameKind::Control => flags::MORE,
            FrameKind::Event => flags::MORE | flags::END,
            FrameKind::Data => flags::END,
            FrameKind::Credit | FrameKind::Close => 0,
        };
        let on_connection = self.stream == CONNECTION;
        let has_channel = matches!(self.kind, FrameKind::Data | FrameKind::Credit);
        let malformed = self.flags & !allowed != 0
            || on_connection != (self.kind == FrameKind::Hello)
            || usize::from(self.channel) >= CHANNELS
            || (self.channel != 0 && !has_channel)
            || (self.kind == FrameKind::Credit && self.length != 4);
        if malformed { Err(FrameError::Malformed { kind: self.kind }) } else { Ok(()) }
    }

    /// Returns the encoded header.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let [l0, l1, l2, l3] = (self.length as u32).to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        let [f0, f1] = self.flags.to_be_bytes();
        [l0, l1, l2, l3, s0, s1, s2, s3, self.kind as u8, self.channel, f0, f1]
    }

    /// Returns whether this frame ends its message, channel or call.
    pub fn ends(&self) -> bool {
        self.flags & flags::END != 0
    }
}

/// An error in a frame. The connection cannot continue after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The payload is longer than [`PAYLOAD_BYTES_MAX`].
    TooLong {
        /// The announced length, in bytes.
        length: u32,
    },
    /// The kind is unknown in this version.
    UnknownKind {
        /// The byte of the kind.
        kind: u8,
    },
    /// Flags, stream or channel that are invalid for the kind.
    Malformed {
        /// The kind of the frame.
        kind: FrameKind,
    },
    /// A message that grew beyond [`MESSAGE_BYTES_MAX`].
    MessageTooLong,
    /// Too many unfinished messages.
    TooManyMessages,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLong { length } => {
                write!(f, "frame of {length} bytes exceeds the limit of {PAYLOAD_BYTES_MAX}")
            }
            FrameError::UnknownKind { kind } => write!(f, "unknown frame kind {kind}"),
            FrameError::Malformed { kind } => write!(f, "malformed {kind:?} frame"),
            FrameError::MessageTooLong => {
                write!(f, "message exceeds the limit of {MESSAGE_BYTES_MAX} bytes")
            }
            FrameError::TooManyMessages => write!(f, "too many unfinished messages"),
        }
    }
}

impl std::error::Error for FrameError {}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// A whole frame, header included, in the decoder's buffer.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The header.
    pub header: FrameHeader,
    bytes: &'a mut [u8],
}

impl Frame<'_> {
    /// Returns the bytes after the header.
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// Returns the number in a credit frame; `None` for every other kind.
    pub fn credit(&self) -> Option<u32> {
        if self.header.kind != FrameKind::Credit {
            return None;
        }
        self.payload().try_into().ok().map(u32::from_be_bytes)
    }

    /// Returns the frame's bytes with another stream number, for a relay.
    pub fn renumbered(&mut self, stream: u32) -> &[u8] {
        self.header.stream = stream;
        self.bytes[..HEADER_BYTES].copy_from_slice(&self.header.to_bytes());
        self.bytes
    }
}

/// A decoder: takes bytes in any portions and returns valid frames.
///
/// It holds at most one frame of the largest size and one read beyond it.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// Size of one read, in bytes.
const READ_BYTES: usize = 64 * 1024;

impl Decoder {
    /// Returns an empty decoder.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Reads once from `source`. Returns the number of bytes, 0 at its end.
    pub fn fill(&mut self, source: &mut impl Read) -> io::Result<usize> {
        let room = self.room();
        let count = source.read(room)?;
        self.end += count;
        Ok(count)
    }

    /// Returns free buffer space to read into; call [`Decoder::filled`] afterwards.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() < self.end + READ_BYTES {
            self.buffer.resize(self.end + READ_BYTES, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Records that `count` bytes were written to [`Decoder::room`].
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// Returns the next whole frame, or `None` if more bytes are needed.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let pending = &self.buffer[self.start..self.end];
        let Some(head) = pending.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = FrameHeader::parse(head)?;
        let total = HEADER_BYTES + header.length;
        if pending.len() < total {
            return Ok(None);
        }
        let start = self.start;
        self.start += total;
        Ok(Some(Frame { header, bytes: &mut self.buffer[start..start + total] }))
    }

    /// Returns whether the buffer holds part of an unfinished frame.
    pub fn is_mid_frame(&self) -> bool {
        self.start < self.end
    }
}

/// Limit of unfinished messages of one side.
const UNFINISHED_MAX: usize = 64;

/// An assembler of messages from frames that carry [`flags::MORE`].
#[derive(Debug, Default)]
pub struct Assembler {
    unfinished: HashMap<(u32, FrameKind), Vec<u8>>,
}

impl Assembler {
    /// Returns an empty assembler.
    pub fn new() -> Assembler {
        Assembler::default()
    }

    /// Takes the payload of a message frame. Returns the whole message with its last frame.
    pub fn push(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<Option<Vec<u8>>, FrameError> {
        let key = (header.stream, header.kind);
        let more = header.flags & flags::MORE != 0;
        if more && !self.unfinished.contains_key(&key) && self.unfinished.len() >= UNFINISHED_MAX {
            return Err(FrameError::TooManyMessages);
        }
        let mut message = self.unfinished.remove(&key).unwrap_or_default();
        if message.len() + payload.len() > MESSAGE_BYTES_MAX {
            return Err(FrameError::MessageTooLong);
        }
        message.extend_from_slice(payload);
        if more {
            self.unfinished.insert(key, message);
            return Ok(None);
        }
        Ok(Some(message))
    }

    /// Discards the unfinished messages of a stream that is over.
    pub fn forget(&mut self, stream: u32) {
        self.unfinished.retain(|(of, _), _| *of != stream);
    }
}

/// Appends one frame to `out`. The payload must not be longer than [`PAYLOAD_BYTES_MAX`].
pub fn put_frame(
    out: &mut Vec<u8>,
    stream: u32,
    kind: FrameKind,
    channel: u8,
    flags: u16,
    payload: &[u8],
) {
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX);
    let header = FrameHeader { length: payload.len(), stream, kind, channel, flags };
    out.extend_from_slice(&header.to_bytes());
    out.extend_from_slice(payload);
}

/// Appends a message, in as many frames as needed. `last_flags` are set on the last one.
pub fn put_message(
    out: &mut Vec<u8>,
    stream: u32,
    kind: FrameKind,
    last_flags: u16,
    message: &[u8],
) {
    let mut rest = message;
    while rest.len() > PAYLOAD_BYTES_MAX {
        let (head, tail) = rest.split_at(PAYLOAD_BYTES_MAX);
        put_frame(out, stream, kind, 0, flags::MORE, head);
        rest = tail;
    }
    put_frame(out, stream, kind, 0, last_flags, rest);
}

/// Appends data, in as many frames as needed.
pub fn put_data(out: &mut Vec<u8>, stream: u32, channel: u8, data: &[u8]) {
    for part in data.chunks(DATA_BYTES) {
        put_frame(out, stream, FrameKind::Data, channel, 0, part);
    }
}

/// Appends a grant of credit.
pub fn put_credit(out: &mut Vec<u8>, stream: u32, channel: u8, bytes: u32) {
    put_frame(out, stream, FrameKind::Credit, channel, 0, &bytes.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Vec<(FrameHeader, Vec<u8>)>, FrameError> {
        let mut decoder = Decoder::new();
        let mut source = bytes;
        let mut frames = Vec::new();
        while decoder.fill(&mut source).unwrap() > 0 {
            while let Some(frame) = decoder.next_frame()? {
                frames.push((frame.header, frame.payload().to_vec()));
            }
        }
        Ok(frames)
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut out = Vec::new();
        put_message(&mut out, 0, FrameKind::Hello, 0, b"{}");
        put_data(&mut out, 7, STDOUT, &vec![9; DATA_BYTES + 1]);
        put_credit(&mut out, 7, STDIN, 4096);
        put_message(&mut out, 7, FrameKind::Event, flags::END, b"[]");
        let frames = decode(&out).unwrap();
        let kinds: Vec<_> =
            frames.iter().map(|(header, payload)| (header.kind, payload.len())).collect();
        assert_eq!(
            kinds,
            [
                (FrameKind::Hello, 2),
                (FrameKind::Data, DATA_BYTES),
                (FrameKind::Data, 1),
                (FrameKind::Credit, 4),
                (FrameKind::Event, 2)
            ]
        );
        assert!(frames[4].0.ends());
    }

    #[test]
    fn a_frame_that_comes_byte_by_byte_is_whole_only_at_its_last_byte() {
        let mut out = Vec::new();
        put_data(&mut out, 3, STDIN, b"abc");
        let mut decoder = Decoder::new();
        for (at, byte) in out.iter().enumerate() {
            assert!(decoder.next_frame().unwrap().is_none(), "whole before byte {at}");
            decoder.fill(&mut &[*byte][..]).unwrap();
        }
        assert_eq!(decoder.next_frame().unwrap().unwrap().payload(), b"abc");
        assert!(!decoder.is_mid_frame());
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let good =
            FrameHeader { length: 0, stream: 1, kind: FrameKind::Data, channel: 1, flags: 0 };
        let refused = |change: fn(&mut [u8; HEADER_BYTES])| {
            let mut bytes = good.to_bytes();
            change(&mut bytes);
            FrameHeader::parse(&bytes).unwrap_err()
        };
        assert_eq!(refused(|b| b[0] = 1), FrameError::TooLong { length: 1 << 24 });
        assert_eq!(refused(|b| b[8] = 0), FrameError::UnknownKind { kind: 0 });
        assert_eq!(refused(|b| b[9] = 3), FrameError::Malformed { kind: FrameKind::Data });
        assert_eq!(refused(|b| b[10] = 0x80), FrameError::Malformed { kind: FrameKind::Data });
        assert_eq!(refused(|b| b[7] = 0), FrameError::Malformed { kind: FrameKind::Data });
        assert_eq!(
            refused(|b| b[8] = FrameKind::Credit as u8),
            FrameError::Malformed { kind: FrameKind::Credit }
        );
    }

    #[test]
    fn a_long_message_is_put_together_and_one_beyond_the_limit_is_refused() {
        let message = vec![b'x'; 3 * PAYLOAD_BYTES_MAX + 5];
        let mut out = Vec::new();
        put_message(&mut out, 9, FrameKind::Open, 0, &message);
        let mut assembler = Assembler::new();
        let frames = decode(&out).unwrap();
        let mut whole = None;
        for (header, payload) in &frames {
            assert!(whole.is_none());
            whole = assembler.push(header, payload).unwrap();
        }
        assert_eq!(whole.unwrap(), message);

        let more = FrameHeader {
            length: 0,
            stream: 9,
            kind: FrameKind::Open,
            channel: 0,
            flags: flags::MORE,
        };
        let part = vec![0; PAYLOAD_BYTES_MAX];
        for _ in 0..MESSAGE_BYTES_MAX / PAYLOAD_BYTES_MAX {
            assert_eq!(assembler.push(&more, &part).unwrap(), None);
        }
        assert_eq!(assembler.push(&more, &part), Err(FrameError::MessageTooLong));
    }

    #[test]
    fn a_renumbered_frame_keeps_its_payload() {
        let mut out = Vec::new();
        put_data(&mut out, 5, STDERR, b"payload");
        let mut decoder = Decoder::new();
        decoder.fill(&mut &out[..]).unwrap();
        let bytes = decoder.next_frame().unwrap().unwrap().renumbered(77).to_vec();
        let (header, payload) = decode(&bytes).unwrap().remove(0);
        assert_eq!(
            (header.stream, header.channel, payload.as_slice()),
            (77, STDERR, &b"payload"[..])
        );
    }
}
