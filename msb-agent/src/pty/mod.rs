//! Terminals for commands.

use std::os::fd::{AsFd, OwnedFd};

use msb_wire::exec::WindowSize;
use rustix::fs::{Gid, OFlags, Uid, fchown, fcntl_setfl};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize, tcgetattr, tcgetpgrp, tcsetwinsize};

/// What a terminal does with what it is told.
pub(crate) mod modes;

/// Group of terminals: what devpts gives to new ones, and what every distribution calls `tty`.
pub(crate) const TTY_GROUP: u32 = 5;

/// A new terminal: our end, which does not block, and the command's.
pub(crate) fn open(size: WindowSize, owner: u32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    resize(&ours, size)?;
    fcntl_setfl(&ours, OFlags::RDWR | OFlags::NONBLOCK)?;
    let _ = fchown(
        &theirs,
        Some(Uid::from_raw(owner)),
        Some(Gid::from_raw(TTY_GROUP)),
    );
    Ok((ours, theirs))
}

/// Tells the terminal its size; the kernel tells the programs on it.
pub(crate) fn resize(terminal: impl AsFd, size: WindowSize) -> Result<(), Errno> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size)
}

/// The process group in the foreground.
pub(crate) fn foreground(terminal: impl AsFd) -> Option<i32> {
    tcgetpgrp(terminal).ok().map(|group| group.as_raw_pid())
}

/// The byte that means "end of input" now; `None` when the terminal is read byte by byte, and nothing means that.
pub(crate) fn end_of_input(terminal: impl AsFd) -> Option<u8> {
    let modes = tcgetattr(terminal).ok()?;
    let code = modes.special_codes[SpecialCodeIndex::VEOF];
    (modes.local_modes.contains(LocalModes::ICANON) && code != 0).then_some(code)
}
