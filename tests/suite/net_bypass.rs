//! Attempts to pass by the policy, each from inside a real guest. What is refused is held against
//! what `msb net explain` says of the same case, and everything that would get through would be
//! heard: see support/internet.rs.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::support::internet::{a, answers};
use crate::support::{Internet, Link};

/// Addresses at which clouds give out credentials.
const CREDENTIALS: &[&str] = &[
    "tcp 169.254.169.254:80",
    "udp 169.254.169.254:80",
    "tcp 169.254.170.2:80",
    "tcp 169.254.170.23:80",
    "tcp 100.100.100.200:80",
    "tcp 168.63.129.16:80",
    "tcp 192.0.0.192:80",
    "tcp [fd00:ec2::254]:80",
    "tcp [fd00:ec2::23]:80",
];

/// Networks that are somebody's own, or nobody's.
const LOCAL: &[&str] = &[
    "tcp 10.0.0.1:80",
    "udp 10.0.0.1:443",
    "tcp 172.31.255.1:443",
    "tcp 192.168.0.1:80",
    "tcp 100.64.0.1:80",
    "tcp 169.254.1.1:80",
    "tcp 198.18.0.1:80",
    "tcp 192.0.2.1:80",
    "tcp 240.0.0.1:80",
    "tcp [fd00::1]:80",
    "udp [fd00::1]:443",
    "tcp [fec0::1]:80",
    "tcp [2001:db8::1]:80",
];

/// Addresses that no kernel would put into a packet, but its root.
const UNROUTED: &[&str] = &[
    "tcp 127.0.0.1:80",
    "udp 127.0.0.1:80",
    "tcp 127.8.8.8:8080",
    "tcp 0.0.0.0:80",
    "udp 0.0.0.0:443",
    "tcp [::1]:80",
    "udp [::1]:80",
    "tcp [::]:80",
];

/// Addresses of IPv4 in those of IPv6: mapped, compatible, NAT64, 6to4, Teredo (the server's, then
/// the client's), ISATAP.
const EMBEDDED: &[&str] = &[
    "tcp [::ffff:169.254.169.254]:80",
    "udp [::ffff:169.254.169.254]:80",
    "tcp [::ffff:127.0.0.1]:80",
    "tcp [::ffff:0.0.0.0]:80",
    "tcp [::ffff:10.0.0.1]:80",
    "tcp [::169.254.169.254]:80",
    "tcp [64:ff9b::a9fe:a9fe]:80",
    "tcp [64:ff9b::7f00:1]:80",
    "tcp [64:ff9b:1::a9fe:a9fe]:80",
    "tcp [2002:a9fe:a9fe::1]:80",
    "tcp [2002:7f00:1::1]:80",
    "tcp [2001:0:a9fe:a9fe::f7f7:f7f7]:80",
    "tcp [2001:0:808:808::5601:5601]:80",
    "tcp [2600:1::5efe:a9fe:a9fe]:80",
];

/// An attempt: its protocol and its peer.
fn parse(attempt: &str) -> (&str, SocketAddr) {
    let (protocol, peer) = attempt.split_once(' ').unwrap();
    (protocol, peer.parse().unwrap())
}

/// Arguments of `explain`, with the names that resolved to the address.
fn case(attempt: &str, names: &[&str]) -> Value {
    let (protocol, peer) = parse(attempt);
    json!({
        "direction": "egress", "protocol": protocol, "address": peer.ip(), "port": peer.port(), "names": names, "tls": "unseen",
    })
}

/// The attempt as a frame.
fn frame(link: &Link, attempt: &str) -> Vec<u8> {
    let (protocol, peer) = parse(attempt);
    match protocol {
        "tcp" => link.syn(peer.ip(), peer.port(), 40000 + peer.port()),
        _ => link.datagram(peer.ip(), peer.port(), b"x"),
    }
}

/// A line of the log, or of `explain`, as far as they say the same.
fn told(line: &Value) -> Value {
    let fields = ["action", "protocol", "address", "port", "reason", "rule"];
    fields.iter().map(|field| line[*field].clone()).collect()
}

/// A way to make attempts.
#[derive(Clone, Copy, PartialEq)]
enum How {
    /// As any program does it.
    Sockets,
    /// As root can.
    Frames,
}

/// The attempts are made, and denied for that reason, as `explain` says; nothing of them gets out.
#[track_caller]
fn refused(internet: &Internet, how: How, attempts: &[&str], names: &[&str], reason: &str) {
    let from = internet.log().len();
    match how {
        How::Sockets => {
            let said = internet.call(attempts);
            let reached = said.iter().any(|line| line.starts_with("answered"));
            assert!(!reached && said.len() == attempts.len(), "{said:#?}");
        }
        How::Frames => {
            let frames = attempts.iter().map(|attempt| frame(&internet.link, attempt));
            internet.send(&frames.collect::<Vec<_>>(), 1);
        }
    }
    let events = internet.log_from(from);
    let opened = events.iter().any(|event| event["type"] == "open");
    assert!(!opened, "{events:#?}");
    let mut denied: Vec<Value> =
        events.iter().filter(|event| event["type"] == "deny").map(told).collect();
    denied.dedup();
    let cases: Vec<Value> = attempts.iter().map(|attempt| case(attempt, names)).collect();
    let explained: Vec<Value> = internet.explain(&cases).iter().map(told).collect();
    assert_eq!(denied, explained);
    for line in &explained {
        assert_eq!((&line[0], &line[4]), (&json!("deny"), &json!(reason)), "{line}");
    }
    let heard = internet.heard();
    let outside = heard.iter().any(|line| !line.starts_with("name "));
    assert!(!outside, "{heard:#?}");
}

#[test]
fn the_services_of_clouds_that_give_out_credentials_are_refused() {
    let internet = Internet::with(&[]);
    refused(&internet, How::Sockets, CREDENTIALS, &[], "default");
    // They are none of the local network's either.
    internet.modify(&["--net", "public,private,host"]);
    refused(&internet, How::Sockets, CREDENTIALS, &[], "default");
}

#[test]
fn local_networks_and_addresses_of_special_use_are_refused() {
    let internet = Internet::with(&[]);
    refused(&internet, How::Sockets, LOCAL, &[], "default");
}

#[test]
fn ipv4_inside_of_ipv6_is_refused_as_what_it_is() {
    let internet = Internet::with(&[]);
    refused(&internet, How::Frames, EMBEDDED, &[], "default");
    // Also where just what is inside was forbidden.
    internet.modify(&["--net", "all", "--net-rule", "deny@169.254.0.0/16,deny@loopback"]);
    let inside = |attempt: &&&str| attempt.contains("169.254") || attempt.contains("a9fe");
    let inside: Vec<&str> = EMBEDDED.iter().filter(inside).copied().collect();
    refused(&internet, How::Frames, &inside, &[], "rule");
}

#[test]
fn the_hosts_loopback_is_not_reached_by_its_own_addresses() {
    let internet = Internet::with(&[]);
    refused(&internet, How::Frames, UNROUTED, &[], "default");
    // Who may reach the host may do so by its name.
    internet.modify(&["--net", "public,private,host"]);
    refused(&internet, How::Frames, UNROUTED, &[], "default");
}

#[test]
fn a_host_that_is_denied_is_so_by_each_of_its_addresses() {
    let internet = Internet::with(&["--net", "all", "--net-rule", "deny@host"]);
    let gateways = [
        format!("tcp {}:80", internet.link.gateway),
        format!("udp {}:443", internet.link.gateway),
        "tcp [fe80::1]:80".to_owned(),
        "tcp 127.0.0.1:80".to_owned(),
        "tcp 0.0.0.0:80".to_owned(),
        "tcp [::1]:80".to_owned(),
        "tcp [::ffff:127.0.0.1]:80".to_owned(),
    ];
    let gateways = gateways.each_ref().map(String::as_str);
    refused(&internet, How::Frames, &gateways, &[], "rule");
}

/// The attempts that are denied above succeed when all is allowed: so the servers of these tests
/// listen, and the refusals are the policy's.
#[test]
fn the_same_attempts_go_through_where_everything_is_allowed() {
    let internet = Internet::with(&["--net", "all"]);
    let sockets = [CREDENTIALS, LOCAL].concat();
    let said = internet.call(&sockets);
    let reached = said.iter().all(|line| line.starts_with("answered"));
    assert!(reached && said.len() == sockets.len(), "{said:#?}");
    let frames = [EMBEDDED, UNROUTED].concat();
    let sent = frames.iter().map(|attempt| frame(&internet.link, attempt));
    internet.send(&sent.collect::<Vec<_>>(), 1);
    let events = internet.log_from(0);
    let denied: Vec<&Value> = events.iter().filter(|event| event["type"] == "deny").collect();
    assert!(denied.is_empty(), "{denied:#?}");
    let mut expected: Vec<String> = [sockets, frames].concat().into_iter().map(arrives).collect();
    let mut heard = internet.heard();
    heard.retain(|line| !line.starts_with("end "));
    expected.sort();
    heard.sort();
    assert_eq!(heard, expected);
}

/// Returns the address that an attempt arrives at: on Linux the unspecified address is the host
/// itself, and a mapped one its IPv4 address.
fn arrives(attempt: &str) -> String {
    let (protocol, peer) = parse(attempt);
    let address = match peer.ip().to_canonical() {
        IpAddr::V4(address) if address.is_unspecified() => "127.0.0.1".parse().unwrap(),
        IpAddr::V6(address) if address.is_unspecified() => "::1".parse().unwrap(),
        address => address,
    };
    format!("{protocol} {}", SocketAddr::new(address, peer.port()))
}

#[test]
fn other_ways_to_find_names_are_closed_where_all_else_is_open() {
    let internet = Internet::with(&["--net", "all"]);
    // DNS over TLS and over QUIC; LLMNR and NetBIOS of one host.
    let one = [
        "tcp 1.1.1.1:853",
        "udp 1.1.1.1:853",
        "tcp [2606:4700:4700::1111]:853",
        "udp [2606:4700:4700::1111]:853",
        "tcp 10.0.0.1:5355",
        "udp 10.0.0.1:137",
    ];
    refused(&internet, How::Sockets, &one, &[], "other-resolver");
    // The same, and mDNS, of all hosts around.
    let many = [
        "udp 224.0.0.251:5353",
        "udp [ff02::fb]:5353",
        "udp 224.0.0.252:5355",
        "udp [ff02::1:3]:5355",
        "udp 255.255.255.255:137",
    ];
    refused(&internet, How::Frames, &many, &[], "other-resolver");
    internet.modify(&["--net", "public"]);
    refused(&internet, How::Frames, &many, &[], "default");
}

#[test]
fn nothing_is_carried_to_many_at_once() {
    let internet = Internet::with(&["--net", "all"]);
    let many = [
        "udp 224.0.0.1:8080",
        "udp 239.255.255.250:443",
        "udp 255.255.255.255:8080",
        "udp [ff02::1]:8080",
        "udp [ff05::2]:8080",
    ];
    refused(&internet, How::Frames, &many, &[], "multicast");
}

#[test]
fn an_address_that_no_allowed_name_was_found_to_have_is_refused() {
    let names = json!({ "ok.test": answers(&[a("ok.test", [93, 184, 216, 34])]) });
    let internet = Internet::of(names, &["--net-rule", "allow@ok.test"]);
    let hard_coded =
        ["tcp 93.184.216.34:443", "tcp 93.184.216.35:443", "tcp 8.8.8.8:443", "udp 8.8.8.8:443"];
    refused(&internet, How::Sockets, &hard_coded, &[], "default");
    // When the name was asked for, the one that it has is not, and all others are.
    let ask = ["exec", "x", "--", "nslookup", "-type=a", "ok.test"];
    internet.run(ask, b"").done();
    refused(&internet, How::Sockets, &hard_coded[1..], &[], "default");
    let quic = ["udp 93.184.216.34:443"];
    refused(&internet, How::Sockets, &quic, &["ok.test"], "quic");
    assert_eq!(internet.call(&["tcp 93.184.216.34:443 6869"]), ["answered 6869"]);
}

#[test]
fn a_datagram_in_pieces_is_judged_as_the_whole_that_it_is() {
    let internet = Internet::with(&[]);
    let [IpAddr::V4(meta), IpAddr::V4(public)] =
        ["169.254.169.254", "93.184.216.34"].map(|address| address.parse().unwrap())
    else {
        panic!("these are of IPv4");
    };
    // Of eight bytes each: the first has no more than the ports. And from the last one on.
    let mut pieces = internet.link.pieces(meta, 80, &[7; 100], (1, 8));
    pieces.extend(internet.link.pieces(meta, 443, &[7; 3000], (2, 1400)).into_iter().rev());
    pieces.extend(internet.link.pieces(public, 443, &[7; 3000], (3, 1400)).into_iter().rev());
    internet.send(&pieces, 1);
    let events = internet.log_from(0);
    let mut found: Vec<Value> = events.iter().map(told).collect();
    found.retain(|line| !line[1].is_null());
    let cases = ["udp 169.254.169.254:80", "udp 169.254.169.254:443", "udp 93.184.216.34:443"];
    let cases = cases.map(|attempt| case(attempt, &[]));
    let explained: Vec<Value> = internet.explain(&cases).iter().map(told).collect();
    assert_eq!(found, explained);
    let actions: Vec<&Value> = found.iter().map(|line| &line[0]).collect();
    assert_eq!(actions, ["deny", "deny", "allow"]);
    assert_eq!(internet.heard(), ["udp 93.184.216.34:443"]);
}

#[test]
fn who_may_not_be_reached_is_not_asked_for_an_echo() {
    let internet = Internet::with(&[]);
    let ping = "for address in 10.0.0.1 169.254.169.254 fd00:ec2::254; do ping -c 1 -W 1 $address >/dev/null 2>&1 && echo $address; done; true";
    let said = internet.run(["exec", "x", "--", "sh", "-c", ping], b"");
    said.is(0, "", "");
    let events = internet.log_from(0);
    let found: Vec<Value> = events.iter().map(told).collect();
    let cases = [
        ("icmpv4", "10.0.0.1"),
        ("icmpv4", "169.254.169.254"),
        ("icmpv6", "fd00:ec2::254"),
    ]
    .map(|(protocol, address)| json!({ "direction": "egress", "protocol": protocol, "address": address }));
    let explained: Vec<Value> = internet.explain(&cases).iter().map(told).collect();
    assert_eq!(found, explained);
    assert!(found.iter().all(|line| line[0] == "deny"), "{found:#?}");
}

#[test]
fn packets_with_forged_sources_go_nowhere() {
    let internet = Internet::with(&["--net", "all"]);
    let link = &internet.link;
    let target = "93.184.216.34".parse().unwrap();
    let target6 = "2600::1".parse().unwrap();
    let [a, b, c, d]: [u8; 4] = link.v4.octets();
    let mut forged = Vec::new();
    for source in [
        "10.0.0.1".parse().unwrap(),
        "127.0.0.1".parse().unwrap(),
        "0.0.0.0".parse().unwrap(),
        "255.255.255.255".parse().unwrap(),
        "93.184.216.34".parse().unwrap(),
        IpAddr::from([a, b, c, d ^ 1]),
        link.gateway,
    ] {
        forged.push(link.syn_from(source, target, 80, 41000));
        forged.push(link.datagram_from(source, target, 443, b"forged"));
    }
    for source in ["::1", "fe80::1", "2600::1", "::ffff:10.0.0.1", "fd00::1", "ff02::1"] {
        let source = source.parse().unwrap();
        forged.push(link.syn_from(source, target6, 80, 41000));
        forged.push(link.datagram_from(source, target6, 443, b"forged"));
    }
    internet.send(&forged, 1);
    assert_eq!(internet.log_from(0), [] as [Value; 0]);
    // And the guest's own gets there.
    internet.send(&[link.datagram(target, 443, b"own")], 1);
    let events = internet.log_from(0);
    assert_eq!(events.len(), 1, "{events:#?}");
    assert_eq!(internet.heard(), ["udp 93.184.216.34:443"]);
}
