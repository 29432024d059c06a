//! The name that TLS asks for, found in the guest's first bytes.
//!
//! Only as much is parsed as that takes (RFC 8446, 4.1.2 and 5.1; RFC 6066, 3): the records, the ClientHello in them, its
//! extensions. What begins like TLS and then is not, or is too long, has no name, so no rule on a name admits it.

use libmsb::net::name::HostName;

use crate::policy::Tls;

/// Most bytes that are looked at. With keys for the time after quantum computers a ClientHello has 2 KiB; the reference
/// looks at as much.
pub(crate) const PEEK_BYTES_MAX: usize = 16 * 1024;

/// The type of a record with a handshake message, and its first version byte.
const HANDSHAKE: u8 = 22;
const VERSION_MAJOR: u8 = 3;
const RECORD_HEADER_BYTES: usize = 5;
/// The message's type.
const CLIENT_HELLO: u8 = 1;
/// Extensions.
const SERVER_NAME: u16 = 0;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
/// Its forerunner, which some servers still take.
const ENCRYPTED_SERVER_NAME: u16 = 0xffce;
/// The only type of name there is.
const HOST_NAME: u8 = 0;

/// What the first bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peek {
    /// More of them must come first.
    More,
    /// This is known now.
    Known(Tls),
}

/// Looks at the first bytes of a stream, all that have come so far.
pub(crate) fn peek(bytes: &[u8]) -> Peek {
    let full = bytes.len() >= PEEK_BYTES_MAX;
    match handshake(&bytes[..bytes.len().min(PEEK_BYTES_MAX)]) {
        Handshake::Not => Peek::Known(Tls::Plain),
        Handshake::Part if full => Peek::Known(NAMELESS),
        Handshake::Part => Peek::More,
        Handshake::Broken => Peek::Known(NAMELESS),
        Handshake::Whole(hello) => Peek::Known(names(&hello).unwrap_or(NAMELESS)),
    }
}

/// TLS that does not say what it asks for.
pub(crate) const NAMELESS: Tls = Tls::Hello {
    sni: None,
    ech: false,
};

/// The first handshake message of a stream.
enum Handshake {
    /// It is not TLS.
    Not,
    /// It is not all there.
    Part,
    /// It begins like TLS, and goes on like nothing.
    Broken,
    /// The body of the ClientHello.
    Whole(Vec<u8>),
}

/// Puts the first message together: it may be spread over records, as small as one likes.
fn handshake(mut bytes: &[u8]) -> Handshake {
    let mut message = Vec::new();
    loop {
        let broken = if message.is_empty() {
            Handshake::Not
        } else {
            Handshake::Broken
        };
        match (bytes.first(), bytes.get(1)) {
            (Some(&HANDSHAKE), Some(&VERSION_MAJOR)) => {}
            (None, _) | (Some(&HANDSHAKE), None) => return Handshake::Part,
            _ => return broken,
        }
        let Some(length) = bytes.get(3..RECORD_HEADER_BYTES) else {
            return Handshake::Part;
        };
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length == 0 {
            return Handshake::Broken;
        }
        let rest = &bytes[RECORD_HEADER_BYTES..];
        message.extend_from_slice(&rest[..length.min(rest.len())]);
        match whole(&message) {
            Handshake::Part => {}
            known => return known,
        }
        let Some(next) = rest.get(length..) else {
            return Handshake::Part;
        };
        bytes = next;
    }
}

/// The body of the message at the beginning.
fn whole(message: &[u8]) -> Handshake {
    match message.first() {
        Some(&CLIENT_HELLO) => {}
        Some(_) => return Handshake::Broken,
        None => return Handshake::Part,
    }
    let Some(length) = message.get(1..4) else {
        return Handshake::Part;
    };
    let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
    if length > PEEK_BYTES_MAX {
        return Handshake::Broken;
    }
    match message.get(4..4 + length) {
        Some(body) => Handshake::Whole(body.to_vec()),
        None => Handshake::Part,
    }
}

/// Takes what a ClientHello is made of, from its front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(
            self.take(bytes)?
                .iter()
                .fold(0, |number, byte| number << 8 | usize::from(*byte)),
        )
    }

    /// Bytes after their length, which has as many bytes as told.
    fn vector(&mut self, length_bytes: usize) -> Option<Fields<'a>> {
        let length = self.number(length_bytes)?;
        self.take(length).map(Fields)
    }
}

/// The names in a ClientHello. `None`: it is none, or has two names.
fn names(hello: &[u8]) -> Option<Tls> {
    let mut fields = Fields(hello);
    // Version, random; session, ciphers, compressions.
    fields.take(2 + 32)?;
    fields.vector(1)?;
    fields.vector(2)?;
    fields.vector(1)?;
    let (mut sni, mut ech, mut seen) = (None, false, false);
    // A ClientHello may end here, with no extensions.
    if !fields.0.is_empty() {
        let mut extensions = fields.vector(2)?;
        while !extensions.0.is_empty() {
            let (kind, body) = (extensions.number(2)? as u16, extensions.vector(2)?);
            match kind {
                SERVER_NAME if seen => return None,
                SERVER_NAME => (sni, seen) = (server_name(body)?, true),
                ENCRYPTED_CLIENT_HELLO | ENCRYPTED_SERVER_NAME => ech = true,
                _ => {}
            }
        }
    }
    fields.0.is_empty().then_some(Tls::Hello { sni, ech })
}

/// The one name of the list; `None` inside if it is none that rules can have.
fn server_name(mut body: Fields<'_>) -> Option<Option<HostName>> {
    let mut list = body.vector(2)?;
    let (kind, name) = (list.number(1)?, list.vector(2)?);
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

    /// A ClientHello as a handshake message.
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

    /// In records of at most that length.
    fn records(message: &[u8], length: usize) -> Vec<u8> {
        let record = |part: &[u8]| [vec![HANDSHAKE, 3, 1], vector(2, part)].concat();
        message.chunks(length).flat_map(record).collect()
    }

    fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
        records(&message(extensions), 16384)
    }

    fn known(sni: Option<&str>, ech: bool) -> Peek {
        Peek::Known(Tls::Hello {
            sni: sni.map(|name| name.parse().unwrap()),
            ech,
        })
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
    fn a_hello_that_comes_in_pieces_is_waited_for_and_read_the_same() {
        let whole = message(&[server_name("example.com")]);
        for length in [1, 2, 3, 4, 5, 50] {
            let bytes = records(&whole, length);
            assert_eq!(peek(&bytes), known(Some("example.com"), false), "{length}");
            for end in 0..bytes.len() {
                assert_eq!(peek(&bytes[..end]), Peek::More, "{length} {end}");
            }
        }
    }

    #[test]
    fn what_is_not_tls_is_known_by_its_first_bytes() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"SSH-2.0-x\r\n",
            b"\x16\x02",
            b"\x80\x2e\x01",
            b"\x00",
        ] {
            assert_eq!(peek(bytes), Peek::Known(Tls::Plain));
        }
        assert_eq!(peek(b""), Peek::More);
        assert_eq!(peek(b"\x16"), Peek::More);
    }

    #[test]
    fn an_encrypted_name_is_seen() {
        for kind in [ENCRYPTED_CLIENT_HELLO, ENCRYPTED_SERVER_NAME] {
            let bytes = hello(&[extension(kind, &[0; 100]), server_name("example.com")]);
            assert_eq!(peek(&bytes), known(Some("example.com"), true));
        }
    }

    #[test]
    fn names_that_are_not_one_name_are_none() {
        let two = {
            let entry = |name: &str| [vec![0], vector(2, name.as_bytes())].concat();
            extension(
                SERVER_NAME,
                &vector(2, &[entry("a.test"), entry("b.test")].concat()),
            )
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
    fn what_begins_like_tls_and_goes_on_otherwise_has_no_name() {
        let mut long = hello(&[
            extension(21, &vec![0; 15_000]),
            extension(21, &vec![0; 15_000]),
        ]);
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
        let slow = records(
            &message(&[server_name("a.test"), extension(21, &vec![0; 9000])]),
            1,
        );
        assert_eq!(peek(&slow), known(None, false));
    }
}
