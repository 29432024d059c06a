//! Slow work in a thread of its own. The event loop continues and is woken when the work is done.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::JoinHandle;

use anyhow::Context;
use libmsb::cli::error::{ErrorKind, Failure};

/// A thread that was started for some work.
#[derive(Debug)]
pub(crate) struct BackgroundTask<T> {
    /// The read end of a pipe. The thread holds the write end.
    done: File,
    thread: JoinHandle<anyhow::Result<T>>,
}

impl<T: Send + 'static> BackgroundTask<T> {
    /// Starts the work in a thread called `name`, of at most 15 bytes.
    pub(crate) fn spawn(
        name: &'static str,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<BackgroundTask<T>> {
        let (done, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .context("cannot create a pipe")?;
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let result = work();
                drop(end);
                result
            })
            .context("cannot start a thread")?;
        Ok(BackgroundTask { done: done.into(), thread })
    }

    /// Waits for the thread and returns its result.
    pub(crate) fn finish(self) -> anyhow::Result<T> {
        let died =
            |_| Err(Failure::new(ErrorKind::Bug, "a thread of the supervisor panicked").into());
        self.thread.join().unwrap_or_else(died)
    }
}

impl<T> AsFd for BackgroundTask<T> {
    /// Returns the descriptor that reports a hang-up when the work is done.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}
