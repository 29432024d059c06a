//! Retries with exponential backoff: transient errors (a busy server, a broken connection) are
//! retried a few times with growing delays; all other errors fail at once.

use std::time::{Duration, Instant};

use libmsb::cli::error::{message, print_note, program};

/// Maximum of consecutive attempts without progress.
pub(crate) const ATTEMPTS_MAX: u32 = 6;
/// Divisor of the connection timeout that gives the first delay: 1 s of 30 s. Each further delay is
/// twice as long; together they are half a minute.
const FIRST_DELAY_DIVISOR: u32 = 30;
/// Time after the first attempt in which a name is looked up again: a name server that does not
/// answer has its own timeouts.
const LOOKUP_RETRY_TIME: Duration = Duration::from_secs(2);
/// Longest delay, including one that a server asks for.
const DELAY_MAX: Duration = Duration::from_secs(120);

/// Failure of a request.
#[derive(Debug)]
pub(crate) enum FetchError {
    /// A later attempt may succeed.
    Transient {
        error: anyhow::Error,
        /// Delay that the server asks for.
        delay: Option<Duration>,
    },
    /// The name server could not answer; it may within seconds.
    Unresolved(anyhow::Error),
    /// A later attempt would fail too.
    Permanent(anyhow::Error),
}

impl FetchError {
    pub(crate) fn transient(error: impl Into<anyhow::Error>) -> FetchError {
        FetchError::Transient { error: error.into(), delay: None }
    }

    pub(crate) fn into_error(self) -> anyhow::Error {
        match self {
            FetchError::Transient { error, .. }
            | FetchError::Unresolved(error)
            | FetchError::Permanent(error) => error,
        }
    }
}

impl From<anyhow::Error> for FetchError {
    fn from(error: anyhow::Error) -> FetchError {
        FetchError::Permanent(error)
    }
}

/// Exponential backoff between attempts.
#[derive(Debug)]
pub(crate) struct RetryBackoff {
    failed: u32,
    /// First delay.
    delay: Duration,
    start: Instant,
    /// Print a note before each further attempt.
    announced: bool,
}

impl RetryBackoff {
    /// Creates the backoff for connections with this timeout.
    pub(crate) fn new(timeout: Duration) -> RetryBackoff {
        let delay = timeout / FIRST_DELAY_DIVISOR;
        RetryBackoff { failed: 0, delay, start: Instant::now(), announced: true }
    }

    /// Prints no notes: the progress of layers is on the terminal.
    pub(crate) fn silent(self) -> RetryBackoff {
        RetryBackoff { announced: false, ..self }
    }

    /// Resets the backoff after an attempt with progress.
    pub(crate) fn reset(&mut self) {
        self.failed = 0;
    }

    /// Waits for the next attempt. Returns the error if it is permanent or the attempts are used
    /// up.
    pub(crate) fn next_attempt(&mut self, error: FetchError) -> anyhow::Result<()> {
        self.failed += 1;
        match error {
            FetchError::Transient { error, delay } if self.failed < ATTEMPTS_MAX => {
                self.wait(&error, delay);
                Ok(())
            }
            FetchError::Unresolved(error) if self.start.elapsed() < LOOKUP_RETRY_TIME => {
                self.wait(&error, None);
                Ok(())
            }
            error => Err(error.into_error()),
        }
    }
}

impl RetryBackoff {
    fn wait(&self, error: &anyhow::Error, delay: Option<Duration>) {
        let delay = delay_before(self.failed, self.delay, delay);
        if self.announced {
            let seconds = delay.as_secs_f64();
            let reason = message(error);
            print_note(program(), &format!("{reason}: trying again in {seconds:.0} s"));
        }
        std::thread::sleep(delay);
    }
}

/// Runs an operation and retries transient errors until the backoff ends.
pub(crate) fn retry<T>(
    mut backoff: RetryBackoff,
    mut attempt: impl FnMut() -> Result<T, FetchError>,
) -> anyhow::Result<T> {
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) => backoff.next_attempt(error)?,
        }
    }
}

fn delay_before(attempt: u32, first: Duration, retry_after: Option<Duration>) -> Duration {
    let own = first * 2_u32.saturating_pow(attempt.saturating_sub(1));
    own.max(retry_after.unwrap_or_default()).min(DELAY_MAX)
}

/// Parses `Retry-After` as a number of seconds. The other form, a date, needs synchronized clocks.
pub(crate) fn retry_after(value: &str) -> Option<Duration> {
    value.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_retry_after_is_limited() {
        let first = Duration::from_secs(1);
        let seconds = |attempt, retry_after| delay_before(attempt, first, retry_after).as_secs();
        assert_eq!([1, 2, 3, 4, 5].map(|n| seconds(n, None)), [1, 2, 4, 8, 16]);
        assert_eq!(seconds(1, retry_after(" 7 ")), 7);
        assert_eq!(seconds(1, retry_after("99999999")), 120);
        assert_eq!(retry_after("Fri, 31 Dec 1999 23:59:59 GMT"), None);
        assert_eq!(retry_after("-1"), None);
    }

    #[test]
    fn a_permanent_error_is_not_retried() {
        let mut count = 0;
        let backoff = RetryBackoff::new(Duration::from_secs(1));
        let result: anyhow::Result<()> = retry(backoff, || {
            count += 1;
            Err(FetchError::Permanent(anyhow::anyhow!("no")))
        });
        assert!(result.is_err());
        assert_eq!(count, 1);
    }
}
