//! Whom the kernel killed for lack of memory. It tells in its log (kernel: Documentation/ABI/testing/dev-kmsg).
//!
//! A record is one line whatever a process calls itself, and what processes write there has another facility than the
//! kernel's own, so nobody but the kernel says who was killed. The log is read only when a command was killed and the
//! kernel counts that it has done so at all.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use rustix::process::Pid;

/// How a record begins; with the second when a control group had reached a limit of its own.
const WORDS: [&str; 2] = [
    "Out of memory: Killed process ",
    "Memory cgroup out of memory: Killed process ",
];

/// More than the kernel gives at a time.
const RECORD_BYTES: usize = 8192;

/// Records that are read at most: the log of a guest is smaller.
const RECORDS_MAX: usize = 100_000;

/// How far the log's clock may be from that which commands are timed by.
const SLACK_US: u64 = 100_000;

/// Whether the kernel has killed a process since then: this one, or any.
pub(crate) fn took(process: Option<Pid>, since_ns: u64) -> bool {
    let counted = fs::read_to_string("/proc/vmstat").is_ok_and(|text| has_killed(&text));
    let since_us = (since_ns / 1000).saturating_sub(SLACK_US);
    counted
        && records().any(|record| {
            victim(&record).is_some_and(|(pid, time_us)| {
                time_us >= since_us && process.is_none_or(|process| process.as_raw_pid() == pid)
            })
        })
}

/// Whether the kernel counts any; an old one counts nothing, and its log says it.
fn has_killed(vmstat: &str) -> bool {
    let count = vmstat
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "));
    count != Some("0")
}

/// The records of the kernel's log, from the oldest that is left.
fn records() -> impl Iterator<Item = Vec<u8>> {
    let mut log = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .ok();
    let next = move || {
        let mut record = vec![0; RECORD_BYTES];
        loop {
            match log.as_mut()?.read(&mut record) {
                Ok(0) => return None,
                Ok(count) => {
                    record.truncate(count);
                    return Some(record);
                }
                // Overwritten before it was read: the next read gives the oldest that is left.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => return None,
            }
        }
    };
    std::iter::from_fn(next).take(RECORDS_MAX)
}

/// The process that a record says was killed, and when, in microseconds. A record is
/// `priority,number,microseconds,flags;text`, and the priority is below 8 only in the kernel's own.
fn victim(record: &[u8]) -> Option<(i32, u64)> {
    let record = std::str::from_utf8(record).ok()?;
    let (head, text) = record.split_once(';')?;
    let mut fields = head.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let time_us = fields.nth(1)?.parse().ok()?;
    let rest = WORDS.iter().find_map(|words| text.strip_prefix(words))?;
    let pid = rest.split(' ').next()?.parse().ok()?;
    (priority < 8).then_some((pid, time_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_who_was_killed() {
        let record =
            b"3,412,5140900,-;Out of memory: Killed process 77 (tail) total-vm:9kB, anon-rss:8kB\n";
        assert_eq!(victim(record), Some((77, 5_140_900)));
        let record = b"3,5,12,-;Memory cgroup out of memory: Killed process 8 (x) total-vm:9kB\n";
        assert_eq!(victim(record), Some((8, 12)));
    }

    #[test]
    fn what_a_process_writes_into_the_log_names_nobody() {
        for record in [
            &b"12,412,5140900,-;Out of memory: Killed process 77 (tail)\n"[..],
            b"3,412,5140900,-;x: Out of memory: Killed process 77 (tail)\n",
            b"3,412,5140900,-;Out of memory: Killed process x (tail)\n",
            b"3,412;Out of memory: Killed process 77 (tail)\n",
            b"\xff",
            b"",
        ] {
            assert_eq!(victim(record), None);
        }
    }

    #[test]
    fn a_kernel_that_counted_none_has_killed_nobody() {
        assert!(!has_killed("nr_free_pages 1\noom_kill 0\nnuma_hit 5\n"));
        assert!(has_killed("oom_kill 2\n"));
        assert!(has_killed("nr_free_pages 1\n"));
    }
}
