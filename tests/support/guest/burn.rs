//! Known work of a processor.

use std::io;
use std::time::Duration;

/// Computes until it has used so many seconds of CPU time; prints how many it were.
pub(crate) fn print(seconds: &str) -> io::Result<()> {
    let wanted = Duration::from_secs(seconds.parse().map_err(io::Error::other)?);
    let mut number = 1_u64;
    loop {
        let used = used()?;
        if used >= wanted {
            println!("{}", used.as_secs_f64());
            return Ok(());
        }
        for _ in 0..1_000_000 {
            number = std::hint::black_box(
                number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1),
            );
        }
    }
}

/// CPU time of this process so far, in its own code and in the kernel's (getrusage(2)).
fn used() -> io::Result<Duration> {
    // SAFETY: all bytes zero are a valid `rusage`, which holds numbers only.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a place for the answer, and lives through the call.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let time = |of: libc::timeval| {
        let microseconds = of.tv_sec * 1_000_000 + of.tv_usec;
        Duration::from_micros(u64::try_from(microseconds).unwrap_or(0))
    };
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}
