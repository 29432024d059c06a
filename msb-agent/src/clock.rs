//! The kernel's clocks.

use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const NANOSECONDS: i64 = 1_000_000_000;

/// Nanoseconds since the kernel started.
pub(crate) fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(
        now.tv_sec
            .saturating_mul(NANOSECONDS)
            .saturating_add(now.tv_nsec),
    )
    .unwrap_or(0)
}

/// Sets the time of day. 0 means that the host did not say.
pub(crate) fn set(unix_ns: u64) -> Result<(), Errno> {
    let Ok(ns) = i64::try_from(unix_ns) else {
        return Err(Errno::INVAL);
    };
    if ns == 0 {
        return Ok(());
    }
    clock_settime(
        ClockId::Realtime,
        Timespec {
            tv_sec: ns / NANOSECONDS,
            tv_nsec: ns % NANOSECONDS,
        },
    )
}
