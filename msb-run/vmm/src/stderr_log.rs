//! Messages of libraries on standard error.

use log::{LevelFilter, Log, Metadata, Record};

/// Libraries that log the guest's requests, of which there may be any number.
const NOISY: [&str; 2] = ["fuse_backend_rs", "virtio_queue"];

struct StderrLogger;

impl Log for StderrLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        metadata.level() <= log::max_level() && !NOISY.iter().any(|name| target.starts_with(name))
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("{}: {}: {}", crate::TOOL, record.target(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Enables errors and nothing less: a guest can cause any number of warnings. No environment
/// variable changes that.
pub(crate) fn init() {
    // Nothing else sets a logger.
    if log::set_logger(&StderrLogger).is_ok() {
        log::set_max_level(LevelFilter::Error);
    }
}
