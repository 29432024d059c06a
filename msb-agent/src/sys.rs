//! System calls that rustix lacks. With `spawn.rs`, all the unsafe code of the agent.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Turns the answer of a C function into a result.
fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(answer)
    }
}

/// Blocks SIGCHLD and gives the descriptor on which it arrives instead.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: `set` is a plain value that sigemptyset fills before anybody reads it; the pointers live through the calls.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        check(libc::sigprocmask(
            libc::SIG_BLOCK,
            &set,
            std::ptr::null_mut(),
        ))?;
        check(libc::signalfd(
            -1,
            &set,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))?
    };
    // SAFETY: the kernel just gave this descriptor to us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// From now on a write into a pipe that nobody reads is an error, and no more the end of this process.
pub(crate) fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN is no function; nothing of ours runs in a handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Sends a signal to every process but this one and the kernel's.
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

/// Lets later children be born into the PID namespace of a process.
pub(crate) fn enter_pid_namespace(process: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns takes an open descriptor and a number.
    check(unsafe { libc::setns(process.as_raw_fd(), libc::CLONE_NEWPID) }).map(drop)
}

/// Sends a signal to a process group. It fails when the group is gone or the number is no signal, which is fine.
pub(crate) fn kill_group(group: i32, signal: libc::c_int) {
    if group > 1 {
        // SAFETY: kill takes plain numbers.
        unsafe { libc::kill(-group, signal) };
    }
}

/// Bytes that [`add_entropy`] takes at a time.
pub(crate) const ENTROPY_BYTES_MAX: usize = 512;

const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;

#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; ENTROPY_BYTES_MAX],
}

/// Puts random bytes into the kernel's pool and counts them as such.
pub(crate) fn add_entropy(device: BorrowedFd<'_>, random: &[u8]) -> io::Result<()> {
    let count = random.len().min(ENTROPY_BYTES_MAX);
    let mut info = PoolInfo {
        entropy_bits: count as libc::c_int * 8,
        bytes: count as libc::c_int,
        buffer: [0; ENTROPY_BYTES_MAX],
    };
    info.buffer[..count].copy_from_slice(&random[..count]);
    // SAFETY: RNDADDENTROPY reads two ints and then as many bytes as the second says, all within `info`.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &info) }).map(drop)
}

/// `_IO('R', 0x07)` of linux/random.h.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Reseeds the kernel's random number generator from its pool now, in place of within a minute.
pub(crate) fn reseed(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: RNDRESEEDCRNG takes no argument; the third is ignored.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _, 0) }).map(drop)
}

/// Brings the loopback interface up.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an ifreq is plain bytes, for which zero is valid. Both calls get a pointer to a whole ifreq that lives through
    // them; the name is terminated; the flags are the member of the union that both requests use.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        check(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFFLAGS as _,
            &mut request,
        ))?;
        request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &request,
        ))?;
    }
    Ok(())
}

const FIFREEZE: libc::c_ulong = 0xc004_5877;

/// Stops all writing to a file system, its journal flushed, whatever is still open on it.
pub(crate) fn freeze(root: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: FIFREEZE takes no argument; the third is ignored.
    check(unsafe { libc::ioctl(root.as_raw_fd(), FIFREEZE as _, 0) }).map(drop)
}
