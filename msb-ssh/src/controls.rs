//! What a client says about a running command besides its input: the size of its terminal, and signals.
//!
//! A guest may be slow to take it, and a client may say it as often as it likes. So nothing queues up: of sizes the last
//! one counts, and a signal that waits already is the same one, as with a process that has it pending.

use std::sync::{Mutex, PoisonError};

use msb_wire::exec::{ExecControl, WindowSize};
use tokio::sync::Notify;

/// What waits for the guest.
#[derive(Debug, Default)]
pub(crate) struct Controls {
    waiting: Mutex<Waiting>,
    came: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    size: Option<WindowSize>,
    /// A bit for each number.
    signals: u64,
}

impl Controls {
    /// The terminal has a new size.
    pub(crate) fn resize(&self, size: WindowSize) {
        self.add(|waiting| waiting.size = Some(size));
    }

    /// A signal that has a name in SSH: the numbers of those are below 64.
    pub(crate) fn signal(&self, number: i32) {
        let bit = u32::try_from(number)
            .ok()
            .and_then(|number| 1_u64.checked_shl(number));
        self.add(|waiting| waiting.signals |= bit.unwrap_or(0));
    }

    fn add(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        self.came.notify_one();
    }

    /// Waits for what comes next. For one task.
    pub(crate) async fn next(&self) -> ExecControl {
        loop {
            if let Some(control) = self.take() {
                return control;
            }
            self.came.notified().await;
        }
    }

    /// Sizes first: a program that is told of a new one by a signal then sees it.
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
    async fn what_a_client_says_a_thousand_times_waits_once() {
        let controls = Controls::default();
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
    async fn who_waits_hears_of_what_comes_later() {
        let controls = std::sync::Arc::new(Controls::default());
        let waiting = std::sync::Arc::clone(&controls);
        let heard = tokio::spawn(async move { waiting.next().await });
        tokio::task::yield_now().await;
        controls.signal(9);
        assert_eq!(heard.await.unwrap(), ExecControl::Signal { signal: 9 });
    }
}
