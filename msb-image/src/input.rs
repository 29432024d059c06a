//! Archive input from a file or standard input, with progress.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read, Seek};
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use libmsb::cli::error::Failure;
use libmsb::cli::progress::{Counting, ProgressMeter};

use crate::limits::ZSTD_WINDOW_LOG_MAX;
use crate::stream::{BlobCompression, read_head};

const BUFFER_BYTES: usize = 256 << 10;

/// An open archive.
pub(crate) struct ArchiveInput {
    pub(crate) file: File,
    /// Length of a regular file that is read from its start.
    pub(crate) length: Option<u64>,
    progress: bool,
}

impl ArchiveInput {
    /// Opens a file, or standard input.
    pub(crate) fn open(path: Option<&Path>, progress: bool) -> Result<ArchiveInput> {
        let mut file = match path {
            Some(path) => {
                File::open(path).with_context(|| format!("cannot open '{}'", path.display()))?
            }
            None => standard_input()?,
        };
        let data = file.metadata().context("cannot read the archive")?;
        if data.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory))
                .context("cannot read the archive");
        }
        let at_start = data.is_file() && file.stream_position().is_ok_and(|position| position == 0);
        Ok(ArchiveInput { file, length: at_start.then_some(data.len()), progress })
    }

    /// Wraps an open file. Without a length it is read as a stream.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn of(file: File, length: Option<u64>) -> ArchiveInput {
        ArchiveInput { file, length, progress: false }
    }

    /// Returns a reader of the whole archive, with progress on a terminal.
    pub(crate) fn reader(self) -> Counting<File> {
        let meter = self.meter();
        Counting::new(self.file, meter)
    }

    /// Returns a progress meter for reads in another order.
    pub(crate) fn meter(&self) -> Option<ProgressMeter> {
        ProgressMeter::start(self.length, self.progress)
    }
}

fn standard_input() -> Result<File> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Failure::usage("standard input is a terminal, not an archive")
            .hint("use --input FILE, or pipe an archive: docker save IMAGE | msb image load")
            .into());
    }
    let descriptor = stdin.as_fd().try_clone_to_owned().context("cannot read standard input")?;
    Ok(File::from(descriptor))
}

/// Removes the compression of the archive as a whole, if any. Returns the reader and its first
/// bytes.
pub(crate) fn decompressed<'a, R: Read + Send + 'a>(
    mut input: R,
) -> Result<(Box<dyn Read + Send + 'a>, Vec<u8>)> {
    let head = read_head(&mut input).context("cannot read the archive")?;
    let compression = BlobCompression::of(&head);
    let whole = BufReader::with_capacity(BUFFER_BYTES, io::Cursor::new(head.clone()).chain(input));
    let mut reader: Box<dyn Read + Send> = match compression {
        Some(BlobCompression::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Some(BlobCompression::Zstd) => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        _ => return Ok((Box::new(whole), head)),
    };
    let head = read_head(&mut reader).context("cannot decompress the archive")?;
    Ok((Box::new(io::Cursor::new(head.clone()).chain(reader)), head))
}
