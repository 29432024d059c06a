use super::*;
use libmsb::net::NetSpec;
use libmsb::net::rule::parse_list;

fn host() -> HostFacts {
    HostFacts {
        gateways: vec!["172.16.0.1".parse().unwrap(), "fd42:6d73:62::1".parse().unwrap()],
        host_addresses: vec!["192.168.1.5".parse().unwrap(), "5.5.5.5".parse().unwrap()],
        nat64: Vec::new(),
    }
}

/// Builds an engine from the name of a profile, or from rules with egress denied.
fn judge(policy: &str) -> PolicyEngine {
    let policy = match policy {
        "public" => NetSpec::public().policy,
        "all" => Policy { egress: Action::Allow, ..Policy::nothing() },
        "" => Policy::nothing(),
        rules => Policy { rules: parse_list(rules).unwrap(), ..Policy::nothing() },
    };
    PolicyEngine::new(policy, true, host())
}

fn facts(protocol: Protocol, peer: &str) -> ConnectionFacts {
    let (address, port) = match peer.parse::<std::net::SocketAddr>() {
        Ok(peer) => (peer.ip(), Some(peer.port())),
        Err(_) => (peer.parse().unwrap(), None),
    };
    ConnectionFacts {
        direction: Direction::Egress,
        protocol,
        address,
        port,
        names: Vec::new(),
        tls: TlsPeek::Unseen,
    }
}

fn tcp(peer: &str) -> ConnectionFacts {
    facts(Protocol::Tcp, peer)
}

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

fn found(mut facts: ConnectionFacts, names: &[&str]) -> ConnectionFacts {
    facts.names = names.iter().map(|text| name(text)).collect();
    facts
}

fn hello(mut facts: ConnectionFacts, sni: Option<&str>, ech: bool) -> ConnectionFacts {
    facts.tls = TlsPeek::Hello { sni: sni.map(name), ech };
    facts
}

fn short(verdict: Verdict) -> (Action, Option<usize>, VerdictReason) {
    (verdict.action, verdict.rule, verdict.reason)
}

#[test]
fn the_default_is_the_internet_and_nothing_else() {
    let judge = judge("public");
    for peer in [
        "1.1.1.1:443",
        "[2606:4700::1]:80",
        "[64:ff9b::1.1.1.1]:80",
        "[::ffff:1.1.1.1]:80",
        "[2002:101:101::1]:80",
    ] {
        assert_eq!(
            short(judge.verdict(&tcp(peer))),
            (Action::Allow, Some(1), VerdictReason::Rule),
            "{peer}"
        );
    }
    for peer in [
        "127.0.0.1:80",
        "[::1]:80",
        "0.0.0.0:80",
        "[::]:80",
        "10.0.0.1:80",
        "100.64.0.1:80",
        "100.100.100.200:80",
        "169.254.169.254:80",
        "169.254.1.1:80",
        "172.16.0.1:80",
        "192.168.1.5:80",
        "5.5.5.5:80",
        "224.0.0.1:80",
        "255.255.255.255:80",
        "198.18.0.1:80",
        "168.63.129.16:80",
        "[fd00:ec2::254]:80",
        "[fd42:6d73:62::1]:80",
        "[fe80::1]:80",
        "[::ffff:169.254.169.254]:80",
        "[::ffff:127.0.0.1]:80",
        "[::127.0.0.1]:80",
        "[64:ff9b::a9fe:a9fe]:80",
        "[64:ff9b::10.0.0.1]:80",
        "[64:ff9b:1::a9fe:a9fe]:80",
        "[2002:a9fe:a9fe::1]:80",
        "[2001:0:808:808::f5ff:fffe]:80",
        "[2606:4700::5efe:10.0.0.1]:80",
        "[2001:db8::1]:80",
    ] {
        assert_eq!(
            short(judge.verdict(&tcp(peer))),
            (Action::Deny, None, VerdictReason::Default),
            "{peer}"
        );
    }
}

#[test]
fn the_first_matching_rule_decides() {
    let judge = judge(
        "deny@1.1.1.1:tcp:80,allow@1.1.1.0/24:tcp:80-443,deny@any:udp,allow@1.1.1.1,\
         allow:ingress@any",
    );
    assert_eq!(judge.verdict(&tcp("1.1.1.1:80")).rule, Some(1));
    assert_eq!(judge.verdict(&tcp("1.1.1.2:80")).rule, Some(2));
    assert_eq!(judge.verdict(&facts(Protocol::Udp, "1.1.1.1:80")).rule, Some(3));
    assert_eq!(judge.verdict(&tcp("1.1.1.1:8080")).rule, Some(4));
    assert_eq!(judge.verdict(&facts(Protocol::Icmpv4, "1.1.1.1")).rule, Some(4));
    assert_eq!(
        short(judge.verdict(&tcp("1.1.1.2:8080"))),
        (Action::Deny, None, VerdictReason::Default)
    );
    let inward = ConnectionFacts { direction: Direction::Ingress, ..tcp("9.9.9.9:80") };
    assert_eq!(judge.verdict(&inward).rule, Some(5));
}

#[test]
fn a_deny_rule_matches_any_destination_and_an_allow_rule_needs_all() {
    let denies = judge("deny@10.0.0.0/8,deny@meta,allow@any");
    for peer in [
        "[2002:a00:1::1]:80",
        "[64:ff9b::10.0.0.1]:80",
        "[::ffff:10.0.0.1]:80",
        "[2606:4700::5efe:10.0.0.1]:80",
    ] {
        assert_eq!(denies.verdict(&tcp(peer)).rule, Some(1), "{peer}");
    }
    assert_eq!(denies.verdict(&tcp("[64:ff9b::a9fe:a9fe]:80")).rule, Some(2));
    let allows = judge("allow@10.0.0.0/8,allow@[2002::/16]");
    assert!(allows.verdict(&tcp("[64:ff9b::10.0.0.1]:80")).allows());
    assert!(allows.verdict(&tcp("[2002:101:101::1]:80")).allows());
    assert!(!allows.verdict(&tcp("[2002:a9fe:a9fe::1]:80")).allows());
    assert!(!judge("allow@10.0.0.0/8").verdict(&tcp("[2002:a00:1::1]:80")).allows());
    assert!(!judge("allow@private").verdict(&tcp("[fd00::5efe:127.0.0.1]:80")).allows());
}

#[test]
fn other_resolvers_are_blocked() {
    for policy in ["public", "all", "allow@any", "allow@public:tcp:1-65535"] {
        let judge = judge(policy);
        assert_eq!(judge.verdict(&tcp("1.1.1.1:53")).reason, VerdictReason::Dns);
        assert_eq!(judge.verdict(&facts(Protocol::Udp, "10.0.0.1:53")).reason, VerdictReason::Dns);
        assert_eq!(
            judge.verdict(&tcp("1.1.1.1:853")).reason,
            VerdictReason::OtherResolver,
            "{policy}"
        );
    }
    let everything = judge("allow@any");
    for peer in ["1.1.1.1:853", "224.0.0.251:5353", "224.0.0.252:5355", "10.0.0.255:137"] {
        let verdict = everything.verdict(&facts(Protocol::Udp, peer));
        assert_eq!(short(verdict), (Action::Deny, None, VerdictReason::OtherResolver), "{peer}");
    }
    assert!(judge("allow@1.1.1.1:tcp:853").verdict(&tcp("1.1.1.1:853")).allows());
    let inward = ConnectionFacts { direction: Direction::Ingress, ..tcp("9.9.9.9:53") };
    assert_eq!(judge("").verdict(&inward).reason, VerdictReason::Default);
}

#[test]
fn a_host_that_is_denied_is_denied_by_each_of_its_addresses() {
    let judge = judge("deny@host,allow@any");
    for peer in [
        "172.16.0.1:80",
        "[fe80::1]:80",
        "192.168.1.5:80",
        "127.0.0.1:80",
        "0.0.0.0:80",
        "[::ffff:127.0.0.1]:80",
    ] {
        assert_eq!(judge.verdict(&tcp(peer)).rule, Some(1), "{peer}");
    }
    assert_eq!(judge.verdict(&tcp("192.168.1.6:80")).rule, Some(2));
}

#[test]
fn multicast_and_broadcast_are_denied() {
    let everything = judge("all");
    for peer in ["224.0.0.1:5000", "239.255.255.250:1900", "255.255.255.255:67", "[ff02::1]:5000"] {
        let verdict = everything.verdict(&facts(Protocol::Udp, peer));
        let multicast = (Action::Deny, None, VerdictReason::Multicast);
        assert_eq!(short(verdict), multicast, "{peer}");
    }
    let denied = judge("").verdict(&facts(Protocol::Udp, "224.0.0.1:5000"));
    assert_eq!(denied.reason, VerdictReason::Default);
}

#[test]
fn a_name_admits_the_addresses_that_it_resolved_to() {
    let judge = judge("allow@example.com,allow@*.example.org:tcp:443");
    let peer = || tcp("93.184.216.34:443");
    assert_eq!(short(judge.verdict(&peer())), (Action::Deny, None, VerdictReason::Default));
    let verdict = judge.verdict(&found(peer(), &["example.com"]));
    assert_eq!((verdict.action, verdict.rule, verdict.needs_peek), (Action::Allow, Some(1), true));
    assert_eq!(judge.verdict(&found(peer(), &["other.net", "a.b.example.org"])).rule, Some(2));
    assert!(!judge.verdict(&found(peer(), &["other.net"])).allows());
    assert!(!judge.verdict(&found(tcp("93.184.216.34:80"), &["a.example.org"])).allows());
    let icmp = found(facts(Protocol::Icmpv4, "93.184.216.34"), &["example.com"]);
    assert_eq!((judge.verdict(&icmp).allows(), judge.verdict(&icmp).needs_peek), (true, false));
}

#[test]
fn the_name_in_tls_must_be_the_rules_and_pinned() {
    let judge = judge("allow@example.com,allow@evil.example.com");
    let peer = || found(tcp("93.184.216.34:443"), &["example.com"]);
    let reason = |sni, ech| short(judge.verdict(&hello(peer(), sni, ech)));
    assert_eq!(reason(Some("example.com"), false), (Action::Allow, Some(1), VerdictReason::Rule));
    assert_eq!(reason(Some("other.net"), false).2, VerdictReason::SniOther);
    assert_eq!(reason(Some("evil.example.com"), false).2, VerdictReason::SniOther);
    assert_eq!(reason(None, false).2, VerdictReason::SniMissing);
    assert_eq!(reason(Some("example.com"), true).2, VerdictReason::Ech);
    let hard_coded = hello(tcp("6.6.6.6:443"), Some("example.com"), false);
    assert_eq!(
        short(judge.verdict(&hard_coded)),
        (Action::Deny, None, VerdictReason::SniNotPinned)
    );
    let plain = ConnectionFacts { tls: TlsPeek::Plain, ..peer() };
    assert!(judge.verdict(&plain).allows() && !judge.verdict(&plain).needs_peek);
}

#[test]
fn quic_needs_a_rule_that_says_udp() {
    let peer = || found(facts(Protocol::Udp, "93.184.216.34:443"), &["example.com"]);
    assert_eq!(judge("allow@example.com").verdict(&peer()).reason, VerdictReason::Quic);
    assert!(judge("allow@example.com:udp:443").verdict(&peer()).allows());
    let ntp = found(facts(Protocol::Udp, "93.184.216.34:123"), &["example.com"]);
    assert!(judge("allow@example.com").verdict(&ntp).allows());
}

#[test]
fn names_do_not_admit_addresses_that_are_not_public() {
    let rules = "allow@example.com";
    for peer in [
        "10.0.0.1:80",
        "169.254.169.254:80",
        "127.0.0.1:80",
        "172.16.0.1:80",
        "5.5.5.5:80",
        "[2002:a00:1::1]:80",
    ] {
        let verdict = judge(rules).verdict(&found(tcp(peer), &["example.com"]));
        assert_eq!(short(verdict), (Action::Deny, None, VerdictReason::NotPublic), "{peer}");
    }
    let trusting = PolicyEngine::new(judge(rules).policy, false, host());
    assert!(trusting.verdict(&found(tcp("10.0.0.1:80"), &["example.com"])).allows());
    for peer in ["169.254.169.254:80", "127.0.0.1:80", "172.16.0.1:80", "0.0.0.0:80"] {
        assert!(!trusting.verdict(&found(tcp(peer), &["example.com"])).allows(), "{peer}");
    }
}

#[test]
fn a_denied_name_is_denied_by_the_name_in_tls_too() {
    let judge = judge("deny@evil.test,allow@public");
    let verdict = judge.verdict(&tcp("6.6.6.6:443"));
    assert_eq!((verdict.rule, verdict.needs_peek), (Some(2), true));
    assert_eq!(judge.verdict(&hello(tcp("6.6.6.6:443"), Some("evil.test"), false)).rule, Some(1));
    assert_eq!(judge.verdict(&hello(tcp("6.6.6.6:443"), Some("good.test"), false)).rule, Some(2));
    assert_eq!(judge.verdict(&found(tcp("6.6.6.6:80"), &["evil.test"])).rule, Some(1));
    assert!(!judge.verdict(&facts(Protocol::Udp, "6.6.6.6:443")).needs_peek);
}

#[test]
fn queries_are_allowed_if_the_name_can_resolve_to_an_allowed_address() {
    let asks = |policy: &str, text: &str| short(judge(policy).query_verdict(Some(&name(text))));
    let allowed = |rule| (Action::Allow, rule, VerdictReason::Rule);
    let denied = |rule| (Action::Deny, rule, VerdictReason::Rule);
    let by_default = (Action::Deny, None, VerdictReason::Default);
    assert_eq!(asks("public", "example.com"), allowed(Some(1)));
    assert_eq!(asks("all", "example.com"), (Action::Allow, None, VerdictReason::Default));
    assert_eq!(asks("", "example.com"), by_default);
    // Unlike in the reference, rules on addresses alone leave DNS working.
    assert_eq!(asks("deny@1.2.3.4,allow@public", "example.com"), allowed(Some(2)));
    assert_eq!(asks("allow@10.0.0.0/8", "example.com"), allowed(Some(1)));
    assert_eq!(asks("allow@public,deny@any", "example.com"), allowed(Some(1)));
    assert_eq!(asks("deny@any,allow@public", "example.com"), denied(Some(1)));
    assert_eq!(asks("allow@example.com", "example.com"), allowed(Some(1)));
    assert_eq!(asks("allow@example.com:tcp:443", "example.com"), allowed(Some(1)));
    assert_eq!(asks("allow@example.com", "tunnel.evil.test"), by_default);
    assert_eq!(asks("allow@public,deny@evil.test", "evil.test"), denied(Some(2)));
    assert_eq!(asks("deny@evil.test:tcp:80,allow@public", "evil.test"), allowed(Some(2)));
    assert_eq!(asks("deny@dns,allow@public", "example.com"), denied(Some(1)));
    assert_eq!(asks("allow@dns", "example.com"), allowed(Some(1)));
    assert_eq!(asks("deny@host:udp:53,allow@public", "example.com"), denied(Some(1)));
    assert_eq!(asks("deny@host,allow@public", "example.com"), allowed(Some(2)));
    assert_eq!(asks("allow@host", "example.com"), by_default);
}

#[test]
fn an_answer_that_is_not_public_is_accepted_if_a_rule_allows_it() {
    let believed = |policy: &str, address: &str| {
        judge(policy).answer_verdict(address.parse().unwrap()).allows()
    };
    assert!(believed("public", "1.1.1.1"));
    for address in [
        "10.0.0.1",
        "127.0.0.1",
        "0.0.0.0",
        "::",
        "169.254.169.254",
        "100.64.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "fe80::1",
        "172.16.0.1",
    ] {
        assert!(!believed("public", address), "{address}");
        assert!(believed("all", address), "{address}");
    }
    assert!(believed("allow@10.0.0.0/8:tcp:443", "10.0.0.1"));
    assert!(!believed("deny@10.0.0.1,allow@private", "10.0.0.1"));
    assert!(believed("deny@10.0.0.1:tcp:22,allow@private", "10.0.0.1"));
    assert!(!believed("allow@example.com", "10.0.0.1"));
}

#[test]
fn an_intercepted_port_needs_tls_with_a_server_name() {
    use VerdictReason::{Default, InterceptedNameMissing, InterceptedQuic, NotTls, Rule};
    let bypass = vec!["b.test".parse().unwrap()];
    let tls = TlsSpec { intercept: true, bypass, ..TlsSpec::default() };
    let engine = judge("all").with_tls(tls.clone());
    let seen = |facts: ConnectionFacts| {
        let verdict = engine.verdict(&facts);
        (verdict.action, verdict.reason, verdict.needs_peek, verdict.intercepted)
    };
    let (allow, deny) = (Action::Allow, Action::Deny);
    let https = || tcp("1.2.3.4:443");
    assert_eq!(seen(https()), (allow, Default, true, false));
    assert_eq!(seen(hello(https(), Some("a.test"), false)), (allow, Default, false, true));
    assert_eq!(seen(hello(https(), Some("a.test"), true)), (allow, Default, false, true));
    assert_eq!(seen(hello(https(), Some("b.test"), false)), (allow, Default, false, false));
    assert_eq!(seen(hello(https(), None, false)), (deny, InterceptedNameMissing, false, false));
    let plain = ConnectionFacts { tls: TlsPeek::Plain, ..https() };
    assert_eq!(seen(plain), (deny, NotTls, false, false));
    let quic = facts(Protocol::Udp, "1.2.3.4:443");
    assert_eq!(seen(quic.clone()), (deny, InterceptedQuic, false, false));
    assert_eq!(seen(tcp("1.2.3.4:444")), (allow, Default, false, false));
    let ingress = ConnectionFacts { direction: Direction::Ingress, ..https() };
    assert_eq!(seen(ingress), (allow, Default, false, false));
    let quic_allowed = judge("all").with_tls(TlsSpec { allow_quic: true, ..tls.clone() });
    assert!(quic_allowed.verdict(&quic).allows());
    // A rule on a name is judged by the outer name of an encrypted ClientHello, which is the one that
    // the connection ends at.
    let by_name = judge("allow@a.test").with_tls(tls);
    let pinned = found(https(), &["a.test"]);
    let verdict = by_name.verdict(&hello(pinned.clone(), Some("a.test"), true));
    assert_eq!((verdict.action, verdict.reason, verdict.intercepted), (allow, Rule, true));
    assert!(!by_name.verdict(&hello(pinned, Some("e.test"), false)).allows());
}
