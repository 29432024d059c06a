//! State that all connections share.

use std::sync::Arc;

use crate::authority::Authority;
use crate::event_log::EventLog;
use crate::secrets::SecretTable;
use crate::upstream::Upstream;

/// The authority, the verification of servers, the secrets and the log.
pub(crate) struct Interceptor {
    pub(crate) authority: Authority,
    pub(crate) upstream: Upstream,
    pub(crate) secrets: Arc<SecretTable>,
    pub(crate) log: EventLog,
}
