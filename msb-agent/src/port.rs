//! Console port to the supervisor.
//!
//! It is opened once and never closed: libkrun's device does not survive a second open. A read
//! returns at most 4096 bytes, and a write may be partial; neither blocks.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use msb_wire::frame::Decoder;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

/// Number of unwritten bytes from which no output of commands is read.
const BACKLOG_BYTES: usize = 256 * 1024;

/// Number of unwritten bytes from which no frames are read either: the host does not read the
/// answers to its requests.
const BACKLOG_BYTES_MAX: usize = 1024 * 1024;

/// Maximum number of bytes to read in one iteration of the event loop, so that commands get their
/// turn.
const READ_BYTES_MAX: usize = 256 * 1024;

/// The port with its receive decoder and its send buffer.
pub(crate) struct AgentPort {
    fd: OwnedFd,
    /// Decoder for frames from the host.
    pub(crate) incoming: Decoder,
    /// Frames to the host.
    pub(crate) outgoing: Vec<u8>,
    written: usize,
}

/// Looks for the port with this name once.
pub(crate) fn find(name: &str) -> Option<AgentPort> {
    let entries = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let entry = entries.flatten().find(|entry| {
        fs::read_to_string(entry.path().join("name"))
            .is_ok_and(|content| content.trim_end() == name)
    })?;
    let node = std::path::Path::new("/dev").join(entry.file_name());
    let fd = open(&node, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // No other process of the guest may open it: that ends a VM under libkrun.
    let _ = fs::remove_file(&node);
    Some(AgentPort::new(fd))
}

impl AgentPort {
    fn new(fd: OwnedFd) -> AgentPort {
        AgentPort { fd, incoming: Decoder::new(), outgoing: Vec::new(), written: 0 }
    }

    /// Returns the descriptor for poll(2).
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns the number of bytes that are not written yet.
    pub(crate) fn backlog(&self) -> usize {
        self.outgoing.len() - self.written
    }

    /// Returns whether output of commands may be added.
    pub(crate) fn has_room(&self) -> bool {
        self.backlog() < BACKLOG_BYTES
    }

    /// Returns whether frames may be read.
    pub(crate) fn takes_frames(&self) -> bool {
        self.backlog() < BACKLOG_BYTES_MAX
    }

    /// Reads available data, up to the limit of one iteration. Returns the number of bytes, and
    /// whether the host has closed its end.
    pub(crate) fn read(&mut self) -> io::Result<(usize, bool)> {
        let mut total = 0;
        while total < READ_BYTES_MAX {
            match rustix::io::read(&self.fd, self.incoming.room()) {
                Ok(0) => return Ok((total, true)),
                Ok(count) => {
                    self.incoming.filled(count);
                    total += count;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok((total, false))
    }

    /// Writes as much as the port accepts.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        while self.backlog() > 0 {
            match rustix::io::write(&self.fd, &self.outgoing[self.written..]) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.drop_written();
        Ok(())
    }

    fn drop_written(&mut self) {
        if self.backlog() == 0 {
            self.outgoing.clear();
            self.outgoing.shrink_to(2 * BACKLOG_BYTES);
            self.written = 0;
        } else if self.written >= BACKLOG_BYTES {
            self.outgoing.drain(..self.written);
            self.written = 0;
        }
    }

    /// Writes everything within the timeout. Returns `false` if some bytes are left.
    pub(crate) fn flush(&mut self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        while self.write().is_ok() && self.backlog() > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.backlog() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn unwritten_bytes_wait_in_order() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut port = AgentPort::new(ours.into());
        let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
        port.outgoing.extend_from_slice(&sent);
        let mut got = vec![0; sent.len()];
        let mut at = 0;
        port.write().unwrap();
        assert!(port.backlog() > 0 && !port.has_room());
        while at < got.len() {
            at += theirs.read(&mut got[at..]).unwrap();
            port.write().unwrap();
        }
        assert!(got == sent && port.backlog() == 0 && port.has_room());
    }

    #[test]
    fn the_end_is_reported_after_the_last_bytes() {
        use std::io::Write;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut port = AgentPort::new(ours.into());
        theirs.write_all(b"abc").unwrap();
        assert_eq!(port.read().unwrap(), (3, false));
        theirs.write_all(b"d").unwrap();
        drop(theirs);
        assert_eq!(port.read().unwrap(), (1, true));
    }
}
