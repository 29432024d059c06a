//! What untrusted bytes meet, one function a door: any bytes are good, a panic is a bug.
//!
//! Every input of `tests/corpus` goes through its door with `cargo test`; `tests/fuzz` looks for new ones with libFuzzer.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use domain::base::iana::Class;
use domain::base::{Message, MessageBuilder, Name, ParsedName, Rtype};
use domain::rdata::AllRecordData;
use libmsb::net::policy::Policy;
use libmsb::net::rule::{Rule, parse_list};

use crate::address::HostFacts;
use crate::dns::{Output, Server, Settings, Transport, framing};
use crate::policy::{Judge, Tls};
use crate::tls::{PEEK_BYTES_MAX, Peek, peek};

/// A door, by the name of its folder in `tests/corpus`.
pub(crate) type Door = fn(&[u8]);

/// All of them.
pub(crate) const DOORS: [(&str, Door); 4] = [
    ("dns-query", query),
    ("dns-answer", answer),
    ("hello", hello),
    ("rule", rule),
];

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
