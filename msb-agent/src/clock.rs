//! Clocks of the kernel.

use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const NANOSECONDS: i64 = 1_000_000_000;

/// Returns the nanoseconds since the kernel started.
pub(crate) fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec.saturating_mul(NANOSECONDS).saturating_add(now.tv_nsec)).unwrap_or(0)
}

/// Tolerated error of the clock: programs do not expect jumps.
const TOLERANCE_MS: i64 = 100;

/// Sets the time of day if it is off by more than the tolerance. Returns by how many milliseconds
/// it was behind, and whether it was set.
pub(crate) fn correct(unix_ns: u64) -> Result<(i64, bool), Errno> {
    let now = clock_gettime(ClockId::Realtime);
    let now_ns = i128::from(now.tv_sec) * i128::from(NANOSECONDS) + i128::from(now.tv_nsec);
    let behind_ms = (i128::from(unix_ns) - now_ns) / 1_000_000;
    let behind_ms = i64::try_from(behind_ms).unwrap_or(i64::MAX);
    let is_off = behind_ms.abs() > TOLERANCE_MS;
    if is_off {
        set(unix_ns)?;
    }
    Ok((behind_ms, is_off))
}

/// Sets the time of day. 0 means that the host sent no time.
pub(crate) fn set(unix_ns: u64) -> Result<(), Errno> {
    let Ok(ns) = i64::try_from(unix_ns) else {
        return Err(Errno::INVAL);
    };
    if ns == 0 {
        return Ok(());
    }
    clock_settime(
        ClockId::Realtime,
        Timespec { tv_sec: ns / NANOSECONDS, tv_nsec: ns % NANOSECONDS },
    )
}
