//! Conversion of a stored configuration's network.
//!
//! Its rules have the same grammar as typed rules, so each is written out as text and parsed. An
//! unsupported rule cannot be left out: without it, the other rules would have another meaning.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use libmsb::cli::escape::escape;
use libmsb::net::dns::QUERY_TIMEOUT_MS_MAX;
use libmsb::net::policy::{Policy, RULES_MAX};
use libmsb::net::rule::{Action, Rule};
use libmsb::net::{CONNECTIONS_MAX, NetSpec};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::fields::{Omission, UnsupportedField, is_set, parse, take_field, unknown};
use super::secrets::{GivenValues, interception};

/// Converts the network. Adds unsupported fields to `unsupported`. Returns it with the values of
/// its secrets.
pub(super) fn network(
    mut fields: Map<String, Value>,
    unsupported: &mut Vec<UnsupportedField>,
) -> Result<(NetSpec, GivenValues), String> {
    let mut net = NetSpec::public();
    let values = interception(&mut fields, &mut net, unsupported)?;
    if take_field::<bool>(&mut fields, "enabled")? == Some(false) {
        if !net.tls.secrets.is_empty() {
            unsupported.push(UnsupportedField::new(
                "network.secrets",
                "a sandbox without a network has no use for secrets",
                Omission::Allowed,
            ));
        }
        return Ok((NetSpec::none(), GivenValues::default()));
    }
    if let Some(policy) = fields.remove("policy").filter(|policy| !policy.is_null()) {
        let stored: StoredPolicy = parse(policy, "network.policy")?;
        match stored.policy() {
            Ok(policy) => net.policy = policy,
            Err(rule) => unsupported.push(UnsupportedField::new(
                format!("network.policy.rules.{rule}"),
                "not a rule of msb, see msb-net(1)",
                Omission::Refused("change the rule"),
            )),
        }
    }
    let ports: Vec<Value> = take_field(&mut fields, "ports")?.unwrap_or_default();
    for (index, port) in ports.into_iter().enumerate() {
        let path = format!("network.ports.{index}");
        let port: StoredPort = parse(port, &path)?;
        match port.to_string().parse() {
            Ok(ports) => net.ports.push(ports),
            Err(_) => {
                let reason = format!("cannot publish {port}");
                unsupported.push(UnsupportedField::new(path, reason, Omission::Allowed));
            }
        }
    }
    if let Some(limit) = take_field::<u64>(&mut fields, "max_connections")? {
        match u32::try_from(limit).ok().filter(|limit| (1..=CONNECTIONS_MAX).contains(limit)) {
            Some(limit) => net.max_connections = limit,
            None => unsupported.push(UnsupportedField::new(
                "network.max_connections",
                format!("not from 1 to {CONNECTIONS_MAX}"),
                Omission::Refused("set another limit"),
            )),
        }
    }
    if let Some(dns) = take_field(&mut fields, "dns")? {
        dns_settings(&mut net, dns, unsupported)?;
    }
    if let Some(interface) = take_field(&mut fields, "interface")? {
        addresses(&mut net, interface, unsupported)?;
    }
    if take_field(&mut fields, "trust_host_cas")? == Some(true) {
        unsupported.push(UnsupportedField::new(
            "network.trust_host_cas",
            "add the certificates to the guest with --copy-file",
            Omission::Allowed,
        ));
    }
    unsupported.extend(unknown("network", &fields));
    Ok((net, values))
}

/// Converts the pools of the guest's addresses. Fixed addresses are unsupported.
fn addresses(
    net: &mut NetSpec,
    mut interface: Map<String, Value>,
    unsupported: &mut Vec<UnsupportedField>,
) -> Result<(), String> {
    for (name, pool) in [("ipv4_pool", &mut net.ipv4_pool), ("ipv6_pool", &mut net.ipv6_pool)] {
        if let Some(range) = take_field::<String>(&mut interface, name)? {
            *pool = range
                .parse()
                .map_err(|_| format!("field 'network.interface.{name}' has an invalid value"))?;
        }
    }
    for name in ["mac", "mtu", "ipv4_address", "ipv6_address"] {
        if interface.remove(name).is_some_and(|value| is_set(&value)) {
            unsupported.push(UnsupportedField::new(
                format!("network.interface.{name}"),
                "msb chooses it",
                Omission::Allowed,
            ));
        }
    }
    unsupported.extend(unknown("network.interface", &interface));
    Ok(())
}

/// Converts the DNS settings.
fn dns_settings(
    net: &mut NetSpec,
    mut dns: Map<String, Value>,
    unsupported: &mut Vec<UnsupportedField>,
) -> Result<(), String> {
    if let Some(protection) = take_field(&mut dns, "rebind_protection")? {
        net.dns.rebind_protection = protection;
    }
    if let Some(timeout) = take_field::<u64>(&mut dns, "query_timeout_ms")? {
        let allowed = 1..=QUERY_TIMEOUT_MS_MAX;
        match u32::try_from(timeout).ok().filter(|timeout| allowed.contains(timeout)) {
            Some(timeout) => net.dns.query_timeout_ms = timeout,
            None => unsupported.push(UnsupportedField::new(
                "network.dns.query_timeout_ms",
                format!("not from 1 to {QUERY_TIMEOUT_MS_MAX}"),
                Omission::Allowed,
            )),
        }
    }
    let servers: Vec<String> = take_field(&mut dns, "nameservers")?.unwrap_or_default();
    for (index, server) in servers.iter().enumerate() {
        match server.parse() {
            Ok(server) => net.dns.nameservers.push(server),
            Err(_) => unsupported.push(UnsupportedField::new(
                format!("network.dns.nameservers.{index}"),
                format!("'{}' is not an address", escape(server)),
                Omission::Refused("change the address of the name server"),
            )),
        }
    }
    unsupported.extend(unknown("network.dns", &dns));
    Ok(())
}

/// A published port.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredPort {
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

/// Formats the port as for `--port`.
impl fmt::Display for StoredPort {
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

/// A stored policy. As in microsandbox, missing actions deny.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
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

/// A stored rule. It may have several protocols and port ranges; a rule of msb has one of each.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredRule {
    action: String,
    direction: String,
    destination: RuleDestination,
    #[serde(default)]
    protocols: Vec<String>,
    #[serde(default)]
    ports: Vec<PortRange>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RuleDestination {
    Any,
    Cidr(String),
    Domain(String),
    DomainSuffix(String),
    Group(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortRange {
    start: u16,
    end: u16,
}

impl StoredPolicy {
    /// Returns the policy. The error is the index of an unsupported rule, or of the first beyond
    /// the limit.
    fn policy(&self) -> Result<Policy, usize> {
        let mut rules = Vec::new();
        for (index, stored) in self.rules.iter().enumerate() {
            rules.extend(stored.rules().ok_or(index)?);
            if rules.len() > RULES_MAX {
                return Err(index);
            }
        }
        Ok(Policy { rules, egress: self.default_egress, ingress: self.default_ingress })
    }
}

impl StoredRule {
    /// Returns one rule for each pair of protocol and port range.
    fn rules(&self) -> Option<Vec<Rule>> {
        let any = || vec!["any".to_owned()];
        let protocols = match self.protocols.as_slice() {
            [] => any(),
            named => named.to_vec(),
        };
        let ports = match self.ports.as_slice() {
            [] => any(),
            ranges => ranges.iter().map(PortRange::typed).collect(),
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

impl PortRange {
    fn typed(&self) -> String {
        format!("{}-{}", self.start, self.end)
    }
}

impl RuleDestination {
    fn typed(&self) -> String {
        match self {
            RuleDestination::Any => "any".to_owned(),
            RuleDestination::Cidr(range) if range.contains(':') => format!("[{range}]"),
            RuleDestination::Cidr(range) => range.clone(),
            RuleDestination::Domain(name) => format!("domain={name}"),
            RuleDestination::DomainSuffix(suffix) => format!("suffix={suffix}"),
            RuleDestination::Group(group) => match group.as_str() {
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
        let mut unsupported = Vec::new();
        let Value::Object(fields) = json else { panic!("no object") };
        let (net, _) = network(fields, &mut unsupported).unwrap();
        (net, unsupported.iter().map(ToString::to_string).collect())
    }

    fn rules(net: &NetSpec) -> Vec<String> {
        net.policy.rules.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_disabled_network_stays_off_and_a_default_one_is_public() {
        let off = read(serde_json::json!({"enabled": false, "ports": [7]}));
        assert_eq!(off, (NetSpec::none(), vec![]));
        let default_policy = serde_json::json!({"enabled": true, "ports": [],
            "policy": {"default_egress": "deny", "default_ingress": "allow", "rules": [
                {"direction": "egress", "destination": {"group": "public"},
                    "protocols": [], "ports": [], "action": "allow"}]},
            "dns": {"rebind_protection": true, "nameservers": [], "query_timeout_ms": 5000},
            "tls": {"enabled": false, "intercepted_ports": [443]}, "max_connections": null,
            "secrets": {"secrets": [], "on_violation": "block-and-log"}, "trust_host_cas": false});
        assert_eq!(read(default_policy), (NetSpec::public(), vec![]));
        assert_eq!(read(serde_json::json!({})), (NetSpec::public(), vec![]));
    }

    #[test]
    fn ports_and_name_servers_are_taken_over() {
        let (net, unsupported) = read(serde_json::json!({
            "ports": [
                {"host_port": 8080, "guest_port": 80, "protocol": "Tcp"},
                {"host_port": 53, "guest_port": 5353, "protocol": "udp", "host_bind": "::1"},
                {"host_port": 0, "guest_port": 1}],
            "dns": {"nameservers": ["9.9.9.9", "a name"], "query_timeout_ms": 100,
                "rebind_protection": false, "blocked_domains": ["x.org"]},
            "max_connections": 5
        }));
        let ports: Vec<String> = net.ports.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["127.0.0.1:8080:80/tcp", "[::1]:53:5353/udp"]);
        assert_eq!((net.dns.nameservers.len(), net.dns.query_timeout_ms), (1, 100));
        assert_eq!((net.dns.rebind_protection, net.max_connections), (false, 5));
        assert_eq!(
            unsupported,
            [
                "network.ports.2 (cannot publish 127.0.0.1:0:1)",
                "network.dns.nameservers.1 ('a name' is not an address)",
                "network.dns.blocked_domains (not known)"
            ]
        );
    }

    #[test]
    fn a_rule_of_several_protocols_and_ports_becomes_several_rules() {
        let (net, unsupported) =
            read(serde_json::json!({"policy": {"default_egress": "allow", "rules": [
                {"direction": "egress", "destination": {"domain_suffix": "example.com"},
                    "action": "deny", "protocols": ["tcp", "udp"],
                    "ports": [{"start": 443, "end": 443}, {"start": 1, "end": 9}]},
                {"direction": "any", "destination": {"cidr": "fd00::/8"}, "action": "allow"},
                {"direction": "egress", "destination": {"group": "metadata"}, "action": "deny"},
                {"direction": "ingress", "destination": "any", "action": "deny"}
            ]}}));
        assert!(unsupported.is_empty());
        assert_eq!((net.policy.egress, net.policy.ingress), (Action::Allow, Action::Deny));
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
    fn an_unsupported_rule_is_named_and_an_unknown_field_of_it_is_an_error() {
        let mut policy = serde_json::json!({"policy": {
            "default_egress": "allow", "default_ingress": "allow",
            "rules": [{"direction": "egress", "destination": {"group": "moon"}, "action": "deny"}]
        }});
        let (_, unsupported) = read(policy.clone());
        assert_eq!(unsupported, ["network.policy.rules.0 (not a rule of msb, see msb-net(1))"]);
        policy["policy"]["rules"][0]["log"] = true.into();
        let Value::Object(fields) = policy else { panic!("no object") };
        let error = network(fields, &mut Vec::new()).unwrap_err();
        assert_eq!(error, "unknown field 'network.policy.log'");
    }

    #[test]
    fn pools_are_taken_over_and_fixed_addresses_are_unsupported() {
        let (net, unsupported) = read(serde_json::json!({"interface": {
            "mac": [2, 0, 0, 0, 0, 1], "mtu": 1400, "ipv4_address": null,
            "ipv4_pool": "10.9.0.0/16", "ipv6_address": null, "ipv6_pool": "fd00:1::/48"
        }}));
        let pools = (net.ipv4_pool.to_string(), net.ipv6_pool.to_string());
        assert_eq!(pools, ("10.9.0.0/16".to_owned(), "fd00:1::/48".to_owned()));
        assert_eq!(
            unsupported,
            ["network.interface.mac (msb chooses it)", "network.interface.mtu (msb chooses it)"]
        );
    }

    #[test]
    fn what_is_not_known_is_unsupported() {
        let (_, unsupported) = read(serde_json::json!({
            "trust_host_cas": true, "max_connections": 0, "later": false
        }));
        let (_, without_network) = read(serde_json::json!({"enabled": false,
            "secrets": {"secrets": [{"env_var": "K", "allowed_hosts": [{"exact": "a.test"}]}]}}));
        assert_eq!(
            without_network,
            ["network.secrets (a sandbox without a network has no use for secrets)"]
        );
        assert_eq!(
            unsupported.join(" "),
            "network.max_connections (not from 1 to 65536) \
             network.trust_host_cas (add the certificates to the guest with --copy-file) \
             network.later (not known)"
        );
    }
}
