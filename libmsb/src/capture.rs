//! Capture of a guest command's output in memory, with a limit.

/// Default limit of captured bytes of one stream.
pub const CAPTURE_BYTES: u64 = 8 << 20;

/// A capture buffer: holds the start of a stream, up to a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureBuffer {
    bytes: Vec<u8>,
    bytes_max: usize,
    truncated: bool,
}

impl Default for CaptureBuffer {
    fn default() -> CaptureBuffer {
        CaptureBuffer::new(CAPTURE_BYTES)
    }
}

impl CaptureBuffer {
    /// Returns an empty buffer with a limit in bytes.
    pub fn new(bytes_max: u64) -> CaptureBuffer {
        CaptureBuffer {
            bytes: Vec::new(),
            bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX),
            truncated: false,
        }
    }

    /// Appends what fits and discards the rest.
    pub fn append(&mut self, bytes: &[u8]) {
        let room = self.bytes_max - self.bytes.len();
        let fits = &bytes[..bytes.len().min(room)];
        let wanted = self.bytes.len() + fits.len();
        if wanted > self.bytes.capacity() {
            // The capacity doubles, as that of a vector, but never exceeds the limit.
            let capacity = wanted.max(self.bytes.capacity() * 2).min(self.bytes_max);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(fits);
        self.truncated |= fits.len() < bytes.len();
    }

    /// Returns whether bytes were discarded.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// Returns the captured bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the captured bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Returns the captured bytes as text, if they are UTF-8. A character that the limit cut is
    /// ignored.
    pub fn text(&self) -> Option<&str> {
        match std::str::from_utf8(&self.bytes) {
            Ok(text) => Some(text),
            Err(error) if self.truncated && error.error_len().is_none() => {
                std::str::from_utf8(&self.bytes[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_has_a_limit() {
        let mut buffer = CaptureBuffer::new(10);
        buffer.append(b"12345");
        assert!(!buffer.is_truncated());
        buffer.append(b"67890");
        assert!(!buffer.is_truncated());
        buffer.append(b"x");
        buffer.append(&[b'y'; 1 << 20]);
        assert!(buffer.is_truncated());
        assert_eq!(buffer.bytes(), b"1234567890");
        assert!(buffer.bytes.capacity() <= 10);
        let mut none = CaptureBuffer::new(0);
        none.append(b"x");
        assert_eq!((none.text(), none.is_truncated()), (Some(""), true));
    }

    #[test]
    fn a_character_that_was_cut_through_does_not_make_text_binary() {
        let mut buffer = CaptureBuffer::new(2);
        buffer.append("a\u{fc}".as_bytes());
        assert_eq!(buffer.text(), Some("a"));
        let mut whole = CaptureBuffer::new(3);
        whole.append(b"a\xc3");
        assert_eq!(whole.text(), None);
    }
}
