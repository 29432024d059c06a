//! Clocks of samples. Ages are measured by the clock that counts from the host's boot, which cannot
//! be set.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Returns the nanoseconds since the host's boot, sleep included.
pub fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// Returns the nanoseconds since 1970.
pub fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the kernel's boot ID, in two halves.
pub(super) fn boot_id() -> Option<[u64; 2]> {
    static ID: OnceLock<Option<[u64; 2]>> = OnceLock::new();
    *ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
        let id = u128::from_str_radix(&digits, 16).ok()?;
        Some([(id >> 64) as u64, id as u64])
    })
}
