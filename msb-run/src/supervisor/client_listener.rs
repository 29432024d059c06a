//! The socket on which clients reach a sandbox. Opening its directory is the permission to control
//! the sandbox: mode 0700.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::state::write;

/// A listening socket, removed on drop.
#[derive(Debug)]
pub(crate) struct ClientListener {
    pub(crate) listener: UnixListener,
    path: PathBuf,
}

impl ClientListener {
    /// Listens at a path and replaces a stale socket of a killed supervisor. The caller holds the
    /// sandbox's lock.
    pub(crate) fn listen(path: PathBuf) -> anyhow::Result<ClientListener> {
        let cannot = || format!("cannot listen at '{}'", path.display());
        let directory = path.parent().unwrap_or(Path::new("/"));
        write::create_dir(directory)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(cannot);
            }
            _ => {}
        }
        // A socket address holds 107 bytes; every path fits through the descriptor of its
        // directory.
        let directory = File::open(directory).with_context(cannot)?;
        let short = Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(path.file_name().unwrap_or_default());
        let listener = UnixListener::bind(short).with_context(cannot)?;
        listener.set_nonblocking(true).with_context(cannot)?;
        Ok(ClientListener { listener, path })
    }
}

impl Drop for ClientListener {
    fn drop(&mut self) {
        // A stale socket is harmless; the next holder of the lock removes it.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.path.parent().map(std::fs::remove_dir);
    }
}
