//! Work that takes its time, in a thread of its own: the loop goes on, and hears when it is done.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::JoinHandle;

use anyhow::Context;
use libmsb::cli::error::{Failure, Kind};

/// Work that was begun.
#[derive(Debug)]
pub(crate) struct Task<T> {
    /// The reading end of a pipe whose other end the thread holds.
    done: File,
    thread: JoinHandle<anyhow::Result<T>>,
}

impl<T: Send + 'static> Task<T> {
    /// Begins. `name`: what the thread is called, in at most 15 bytes.
    pub(crate) fn begin(
        name: &'static str,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<Task<T>> {
        let (done, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .context("cannot make a pipe")?;
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let result = work();
                drop(end);
                result
            })
            .context("cannot start a thread")?;
        Ok(Task {
            done: done.into(),
            thread,
        })
    }

    /// What came of it. Waits for the thread.
    pub(crate) fn finish(self) -> anyhow::Result<T> {
        let died = |_| Err(Failure::new(Kind::Bug, "a thread of the supervisor died").into());
        self.thread.join().unwrap_or_else(died)
    }
}

impl<T> AsFd for Task<T> {
    /// Ready, hung up, when the work is done.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}
