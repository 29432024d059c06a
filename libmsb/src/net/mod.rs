//! The network of a sandbox, as in `spec.json` and in the settings of `msb-net`: policy, DNS,
//! published ports.
//!
//! Unknown fields and unknown words of a policy are refused, since an ignored rule would be a
//! security hole.

use serde::{Deserialize, Serialize};

/// Implements serde for a type as text, in the form of the command line.
macro_rules! text_in_json {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = $crate::cli::error::Failure;

            fn try_from(text: String) -> Result<$type, Self::Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    };
}

/// `--net`, `--net-rule`, `--port`, … on the command line.
pub mod args;
/// DNS settings.
pub mod dns;
/// The host's own IP addresses.
pub mod host_addresses;
/// The protocols of `msb-intercept`.
pub mod intercept;
/// Host names in rules.
pub mod name;
/// Addresses of the network, and the settings of `msb-net`.
pub mod network;
/// The policy: rules and default actions.
pub mod policy;
/// Published ports.
pub mod ports;
/// Address ranges: `10.0.0.0/8`.
pub mod prefix;
/// A rule, and its grammar.
pub mod rule;
/// Secrets that are bound to hosts.
pub mod secret;
/// TLS interception.
pub mod tls;

use dns::DnsSettings;
use policy::Policy;
use ports::PublishedPorts;
use prefix::Prefix;
use tls::TlsSpec;

/// The guest's name for its host, as in microsandbox.
pub const HOST_ALIAS: &str = "host.microsandbox.internal";
/// Default limit of open connections of a guest, in each direction. The limit of microsandbox is
/// 256, which one web browser can use up.
pub const CONNECTIONS: u32 = 4096;
/// Largest limit that `--max-connections` accepts.
pub const CONNECTIONS_MAX: u32 = 65_536;
/// Limit of published ports of a sandbox. A range counts by its ports.
pub const PUBLISHED_MAX: usize = 4096;
/// Default pool of the guests' IPv4 addresses, as in microsandbox.
const IPV4_POOL: Prefix = Prefix::v4([172, 16, 0, 0], 12);
/// Default pool of the guests' IPv6 addresses, as in microsandbox.
const IPV6_POOL: Prefix = Prefix::v6([0xfd42, 0x6d73, 0x62, 0, 0, 0, 0, 0], 48);

/// The network of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// True if the guest has a network interface.
    pub enabled: bool,
    /// The policy.
    pub policy: Policy,
    /// DNS settings.
    pub dns: DnsSettings,
    /// Published ports.
    pub ports: Vec<PublishedPorts>,
    /// Limit of open connections, in each direction.
    pub max_connections: u32,
    /// Pool of the guest's IPv4 address.
    pub ipv4_pool: Prefix,
    /// Pool of the guest's IPv6 address.
    pub ipv6_pool: Prefix,
    /// Prefixes that the host's network translates to IPv4 (NAT64), besides the well-known
    /// `64:ff9b::/96` (RFC 6052).
    pub nat64: Vec<Prefix>,
    /// TLS interception and secrets.
    #[serde(default, skip_serializing_if = "TlsSpec::is_default")]
    pub tls: TlsSpec,
}

impl NetSpec {
    /// Returns the default: only the public network.
    pub fn public() -> NetSpec {
        NetSpec {
            enabled: true,
            policy: Policy::public(),
            dns: DnsSettings::default(),
            ports: Vec::new(),
            max_connections: CONNECTIONS,
            ipv4_pool: IPV4_POOL,
            ipv6_pool: IPV6_POOL,
            nat64: Vec::new(),
            tls: TlsSpec::default(),
        }
    }

    /// Returns a network without an interface. It is the default for a `spec.json` older than
    /// networks, whose sandbox had none.
    pub fn none() -> NetSpec {
        NetSpec { enabled: false, policy: Policy::nothing(), ..NetSpec::public() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_the_same_and_what_is_not_known_is_refused() {
        for spec in [NetSpec::public(), NetSpec::none()] {
            let text = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<NetSpec>(&text).unwrap(), spec);
            let later = text.replacen("\"enabled\"", "\"moon\":1,\"enabled\"", 1);
            assert!(serde_json::from_str::<NetSpec>(&later).is_err());
            let later = text.replacen("\"rules\":[", "\"rules\":[\"allow@moon\",", 1);
            assert!(serde_json::from_str::<NetSpec>(&later).is_err());
            let less = text.replacen("\"egress\":\"deny\",", "", 1);
            assert!(less != text && serde_json::from_str::<NetSpec>(&less).is_err());
        }
    }
}
