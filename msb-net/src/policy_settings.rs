//! The policy engine and the resolver's settings, from the settings of a network.

use std::time::Duration;

use libmsb::net::network::NetSettings;

use crate::address::HostFacts;
use crate::dns::DnsSettings;
use crate::policy::PolicyEngine;

/// Builds the policy engine and the resolver's settings.
pub(crate) fn engine_and_dns_settings(settings: &NetSettings) -> (PolicyEngine, DnsSettings) {
    let host = HostFacts {
        gateways: settings.network.gateways(),
        host_addresses: settings.own.clone(),
        nat64: settings.net.nat64.clone(),
    };
    let engine =
        PolicyEngine::new(settings.net.policy.clone(), settings.net.dns.rebind_protection, host)
            .with_tls(settings.net.tls.clone());
    let dns_settings = DnsSettings {
        upstreams: settings.nameservers.clone(),
        timeout: Duration::from_millis(u64::from(settings.net.dns.query_timeout_ms)),
    };
    (engine, dns_settings)
}
