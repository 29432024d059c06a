//! Warnings of a copy.

use msb_wire::file::record::Severity;

/// A callback for warnings about files that are not copied.
pub(crate) type CopyReporter<'a> = &'a mut (dyn FnMut(Severity, &str) + Send);
