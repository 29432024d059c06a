//! System calls that rustix lacks. With `spawn.rs` and a few lines elsewhere, all unsafe code of
//! the agent.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Turns the return value of a C function into a result.
fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Blocks SIGCHLD and returns a signalfd for it.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: `set` is a plain value that sigemptyset fills before anything reads it; the pointers
    // live through the calls.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?
    };
    // SAFETY: the kernel just returned this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ignores SIGPIPE: a write to a pipe without a reader then fails instead of ending the process.
pub(crate) fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN is not a function; no code of this program runs in a handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Sends a signal to all processes except this one and kernel threads.
pub(crate) fn kill_all(signal: libc::c_int) {
    // SAFETY: kill takes plain numbers. It fails when there is no process, which is fine.
    unsafe { libc::kill(-1, signal) };
}

/// Sends a signal to one process.
pub(crate) fn kill_process(process: i32, signal: libc::c_int) {
    if process > 1 {
        // SAFETY: kill takes plain numbers. It fails when the process is gone, which is fine.
        unsafe { libc::kill(process, signal) };
    }
}

/// Makes later children start in the PID namespace of a process.
pub(crate) fn enter_pid_namespace(process: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns takes an open descriptor and a number.
    check(unsafe { libc::setns(process.as_raw_fd(), libc::CLONE_NEWPID) }).map(drop)
}

/// Sends a signal to a process group. Fails without harm if the group has gone or the number is not
/// a signal.
pub(crate) fn kill_group(group: i32, signal: libc::c_int) {
    if group > 1 {
        // SAFETY: kill takes plain numbers.
        unsafe { libc::kill(-group, signal) };
    }
}

/// Maximum number of bytes for one call of [`add_entropy`].
pub(crate) const ENTROPY_BYTES_MAX: usize = 512;

const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;

#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; ENTROPY_BYTES_MAX],
}

/// Adds random bytes to the kernel's pool and credits their entropy.
pub(crate) fn add_entropy(device: BorrowedFd<'_>, random: &[u8]) -> io::Result<()> {
    let count = random.len().min(ENTROPY_BYTES_MAX);
    let mut info = PoolInfo {
        entropy_bits: count as libc::c_int * 8,
        bytes: count as libc::c_int,
        buffer: [0; ENTROPY_BYTES_MAX],
    };
    info.buffer[..count].copy_from_slice(&random[..count]);
    // SAFETY: RNDADDENTROPY reads two ints and then as many bytes as the second says, all within
    // `info`.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &info) }).map(drop)
}

/// `_IO('R', 0x07)` of linux/random.h.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Reseeds the kernel's random number generator now instead of within a minute.
pub(crate) fn reseed(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: RNDRESEEDCRNG takes no argument; the third is ignored.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _, 0) }).map(drop)
}

/// Brings the loopback interface up.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: an ifreq is plain bytes, for which zero is valid. Both calls get a pointer to a whole
    // ifreq that lives through them; the name is terminated; the flags are the member of the union
    // that both requests use.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request))?;
        request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request))?;
    }
    Ok(())
}

const FITHAW: libc::c_ulong = 0xc004_5878;

/// Thaws the file system of an open file.
pub(crate) fn thaw(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open, and FITHAW does not use its argument.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FITHAW as _, 0) }).map(drop)
}

const FIFREEZE: libc::c_ulong = 0xc004_5877;

/// Freezes a file system: flushes its journal and blocks all writes, even with open files.
pub(crate) fn freeze(root: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: FIFREEZE takes no argument; the third is ignored.
    check(unsafe { libc::ioctl(root.as_raw_fd(), FIFREEZE as _, 0) }).map(drop)
}
