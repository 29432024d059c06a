//! Sandboxes that are stopping: those who start them again wait.

use std::time::{Duration, Instant};

use libmsb::state::sandboxes::Sandbox;
use libmsb::state::status::State;

/// Timeout for a sandbox that is stopping.
const STOPPING_TIMEOUT: Duration = Duration::from_secs(15);

/// Waits for a sandbox that is stopping, so that it can be started again.
pub(crate) fn wait_while_stopping(sandbox: &Sandbox) -> anyhow::Result<()> {
    let deadline = Instant::now() + STOPPING_TIMEOUT;
    while Instant::now() < deadline
        && sandbox.is_alive()?
        && sandbox.status()?.state.seen(true) == State::Stopping
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
