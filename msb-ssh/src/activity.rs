//! Whether anything passes for a client.
//!
//! What counts is what its sessions, copies and forwarded connections say, either way. Signs of life do not, whichever
//! side asks for them: they say that the client is there, not that it does something.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// When something passed last.
#[derive(Debug)]
pub(crate) struct Activity(Mutex<Instant>);

impl Activity {
    /// From now on.
    pub(crate) fn new() -> Activity {
        Activity(Mutex::new(Instant::now()))
    }

    /// Something passes.
    pub(crate) fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until nothing has passed for so long; for ever when there is no limit.
    pub(crate) async fn ceased(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        while let Some(left) = self.left(Instant::now(), limit) {
            tokio::time::sleep(left).await;
        }
    }

    /// How long it may still be quiet; `None` when it has been for so long.
    fn left(&self, now: Instant, limit: Duration) -> Option<Duration> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = limit.checked_sub(now.saturating_duration_since(last))?;
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_from_what_passed_last() {
        let activity = Activity::new();
        let limit = Duration::from_secs(60);
        let later = Instant::now() + Duration::from_secs(40);
        assert!(activity.left(later, limit).unwrap() <= Duration::from_secs(20));
        assert_eq!(activity.left(later + Duration::from_secs(20), limit), None);
        activity.touch();
        assert!(activity.left(Instant::now(), limit).unwrap() > Duration::from_secs(20));
    }

    #[tokio::test]
    async fn who_has_been_quiet_for_so_long_is_not_waited_for() {
        Activity::new().ceased(Some(Duration::ZERO)).await;
    }
}
