//! The console of a guest: its log, and the guest's end according to it.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::console_watcher::{ConsoleWatcher, GuestExit};
use crate::process::log_rotation::{RotatedLog, RotationLimits};

/// Rotation of the console log.
const ROTATION: RotationLimits = RotationLimits { file_bytes: 1024 * 1024, kept: 1 };

/// Bytes of one read.
const READ_BYTES: usize = 4096;

/// The console of the current VM, and the log of all VMs of a run.
#[derive(Debug)]
pub(crate) struct GuestConsole {
    /// The output of the guest: none before the VM is started and after its end.
    output: Option<File>,
    log: RotatedLog,
    watcher: ConsoleWatcher,
}

impl GuestConsole {
    /// Opens the log.
    pub(crate) fn open(path: &Path) -> io::Result<GuestConsole> {
        let log = RotatedLog::open(path, ROTATION)?;
        Ok(GuestConsole { output: None, log, watcher: ConsoleWatcher::default() })
    }

    /// Reads a new VM from now on. Its descriptor does not block.
    pub(crate) fn connect(&mut self, output: File) {
        self.output = Some(output);
        self.watcher = ConsoleWatcher::default();
    }

    /// Returns the descriptor of the output, while there is one.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().map(AsFd::as_fd)
    }

    /// Copies output to the log. Returns `false` when there is no more for now. A full disk must
    /// not stop the sandbox: the output is then lost.
    pub(crate) fn copy(&mut self) -> bool {
        let mut bytes = [0; READ_BYTES];
        match self.output.as_ref().map(|mut output| output.read(&mut bytes)) {
            Some(Ok(count @ 1..)) => {
                let _ = self.log.append(&bytes[..count]);
                self.watcher.feed(&bytes[..count]);
                return true;
            }
            Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => {}
            Some(Ok(_) | Err(_)) => self.output = None,
            None => {}
        }
        false
    }

    /// Copies all output that is there.
    pub(crate) fn copy_all(&mut self) {
        while self.copy() {}
    }

    /// Returns the end that the guest reported, if it did.
    pub(crate) fn guest_exit(&self) -> Option<&GuestExit> {
        self.watcher.guest_exit()
    }

    /// Discards the reported end: the agent has answered.
    pub(crate) fn clear_guest_exit(&mut self) {
        self.watcher.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (File, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (File::from(std::os::fd::OwnedFd::from(ours)), theirs)
    }

    #[test]
    fn the_log_continues_with_the_next_vm_and_the_reported_end_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut console = GuestConsole::open(&path).unwrap();
        assert!(!console.copy());
        assert!(console.fd().is_none());

        let (ours, mut guest) = pair();
        console.connect(ours);
        guest.write_all(b"[    1.0] reboot: Power down\n").unwrap();
        console.copy_all();
        assert_eq!(console.guest_exit(), Some(&GuestExit::PoweredOff));
        assert!(console.fd().is_some());
        drop(guest);
        console.copy_all();
        assert!(console.fd().is_none());

        let (ours, mut guest) = pair();
        console.connect(ours);
        assert_eq!(console.guest_exit(), None);
        guest.write_all(b"second\n").unwrap();
        console.copy_all();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "[    1.0] reboot: Power down\nsecond\n"
        );
    }
}
