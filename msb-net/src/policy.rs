//! What becomes of a connection, or of a question for a name: a pure function of the policy and the facts.
//!
//! The first rule that speaks of the connection counts; where none does, the default of its direction. What stands outside
//! of that order:
//!
//! - Port 53 is never dialled. Questions go to our own server ([`crate::dns`]), whoever they were meant for.
//! - Other ways to find names ([`RESOLVERS`]) are closed, unless a rule allows that very port: names found there would
//!   never be seen here.
//! - A rule on a name admits addresses that the name was found to have, by our server, for as long as the answer lives.
//!   The addresses are public ones; private ones too if the user believes such answers; never others.
//! - Where such a rule admits TCP, or a rule on a name stands before the one that does, the verdict is not final until the
//!   guest's first bytes were looked at: if they are TLS, the name in them must be the rule's, and be pinned to the
//!   address. A name that is hidden (no SNI, or an encrypted ClientHello) admits nothing. QUIC hides it as well, so UDP to
//!   port 443 needs a rule that says udp.
//! - What is sent to many at once (multicast, broadcast) is not carried, whatever allows it.

use std::net::IpAddr;

use libmsb::net::name::HostName;
use libmsb::net::policy::Policy;
use libmsb::net::rule::{Action, Direction, Group, Protocol, Rule, Target};
use serde::{Deserialize, Serialize};

use crate::address::HostFacts;

/// The port of DNS.
const DNS_PORT: u16 = 53;
/// The port over which QUIC hides what the guest wants.
const QUIC_PORT: u16 = 443;
/// Other ways to find names: DNS over TLS and QUIC (RFC 7858, 9250), mDNS (6762), LLMNR (4795), NetBIOS (1002).
const RESOLVERS: [(Protocol, u16); 6] = [
    (Protocol::Tcp, 853),
    (Protocol::Udp, 853),
    (Protocol::Udp, 5353),
    (Protocol::Tcp, 5355),
    (Protocol::Udp, 5355),
    (Protocol::Udp, 137),
];

/// What is known of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// Who begins.
    pub(crate) direction: Direction,
    /// What is spoken.
    pub(crate) protocol: Protocol,
    /// The other side.
    pub(crate) address: IpAddr,
    /// The other side's port on the way out, the guest's on the way in. ICMP has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
    /// Names that were found to have the address, by our server, and are alive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) names: Vec<HostName>,
    /// The guest's first bytes.
    #[serde(default)]
    pub(crate) tls: Tls,
}

/// What the guest's first bytes say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Tls {
    /// There were none yet.
    #[default]
    Unseen,
    /// They are not TLS.
    Plain,
    /// They are a ClientHello.
    Hello {
        /// The name that it asks for.
        sni: Option<HostName>,
        /// Whether it has another one, encrypted (ECH).
        ech: bool,
    },
}

/// What becomes of it, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// What becomes of it.
    pub(crate) action: Action,
    /// The number of the rule that says so, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<usize>,
    /// Why.
    pub(crate) reason: Reason,
    /// Whether the guest's first bytes can change it: ask again when they are known.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) look: bool,
}

impl Verdict {
    /// Whether it may be, so far.
    pub(crate) fn allows(&self) -> bool {
        self.action == Action::Allow
    }
}

/// Why a verdict is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reason {
    /// A rule says so.
    Rule,
    /// No rule speaks of it, and the default says so.
    Default,
    /// It is a question for a name, which msb-net answers itself.
    Dns,
    /// It is a way to find names past msb-net.
    OtherResolver,
    /// A rule would allow a name, but TLS asks for another.
    SniOther,
    /// TLS asks for a name that a rule allows, but that was not found to have the address.
    SniNotPinned,
    /// A rule would allow a name, but TLS does not say which one it asks for.
    SniMissing,
    /// A rule would allow a name, but TLS has another one, encrypted.
    Ech,
    /// A rule would allow a name, but QUIC does not show which one it asks for.
    Quic,
    /// A rule would allow the name, but the address is not one that names may lead to.
    NotPublic,
    /// A name was found to have an address that is not public, and no rule allows.
    Rebinding,
    /// It is to many at once, and nothing of that is carried.
    Multicast,
}

impl Reason {
    /// In words.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Reason::Rule => "the rule says so",
            Reason::Default => "no rule speaks of it",
            Reason::Dns => "msb-net answers questions for names itself, whoever they are sent to",
            Reason::OtherResolver => {
                "it is a way to find names past msb-net; a rule on that very port allows it"
            }
            Reason::SniOther => "TLS asks for a name that no rule allows here",
            Reason::SniNotPinned => "TLS asks for a name that was not found to have this address",
            Reason::SniMissing => "TLS does not say which name it asks for",
            Reason::Ech => "TLS asks for an encrypted name",
            Reason::Quic => {
                "QUIC does not show which name it asks for; a rule with :udp:443 allows it"
            }
            Reason::NotPublic => {
                "names may not lead to an address that is not public; a rule on the address allows it"
            }
            Reason::Rebinding => {
                "the name has an address that is not public; a rule on the address allows it"
            }
            Reason::Multicast => "nothing is carried to many at once",
        }
    }
}

/// Whether one rule speaks of a connection.
enum Match {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// It would, but for this.
    Missed(Reason),
}

/// A policy, and what must be known to hold it.
#[derive(Clone, Debug)]
pub(crate) struct Judge {
    policy: Policy,
    rebind_protection: bool,
    host: HostFacts,
}

impl Judge {
    pub(crate) fn new(policy: Policy, rebind_protection: bool, host: HostFacts) -> Judge {
        Judge {
            policy,
            rebind_protection,
            host,
        }
    }

    /// The rules.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What is particular to this host.
    pub(crate) fn host(&self) -> &HostFacts {
        &self.host
    }

    /// The host has other addresses of its own.
    pub(crate) fn set_own(&mut self, own: Vec<IpAddr>) {
        self.host.own = own;
    }

    /// What becomes of a connection.
    pub(crate) fn verdict(&self, facts: &Facts) -> Verdict {
        let found = self.by_rules(facts);
        if found.allows() && facts.direction == Direction::Egress && is_to_many(facts.address) {
            return verdict(Action::Deny, None, Reason::Multicast);
        }
        found
    }

    fn by_rules(&self, facts: &Facts) -> Verdict {
        if is_dns(facts) {
            return verdict(Action::Allow, None, Reason::Dns);
        }
        let faces = self.host.faces(facts.address);
        let mut missed = None;
        let mut named = false;
        for (place, rule) in self.policy.rules.iter().enumerate() {
            if !rule.is_for(facts.direction) || !speaks(rule, facts) {
                continue;
            }
            named |= rule.target.is_named();
            match self.matches(rule, facts, &faces) {
                Match::Yes if rule.action == Action::Allow && is_closed(rule, facts) => {
                    return verdict(Action::Deny, None, Reason::OtherResolver);
                }
                Match::Yes => {
                    let mut verdict = verdict(rule.action, Some(place + 1), Reason::Rule);
                    verdict.look = named && verdict.allows() && can_look(facts);
                    return verdict;
                }
                Match::Missed(reason) => missed = missed.or(Some(reason)),
                Match::No => {}
            }
        }
        self.default(facts, missed, named)
    }

    /// What becomes of a connection that no rule speaks of.
    fn default(&self, facts: &Facts, missed: Option<Reason>, named: bool) -> Verdict {
        let action = match facts.direction {
            Direction::Egress => self.policy.egress,
            Direction::Ingress => self.policy.ingress,
        };
        match action {
            Action::Allow if is_resolver(facts) => {
                verdict(Action::Deny, None, Reason::OtherResolver)
            }
            Action::Allow => Verdict {
                look: named && can_look(facts),
                ..verdict(Action::Allow, None, Reason::Default)
            },
            Action::Deny => verdict(Action::Deny, None, missed.unwrap_or(Reason::Default)),
        }
    }

    fn matches(&self, rule: &Rule, facts: &Facts, faces: &[IpAddr]) -> Match {
        let yes = match (&rule.target, rule.action) {
            (Target::Any, _) => true,
            (Target::Dns, _) => false,
            (Target::Group(_) | Target::Range(_), _) => self.is_of(rule, facts.address, faces),
            (Target::Name(_) | Target::Suffix(_), Action::Allow) => {
                return self.is_named(rule, facts, faces);
            }
            (Target::Name(_) | Target::Suffix(_), Action::Deny) => {
                is_denied_name(&rule.target, facts)
            }
        };
        if yes { Match::Yes } else { Match::No }
    }

    /// Whether a rule on addresses speaks of this one.
    fn is_of(&self, rule: &Rule, address: IpAddr, faces: &[IpAddr]) -> bool {
        let is_public = |face: &IpAddr| self.host.group(*face) == Some(Group::Public);
        match (&rule.target, rule.action) {
            (Target::Any, _) => true,
            (Target::Group(group), Action::Allow) => faces
                .iter()
                .all(|face| self.host.group(*face) == Some(*group)),
            // What is at the host's loopback is the host's.
            (Target::Group(group), Action::Deny) => faces.iter().any(|face| {
                let found = self.host.group(*face);
                found == Some(*group) || (*group == Group::Host && found == Some(Group::Loopback))
            }),
            (Target::Range(range), Action::Deny) => {
                range.contains(address) || faces.iter().any(|face| range.contains(*face))
            }
            (Target::Range(range), Action::Allow) => {
                let inside = range.contains(address);
                // What is behind a range of IPv6 is allowed with it only as far as it is public.
                let with_it = |face: &IpAddr| inside && (*face == address || is_public(face));
                faces
                    .iter()
                    .all(|face| range.contains(*face) || with_it(face))
            }
            _ => false,
        }
    }

    /// Whether a rule that allows a name speaks of this connection.
    fn is_named(&self, rule: &Rule, facts: &Facts, faces: &[IpAddr]) -> Match {
        let pinned = facts.names.iter().any(|name| rule.target.names(name));
        let found = match &facts.tls {
            Tls::Unseen | Tls::Plain if !pinned => return Match::No,
            Tls::Unseen | Tls::Plain => Ok(()),
            Tls::Hello { ech: true, .. } if pinned => Err(Reason::Ech),
            Tls::Hello { sni: None, .. } if pinned => Err(Reason::SniMissing),
            Tls::Hello { sni: Some(sni), .. } if !rule.target.names(sni) => {
                if !pinned {
                    return Match::No;
                }
                Err(Reason::SniOther)
            }
            Tls::Hello {
                sni: Some(sni),
                ech: false,
            } if facts.names.contains(sni) => Ok(()),
            Tls::Hello { sni: Some(_), .. } => Err(Reason::SniNotPinned),
            Tls::Hello { sni: None, .. } => return Match::No,
        };
        let quic = facts.protocol == Protocol::Udp && facts.port == Some(QUIC_PORT);
        match found {
            Err(reason) => Match::Missed(reason),
            Ok(()) if !self.may_names_lead_to(faces) => Match::Missed(Reason::NotPublic),
            Ok(()) if quic && rule.protocol != Some(Protocol::Udp) => Match::Missed(Reason::Quic),
            Ok(()) => Match::Yes,
        }
    }

    /// Whether a rule on a name may admit such an address: a name's owner chooses it, and the user chose only the name.
    fn may_names_lead_to(&self, faces: &[IpAddr]) -> bool {
        faces.iter().all(|face| match self.host.group(*face) {
            Some(Group::Public) => true,
            Some(Group::Private) => !self.rebind_protection,
            _ => false,
        })
    }

    /// What becomes of a question for a name. Names may be asked for if a rule allows them, or if there are addresses that
    /// a name could lead to. A name that is none of a host's (`None`) is of no rule.
    pub(crate) fn name(&self, name: Option<&HostName>) -> Verdict {
        let rules = self.policy.rules.iter().enumerate();
        let rules = rules.filter(|(_, rule)| rule.is_for(Direction::Egress));
        let is_named = |rule: &Rule| name.is_some_and(|name| rule.target.names(name));
        let mut leads = None;
        for (place, rule) in rules {
            let by_rule = verdict(rule.action, Some(place + 1), Reason::Rule);
            match (&rule.target, rule.action) {
                (Target::Name(_) | Target::Suffix(_), Action::Allow) if is_named(rule) => {
                    return by_rule;
                }
                // A name that is denied on some ports has others.
                (Target::Name(_) | Target::Suffix(_), Action::Deny)
                    if is_named(rule) && is_whole(rule) =>
                {
                    return by_rule;
                }
                (Target::Dns, _) if covers_dns(rule) => return by_rule,
                (Target::Group(Group::Host), _) if rule.ports.is_some() && covers_dns(rule) => {
                    return by_rule;
                }
                (Target::Any, Action::Deny) if covers_dns(rule) => return leads.unwrap_or(by_rule),
                (
                    Target::Any | Target::Range(_) | Target::Group(Group::Public | Group::Private),
                    Action::Allow,
                ) => {
                    leads = leads.or(Some(by_rule));
                }
                _ => {}
            }
        }
        leads.unwrap_or_else(|| verdict(self.policy.egress, None, Reason::Default))
    }

    /// Whether a rule says that this name is denied: it may then not be another name's alias either.
    pub(crate) fn is_name_denied(&self, name: &HostName) -> bool {
        let verdict = self.name(Some(name));
        let rule = verdict
            .rule
            .and_then(|rule| self.policy.rules.get(rule - 1));
        !verdict.allows() && rule.is_some_and(|rule| rule.target.is_named())
    }

    /// What becomes of an answer with this address: one that is not public must be one that a rule allows.
    pub(crate) fn answer(&self, address: IpAddr) -> Verdict {
        let faces = self.host.faces(address);
        if self.may_names_lead_to(&faces) {
            return verdict(Action::Allow, None, Reason::Default);
        }
        match self.reaches(address) {
            Some(rule) => verdict(Action::Allow, rule, Reason::Rule),
            None => verdict(Action::Deny, None, Reason::Rebinding),
        }
    }

    /// What becomes of a question for the host's own name: it is there if the guest may reach one of its gateways.
    pub(crate) fn alias(&self) -> Verdict {
        let mut gateways = self.host.gateways.iter();
        match gateways.find_map(|gateway| self.reaches(*gateway)) {
            Some(Some(rule)) => verdict(Action::Allow, Some(rule), Reason::Rule),
            Some(None) => verdict(Action::Allow, None, Reason::Default),
            None => verdict(Action::Deny, None, Reason::Default),
        }
    }

    /// Whether a rule on addresses, or the default, lets the guest reach the address, on some port: its number.
    pub(crate) fn reaches(&self, address: IpAddr) -> Option<Option<usize>> {
        let faces = self.host.faces(address);
        for (place, rule) in self.policy.rules.iter().enumerate() {
            if !rule.is_for(Direction::Egress) || !self.is_of(rule, address, &faces) {
                continue;
            }
            match rule.action {
                Action::Allow => return Some(Some(place + 1)),
                Action::Deny if is_whole(rule) => return None,
                Action::Deny => {}
            }
        }
        (self.policy.egress == Action::Allow).then_some(None)
    }
}

fn verdict(action: Action, rule: Option<usize>, reason: Reason) -> Verdict {
    Verdict {
        action,
        rule,
        reason,
        look: false,
    }
}

/// Whether an address has many behind it.
fn is_to_many(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    address.is_multicast() || broadcast
}

/// Whether a rule speaks of such a protocol and port.
fn speaks(rule: &Rule, facts: &Facts) -> bool {
    let protocol = rule.protocol.is_none_or(|own| own == facts.protocol);
    let port = rule
        .ports
        .is_none_or(|ports| facts.port.is_some_and(|port| ports.contains(port)));
    protocol && port
}

/// Whether a rule speaks of all protocols and ports.
fn is_whole(rule: &Rule) -> bool {
    rule.protocol.is_none() && rule.ports.is_none()
}

/// Whether a rule speaks of the protocols and the port of DNS. Who may ask by one of them may ask.
fn covers_dns(rule: &Rule) -> bool {
    let port = rule.ports.is_none_or(|ports| ports.contains(DNS_PORT));
    port && !rule.protocol.is_some_and(Protocol::is_icmp)
}

fn is_dns(facts: &Facts) -> bool {
    let protocol = matches!(facts.protocol, Protocol::Tcp | Protocol::Udp);
    facts.direction == Direction::Egress && protocol && facts.port == Some(DNS_PORT)
}

fn is_resolver(facts: &Facts) -> bool {
    facts.direction == Direction::Egress
        && RESOLVERS
            .iter()
            .any(|(protocol, port)| facts.protocol == *protocol && facts.port == Some(*port))
}

/// Whether it is a way to find names, and the rule does not mean that very port.
fn is_closed(rule: &Rule, facts: &Facts) -> bool {
    is_resolver(facts) && rule.ports.is_none_or(|ports| ports.count() > 1)
}

/// Whether there are first bytes to wait for.
fn can_look(facts: &Facts) -> bool {
    facts.direction == Direction::Egress
        && facts.protocol == Protocol::Tcp
        && facts.tls == Tls::Unseen
}

/// Whether a rule that denies a name speaks of this connection: by the name that TLS asks for, else by those found.
fn is_denied_name(target: &Target, facts: &Facts) -> bool {
    match &facts.tls {
        Tls::Hello {
            sni: Some(sni),
            ech: false,
        } => target.names(sni),
        Tls::Hello {
            sni: Some(sni),
            ech: true,
        } if target.names(sni) => true,
        _ => facts.names.iter().any(|name| target.names(name)),
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
