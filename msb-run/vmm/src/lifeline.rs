//! The machine ends when its supervisor ends, however that ends.

use std::os::fd::BorrowedFd;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, set_parent_process_death_signal};

/// From now on the kernel kills this process, also after exec, when the supervisor dies. If that happened before, the
/// pipe is closed already, and there is nothing to be started.
pub(crate) fn tie(life_fd: i32) -> anyhow::Result<()> {
    libmsb::signals::unblock_all().context("cannot unblock signals")?;
    set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot tie this process to its parent")?;
    anyhow::ensure!(life_fd > 2, "the life pipe cannot be descriptor {life_fd}");
    // SAFETY: the descriptor was inherited, nothing in this process closes it, and the borrow ends with this function. If
    // the number is none of an open file, poll(2) says so.
    let life = unsafe { BorrowedFd::borrow_raw(life_fd) };
    let mut watched = [PollFd::new(&life, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut watched, Some(&now)).context("cannot look at the life pipe")?;
    if watched[0].revents().is_empty() {
        return Ok(());
    }
    bail!("the supervisor is gone");
}
