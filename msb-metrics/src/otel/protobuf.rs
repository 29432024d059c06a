//! Protocol buffers, as far as they are needed to write: <https://protobuf.dev/programming-guides/encoding/>.

/// Bytes of a message that grows.
pub(super) type Bytes = Vec<u8>;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;

fn varint(out: &mut Bytes, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn key(out: &mut Bytes, field: u64, kind: u64) {
    varint(out, field << 3 | kind);
}

/// An integer, enumeration or truth value.
pub(super) fn put_number(out: &mut Bytes, field: u64, value: u64) {
    key(out, field, VARINT);
    varint(out, value);
}

/// A number of 8 bytes: `fixed64`, `sfixed64`, and `double` by its bits.
pub(super) fn put_fixed(out: &mut Bytes, field: u64, value: u64) {
    key(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A string, or a message that is encoded already.
pub(super) fn put_bytes(out: &mut Bytes, field: u64, bytes: &[u8]) {
    key(out, field, LENGTH);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A message.
pub(super) fn put_message(out: &mut Bytes, field: u64, fill: impl FnOnce(&mut Bytes)) {
    let mut message = Bytes::new();
    fill(&mut message);
    put_bytes(out, field, &message);
}
