//! The errors that must be told apart; all else is text in an `anyhow` chain.

use std::fmt;
use std::io;

/// The store could not be written: no other archive or image would fare better.
#[derive(Debug)]
pub(crate) struct StoreWrite(pub(crate) io::Error);

impl fmt::Display for StoreWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot write to the image store")
    }
}

impl std::error::Error for StoreWrite {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// The archive as a whole could not be read on: it ended, or the device failed.
#[derive(Debug)]
pub(crate) struct ArchiveRead(pub(crate) io::Error);

impl fmt::Display for ArchiveRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot read the archive")
    }
}

impl std::error::Error for ArchiveRead {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// Whether the error ends everything, and is no fault of one layer.
pub(crate) fn is_fatal(error: &anyhow::Error) -> bool {
    // A reader can only pass on errors of input and output, with ours inside.
    let inside = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .is_some_and(|inner| inner.is::<StoreWrite>())
    };
    error
        .chain()
        .any(|cause| cause.is::<StoreWrite>() || cause.is::<ArchiveRead>() || inside(cause))
}
