//! SFTP: a server of the SSH file transfer protocol in the guest.
//!
//! The stream is that of a command ([`crate::exec`]) whose standard input and output carry version
//! 3 of the protocol (draft-ietf-secsh-filexfer-02). The agent serves it in a process of its own,
//! running as the requested user. The guest's kernel enforces that user's permissions.

use serde::{Deserialize, Serialize};

use crate::text::Text;

/// A request to serve files to one client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SftpRequest {
    /// User `USER|UID[:GROUP|GID]`, instead of the sandbox's. Relative paths start in the user's
    /// home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// True to refuse all requests that change files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}
