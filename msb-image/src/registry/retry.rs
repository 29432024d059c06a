//! When to try again: what passes by itself (a server that is busy, a connection that broke) is tried a few times, each
//! after a longer pause; all else fails at once.

use std::time::Duration;

/// Attempts in a row that bring nothing.
pub(crate) const ATTEMPTS_MAX: u32 = 6;
/// The first pause, as a part of the time that a connection may be silent: 1 of 30 seconds. Each further one is twice as
/// long: all of them are half a minute.
const PAUSE_PART: u32 = 30;
/// The longest pause that a server may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(120);

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It may go better later.
    Passing {
        error: anyhow::Error,
        /// How long the server wants to be left alone.
        pause: Option<Duration>,
    },
    /// It will not.
    Final(anyhow::Error),
}

impl Trouble {
    pub(crate) fn passing(error: impl Into<anyhow::Error>) -> Trouble {
        Trouble::Passing {
            error: error.into(),
            pause: None,
        }
    }

    pub(crate) fn into_error(self) -> anyhow::Error {
        match self {
            Trouble::Passing { error, .. } | Trouble::Final(error) => error,
        }
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Trouble {
        Trouble::Final(error)
    }
}

/// Counts attempts.
#[derive(Debug)]
pub(crate) struct Patience {
    failed: u32,
    /// The first pause.
    pause: Duration,
}

impl Patience {
    /// For connections that may be silent for so long.
    pub(crate) fn of(timeout: Duration) -> Patience {
        Patience {
            failed: 0,
            pause: timeout / PAUSE_PART,
        }
    }

    /// The last attempt brought something.
    pub(crate) fn renew(&mut self) {
        self.failed = 0;
    }

    /// Waits until the next attempt, or gives the error when there shall be none.
    pub(crate) fn bear(&mut self, trouble: Trouble) -> anyhow::Result<()> {
        self.failed += 1;
        match trouble {
            Trouble::Passing { pause, .. } if self.failed < ATTEMPTS_MAX => {
                std::thread::sleep(pause_before(self.failed, self.pause, pause));
                Ok(())
            }
            trouble => Err(trouble.into_error()),
        }
    }
}

/// Does something until it is done or patience ends.
pub(crate) fn persist<T>(
    mut patience: Patience,
    mut act: impl FnMut() -> Result<T, Trouble>,
) -> anyhow::Result<T> {
    loop {
        match act() {
            Ok(value) => return Ok(value),
            Err(trouble) => patience.bear(trouble)?,
        }
    }
}

fn pause_before(attempt: u32, first: Duration, asked: Option<Duration>) -> Duration {
    let own = first * 2_u32.saturating_pow(attempt.saturating_sub(1));
    own.max(asked.unwrap_or_default()).min(PAUSE_MAX)
}

/// The value of `Retry-After`, when it is a number of seconds. (The other form, a date, needs clocks that agree.)
pub(crate) fn retry_after(value: &str) -> Option<Duration> {
    value.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_the_server_may_ask_for_more_but_not_for_ever() {
        let first = Duration::from_secs(1);
        let seconds = |attempt, asked| pause_before(attempt, first, asked).as_secs();
        assert_eq!([1, 2, 3, 4, 5].map(|n| seconds(n, None)), [1, 2, 4, 8, 16]);
        assert_eq!(seconds(1, retry_after(" 7 ")), 7);
        assert_eq!(seconds(1, retry_after("99999999")), 120);
        assert_eq!(retry_after("Fri, 31 Dec 1999 23:59:59 GMT"), None);
        assert_eq!(retry_after("-1"), None);
    }

    #[test]
    fn what_does_not_pass_is_not_tried_again() {
        let mut count = 0;
        let patience = Patience::of(Duration::from_secs(1));
        let result: anyhow::Result<()> = persist(patience, || {
            count += 1;
            Err(Trouble::Final(anyhow::anyhow!("no")))
        });
        assert!(result.is_err());
        assert_eq!(count, 1);
    }
}
