//! Names, seen from inside a real guest: which answers it gets, and where TLS may lead that names a
//! server. What is refused is held against what `msb net explain` says of the same case.

use serde_json::{Value, json};

use crate::support::Internet;
use crate::support::internet::{A, CNAME, HTTPS, Record, a, answers, digits, encoded};

/// A public address, which the Internet of these tests has as any other.
const SERVER: [u8; 4] = [93, 184, 216, 34];

const AAAA: u16 = 28;
/// Codes of answers.
const NO_ERROR: u8 = 0;
const FORMAT_ERROR: u8 = 1;
const SERVER_FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;

/// A message with questions, and with a number of records that it claims to answer.
fn message(questions: &[(&str, u16)], answers: u8) -> Vec<u8> {
    let head = [0x12, 0x34, 1, 0, 0, questions.len() as u8, 0, answers, 0, 0, 0, 0];
    let mut message = head.to_vec();
    for (name, kind) in questions {
        message.extend([&encoded(name)[..], &kind.to_be_bytes(), &[0, 1]].concat());
    }
    message
}

/// An answer to the guest: the code, the number of records, and the whole text.
struct Told {
    code: u8,
    records: u8,
    digits: String,
}

/// The guest asks for names, each time another server than ours.
#[track_caller]
fn asked(internet: &Internet, messages: &[Vec<u8>]) -> Vec<Told> {
    let question = |message: &Vec<u8>| format!("udp 8.8.8.8:53 {}", digits(message));
    let said = internet.call(&messages.iter().map(question).collect::<Vec<_>>());
    let told = said.iter().map(|line| {
        let answer = line.strip_prefix("answered ").unwrap_or_else(|| panic!("{line}"));
        let byte = |at: usize| u8::from_str_radix(&answer[2 * at..2 * at + 2], 16).unwrap();
        assert_eq!(&answer[..4], "1234", "{line}");
        Told { code: byte(3) & 15, records: byte(7), digits: answer.to_owned() }
    });
    told.collect()
}

/// The codes of the answers to simple questions.
#[track_caller]
fn codes(internet: &Internet, names: &[&str]) -> Vec<u8> {
    let messages: Vec<Vec<u8>> = names.iter().map(|name| message(&[(name, A)], 0)).collect();
    let told = asked(internet, &messages);
    told.iter().map(|told| told.code).collect()
}

/// Lines of the log about names: name, code, action, reason, rule.
fn questions(events: &[Value]) -> Vec<Value> {
    let fields = ["name", "action", "reason", "rule"];
    let lines = events.iter().filter(|event| event["type"] == "dns");
    lines.map(|event| fields.iter().map(|field| event[*field].clone()).collect()).collect()
}

/// None of the names is found, for that reason, as `explain` says when it is told what was
/// answered.
#[track_caller]
fn not_found(internet: &Internet, cases: &[(&str, &[&str])], reason: &str) {
    let from = internet.log().len();
    let names: Vec<&str> = cases.iter().map(|(name, _)| *name).collect();
    assert_eq!(codes(internet, &names), vec![NO_SUCH_NAME; names.len()]);
    let cases: Vec<Value> =
        cases.iter().map(|(name, answers)| json!({ "name": name, "answers": answers })).collect();
    let mut explained = internet.explain(&cases);
    for line in &mut explained {
        assert_eq!((&line["action"], &line["reason"]), (&json!("deny"), &json!(reason)), "{line}");
        line["type"] = json!("dns");
    }
    assert_eq!(questions(&internet.log_from(from)), questions(&explained));
}

fn asked_outside(internet: &Internet) -> Vec<String> {
    let mut heard = internet.heard();
    heard.retain(|line| line.starts_with("name "));
    heard
}

#[test]
fn a_name_that_no_rule_allows_is_denied_and_nobody_outside_hears_of_it() {
    let names = json!({ "ok.test": answers(&[a("ok.test", SERVER)]) });
    let internet = Internet::of(names, &["--net-rule", "allow@ok.test"]);
    not_found(&internet, &[("secret.evil.test", &[]), ("test", &[])], "default");
    // Where nothing goes out, names do not either.
    internet.modify(&["--no-net"]);
    not_found(&internet, &[("ok.test", &[])], "default");
    internet.modify(&["--net", "public", "--net-rule", "deny@*.evil.test"]);
    not_found(&internet, &[("secret.evil.test", &[]), ("evil.test", &[])], "rule");
    assert_eq!(codes(&internet, &["ok.test"]), [NO_ERROR]);
    assert_eq!(asked_outside(&internet), ["name ok.test 1"]);
}

#[test]
fn several_questions_in_one_message_and_answers_in_a_question_are_refused() {
    let names = json!({ "ok.test": answers(&[a("ok.test", SERVER)]) });
    let internet = Internet::of(names, &["--net-rule", "allow@ok.test"]);
    let two = [("ok.test", A), ("secret.evil.test", A)];
    let told = asked(
        &internet,
        &[
            message(&two, 0),
            message(&[two[1], two[0]], 0),
            message(&[], 0),
            message(&[("ok.test", A)], 1),
        ],
    );
    let codes: Vec<u8> = told.iter().map(|told| told.code).collect();
    assert_eq!(codes, [FORMAT_ERROR; 4]);
    assert_eq!(asked_outside(&internet), [] as [&str; 0]);
}

#[test]
fn an_answer_to_another_question_is_not_believed() {
    let records = [a("bank.test", SERVER)];
    let mut foreign = answers(&records);
    foreign["question"] = json!("bank.test");
    let names = json!({ "foreign.test": foreign, "beside.test": answers(&records) });
    let policy =
        ["--dns-query-timeout-ms", "500", "--net-rule", "allow@foreign.test,allow@beside.test"];
    let internet = Internet::of(names, &policy);
    let told =
        asked(&internet, &[message(&[("foreign.test", A)], 0), message(&[("beside.test", A)], 0)]);
    // Nobody has answered the one; of the other nothing is left.
    assert_eq!((told[0].code, told[0].records), (SERVER_FAILURE, 0));
    assert_eq!((told[1].code, told[1].records), (NO_ERROR, 0));
    // And nothing was learnt of it.
    let reached = internet.call(&["tcp 93.184.216.34:443 6869"]);
    assert_eq!(reached, ["connection refused"]);
    let denied = internet.log_from(0).pop().unwrap();
    assert_eq!((&denied["type"], &denied["reason"]), (&json!("deny"), &json!("default")));
}

#[test]
fn an_alias_does_not_lead_to_a_name_that_is_denied() {
    let alias = |owner, to| -> Record { (owner, CNAME, encoded(to)) };
    let names = json!({
        "alias.test": answers(&[alias("alias.test", "evil.test"), a("evil.test", SERVER)]),
        "long.test": answers(&[alias("long.test", "b.test"), alias("b.test", "evil.test"), a("evil.test", SERVER)]),
        "good.test": answers(&[alias("good.test", "b.test"), a("b.test", SERVER)]),
    });
    let policy = ["--net", "public", "--net-rule", "deny@other.test,deny@evil.test"];
    let internet = Internet::of(names, &policy);
    assert_eq!(
        codes(&internet, &["alias.test", "long.test", "good.test"]),
        [NO_SUCH_NAME, NO_SUCH_NAME, NO_ERROR]
    );
    // The verdict is that on the name behind the alias.
    let explained = internet.explain(&[json!({ "name": "evil.test" })]).remove(0);
    assert_eq!(explained["rule"], 2);
    let found = questions(&internet.log_from(0));
    let expected = |name: &str| json!([name, "deny", explained["reason"], explained["rule"]]);
    assert_eq!(found[..2], [expected("alias.test"), expected("long.test")]);
    assert_eq!(found[2][1], "allow");
}

#[test]
fn answers_with_addresses_that_are_not_public_are_refused() {
    let mapped = [&[0; 10][..], &[255, 255, 10, 0, 0, 1]].concat();
    let unique = [&[0xfd, 0][..], &[0; 13], &[1]].concat();
    let answer = |records: &[Record]| answers(records);
    let names = json!({
        "rebind.test": answer(&[a("rebind.test", [127, 0, 0, 1])]),
        "nobody.test": answer(&[a("nobody.test", [0, 0, 0, 0])]),
        "meta.test": answer(&[a("meta.test", [169, 254, 169, 254])]),
        "mixed.test": answer(&[a("mixed.test", SERVER), a("mixed.test", [192, 168, 0, 1])]),
        "alias.test": answer(&[("alias.test", CNAME, encoded("inner.test")), a("inner.test", [10, 0, 0, 1])]),
        "mapped.test": answer(&[("mapped.test", AAAA, mapped)]),
        "unique.test": answer(&[("unique.test", AAAA, unique)]),
        "good.test": answer(&[a("good.test", SERVER)]),
    });
    let internet = Internet::of(names, &[]);
    let cases: [(&str, &[&str]); 5] = [
        ("rebind.test", &["127.0.0.1"]),
        ("nobody.test", &["0.0.0.0"]),
        ("meta.test", &["169.254.169.254"]),
        ("mixed.test", &["93.184.216.34", "192.168.0.1"]),
        ("alias.test", &["10.0.0.1"]),
    ];
    not_found(&internet, &cases, "rebinding");
    let six = ["mapped.test", "unique.test"].map(|name| message(&[(name, AAAA)], 0));
    let told = asked(&internet, &six);
    let codes6: Vec<u8> = told.iter().map(|told| told.code).collect();
    assert_eq!(codes6, [NO_SUCH_NAME; 2]);
    // Who believes such answers gets those of the local network, and no others.
    internet.modify(&["--no-dns-rebind-protection"]);
    not_found(&internet, &cases[..3], "rebinding");
    assert_eq!(codes(&internet, &["mixed.test", "alias.test"]), [NO_ERROR; 2]);
}

#[test]
fn hints_of_addresses_and_keys_for_hidden_names_are_taken_out_of_answers() {
    // Priority 1, this very name; then keys with their values: ALPN h2, hints of both families, a
    // key for ECH.
    let hint = [203, 0, 114, 7];
    let hint6 = [0x26, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    let secret = b"encrypted-client-hello";
    let value = |key: u8, value: &[u8]| [&[0, key, 0, value.len() as u8], value].concat();
    let service =
        [vec![0, 1, 0], value(1, b"\x02h2"), value(4, &hint), value(5, secret), value(6, &hint6)]
            .concat();
    let names = json!({ "ok.test": answers(&[("ok.test", HTTPS, service)]) });
    let internet = Internet::of(names, &["--net-rule", "allow@ok.test"]);
    let told = asked(&internet, &[message(&[("ok.test", HTTPS)], 0)]).remove(0);
    assert_eq!((told.code, told.records), (NO_ERROR, 1));
    assert!(told.digits.contains(&digits(b"\x02h2")), "{}", told.digits);
    for gone in [&hint[..], &hint6, secret] {
        assert!(!told.digits.contains(&digits(gone)), "{}", told.digits);
    }
    let said = internet.call(&["tcp 203.0.114.7:443 6869", "tcp [2600::7]:443 6869"]);
    let reached = said.iter().any(|line| line.starts_with("answered"));
    assert!(!reached, "{said:?}");
}

#[test]
fn questions_over_tcp_are_answered_by_the_same_rules() {
    let names = json!({ "ok.test": answers(&[a("ok.test", SERVER)]) });
    let internet = Internet::of(names, &["--net-rule", "allow@ok.test"]);
    let framed = |name| {
        let message = message(&[(name, A)], 0);
        let length = (message.len() as u16).to_be_bytes();
        format!("tcp 8.8.8.8:53 {}", digits(&[&length[..], &message].concat()))
    };
    let said = internet.call(&[framed("ok.test"), framed("secret.evil.test")]);
    // Behind the length stand the number and the flags, whose last four bits are the code.
    let codes: Vec<&str> = said.iter().map(|line| &line[13..21]).collect();
    assert_eq!(codes, ["12348180", "12348183"]);
    assert_eq!(asked_outside(&internet), ["name ok.test 1"]);
}

fn vector(bytes: usize, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u64).to_be_bytes();
    [&length[8 - bytes..], body].concat()
}

/// A ClientHello (RFC 8446, 4.1.2) that asks for a name, or for none, and may have another one
/// encrypted (RFC 9849).
fn client_hello(name: Option<&str>, ech: bool) -> Vec<u8> {
    let mut extensions = Vec::new();
    if let Some(name) = name {
        let entry = [&[0][..], &vector(2, name.as_bytes())].concat();
        extensions.extend([&[0, 0][..], &vector(2, &vector(2, &entry))].concat());
    }
    if ech {
        // Outer; a cipher, a number, a key and what it encrypts.
        let outer = [&[0, 0, 1, 0, 1, 7][..], &vector(2, &[5; 32]), &vector(2, &[6; 64])];
        extensions.extend([&[0xfe, 0x0d][..], &vector(2, &outer.concat())].concat());
    }
    let body =
        [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &vector(2, &extensions)].concat();
    let message = [&[1][..], &vector(3, &body)].concat();
    [&[22, 3, 1][..], &vector(2, &message)].concat()
}

/// The guest says something first to the server; the verdict as it shows, and as `explain` has it.
#[track_caller]
fn says(internet: &Internet, bytes: &[u8], names: &[&str], tls: &Value) -> Value {
    let from = internet.log().len();
    let said = internet.call(&[format!("tcp 93.184.216.34:443 {}", digits(bytes))]).remove(0);
    let case = json!({
        "direction": "egress", "protocol": "tcp", "address": "93.184.216.34", "port": 443, "names": names, "tls": tls,
    });
    let verdict = |line: &Value| -> Value {
        let fields = ["action", "reason", "rule", "tls", "names"];
        fields.iter().map(|field| line[*field].clone()).collect()
    };
    let explained = internet.explain(&[case]).remove(0);
    let events = internet.log_from(from);
    let denied: Vec<Value> =
        events.iter().filter(|event| event["type"] == "deny").map(verdict).collect();
    let is_allowed = explained["action"] == "allow";
    assert_eq!(said == format!("answered {}", digits(bytes)), is_allowed, "{tls}: {said}");
    let expected = if is_allowed { vec![] } else { vec![verdict(&explained)] };
    assert_eq!(denied, expected, "{tls}");
    explained["reason"].clone()
}

#[test]
fn the_name_in_tls_must_be_the_rules_and_have_the_address() {
    let names = json!({ "ok.test": answers(&[a("ok.test", SERVER)]) });
    let internet = Internet::of(names, &["--net-rule", "allow@ok.test,allow@else.test"]);
    assert_eq!(codes(&internet, &["ok.test"]), [NO_ERROR]);
    let hello = |sni: Option<&str>, ech: bool| {
        let bytes = client_hello(sni, ech);
        says(&internet, &bytes, &["ok.test"], &json!({ "hello": { "sni": sni, "ech": ech } }))
    };
    assert_eq!(hello(Some("ok.test"), false), "rule");
    assert_eq!(hello(Some("evil.test"), false), "sni-other");
    assert_eq!(hello(Some("else.test"), false), "sni-other");
    assert_eq!(hello(None, false), "sni-missing");
    assert_eq!(hello(Some("ok.test"), true), "ech");
    assert_eq!(hello(None, true), "ech");
    assert_eq!(says(&internet, b"plain", &["ok.test"], &json!("plain")), "rule");
    // Of what was refused the server has heard no byte.
    let mut heard = internet.heard();
    heard.retain(|line| line.starts_with("end "));
    let mut ended: Vec<&str> = heard.iter().filter_map(|line| line.split(' ').nth(2)).collect();
    ended.retain(|count| *count != "0");
    let right = client_hello(Some("ok.test"), false).len().to_string();
    assert_eq!(ended, [&right, "5"]);
}

#[test]
fn a_name_of_the_same_rule_that_was_not_found_to_have_the_address_is_refused() {
    let names = json!({
        "a.ok.test": answers(&[a("a.ok.test", SERVER)]), "b.ok.test": answers(&[a("b.ok.test", [93, 184, 216, 99])]),
    });
    let internet = Internet::of(names, &["--net-rule", "allow@*.ok.test"]);
    assert_eq!(codes(&internet, &["a.ok.test", "b.ok.test"]), [NO_ERROR; 2]);
    let tls = json!({ "hello": { "sni": "b.ok.test", "ech": false } });
    let reason = says(&internet, &client_hello(Some("b.ok.test"), false), &["a.ok.test"], &tls);
    assert_eq!(reason, "sni-not-pinned");
}

#[test]
fn known_servers_of_dns_over_https_can_be_denied_by_name_where_the_internet_is_open() {
    let names = json!({ "ok.test": answers(&[a("ok.test", SERVER)]) });
    let policy = ["--net", "public", "--net-rule", "deny@dns.google,deny@*.cloudflare-dns.com"];
    let internet = Internet::of(names, &policy);
    let names: [(&str, &[&str]); 3] =
        [("dns.google", &[]), ("cloudflare-dns.com", &[]), ("mozilla.cloudflare-dns.com", &[])];
    not_found(&internet, &names, "rule");
    // By its address, TLS shows the name.
    for name in ["dns.google", "mozilla.cloudflare-dns.com"] {
        let tls = json!({ "hello": { "sni": name, "ech": false } });
        assert_eq!(says(&internet, &client_hello(Some(name), false), &[], &tls), "rule");
    }
    let tls = json!({ "hello": { "sni": "ok.test", "ech": false } });
    assert_eq!(says(&internet, &client_hello(Some("ok.test"), false), &[], &tls), "rule");
    assert_eq!(asked_outside(&internet), [] as [&str; 0]);
    // Where names are allowed one by one, there is neither the name nor the address.
    internet.modify(&["--net-rule", "allow@ok.test"]);
    not_found(&internet, &names, "default");
    let said = internet.call(&[
        "tcp 8.8.8.8:443 6869",
        "tcp [2001:4860:4860::8888]:443 6869",
        "udp 8.8.8.8:443 6869",
    ]);
    let reached = said.iter().any(|line| line.starts_with("answered"));
    assert!(!reached, "{said:?}");
}
