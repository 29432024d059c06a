//! Fuzz targets of msb-net: one function per parser of untrusted bytes. Any input is valid; a panic
//! is a bug.

#![cfg_attr(fuzzing, no_main)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use domain::base::iana::Class;
use domain::base::{Message, MessageBuilder, Name, ParsedName, Rtype};
use domain::rdata::AllRecordData;
use libmsb::net::policy::Policy;
use libmsb::net::rule::{Rule, parse_list};

use msb_net::address::HostFacts;
use msb_net::client_hello::{PEEK_BYTES_MAX, PeekResult, peek};
use msb_net::dns::{DnsOutput, DnsServer, DnsSettings, DnsTransport, framing};
use msb_net::fragments::FragmentReassembler;
use msb_net::ip::{self, Fragment, Frame, IpHeader, protocol};
use msb_net::policy::{PolicyEngine, TlsPeek};
use msb_net::testing::{TcpSegment, TestGuest, datagram, flow, frame, network};
use msb_net::udp::datagram as udp_datagram;

msb_test_fuzz::fuzz_targets! {
    "ethernet" => fuzz_ethernet,
    "guest" => fuzz_guest,
    "dns-query" => fuzz_dns_query,
    "dns-answer" => fuzz_dns_answer,
    "hello" => fuzz_client_hello,
    "rule" => fuzz_rule,
}

/// Parses a frame. The payload lies within it, and parsing gives the same addresses after writing
/// it again.
fn fuzz_ethernet(bytes: &[u8]) {
    let Some(Frame::Ip(packet)) = ip::parse(bytes) else {
        return;
    };
    assert!(packet.ip_bytes.len() <= bytes.len() && packet.payload.len() <= packet.ip_bytes.len());
    let _ = udp_datagram::parse(&packet);
    let mut fragments = FragmentReassembler::default();
    if let Some(fragment) = packet.fragment {
        let rest = Fragment { offset: 0, more: fragment.offset > 0 || fragment.more, ..fragment };
        for fragment in [fragment, rest, fragment] {
            let whole = fragments.add(&packet, fragment, Instant::now());
            assert!(whole.is_none_or(|whole| whole.len() <= 65535));
        }
    }
    // A fragmented IPv6 packet is longer by a header and may exceed the limit.
    if packet.ip_bytes.len() > 65000 {
        return;
    }
    let mut again = Vec::new();
    let head = IpHeader {
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol,
        hop_limit: packet.hop_limit,
    };
    let fragment = packet.fragment;
    head.write_fragment(&network(), &mut again, packet.payload.len(), fragment);
    again.extend_from_slice(packet.payload);
    let Some(Frame::Ip(read)) = ip::parse(&again) else {
        // Without its extension headers the payload may look like others.
        return;
    };
    assert_eq!(read.source, packet.source);
}

/// Runs a guest's frames and a peer's bytes through the stack. Each record has a type byte, a
/// length byte and its bytes. There is one inbound connection, and a policy that denies everything.
/// All output must be valid frames, and memory stays within its limits.
fn fuzz_guest(mut bytes: &[u8]) {
    let mut guest = TestGuest::new("", 4);
    let inbound_flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let next = guest.connect_inbound(&inbound_flow, ours.into(), 2000);
    let mut buffer = [0; 4096];
    while let Some(([kind, length], rest)) = bytes.split_first_chunk::<2>() {
        let (record, rest) = rest.split_at(rest.len().min(usize::from(*length) * 4));
        bytes = rest;
        match kind % 8 {
            0 => guest.send(record),
            1 => guest.send(&[&[0; 12][..], &[8, 0], record].concat()),
            2 => guest.send(&[&[0; 12][..], &[0x86, 0xdd], record].concat()),
            3 => guest.send(&frame(
                &inbound_flow,
                protocol::TCP,
                None,
                &segment(&next, record).bytes(&inbound_flow),
            )),
            4 => send_in_fragments(&mut guest, &segment(&next, record).bytes(&inbound_flow)),
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
        assert!(
            frame.len() >= ip::ETHERNET_HEADER_BYTES
                && frame.len() <= 14 + usize::from(network().mtu)
        );
        assert!(ip::parse(&frame).is_some());
    }
    // Further connections go to the resolver.
    assert!(guest.connections() <= 5);
}

/// Builds a segment of the connection with numbers near the expected ones.
fn segment(next: &TcpSegment, record: &[u8]) -> TcpSegment {
    let byte = |at: usize| record.get(at).copied().unwrap_or(0);
    let near = |number: u32, at: usize| {
        let offset = i16::from_be_bytes([byte(at), byte(at + 1)]);
        number.wrapping_add_signed(offset.into())
    };
    TcpSegment {
        flags: byte(0),
        seq: near(next.seq, 1),
        ack: near(next.ack, 3),
        window: u16::from_be_bytes([byte(5), byte(6)]),
        payload: record.get(7..).unwrap_or_default().to_vec(),
    }
}

/// Sends a segment as a packet in two fragments.
fn send_in_fragments(guest: &mut TestGuest, bytes: &[u8]) {
    let inbound_flow = flow(80, "10.0.0.1:5000");
    let cut = bytes.len() / 16 * 8;
    for (offset, part) in [(cut, &bytes[cut..]), (0, &bytes[..cut])] {
        let fragment = Fragment { id: 7, offset, more: offset == 0 };
        guest.send(&frame(&inbound_flow, protocol::TCP, Some(fragment), part));
    }
}

fn engine() -> PolicyEngine {
    PolicyEngine::new(Policy::public(), true, HostFacts::default())
}

/// Creates a server whose random numbers are all 0.
fn server() -> DnsServer {
    let settings = DnsSettings {
        upstreams: vec!["9.9.9.9:53".parse().unwrap()],
        timeout: Duration::from_secs(5),
    };
    DnsServer::new(settings, Box::new(|| Some(0)))
}

/// Parses a DNS query of a guest. The result is a reply, or one well-formed query to an upstream
/// server.
fn fuzz_dns_query(bytes: &[u8]) {
    let whole =
        framing::first_message(bytes).is_some_and(|(message, taken)| message.len() + 2 == taken);
    assert!(whole || framing::first_message(bytes).is_none());
    for transport in [DnsTransport::Udp, DnsTransport::Tcp] {
        let outputs = server().handle_query(&engine(), Instant::now(), 1, transport, bytes);
        for output in &outputs {
            match output {
                DnsOutput::Reply { message, .. } => {
                    let reply = Message::from_slice(message).unwrap();
                    assert!(reply.header().qr() && reply.header().id().to_be_bytes() == bytes[..2]);
                }
                DnsOutput::Ask { message, .. } => {
                    Message::from_slice(message).unwrap().sole_question().unwrap();
                }
                DnsOutput::Done { .. } | DnsOutput::Event(_) => {}
            }
        }
    }
}

/// Record types that the first byte of the input selects.
const QUERY_TYPES: [Rtype; 6] =
    [Rtype::A, Rtype::AAAA, Rtype::HTTPS, Rtype::SVCB, Rtype::TXT, Rtype::SOA];

/// Parses an answer of an upstream server. The first byte selects the query type, the next ten are
/// the rest of the header; the question follows, then the remaining bytes. No address that is not
/// public and no record of another type may reach the guest.
fn fuzz_dns_answer(bytes: &[u8]) {
    let Some((header, records)) = bytes.split_at_checked(11) else {
        return;
    };
    let kind = QUERY_TYPES[usize::from(header[0]) % QUERY_TYPES.len()];
    let mut question = MessageBuilder::new_vec().question();
    let name: Name<Vec<u8>> = "a.test".parse().unwrap();
    question.push((name, kind, Class::IN)).unwrap();
    let question = question.finish();
    let message = [&[0, 0][..], &header[1..], &question[12..], records].concat();
    let (engine, mut server, now) = (engine(), server(), Instant::now());
    drop(server.handle_query(&engine, now, 1, DnsTransport::Tcp, &question));
    for output in server.handle_answer(&engine, now, 1, &message) {
        let DnsOutput::Reply { message, .. } = output else {
            continue;
        };
        let reply = Message::from_slice(&message).unwrap();
        for record in reply.answer().unwrap() {
            let record = record.unwrap();
            assert!([kind, Rtype::CNAME].contains(&record.rtype()));
            let address: IpAddr =
                match record.to_any_record::<AllRecordData<_, ParsedName<_>>>().unwrap().data() {
                    AllRecordData::A(a) => a.addr().into(),
                    AllRecordData::Aaaa(aaaa) => aaaa.addr().into(),
                    _ => continue,
                };
            assert!(engine.answer_verdict(address).allows(), "{address}");
        }
    }
}

/// Parses the first bytes of a stream. A result must not change with further bytes, and must come
/// within the limit.
fn fuzz_client_hello(bytes: &[u8]) {
    let known = peek(bytes);
    assert!(known != PeekResult::Incomplete || bytes.len() < PEEK_BYTES_MAX);
    let more = [bytes, &[0]].concat();
    assert!(
        known == PeekResult::Incomplete || bytes.len() >= PEEK_BYTES_MAX || peek(&more) == known
    );
    if let PeekResult::Final(TlsPeek::Hello { sni: Some(name), .. }) = known {
        assert!(!name.as_str().is_empty());
    }
}

/// Parses rules. An accepted rule must parse to the same rule after formatting.
fn fuzz_rule(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for rule in parse_list(&text).into_iter().flatten() {
        assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule);
    }
}
