//! Framing of DNS messages on a TCP stream: each follows its length, two bytes, big-endian (RFC
//! 1035, 4.2.2).

/// Size of the length.
pub(crate) const LENGTH_BYTES: usize = 2;

/// Returns the first message and the number of bytes it takes; `None` if it is incomplete.
pub fn first_message(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    Some((rest.get(..length)?, length + LENGTH_BYTES))
}

/// Returns a message with its length before it; empty if the message is too long.
pub(crate) fn frame_message(message: &[u8]) -> Vec<u8> {
    let Ok(length) = u16::try_from(message.len()) else {
        return Vec::new();
    };
    [&length.to_be_bytes(), message].concat()
}
