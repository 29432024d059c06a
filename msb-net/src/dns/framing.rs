//! Messages on a TCP stream, each after its length: two bytes, big-endian (RFC 1035, 4.2.2).

/// Bytes of the length.
pub(crate) const LENGTH: usize = 2;

/// The first message in the bytes, and how many bytes it took; `None` if it is not all there.
pub(crate) fn first(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    Some((rest.get(..length)?, length + LENGTH))
}

/// A message with its length before it. A message that is too long for that is left out: there is none.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let Ok(length) = u16::try_from(message.len()) else {
        return Vec::new();
    };
    [&length.to_be_bytes(), message].concat()
}
