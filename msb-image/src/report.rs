//! Reports of the verbs: notes for people, and rows of images.

use anyhow::Result;
use libmsb::cli::{error as cli_error, output};
use libmsb::digest::Digest;
use libmsb::jsonl;
use serde::Serialize;

use crate::args::{OutputFormat, ReportArgs};

/// An image in the store, as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct StoredImage {
    pub(crate) reference: String,
    pub(crate) digest: Digest,
    pub(crate) image_id: Digest,
    pub(crate) layers: usize,
    pub(crate) size_bytes: u64,
}

/// Prints the name of each added image, or a JSON line for programs.
pub(crate) fn report(loaded: &[StoredImage], options: ReportArgs) -> Result<()> {
    for image in loaded {
        if options.format == Some(OutputFormat::Json) {
            output::print(&jsonl::to_string(image)?)?;
        } else if !options.quiet {
            output::print(&image.reference)?;
        }
    }
    Ok(())
}

/// Prints a line on standard error. A failure is ignored.
pub(crate) fn print_note(line: &str) {
    cli_error::print_remark(cli_error::program(), line);
}
