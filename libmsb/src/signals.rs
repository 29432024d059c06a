//! Signals, blocked and read from a descriptor (signalfd(2)).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};

/// Signal numbers on Linux.
pub mod signal {
    pub use libc::{
        SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGSTOP, SIGTERM, SIGTSTP, SIGTTIN,
        SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH,
    };
}

/// Size of `struct signalfd_siginfo`.
const INFO_BYTES: usize = size_of::<libc::signalfd_siginfo>();

/// A set of signals that are read from a descriptor.
#[derive(Debug)]
pub struct Signals {
    file: File,
}

impl Signals {
    /// Blocks these signals for this thread, and for the threads that it starts, and returns their
    /// descriptor.
    pub fn of(numbers: &[i32]) -> io::Result<Signals> {
        let set = set_of(numbers);
        change_mask(libc::SIG_BLOCK, &set)?;
        // SAFETY: `set` is an initialized signal set; -1 asks for a new descriptor.
        let descriptor = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC) };
        if descriptor == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let file = unsafe { File::from_raw_fd(descriptor) };
        Ok(Signals { file })
    }

    /// Waits for the next signal and returns its number.
    pub fn wait(&self) -> io::Result<i32> {
        let mut info = [0; INFO_BYTES];
        let mut file = &self.file;
        file.read_exact(&mut info)?;
        // The number is the first field, a u32 in native byte order (signalfd(2)).
        let [a, b, c, d, ..] = info;
        Ok(u32::from_ne_bytes([a, b, c, d]) as i32)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

/// Unblocks all signals in this thread, for a program whose parent blocked some.
pub fn unblock_all() -> io::Result<()> {
    change_mask(libc::SIG_SETMASK, &set_of(&[]))
}

fn set_of(numbers: &[i32]) -> libc::sigset_t {
    // SAFETY: all-zero bytes are a valid value of this plain C type, and sigemptyset(3) initializes
    // it anyway.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is exclusively borrowed and stays so.
    unsafe { libc::sigemptyset(&mut set) };
    for number in numbers {
        // SAFETY: `set` is initialized; a number that is no signal is refused with an error, and
        // nothing is changed.
        unsafe { libc::sigaddset(&mut set, *number) };
    }
    set
}

fn change_mask(how: i32, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: `set` is initialized, and the previous mask is not asked for.
    match unsafe { libc::pthread_sigmask(how, set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_and_does_not_act() {
        let signals = Signals::of(&[signal::SIGUSR1]).unwrap();
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        // SAFETY: tgkill(2) with our own process and thread has no memory effects; the signal is
        // blocked here.
        let sent =
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal::SIGUSR1) };
        assert_eq!(sent, 0);
        assert_eq!(signals.wait().unwrap(), signal::SIGUSR1);
    }
}
