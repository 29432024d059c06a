//! The console port to the supervisor.
//!
//! It is opened once and never closed: libkrun's device does not survive a second opening. A read gives 4096 bytes at
//! the most and a write may take less than it is given; neither blocks.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use msb_wire::frame::Decoder;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

/// Bytes waiting to be written beyond which no output of commands is read.
const BACKLOG_BYTES: usize = 256 * 1024;

/// Bytes waiting to be written beyond which no frame is read either: the host does not read what it asked for.
const BACKLOG_BYTES_MAX: usize = 1024 * 1024;

/// Bytes that one turn of the loop reads before the commands have theirs.
const READ_BYTES_PER_TURN: usize = 256 * 1024;

/// The port, what came in and is not decoded, and what is to go out.
pub(crate) struct Port {
    fd: OwnedFd,
    /// Frames of the host.
    pub(crate) incoming: Decoder,
    /// Frames for the host; appended by whoever has something to say.
    pub(crate) outgoing: Vec<u8>,
    written: usize,
}

/// Looks once for the port of this name.
pub(crate) fn find(name: &str) -> Option<Port> {
    let entries = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let entry = entries.flatten().find(|entry| {
        fs::read_to_string(entry.path().join("name"))
            .is_ok_and(|content| content.trim_end() == name)
    })?;
    let node = std::path::Path::new("/dev").join(entry.file_name());
    let fd = open(
        &node,
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    // Nobody else in the guest shall open it: that kills a machine under libkrun.
    let _ = fs::remove_file(&node);
    Some(Port::new(fd))
}

impl Port {
    fn new(fd: OwnedFd) -> Port {
        Port {
            fd,
            incoming: Decoder::new(),
            outgoing: Vec::new(),
            written: 0,
        }
    }

    /// For poll(2).
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes that wait to be written.
    pub(crate) fn backlog(&self) -> usize {
        self.outgoing.len() - self.written
    }

    /// Whether output of commands may be added.
    pub(crate) fn has_room(&self) -> bool {
        self.backlog() < BACKLOG_BYTES
    }

    /// Whether frames may be read.
    pub(crate) fn takes_frames(&self) -> bool {
        self.backlog() < BACKLOG_BYTES_MAX
    }

    /// Reads what is there, up to one turn's share. Gives the number of bytes, and whether the host is gone.
    pub(crate) fn read(&mut self) -> io::Result<(usize, bool)> {
        let mut total = 0;
        while total < READ_BYTES_PER_TURN {
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

    /// Writes as much as the port takes now.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        while self.backlog() > 0 {
            match rustix::io::write(&self.fd, &self.outgoing[self.written..]) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.forget_written();
        Ok(())
    }

    fn forget_written(&mut self) {
        if self.backlog() == 0 {
            self.outgoing.clear();
            self.outgoing.shrink_to(2 * BACKLOG_BYTES);
            self.written = 0;
        } else if self.written >= BACKLOG_BYTES {
            self.outgoing.drain(..self.written);
            self.written = 0;
        }
    }

    /// Writes everything, for as long as `patience` lasts. `false` when something is left.
    pub(crate) fn flush(&mut self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
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
    fn what_the_port_does_not_take_waits_in_order() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut port = Port::new(ours.into());
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
    fn the_end_of_the_host_is_told_after_its_last_bytes() {
        use std::io::Write;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut port = Port::new(ours.into());
        theirs.write_all(b"abc").unwrap();
        assert_eq!(port.read().unwrap(), (3, false));
        theirs.write_all(b"d").unwrap();
        drop(theirs);
        assert_eq!(port.read().unwrap(), (1, true));
    }
}
