//! Controls of a running command on their way to the guest: window sizes and signals.
//!
//! A guest may read slowly, and a client may send controls as often as it likes. So none of them is
//! queued twice: only the last window size counts, and a signal that is already pending is not
//! added again, as with pending signals of a process.

use std::sync::{Mutex, PoisonError};

use msb_wire::exec::{ExecControl, WindowSize};
use tokio::sync::Notify;

/// Controls that wait for the guest.
#[derive(Debug, Default)]
pub(crate) struct SessionControls {
    waiting: Mutex<PendingControls>,
    came: Notify,
}

#[derive(Debug, Default)]
struct PendingControls {
    size: Option<WindowSize>,
    /// Pending signals, one bit for each number.
    signals: u64,
}

impl SessionControls {
    /// Sets the window size.
    pub(crate) fn resize(&self, size: WindowSize) {
        self.add(|waiting| waiting.size = Some(size));
    }

    /// Adds a signal. Signals that have a name in SSH have numbers below 64.
    pub(crate) fn signal(&self, number: i32) {
        let bit = u32::try_from(number).ok().and_then(|number| 1_u64.checked_shl(number));
        self.add(|waiting| waiting.signals |= bit.unwrap_or(0));
    }

    fn add(&self, change: impl FnOnce(&mut PendingControls)) {
        change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        self.came.notify_one();
    }

    /// Waits for the next control. Only one task may wait.
    pub(crate) async fn next(&self) -> ExecControl {
        loop {
            if let Some(control) = self.take() {
                return control;
            }
            self.came.notified().await;
        }
    }

    /// Takes the next control. Sizes come first, so that a program that gets SIGWINCH sees the new
    /// size.
    fn take(&self) -> Option<ExecControl> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(size) = waiting.size.take() {
            return Some(ExecControl::Resize(size));
        }
        let signal = waiting.signals.trailing_zeros();
        waiting.signals &= waiting.signals.wrapping_sub(1);
        let signal = i32::try_from(signal).ok().filter(|number| *number < 64)?;
        Some(ExecControl::Signal { signal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn repeated_controls_are_queued_once() {
        let controls = SessionControls::default();
        let size = |cols| WindowSize { rows: 24, cols };
        for round in 0..1000 {
            controls.resize(size(round));
            for signal in [15, 2, -1, 64] {
                controls.signal(signal);
            }
        }
        let mut seen = Vec::new();
        while let Some(control) = controls.take() {
            seen.push(control);
        }
        let expected = [
            ExecControl::Resize(size(999)),
            ExecControl::Signal { signal: 2 },
            ExecControl::Signal { signal: 15 },
        ];
        assert_eq!(seen, expected);
    }

    #[tokio::test]
    async fn a_waiter_gets_a_later_control() {
        let controls = std::sync::Arc::new(SessionControls::default());
        let waiting = std::sync::Arc::clone(&controls);
        let heard = tokio::spawn(async move { waiting.next().await });
        tokio::task::yield_now().await;
        controls.signal(9);
        assert_eq!(heard.await.unwrap(), ExecControl::Signal { signal: 9 });
    }
}
