//! A server of the SSH file transfer protocol in the guest.
//!
//! The stream is that of a command ([`crate::exec`]) whose standard input and output speak version 3 of the protocol
//! (draft-ietf-secsh-filexfer-02). The agent serves it in a process of its own, as the user that is asked for: what that
//! user may do is for the guest's kernel to say.

use serde::{Deserialize, Serialize};

use crate::text::Text;

/// Serves files to one client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SftpRequest {
    /// `USER|UID[:GROUP|GID]`, in place of the sandbox's. Relative paths begin in the user's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// Whether everything that would change files is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}
