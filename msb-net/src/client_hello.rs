//! The server name (SNI) in a TLS ClientHello, found in the guest's first bytes.
//!
//! Only the necessary parts are parsed (RFC 8446, 4.1.2 and 5.1; RFC 6066, 3): the records, the
//! ClientHello in them, and its extensions. Bytes that start like TLS but are invalid or too long
//! have no name, so no rule on a name admits them.

use libmsb::net::name::HostName;

use crate::policy::TlsPeek;

/// Limit of bytes examined. A ClientHello with post-quantum keys has about 2 KiB; the reference has
/// the same limit.
pub const PEEK_BYTES_MAX: usize = 16 * 1024;

/// Record type of handshake messages, and the first version byte.
const HANDSHAKE: u8 = 22;
const VERSION_MAJOR: u8 = 3;
const RECORD_HEADER_BYTES: usize = 5;
/// Handshake message type.
const CLIENT_HELLO: u8 = 1;
/// Extension types.
const SERVER_NAME: u16 = 0;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
/// The predecessor of ECH, which some servers still accept.
const ENCRYPTED_SERVER_NAME: u16 = 0xffce;
/// The only type of server name.
const HOST_NAME: u8 = 0;

/// Result of examining the first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeekResult {
    /// More bytes are needed.
    Incomplete,
    /// The result is final.
    Final(TlsPeek),
}

/// Examines all bytes of a stream received so far.
pub fn peek(bytes: &[u8]) -> PeekResult {
    let full = bytes.len() >= PEEK_BYTES_MAX;
    match reassemble_handshake(&bytes[..bytes.len().min(PEEK_BYTES_MAX)]) {
        HandshakeRead::NotTls => PeekResult::Final(TlsPeek::Plain),
        HandshakeRead::Incomplete if full => PeekResult::Final(NO_SERVER_NAME),
        HandshakeRead::Incomplete => PeekResult::Incomplete,
        HandshakeRead::Invalid => PeekResult::Final(NO_SERVER_NAME),
        HandshakeRead::Complete(hello) => {
            PeekResult::Final(parse_hello(&hello).unwrap_or(NO_SERVER_NAME))
        }
    }
}

/// A ClientHello without a server name.
pub(crate) const NO_SERVER_NAME: TlsPeek = TlsPeek::Hello { sni: None, ech: false };

/// Result of extracting the first handshake message.
enum HandshakeRead {
    /// The stream is not TLS.
    NotTls,
    /// The message is incomplete.
    Incomplete,
    /// The stream starts like TLS but is invalid.
    Invalid,
    /// The body of a ClientHello.
    Complete(Vec<u8>),
}

/// Reassembles the first handshake message, which may be spread over records of any size.
fn reassemble_handshake(mut bytes: &[u8]) -> HandshakeRead {
    let mut message = Vec::new();
    loop {
        let invalid =
            if message.is_empty() { HandshakeRead::NotTls } else { HandshakeRead::Invalid };
        match (bytes.first(), bytes.get(1)) {
            (Some(&HANDSHAKE), Some(&VERSION_MAJOR)) => {}
            (None, _) | (Some(&HANDSHAKE), None) => return HandshakeRead::Incomplete,
            _ => return invalid,
        }
        let Some(length) = bytes.get(3..RECORD_HEADER_BYTES) else {
            return HandshakeRead::Incomplete;
        };
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length == 0 {
            return HandshakeRead::Invalid;
        }
        let rest = &bytes[RECORD_HEADER_BYTES..];
        message.extend_from_slice(&rest[..length.min(rest.len())]);
        match hello_body(&message) {
            HandshakeRead::Incomplete => {}
            known => return known,
        }
        let Some(next) = rest.get(length..) else {
            return HandshakeRead::Incomplete;
        };
        bytes = next;
    }
}

/// Extracts the body of the message at the start.
fn hello_body(message: &[u8]) -> HandshakeRead {
    match message.first() {
        Some(&CLIENT_HELLO) => {}
        Some(_) => return HandshakeRead::Invalid,
        None => return HandshakeRead::Incomplete,
    }
    let Some(length) = message.get(1..4) else {
        return HandshakeRead::Incomplete;
    };
    let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
    if length > PEEK_BYTES_MAX {
        return HandshakeRead::Invalid;
    }
    match message.get(4..4 + length) {
        Some(body) => HandshakeRead::Complete(body.to_vec()),
        None => HandshakeRead::Incomplete,
    }
}

/// A reader of the fields of a ClientHello.
struct HelloReader<'a>(&'a [u8]);

impl<'a> HelloReader<'a> {
    fn take_bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn read_number(&mut self, bytes: usize) -> Option<usize> {
        Some(
            self.take_bytes(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)),
        )
    }

    /// Reads a vector: its length, in `length_bytes` bytes, and its content.
    fn read_vector(&mut self, length_bytes: usize) -> Option<HelloReader<'a>> {
        let length = self.read_number(length_bytes)?;
        self.take_bytes(length).map(HelloReader)
    }
}

/// Parses the server name and the ECH extension of a ClientHello. `None`: it is invalid or has two
/// names.
fn parse_hello(hello: &[u8]) -> Option<TlsPeek> {
    let mut fields = HelloReader(hello);
    // Version and random; session, cipher suites, compression methods.
    fields.take_bytes(2 + 32)?;
    fields.read_vector(1)?;
    fields.read_vector(2)?;
    fields.read_vector(1)?;
    let (mut sni, mut ech, mut seen) = (None, false, false);
    // A ClientHello may end here, without extensions.
    if !fields.0.is_empty() {
        let mut extensions = fields.read_vector(2)?;
        while !extensions.0.is_empty() {
            let (kind, body) = (extensions.read_number(2)? as u16, extensions.read_vector(2)?);
            match kind {
                SERVER_NAME if seen => return None,
                SERVER_NAME => (sni, seen) = (server_name(body)?, true),
                ENCRYPTED_CLIENT_HELLO | ENCRYPTED_SERVER_NAME => ech = true,
                _ => {}
            }
        }
    }
    fields.0.is_empty().then_some(TlsPeek::Hello { sni, ech })
}

/// Parses the only name of the list; the inner `None` means that it is not a valid host name.
fn server_name(mut body: HelloReader<'_>) -> Option<Option<HostName>> {
    let mut list = body.read_vector(2)?;
    let (kind, name) = (list.read_number(1)?, list.read_vector(2)?);
    let one = kind == usize::from(HOST_NAME) && list.0.is_empty() && body.0.is_empty();
    one.then(|| std::str::from_utf8(name.0).ok()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(length_bytes: usize, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u64).to_be_bytes();
        [&length[8 - length_bytes..], body].concat()
    }

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [kind.to_be_bytes().to_vec(), vector(2, body)].concat()
    }

    fn server_name(name: &str) -> Vec<u8> {
        let entry = [vec![0], vector(2, name.as_bytes())].concat();
        extension(SERVER_NAME, &vector(2, &entry))
    }

    /// Builds a ClientHello as a handshake message.
    fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
        let body = [
            &[3, 3][..],
            &[7; 32],
            &vector(1, &[1; 32]),
            &vector(2, &[0x13, 0x01]),
            &vector(1, &[0]),
            &vector(2, &extensions.concat()),
        ]
        .concat();
        [vec![CLIENT_HELLO], vector(3, &body)].concat()
    }

    /// Splits a message into records of at most that length.
    fn records(message: &[u8], length: usize) -> Vec<u8> {
        let record = |part: &[u8]| [vec![HANDSHAKE, 3, 1], vector(2, part)].concat();
        message.chunks(length).flat_map(record).collect()
    }

    fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
        records(&message(extensions), 16384)
    }

    fn known(sni: Option<&str>, ech: bool) -> PeekResult {
        PeekResult::Final(TlsPeek::Hello { sni: sni.map(|name| name.parse().unwrap()), ech })
    }

    #[test]
    fn the_name_is_found_among_other_extensions() {
        let other = extension(16, b"\x00\x03\x02h2");
        assert_eq!(
            peek(&hello(&[other.clone(), server_name("Example.com"), other])),
            known(Some("example.com"), false)
        );
        assert_eq!(peek(&hello(&[])), known(None, false));
    }

    #[test]
    fn a_fragmented_hello_is_reassembled() {
        let whole = message(&[server_name("example.com")]);
        for length in [1, 2, 3, 4, 5, 50] {
            let bytes = records(&whole, length);
            assert_eq!(peek(&bytes), known(Some("example.com"), false), "{length}");
            for end in 0..bytes.len() {
                assert_eq!(peek(&bytes[..end]), PeekResult::Incomplete, "{length} {end}");
            }
        }
    }

    #[test]
    fn other_protocols_are_recognized_by_their_first_bytes() {
        for bytes in
            [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0-x\r\n", b"\x16\x02", b"\x80\x2e\x01", b"\x00"]
        {
            assert_eq!(peek(bytes), PeekResult::Final(TlsPeek::Plain));
        }
        assert_eq!(peek(b""), PeekResult::Incomplete);
        assert_eq!(peek(b"\x16"), PeekResult::Incomplete);
    }

    #[test]
    fn an_encrypted_name_is_seen() {
        for kind in [ENCRYPTED_CLIENT_HELLO, ENCRYPTED_SERVER_NAME] {
            let bytes = hello(&[extension(kind, &[0; 100]), server_name("example.com")]);
            assert_eq!(peek(&bytes), known(Some("example.com"), true));
        }
    }

    #[test]
    fn a_list_without_exactly_one_valid_name_has_no_name() {
        let two = {
            let entry = |name: &str| [vec![0], vector(2, name.as_bytes())].concat();
            extension(SERVER_NAME, &vector(2, &[entry("a.test"), entry("b.test")].concat()))
        };
        for extensions in [
            vec![two],
            vec![server_name("a.test"), server_name("b.test")],
            vec![server_name("")],
            vec![server_name("a b")],
            vec![extension(SERVER_NAME, b"")],
            vec![extension(SERVER_NAME, b"\x00\x05\x00\x00\x09ab")],
        ] {
            assert_eq!(peek(&hello(&extensions)), known(None, false));
        }
    }

    #[test]
    fn invalid_tls_has_no_name() {
        let mut long = hello(&[extension(21, &vec![0; 15_000]), extension(21, &vec![0; 15_000])]);
        long.truncate(PEEK_BYTES_MAX);
        let mut other = records(&message(&[]), 20);
        other[25] = 23;
        for bytes in [
            &long[..],
            &other,
            b"\x16\x03\x01\x00\x00",
            b"\x16\x03\x01\x00\x01\x02",
            b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
        ] {
            assert_eq!(peek(bytes), known(None, false), "{:?}", &bytes[..5]);
        }
        let slow = records(&message(&[server_name("a.test"), extension(21, &vec![0; 9000])]), 1);
        assert_eq!(peek(&slow), known(None, false));
    }
}
