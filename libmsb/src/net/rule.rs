//! A rule, and its grammar, which is that of microsandbox:
//!
//! ```text
//! rule      = action [":" direction] "@" target [":" protocol [":" ports]]
//! action    = "allow" | "deny"
//! direction = "egress" | "ingress" | "any"                (egress)
//! target    = "any" | group | IPV4[/N] | "[" IPV6[/N] "]" | NAME.NAME… | "*." SUFFIX
//!           | "suffix=" SUFFIX | "domain=" NAME
//! group     = "public" | "private" | "loopback" | "link-local" | "meta" | "multicast"
//!           | "host" | "dns"
//! protocol  = "any" | "tcp" | "udp" | "icmpv4" | "icmpv6" (any)
//! ports     = "any" | N | N-M                             (any)
//! ```
//!
//! `spec.json` holds rules in the same form.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::HostName;
use super::ports::PortRange;
use super::prefix::Prefix;
use crate::cli::error::Failure;
use crate::cli::escape::escape;

/// Longest rule, in bytes: the longest name, the words around it, and a reserve.
pub const RULE_BYTES_MAX: usize = 512;

/// The verdict of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Allow the connection.
    Allow,
    /// Deny the connection.
    Deny,
}

/// Direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the guest.
    Egress,
    /// To published ports of the guest.
    Ingress,
}

/// Groups of addresses. Each address belongs to exactly one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// The Internet: addresses in no other group, and in no range reserved for special use.
    Public,
    /// The local network: `10/8`, `172.16/12`, `192.168/16`, `100.64/10`, `fc00::/7`.
    Private,
    /// The host's loopback: `127/8`, `::1`, and the unspecified addresses, which Linux treats
    /// alike.
    Loopback,
    /// Link-local addresses: `169.254/16`, `fe80::/10`.
    LinkLocal,
    /// Metadata services of clouds, which give out credentials: `169.254.169.254` and similar.
    Meta,
    /// `224/4`, `ff00::/8`.
    Multicast,
    /// The host: the gateway, and every address of the host.
    Host,
}

impl Group {
    const ALL: [(Group, &'static str); 7] = [
        (Group::Public, "public"),
        (Group::Private, "private"),
        (Group::Loopback, "loopback"),
        (Group::LinkLocal, "link-local"),
        (Group::Meta, "meta"),
        (Group::Multicast, "multicast"),
        (Group::Host, "host"),
    ];

    /// Returns the name in rules.
    pub fn name(self) -> &'static str {
        let named = Group::ALL.iter().find(|(group, _)| *group == self);
        named.map_or("", |(_, name)| name)
    }
}

/// The remote side of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Any address.
    Any,
    /// A group of addresses.
    Group(Group),
    /// DNS queries, for any name.
    Dns,
    /// An address range.
    Range(Prefix),
    /// Addresses to which a name resolved.
    Name(HostName),
    /// Addresses to which a name, or one below it, resolved.
    Suffix(HostName),
}

impl Target {
    /// Returns whether the target is a name or suffix that matches `name`.
    pub fn names(&self, name: &HostName) -> bool {
        match self {
            Target::Name(own) => own == name,
            Target::Suffix(suffix) => name.is_within(suffix),
            _ => false,
        }
    }

    /// Returns whether the target is a name or suffix.
    pub fn is_named(&self) -> bool {
        matches!(self, Target::Name(_) | Target::Suffix(_))
    }
}

/// Protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMPv4 echo requests.
    Icmpv4,
    /// ICMPv6 echo requests.
    Icmpv6,
}

impl Protocol {
    const ALL: [(Protocol, &'static str); 4] = [
        (Protocol::Tcp, "tcp"),
        (Protocol::Udp, "udp"),
        (Protocol::Icmpv4, "icmpv4"),
        (Protocol::Icmpv6, "icmpv6"),
    ];

    /// Returns whether the protocol has no ports.
    pub fn is_icmp(self) -> bool {
        matches!(self, Protocol::Icmpv4 | Protocol::Icmpv6)
    }
}

impl FromStr for Protocol {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Protocol, Failure> {
        let named = Protocol::ALL.iter().find(|(_, name)| *name == text);
        named.map(|(protocol, _)| *protocol).ok_or_else(|| {
            Failure::usage(format!("'{}' is not a protocol", escape(text)))
                .hint("protocols are tcp, udp, icmpv4 and icmpv6")
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Protocol::ALL.iter().find(|(protocol, _)| protocol == self);
        f.write_str(named.map_or("", |(_, name)| name))
    }
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    /// Action for matching connections.
    pub action: Action,
    /// Direction of the connection; `None` for both.
    pub direction: Option<Direction>,
    /// The remote side.
    pub target: Target,
    /// Protocol; `None` for any.
    pub protocol: Option<Protocol>,
    /// Ports: of the remote side for egress, of the guest for ingress. `None` for all.
    pub ports: Option<PortRange>,
}

text_in_json!(Rule);

impl Rule {
    /// Returns a rule for all that the guest sends to a target.
    pub fn egress(action: Action, target: Target) -> Rule {
        Rule { action, direction: Some(Direction::Egress), target, protocol: None, ports: None }
    }

    /// Returns whether the rule applies to a direction.
    pub fn is_for(&self, direction: Direction) -> bool {
        self.direction.is_none_or(|own| own == direction)
    }
}

/// Parses a list of rules, separated by commas.
pub fn parse_list(text: &str) -> Result<Vec<Rule>, Failure> {
    text.split(',').map(|rule| rule.trim().parse()).collect()
}

impl FromStr for Rule {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Rule, Failure> {
        let wrong = |what: &str| Failure::usage(format!("the rule '{}' {what}", shortened(text)));
        if text.len() > RULE_BYTES_MAX {
            return Err(wrong("is too long"));
        }
        let Some((head, tail)) = text.split_once('@') else {
            return Err(wrong("has no '@'").hint("a rule has the form allow@example.com:tcp:443"));
        };
        let (action, direction) = parse_head(head)?;
        let (target, rest) = split_target(tail)?;
        let mut rest = rest.into_iter().flat_map(|rest| rest.split(':'));
        let protocol = rest.next().map(|word| parse_protocol(word, target)).transpose()?.flatten();
        let ports = rest.next().map(parse_ports).transpose()?.flatten();
        if rest.next().is_some() {
            return Err(wrong("has too many parts"));
        }
        let rule = Rule { action, direction, target: parse_target(target)?, protocol, ports };
        check(&rule).map_err(|(what, hint)| wrong(what).hint(hint))?;
        Ok(rule)
    }
}

/// Checks that the parts of a rule fit together. The error is a message and a hint.
fn check(rule: &Rule) -> Result<(), (&'static str, &'static str)> {
    let icmp = rule.protocol.is_some_and(Protocol::is_icmp);
    if icmp && rule.ports.is_some() {
        return Err(("has ports, but ICMP has none", "remove the ports"));
    }
    if rule.direction == Some(Direction::Egress) {
        return Ok(());
    }
    if icmp {
        return Err(("allows inbound ICMP, which is not supported", "use ICMP in egress rules"));
    }
    if rule.direction == Some(Direction::Ingress)
        && (rule.target.is_named() || rule.target == Target::Dns)
    {
        return Err((
            "matches names, but inbound connections have only addresses",
            "use addresses instead",
        ));
    }
    Ok(())
}

fn parse_head(head: &str) -> Result<(Action, Option<Direction>), Failure> {
    let (action, direction) = match head.split_once(':') {
        Some((action, direction)) => (action, direction),
        None => (head, "egress"),
    };
    let action = parse_action(action)?;
    let direction = match direction {
        "egress" => Some(Direction::Egress),
        "ingress" => Some(Direction::Ingress),
        "any" => None,
        _ => {
            return Err(Failure::usage(format!("'{}' is not a direction", shortened(direction)))
                .hint("directions are egress, ingress and any"));
        }
    };
    Ok((action, direction))
}

/// Parses `allow` or `deny`.
pub fn parse_action(text: &str) -> Result<Action, Failure> {
    match text {
        "allow" => Ok(Action::Allow),
        "deny" => Ok(Action::Deny),
        _ => Err(Failure::usage(format!("'{}' is neither allow nor deny", shortened(text)))),
    }
}

/// Splits the target from the rest after its colon. The colons of IPv6 are inside brackets.
fn split_target(tail: &str) -> Result<(&str, Option<&str>), Failure> {
    if !tail.starts_with('[') {
        return Ok(match tail.split_once(':') {
            Some((target, rest)) => (target, Some(rest)),
            None => (tail, None),
        });
    }
    let wrong = || Failure::usage(format!("'{}' is not an address in brackets", shortened(tail)));
    let end = tail.find(']').ok_or_else(wrong)?;
    match &tail[end + 1..] {
        "" => Ok((tail, None)),
        rest => Ok((&tail[..=end], Some(rest.strip_prefix(':').ok_or_else(wrong)?))),
    }
}

fn parse_target(text: &str) -> Result<Target, Failure> {
    if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return match inner.parse::<Prefix>()? {
            prefix if prefix.address().is_ipv6() => Ok(Target::Range(prefix)),
            _ => Err(Failure::usage(format!(
                "'{}' is an IPv4 address, which takes no brackets",
                shortened(text)
            ))),
        };
    }
    if let Some(name) = text.strip_prefix("domain=") {
        return Ok(Target::Name(name.parse()?));
    }
    if let Some(suffix) = text.strip_prefix("suffix=").or_else(|| text.strip_prefix("*.")) {
        return parse_suffix(suffix);
    }
    match text {
        "any" => return Ok(Target::Any),
        "dns" => return Ok(Target::Dns),
        _ => {}
    }
    if let Some((group, _)) = Group::ALL.iter().find(|(_, name)| *name == text) {
        return Ok(Target::Group(*group));
    }
    parse_address_or_name(text)
}

/// Parses a suffix. A whole top-level domain is refused as a mistake.
fn parse_suffix(text: &str) -> Result<Target, Failure> {
    let suffix: HostName = text.parse()?;
    if suffix.labels() < 2 {
        return Err(Failure::usage(format!("'*.{suffix}' matches a whole top-level domain"))
            .hint("use at least two labels, as in *.example.com"));
    }
    Ok(Target::Suffix(suffix))
}

fn parse_address_or_name(text: &str) -> Result<Target, Failure> {
    // Digits and dots look like an address, so '1.2.3' or '1.2.3.400' is refused as a mistake.
    let last = text.rsplit('.').next().unwrap_or_default();
    let numeric = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
    if text.contains('/') || numeric {
        return Ok(Target::Range(text.parse()?));
    }
    let name: HostName = text.parse()?;
    if name.labels() < 2 && !text.ends_with('.') {
        return Err(ambiguous(&name));
    }
    Ok(Target::Name(name))
}

fn ambiguous(word: &HostName) -> Failure {
    let near = Group::ALL
        .iter()
        .map(|(_, name)| *name)
        .chain(["any", "dns"])
        .find(|name| distance(word.as_str(), name) <= 2);
    let failure = Failure::usage(format!("'{word}' is neither a group nor a name with a dot"));
    match near {
        Some(near) => failure.hint(format!(
            "did you mean '{near}'? (write 'domain={word}' for the host of that name)"
        )),
        None => failure.hint(format!("write 'domain={word}' for the host of that name")),
    }
}

fn parse_protocol(word: &str, target: &str) -> Result<Option<Protocol>, Failure> {
    if word == "any" {
        return Ok(None);
    }
    if word.parse::<PortRange>().is_ok() {
        return Err(Failure::usage(format!(
            "the port {word} of '{}' has no protocol",
            shortened(target)
        ))
        .hint(format!("write {target}:tcp:{word}")));
    }
    word.parse().map(Some)
}

fn parse_ports(word: &str) -> Result<Option<PortRange>, Failure> {
    if word == "any" { Ok(None) } else { word.parse().map(Some) }
}

/// Returns the edit distance between two words: insertions, deletions and replacements.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", escape(&text[..end])),
        None => escape(text).into_owned(),
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
        })
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Any => f.write_str("any"),
            Target::Dns => f.write_str("dns"),
            Target::Group(group) => f.write_str(group.name()),
            Target::Range(prefix) if prefix.address().is_ipv6() => write!(f, "[{prefix}]"),
            Target::Range(prefix) => write!(f, "{prefix}"),
            Target::Name(name) => write!(f, "domain={name}"),
            Target::Suffix(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

impl fmt::Display for Rule {
    /// Writes the shortest form that parses to the same rule.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.action)?;
        match self.direction {
            Some(Direction::Egress) => {}
            Some(Direction::Ingress) => f.write_str(":ingress")?,
            None => f.write_str(":any")?,
        }
        write!(f, "@{}", self.target)?;
        match (self.protocol, self.ports) {
            (None, None) => Ok(()),
            (Some(protocol), None) => write!(f, ":{protocol}"),
            (None, Some(ports)) => write!(f, ":any:{ports}"),
            (Some(protocol), Some(ports)) => write!(f, ":{protocol}:{ports}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Rule>().unwrap().to_string()
    }

    #[test]
    fn rules_of_every_form_read_as_they_are_written() {
        for text in [
            "allow@any",
            "deny@public",
            "allow@link-local:udp",
            "allow@dns",
            "deny:ingress@10.0.0.0/8:tcp:22",
            "allow:any@1.2.3.4:any:80",
            "allow@[fd00::/8]:tcp:1-1023",
            "deny@[2001:db8::1]",
            "allow@domain=example.com:tcp:443",
            "allow@*.example.com",
            "allow@any:icmpv4",
        ] {
            assert_eq!(canonical(text), text);
        }
    }

    #[test]
    fn other_spellings_of_a_rule_are_the_same_rule() {
        assert_eq!(canonical("allow:egress@public:any:any"), "allow@public");
        assert_eq!(canonical("allow@Example.COM."), "allow@domain=example.com");
        assert_eq!(canonical("allow@suffix=example.com"), "allow@*.example.com");
        assert_eq!(canonical("deny@10.1.2.3/32"), "deny@10.1.2.3");
        let both = parse_list("allow@public, deny@any").unwrap();
        assert_eq!(both.len(), 2);
    }

    #[test]
    fn what_is_no_rule_is_refused_with_the_next_step() {
        let said = |text: &str| {
            let failure = text.parse::<Rule>().unwrap_err();
            format!("{failure}; {}", failure.hint_text().unwrap_or_default())
        };
        assert!(said("allow@publik").contains("did you mean 'public'?"));
        assert!(said("allow@mybox").contains("domain=mybox"));
        assert_eq!(
            said("allow@example.com:443"),
            "the port 443 of 'example.com' has no protocol; write example.com:tcp:443"
        );
        assert!(said("allow:ingress@any:icmpv4").contains("use ICMP in egress rules"));
        assert!(said("allow:any@any:icmpv6").contains("use ICMP in egress rules"));
        assert!(said("allow:ingress@example.com").contains("only addresses"));
        assert!(said("allow@*.com").contains("top-level"));
        for text in [
            "",
            "allow",
            "permit@any",
            "allow:up@any",
            "allow@",
            "allow@1.2.3",
            "allow@1.2.3.400",
            "allow@10.0.0.1/8",
            "allow@[10.0.0.0/8]",
            "allow@[::1",
            "allow@[::1]x",
            "allow@::1",
            "allow@any:sctp",
            "allow@any:tcp:0",
            "allow@any:tcp:65536",
            "allow@any:tcp:2-1",
            "allow@any:tcp:80:",
            "allow@any:icmpv4:8",
            "allow@any@any",
            "allow@suffix=",
            "allow@domain=",
            "allow@any,",
        ] {
            assert!(parse_list(text).is_err(), "{text}");
        }
        assert!(format!("allow@domain={}", "a.".repeat(300)).parse::<Rule>().is_err());
    }

    #[test]
    fn letters_that_differ_are_counted() {
        assert_eq!(distance("host", "host"), 0);
        assert_eq!(distance("hots", "host"), 2);
        assert_eq!(distance("", "dns"), 3);
    }
}
