//! The socket at which a sandbox is reached. Whoever may open its folder may drive the sandbox: mode 0700.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::state::write;

/// A listening socket, which is removed with this.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens at a path, in the place of a socket that a killed supervisor has left. For the holder of the lock.
    pub(crate) fn listen(path: PathBuf) -> anyhow::Result<Socket> {
        let cannot = || format!("cannot listen at '{}'", path.display());
        let folder = path.parent().unwrap_or(Path::new("/"));
        write::create_dir(folder)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(cannot);
            }
            _ => {}
        }
        // An address has room for 107 bytes; through the folder's descriptor every path fits.
        let folder = File::open(folder).with_context(cannot)?;
        let short = Path::new("/proc/self/fd")
            .join(folder.as_raw_fd().to_string())
            .join(path.file_name().unwrap_or_default());
        let listener = UnixListener::bind(short).with_context(cannot)?;
        listener.set_nonblocking(true).with_context(cannot)?;
        Ok(Socket { listener, path })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A left-over socket is inert; the next holder of the lock removes it.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.path.parent().map(std::fs::remove_dir);
    }
}
