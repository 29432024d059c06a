//! Processes that the kernel killed because it was out of memory, found in its log (kernel:
//! Documentation/ABI/testing/dev-kmsg).
//!
//! A record is a single line regardless of the process name, and records that processes write have
//! another facility than the kernel's, so only the kernel can report a kill. The log is read only
//! if a command was killed and the kernel has counted any OOM kill.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use rustix::process::Pid;

/// Start of a record; the second form is used when a control group reached its own limit.
const RECORD_PREFIXES: [&str; 2] =
    ["Out of memory: Killed process ", "Memory cgroup out of memory: Killed process "];

/// Buffer size for a record, larger than any record of the kernel.
const RECORD_BYTES: usize = 8192;

/// Maximum number of records to read; the log of a guest has fewer.
const RECORDS_MAX: usize = 100_000;

/// Tolerated difference between the log's clock and the clock of command start times.
const CLOCK_TOLERANCE_US: u64 = 100_000;

/// Returns whether the kernel has killed a process since a time: the given one, or any.
pub(crate) fn was_killed_since(process: Option<Pid>, since_ns: u64) -> bool {
    let counted = fs::read_to_string("/proc/vmstat").is_ok_and(|text| may_have_killed(&text));
    let since_us = (since_ns / 1000).saturating_sub(CLOCK_TOLERANCE_US);
    counted
        && records().any(|record| {
            killed_process(&record).is_some_and(|(pid, time_us)| {
                time_us >= since_us && process.is_none_or(|process| process.as_raw_pid() == pid)
            })
        })
}

/// Returns whether the kernel has counted an OOM kill. An old kernel does not count them, so its
/// log must be read.
fn may_have_killed(vmstat: &str) -> bool {
    let count = vmstat.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count != Some("0")
}

/// Reads the records of the kernel's log, oldest first.
fn records() -> impl Iterator<Item = Vec<u8>> {
    let mut log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok();
    let next = move || {
        let mut record = vec![0; RECORD_BYTES];
        loop {
            match log.as_mut()?.read(&mut record) {
                Ok(0) => return None,
                Ok(count) => {
                    record.truncate(count);
                    return Some(record);
                }
                // The record was overwritten before it was read. The next read returns the oldest
                // remaining one.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => return None,
            }
        }
    };
    std::iter::from_fn(next).take(RECORDS_MAX)
}

/// Returns the process that a record reports as killed, and the time in microseconds. The format of
/// a record is `priority,number,microseconds,flags;text`, and only the kernel's own have a priority
/// below 8.
fn killed_process(record: &[u8]) -> Option<(i32, u64)> {
    let record = std::str::from_utf8(record).ok()?;
    let (head, text) = record.split_once(';')?;
    let mut fields = head.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let time_us = fields.nth(1)?.parse().ok()?;
    let rest = RECORD_PREFIXES.iter().find_map(|words| text.strip_prefix(words))?;
    let pid = rest.split(' ').next()?.parse().ok()?;
    (priority < 8).then_some((pid, time_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_the_killed_process() {
        let record =
            b"3,412,5140900,-;Out of memory: Killed process 77 (tail) total-vm:9kB, anon-rss:8kB\n";
        assert_eq!(killed_process(record), Some((77, 5_140_900)));
        let record = b"3,5,12,-;Memory cgroup out of memory: Killed process 8 (x) total-vm:9kB\n";
        assert_eq!(killed_process(record), Some((8, 12)));
    }

    #[test]
    fn records_of_processes_are_ignored() {
        for record in [
            &b"12,412,5140900,-;Out of memory: Killed process 77 (tail)\n"[..],
            b"3,412,5140900,-;x: Out of memory: Killed process 77 (tail)\n",
            b"3,412,5140900,-;Out of memory: Killed process x (tail)\n",
            b"3,412;Out of memory: Killed process 77 (tail)\n",
            b"\xff",
            b"",
        ] {
            assert_eq!(killed_process(record), None);
        }
    }

    #[test]
    fn a_count_of_zero_means_no_kill() {
        assert!(!may_have_killed("nr_free_pages 1\noom_kill 0\nnuma_hit 5\n"));
        assert!(may_have_killed("oom_kill 2\n"));
        assert!(may_have_killed("nr_free_pages 1\n"));
    }
}
