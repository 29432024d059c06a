//! Destination of an archive: standard output, a named pipe or device, or a file that appears when
//! it is complete.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result};
use libmsb::cli::error::Failure;
use libmsb::state::{layout, write};
use rustix::fs::{AtFlags, CWD, OFlags, linkat};

/// Size of a pipe: the largest that an unprivileged process can set by default.
const PIPE_BYTES: usize = 1 << 20;

/// An open destination.
pub(super) struct OutputTarget {
    file: File,
    /// Name in errors.
    name: String,
    /// The final file; `None` for pipes and devices.
    pending: Option<PendingFile>,
}

/// A file that does not exist yet under its name.
struct PendingFile {
    path: PathBuf,
    /// Temporary name, on file systems without O_TMPFILE.
    temporary: Option<PathBuf>,
}

impl OutputTarget {
    /// Opens standard output or a file.
    pub(super) fn open(path: Option<&Path>) -> Result<OutputTarget> {
        let Some(path) = path else {
            return standard_output();
        };
        let name = format!("'{}'", path.display());
        let cannot = || format!("cannot write {name}");
        let existing = std::fs::metadata(path);
        if existing.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
            return Err(Error::new(io::Error::from(io::ErrorKind::IsADirectory)))
                .with_context(cannot);
        }
        if existing.as_ref().is_ok_and(|existing| !existing.is_file()) {
            let file = OpenOptions::new().write(true).open(path).with_context(cannot)?;
            return Ok(OutputTarget { file, name, pending: None });
        }
        // A symbolic link is followed: its target is replaced.
        let path = if existing.is_ok() {
            path.canonicalize().with_context(cannot)?
        } else {
            path.to_owned()
        };
        let (file, pending) = PendingFile::open(path).with_context(cannot)?;
        Ok(OutputTarget { file, name, pending: Some(pending) })
    }

    /// Describes a failed write. A reader that closes the pipe is a failure, because it has no
    /// complete archive.
    pub(super) fn error(&self, error: io::Error) -> Error {
        let context = match error.kind() {
            io::ErrorKind::BrokenPipe => format!("the reader closed {}", self.name),
            _ => format!("cannot write {}", self.name),
        };
        Error::new(error).context(context)
    }

    /// Syncs the complete archive and gives it its name.
    pub(super) fn commit(self) -> Result<()> {
        let OutputTarget { file, name, pending } = self;
        let Some(new) = pending else { return Ok(()) };
        new.commit(&file).with_context(|| format!("cannot write {name}"))
    }
}

impl Write for OutputTarget {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn standard_output() -> Result<OutputTarget> {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        return Err(Failure::usage("cannot write an archive to a terminal")
            .hint("use --output FILE, or a pipe: msb image save IMAGE | ssh HOST msb image load")
            .into());
    }
    let file =
        File::from(stdout.as_fd().try_clone_to_owned().context("cannot write standard output")?);
    // A larger pipe needs fewer context switches. The call fails if this is not a pipe or the
    // user's limit is reached; then the size stays.
    let _ = rustix::pipe::fcntl_setpipe_size(&file, PIPE_BYTES);
    Ok(OutputTarget { file, name: "standard output".to_owned(), pending: None })
}

impl PendingFile {
    /// Opens an unnamed file, so that a kill leaves nothing; a temporary file where that is
    /// unsupported.
    fn open(path: PathBuf) -> Result<(File, PendingFile)> {
        let unnamed = OpenOptions::new()
            .write(true)
            .custom_flags(OFlags::TMPFILE.bits() as i32)
            .mode(0o666)
            .open(directory_of(&path));
        if let Ok(file) = unnamed {
            return Ok((file, PendingFile { path, temporary: None }));
        }
        let temporary = temporary_path(&path)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o666).open(&temporary)?;
        let temporary = Some(temporary);
        Ok((file, PendingFile { path, temporary }))
    }

    fn commit(mut self, file: &File) -> Result<()> {
        file.sync_data()?;
        let temporary = match &self.temporary {
            Some(temporary) => temporary.clone(),
            None => {
                let temporary = temporary_path(&self.path)?;
                let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
                linkat(CWD, unnamed, CWD, &temporary, AtFlags::SYMLINK_FOLLOW)?;
                self.temporary = Some(temporary.clone());
                temporary
            }
        };
        std::fs::rename(temporary, &self.path)?;
        self.temporary = None;
        write::sync_dir(directory_of(&self.path))
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            drop(std::fs::remove_file(temporary));
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    let directory = path.parent().unwrap_or(Path::new("."));
    if directory.as_os_str().is_empty() { Path::new(".") } else { directory }
}

fn temporary_path(path: &Path) -> Result<PathBuf> {
    let name = format!("{}{}", layout::NEW_PREFIX, write::random_hex()?);
    Ok(directory_of(path).join(name))
}
