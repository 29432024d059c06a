//! Idle timer of one client, for the idle timeout.
//!
//! Data of sessions, file transfers and forwarded connections counts as activity, in both
//! directions. Keepalive messages of either side do not: they show that the client is connected,
//! not that it is active.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An idle timer: the time of the last activity.
#[derive(Debug)]
pub(crate) struct IdleTimer(Mutex<Instant>);

impl IdleTimer {
    /// Returns a timer that starts now.
    pub(crate) fn new() -> IdleTimer {
        IdleTimer(Mutex::new(Instant::now()))
    }

    /// Records activity.
    pub(crate) fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until there has been no activity for `limit`; waits forever without a limit.
    pub(crate) async fn wait_idle(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        while let Some(left) = self.left(Instant::now(), limit) {
            tokio::time::sleep(left).await;
        }
    }

    /// Returns the time left until the timer expires, or `None` when it has expired.
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
    fn the_timer_restarts_with_each_activity() {
        let idle_timer = IdleTimer::new();
        let limit = Duration::from_secs(60);
        let later = Instant::now() + Duration::from_secs(40);
        assert!(idle_timer.left(later, limit).unwrap() <= Duration::from_secs(20));
        assert_eq!(idle_timer.left(later + Duration::from_secs(20), limit), None);
        idle_timer.touch();
        assert!(idle_timer.left(Instant::now(), limit).unwrap() > Duration::from_secs(20));
    }

    #[tokio::test]
    async fn an_expired_timer_does_not_wait() {
        IdleTimer::new().wait_idle(Some(Duration::ZERO)).await;
    }
}
