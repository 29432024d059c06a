//! Policy evaluation: the verdict on a connection or a DNS query, as a pure function of the policy
//! and the facts.
//!
//! The first rule that matches the connection decides; if none matches, the default of its
//! direction. Exceptions to that order:
//!
//! - Port 53 is never connected to. Queries go to the built-in resolver ([`crate::dns`]), whatever
//!   their destination.
//! - Other name services ([`RESOLVER_PORTS`]) are blocked unless a rule allows that very port: names
//!   resolved there would never be seen here.
//! - A rule on a name admits addresses that the resolver returned for the name, for the lifetime of
//!   the answer. They must be public; private ones are accepted if rebinding protection is off;
//!   others never.
//! - If such a rule admits TCP, or a rule on a name precedes the one that does, the verdict is
//!   preliminary until the guest's first bytes are known. If they are a TLS ClientHello, its server
//!   name must match the rule and be pinned to the address. A hidden name (no SNI, or an encrypted
//!   ClientHello) admits nothing. QUIC hides it as well, so UDP to port 443 needs a rule that names
//!   udp.
//! - With TLS interception, TCP to an intercepted port needs a ClientHello with a server name, whether
//!   a rule names it or not. The name that counts is the outer one, since `msb-intercept` ends the
//!   connection. UDP to such a port is denied: QUIC would bypass the interception.
//! - Multicast and broadcast are never forwarded, whatever allows them.

use std::net::IpAddr;

use libmsb::net::name::HostName;
use libmsb::net::policy::Policy;
use libmsb::net::rule::{Action, Direction, Group, Protocol, Rule, Target};
use libmsb::net::tls::TlsSpec;
use serde::{Deserialize, Serialize};

use crate::address::HostFacts;

/// Port of DNS.
const DNS_PORT: u16 = 53;
/// Port of QUIC, which hides the server name.
const QUIC_PORT: u16 = 443;
/// Other name services: DNS over TLS and QUIC (RFC 7858, 9250), mDNS (6762), LLMNR (4795), NetBIOS
/// (1002).
const RESOLVER_PORTS: [(Protocol, u16); 6] = [
    (Protocol::Tcp, 853),
    (Protocol::Udp, 853),
    (Protocol::Udp, 5353),
    (Protocol::Tcp, 5355),
    (Protocol::Udp, 5355),
    (Protocol::Udp, 137),
];

/// The known facts about a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionFacts {
    /// Direction in which the connection is opened.
    pub direction: Direction,
    /// Protocol.
    pub protocol: Protocol,
    /// Address of the remote side.
    pub address: IpAddr,
    /// Port of the remote side (egress) or of the guest (ingress). ICMP has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Names that the resolver returned this address for, and whose answers are still valid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<HostName>,
    /// Result of checking the guest's first bytes.
    #[serde(default)]
    pub tls: TlsPeek,
}

/// Result of checking the guest's first bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsPeek {
    /// No bytes were checked.
    #[default]
    Unseen,
    /// They are not TLS.
    Plain,
    /// They are a ClientHello.
    Hello {
        /// Server name (SNI).
        sni: Option<HostName>,
        /// Set if an encrypted ClientHello (ECH) is present.
        ech: bool,
    },
}

/// The verdict on a connection or query, with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Allow or deny.
    pub(crate) action: Action,
    /// Number of the deciding rule, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<usize>,
    /// Reason.
    pub(crate) reason: VerdictReason,
    /// Set if the first bytes of the guest can change the verdict: evaluate again with them.
    #[serde(rename = "look", skip_serializing_if = "std::ops::Not::not")]
    pub(crate) needs_peek: bool,
    /// Set if `msb-intercept` gets the connection.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) intercepted: bool,
}

impl Verdict {
    /// Returns whether the verdict is to allow, possibly preliminary.
    pub fn allows(&self) -> bool {
        self.action == Action::Allow
    }
}

/// Reason of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerdictReason {
    /// A rule matched.
    Rule,
    /// No rule matched, and the default applies.
    Default,
    /// A DNS query, which msb-net answers itself.
    Dns,
    /// Another name service, which would bypass msb-net.
    OtherResolver,
    /// A rule allows a name, but the ClientHello has another.
    SniOther,
    /// The ClientHello has a name that a rule allows, but the resolver did not return this address
    /// for it.
    SniNotPinned,
    /// A rule allows a name, but the ClientHello has none.
    SniMissing,
    /// A rule allows a name, but the ClientHello has an encrypted one.
    Ech,
    /// A rule allows a name, but QUIC hides the name.
    Quic,
    /// A rule allows the name, but a name may not resolve to this address.
    NotPublic,
    /// DNS rebinding: a name resolved to an address that is not public and that no rule allows.
    Rebinding,
    /// Multicast or broadcast, which is never forwarded.
    Multicast,
    /// The port is intercepted, but the guest does not speak TLS.
    NotTls,
    /// The port is intercepted, but the ClientHello has no server name.
    InterceptedNameMissing,
    /// The port is intercepted, and QUIC would bypass the interception.
    InterceptedQuic,
}

impl VerdictReason {
    /// Returns the reason as text.
    pub(crate) fn text(self) -> &'static str {
        match self {
            VerdictReason::Rule => "the rule matches",
            VerdictReason::Default => "no rule matches",
            VerdictReason::Dns => "msb-net answers DNS queries itself, whatever their destination",
            VerdictReason::OtherResolver => {
                "this name service bypasses msb-net; a rule for exactly this port allows it"
            }
            VerdictReason::SniOther => "no rule allows the server name in the ClientHello here",
            VerdictReason::SniNotPinned => {
                "the server name in the ClientHello did not resolve to this address"
            }
            VerdictReason::SniMissing => "the ClientHello has no server name",
            VerdictReason::Ech => "the ClientHello has an encrypted server name",
            VerdictReason::Quic => "QUIC hides the server name; a rule with :udp:443 allows it",
            VerdictReason::NotPublic => {
                "names may not resolve to non-public addresses; a rule on the address allows it"
            }
            VerdictReason::Rebinding => {
                "the name resolves to a non-public address; a rule on the address allows it"
            }
            VerdictReason::Multicast => "multicast and broadcast are not forwarded",
            VerdictReason::NotTls => "TLS is intercepted on this port, and this is not TLS",
            VerdictReason::InterceptedNameMissing => {
                "TLS is intercepted on this port, and the ClientHello has no server name"
            }
            VerdictReason::InterceptedQuic => {
                "TLS is intercepted on this port, and QUIC would bypass it; --no-block-quic allows it"
            }
        }
    }
}

/// Result of matching one rule against a connection.
enum RuleMatch {
    /// The rule matches.
    Yes,
    /// The rule does not match.
    No,
    /// The rule would match, but for this reason.
    Blocked(VerdictReason),
}

/// The policy engine: a policy and the facts about the host that it needs.
#[derive(Clone, Debug)]
pub struct PolicyEngine {
    policy: Policy,
    rebind_protection: bool,
    host: HostFacts,
    tls: TlsSpec,
}

impl PolicyEngine {
    /// Creates an engine. `rebind_protection`: answers with addresses that are not public are denied.
    pub fn new(policy: Policy, rebind_protection: bool, host: HostFacts) -> PolicyEngine {
        PolicyEngine { policy, rebind_protection, host, tls: TlsSpec::default() }
    }

    /// Returns the engine with TLS interception.
    pub fn with_tls(self, tls: TlsSpec) -> PolicyEngine {
        PolicyEngine { tls, ..self }
    }

    /// Returns the policy.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns the facts about the host.
    pub(crate) fn host(&self) -> &HostFacts {
        &self.host
    }

    /// Sets the host's own addresses.
    pub(crate) fn set_host_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.host.host_addresses = addresses;
    }

    /// Returns the verdict on a connection.
    pub fn verdict(&self, facts: &ConnectionFacts) -> Verdict {
        if !self.is_port_intercepted(facts) {
            return self.route_verdict(facts);
        }
        let outer = match &facts.tls {
            // The outer name of an encrypted ClientHello is the only one that can be reached.
            TlsPeek::Hello { sni: Some(sni), ech: true } if !self.tls.bypasses(sni) => {
                TlsPeek::Hello { sni: Some(sni.clone()), ech: false }
            }
            tls => tls.clone(),
        };
        let found = self.route_verdict(&ConnectionFacts { tls: outer, ..facts.clone() });
        if !found.allows() {
            return found;
        }
        let deny = |reason| verdict(Action::Deny, None, reason);
        match (&facts.tls, facts.protocol) {
            (_, Protocol::Udp) if self.tls.allow_quic => found,
            (_, Protocol::Udp) => deny(VerdictReason::InterceptedQuic),
            (TlsPeek::Unseen, _) => Verdict { needs_peek: true, ..found },
            (TlsPeek::Plain, _) => deny(VerdictReason::NotTls),
            (TlsPeek::Hello { sni: None, .. }, _) => deny(VerdictReason::InterceptedNameMissing),
            (TlsPeek::Hello { sni: Some(sni), .. }, _) if self.tls.bypasses(sni) => found,
            (TlsPeek::Hello { .. }, _) => Verdict { intercepted: true, ..found },
        }
    }

    /// Returns whether a secret is bound to a name.
    pub(crate) fn is_bound(&self, name: &HostName) -> bool {
        self.tls.is_bound(name)
    }

    /// Returns whether TLS is intercepted on the port of a connection.
    pub(crate) fn is_port_intercepted(&self, facts: &ConnectionFacts) -> bool {
        facts.direction == Direction::Egress
            && matches!(facts.protocol, Protocol::Tcp | Protocol::Udp)
            && facts.port.is_some_and(|port| self.tls.covers_port(port))
    }

    /// Returns the verdict of the rules, without TLS interception.
    fn route_verdict(&self, facts: &ConnectionFacts) -> Verdict {
        let found = self.evaluate_rules(facts);
        if found.allows() && facts.direction == Direction::Egress && is_group_address(facts.address)
        {
            return verdict(Action::Deny, None, VerdictReason::Multicast);
        }
        found
    }

    /// Returns the verdict of the first matching rule, or of the default.
    fn evaluate_rules(&self, facts: &ConnectionFacts) -> Verdict {
        if is_dns_query(facts) {
            return verdict(Action::Allow, None, VerdictReason::Dns);
        }
        let destinations = self.host.possible_destinations(facts.address);
        let mut blocked = None;
        let mut has_name_rule = false;
        for (index, rule) in self.policy.rules.iter().enumerate() {
            if !rule.is_for(facts.direction) || !covers_port(rule, facts) {
                continue;
            }
            has_name_rule |= rule.target.is_named();
            match self.match_rule(rule, facts, &destinations) {
                RuleMatch::Yes
                    if rule.action == Action::Allow && is_blocked_resolver(rule, facts) =>
                {
                    return verdict(Action::Deny, None, VerdictReason::OtherResolver);
                }
                RuleMatch::Yes => {
                    let mut verdict = verdict(rule.action, Some(index + 1), VerdictReason::Rule);
                    verdict.needs_peek = has_name_rule && verdict.allows() && can_peek(facts);
                    return verdict;
                }
                RuleMatch::Blocked(reason) => blocked = blocked.or(Some(reason)),
                RuleMatch::No => {}
            }
        }
        self.default_verdict(facts, blocked, has_name_rule)
    }

    /// Returns the verdict on a connection that no rule matches.
    fn default_verdict(
        &self,
        facts: &ConnectionFacts,
        blocked: Option<VerdictReason>,
        has_name_rule: bool,
    ) -> Verdict {
        let action = match facts.direction {
            Direction::Egress => self.policy.egress,
            Direction::Ingress => self.policy.ingress,
        };
        match action {
            Action::Allow if is_other_resolver(facts) => {
                verdict(Action::Deny, None, VerdictReason::OtherResolver)
            }
            Action::Allow => Verdict {
                needs_peek: has_name_rule && can_peek(facts),
                ..verdict(Action::Allow, None, VerdictReason::Default)
            },
            Action::Deny => verdict(Action::Deny, None, blocked.unwrap_or(VerdictReason::Default)),
        }
    }

    /// Matches one rule against a connection.
    fn match_rule(
        &self,
        rule: &Rule,
        facts: &ConnectionFacts,
        destinations: &[IpAddr],
    ) -> RuleMatch {
        let yes = match (&rule.target, rule.action) {
            (Target::Any, _) => true,
            (Target::Dns, _) => false,
            (Target::Group(_) | Target::Range(_), _) => {
                self.matches_address(rule, facts.address, destinations)
            }
            (Target::Name(_) | Target::Suffix(_), Action::Allow) => {
                return self.match_name_rule(rule, facts, destinations);
            }
            (Target::Name(_) | Target::Suffix(_), Action::Deny) => denies_name(&rule.target, facts),
        };
        if yes { RuleMatch::Yes } else { RuleMatch::No }
    }

    /// Returns whether a rule on addresses matches this address.
    fn matches_address(&self, rule: &Rule, address: IpAddr, destinations: &[IpAddr]) -> bool {
        let is_public = |destination: &IpAddr| self.host.group(*destination) == Some(Group::Public);
        match (&rule.target, rule.action) {
            (Target::Any, _) => true,
            (Target::Group(group), Action::Allow) => {
                destinations.iter().all(|destination| self.host.group(*destination) == Some(*group))
            }
            // A rule that denies the host also denies its loopback address.
            (Target::Group(group), Action::Deny) => destinations.iter().any(|destination| {
                let found = self.host.group(*destination);
                found == Some(*group) || (*group == Group::Host && found == Some(Group::Loopback))
            }),
            (Target::Range(range), Action::Deny) => {
                range.contains(address)
                    || destinations.iter().any(|destination| range.contains(*destination))
            }
            (Target::Range(range), Action::Allow) => {
                let inside = range.contains(address);
                // An address embedded in an IPv6 range is allowed with the range only if it is
                // public.
                let is_public_inside = |destination: &IpAddr| {
                    inside && (*destination == address || is_public(destination))
                };
                destinations.iter().all(|destination| {
                    range.contains(*destination) || is_public_inside(destination)
                })
            }
            _ => false,
        }
    }

    /// Matches a rule that allows a name against a connection.
    fn match_name_rule(
        &self,
        rule: &Rule,
        facts: &ConnectionFacts,
        destinations: &[IpAddr],
    ) -> RuleMatch {
        let pinned = facts.names.iter().any(|name| rule.target.names(name));
        let found = match &facts.tls {
            TlsPeek::Unseen | TlsPeek::Plain if !pinned => return RuleMatch::No,
            TlsPeek::Unseen | TlsPeek::Plain => Ok(()),
            TlsPeek::Hello { ech: true, .. } if pinned => Err(VerdictReason::Ech),
            TlsPeek::Hello { sni: None, .. } if pinned => Err(VerdictReason::SniMissing),
            TlsPeek::Hello { sni: Some(sni), .. } if !rule.target.names(sni) => {
                if !pinned {
                    return RuleMatch::No;
                }
                Err(VerdictReason::SniOther)
            }
            TlsPeek::Hello { sni: Some(sni), ech: false } if facts.names.contains(sni) => Ok(()),
            TlsPeek::Hello { sni: Some(_), .. } => Err(VerdictReason::SniNotPinned),
            TlsPeek::Hello { sni: None, .. } => return RuleMatch::No,
        };
        let quic = facts.protocol == Protocol::Udp && facts.port == Some(QUIC_PORT);
        match found {
            Err(reason) => RuleMatch::Blocked(reason),
            Ok(()) if !self.may_resolve_to(destinations) => {
                RuleMatch::Blocked(VerdictReason::NotPublic)
            }
            Ok(()) if quic && rule.protocol != Some(Protocol::Udp) => {
                RuleMatch::Blocked(VerdictReason::Quic)
            }
            Ok(()) => RuleMatch::Yes,
        }
    }

    /// Returns whether a name may resolve to these addresses. The owner of a name chooses its
    /// addresses; the user chose only the name.
    fn may_resolve_to(&self, destinations: &[IpAddr]) -> bool {
        destinations.iter().all(|destination| match self.host.group(*destination) {
            Some(Group::Public) => true,
            Some(Group::Private) => !self.rebind_protection,
            _ => false,
        })
    }

    /// Returns the verdict on a DNS query. A query is allowed if a rule allows the name, or if the
    /// policy allows addresses that a name could resolve to. `None`: the name is not a host name,
    /// so no rule on names matches it.
    pub(crate) fn query_verdict(&self, name: Option<&HostName>) -> Verdict {
        let rules = self.policy.rules.iter().enumerate();
        let rules = rules.filter(|(_, rule)| rule.is_for(Direction::Egress));
        let is_named = |rule: &Rule| name.is_some_and(|name| rule.target.names(name));
        let mut address_rule = None;
        for (index, rule) in rules {
            let by_rule = verdict(rule.action, Some(index + 1), VerdictReason::Rule);
            match (&rule.target, rule.action) {
                (Target::Name(_) | Target::Suffix(_), Action::Allow) if is_named(rule) => {
                    return by_rule;
                }
                // A name that is denied on some ports is still reachable on others.
                (Target::Name(_) | Target::Suffix(_), Action::Deny)
                    if is_named(rule) && covers_all_ports(rule) =>
                {
                    return by_rule;
                }
                (Target::Dns, _) if covers_dns(rule) => return by_rule,
                (Target::Group(Group::Host), _) if rule.ports.is_some() && covers_dns(rule) => {
                    return by_rule;
                }
                (Target::Any, Action::Deny) if covers_dns(rule) => {
                    return address_rule.unwrap_or(by_rule);
                }
                (
                    Target::Any | Target::Range(_) | Target::Group(Group::Public | Group::Private),
                    Action::Allow,
                ) => {
                    address_rule = address_rule.or(Some(by_rule));
                }
                _ => {}
            }
        }
        address_rule.unwrap_or_else(|| verdict(self.policy.egress, None, VerdictReason::Default))
    }

    /// Returns whether a rule denies this name. Such a name may not be an alias of another name
    /// either.
    pub(crate) fn is_name_denied(&self, name: &HostName) -> bool {
        let verdict = self.query_verdict(Some(name));
        let rule = verdict.rule.and_then(|rule| self.policy.rules.get(rule - 1));
        !verdict.allows() && rule.is_some_and(|rule| rule.target.is_named())
    }

    /// Returns the verdict on an address in an answer (rebinding protection): one that is not
    /// public must be allowed by a rule.
    pub fn answer_verdict(&self, address: IpAddr) -> Verdict {
        let destinations = self.host.possible_destinations(address);
        if self.may_resolve_to(&destinations) {
            return verdict(Action::Allow, None, VerdictReason::Default);
        }
        match self.reachable_by(address) {
            Some(rule) => verdict(Action::Allow, rule, VerdictReason::Rule),
            None => verdict(Action::Deny, None, VerdictReason::Rebinding),
        }
    }

    /// Returns the verdict on a query for the host alias: it resolves if the guest may reach one of
    /// its gateways.
    pub(crate) fn host_alias_verdict(&self) -> Verdict {
        let mut gateways = self.host.gateways.iter();
        match gateways.find_map(|gateway| self.reachable_by(*gateway)) {
            Some(Some(rule)) => verdict(Action::Allow, Some(rule), VerdictReason::Rule),
            Some(None) => verdict(Action::Allow, None, VerdictReason::Default),
            None => verdict(Action::Deny, None, VerdictReason::Default),
        }
    }

    /// Returns how the guest may reach an address on some port: by the rule with this number, or by
    /// the default (`Some(None)`).
    pub(crate) fn reachable_by(&self, address: IpAddr) -> Option<Option<usize>> {
        let destinations = self.host.possible_destinations(address);
        for (index, rule) in self.policy.rules.iter().enumerate() {
            if !rule.is_for(Direction::Egress)
                || !self.matches_address(rule, address, &destinations)
            {
                continue;
            }
            match rule.action {
                Action::Allow => return Some(Some(index + 1)),
                Action::Deny if covers_all_ports(rule) => return None,
                Action::Deny => {}
            }
        }
        (self.policy.egress == Action::Allow).then_some(None)
    }
}

fn verdict(action: Action, rule: Option<usize>, reason: VerdictReason) -> Verdict {
    Verdict { action, rule, reason, needs_peek: false, intercepted: false }
}

/// Returns whether an address is multicast or broadcast.
fn is_group_address(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    address.is_multicast() || broadcast
}

/// Returns whether a rule covers the protocol and port.
fn covers_port(rule: &Rule, facts: &ConnectionFacts) -> bool {
    let protocol = rule.protocol.is_none_or(|protocol| protocol == facts.protocol);
    let port = rule.ports.is_none_or(|ports| facts.port.is_some_and(|port| ports.contains(port)));
    protocol && port
}

/// Returns whether a rule covers all protocols and ports.
fn covers_all_ports(rule: &Rule) -> bool {
    rule.protocol.is_none() && rule.ports.is_none()
}

/// Returns whether a rule covers port 53 over UDP or TCP. A guest that may use one of them may send
/// queries.
fn covers_dns(rule: &Rule) -> bool {
    let port = rule.ports.is_none_or(|ports| ports.contains(DNS_PORT));
    port && !rule.protocol.is_some_and(Protocol::is_icmp)
}

fn is_dns_query(facts: &ConnectionFacts) -> bool {
    let protocol = matches!(facts.protocol, Protocol::Tcp | Protocol::Udp);
    facts.direction == Direction::Egress && protocol && facts.port == Some(DNS_PORT)
}

fn is_other_resolver(facts: &ConnectionFacts) -> bool {
    facts.direction == Direction::Egress
        && RESOLVER_PORTS
            .iter()
            .any(|(protocol, port)| facts.protocol == *protocol && facts.port == Some(*port))
}

/// Returns whether the connection goes to another name service and the rule does not name that very
/// port.
fn is_blocked_resolver(rule: &Rule, facts: &ConnectionFacts) -> bool {
    is_other_resolver(facts) && rule.ports.is_none_or(|ports| ports.count() > 1)
}

/// Returns whether the connection has first bytes to wait for.
fn can_peek(facts: &ConnectionFacts) -> bool {
    facts.direction == Direction::Egress
        && facts.protocol == Protocol::Tcp
        && facts.tls == TlsPeek::Unseen
}

/// Returns whether a rule that denies a name matches: by the server name in the ClientHello, else
/// by the resolved names.
fn denies_name(target: &Target, facts: &ConnectionFacts) -> bool {
    match &facts.tls {
        TlsPeek::Hello { sni: Some(sni), ech: false } => target.names(sni),
        TlsPeek::Hello { sni: Some(sni), ech: true } if target.names(sni) => true,
        _ => facts.names.iter().any(|name| target.names(name)),
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
