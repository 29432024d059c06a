//! What is typed about the network of a sandbox: the same for `msb run`, `create`, `modify` and `msb-net explain`.

use clap::Args;

use super::dns::{NAMESERVERS_MAX, Nameserver, QUERY_TIMEOUT_MS_MAX};
use super::policy::{Policy, Profile, RULES_MAX};
use super::ports::{self, PublishedPorts};
use super::prefix::Prefix;
use super::rule::{self, Action, Rule};
use super::{CONNECTIONS_MAX, NetSpec};
use crate::cli::error::Failure;

/// Options on the network.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Network")]
pub struct NetArgs {
    /// What may be reached: public, private, host, several with commas; all; or none, no network (default: public)
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    net: Vec<Profile>,
    /// A rule, the first that fits counts: allow@example.com:tcp:443, deny@10.0.0.0/8; several with commas. Without --net
    /// nothing else is allowed
    #[arg(long, value_name = "RULE", value_parser = rule::parse_list)]
    net_rule: Vec<Rules>,
    /// What holds where no rule fits: allow or deny (default: deny)
    #[arg(long, value_name = "ACTION", value_parser = rule::parse_action, conflicts_with_all = ["net_default_egress", "net_default_ingress", "no_net"])]
    net_default: Option<Action>,
    /// The same, for what the guest begins
    #[arg(long, value_name = "ACTION", value_parser = rule::parse_action, conflicts_with = "no_net")]
    net_default_egress: Option<Action>,
    /// The same, for who comes to published ports (default: allow)
    #[arg(long, value_name = "ACTION", value_parser = rule::parse_action, conflicts_with = "no_net")]
    net_default_ingress: Option<Action>,
    /// Nothing in or out, but what --net-rule allows
    #[arg(long, conflicts_with = "net")]
    no_net: bool,
    /// Publish a port, or a range of ports
    #[arg(short, long, value_name = "[BIND:]HOST:GUEST[/udp]")]
    port: Vec<PublishedPorts>,
    /// Ask this server for names, and not those of the host
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    dns_nameserver: Vec<Nameserver>,
    /// How long to wait for an answer to a question for a name (default: 5000)
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=i64::from(QUERY_TIMEOUT_MS_MAX)))]
    dns_query_timeout_ms: Option<u32>,
    /// Believe answers with private addresses
    #[arg(long)]
    no_dns_rebind_protection: bool,
    /// Connections that may be open at a time, each way (default: 4096)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX)))]
    max_connections: Option<u32>,
    /// Take the guest's IPv4 address from here (default: 172.16.0.0/12)
    #[arg(long, value_name = "CIDR")]
    net_ipv4_pool: Option<Prefix>,
    /// Take the guest's IPv6 address from here (default: fd42:6d73:62::/48)
    #[arg(long, value_name = "CIDR")]
    net_ipv6_pool: Option<Prefix>,
    /// The host's network translates these addresses to IPv4, beside 64:ff9b::/96
    #[arg(long, value_name = "CIDR", value_parser = parse_nat64)]
    net_nat64_prefix: Vec<Prefix>,
}

/// What one `--net-rule` says. A name of its own, since clap would take a list for several options.
type Rules = Vec<Rule>;

/// Shortest and longest range that a guest's network of its own is cut from.
const IPV4_POOL_LENGTH_MAX: u8 = 30;
const IPV6_POOL_LENGTH_MAX: u8 = 64;

impl NetArgs {
    /// Whether anything was said.
    pub fn is_given(&self) -> bool {
        self.is_policy_given()
            || !self.port.is_empty()
            || !self.dns_nameserver.is_empty()
            || self.dns_query_timeout_ms.is_some()
            || self.no_dns_rebind_protection
            || self.max_connections.is_some()
            || self.net_ipv4_pool.is_some()
            || self.net_ipv6_pool.is_some()
            || !self.net_nat64_prefix.is_empty()
    }

    /// Whether something was said that makes a new policy.
    fn is_policy_given(&self) -> bool {
        !self.net.is_empty()
            || !self.net_rule.is_empty()
            || self.net_default.is_some()
            || self.net_default_egress.is_some()
            || self.net_default_ingress.is_some()
            || self.no_net
    }

    /// The network of a new sandbox.
    pub fn spec(&self) -> Result<NetSpec, Failure> {
        let mut spec = NetSpec::public();
        self.change(&mut spec)?;
        Ok(spec)
    }

    /// Changes a network: what is said takes the place of what was there; ports come to those that are there.
    pub fn change(&self, spec: &mut NetSpec) -> Result<(), Failure> {
        if self.is_policy_given() {
            spec.policy = self.policy()?;
            spec.enabled = !self.net.contains(&Profile::None);
        }
        if !self.dns_nameserver.is_empty() {
            spec.dns.nameservers = self.dns_nameserver.clone();
        }
        if let Some(timeout) = self.dns_query_timeout_ms {
            spec.dns.query_timeout_ms = timeout;
        }
        if self.no_dns_rebind_protection {
            spec.dns.rebind_protection = false;
        }
        spec.max_connections = self.max_connections.unwrap_or(spec.max_connections);
        spec.ipv4_pool = self.net_ipv4_pool.unwrap_or(spec.ipv4_pool);
        spec.ipv6_pool = self.net_ipv6_pool.unwrap_or(spec.ipv6_pool);
        if !self.net_nat64_prefix.is_empty() {
            spec.nat64 = self.net_nat64_prefix.clone();
        }
        for port in &self.port {
            if !spec.ports.contains(port) {
                spec.ports.push(*port);
            }
        }
        check(spec)
    }

    /// Rules come before profiles. Where rules are given alone, they are all there is, as in the reference.
    fn policy(&self) -> Result<Policy, Failure> {
        let alone = [Profile::All, Profile::None];
        if self.net.len() > 1
            && let Some(profile) = self.net.iter().find(|profile| alone.contains(profile))
        {
            return Err(Failure::usage(format!(
                "--net {profile} goes with no other network"
            )));
        }
        let rules: Vec<Rule> = self.net_rule.iter().flatten().cloned().collect();
        let egress = self.net_default_egress.or(self.net_default);
        let ingress = self.net_default_ingress.or(self.net_default);
        if self.net.contains(&Profile::None)
            && (!rules.is_empty() || egress.is_some() || ingress.is_some())
        {
            return Err(
                Failure::usage("--net none has no network that rules could be on")
                    .hint("--no-net denies everything but what --net-rule allows"),
            );
        }
        let mut policy = if !self.net.is_empty() {
            Policy::of(&self.net)
        } else if rules.is_empty() && egress.is_none() && !self.no_net {
            Policy::public()
        } else {
            Policy::nothing()
        };
        policy.rules.splice(0..0, rules);
        if self.no_net {
            policy.ingress = Action::Deny;
        }
        policy.egress = egress.unwrap_or(policy.egress);
        policy.ingress = ingress.unwrap_or(policy.ingress);
        Ok(policy)
    }
}

/// What a network cannot be, wherever it comes from.
fn check(spec: &NetSpec) -> Result<(), Failure> {
    if spec.policy.rules.len() > RULES_MAX {
        return Err(Failure::usage(format!(
            "more than {RULES_MAX} rules of the network"
        )));
    }
    if spec.dns.nameservers.len() > NAMESERVERS_MAX {
        return Err(Failure::usage(format!(
            "more than {NAMESERVERS_MAX} name servers"
        )));
    }
    if !spec.enabled && !spec.ports.is_empty() {
        return Err(Failure::usage(
            "a sandbox without a network cannot publish ports",
        ));
    }
    let pool = |pool: Prefix, ipv6: bool, length_max: u8| {
        let fits = pool.address().is_ipv6() == ipv6 && pool.length() <= length_max;
        fits.then_some(()).ok_or_else(|| {
            Failure::usage(format!(
                "'{pool}' is not a range of {} for a guest",
                if ipv6 { "IPv6" } else { "IPv4" }
            ))
            .hint(format!("it has a length of {length_max} at most"))
        })
    };
    pool(spec.ipv4_pool, false, IPV4_POOL_LENGTH_MAX)?;
    pool(spec.ipv6_pool, true, IPV6_POOL_LENGTH_MAX)?;
    ports::check(&spec.ports)
}

/// A prefix of one of the lengths that RFC 6052, 2.2 has.
fn parse_nat64(text: &str) -> Result<Prefix, Failure> {
    let prefix: Prefix = text.parse()?;
    let lengths = [32, 40, 48, 56, 64, 96];
    if prefix.address().is_ipv4() || !lengths.contains(&prefix.length()) {
        return Err(Failure::usage(format!(
            "'{prefix}' is no prefix that IPv4 is translated to"
        ))
        .hint("it is of IPv6, of length 32, 40, 48, 56, 64 or 96 (RFC 6052)"));
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        net: NetArgs,
    }

    fn spec(words: &str) -> NetSpec {
        typed(words).unwrap().spec().unwrap()
    }

    fn typed(words: &str) -> Option<NetArgs> {
        let words = ["x"].into_iter().chain(words.split_whitespace());
        Line::try_parse_from(words).ok().map(|line| line.net)
    }

    fn rules(words: &str) -> String {
        let policy = spec(words).policy;
        let rules: Vec<String> = policy.rules.iter().map(ToString::to_string).collect();
        format!("{} {} {}", rules.join(","), policy.egress, policy.ingress)
    }

    #[test]
    fn the_policy_is_what_is_said() {
        assert_eq!(spec(""), NetSpec::public());
        assert_eq!(
            rules("--net public,host"),
            "allow@public,allow@host deny allow"
        );
        assert_eq!(
            rules("--net public --net private"),
            "allow@public,allow@private deny allow"
        );
        assert_eq!(rules("--net all"), " allow allow");
        assert_eq!(rules("--no-net"), " deny deny");
        assert_eq!(rules("--net-default deny"), " deny deny");
        assert_eq!(
            rules("--net-default-ingress deny"),
            "allow@public deny deny"
        );
        assert_eq!(
            rules("--net-rule deny@1.2.3.4,allow@public"),
            "deny@1.2.3.4,allow@public deny allow"
        );
        assert_eq!(
            rules("--net public --net-rule deny@1.2.3.4 --net-rule allow@10.0.0.0/8"),
            "deny@1.2.3.4,allow@10.0.0.0/8,allow@public deny allow"
        );
        assert_eq!(
            rules("--no-net --net-rule allow@example.com"),
            "allow@domain=example.com deny deny"
        );
        assert_eq!(
            rules("--net-rule deny@meta --net-default-egress allow"),
            "deny@meta allow allow"
        );
        assert!(!spec("--net none").enabled);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for words in [
            "--net all,public",
            "--net none --net-rule allow@any",
            "--net none -p 80:80",
            "-p 80:80 -p 80:81",
        ] {
            assert!(typed(words).unwrap().spec().is_err(), "{words}");
        }
        for words in [
            "--no-net --net public",
            "--no-net --net-default allow",
            "--net-default deny --net-default-egress allow",
            "--net moon",
            "--max-connections 0",
            "--dns-query-timeout-ms 0",
            "--net-nat64-prefix 64:ff9b::/95",
        ] {
            assert!(typed(words).is_none(), "{words}");
        }
        assert!(typed("--net-ipv4-pool fd00::/8").unwrap().spec().is_err());
        assert!(
            typed("--net-ipv4-pool 10.0.0.0/31")
                .unwrap()
                .spec()
                .is_err()
        );
    }

    #[test]
    fn a_change_leaves_what_it_does_not_speak_of() {
        let mut spec = spec("--net private -p 80:80 --dns-nameserver 9.9.9.9");
        let before = spec.clone();
        typed("").unwrap().change(&mut spec).unwrap();
        assert_eq!(spec, before);
        typed("-p 81:81 -p 80:80")
            .unwrap()
            .change(&mut spec)
            .unwrap();
        assert_eq!(spec.ports.len(), 2);
        assert_eq!((&spec.policy, &spec.dns), (&before.policy, &before.dns));
        typed("--net host").unwrap().change(&mut spec).unwrap();
        assert_eq!(spec.policy, Policy::of(&[Profile::Host]));
    }
}
