//! Protocol buffers, as far as they are needed to write: <https://protobuf.dev/programming-guides/encoding/>.
//!
//! A message says its length before its contents. Written forwards, each level is filled in memory of its own and copied into
//! the one above; a request of two megabytes, four levels deep, would be copied four times. So messages are written from their
//! end to their beginning: when the contents are there, so is their length.

/// A message that grows from its end: what is put last comes first.
#[derive(Debug, Default)]
pub(super) struct Backwards {
    /// What is written is the end of it.
    bytes: Vec<u8>,
    start: usize,
}

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;

/// Longest form of a number of 64 bits.
const VARINT_BYTES_MAX: usize = 10;
/// Bytes that there is room for at first.
const ROOM: usize = 1024;

impl Backwards {
    /// What is written so far.
    pub(super) fn written(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Begins again, in the same memory.
    pub(super) fn clear(&mut self) {
        self.start = self.bytes.len();
    }

    /// Fields that are encoded already.
    pub(super) fn put_encoded(&mut self, bytes: &[u8]) {
        if self.start < bytes.len() {
            self.grow(bytes.len());
        }
        let end = self.start;
        self.start -= bytes.len();
        self.bytes[self.start..end].copy_from_slice(bytes);
    }

    /// An integer, enumeration or truth value.
    pub(super) fn put_number(&mut self, field: u64, value: u64) {
        self.varint(value);
        self.key(field, VARINT);
    }

    /// A number of 8 bytes: `fixed64`, `sfixed64`, and `double` by its bits.
    pub(super) fn put_fixed(&mut self, field: u64, value: u64) {
        self.put_encoded(&value.to_le_bytes());
        self.key(field, FIXED64);
    }

    /// A string.
    pub(super) fn put_text(&mut self, field: u64, text: &str) {
        self.put_message(field, |out| out.put_encoded(text.as_bytes()));
    }

    /// A message, whose fields are put in the reverse of their order.
    pub(super) fn put_message(&mut self, field: u64, fill: impl FnOnce(&mut Backwards)) {
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

    /// Makes room before what is written: at least so much, and as much again as there is.
    fn grow(&mut self, wanted: usize) {
        let written = self.written().len();
        let mut bytes = vec![0; (written + wanted).saturating_mul(2).max(ROOM)];
        let start = bytes.len() - written;
        bytes[start..].copy_from_slice(self.written());
        *self = Backwards { bytes, start };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_last_comes_first_and_lengths_are_those_of_the_contents() {
        let mut out = Backwards::default();
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
    fn a_message_may_be_longer_than_the_memory_that_there_was() {
        let mut out = Backwards::default();
        let long = "x".repeat(5 * ROOM);
        out.put_text(2, &long);
        out.put_text(1, "");
        let written = out.written();
        assert_eq!(written[..5], [0x0a, 0, 0x12, 0x80, 0x28]);
        assert_eq!(&written[5..], long.as_bytes());
    }
}
