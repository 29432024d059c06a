use std::time::{Duration, Instant};

use domain::base::iana::{Class, Rcode};
use domain::base::{Message, MessageBuilder, Name, Rtype, Ttl};
use domain::rdata::svcb::value::{Ech, Ipv4Hint, Port};
use domain::rdata::svcb::{Https, SvcParams};
use domain::rdata::{A, Aaaa, Cname, Txt};
use libmsb::net::policy::Policy;
use libmsb::net::rule::{Action, parse_list};

use super::server::{Output, Server, Settings};
use super::{Transport, framing};
use crate::address::HostFacts;
use crate::policy::{Judge, Reason};

const GATEWAY: &str = "172.16.0.1";

fn judge(rules: &str) -> Judge {
    let policy = Policy {
        rules: parse_list(rules).unwrap(),
        ..Policy::nothing()
    };
    let host = HostFacts {
        gateways: vec![GATEWAY.parse().unwrap(), "fd42:6d73:62::1".parse().unwrap()],
        ..HostFacts::default()
    };
    Judge::new(policy, true, host)
}

fn name(text: &str) -> Name<Vec<u8>> {
    text.parse().unwrap()
}

/// A server with two others to ask, its numbers 1, 2, 3, ….
fn server() -> Server {
    let mut number = 0;
    let random = move || {
        number += 1;
        Some(number)
    };
    let upstreams = vec![
        "9.9.9.9:53".parse().unwrap(),
        "[2620:fe::fe]:53".parse().unwrap(),
    ];
    Server::new(
        Settings {
            upstreams,
            timeout: Duration::from_secs(5),
        },
        Box::new(random),
    )
}

fn query(text: &str, kind: Rtype) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(4711);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((name(text), kind)).unwrap();
    builder.finish()
}

/// The reply of those outputs: its code, and its answers as text.
fn reply(outputs: &[Output]) -> (Rcode, Vec<String>) {
    let message = outputs.iter().find_map(|output| match output {
        Output::Reply { client: 7, message } => Some(message.clone()),
        _ => None,
    });
    let message = Message::from_octets(message.expect("a reply")).unwrap();
    assert_eq!(message.header().id(), 4711);
    assert!(message.header().qr() && message.header().ra());
    let records = message
        .answer()
        .unwrap()
        .limit_to::<domain::rdata::AllRecordData<_, _>>();
    let records = records.map(|record| record.unwrap());
    (
        message.header().rcode(),
        records
            .map(|record| format!("{} {}", record.owner(), record.data()))
            .collect(),
    )
}

fn reason(outputs: &[Output]) -> (Action, Reason) {
    let event = outputs.iter().find_map(|output| match output {
        Output::Event(event) => Some(event.verdict),
        _ => None,
    });
    let verdict = event.expect("an event");
    (verdict.action, verdict.reason)
}

/// The one question to somebody else.
fn asked(outputs: &[Output]) -> (u64, String, Transport, Vec<u8>) {
    let mut asks = outputs.iter().filter_map(|output| match output {
        Output::Ask {
            exchange,
            server,
            transport,
            message,
        } => Some((*exchange, server.to_string(), *transport, message.clone())),
        _ => None,
    });
    let ask = asks
        .next()
        .unwrap_or_else(|| panic!("nobody is asked: {outputs:?}"));
    assert!(asks.next().is_none());
    ask
}

/// An answer to such a question, with what the closure puts into it.
fn answer(
    question: &[u8],
    code: Rcode,
    fill: impl FnOnce(&mut domain::base::message_builder::AnswerBuilder<Vec<u8>>),
) -> Vec<u8> {
    let question = Message::from_slice(question).unwrap();
    let mut builder = MessageBuilder::new_vec()
        .start_answer(question, code)
        .unwrap();
    fill(&mut builder);
    builder.finish()
}

fn a(owner: &str, ttl: u32, address: &str) -> (Name<Vec<u8>>, Class, Ttl, A) {
    (
        name(owner),
        Class::IN,
        Ttl::from_secs(ttl),
        A::new(address.parse().unwrap()),
    )
}

/// What the guest gets when it asks for the name, and this is answered.
fn resolve(
    judge: &Judge,
    server: &mut Server,
    (text, kind): (&str, Rtype),
    fill: impl FnOnce(&mut domain::base::message_builder::AnswerBuilder<Vec<u8>>),
) -> Vec<Output> {
    let now = Instant::now();
    let outputs = server.query(judge, now, 7, Transport::Udp, &query(text, kind));
    let (exchange, _, _, question) = asked(&outputs);
    let outputs = server.answer(
        judge,
        now,
        exchange,
        &answer(&question, Rcode::NOERROR, fill),
    );
    assert!(outputs.contains(&Output::Done { exchange }));
    outputs
}

fn names(server: &Server, address: &str) -> Vec<String> {
    let names = server.names(Instant::now(), address.parse().unwrap());
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn an_answer_reaches_the_guest_and_its_addresses_are_pinned() {
    let (judge, mut server) = (judge("allow@public"), server());
    let outputs = resolve(
        &judge,
        &mut server,
        ("WWW.example.com", Rtype::A),
        |answer| {
            answer
                .push(a("www.example.com", 60, "93.184.216.34"))
                .unwrap();
        },
    );
    assert_eq!(
        reply(&outputs),
        (Rcode::NOERROR, vec!["WWW.example.com 93.184.216.34".into()])
    );
    assert_eq!(names(&server, "93.184.216.34"), ["www.example.com"]);
    assert_eq!(names(&server, "93.184.216.35"), [""; 0]);
}

#[test]
fn a_name_that_may_not_be_asked_for_is_denied_at_once_and_nobody_is_asked() {
    let (judge, mut server) = (judge("allow@example.com"), server());
    let outputs = server.query(
        &judge,
        Instant::now(),
        7,
        Transport::Udp,
        &query("tunnel.evil.test", Rtype::TXT),
    );
    assert_eq!(reply(&outputs), (Rcode::NXDOMAIN, vec![]));
    assert_eq!(reason(&outputs), (Action::Deny, Reason::Default));
    assert_eq!(outputs.len(), 2);
}

#[test]
fn an_answer_with_an_address_that_is_not_public_is_refused_whole() {
    let judge = judge("allow@public");
    for address in [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        GATEWAY,
    ] {
        let mut server = server();
        let outputs = resolve(&judge, &mut server, ("rebind.test", Rtype::A), |answer| {
            answer.push(a("rebind.test", 0, "1.1.1.1")).unwrap();
            answer.push(a("rebind.test", 0, address)).unwrap();
        });
        assert_eq!(reply(&outputs), (Rcode::NXDOMAIN, vec![]), "{address}");
        assert_eq!(reason(&outputs), (Action::Deny, Reason::Rebinding));
        assert_eq!(names(&server, "1.1.1.1"), [""; 0]);
        assert_eq!(names(&server, address), [""; 0]);
    }
    for address in [
        "::",
        "::1",
        "fd00:ec2::254",
        "::ffff:10.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
    ] {
        let outputs = resolve(
            &judge,
            &mut server(),
            ("rebind.test", Rtype::AAAA),
            |answer| {
                let data = Aaaa::new(address.parse().unwrap());
                answer
                    .push((name("rebind.test"), Class::IN, Ttl::ZERO, data))
                    .unwrap();
            },
        );
        assert_eq!(reply(&outputs).0, Rcode::NXDOMAIN, "{address}");
    }
}

#[test]
fn a_private_answer_is_believed_where_a_rule_lets_the_guest_reach_it() {
    let judge = judge("allow@10.0.0.0/8");
    let outputs = resolve(&judge, &mut server(), ("db.internal", Rtype::A), |answer| {
        answer.push(a("db.internal", 60, "10.0.0.1")).unwrap();
    });
    assert_eq!(reply(&outputs).1, ["db.internal 10.0.0.1"]);
}

#[test]
fn aliases_are_followed_and_one_that_leads_to_a_bad_address_is_refused() {
    let alias = |from: &str, to: &str| {
        (
            name(from),
            Class::IN,
            Ttl::from_secs(60),
            Cname::new(name(to)),
        )
    };
    let judge = judge("allow@public");
    let mut server = server();
    let outputs = resolve(&judge, &mut server, ("a.test", Rtype::A), |answer| {
        answer.push(a("c.test", 60, "1.1.1.1")).unwrap();
        answer.push(alias("b.test", "c.test")).unwrap();
        answer.push(alias("a.test", "b.test")).unwrap();
    });
    assert_eq!(reply(&outputs).1.len(), 3);
    assert_eq!(names(&server, "1.1.1.1"), ["a.test"]);
    let outputs = resolve(&judge, &mut server, ("a.test", Rtype::A), |answer| {
        answer.push(alias("a.test", "b.test")).unwrap();
        answer.push(a("b.test", 60, "127.0.0.1")).unwrap();
    });
    assert_eq!(reply(&outputs), (Rcode::NXDOMAIN, vec![]));
    // A circle is no answer; the next server is asked.
    let outputs = resolve(&judge, &mut server, ("a.test", Rtype::A), |answer| {
        answer.push(alias("a.test", "b.test")).unwrap();
        answer.push(alias("b.test", "a.test")).unwrap();
    });
    assert_eq!(asked(&outputs).1, "[2620:fe::fe]:53");
}

#[test]
fn an_alias_of_a_denied_name_is_denied() {
    let judge = judge("deny@tracker.test,allow@public");
    let outputs = resolve(
        &judge,
        &mut server(),
        ("metrics.good.test", Rtype::A),
        |answer| {
            let data = Cname::new(name("tracker.test"));
            answer
                .push((name("metrics.good.test"), Class::IN, Ttl::ZERO, data))
                .unwrap();
            answer.push(a("tracker.test", 60, "6.6.6.6")).unwrap();
        },
    );
    assert_eq!(reply(&outputs), (Rcode::NXDOMAIN, vec![]));
    assert_eq!(reason(&outputs), (Action::Deny, Reason::Rule));
}

#[test]
fn records_that_were_not_asked_for_are_left_out() {
    let (judge, mut server) = (judge("allow@public"), server());
    let outputs = resolve(&judge, &mut server, ("a.test", Rtype::A), |answer| {
        answer.push(a("a.test", 60, "1.1.1.1")).unwrap();
        answer.push(a("bank.test", 60, "6.6.6.6")).unwrap();
        let text = Txt::<Vec<u8>>::build_from_slice(b"x").unwrap();
        answer
            .push((name("a.test"), Class::IN, Ttl::ZERO, text))
            .unwrap();
        answer
            .push((
                name("a.test"),
                Class::CH,
                Ttl::ZERO,
                A::new("6.6.6.7".parse().unwrap()),
            ))
            .unwrap();
    });
    assert_eq!(reply(&outputs).1, ["a.test 1.1.1.1"]);
    assert_eq!(names(&server, "6.6.6.6"), [""; 0]);
    assert_eq!(names(&server, "6.6.6.7"), [""; 0]);
}

#[test]
fn an_answer_to_another_question_is_not_heard() {
    let (judge, mut server, now) = (judge("allow@public"), server(), Instant::now());
    let outputs = server.query(&judge, now, 7, Transport::Udp, &query("a.test", Rtype::A));
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
        assert_eq!(server.answer(&judge, now, exchange, &wrong), []);
    }
    assert_eq!(server.answer(&judge, now, exchange + 1, &right), []);
    assert_eq!(
        reply(&server.answer(&judge, now, exchange, &right)).1,
        ["a.test 6.6.6.6"]
    );
    assert_eq!(server.answer(&judge, now, exchange, &right), []);
}

#[test]
fn hints_of_addresses_and_keys_of_hidden_names_are_taken_out() {
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
    let judge = judge("allow@a.test,allow@*.ok.test");
    let outputs = resolve(&judge, &mut server(), ("a.test", Rtype::HTTPS), |answer| {
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
fn what_is_not_one_plain_question_is_refused() {
    let (judge, mut server, now) = (judge("allow@public"), server(), Instant::now());
    let mut code = |bytes: &[u8]| {
        let outputs = server.query(&judge, now, 7, Transport::Udp, bytes);
        (!outputs.is_empty()).then(|| reply(&outputs).0)
    };
    let mut two = MessageBuilder::new_vec().question();
    two.header_mut().set_id(4711);
    two.push((name("a.test"), Rtype::A)).unwrap();
    two.push((name("b.test"), Rtype::A)).unwrap();
    assert_eq!(code(&two.finish()), Some(Rcode::FORMERR));
    let mut chaos = MessageBuilder::new_vec().question();
    chaos.header_mut().set_id(4711);
    chaos
        .push((name("version.bind"), Rtype::TXT, Class::CH))
        .unwrap();
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
    let (judge, mut server, start) = (judge("allow@public"), server(), Instant::now());
    let outputs = server.query(&judge, start, 7, Transport::Udp, &query("a.test", Rtype::A));
    let (first, who, _, question) = asked(&outputs);
    assert_eq!(who, "9.9.9.9:53");
    let useless = answer(&question, Rcode::SERVFAIL, |_| {});
    let outputs = server.answer(&judge, start, first, &useless);
    let (second, who, _, other) = asked(&outputs);
    assert_eq!(who, "[2620:fe::fe]:53");
    assert_ne!(question[..2], other[..2], "the number is a new one");
    assert!(outputs.contains(&Output::Done { exchange: first }));
    // Nothing comes: time passes.
    let late = server.deadline().unwrap();
    assert_eq!(server.tick(late - Duration::from_millis(1)), []);
    let outputs = server.tick(late);
    let (third, who, ..) = asked(&outputs);
    assert_eq!(who, "9.9.9.9:53");
    let outputs = server.failed(late, third);
    let (fourth, _, _, question) = asked(&outputs);
    assert_eq!(
        server.answer(&judge, late, second, &useless),
        [],
        "it is too late for that one"
    );
    let right = answer(&question, Rcode::NOERROR, |answer| {
        answer.push(a("a.test", 60, "1.1.1.1")).unwrap()
    });
    assert_eq!(
        reply(&server.answer(&judge, late, fourth, &right)).0,
        Rcode::NOERROR
    );
    assert_eq!(server.deadline(), None);
    let outputs = server.query(&judge, late, 7, Transport::Udp, &query("b.test", Rtype::A));
    assert_eq!(asked(&outputs).1, "[2620:fe::fe]:53");
}

#[test]
fn a_question_that_nobody_answers_fails_when_its_time_is_over() {
    let (judge, mut server, start) = (judge("allow@public"), server(), Instant::now());
    let mut outputs = server.query(&judge, start, 7, Transport::Udp, &query("a.test", Rtype::A));
    while let Some(time) = server.deadline() {
        assert!(time <= start + Duration::from_secs(5));
        outputs = server.tick(time);
    }
    assert_eq!(reply(&outputs).0, Rcode::SERVFAIL);
    let none = Settings {
        upstreams: vec![],
        timeout: Duration::from_secs(5),
    };
    let mut alone = Server::new(none, Box::new(|| Some(1)));
    let outputs = alone.query(&judge, start, 7, Transport::Udp, &query("a.test", Rtype::A));
    assert_eq!(reply(&outputs).0, Rcode::SERVFAIL);
}

#[test]
fn an_answer_that_was_cut_is_asked_for_over_tcp() {
    let (judge, mut server, now) = (judge("allow@public"), server(), Instant::now());
    let outputs = server.query(&judge, now, 7, Transport::Udp, &query("a.test", Rtype::A));
    let (exchange, who, _, question) = asked(&outputs);
    let mut cut = answer(&question, Rcode::NOERROR, |_| {});
    cut[2] |= 0x02;
    let outputs = server.answer(&judge, now, exchange, &cut);
    let (exchange, again, transport, question) = asked(&outputs);
    assert_eq!((again, transport), (who, Transport::Tcp));
    let right = answer(&question, Rcode::NOERROR, |answer| {
        (0..100).for_each(|last| {
            answer
                .push(a("a.test", 60, &format!("1.1.1.{last}")))
                .unwrap()
        });
    });
    let outputs = server.answer(&judge, now, exchange, &right);
    let Some(Output::Reply { message, .. }) = outputs.get(1) else {
        panic!("{outputs:?}");
    };
    assert!(
        message.len() <= 512 && message[2] & 0x02 != 0,
        "the guest's UDP takes 512 bytes"
    );
    assert_eq!(reply(&outputs), (Rcode::NOERROR, vec![]));
    let outputs = server.query(&judge, now, 7, Transport::Tcp, &query("a.test", Rtype::A));
    let (exchange, _, _, question) = asked(&outputs);
    let mut whole = right.clone();
    whole[..2].copy_from_slice(&question[..2]);
    assert_eq!(
        reply(&server.answer(&judge, now, exchange, &whole)).1.len(),
        100
    );
}

#[test]
fn the_host_has_its_name_where_it_may_be_reached() {
    let now = Instant::now();
    let ask = |rules: &str, kind| {
        let outputs = server().query(
            &judge(rules),
            now,
            7,
            Transport::Udp,
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
fn more_questions_than_can_wait_fail_at_once() {
    let (judge, mut server, now) = (judge("allow@public"), server(), Instant::now());
    for _ in 0..1024 {
        asked(&server.query(&judge, now, 7, Transport::Udp, &query("a.test", Rtype::A)));
    }
    let outputs = server.query(&judge, now, 7, Transport::Udp, &query("a.test", Rtype::A));
    assert_eq!(reply(&outputs).0, Rcode::SERVFAIL);
}

#[test]
fn messages_on_a_stream_have_their_length_before_them() {
    let stream = [framing::framed(b"abc"), framing::framed(b"")].concat();
    assert_eq!(framing::first(&stream), Some((&b"abc"[..], 5)));
    assert_eq!(framing::first(&stream[5..]), Some((&b""[..], 2)));
    for end in 0..5 {
        assert_eq!(framing::first(&stream[..end]), None);
    }
    assert_eq!(framing::framed(&[0; 65_536]), b"");
}
