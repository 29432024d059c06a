//! Tasks that end with their owner.

/// A task that is aborted when this value is dropped.
pub(crate) struct ScopedTask(tokio::task::JoinHandle<()>);

impl ScopedTask {
    /// Starts the task.
    pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> ScopedTask {
        ScopedTask(tokio::spawn(work))
    }
}

impl Drop for ScopedTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}
