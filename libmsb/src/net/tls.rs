//! TLS interception and secrets, as in `spec.json`: ports, exceptions, and the hosts that each
//! secret is bound to. Values of secrets are never part of it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::name::{HostName, NamePattern};
use super::secret::{SecretSpec, ViolationAction};

/// Port that is intercepted by default: HTTPS.
pub const TLS_PORT: u16 = 443;
/// Limit of intercepted ports.
pub const TLS_PORTS_MAX: usize = 64;
/// Limit of `--tls-bypass` patterns.
pub const BYPASS_MAX: usize = 256;

/// TLS interception of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSpec {
    /// True to intercept without secrets too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub intercept: bool,
    /// Intercepted ports; [`TLS_PORT`] if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Server names that are not intercepted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bypass: Vec<NamePattern>,
    /// True to allow UDP to the intercepted ports, over which QUIC bypasses the interception.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_quic: bool,
    /// Files with further certificates of authorities that servers may be certified by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub upstream_ca: Vec<PathBuf>,
    /// Secrets, and the hosts that they are bound to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretSpec>,
    /// Action when a placeholder is sent to another host, for secrets that have none of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_violation: Option<ViolationAction>,
}

impl TlsSpec {
    /// Returns whether nothing is set.
    pub fn is_default(&self) -> bool {
        *self == TlsSpec::default()
    }

    /// Returns whether TLS is intercepted. It always is if there are secrets.
    pub fn is_active(&self) -> bool {
        self.intercept || !self.secrets.is_empty()
    }

    /// Returns whether connections to a port are intercepted.
    pub fn covers_port(&self, port: u16) -> bool {
        let listed = self.ports.contains(&port) || (self.ports.is_empty() && port == TLS_PORT);
        self.is_active() && listed
    }

    /// Returns whether a server name is exempt.
    pub fn bypasses(&self, name: &HostName) -> bool {
        self.bypass.iter().any(|pattern| pattern.matches(name))
    }

    /// Returns whether a secret is bound to a name.
    pub fn is_bound(&self, name: &HostName) -> bool {
        self.secrets.iter().any(|secret| secret.allows(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interception_follows_from_secrets() {
        let mut tls = TlsSpec::default();
        assert!(!tls.is_active() && !tls.covers_port(443));
        tls.secrets.push("A@a.test".parse().unwrap());
        assert!(tls.covers_port(443) && !tls.covers_port(8443));
        tls.ports = vec![8443];
        assert!(!tls.covers_port(443) && tls.covers_port(8443));
        let json = serde_json::to_string(&tls).unwrap();
        assert_eq!(serde_json::from_str::<TlsSpec>(&json).unwrap(), tls);
        assert!(serde_json::from_str::<TlsSpec>(r#"{"later":1}"#).is_err());
    }
}
