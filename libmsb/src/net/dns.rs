//! How the guest finds names: who is asked, for how long, and which answers are believed.

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
/// How long an answer may take when nobody says otherwise; the reference's.
pub const QUERY_TIMEOUT_MS: u32 = 5000;
/// The longest time that `--dns-query-timeout-ms` takes.
pub const QUERY_TIMEOUT_MS_MAX: u32 = 60_000;
/// Most servers that are asked one after the other.
pub const NAMESERVERS_MAX: usize = 8;

/// How names are found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsSettings {
    /// Who is asked, in this order; nobody named: those that the host asks.
    pub nameservers: Vec<Nameserver>,
    /// How long an answer may take, all servers together.
    pub query_timeout_ms: u32,
    /// Whether answers with addresses that are not public are refused, where no rule lets the guest reach them.
    pub rebind_protection: bool,
}

impl Default for DnsSettings {
    fn default() -> DnsSettings {
        DnsSettings {
            nameservers: Vec::new(),
            query_timeout_ms: QUERY_TIMEOUT_MS,
            rebind_protection: true,
        }
    }
}

/// A server that is asked: `ADDRESS[:PORT]` or `NAME[:PORT]`. The host finds the name's address when the sandbox starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Nameserver {
    /// By its address.
    Address(SocketAddr),
    /// By its name.
    Name(HostName, u16),
}

text_in_json!(Nameserver);

impl FromStr for Nameserver {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Nameserver, Failure> {
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(text).parse::<IpAddr>() {
            return Ok(Nameserver::Address(SocketAddr::new(address, DNS_PORT)));
        }
        let wrong = || {
            Failure::usage(format!("'{}' is not a name server", escape(text)))
                .hint("write its address or name, and perhaps a port: 9.9.9.9, [2620:fe::fe]:53, dns.example:5353")
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
                let port = Some(port)
                    .filter(|_| digits)
                    .and_then(|port| port.parse().ok());
                (name, port.filter(|port| *port > 0).ok_or_else(wrong)?)
            }
            None => (text, DNS_PORT),
        };
        let numeric = name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
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

/// Whom to ask, by address: those that were named, or those of the host. Names among them are looked up now.
pub fn upstreams(settings: &DnsSettings) -> anyhow::Result<Vec<SocketAddr>> {
    if settings.nameservers.is_empty() {
        // A host without this file has no name servers, and nor has its guest.
        let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        return Ok(nameservers_of_resolv_conf(&text));
    }
    let mut found = Vec::new();
    for nameserver in &settings.nameservers {
        match nameserver {
            Nameserver::Address(address) => found.push(*address),
            Nameserver::Name(name, port) => {
                let addresses = (name.as_str(), *port).to_socket_addrs();
                let cannot = || format!("cannot find the name server '{nameserver}'");
                found.extend(addresses.with_context(cannot)?);
            }
        }
    }
    found.truncate(NAMESERVERS_MAX);
    Ok(found)
}

/// The servers of a resolv.conf(5), those of our family of systems: `nameserver ADDRESS`, an address with a zone left out.
pub fn nameservers_of_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver"))
            .then(|| words.next())
            .flatten()
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
    fn the_hosts_servers_are_found() {
        let text = "# nameserver 1.1.1.1\nsearch example.com\nnameserver 9.9.9.9\n nameserver\t2620:fe::fe trailing\n\
                    nameserver fe80::1%eth0\nnameserver\nnameservers 8.8.8.8\n";
        let servers: Vec<String> = nameservers_of_resolv_conf(text)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(servers, ["9.9.9.9:53", "[2620:fe::fe]:53"]);
    }
}
