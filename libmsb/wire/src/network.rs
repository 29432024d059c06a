//! A network that becomes another while its sandbox runs.
//!
//! The client opens a stream with a [`NetworkRequest`]; the supervisor's one answer is a [`NetworkEvent`].

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Makes what may be reached, the name servers and the published ports others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRequest {
    /// The network, as `spec.json` has it (msb-spec(5)).
    pub net: serde_json::Value,
    /// Name servers that are asked, in this order: the supervisor has no file to look them up in.
    pub nameservers: Vec<SocketAddr>,
    /// The host's own addresses.
    pub own: Vec<IpAddr>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum NetworkEvent {
    /// The network is the one that was asked for.
    #[serde(rename = "network_changed")]
    Changed,
    /// It is what it was.
    Failed {
        /// Why.
        message: String,
        /// What can be done.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
}
