use std::time::{Duration, Instant};

use domain::base::iana::{Class, Rcode};
use domain::base::{Message, MessageBuilder, Name, Rtype, Ttl};
use domain::rdata::svcb::value::{Ech, Ipv4Hint, Port};
use domain::rdata::svcb::{Https, SvcParams};
use domain::rdata::{A, Aaaa, Cname, Txt};
use libmsb::net::policy::Policy;
use libmsb::net::rule::{Action, parse_list};

use super::server::{DnsOutput, DnsServer, DnsSettings};
use super::{DnsTransport, framing};
use crate::address::HostFacts;
use crate::policy::{PolicyEngine, VerdictReason};

const GATEWAY: &str = "172.16.0.1";

fn engine(rules: &str) -> PolicyEngine {
    let policy = Policy { rules: parse_list(rules).unwrap(), ..Policy::nothing() };
    let host = HostFacts {
        gateways: vec![GATEWAY.parse().unwrap(), "fd42:6d73:62::1".parse().unwrap()],
        ..HostFacts::default()
    };
    PolicyEngine::new(policy, true, host)
}

fn name(text: &str) -> Name<Vec<u8>> {
    text.parse().unwrap()
}

/// Creates a server with two upstream servers and the identifiers 1, 2, 3, ….
fn server() -> DnsServer {
    let mut number = 0;
    let random = move || {
        number += 1;
        Some(number)
    };
    let upstreams = vec!["9.9.9.9:53".parse().unwrap(), "[2620:fe::fe]:53".parse().unwrap()];
    DnsServer::new(DnsSettings { upstreams, timeout: Duration::from_secs(5) }, Box::new(random))
}

fn query(text: &str, kind: Rtype) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(4711);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((name(text), kind)).unwrap();
    builder.finish()
}

/// Returns the code of the reply and its answers as text.
fn reply(outputs: &[DnsOutput]) -> (Rcode, Vec<String>) {
    let message = outputs.iter().find_map(|output| match output {
        DnsOutput::Reply { client: 7, message } => Some(message.clone()),
        _ => None,
    });
    let message = Message::from_octets(message.expect("a reply")).unwrap();
    assert_eq!(message.header().id(), 4711);
    assert!(message.header().qr() && message.header().ra());
    let records = message.answer().unwrap().limit_to::<domain::rdata::AllRecordData<_, _>>();
    let records = records.map(|record| record.unwrap());
    (
        message.header().rcode(),
        records.map(|record| format!("{} {}", record.owner(), record.data())).collect(),
    )
}

fn reason(outputs: &[DnsOutput]) -> (Action, VerdictReason) {
    let event = outputs.iter().find_map(|output| match output {
        DnsOutput::Event(event) => Some(event.verdict),
        _ => None,
    });
    let verdict = event.expect("an event");
    (verdict.action, verdict.reason)
}

/// Returns the only query to an upstream server.
fn asked(outputs: &[DnsOutput]) -> (u64, String, DnsTransport, Vec<u8>) {
    let mut asks = outputs.iter().filter_map(|output| match output {
        DnsOutput::Ask { exchange, server, transport, message } => {
            Some((*exchange, server.to_string(), *transport, message.clone()))
        }
        _ => None,
    });
    let ask = asks.next().unwrap_or_else(|| panic!("no upstream query: {outputs:?}"));
    assert!(asks.next().is_none());
    ask
}

/// Builds an answer to a query, with the records that the closure adds.
fn answer(
    question: &[u8],
    code: Rcode,
    fill: impl FnOnce(&mut domain::base::message_builder::AnswerBuilder<Vec<u8>>),
) -> Vec<u8> {
    let question = Message::from_slice(question).unwrap();
    let mut builder = MessageBuilder::new_vec().start_answer(question, code).unwrap();
    fill(&mut builder);
    builder.finish()
}

fn a(owner: &str, ttl: u32, address: &str) -> (Name<Vec<u8>>, Class, Ttl, A) {
    (name(owner), Class::IN, Ttl::from_secs(ttl), A::new(address.parse().unwrap()))
}

/// Returns the outputs after a query for the name and this answer.
fn resolve(
    engine: &PolicyEngine,
    server: &mut DnsServer,
    (text, kind): (&str, Rtype),
    fill: impl FnOnce(&mut domain::base::message_builder::AnswerBuilder<Vec<u8>>),
) -> Vec<DnsOutput> {
    let now = Instant::now();
    let outputs = server.handle_query(engine, now, 7, DnsTransport::Udp, &query(text, kind));
    let (exchange, _, _, question) = asked(&outputs);
    let outputs =
        server.handle_answer(engine, now, exchange, &answer(&question, Rcode::NOERROR, fill));
    assert!(outputs.contains(&DnsOutput::Done { exchange }));
    outputs
}

fn names(server: &DnsServer, address: &str) -> Vec<String> {
    let names = server.pinned_names(Instant::now(), address.parse().unwrap());
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn an_answer_reaches_the_guest_and_its_addresses_are_pinned() {
    let (engine, mut server) = (engine("allow@public"), server());
    let outputs = resolve(&engine, &mut server, ("WWW.example.com", Rtype::A), |answer| {
        answer.push(a("www.example.com", 60, "93.184.216.34")).unwrap();
    });
    assert_eq!(reply(&outputs), (Rcode::NOERROR, vec!["WWW.example.com 93.184.216.34".into()]));
    assert_eq!(names(&server, "93.184.216.34"), ["www.example.com"]);
    assert_eq!(names(&server, "93.184.216.35"), [""; 0]);
}

#[test]
fn a_denied_name_is_answered_nxdomain_without_an_upstream_query() {
    let (engine, mut server) = (engine("allow@example.com"), server());
    let outputs = server.handle_query(
        &engine,
        Instant::now(),
        7,
        DnsTransport::Udp,
        &query("tunnel.evil.test", Rtype::TXT),
    );
    assert_eq!(reply(&outputs), (Rcode::NXDOMAIN, vec![]));
    assert_eq!(reason(&outputs), (Action::Deny, VerdictReason::Default));
    assert_eq!(outputs.len(), 2);
}

#[test]
fn rebinding_to_an_address_that_is_not_public_rejects_the_answer() {
    let engine = engine("allow@public");
    for address in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", GATEWAY] {
        let mut server = server();
        let outputs = resolve(&engine, &mut server, ("rebind.test", Rtype::A), |answer| {
            answer.push(a("rebind.test", 0, "1.1.1.1")).unwrap();
            answer.push(a("rebind.test", 0, address)).unwrap();
        });
        assert_eq!(reply(&outputs), (Rcode::NXDOMAIN, vec![]), "{address}");
        assert_eq!(reason(&outputs), (Action::Deny, VerdictReason::Rebinding));
        assert_eq!(names(&server, "1.1.1.1"), [""; 0]);
        assert_eq!(names(&server, address), [""; 0]);
    }
    for address in
        ["::", "::1", "fd00:ec2::254", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"]
    {
        let outputs = resolve(&engine, &mut server(), ("rebind.test", Rtype::AAAA), |answer| {
            let data = Aaaa::new(address.parse().unwrap());
            answer.push((name("rebind.test"), Class::IN, Ttl::ZERO, data)).unwrap();
        });
        assert_eq!(reply(&outputs).0, Rcode::NXDOMAIN, "{address}");
    }
}

#[test]
fn a_private_answer_is_accepted_if_a_rule_allows_the_address() {
    let engine = engine("allow@10.0.0.0/8");
    let outputs = resolve(&engine, &mut server(), ("db.internal", Rtype::A), |answer| {
        answer.push(a("db.internal", 60, "10.0.0.1")).unwrap();
    });
    assert_eq!(reply(&outputs).1, ["db.internal 10.0.0.1"]);
}

#[test]
fn aliases_are_followed_and_checked() {
    let alias =
        |from: &str, to: &str| (name(from), Class::IN, Ttl::from_secs(60), Cname::new(name(to)));
    let engine = engine("allow@public");
    let mut server = server();
    let outputs = resolve(&engine, &mut server, ("a.test", Rtype::A), |answer| {
        answer.push(a("c.test", 60, "1.1.1.1")).unwrap();
        answer.push(alias("b.test", "c.test")).unwrap();
        answer.push(alias("a.test", "b.test")).unwrap();
    });
    assert_eq!(reply(&outputs).1.len(), 3);
    assert_eq!(names(&server, "1.1.1.1"), ["a.test"]);
    let outputs = resolve(&engine, &mut server, ("a.test", Rtype::A), |answer| {
        answer.push(alias("a.test", "b.test")).unwrap();
        answer.push(a("b.test", 60, "127.0.0.1")).unwrap();
    });
    assert_eq!(reply(&outputs), (Rcode::NXDOMAIN, vec![]));
    // A CNAME loop is no answer; the next server is asked.
    let outputs = resolve(&engine, &mut server, ("a.test", Rtype::A), |answer| {
        answer.push(alias("a.test", "b.test")).unwrap();
        answer.push(alias("b.test", "a.test")).unwrap();
    });
    assert_eq!(asked(&outputs).1, "[2620:fe::fe]:53");
}

#[test]
fn an_alias_of_a_denied_name_is_denied() {
    let engine = engine("deny@tracker.test,allow@public");
    let outputs = resolve(&engine, &mut server(), ("metrics.good.test", Rtype::A), |answer| {
        let data = Cname::new(name("tracker.test"));
        answer.push((name("metrics.good.test"), Class::IN, Ttl::ZERO, data)).unwrap();
        answer.push(a("tracker.test", 60, "6.6.6.6")).unwrap();
    });
    assert_eq!(reply(&outputs), (Rcode::NXDOMAIN, vec![]));
    assert_eq!(reason(&outputs), (Action::Deny, VerdictReason::Rule));
}

#[test]
fn records_that_were_not_asked_for_are_left_out() {
    let (engine, mut server) = (engine("allow@public"), server());
    let outputs = resolve(&engine, &mut server, ("a.test", Rtype::A), |answer| {
        answer.push(a("a.test", 60, "1.1.1.1")).unwrap();
        answer.push(a("bank.test", 60, "6.6.6.6")).unwrap();
        let text = Txt::<Vec<u8>>::build_from_slice(b"x").unwrap();
        answer.push((name("a.test"), Class::IN, Ttl::ZERO, text)).unwrap();
        answer
            .push((name("a.test"), Class::CH, Ttl::ZERO, A::new("6.6.6.7".parse().unwrap())))
            .unwrap();
    });
    assert_eq!(reply(&outputs).1, ["a.test 1.1.1.1"]);
    assert_eq!(names(&server, "6.6.6.6"), [""; 0]);
    assert_eq!(names(&server, "6.6.6.7"), [""; 0]);
}

#[test]
fn an_answer_to_another_query_is_ignored() {
    let (engine, mut server, now) = (engine("allow@public"), server(), Instant::now());
    let outputs =
        server.handle_query(&engine, now, 7, DnsTransport::Udp, &query("a.test", Rtype::A));
    let (exchange, _, _, question) = asked(&outputs);
    let right = answer(&question, Rcode::NOERROR, |answer| {
        answer.push(a("a.test", 60, "6.6.6.6")).unwrap()
    });
    let mut other_number = right.clone();
    other_number[1] ^= 1;
    let mut not_an_answer = right.clone();
    not_an_answer[2] &= 0x7f;
    let other_name = answer(&query("b.test", Rtype::A), Rcode::NOERROR, |_| {});
    let other_kind = answer(&query("a.test", Rtype::AAAA), Rcode::NOERROR, |_| {});
    for wrong in [
        &other_number,
        &not_an_answer,
        &other_name,
        &other_kind,
        &b"".to_vec(),
        &right[..11].to_vec(),
    ] {
        let mut wrong = wrong.clone();
        if wrong.len() > 12 && (wrong == other_name || wrong == other_kind) {
            wrong[..2].copy_from_slice(&question[..2]);
        }
        assert_eq!(server.handle_answer(&engine, now, exchange, &wrong), []);
    }
    assert_eq!(server.handle_answer(&engine, now, exchange + 1, &right), []);
    assert_eq!(reply(&server.handle_answer(&engine, now, exchange, &right)).1, ["a.test 6.6.6.6"]);
    assert_eq!(server.handle_answer(&engine, now, exchange, &right), []);
}

#[test]
fn address_hints_and_ech_keys_are_removed() {
    let service = |target: &str| {
        let params = SvcParams::<Vec<u8>>::from_values(|params| {
            params.push(&Port::new(8443))?;
            params
                .push(&Ipv4Hint::<Vec<u8>>::from_addrs(["127.0.0.1".parse().unwrap()]).unwrap())?;
            params.push(&Ech::from_octets(vec![1, 2, 3]).unwrap())
        });
        (
            name("a.test"),
            Class::IN,
            Ttl::ZERO,
            Https::new(1, name(target), params.unwrap()).unwrap(),
        )
    };
    let engine = engine("allow@a.test,allow@*.ok.test");
    let outputs = resolve(&engine, &mut server(), ("a.test", Rtype::HTTPS), |answer| {
        answer.push(service(".")).unwrap();
        answer.push(service("pool.ok.test")).unwrap();
        answer.push(service("elsewhere.test")).unwrap();
    });
    let (code, records) = reply(&outputs);
    assert_eq!((code, records.len()), (Rcode::NOERROR, 2));
    for record in records {
        assert!(
            record.contains("8443") && !record.contains("hint") && !record.contains("ech"),
            "{record}"
        );
    }
}

#[test]
fn messages_without_exactly_one_plain_question_are_refused() {
    let (engine, mut server, now) = (engine("allow@public"), server(), Instant::now());
    let mut code = |bytes: &[u8]| {
        let outputs = server.handle_query(&engine, now, 7, DnsTransport::Udp, bytes);
        (!outputs.is_empty()).then(|| reply(&outputs).0)
    };
    let mut two = MessageBuilder::new_vec().question();
    two.header_mut().set_id(4711);
    two.push((name("a.test"), Rtype::A)).unwrap();
    two.push((name("b.test"), Rtype::A)).unwrap();
    assert_eq!(code(&two.finish()), Some(Rcode::FORMERR));
    let mut chaos = MessageBuilder::new_vec().question();
    chaos.header_mut().set_id(4711);
    chaos.push((name("version.bind"), Rtype::TXT, Class::CH)).unwrap();
    assert_eq!(code(&chaos.finish()), Some(Rcode::REFUSED));
    assert_eq!(code(&query("a.test", Rtype::AXFR)), Some(Rcode::REFUSED));
    assert_eq!(code(&query("a.test", Rtype::ANY)), Some(Rcode::REFUSED));
    let mut update = query("a.test", Rtype::A);
    update[2] |= 5 << 3;
    assert_eq!(code(&update), Some(Rcode::NOTIMP));
    let mut answer = query("a.test", Rtype::A);
    answer[2] |= 0x80;
    assert_eq!(code(&answer), None);
    assert_eq!(code(b"short"), None);
    assert_eq!(code(&query("a.test", Rtype::A)[..20]), Some(Rcode::FORMERR));
}

#[test]
fn servers_are_asked_one_after_the_other_and_the_one_that_answers_stays_first() {
    let (engine, mut server, start) = (engine("allow@public"), server(), Instant::now());
    let outputs =
        server.handle_query(&engine, start, 7, DnsTransport::Udp, &query("a.test", Rtype::A));
    let (first, who, _, question) = asked(&outputs);
    assert_eq!(who, "9.9.9.9:53");
    let useless = answer(&question, Rcode::SERVFAIL, |_| {});
    let outputs = server.handle_answer(&engine, start, first, &useless);
    let (second, who, _, other) = asked(&outputs);
    assert_eq!(who, "[2620:fe::fe]:53");
    assert_ne!(question[..2], other[..2], "the number is a new one");
    assert!(outputs.contains(&DnsOutput::Done { exchange: first }));
    // No answer arrives until the timeout.
    let late = server.deadline().unwrap();
    assert_eq!(server.tick(late - Duration::from_millis(1)), []);
    let outputs = server.tick(late);
    let (third, who, ..) = asked(&outputs);
    assert_eq!(who, "9.9.9.9:53");
    assert_eq!(
        server.handle_failure(late, third),
        [DnsOutput::Done { exchange: third }],
        "the second server may still answer"
    );
    let later = server.deadline().unwrap();
    let (fourth, _, _, question) = asked(&server.tick(later));
    let mut late_and_useless = useless.clone();
    late_and_useless[..2].copy_from_slice(&other[..2]);
    assert_eq!(
        server.handle_answer(&engine, late, second, &late_and_useless),
        [DnsOutput::Done { exchange: second }],
        "another server may still answer"
    );
    let right = answer(&question, Rcode::NOERROR, |answer| {
        answer.push(a("a.test", 60, "1.1.1.1")).unwrap()
    });
    assert_eq!(reply(&server.handle_answer(&engine, late, fourth, &right)).0, Rcode::NOERROR);
    assert_eq!(server.deadline(), None);
    let outputs =
        server.handle_query(&engine, late, 7, DnsTransport::Udp, &query("b.test", Rtype::A));
    assert_eq!(asked(&outputs).1, "[2620:fe::fe]:53");
}

#[test]
fn a_late_answer_of_any_server_is_accepted_until_the_deadline() {
    let engine = engine("allow@public");
    for late in [0, 1, 2, 3] {
        let (mut server, start) = (server(), Instant::now());
        let query = query("a.test", Rtype::A);
        let mut outputs = server.handle_query(&engine, start, 7, DnsTransport::Udp, &query);
        let mut asks = vec![asked(&outputs)];
        while asks.len() < 4 {
            outputs = server.tick(server.deadline().unwrap());
            asks.push(asked(&outputs));
        }
        let end = start + Duration::from_secs(5);
        assert_eq!(server.deadline(), Some(end), "all servers were asked twice");
        let (exchange, _, _, question) = &asks[late];
        let right = answer(question, Rcode::NOERROR, |answer| {
            answer.push(a("a.test", 60, "1.1.1.1")).unwrap()
        });
        let now = end - Duration::from_millis(1);
        let outputs = server.handle_answer(&engine, now, *exchange, &right);
        assert_eq!(reply(&outputs).1, ["a.test 1.1.1.1"]);
        let closed = outputs.iter().filter(|output| matches!(output, DnsOutput::Done { .. }));
        assert_eq!((closed.count(), server.deadline()), (4, None));
        let other = &asks[(late + 1) % 4];
        assert_eq!(server.handle_answer(&engine, now, other.0, &right), []);
    }
}

#[test]
fn a_short_timeout_still_leaves_time_for_every_server() {
    let (engine, mut server, start) = (engine("allow@public"), server(), Instant::now());
    let upstreams = vec!["9.9.9.9:53".parse().unwrap(), "[2620:fe::fe]:53".parse().unwrap()];
    server.apply_settings(DnsSettings { upstreams, timeout: Duration::from_millis(300) });
    server.handle_query(&engine, start, 7, DnsTransport::Udp, &query("a.test", Rtype::A));
    let second = server.deadline().unwrap();
    assert!(second <= start + Duration::from_millis(100));
    assert_eq!(asked(&server.tick(second)).1, "[2620:fe::fe]:53");
}

#[test]
fn a_query_without_an_answer_fails_at_its_deadline() {
    let (engine, mut server, start) = (engine("allow@public"), server(), Instant::now());
    let mut outputs =
        server.handle_query(&engine, start, 7, DnsTransport::Udp, &query("a.test", Rtype::A));
    while let Some(time) = server.deadline() {
        assert!(time <= start + Duration::from_secs(5));
        outputs = server.tick(time);
    }
    assert_eq!(reply(&outputs).0, Rcode::SERVFAIL);
    let none = DnsSettings { upstreams: vec![], timeout: Duration::from_secs(5) };
    let mut alone = DnsServer::new(none, Box::new(|| Some(1)));
    let outputs =
        alone.handle_query(&engine, start, 7, DnsTransport::Udp, &query("a.test", Rtype::A));
    assert_eq!(reply(&outputs).0, Rcode::SERVFAIL);
}

#[test]
fn a_truncated_answer_is_retried_over_tcp() {
    let (engine, mut server, now) = (engine("allow@public"), server(), Instant::now());
    let outputs =
        server.handle_query(&engine, now, 7, DnsTransport::Udp, &query("a.test", Rtype::A));
    let (exchange, who, _, question) = asked(&outputs);
    let mut cut = answer(&question, Rcode::NOERROR, |_| {});
    cut[2] |= 0x02;
    let outputs = server.handle_answer(&engine, now, exchange, &cut);
    let (exchange, again, transport, question) = asked(&outputs);
    assert_eq!((again, transport), (who, DnsTransport::Tcp));
    let right = answer(&question, Rcode::NOERROR, |answer| {
        (0..100).for_each(|last| answer.push(a("a.test", 60, &format!("1.1.1.{last}"))).unwrap());
    });
    let outputs = server.handle_answer(&engine, now, exchange, &right);
    let Some(DnsOutput::Reply { message, .. }) = outputs.get(1) else {
        panic!("{outputs:?}");
    };
    assert!(message.len() <= 512 && message[2] & 0x02 != 0, "the guest's UDP takes 512 bytes");
    assert_eq!(reply(&outputs), (Rcode::NOERROR, vec![]));
    let outputs =
        server.handle_query(&engine, now, 7, DnsTransport::Tcp, &query("a.test", Rtype::A));
    let (exchange, _, _, question) = asked(&outputs);
    let mut whole = right.clone();
    whole[..2].copy_from_slice(&question[..2]);
    assert_eq!(reply(&server.handle_answer(&engine, now, exchange, &whole)).1.len(), 100);
}

#[test]
fn the_host_alias_resolves_if_the_gateway_is_reachable() {
    let now = Instant::now();
    let ask = |rules: &str, kind| {
        let outputs = server().handle_query(
            &engine(rules),
            now,
            7,
            DnsTransport::Udp,
            &query(libmsb::net::HOST_ALIAS, kind),
        );
        reply(&outputs)
    };
    assert_eq!(ask("allow@public", Rtype::A), (Rcode::NXDOMAIN, vec![]));
    assert_eq!(
        ask("allow@host:tcp:8080", Rtype::A).1,
        [format!("{} {GATEWAY}", libmsb::net::HOST_ALIAS)]
    );
    assert_eq!(ask("allow@host", Rtype::AAAA).1.len(), 1);
    assert_eq!(ask("allow@host", Rtype::TXT), (Rcode::NOERROR, vec![]));
}

#[test]
fn queries_beyond_the_limit_fail_at_once() {
    let (engine, mut server, now) = (engine("allow@public"), server(), Instant::now());
    for _ in 0..1024 {
        asked(&server.handle_query(&engine, now, 7, DnsTransport::Udp, &query("a.test", Rtype::A)));
    }
    let outputs =
        server.handle_query(&engine, now, 7, DnsTransport::Udp, &query("a.test", Rtype::A));
    assert_eq!(reply(&outputs).0, Rcode::SERVFAIL);
}

#[test]
fn messages_on_a_stream_are_framed_by_their_length() {
    let stream = [framing::frame_message(b"abc"), framing::frame_message(b"")].concat();
    assert_eq!(framing::first_message(&stream), Some((&b"abc"[..], 5)));
    assert_eq!(framing::first_message(&stream[5..]), Some((&b""[..], 2)));
    for end in 0..5 {
        assert_eq!(framing::first_message(&stream[..end]), None);
    }
    assert_eq!(framing::frame_message(&[0; 65_536]), b"");
}
