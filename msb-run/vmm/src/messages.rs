//! Messages of the libraries that serve a guest, on standard error.

use log::{LevelFilter, Log, Metadata, Record};

/// Libraries that report what a guest asks for, which it may do without end.
const NOISY: [&str; 2] = ["fuse_backend_rs", "virtio_queue"];

struct StandardError;

impl Log for StandardError {
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

/// Passes errors on, and nothing less: a guest causes warnings at will. No environment variable changes that.
pub(crate) fn pass_on_errors() {
    // Nothing else sets a logger.
    if log::set_logger(&StandardError).is_ok() {
        log::set_max_level(LevelFilter::Error);
    }
}
