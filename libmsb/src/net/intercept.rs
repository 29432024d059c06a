//! The protocols of `msb-intercept`: its settings, its first message, and the connections that
//! `msb-net` hands over to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::name::HostName;
use super::tls::TlsSpec;

/// Longest settings or values, in bytes.
pub const SETTINGS_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest packet of a handed over connection, in bytes.
pub const HANDOVER_BYTES_MAX: usize = 4096;

/// Settings of `msb-intercept`. Values of secrets come over another descriptor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterceptSettings {
    /// Name of the sandbox.
    pub name: String,
    /// The certificate authority of the sandbox: certificate and private key, PEM. `None`: create
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// Interception and secrets.
    pub tls: TlsSpec,
}

/// Values of secrets, by their names.
pub type SecretValues = BTreeMap<String, String>;

/// First message of `msb-intercept`, one JSON line: it is confined and accepts connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InterceptReady {
    /// Certificate of the authority, PEM, which the guest trusts.
    pub certificate: String,
    /// Certificate and private key of an authority that was created, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
}

/// A connection that `msb-net` hands over: a packet with this JSON and two descriptors, the
/// server's socket and the guest's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// Number of the connection in `net.log`.
    pub id: u64,
    /// Address of the server, as the guest used it.
    pub remote: SocketAddr,
    /// Server name in the ClientHello.
    pub sni: HostName,
    /// True if msb-net resolved the server name to this address for the guest.
    pub pinned: bool,
}
