//! Changes of the network of a running sandbox.
//!
//! The client opens a stream with a [`NetworkRequest`]. The supervisor answers with one
//! [`NetworkEvent`].

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A request to replace the policy, the name servers and the published ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRequest {
    /// The network, in the format of `spec.json` (msb-spec(5)).
    pub net: serde_json::Value,
    /// Name servers, in the order of use: the supervisor cannot read the host's list itself.
    pub nameservers: Vec<SocketAddr>,
    /// The host's own addresses.
    pub own: Vec<IpAddr>,
}

/// The result of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum NetworkEvent {
    /// The change was made.
    #[serde(rename = "network_changed")]
    Changed,
    /// Nothing was changed.
    Failed {
        /// The reason.
        message: String,
        /// A hint.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
}
