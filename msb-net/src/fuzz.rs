//! What untrusted bytes meet, one function a door: any bytes are good, a panic is a bug.
//!
//! Every input of `tests/corpus` goes through its door with `cargo test`; `tests/fuzz` looks for new ones with libFuzzer.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use domain::base::iana::Class;
use domain::base::{Message, MessageBuilder, Name, ParsedName, Rtype};
use domain::rdata::AllRecordData;
use libmsb::net::policy::Policy;
use libmsb::net::rule::{Rule, parse_list};

use crate::address::HostFacts;
use crate::dns::{Output, Server, Settings, Transport, framing};
use crate::fragments::Fragments;
use crate::ip::{self, Frame, Head, Piece, protocol};
use crate::policy::{Judge, Tls};
use crate::testing::{Guest, Said, datagram, flow, frame, network};
use crate::tls::{PEEK_BYTES_MAX, Peek, peek};
use crate::udp;

/// A door, by the name of its folder in `tests/corpus`.
pub(crate) type Door = fn(&[u8]);

/// All of them.
pub(crate) const DOORS: [(&str, Door); 6] = [
    ("ethernet", ethernet),
    ("guest", guest),
    ("dns-query", query),
    ("dns-answer", answer),
    ("hello", hello),
    ("rule", rule),
];

/// A frame: what is read of it lies within it, and reads the same when it is written again.
fn ethernet(bytes: &[u8]) {
    let Some(Frame::Ip(packet)) = ip::parse(bytes) else {
        return;
    };
    assert!(packet.whole.len() <= bytes.len() && packet.payload.len() <= packet.whole.len());
    let _ = udp::parse(&packet);
    let mut fragments = Fragments::default();
    if let Some(piece) = packet.piece {
        let rest = Piece {
            offset: 0,
            more: piece.offset > 0 || piece.more,
            ..piece
        };
        for piece in [piece, rest, piece] {
            let whole = fragments.add(&packet, piece, Instant::now());
            assert!(whole.is_none_or(|whole| whole.len() <= 65535));
        }
    }
    // An IPv6 packet in pieces is longer by a header, and may then be none.
    if packet.whole.len() > 65000 {
        return;
    }
    let mut again = Vec::new();
    let head = Head {
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol,
        hop_limit: packet.hop_limit,
    };
    let piece = packet.piece;
    head.write_piece(&network(), &mut again, packet.payload.len(), piece);
    again.extend_from_slice(packet.payload);
    let Some(Frame::Ip(read)) = ip::parse(&again) else {
        // Without its extensions it may have others by chance.
        return;
    };
    assert_eq!(read.source, packet.source);
}

/// What a guest does, one record after the other: a byte that says of what kind it is, one for its length, and its bytes.
/// There is one connection, which somebody called, and a policy that allows nothing. Whatever comes, what goes to the
/// guest are frames, and what is held has its bounds.
fn guest(mut bytes: &[u8]) {
    let mut guest = Guest::new("", 4, Vec::new());
    let called = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let next = guest.called(&called, ours.into(), 2000);
    let mut buffer = [0; 4096];
    while let Some(([kind, length], rest)) = bytes.split_first_chunk::<2>() {
        let (record, rest) = rest.split_at(rest.len().min(usize::from(*length) * 4));
        bytes = rest;
        match kind % 8 {
            0 => guest.send(record),
            1 => guest.send(&[&[0; 12][..], &[8, 0], record].concat()),
            2 => guest.send(&[&[0; 12][..], &[0x86, 0xdd], record].concat()),
            3 => guest.send(&frame(
                &called,
                protocol::TCP,
                None,
                &segment(&next, record).bytes(&called),
            )),
            4 => pieces(&mut guest, &segment(&next, record).bytes(&called)),
            5 => {
                let flow = flow(9, "8.8.8.8:53");
                guest.send(&frame(&flow, protocol::UDP, None, &datagram(&flow, record)));
            }
            6 => drop(theirs.write(record)),
            _ => drop(theirs.read(&mut buffer)),
        }
        if kind >= &128 {
            guest.turn();
        }
    }
    guest.turn();
    for frame in guest.frames() {
        assert!(frame.len() >= ip::ETHERNET && frame.len() <= 14 + usize::from(network().mtu));
        assert!(ip::parse(&frame).is_some());
    }
    // Beside that one, some with the name server.
    assert!(guest.stack.tcp().len() <= 5);
}

/// A segment of the connection, near what is expected.
fn segment(next: &Said, record: &[u8]) -> Said {
    let byte = |at: usize| record.get(at).copied().unwrap_or(0);
    let near = |number: u32, at: usize| {
        let offset = i16::from_be_bytes([byte(at), byte(at + 1)]);
        number.wrapping_add_signed(offset.into())
    };
    Said {
        flags: byte(0),
        seq: near(next.seq, 1),
        ack: near(next.ack, 3),
        window: u16::from_be_bytes([byte(5), byte(6)]),
        payload: record.get(7..).unwrap_or_default().to_vec(),
    }
}

/// The same in two pieces of a packet.
fn pieces(guest: &mut Guest, bytes: &[u8]) {
    let called = flow(80, "10.0.0.1:5000");
    let cut = bytes.len() / 16 * 8;
    for (offset, part) in [(cut, &bytes[cut..]), (0, &bytes[..cut])] {
        let piece = Piece {
            id: 7,
            offset,
            more: offset == 0,
        };
        guest.send(&frame(&called, protocol::TCP, Some(piece), part));
    }
}

fn judge() -> Judge {
    Judge::new(Policy::public(), true, HostFacts::default())
}

/// A server whose numbers are all 0.
fn server() -> Server {
    let settings = Settings {
        upstreams: vec!["9.9.9.9:53".parse().unwrap()],
        timeout: Duration::from_secs(5),
    };
    Server::new(settings, Box::new(|| Some(0)))
}

/// What a guest asks: it is answered, or passed on as one question that can be read.
fn query(bytes: &[u8]) {
    let whole = framing::first(bytes).is_some_and(|(message, taken)| message.len() + 2 == taken);
    assert!(whole || framing::first(bytes).is_none());
    for transport in [Transport::Udp, Transport::Tcp] {
        let outputs = server().query(&judge(), Instant::now(), 1, transport, bytes);
        for output in &outputs {
            match output {
                Output::Reply { message, .. } => {
                    let reply = Message::from_slice(message).unwrap();
                    assert!(reply.header().qr() && reply.header().id().to_be_bytes() == bytes[..2]);
                }
                Output::Ask { message, .. } => {
                    Message::from_slice(message)
                        .unwrap()
                        .sole_question()
                        .unwrap();
                }
                Output::Done { .. } | Output::Event(_) => {}
            }
        }
    }
}

/// The types that the first byte of an answer chooses from.
const KINDS: [Rtype; 6] = [
    Rtype::A,
    Rtype::AAAA,
    Rtype::HTTPS,
    Rtype::SVCB,
    Rtype::TXT,
    Rtype::SOA,
];

/// What somebody answers. The first byte chooses what was asked, the next ten are the rest of the header; the question stands
/// behind that, and then what is left. No address that is not public reaches the guest, and nothing that was not asked for.
fn answer(bytes: &[u8]) {
    let Some((header, records)) = bytes.split_at_checked(11) else {
        return;
    };
    let kind = KINDS[usize::from(header[0]) % KINDS.len()];
    let mut question = MessageBuilder::new_vec().question();
    let name: Name<Vec<u8>> = "a.test".parse().unwrap();
    question.push((name, kind, Class::IN)).unwrap();
    let question = question.finish();
    let message = [&[0, 0][..], &header[1..], &question[12..], records].concat();
    let (judge, mut server, now) = (judge(), server(), Instant::now());
    drop(server.query(&judge, now, 1, Transport::Tcp, &question));
    for output in server.answer(&judge, now, 1, &message) {
        let Output::Reply { message, .. } = output else {
            continue;
        };
        let reply = Message::from_slice(&message).unwrap();
        for record in reply.answer().unwrap() {
            let record = record.unwrap();
            assert!([kind, Rtype::CNAME].contains(&record.rtype()));
            let address: IpAddr = match record
                .to_any_record::<AllRecordData<_, ParsedName<_>>>()
                .unwrap()
                .data()
            {
                AllRecordData::A(a) => a.addr().into(),
                AllRecordData::Aaaa(aaaa) => aaaa.addr().into(),
                _ => continue,
            };
            assert!(judge.answer(address).allows(), "{address}");
        }
    }
}

/// The first bytes of a stream: what is known of them stays so, whatever follows, and they are not waited for without end.
fn hello(bytes: &[u8]) {
    let known = peek(bytes);
    assert!(known != Peek::More || bytes.len() < PEEK_BYTES_MAX);
    let more = [bytes, &[0]].concat();
    assert!(known == Peek::More || bytes.len() >= PEEK_BYTES_MAX || peek(&more) == known);
    if let Peek::Known(Tls::Hello {
        sni: Some(name), ..
    }) = known
    {
        assert!(!name.as_str().is_empty());
    }
}

/// Rules: what is taken reads the same when it is written.
fn rule(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for rule in parse_list(&text).into_iter().flatten() {
        assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule);
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static DOOR: std::sync::LazyLock<Door> = std::sync::LazyLock::new(|| {
        let name = std::env::var("MSB_FUZZ").expect("MSB_FUZZ names a door");
        let found = DOORS.iter().find(|(door, _)| *door == name);
        found.expect("MSB_FUZZ names none of the doors").1
    });
    DOOR(bytes);
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_of_the_corpus_goes_through_its_door() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
        for (name, door) in DOORS {
            let inputs = std::fs::read_dir(corpus.join(name)).unwrap();
            let mut count = 0;
            for input in inputs {
                door(&std::fs::read(input.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count >= 10, "{name}: {count} inputs");
        }
    }
}
