//! The network of a stored configuration, in our terms.
//!
//! Its rules have the same grammar as ours when they are typed, so each is written out and read as if it had been. A rule
//! that cannot be had makes all of the policy one that is lacking: without it, the others would mean something else.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use libmsb::cli::escape::escape;
use libmsb::net::dns::QUERY_TIMEOUT_MS_MAX;
use libmsb::net::policy::{Policy, RULES_MAX};
use libmsb::net::rule::{Action, Rule};
use libmsb::net::{CONNECTIONS_MAX, NetSpec};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{says_something, take};

/// Reads it. What a sandbox of ours cannot have of it is put to `lacking`.
pub(super) fn network(
    mut fields: Map<String, Value>,
    lacking: &mut Vec<String>,
) -> Result<NetSpec, String> {
    if take::<bool>(&mut fields, "enabled")? == Some(false) {
        return Ok(NetSpec::none());
    }
    let mut net = NetSpec::public();
    if let Some(stored) = take::<StoredPolicy>(&mut fields, "policy")? {
        match stored.policy() {
            Some(policy) => net.policy = policy,
            None => {
                // The narrowest, if it is made without: never more than was allowed.
                net.policy = Policy::nothing();
                net.policy.ingress = Action::Deny;
                lacking.push("network: policy".to_owned());
            }
        }
    }
    for port in take::<Vec<Port>>(&mut fields, "ports")?.unwrap_or_default() {
        match port.to_string().parse() {
            Ok(ports) => net.ports.push(ports),
            Err(_) => lacking.push(format!("network: port {port}")),
        }
    }
    if let Some(most) = take::<u32>(&mut fields, "max_connections")? {
        net.max_connections = most.clamp(1, CONNECTIONS_MAX);
    }
    if let Some(dns) = take(&mut fields, "dns")? {
        names(&mut net, dns, lacking)?;
    }
    if let Some(tls) = take::<Map<String, Value>>(&mut fields, "tls")?
        && tls.get("enabled") != Some(&Value::Bool(false))
    {
        lacking.push("network: 'tls'".to_owned());
    }
    // What happens where a secret leaks says nothing when there is no secret.
    if let Some(mut secrets) = take::<Map<String, Value>>(&mut fields, "secrets")?
        && secrets
            .remove("secrets")
            .is_some_and(|list| says_something(&list))
    {
        lacking.push("network: 'secrets'".to_owned());
    }
    fields.retain(|_, value| says_something(value));
    lacking.extend(fields.keys().map(|name| named("network", name)));
    Ok(net)
}

/// How names are found.
fn names(
    net: &mut NetSpec,
    mut dns: Map<String, Value>,
    lacking: &mut Vec<String>,
) -> Result<(), String> {
    if let Some(protection) = take(&mut dns, "rebind_protection")? {
        net.dns.rebind_protection = protection;
    }
    if let Some(timeout) = take::<u32>(&mut dns, "query_timeout_ms")? {
        net.dns.query_timeout_ms = timeout.clamp(1, QUERY_TIMEOUT_MS_MAX);
    }
    for server in take::<Vec<String>>(&mut dns, "nameservers")?.unwrap_or_default() {
        match server.parse() {
            Ok(server) => net.dns.nameservers.push(server),
            Err(_) => lacking.push(format!("network: name server '{}'", escape(&server))),
        }
    }
    dns.retain(|_, value| says_something(value));
    lacking.extend(dns.keys().map(|name| named("network: dns", name)));
    Ok(())
}

fn named(whose: &str, field: &str) -> String {
    format!("{whose}: '{}'", escape(field))
}

/// A published port.
#[derive(Debug, Deserialize)]
struct Port {
    host_port: u16,
    guest_port: u16,
    #[serde(default)]
    protocol: PortProtocol,
    #[serde(default = "loopback")]
    host_bind: IpAddr,
}

fn loopback() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PortProtocol {
    #[default]
    #[serde(alias = "Tcp")]
    Tcp,
    #[serde(alias = "Udp")]
    Udp,
}

/// As `--port` has it.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_bind {
            IpAddr::V4(bind) => write!(f, "{bind}:")?,
            IpAddr::V6(bind) => write!(f, "[{bind}]:")?,
        }
        write!(f, "{}:{}", self.host_port, self.guest_port)?;
        match self.protocol {
            PortProtocol::Tcp => Ok(()),
            PortProtocol::Udp => f.write_str("/udp"),
        }
    }
}

/// What is missing denies, as it does there.
#[derive(Debug, Deserialize)]
struct StoredPolicy {
    #[serde(default = "deny")]
    default_egress: Action,
    #[serde(default = "deny")]
    default_ingress: Action,
    #[serde(default)]
    rules: Vec<StoredRule>,
}

fn deny() -> Action {
    Action::Deny
}

/// A rule, which there has several protocols and ports, and here one of each.
#[derive(Debug, Deserialize)]
struct StoredRule {
    action: String,
    direction: String,
    destination: Destination,
    #[serde(default)]
    protocols: Vec<String>,
    #[serde(default)]
    ports: Vec<Ports>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Destination {
    Any,
    Cidr(String),
    Domain(String),
    DomainSuffix(String),
    Group(String),
}

#[derive(Debug, Deserialize)]
struct Ports {
    start: u16,
    end: u16,
}

impl StoredPolicy {
    /// `None` when a rule is not one of ours.
    fn policy(&self) -> Option<Policy> {
        let mut rules = Vec::new();
        for stored in &self.rules {
            rules.extend(stored.rules()?);
        }
        (rules.len() <= RULES_MAX).then_some(Policy {
            rules,
            egress: self.default_egress,
            ingress: self.default_ingress,
        })
    }
}

impl StoredRule {
    /// One for each protocol and range of ports, which say together what it says.
    fn rules(&self) -> Option<Vec<Rule>> {
        let any = || vec!["any".to_owned()];
        let protocols = match self.protocols.as_slice() {
            [] => any(),
            named => named.to_vec(),
        };
        let ports = match self.ports.as_slice() {
            [] => any(),
            ranges => ranges.iter().map(Ports::typed).collect(),
        };
        let (action, direction) = (&self.action, &self.direction);
        let target = self.destination.typed();
        let each = protocols.iter().flat_map(|protocol| {
            let head = format!("{action}:{direction}@{target}:{protocol}");
            ports.iter().map(move |ports| format!("{head}:{ports}"))
        });
        each.map(|typed| typed.parse().ok()).collect()
    }
}

impl Ports {
    fn typed(&self) -> String {
        format!("{}-{}", self.start, self.end)
    }
}

impl Destination {
    fn typed(&self) -> String {
        match self {
            Destination::Any => "any".to_owned(),
            Destination::Cidr(range) if range.contains(':') => format!("[{range}]"),
            Destination::Cidr(range) => range.clone(),
            Destination::Domain(name) => format!("domain={name}"),
            Destination::DomainSuffix(suffix) => format!("suffix={suffix}"),
            Destination::Group(group) => match group.as_str() {
                "link_local" => "link-local".to_owned(),
                "metadata" => "meta".to_owned(),
                group => group.to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: Value) -> (NetSpec, Vec<String>) {
        let mut lacking = Vec::new();
        let Value::Object(fields) = json else {
            panic!("no object")
        };
        let net = network(fields, &mut lacking).unwrap();
        (net, lacking)
    }

    fn rules(net: &NetSpec) -> Vec<String> {
        net.policy.rules.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_network_that_was_off_stays_off_and_one_nobody_changed_is_the_public_one() {
        let off = read(serde_json::json!({"enabled": false, "ports": [7]}));
        assert_eq!(off, (NetSpec::none(), vec![]));
        let usual = serde_json::json!({"enabled": true, "ports": [],
            "policy": {"default_egress": "deny", "default_ingress": "allow", "rules": [{"direction": "egress",
                "destination": {"group": "public"}, "protocols": [], "ports": [], "action": "allow"}]},
            "dns": {"rebind_protection": true, "nameservers": [], "query_timeout_ms": 5000},
            "tls": {"enabled": false, "intercepted_ports": [443]}, "max_connections": null,
            "secrets": {"secrets": [], "on_violation": "block-and-log"}, "trust_host_cas": false});
        assert_eq!(read(usual), (NetSpec::public(), vec![]));
        assert_eq!(read(serde_json::json!({})), (NetSpec::public(), vec![]));
    }

    #[test]
    fn ports_and_name_servers_are_taken_over() {
        let (net, lacking) = read(serde_json::json!({
            "ports": [
                {"host_port": 8080, "guest_port": 80, "protocol": "Tcp"},
                {"host_port": 53, "guest_port": 5353, "protocol": "udp", "host_bind": "::1"},
                {"host_port": 0, "guest_port": 1}],
            "dns": {"nameservers": ["9.9.9.9", "a name"], "query_timeout_ms": 100, "rebind_protection": false,
                "blocked_domains": ["x.org"]},
            "max_connections": 5
        }));
        let ports: Vec<String> = net.ports.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["127.0.0.1:8080:80/tcp", "[::1]:53:5353/udp"]);
        assert_eq!(
            (net.dns.nameservers.len(), net.dns.query_timeout_ms),
            (1, 100)
        );
        assert_eq!((net.dns.rebind_protection, net.max_connections), (false, 5));
        assert_eq!(
            lacking,
            [
                "network: port 127.0.0.1:0:1",
                "network: name server 'a name'",
                "network: dns: 'blocked_domains'"
            ]
        );
    }

    #[test]
    fn a_rule_of_several_protocols_and_ports_becomes_several_rules() {
        let (net, lacking) = read(
            serde_json::json!({"policy": {"default_egress": "allow", "rules": [
                {"direction": "egress", "destination": {"domain_suffix": "example.com"}, "action": "deny",
                    "protocols": ["tcp", "udp"], "ports": [{"start": 443, "end": 443}, {"start": 1, "end": 9}]},
                {"direction": "any", "destination": {"cidr": "fd00::/8"}, "action": "allow"},
                {"direction": "egress", "destination": {"group": "metadata"}, "action": "deny"},
                {"direction": "ingress", "destination": "any", "action": "deny"}
            ]}}),
        );
        assert!(lacking.is_empty());
        assert_eq!(
            (net.policy.egress, net.policy.ingress),
            (Action::Allow, Action::Deny)
        );
        let as_typed: Vec<Rule> = [
            "deny@*.example.com:tcp:443",
            "deny@*.example.com:tcp:1-9",
            "deny@*.example.com:udp:443",
            "deny@*.example.com:udp:1-9",
            "allow:any@[fd00::/8]",
            "deny@meta",
            "deny:ingress@any",
        ]
        .map(|typed| typed.parse::<Rule>().unwrap())
        .to_vec();
        assert_eq!(net.policy.rules, as_typed, "{:?}", rules(&net));
    }

    #[test]
    fn a_policy_with_a_rule_that_is_not_ours_is_lacking_and_leaves_nothing_open() {
        let (net, lacking) = read(serde_json::json!({"policy": {
            "default_egress": "allow", "default_ingress": "allow",
            "rules": [{"direction": "egress", "destination": {"group": "moon"}, "action": "deny"}]
        }}));
        assert_eq!(lacking, ["network: policy"]);
        assert_eq!((net.policy.egress, net.policy.ingress), (deny(), deny()));
        assert!(net.policy.rules.is_empty());
    }

    #[test]
    fn secrets_and_what_nobody_knows_are_lacking() {
        let (_, lacking) = read(serde_json::json!({
            "secrets": {"secrets": [{"env_var": "KEY", "value": "hidden"}]},
            "tls": {"enabled": true}, "interface": {"mtu": 1400}, "trust_host_cas": true
        }));
        let shown = lacking.join(" ");
        assert!(!shown.contains("hidden"));
        assert_eq!(
            shown,
            "network: 'tls' network: 'secrets' network: 'interface' network: 'trust_host_cas'"
        );
    }
}
