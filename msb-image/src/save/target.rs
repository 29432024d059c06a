//! Where an archive goes: standard output, a pipe or device that has a name, or a file that appears when it is whole.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result};
use libmsb::cli::error::Failure;
use libmsb::state::{layout, write};
use rustix::fs::{AtFlags, CWD, OFlags, linkat};

/// Bytes that a pipe may hold: the largest size that users may choose.
const PIPE_BYTES: usize = 1 << 20;

/// Where the bytes go.
pub(super) struct Target {
    file: File,
    /// What it is called in errors.
    name: String,
    /// The file that it becomes at the end.
    becomes: Option<NewFile>,
}

/// A file that is not there yet.
struct NewFile {
    path: PathBuf,
    /// The name that it has in the meantime, where the file system has no files without one.
    temporary: Option<PathBuf>,
}

impl Target {
    /// Standard output, or a file.
    pub(super) fn open(path: Option<&Path>) -> Result<Target> {
        let Some(path) = path else {
            return standard_output();
        };
        let name = format!("'{}'", path.display());
        let cannot = || format!("cannot write {name}");
        let there = std::fs::metadata(path);
        if there.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
            return Err(Error::new(io::Error::from(io::ErrorKind::IsADirectory)))
                .with_context(cannot);
        }
        if there.as_ref().is_ok_and(|there| !there.is_file()) {
            let file = OpenOptions::new()
                .write(true)
                .open(path)
                .with_context(cannot)?;
            return Ok(Target {
                file,
                name,
                becomes: None,
            });
        }
        // Through a link, the file that it leads to is the one that is replaced.
        let path = if there.is_ok() {
            path.canonicalize().with_context(cannot)?
        } else {
            path.to_owned()
        };
        let (file, becomes) = NewFile::open(path).with_context(cannot)?;
        Ok(Target {
            file,
            name,
            becomes: Some(becomes),
        })
    }

    /// An error of a write. A reader that went away is a failure: it has no whole archive.
    pub(super) fn error(&self, error: io::Error) -> Error {
        let context = match error.kind() {
            io::ErrorKind::BrokenPipe => format!("nobody reads {} any more", self.name),
            _ => format!("cannot write {}", self.name),
        };
        Error::new(error).context(context)
    }

    /// The archive is whole: from now on it has its name, and outlives a power cut.
    pub(super) fn commit(self) -> Result<()> {
        let Target {
            file,
            name,
            becomes,
        } = self;
        let Some(new) = becomes else { return Ok(()) };
        new.commit(&file)
            .with_context(|| format!("cannot write {name}"))
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn standard_output() -> Result<Target> {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        return Err(
            Failure::usage("standard output is a terminal, which cannot take an archive")
                .hint("name a file with --output, or write: msb image save IMAGE | ssh HOST msb image load")
                .into(),
        );
    }
    let file = File::from(
        stdout
            .as_fd()
            .try_clone_to_owned()
            .context("cannot write standard output")?,
    );
    // Fewer turns between us and the reader. It is no pipe, or the user has no room left: then as it is.
    let _ = rustix::pipe::fcntl_setpipe_size(&file, PIPE_BYTES);
    Ok(Target {
        file,
        name: "standard output".to_owned(),
        becomes: None,
    })
}

impl NewFile {
    /// A file without a name, so that a kill leaves nothing; with a temporary one where that cannot be.
    fn open(path: PathBuf) -> Result<(File, NewFile)> {
        let nameless = OpenOptions::new()
            .write(true)
            .custom_flags(OFlags::TMPFILE.bits() as i32)
            .mode(0o666)
            .open(folder_of(&path));
        if let Ok(file) = nameless {
            return Ok((
                file,
                NewFile {
                    path,
                    temporary: None,
                },
            ));
        }
        let temporary = beside(&path)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o666)
            .open(&temporary)?;
        let temporary = Some(temporary);
        Ok((file, NewFile { path, temporary }))
    }

    fn commit(mut self, file: &File) -> Result<()> {
        file.sync_data()?;
        let temporary = match &self.temporary {
            Some(temporary) => temporary.clone(),
            None => {
                let temporary = beside(&self.path)?;
                let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
                linkat(CWD, nameless, CWD, &temporary, AtFlags::SYMLINK_FOLLOW)?;
                self.temporary = Some(temporary.clone());
                temporary
            }
        };
        std::fs::rename(temporary, &self.path)?;
        self.temporary = None;
        write::sync_dir(folder_of(&self.path))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            drop(std::fs::remove_file(temporary));
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().unwrap_or(Path::new("."));
    if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    }
}

fn beside(path: &Path) -> Result<PathBuf> {
    let name = format!("{}{}", layout::NEW_PREFIX, write::random_hex()?);
    Ok(folder_of(path).join(name))
}
