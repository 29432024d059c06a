//! Network options of the command line, shared by `msb run`, `msb create`, `msb modify` and `msb
//! net explain`.

use std::path::PathBuf;

use clap::Args;

use super::dns::{
    NAMESERVERS_MAX, Nameserver, QUERY_TIMEOUT_MS_MAX, SEARCH_DOMAINS_MAX, SearchDomain,
};
use super::name::NamePattern;
use super::policy::{Policy, Profile, RULES_MAX};
use super::ports::{self, PublishedPorts};
use super::prefix::Prefix;
use super::rule::{self, Action, Rule};
use super::secret::{self, SecretSpec, SourceOption, ViolationAction};
use super::tls::{BYPASS_MAX, TLS_PORTS_MAX};
use super::{CONNECTIONS_MAX, NetSpec};
use crate::cli::error::Failure;

/// Options on the network.
#[derive(Clone, Debug, Default, Args)]
pub struct NetArgs {
    /// Allow groups of addresses: public, private, host, all or none [default: public]
    ///
    /// Several groups are separated by commas. `none` gives the sandbox no network. See msb-net(1)
    /// for the addresses of each group.
    #[arg(long, value_name = "GROUP", value_delimiter = ',', help_heading = "Network")]
    net: Vec<Profile>,
    /// Select a network of docker: none, or bridge for the default
    ///
    /// `none` is the same as `--net none`. Other networks of docker do not exist.
    #[arg(
        long,
        value_name = "NETWORK",
        value_parser = parse_network,
        conflicts_with_all = ["net", "no_net"],
        help_heading = "Network"
    )]
    network: Option<DockerNetwork>,
    /// Add a rule, such as allow@example.com:tcp:443; the first match decides
    ///
    /// Several rules are separated by commas. Without `--net`, nothing but what rules allow is
    /// allowed. The syntax of RULE is in msb-net(1).
    #[arg(long, value_name = "RULE", value_parser = rule::parse_list, help_heading = "Network")]
    net_rule: Vec<Rules>,
    /// Set the action when no rule matches: allow or deny [default: deny]
    #[arg(
        long,
        value_name = "ACTION",
        value_parser = rule::parse_action,
        conflicts_with_all = ["net_default_egress", "net_default_ingress", "no_net"],
        help_heading = "Network"
    )]
    net_default: Option<Action>,
    /// Set the action for connections of the guest when no rule matches
    #[arg(
        long,
        value_name = "ACTION",
        value_parser = rule::parse_action,
        conflicts_with = "no_net",
        help_heading = "Network"
    )]
    net_default_egress: Option<Action>,
    /// Set the action for connections to published ports when no rule matches [default: allow]
    #[arg(
        long,
        value_name = "ACTION",
        value_parser = rule::parse_action,
        conflicts_with = "no_net",
        help_heading = "Network"
    )]
    net_default_ingress: Option<Action>,
    /// Deny all that no --net-rule allows, in both directions
    #[arg(long, conflicts_with = "net", help_heading = "Network")]
    no_net: bool,
    /// Publish a port or a range of ports of the guest on the host
    ///
    /// A range is written as `8000-8009:80-89`. BIND is an address of the host, 127.0.0.1 by
    /// default; an IPv6 address is in brackets. The protocol is TCP, or UDP with `/udp`.
    #[arg(
        short,
        long,
        visible_alias = "publish",
        value_name = "[BIND:]HOST:GUEST[/udp]",
        help_heading = "Network"
    )]
    port: Vec<PublishedPorts>,
    /// Send DNS queries to ADDRESS instead of the name servers of the host
    ///
    /// If a server does not answer, the query goes to the next one.
    #[arg(long, value_name = "ADDRESS[:PORT]", help_heading = "Network")]
    dns_nameserver: Vec<Nameserver>,
    /// Let the guest look up short names in DOMAIN too; host: in the search domains of the host
    ///
    /// The domains are written to `/etc/resolv.conf` of the guest at each start, in their order. By
    /// default there are none, since those of the host would tell the guest the network that the
    /// host belongs to. `--dns-search .` sets none where `config.json` has a default.
    #[arg(long, value_name = "DOMAIN", value_parser = parse_search, help_heading = "Network")]
    dns_search: Vec<Option<SearchDomain>>,
    /// Set the timeout of a DNS query in milliseconds [default: 5000]
    ///
    /// The time covers the queries to all servers.
    #[arg(
        long,
        value_name = "MS",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(QUERY_TIMEOUT_MS_MAX)),
        help_heading = "Network"
    )]
    dns_query_timeout_ms: Option<u32>,
    /// Accept DNS answers that contain private addresses
    #[arg(long, help_heading = "Network")]
    no_dns_rebind_protection: bool,
    /// Limit the open connections in each direction [default: 4096]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX)),
        help_heading = "Network"
    )]
    max_connections: Option<u32>,
    /// Take the guest's IPv4 address from CIDR [default: 172.16.0.0/12]
    #[arg(long, value_name = "CIDR", help_heading = "Network")]
    net_ipv4_pool: Option<Prefix>,
    /// Take the guest's IPv6 address from CIDR [default: fd42:6d73:62::/48]
    #[arg(long, value_name = "CIDR", help_heading = "Network")]
    net_ipv6_pool: Option<Prefix>,
    /// Declare a NAT64 prefix of the host's network, besides 64:ff9b::/96
    #[arg(long, value_name = "CIDR", value_parser = parse_nat64, help_heading = "Network")]
    net_nat64_prefix: Vec<Prefix>,
    /// Intercept TLS connections of the guest, which then trusts a certificate of the sandbox
    ///
    /// See msb-intercept(8). The other options of this section imply it, but `--on-secret-violation`.
    #[arg(long, help_heading = "Secrets and TLS")]
    tls_intercept: bool,
    /// Intercept connections to PORT [default: 443]
    #[arg(
        long,
        value_name = "PORT",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(1..),
        help_heading = "Secrets and TLS"
    )]
    tls_intercept_port: Vec<u16>,
    /// Do not intercept connections to HOST; *.NAME includes all names below NAME
    #[arg(long, value_name = "HOST", value_delimiter = ',', help_heading = "Secrets and TLS")]
    tls_bypass: Vec<NamePattern>,
    /// Trust the certificate authorities in a PEM file for servers, besides those of the host
    #[arg(long, value_name = "FILE", help_heading = "Secrets and TLS")]
    tls_upstream_ca_cert: Vec<PathBuf>,
    /// Allow UDP to intercepted ports, over which QUIC is not intercepted
    #[arg(long, help_heading = "Secrets and TLS")]
    no_block_quic: bool,
    /// Give the guest a placeholder for a secret, whose value is sent to HOST only
    ///
    /// The value is that of the environment variable NAME, or comes from `--secret-from`. It never
    /// enters the guest: the guest's variable NAME has a placeholder, which is replaced in requests
    /// over HTTPS to HOST. The options are in msb-intercept(8).
    #[arg(long, value_name = "NAME[:OPTIONS]@HOST,...", help_heading = "Secrets and TLS")]
    secret: Vec<String>,
    /// Read the value of secret NAME from env:VARIABLE, file:PATH, fd:N, cred:NAME or cmd:COMMAND
    #[arg(long, value_name = "NAME=SOURCE", help_heading = "Secrets and TLS")]
    secret_from: Vec<SourceOption>,
    /// Set the action when a placeholder is sent to another host [default: block-and-log]
    ///
    /// The actions are `block`, `block-and-log`, `block-and-terminate` and `passthrough`.
    #[arg(long, value_name = "ACTION", help_heading = "Secrets and TLS")]
    on_secret_violation: Option<ViolationAction>,
}

/// Parses a search domain. As with docker, `.` stands for none.
fn parse_search(text: &str) -> Result<Option<SearchDomain>, Failure> {
    if text == "." { Ok(None) } else { text.parse().map(Some) }
}

/// A network of docker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DockerNetwork {
    None,
    Bridge,
}

fn parse_network(text: &str) -> Result<DockerNetwork, Failure> {
    match text {
        "none" => Ok(DockerNetwork::None),
        "bridge" | "default" => Ok(DockerNetwork::Bridge),
        "host" => Err(Failure::usage(
            "a virtual machine cannot use the host's network; use --net host to reach the host's \
             addresses, and -p to publish ports",
        )),
        _ => Err(Failure::usage(
            "only the networks none and bridge exist; use --net to allow groups of addresses",
        )),
    }
}

/// Rules of one `--net-rule`. The alias keeps clap from taking the list for several options.
type Rules = Vec<Rule>;

/// Longest prefix length of a guest's IPv4 pool.
const IPV4_POOL_LENGTH_MAX: u8 = 30;
const IPV6_POOL_LENGTH_MAX: u8 = 64;

impl NetArgs {
    /// Returns whether any option was given.
    pub fn is_given(&self) -> bool {
        self.is_policy_given()
            || !self.port.is_empty()
            || !self.dns_nameserver.is_empty()
            || !self.dns_search.is_empty()
            || self.dns_query_timeout_ms.is_some()
            || self.no_dns_rebind_protection
            || self.max_connections.is_some()
            || self.net_ipv4_pool.is_some()
            || self.net_ipv6_pool.is_some()
            || !self.net_nat64_prefix.is_empty()
            || self.is_tls_given()
            || !self.secret.is_empty()
            || !self.secret_from.is_empty()
            || self.on_secret_violation.is_some()
    }

    /// Returns whether an option was given that asks for TLS interception.
    fn is_tls_given(&self) -> bool {
        self.tls_intercept
            || !self.tls_intercept_port.is_empty()
            || !self.tls_bypass.is_empty()
            || !self.tls_upstream_ca_cert.is_empty()
            || self.no_block_quic
    }

    /// Returns whether search domains were given.
    pub fn is_search_given(&self) -> bool {
        !self.dns_search.is_empty()
    }

    /// Returns the groups of addresses.
    fn profiles(&self) -> &[Profile] {
        match self.network {
            Some(DockerNetwork::None) => &[Profile::None],
            Some(DockerNetwork::Bridge) | None => &self.net,
        }
    }

    /// Returns whether an option was given that replaces the policy.
    fn is_policy_given(&self) -> bool {
        !self.profiles().is_empty()
            || !self.net_rule.is_empty()
            || self.net_default.is_some()
            || self.net_default_egress.is_some()
            || self.net_default_ingress.is_some()
            || self.no_net
    }

    /// Returns the network of a new sandbox.
    pub fn spec(&self) -> Result<NetSpec, Failure> {
        let mut spec = NetSpec::public();
        self.change(&mut spec)?;
        Ok(spec)
    }

    /// Changes a network: given options replace the current values; ports are added to the current
    /// ones.
    pub fn change(&self, spec: &mut NetSpec) -> Result<(), Failure> {
        if self.is_policy_given() {
            spec.policy = self.policy()?;
            spec.enabled = !self.profiles().contains(&Profile::None);
        }
        if !self.dns_nameserver.is_empty() {
            spec.dns.nameservers = self.dns_nameserver.clone();
        }
        if !self.dns_search.is_empty() {
            spec.dns.search = self.dns_search.iter().flatten().cloned().collect();
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
        self.change_tls(spec)?;
        for port in &self.port {
            if !spec.ports.contains(port) {
                spec.ports.push(*port);
            }
        }
        check(spec)
    }

    /// Changes TLS interception and secrets. A secret of the same name is replaced.
    fn change_tls(&self, spec: &mut NetSpec) -> Result<(), Failure> {
        let tls = &mut spec.tls;
        tls.intercept |= self.is_tls_given();
        if !self.tls_intercept_port.is_empty() {
            tls.ports.clone_from(&self.tls_intercept_port);
        }
        if !self.tls_bypass.is_empty() {
            tls.bypass.clone_from(&self.tls_bypass);
        }
        if !self.tls_upstream_ca_cert.is_empty() {
            let absolute = self.tls_upstream_ca_cert.iter().map(|path| {
                std::path::absolute(path)
                    .ok()
                    .filter(|path| path.is_file() && path.to_str().is_some())
                    .ok_or_else(|| {
                        let path = path.display().to_string();
                        Failure::usage(format!("no file '{}'", crate::cli::escape::escape(&path)))
                    })
            });
            tls.upstream_ca = absolute.collect::<Result<_, _>>()?;
        }
        tls.allow_quic |= self.no_block_quic;
        // Parsed here and not by clap, whose messages would repeat a value that was typed by mistake.
        let secrets: Vec<SecretSpec> =
            self.secret.iter().map(|text| text.parse()).collect::<Result<_, Failure>>()?;
        for (index, secret) in secrets.iter().enumerate() {
            if secrets[..index].iter().any(|other| other.name == secret.name) {
                let message = format!("secret {} is given twice", secret.name);
                return Err(
                    Failure::usage(message).hint("separate the hosts of a secret by commas")
                );
            }
            tls.secrets.retain(|old| old.name != secret.name);
            tls.secrets.push(secret.clone());
        }
        for SourceOption { name, source } in &self.secret_from {
            let secret = tls.secrets.iter_mut().find(|secret| secret.name == *name);
            let secret = secret.ok_or_else(|| {
                Failure::usage(format!("--secret-from names {name}, which is not a secret"))
                    .hint(format!("add --secret {name}@HOST"))
            })?;
            secret.source = Some(source.clone());
        }
        tls.on_violation = self.on_secret_violation.or(tls.on_violation);
        if tls.ports.len() > TLS_PORTS_MAX || tls.bypass.len() > BYPASS_MAX {
            let message = format!(
                "at most {TLS_PORTS_MAX} ports can be intercepted, and {BYPASS_MAX} names bypassed"
            );
            return Err(Failure::usage(message));
        }
        if tls.ports.contains(&53) {
            return Err(Failure::usage("port 53 is that of DNS and cannot be intercepted"));
        }
        secret::check_all(&tls.secrets, &tls.bypass)?;
        if tls.is_active() && !spec.enabled {
            return Err(Failure::usage("a sandbox without a network has no TLS to intercept")
                .hint("omit --net none, or the secrets and --tls options"));
        }
        Ok(())
    }

    /// Returns the policy. Rules precede profiles. With rules alone there are no profiles, as in
    /// microsandbox.
    fn policy(&self) -> Result<Policy, Failure> {
        let alone = [Profile::All, Profile::None];
        let profiles = self.profiles();
        if profiles.len() > 1
            && let Some(profile) = profiles.iter().find(|profile| alone.contains(profile))
        {
            return Err(Failure::usage(format!(
                "--net {profile} cannot be combined with other networks"
            )));
        }
        let rules: Vec<Rule> = self.net_rule.iter().flatten().cloned().collect();
        let egress = self.net_default_egress.or(self.net_default);
        let ingress = self.net_default_ingress.or(self.net_default);
        if profiles.contains(&Profile::None)
            && (!rules.is_empty() || egress.is_some() || ingress.is_some())
        {
            return Err(Failure::usage("--net none cannot be combined with network rules")
                .hint("use --no-net to deny all but what --net-rule allows"));
        }
        let mut policy = if !profiles.is_empty() {
            Policy::of(profiles)
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

/// Checks the limits of a network, from any source.
fn check(spec: &NetSpec) -> Result<(), Failure> {
    if spec.policy.rules.len() > RULES_MAX {
        return Err(Failure::usage(format!("more than {RULES_MAX} network rules")));
    }
    if spec.dns.search.len() > SEARCH_DOMAINS_MAX {
        return Err(Failure::usage(format!(
            "too many search domains (at most {SEARCH_DOMAINS_MAX})"
        )));
    }
    if spec.dns.nameservers.len() > NAMESERVERS_MAX {
        return Err(Failure::usage(format!("more than {NAMESERVERS_MAX} name servers")));
    }
    if !spec.enabled && !spec.ports.is_empty() {
        return Err(Failure::usage("a sandbox without a network cannot publish ports"));
    }
    let pool = |pool: Prefix, ipv6: bool, length_max: u8| {
        let fits = pool.address().is_ipv6() == ipv6 && pool.length() <= length_max;
        fits.then_some(()).ok_or_else(|| {
            Failure::usage(format!(
                "'{pool}' is not a valid {} range for a guest",
                if ipv6 { "IPv6" } else { "IPv4" }
            ))
            .hint(format!("use a prefix length of at most {length_max}"))
        })
    };
    pool(spec.ipv4_pool, false, IPV4_POOL_LENGTH_MAX)?;
    pool(spec.ipv6_pool, true, IPV6_POOL_LENGTH_MAX)?;
    ports::check(&spec.ports)
}

/// Parses a NAT64 prefix, whose length must be one of RFC 6052, 2.2.
fn parse_nat64(text: &str) -> Result<Prefix, Failure> {
    let prefix: Prefix = text.parse()?;
    let lengths = [32, 40, 48, 56, 64, 96];
    if prefix.address().is_ipv4() || !lengths.contains(&prefix.length()) {
        return Err(Failure::usage(format!("'{prefix}' is not a NAT64 prefix"))
            .hint("use an IPv6 prefix of length 32, 40, 48, 56, 64 or 96 (RFC 6052)"));
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
        assert_eq!(rules("--net public,host"), "allow@public,allow@host deny allow");
        assert_eq!(rules("--net public --net private"), "allow@public,allow@private deny allow");
        assert_eq!(rules("--net all"), " allow allow");
        assert_eq!(spec("--network none"), spec("--net none"));
        assert_eq!(spec("--network bridge"), spec(""));
        assert_eq!(spec("--publish 1:2"), spec("-p 1:2"));
        assert_eq!(rules("--no-net"), " deny deny");
        assert_eq!(rules("--net-default deny"), " deny deny");
        assert_eq!(rules("--net-default-ingress deny"), "allow@public deny deny");
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
        assert!(typed("--net-ipv4-pool 10.0.0.0/31").unwrap().spec().is_err());
    }

    #[test]
    fn interception_and_secrets_are_what_is_said() {
        let tls = spec("--secret A@a.test --secret-from A=fd:5 --tls-intercept-port 8443").tls;
        assert!(tls.is_active() && tls.covers_port(8443));
        assert_eq!(tls.secrets[0].source().to_string(), "fd:5");
        assert!(spec("--tls-bypass *.a.test").tls.is_active());
        assert!(!spec("--on-secret-violation block").tls.is_active());
        for words in [
            "--secret A@a.test --net none",
            "--secret A@a.test --secret A@b.test",
            "--secret A@a.test --tls-bypass *.test",
            "--secret-from A=fd:5",
            "--tls-intercept-port 53",
            "--tls-upstream-ca-cert /none",
            "--secret A=b@a.test",
            "--secret A",
        ] {
            assert!(typed(words).unwrap().spec().is_err(), "{words}");
        }
        assert!(typed("--on-secret-violation moon").is_none());
    }

    #[test]
    fn a_change_leaves_what_it_does_not_speak_of() {
        let mut spec = spec("--net private -p 80:80 --dns-nameserver 9.9.9.9");
        let before = spec.clone();
        typed("").unwrap().change(&mut spec).unwrap();
        assert_eq!(spec, before);
        typed("-p 81:81 -p 80:80").unwrap().change(&mut spec).unwrap();
        assert_eq!(spec.ports.len(), 2);
        assert_eq!((&spec.policy, &spec.dns), (&before.policy, &before.dns));
        typed("--net host").unwrap().change(&mut spec).unwrap();
        assert_eq!(spec.policy, Policy::of(&[Profile::Host]));
    }
}
