//! Use of the published ports.

use libmsb::samples::boot_ns;

/// Use of the published ports, reported in the sample file so that an idle timeout can see it.
#[derive(Debug, Default)]
pub(crate) struct PortUsage {
    /// Number of open connections.
    pub(crate) open: u64,
    /// Set when a connection opened or closed, or a datagram arrived, since the last report.
    used_since_report: bool,
    /// Time of the last use, in nanoseconds since the host's boot.
    last_used_ns: u64,
}

impl PortUsage {
    /// Counts an opened connection.
    pub(crate) fn record_open(&mut self) {
        self.open += 1;
        self.used_since_report = true;
    }

    /// Counts a closed connection.
    pub(crate) fn record_close(&mut self) {
        self.open = self.open.saturating_sub(1);
        self.used_since_report = true;
    }

    /// Records a datagram.
    pub(crate) fn record_datagram(&mut self) {
        self.used_since_report = true;
    }

    /// Returns the time of the last use. The clock is read at most once a turn, and only after a
    /// use.
    pub(crate) fn last_used_ns(&mut self) -> u64 {
        if std::mem::take(&mut self.used_since_report) {
            self.last_used_ns = boot_ns();
        }
        self.last_used_ns
    }
}
