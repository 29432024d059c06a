//! Results of attempts to export.

use std::time::Duration;

/// Result of an attempt to export.
#[derive(Debug)]
pub(super) enum ExportOutcome {
    /// The collector accepted the request, completely or with partial success.
    Accepted {
        /// Number of rejected points.
        rejected: u64,
        /// Error message of the collector.
        message: String,
    },
    /// The attempt failed and may be repeated.
    Retry {
        /// Reason of the failure.
        why: String,
        /// Delay that the collector asks for.
        after: Option<Duration>,
    },
    /// The collector will never accept the request.
    Rejected {
        /// Reason of the rejection.
        why: String,
    },
}

/// A connection to a collector.
pub(super) trait ExportTransport: Send {
    /// Sends one request, within the export timeout.
    fn send(&mut self, request: &[u8]) -> ExportOutcome;
}
