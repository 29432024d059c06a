//! Error types that callers distinguish; every other error is text in an `anyhow` chain.

use std::fmt;
use std::io;

/// A failed write to the image store. Another archive or image would fail the same way.
#[derive(Debug)]
pub(crate) struct StoreWriteError(pub(crate) io::Error);

impl fmt::Display for StoreWriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot write to the image store")
    }
}

impl std::error::Error for StoreWriteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// A failed read of the archive as a whole: it was truncated, or the device failed.
#[derive(Debug)]
pub(crate) struct ArchiveReadError(pub(crate) io::Error);

impl fmt::Display for ArchiveReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot read the archive")
    }
}

impl std::error::Error for ArchiveReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// Returns whether an error ends the whole operation, and is not the fault of one layer.
pub(crate) fn is_fatal(error: &anyhow::Error) -> bool {
    // A reader can only pass on an `io::Error`, with the error of the store inside.
    let inside = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .is_some_and(|inner| inner.is::<StoreWriteError>())
    };
    error.chain().any(|cause| {
        cause.is::<StoreWriteError>() || cause.is::<ArchiveReadError>() || inside(cause)
    })
}
