//! Policies, as they are written, and what a real guest reaches under each: what `msb net explain`
//! says, and no more.

use serde_json::{Value, json};

use crate::support::Internet;
use crate::support::internet::{a, answers, encoded};

/// The verdict on an attempt: the number of the rule that matches, or 0 when none does.
enum Becomes {
    Allowed(u64),
    Denied(u64),
}

use Becomes::{Allowed, Denied};

/// Under a policy, each attempt becomes what it should: in the guest, in the log, and as `explain`
/// says.
#[track_caller]
fn under(internet: &Internet, policy: &[&str], attempts: &[(&str, Becomes)]) {
    internet.modify(policy);
    let (from, before) = (internet.log().len(), internet.heard().len());
    let words: Vec<&str> = attempts.iter().map(|(attempt, _)| *attempt).collect();
    let said = internet.call(&words);
    let events = internet.log_from(from);
    let mut verdicts: Vec<Value> = events
        .iter()
        .filter(|event| event["type"] == "open" || event["type"] == "deny")
        .map(verdict)
        .collect();
    verdicts.dedup();
    let cases: Vec<Value> = words.iter().map(|attempt| case(attempt)).collect();
    let explained: Vec<Value> = internet.explain(&cases).iter().map(verdict).collect();
    assert_eq!(verdicts, explained, "{policy:?}");
    for ((attempt, becomes), (line, said)) in attempts.iter().zip(explained.iter().zip(&said)) {
        let (action, rule) = match becomes {
            Allowed(rule) => ("allow", *rule),
            Denied(rule) => ("deny", *rule),
        };
        assert_eq!(line[0], action, "{policy:?} {attempt}: {line}");
        let number = line[4].as_u64().unwrap_or_default();
        assert_eq!(number, rule, "{policy:?} {attempt}: {line}");
        let answered = said.starts_with("answered");
        assert_eq!(answered, action == "allow", "{policy:?} {attempt}: {said}");
    }
    let allowed = attempts.iter().filter(|(_, becomes)| matches!(becomes, Allowed(_)));
    let mut heard = internet.heard().split_off(before);
    heard.retain(|line| line.starts_with("tcp ") || line.starts_with("udp "));
    let allowed: Vec<String> = allowed.map(|(attempt, _)| (*attempt).to_owned()).collect();
    assert_eq!(heard, allowed, "{policy:?}");
}

fn case(attempt: &str) -> Value {
    let (protocol, peer) = attempt.split_once(' ').unwrap();
    let peer: std::net::SocketAddr = peer.parse().unwrap();
    json!({ "direction": "egress", "protocol": protocol, "address": peer.ip(), "port": peer.port() })
}

fn verdict(line: &Value) -> Value {
    let fields = ["action", "protocol", "address", "port", "rule"];
    fields.iter().map(|field| line[*field].clone()).collect()
}

#[test]
fn profiles_let_a_guest_reach_what_they_name_and_no_more() {
    let internet = Internet::with(&[]);
    let (public, private) = ("tcp 93.184.216.34:80", "tcp 192.168.7.7:80");
    let (meta, link_local) = ("tcp 169.254.169.254:80", "tcp 169.254.7.7:80");
    under(
        &internet,
        &["--net", "public"],
        &[(public, Allowed(1)), (private, Denied(0)), (meta, Denied(0))],
    );
    under(
        &internet,
        &["--net", "private"],
        &[
            (public, Denied(0)),
            (private, Allowed(1)),
            ("udp 10.9.9.9:443", Allowed(1)),
            ("tcp [fd00::7]:80", Allowed(1)),
            (meta, Denied(0)),
            (link_local, Denied(0)),
        ],
    );
    under(
        &internet,
        &["--net", "public,private"],
        &[(public, Allowed(1)), (private, Allowed(2)), (meta, Denied(0))],
    );
    under(
        &internet,
        &["--no-net"],
        &[(public, Denied(0)), (private, Denied(0)), (meta, Denied(0))],
    );
    under(
        &internet,
        &["--no-net", "--net-rule", "allow@192.168.7.7"],
        &[(public, Denied(0)), (private, Allowed(1))],
    );
}

#[test]
fn defaults_hold_where_no_rule_speaks() {
    let internet = Internet::with(&[]);
    let (public, private) = ("tcp 93.184.216.34:80", "tcp 192.168.7.7:80");
    under(&internet, &["--net-default", "allow"], &[(public, Allowed(0)), (private, Allowed(0))]);
    under(
        &internet,
        &["--net-default", "allow", "--net-rule", "deny@private"],
        &[(public, Allowed(0)), (private, Denied(1))],
    );
    under(
        &internet,
        &["--net-default-egress", "deny"],
        &[(public, Denied(0)), (private, Denied(0))],
    );
    under(
        &internet,
        &["--net-default-ingress", "allow", "--net-rule", "allow@public"],
        &[(public, Allowed(1)), (private, Denied(0))],
    );
}

#[test]
fn rules_on_ranges_protocols_and_ports_count_in_their_order() {
    let internet = Internet::with(&[]);
    under(
        &internet,
        &["--net-rule", "deny@10.1.0.0/16,allow@10.0.0.0/8:tcp:80-443,allow@[fd00::/8]:udp"],
        &[
            ("tcp 10.1.2.3:80", Denied(1)),
            ("tcp 10.2.2.3:80", Allowed(2)),
            ("tcp 10.2.2.3:443", Allowed(2)),
            ("tcp 10.2.2.3:8080", Denied(0)),
            ("udp 10.2.2.3:80", Denied(0)),
            ("udp [fd00::7]:8080", Allowed(3)),
            ("tcp [fd00::7]:8080", Denied(0)),
            ("tcp 11.0.0.1:80", Denied(0)),
        ],
    );
    under(
        &internet,
        &["--net", "public", "--net-rule", "deny@any:tcp:8080,allow@10.2.2.3"],
        &[
            ("tcp 93.184.216.34:8080", Denied(1)),
            ("udp 93.184.216.34:8080", Allowed(3)),
            ("tcp 10.2.2.3:8080", Denied(1)),
            ("tcp 10.2.2.3:80", Allowed(2)),
        ],
    );
}

#[test]
fn a_suffix_is_its_names_and_no_name_that_only_ends_so() {
    let address = |name, last| answers(&[a(name, [93, 184, 216, last])]);
    let names = json!({
        "ok.test": address("ok.test", 1), "deep.er.ok.test": address("deep.er.ok.test", 2),
        "notok.test": address("notok.test", 3), "ok.test.evil": address("ok.test.evil", 4),
    });
    let internet = Internet::of(names, &["--net-rule", "allow@*.ok.test"]);
    let asked = ["ok.test", "deep.er.ok.test", "notok.test", "ok.test.evil"];
    let questions = asked.map(|name| {
        let head = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let message = [&head[..], &encoded(name), &[0, 1, 0, 1]].concat();
        format!("udp 8.8.8.8:53 {}", crate::support::internet::digits(&message))
    });
    let said = internet.call(&questions);
    // The code stands in the last digit of the flags.
    let codes: Vec<&str> = said.iter().map(|line| &line["answered 1234818".len()..][..1]).collect();
    assert_eq!(codes, ["0", "0", "3", "3"]);
    assert_eq!(internet.heard(), ["name ok.test 1", "name deep.er.ok.test 1"]);
    let cases = asked.map(|name| json!({ "name": name }));
    let explained = internet.explain(&cases);
    let actions: Vec<&Value> = explained.iter().map(|line| &line["action"]).collect();
    assert_eq!(actions, ["allow", "allow", "deny", "deny"]);
    let said = internet.call(&[1, 2, 3, 4].map(|last| format!("tcp 93.184.216.{last}:80 6869")));
    assert_eq!(&said[..2], ["answered 6869", "answered 6869"]);
    assert!(!said[2..].iter().any(|line| line.starts_with("answered")), "{said:?}");
}

#[test]
fn a_datagram_to_where_the_host_has_no_route_is_an_error_at_once() {
    let internet = Internet::with(&["--net", "all"]);
    internet.remove_routes();
    let attempts = ["udp 93.184.216.34:443 00", "udp [2606:4700::1111]:443 00"];
    // IPv6 has no other code that a socket for datagrams is told of.
    assert_eq!(internet.call(&attempts), ["network unreachable", "permission denied"]);
}
