//! The network of a sandbox, as `spec.json` has it and `msb-net` is told: what may be reached (policy), how names are
//! found (dns), what the host lets in (ports).
//!
//! Nothing in here is ever guessed. A field or a word of a policy that is not known is refused, since a rule that is
//! ignored would be a hole.

use serde::{Deserialize, Serialize};

/// A type that JSON has as text, in the form that is typed.
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
/// How names are found.
pub mod dns;
/// Names of hosts, as rules have them.
pub mod name;
/// Who is on it, and what `msb-net` is told.
pub mod network;
/// The host's own addresses.
pub mod own;
/// What may be reached, and by whom.
pub mod policy;
/// Published ports.
pub mod ports;
/// Ranges of addresses: `10.0.0.0/8`.
pub mod prefix;
/// One rule, and its grammar.
pub mod rule;

use dns::DnsSettings;
use policy::Policy;
use ports::PublishedPorts;
use prefix::Prefix;

/// The guest's name for its host, as the reference has it.
pub const HOST_ALIAS: &str = "host.microsandbox.internal";
/// Connections that a guest may have open at a time, each way, when nobody says another number. The reference stops at
/// 256, which one web browser can use up.
pub const CONNECTIONS: u32 = 4096;
/// Most that `--max-connections` takes.
pub const CONNECTIONS_MAX: u32 = 65_536;
/// Most published ports of a sandbox, each range counted by its ports.
pub const PUBLISHED_MAX: usize = 4096;
/// Where the IPv4 addresses of guests are taken from; the reference's.
const IPV4_POOL: Prefix = Prefix::v4([172, 16, 0, 0], 12);
/// Where the IPv6 addresses of guests are taken from; the reference's.
const IPV6_POOL: Prefix = Prefix::v6([0xfd42, 0x6d73, 0x62, 0, 0, 0, 0, 0], 48);

/// The network of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// Whether the guest has a network interface at all.
    pub enabled: bool,
    /// What may be reached, and by whom.
    pub policy: Policy,
    /// How names are found.
    pub dns: DnsSettings,
    /// Ports of the host that lead into the guest.
    pub ports: Vec<PublishedPorts>,
    /// Connections that may be open at a time, each way.
    pub max_connections: u32,
    /// Where the guest's IPv4 address is taken from.
    pub ipv4_pool: Prefix,
    /// Where the guest's IPv6 address is taken from.
    pub ipv6_pool: Prefix,
    /// Prefixes that the host's network translates to IPv4, beside the well-known `64:ff9b::/96` (RFC 6052).
    pub nat64: Vec<Prefix>,
}

impl NetSpec {
    /// What a sandbox has when nothing is said: the public network and no other.
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
        }
    }

    /// No interface. A `spec.json` of the time before networks reads so: its sandbox had none, and gets none unasked.
    pub fn none() -> NetSpec {
        NetSpec {
            enabled: false,
            policy: Policy::nothing(),
            ..NetSpec::public()
        }
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
            let later = text.replacen("\"enabled\"", "\"tls\":1,\"enabled\"", 1);
            assert!(serde_json::from_str::<NetSpec>(&later).is_err());
            let later = text.replacen("\"rules\":[", "\"rules\":[\"allow@moon\",", 1);
            assert!(serde_json::from_str::<NetSpec>(&later).is_err());
            let less = text.replacen("\"egress\":\"deny\",", "", 1);
            assert!(less != text && serde_json::from_str::<NetSpec>(&less).is_err());
        }
    }
}
