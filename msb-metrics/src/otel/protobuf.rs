//! Encoder for protocol buffers, as far as OTLP needs it:
//! <https://protobuf.dev/programming-guides/encoding/>.
//!
//! A message is preceded by its length. When written forwards, each nesting level is filled in a
//! buffer of its own and copied into the level above; a request of two megabytes with four levels
//! would be copied four times. So messages are written from the end to the start: once the contents
//! are written, their length is known.

/// A buffer that is written from its end: fields that are put last come first.
#[derive(Debug, Default)]
pub(super) struct ReverseBuffer {
    /// Memory; the message occupies its end, from `start`.
    bytes: Vec<u8>,
    start: usize,
}

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;

/// Maximum length of a 64-bit varint.
const VARINT_BYTES_MAX: usize = 10;
/// Initial size of the buffer in bytes.
const INITIAL_BYTES: usize = 1024;

impl ReverseBuffer {
    /// Returns the message so far.
    pub(super) fn written(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Clears the buffer and keeps its memory.
    pub(super) fn clear(&mut self) {
        self.start = self.bytes.len();
    }

    /// Puts bytes that are encoded already.
    pub(super) fn put_encoded(&mut self, bytes: &[u8]) {
        if self.start < bytes.len() {
            self.grow(bytes.len());
        }
        let end = self.start;
        self.start -= bytes.len();
        self.bytes[self.start..end].copy_from_slice(bytes);
    }

    /// Puts an integer, enumeration or boolean.
    pub(super) fn put_number(&mut self, field: u64, value: u64) {
        self.varint(value);
        self.key(field, VARINT);
    }

    /// Puts a number of 8 bytes: `fixed64`, `sfixed64`, or the bits of a `double`.
    pub(super) fn put_fixed(&mut self, field: u64, value: u64) {
        self.put_encoded(&value.to_le_bytes());
        self.key(field, FIXED64);
    }

    /// Puts a string.
    pub(super) fn put_text(&mut self, field: u64, text: &str) {
        self.put_message(field, |out| out.put_encoded(text.as_bytes()));
    }

    /// Puts a message. `fill` puts its fields in reverse order.
    pub(super) fn put_message(&mut self, field: u64, fill: impl FnOnce(&mut ReverseBuffer)) {
        let before = self.written().len();
        fill(self);
        self.varint((self.written().len() - before) as u64);
        self.key(field, LENGTH);
    }

    fn key(&mut self, field: u64, kind: u64) {
        self.varint(field << 3 | kind);
    }

    fn varint(&mut self, mut value: u64) {
        let mut bytes = [0; VARINT_BYTES_MAX];
        let mut count = 0;
        while value >= 0x80 {
            bytes[count] = value as u8 | 0x80;
            value >>= 7;
            count += 1;
        }
        bytes[count] = value as u8;
        self.put_encoded(&bytes[..=count]);
    }

    /// Grows the buffer at its front: by `wanted` bytes, or to twice its size if that is more.
    fn grow(&mut self, wanted: usize) {
        let written = self.written().len();
        let mut bytes = vec![0; (written + wanted).saturating_mul(2).max(INITIAL_BYTES)];
        let start = bytes.len() - written;
        bytes[start..].copy_from_slice(self.written());
        *self = ReverseBuffer { bytes, start };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_reverse_order_with_correct_lengths() {
        let mut out = ReverseBuffer::default();
        out.put_number(2, 300);
        out.put_message(1, |out| {
            out.put_fixed(4, 1);
            out.put_text(3, "ab");
        });
        let fixed = [&[0x21, 1][..], &[0; 7]].concat();
        let message = [&[0x0a, 13, 0x1a, 2, b'a', b'b'][..], &fixed].concat();
        assert_eq!(out.written(), [&message[..], &[0x10, 0xac, 2]].concat());
        out.clear();
        assert!(out.written().is_empty());
    }

    #[test]
    fn the_buffer_grows_for_a_long_message() {
        let mut out = ReverseBuffer::default();
        let long = "x".repeat(5 * INITIAL_BYTES);
        out.put_text(2, &long);
        out.put_text(1, "");
        let written = out.written();
        assert_eq!(written[..5], [0x0a, 0, 0x12, 0x80, 0x28]);
        assert_eq!(&written[5..], long.as_bytes());
    }
}
