//! Pseudo-terminals of commands.

use std::os::fd::{AsFd, OwnedFd};

use msb_wire::exec::WindowSize;
use rustix::fs::{Gid, OFlags, Uid, fchown, fcntl_setfl};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize, tcgetattr, tcgetpgrp, tcsetwinsize};

/// Terminal modes.
pub(crate) mod modes;

/// Group of terminals: the same as devpts uses, named `tty` in all distributions.
pub(crate) const TTY_GROUP: u32 = 5;

/// Opens a pseudo-terminal. Returns the agent's end, which does not block, and the command's end.
pub(crate) fn open(size: WindowSize, owner: u32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    resize(&ours, size)?;
    fcntl_setfl(&ours, OFlags::RDWR | OFlags::NONBLOCK)?;
    let _ = fchown(&theirs, Some(Uid::from_raw(owner)), Some(Gid::from_raw(TTY_GROUP)));
    Ok((ours, theirs))
}

/// Sets the window size; the kernel signals the programs on the terminal.
pub(crate) fn resize(terminal: impl AsFd, size: WindowSize) -> Result<(), Errno> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size)
}

/// Returns the foreground process group.
pub(crate) fn foreground(terminal: impl AsFd) -> Option<i32> {
    tcgetpgrp(terminal).ok().map(|group| group.as_raw_pid())
}

/// The character that ends the input of a terminal (VEOF), and how the terminal reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EndOfInput {
    /// The character.
    pub(crate) code: u8,
    /// Set in canonical mode, in which the kernel ends the read. Otherwise the program reads the
    /// character itself, as line editors do.
    pub(crate) is_canonical: bool,
}

/// Returns the character that ends the input, or `None` if the terminal has none.
pub(crate) fn end_of_input(terminal: impl AsFd) -> Option<EndOfInput> {
    let modes = tcgetattr(terminal).ok()?;
    let code = modes.special_codes[SpecialCodeIndex::VEOF];
    let is_canonical = modes.local_modes.contains(LocalModes::ICANON);
    (code != 0).then_some(EndOfInput { code, is_canonical })
}
