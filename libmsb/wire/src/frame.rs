//! Frames: a header of twelve bytes, then the payload.
//!
//! ```text
//!  0        4        8      9        10       12
//!  | length | stream | kind | channel | flags | payload …
//! ```
//!
//! All numbers are big-endian. `length` is that of the payload alone. Stream 0 belongs to the connection itself
//! (hello); every other stream is one call. Bytes from the other side pass through [`Decoder`], and only what it
//! lets through is ever looked at: after it the shape is known to be right.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};

use crate::limits::{DATA_BYTES, MESSAGE_BYTES_MAX, PAYLOAD_BYTES_MAX};

/// Size of a frame's header, in bytes.
pub const HEADER_BYTES: usize = 12;

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

/// Bits of a header's flags. Bits without a meaning must be zero.
pub mod flags {
    /// The message goes on in the next frame of the same stream and kind.
    pub const MORE: u16 = 1;
    /// Data: nothing follows on this channel. Event: the call is over and its stream number is free.
    pub const END: u16 = 2;
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// First frame of each side: [`crate::handshake::Hello`] as JSON.
    Hello = 1,
    /// Client to guest: opens a stream with a request (JSON with the field `op`).
    Open = 2,
    /// Raw bytes of a channel, counted against its credit.
    Data = 3,
    /// Payload: a `u32`, the number of bytes more that the receiver of the channel takes.
    Credit = 4,
    /// Client to guest: JSON about an open stream (resize, signal).
    Control = 5,
    /// Guest to client: JSON about an open stream. The last one has [`flags::END`].
    Event = 6,
    /// Client to guest: the client has lost interest. The guest ends the call and still sends its last event.
    Close = 7,
}

impl Kind {
    fn parse(byte: u8) -> Option<Kind> {
        [
            Kind::Hello,
            Kind::Open,
            Kind::Data,
            Kind::Credit,
            Kind::Control,
            Kind::Event,
            Kind::Close,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }

    /// Whether the payload is a message in JSON, which may be spread over several frames.
    pub fn is_message(self) -> bool {
        matches!(self, Kind::Hello | Kind::Open | Kind::Control | Kind::Event)
    }
}

/// A checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Payload length in bytes, at most [`PAYLOAD_BYTES_MAX`].
    pub length: usize,
    /// The call that this frame belongs to, 0 for the connection.
    pub stream: u32,
    /// What the payload is.
    pub kind: Kind,
    /// The channel, for data and credit; 0 otherwise.
    pub channel: u8,
    /// [`flags`].
    pub flags: u16,
}

impl Header {
    /// Reads and checks a header.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, channel, f0, f1] = *bytes;
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        if length as usize > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong { length });
        }
        let header = Header {
            length: length as usize,
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            kind: Kind::parse(kind).ok_or(FrameError::UnknownKind { kind })?,
            channel,
            flags: u16::from_be_bytes([f0, f1]),
        };
        header.check_shape()?;
        Ok(header)
    }

    fn check_shape(&self) -> Result<(), FrameError> {
        let allowed = match self.kind {
            Kind::Hello | Kind::Open | Kind::Control => flags::MORE,
            Kind::Event => flags::MORE | flags::END,
            Kind::Data => flags::END,
            Kind::Credit | Kind::Close => 0,
        };
        let on_connection = self.stream == CONNECTION;
        let has_channel = matches!(self.kind, Kind::Data | Kind::Credit);
        let malformed = self.flags & !allowed != 0
            || on_connection != (self.kind == Kind::Hello)
            || usize::from(self.channel) >= CHANNELS
            || (self.channel != 0 && !has_channel)
            || (self.kind == Kind::Credit && self.length != 4);
        if malformed {
            Err(FrameError::Malformed { kind: self.kind })
        } else {
            Ok(())
        }
    }

    /// The header as it goes over the wire.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let [l0, l1, l2, l3] = (self.length as u32).to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        let [f0, f1] = self.flags.to_be_bytes();
        [
            l0,
            l1,
            l2,
            l3,
            s0,
            s1,
            s2,
            s3,
            self.kind as u8,
            self.channel,
            f0,
            f1,
        ]
    }

    /// Whether this frame ends its message, channel or call.
    pub fn ends(&self) -> bool {
        self.flags & flags::END != 0
    }
}

/// Why bytes from the other side are no frame. The connection cannot go on after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The payload is longer than [`PAYLOAD_BYTES_MAX`].
    TooLong {
        /// The length that was announced, in bytes.
        length: u32,
    },
    /// A kind that this version does not know.
    UnknownKind {
        /// The byte at the kind's place.
        kind: u8,
    },
    /// Flags, stream or channel that do not go with the kind.
    Malformed {
        /// The kind of the frame.
        kind: Kind,
    },
    /// A message that grew beyond [`MESSAGE_BYTES_MAX`].
    MessageTooLong,
    /// Too many messages were begun and not ended.
    TooManyMessages,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLong { length } => {
                write!(
                    f,
                    "a frame of {length} bytes is longer than the limit of {PAYLOAD_BYTES_MAX}"
                )
            }
            FrameError::UnknownKind { kind } => write!(f, "a frame of unknown kind {kind}"),
            FrameError::Malformed { kind } => write!(f, "a malformed {kind:?} frame"),
            FrameError::MessageTooLong => {
                write!(f, "a message is longer than {MESSAGE_BYTES_MAX} bytes")
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
    /// The checked header.
    pub header: Header,
    bytes: &'a mut [u8],
}

impl Frame<'_> {
    /// What follows the header.
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// The number that a credit frame carries; `None` for every other kind.
    pub fn credit(&self) -> Option<u32> {
        if self.header.kind != Kind::Credit {
            return None;
        }
        self.payload().try_into().ok().map(u32::from_be_bytes)
    }

    /// The frame's bytes under another stream number: what a relay sends on.
    pub fn renumbered(&mut self, stream: u32) -> &[u8] {
        self.header.stream = stream;
        self.bytes[..HEADER_BYTES].copy_from_slice(&self.header.to_bytes());
        self.bytes
    }
}

/// Takes bytes in any portions and gives checked frames.
///
/// It never holds more than one largest frame and one read beyond it.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// What one read may bring, in bytes.
const READ_BYTES: usize = 64 * 1024;

impl Decoder {
    /// An empty decoder.
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

    /// The place for bytes to be read into; follow up with [`Decoder::filled`].
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

    /// Says that `count` bytes were put into [`Decoder::room`].
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// The next whole frame, or `None` when more bytes are needed.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let pending = &self.buffer[self.start..self.end];
        let Some(head) = pending.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = Header::parse(head)?;
        let total = HEADER_BYTES + header.length;
        if pending.len() < total {
            return Ok(None);
        }
        let begin = self.start;
        self.start += total;
        Ok(Some(Frame {
            header,
            bytes: &mut self.buffer[begin..begin + total],
        }))
    }

    /// Whether bytes of an unfinished frame are waiting.
    pub fn is_mid_frame(&self) -> bool {
        self.start < self.end
    }
}

/// Messages of one side that may be begun and not ended at a time.
const UNFINISHED_MAX: usize = 64;

/// Puts messages together from frames that carry [`flags::MORE`].
#[derive(Debug, Default)]
pub struct Assembler {
    unfinished: HashMap<(u32, Kind), Vec<u8>>,
}

impl Assembler {
    /// An assembler with nothing begun.
    pub fn new() -> Assembler {
        Assembler::default()
    }

    /// Takes the payload of a message frame; gives the whole message when this was its last frame.
    pub fn push(&mut self, header: &Header, payload: &[u8]) -> Result<Option<Vec<u8>>, FrameError> {
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

    /// Forgets what was begun on a stream that is over.
    pub fn forget(&mut self, stream: u32) {
        self.unfinished.retain(|(of, _), _| *of != stream);
    }
}

/// Appends one frame to `out`. The payload must not be longer than [`PAYLOAD_BYTES_MAX`].
pub fn put_frame(
    out: &mut Vec<u8>,
    stream: u32,
    kind: Kind,
    channel: u8,
    flags: u16,
    payload: &[u8],
) {
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX);
    let header = Header {
        length: payload.len(),
        stream,
        kind,
        channel,
        flags,
    };
    out.extend_from_slice(&header.to_bytes());
    out.extend_from_slice(payload);
}

/// Appends a message, in as many frames as it takes. `last_flags` go on the last one.
pub fn put_message(out: &mut Vec<u8>, stream: u32, kind: Kind, last_flags: u16, message: &[u8]) {
    let mut rest = message;
    while rest.len() > PAYLOAD_BYTES_MAX {
        let (head, tail) = rest.split_at(PAYLOAD_BYTES_MAX);
        put_frame(out, stream, kind, 0, flags::MORE, head);
        rest = tail;
    }
    put_frame(out, stream, kind, 0, last_flags, rest);
}

/// Appends data in as many frames as it takes.
pub fn put_data(out: &mut Vec<u8>, stream: u32, channel: u8, data: &[u8]) {
    for part in data.chunks(DATA_BYTES) {
        put_frame(out, stream, Kind::Data, channel, 0, part);
    }
}

/// Appends a grant of credit.
pub fn put_credit(out: &mut Vec<u8>, stream: u32, channel: u8, bytes: u32) {
    put_frame(out, stream, Kind::Credit, channel, 0, &bytes.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Vec<(Header, Vec<u8>)>, FrameError> {
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
        put_message(&mut out, 0, Kind::Hello, 0, b"{}");
        put_data(&mut out, 7, STDOUT, &vec![9; DATA_BYTES + 1]);
        put_credit(&mut out, 7, STDIN, 4096);
        put_message(&mut out, 7, Kind::Event, flags::END, b"[]");
        let frames = decode(&out).unwrap();
        let kinds: Vec<_> = frames
            .iter()
            .map(|(header, payload)| (header.kind, payload.len()))
            .collect();
        assert_eq!(
            kinds,
            [
                (Kind::Hello, 2),
                (Kind::Data, DATA_BYTES),
                (Kind::Data, 1),
                (Kind::Credit, 4),
                (Kind::Event, 2)
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
            assert!(
                decoder.next_frame().unwrap().is_none(),
                "whole before byte {at}"
            );
            decoder.fill(&mut &[*byte][..]).unwrap();
        }
        assert_eq!(decoder.next_frame().unwrap().unwrap().payload(), b"abc");
        assert!(!decoder.is_mid_frame());
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let good = Header {
            length: 0,
            stream: 1,
            kind: Kind::Data,
            channel: 1,
            flags: 0,
        };
        let refused = |change: fn(&mut [u8; HEADER_BYTES])| {
            let mut bytes = good.to_bytes();
            change(&mut bytes);
            Header::parse(&bytes).unwrap_err()
        };
        assert_eq!(
            refused(|b| b[0] = 1),
            FrameError::TooLong { length: 1 << 24 }
        );
        assert_eq!(refused(|b| b[8] = 0), FrameError::UnknownKind { kind: 0 });
        assert_eq!(
            refused(|b| b[9] = 3),
            FrameError::Malformed { kind: Kind::Data }
        );
        assert_eq!(
            refused(|b| b[10] = 0x80),
            FrameError::Malformed { kind: Kind::Data }
        );
        assert_eq!(
            refused(|b| b[7] = 0),
            FrameError::Malformed { kind: Kind::Data }
        );
        assert_eq!(
            refused(|b| b[8] = Kind::Credit as u8),
            FrameError::Malformed { kind: Kind::Credit }
        );
    }

    #[test]
    fn a_long_message_is_put_together_and_one_beyond_the_limit_is_refused() {
        let message = vec![b'x'; 3 * PAYLOAD_BYTES_MAX + 5];
        let mut out = Vec::new();
        put_message(&mut out, 9, Kind::Open, 0, &message);
        let mut assembler = Assembler::new();
        let frames = decode(&out).unwrap();
        let mut whole = None;
        for (header, payload) in &frames {
            assert!(whole.is_none());
            whole = assembler.push(header, payload).unwrap();
        }
        assert_eq!(whole.unwrap(), message);

        let more = Header {
            length: 0,
            stream: 9,
            kind: Kind::Open,
            channel: 0,
            flags: flags::MORE,
        };
        let part = vec![0; PAYLOAD_BYTES_MAX];
        for _ in 0..MESSAGE_BYTES_MAX / PAYLOAD_BYTES_MAX {
            assert_eq!(assembler.push(&more, &part).unwrap(), None);
        }
        assert_eq!(
            assembler.push(&more, &part),
            Err(FrameError::MessageTooLong)
        );
    }

    #[test]
    fn a_renumbered_frame_keeps_its_payload() {
        let mut out = Vec::new();
        put_data(&mut out, 5, STDERR, b"payload");
        let mut decoder = Decoder::new();
        decoder.fill(&mut &out[..]).unwrap();
        let bytes = decoder
            .next_frame()
            .unwrap()
            .unwrap()
            .renumbered(77)
            .to_vec();
        let (header, payload) = decode(&bytes).unwrap().remove(0);
        assert_eq!(
            (header.stream, header.channel, payload.as_slice()),
            (77, STDERR, &b"payload"[..])
        );
    }
}
