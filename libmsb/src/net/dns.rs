//! DNS settings of a guest: servers, timeout, and rebinding protection.

use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::name::HostName;
use crate::cli::error::Failure;
use crate::cli::escape::escape;

/// The port of DNS.
pub const DNS_PORT: u16 = 53;
/// Default timeout of a query, in milliseconds; as in microsandbox.
pub const QUERY_TIMEOUT_MS: u32 = 5000;
/// Longest timeout that `--dns-query-timeout-ms` accepts, in milliseconds.
pub const QUERY_TIMEOUT_MS_MAX: u32 = 60_000;
/// Limit of name servers, which are queried one after the other.
pub const NAMESERVERS_MAX: usize = 8;

/// Limit of search domains.
pub const SEARCH_DOMAINS_MAX: usize = 32;

/// DNS settings of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsSettings {
    /// Name servers, in the order of use. Empty: those of the host.
    pub nameservers: Vec<Nameserver>,
    /// Timeout of a query, for all servers together.
    pub query_timeout_ms: u32,
    /// True for DNS rebinding protection: answers with addresses that are not public are refused,
    /// unless a rule allows the guest to reach them.
    pub rebind_protection: bool,
    /// Search domains of the guest. The default is none: those of the host would tell the guest
    /// the network that the host belongs to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<SearchDomain>,
}

impl Default for DnsSettings {
    fn default() -> DnsSettings {
        DnsSettings {
            nameservers: Vec::new(),
            query_timeout_ms: QUERY_TIMEOUT_MS,
            rebind_protection: true,
            search: Vec::new(),
        }
    }
}

/// A name server: `ADDRESS[:PORT]` or `NAME[:PORT]`. The host resolves the name when the sandbox
/// starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Nameserver {
    /// An IP address and a port.
    Address(SocketAddr),
    /// A host name and a port.
    Name(HostName, u16),
}

text_in_json!(Nameserver);

impl FromStr for Nameserver {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Nameserver, Failure> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(text).parse::<IpAddr>() {
            return Ok(Nameserver::Address(SocketAddr::new(address, DNS_PORT)));
        }
        let wrong = || {
            Failure::usage(format!("'{}' is not a name server", escape(text))).hint(
                "give an address or name, with an optional port: 9.9.9.9, [2620:fe::fe]:53, \
                     dns.example:5353",
            )
        };
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 {
                Err(wrong())
            } else {
                Ok(Nameserver::Address(address))
            };
        }
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => {
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                let port = Some(port).filter(|_| digits).and_then(|port| port.parse().ok());
                (name, port.filter(|port| *port > 0).ok_or_else(wrong)?)
            }
            None => (text, DNS_PORT),
        };
        let numeric = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if numeric {
            return Err(wrong());
        }
        Ok(Nameserver::Name(name.parse().map_err(|_| wrong())?, port))
    }
}

impl fmt::Display for Nameserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Nameserver::Address(address) => write!(f, "{address}"),
            Nameserver::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// A search domain, which a resolver appends to a short name; `host` stands for those of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SearchDomain {
    /// The search domains of the host when the sandbox starts.
    Host,
    /// A domain.
    Name(HostName),
}

text_in_json!(SearchDomain);

impl FromStr for SearchDomain {
    type Err = Failure;

    fn from_str(text: &str) -> Result<SearchDomain, Failure> {
        if text == "host" {
            return Ok(SearchDomain::Host);
        }
        let name = text.parse().map(SearchDomain::Name);
        name.map_err(|_| {
            Failure::usage(format!("'{}' is not a search domain", escape(text)))
                .hint("give a domain such as corp.example, or 'host' for those of the host")
        })
    }
}

impl fmt::Display for SearchDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SearchDomain::Host => f.write_str("host"),
            SearchDomain::Name(name) => write!(f, "{name}"),
        }
    }
}

/// Returns the search domains, in their order, each once.
pub fn search_domains(settings: &DnsSettings) -> Vec<HostName> {
    let mut found = Vec::new();
    for domain in &settings.search {
        match domain {
            SearchDomain::Host => {
                let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
                found.extend(search_of_resolv_conf(&text));
            }
            SearchDomain::Name(name) => found.push(name.clone()),
        }
    }
    let mut seen = std::collections::HashSet::new();
    found.retain(|name| seen.insert(name.clone()));
    found.truncate(SEARCH_DOMAINS_MAX);
    found
}

/// Parses the search domains of a resolv.conf(5): the last line `search` or `domain` counts.
/// Domains that are no names, such as `.`, are skipped.
fn search_of_resolv_conf(text: &str) -> Vec<HostName> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let count = match words.next() {
            Some("search") => usize::MAX,
            Some("domain") => 1,
            _ => continue,
        };
        found = words.take(count).filter_map(|word| word.parse().ok()).collect();
    }
    found
}

/// Returns the addresses of the name servers: those in the settings, or those of the host. Names
/// are resolved now.
pub fn upstreams(settings: &DnsSettings) -> anyhow::Result<Vec<SocketAddr>> {
    if settings.nameservers.is_empty() {
        // A host without this file has no name servers; its guests have none either.
        let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        return Ok(nameservers_of_resolv_conf(&text));
    }
    let mut found = Vec::new();
    for nameserver in &settings.nameservers {
        match nameserver {
            Nameserver::Address(address) => found.push(*address),
            Nameserver::Name(name, port) => {
                let addresses = (name.as_str(), *port).to_socket_addrs();
                let cannot = || format!("cannot resolve the name server '{nameserver}'");
                found.extend(addresses.with_context(cannot)?);
            }
        }
    }
    found.truncate(NAMESERVERS_MAX);
    Ok(found)
}

/// Parses the servers of a resolv.conf(5): `nameserver ADDRESS`. Addresses with a zone are skipped.
pub fn nameservers_of_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    servers
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, DNS_PORT))
        .take(NAMESERVERS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_every_form_are_taken() {
        let whole = |text: &str| text.parse::<Nameserver>().unwrap().to_string();
        assert_eq!(whole("9.9.9.9"), "9.9.9.9:53");
        assert_eq!(whole("9.9.9.9:5353"), "9.9.9.9:5353");
        assert_eq!(whole("2620:fe::fe"), "[2620:fe::fe]:53");
        assert_eq!(whole("[2620:fe::fe]"), "[2620:fe::fe]:53");
        assert_eq!(whole("[2620:fe::fe]:5353"), "[2620:fe::fe]:5353");
        assert_eq!(whole("dns.example"), "dns.example:53");
        assert_eq!(whole("dns.example:5353"), "dns.example:5353");
        for text in [
            "",
            "9.9.9",
            "9.9.9.9:0",
            "dns.example:",
            "dns.example:x",
            "dns.example:+5",
            "a b",
            ":53",
        ] {
            assert!(text.parse::<Nameserver>().is_err(), "{text}");
        }
    }

    #[test]
    fn search_domains_are_those_of_the_last_line() {
        let found = |text: &str| -> Vec<String> {
            search_of_resolv_conf(text).iter().map(|name| name.as_str().to_owned()).collect()
        };
        assert_eq!(found("nameserver 1.1.1.1\nsearch Corp.Example. b ..\n"), ["corp.example", "b"]);
        assert_eq!(found("search a b\ndomain c d\n"), ["c"]);
        assert_eq!(found("# search a\nsearch .\n"), [""; 0]);
        for text in ["", "a b", "..", "a\nb"] {
            assert!(text.parse::<SearchDomain>().is_err(), "{text}");
        }
        let names = ["corp.example", "b", "corp.example"].map(|text| text.parse().unwrap());
        let settings = DnsSettings { search: names.to_vec(), ..DnsSettings::default() };
        assert_eq!(search_domains(&settings).len(), 2);
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<DnsSettings>(&text).unwrap(), settings);
    }

    #[test]
    fn the_hosts_servers_are_found() {
        let text = "# nameserver 1.1.1.1\nsearch example.com\nnameserver 9.9.9.9\n nameserver\t2620:fe::fe trailing\n\
                    nameserver fe80::1%eth0\nnameserver\nnameservers 8.8.8.8\n";
        let servers: Vec<String> =
            nameservers_of_resolv_conf(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["9.9.9.9:53", "[2620:fe::fe]:53"]);
    }
}
