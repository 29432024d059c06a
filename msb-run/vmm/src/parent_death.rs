//! The end of the VMM process with its supervisor, by the parent death signal.

use std::os::fd::BorrowedFd;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, set_parent_process_death_signal};

/// Makes the kernel kill this process when the supervisor dies, also after exec. If the supervisor
/// has died already, the life pipe is closed, and nothing is started.
pub(crate) fn exit_with_parent(life_fd: i32) -> anyhow::Result<()> {
    libmsb::signals::unblock_all().context("cannot unblock signals")?;
    set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot set the parent death signal")?;
    anyhow::ensure!(life_fd > 2, "the life pipe cannot be descriptor {life_fd}");
    // SAFETY: the descriptor was inherited, nothing in this process closes it, and the borrow ends
    // with this function. If the number is not an open descriptor, poll(2) says so.
    let life = unsafe { BorrowedFd::borrow_raw(life_fd) };
    let mut watched = [PollFd::new(&life, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut watched, Some(&now)).context("cannot poll the life pipe")?;
    if watched[0].revents().is_empty() {
        return Ok(());
    }
    bail!("the supervisor has ended");
}
