//! Messages of the libraries that serve a guest, on standard error.

use log::{LevelFilter, Log, Metadata, Record};

struct StandardError;

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
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
