//! Resource usage of the guest, from the kernel's statistics.
//!
//! The kernel's directories are opened when the guest is set up, so later mounts over them have no
//! effect. If a file is missing or malformed, its value is omitted.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use msb_wire::samples::GuestSample;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, fstatvfs, open, openat, statat};

/// Unit of CPU time in proc(5): 100 per second on every architecture (USER_HZ).
const USER_HZ_TICK_NS: u64 = 10_000_000;
/// Unit of the kernel's disk statistics, independent of the disk.
const SECTOR_BYTES: u64 = 512;
/// Maximum size of a file in bytes. Files about CPU time grow with the number of processors.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Process id of kthreadd, the parent of all kernel threads.
const KTHREADD_PID: &str = "2";

/// Sources of the statistics.
pub(crate) struct KernelStatistics {
    proc: OwnedFd,
    disks: OwnedFd,
    interfaces: OwnedFd,
    upper: OwnedFd,
}

impl KernelStatistics {
    /// Opens the sources. `upper` is the writable file system.
    pub(crate) fn open(upper: &OwnedFd) -> io::Result<KernelStatistics> {
        let directory = |path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            open(path, flags, Mode::empty())
        };
        Ok(KernelStatistics {
            proc: directory("/proc")?,
            disks: directory("/sys/block")?,
            interfaces: directory("/sys/class/net")?,
            upper: upper.try_clone()?,
        })
    }

    /// Takes a sample.
    pub(crate) fn take_sample(&self) -> GuestSample {
        let mut sample = GuestSample::default();
        self.cpu_and_memory(&mut sample);
        self.pressure(&mut sample);
        self.disks(&mut sample);
        self.network(&mut sample);
        sample.processes = self.processes();
        if let Ok(upper) = fstatvfs(&self.upper) {
            let bytes = |blocks: u64| blocks.checked_mul(upper.f_frsize);
            sample.upper_size_bytes = bytes(upper.f_blocks);
            sample.upper_used_bytes = bytes(upper.f_blocks.saturating_sub(upper.f_bfree));
        }
        sample
    }

    fn cpu_and_memory(&self, sample: &mut GuestSample) {
        // Prefer the scheduler's clock, from which the CPU time of processes is taken as well. On a
        // busy host ticks are lost: of 6 seconds of CPU time, only 2.6 were counted.
        sample.cpu_ns = read(&self.proc, "schedstat")
            .and_then(|text| run_ns(&text))
            .or_else(|| read(&self.proc, "stat").and_then(|text| busy_ns(&text)));
        if let Some(text) = read(&self.proc, "meminfo") {
            let bytes = |name| number_after(&text, name)?.checked_mul(1024);
            sample.memory_total_bytes = bytes("MemTotal:");
            sample.memory_available_bytes = bytes("MemAvailable:");
        }
        sample.oom_kills =
            read(&self.proc, "vmstat").and_then(|text| number_after(&text, "oom_kill"));
    }

    /// A kernel without pressure stall information, or with it turned off, has no such files.
    fn pressure(&self, sample: &mut GuestSample) {
        let stalls = |file: &str| read(&self.proc, file).map(|text| stalls(&text));
        if let Some((some, _)) = stalls("pressure/cpu") {
            sample.cpu_some_us = some;
        }
        if let Some(times) = stalls("pressure/memory") {
            (sample.memory_some_us, sample.memory_full_us) = times;
        }
        if let Some(times) = stalls("pressure/io") {
            (sample.io_some_us, sample.io_full_us) = times;
        }
    }

    /// Sums up devices only: a loop device or a mapping would count twice.
    fn disks(&self, sample: &mut GuestSample) {
        for name in devices(&self.disks) {
            let Some(sectors) =
                read(&self.disks, &format!("{name}/stat")).and_then(|text| sectors(&text))
            else {
                continue;
            };
            let [read, written] = sectors.map(|count| count.saturating_mul(SECTOR_BYTES));
            add(&mut sample.disk_read_bytes, read);
            add(&mut sample.disk_written_bytes, written);
        }
    }

    fn network(&self, sample: &mut GuestSample) {
        for name in devices(&self.interfaces) {
            let count = |what: &str| {
                let text = read(&self.interfaces, &format!("{name}/statistics/{what}"))?;
                text.trim().parse().ok()
            };
            let counts = ["rx_bytes", "tx_bytes", "rx_packets", "tx_packets"].map(count);
            let sums = [
                &mut sample.rx_bytes,
                &mut sample.tx_bytes,
                &mut sample.rx_packets,
                &mut sample.tx_packets,
            ];
            for (sum, count) in sums.into_iter().zip(counts) {
                count.into_iter().for_each(|count| add(sum, count));
            }
        }
    }

    /// Counts processes without kernel threads. Kernel threads are children of kthreadd, which
    /// lists them; if the kernel cannot list children, the parent of each process is read.
    fn processes(&self) -> Option<u64> {
        let children = read(&self.proc, &format!("{KTHREADD_PID}/task/{KTHREADD_PID}/children"));
        let ids: Vec<String> = names(&self.proc)
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
            .collect();
        let count = match children {
            Some(children) => {
                let own = children.split_ascii_whitespace().count() + 1;
                ids.len().saturating_sub(own)
            }
            None => {
                let is_program = |id: &&String| {
                    let stat = read(&self.proc, &format!("{id}/stat"));
                    id.as_str() != KTHREADD_PID
                        && stat.is_some_and(|stat| parent(&stat) != Some(KTHREADD_PID))
                };
                ids.iter().filter(is_program).count()
            }
        };
        Some(count as u64).filter(|count| *count > 0)
    }
}

fn add(sum: &mut Option<u64>, more: u64) {
    *sum = Some(sum.unwrap_or(0).saturating_add(more));
}

/// Reads the start of a file below one of the directories.
fn read(directory: &OwnedFd, path: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(openat(directory, path, flags, Mode::empty()).ok()?);
    let mut bytes = Vec::with_capacity(4096);
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn names(directory: &OwnedFd) -> impl Iterator<Item = String> {
    let entries = Dir::read_from(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
}

/// Returns the entries that belong to a device.
fn devices(directory: &OwnedFd) -> impl Iterator<Item = String> {
    names(directory).filter(move |name| {
        !name.starts_with('.')
            && statat(directory, format!("{name}/device"), AtFlags::empty()).is_ok()
    })
}

/// Returns the number after a name at the start of a line.
fn number_after(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

/// Returns the CPU time of all tasks on all processors (kernel:
/// Documentation/scheduler/sched-stats.rst). A truncated text lacks some processors and is not
/// used.
fn run_ns(schedstat: &str) -> Option<u64> {
    let lines = schedstat.strip_suffix('\n')?.lines();
    let processors = lines.filter(|line| line.starts_with("cpu"));
    let times = processors.map(|line| line.split_ascii_whitespace().nth(7)?.parse::<u64>().ok());
    let sum = times.sum::<Option<u64>>()?;
    Some(sum).filter(|ns| *ns > 0)
}

/// Returns the CPU time of all processors (proc_stat(5)): user, nice, system, then idle and
/// waiting, then interrupts of both kinds.
fn busy_ns(stat: &str) -> Option<u64> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    let mut ticks = line.split_ascii_whitespace().skip(1).take(7);
    let ticks: Vec<u64> = ticks.by_ref().map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _waiting, hard, soft] = ticks[..] else {
        return None;
    };
    let busy = [user, nice, system, hard, soft];
    busy.into_iter().fold(0_u64, u64::saturating_add).checked_mul(USER_HZ_TICK_NS)
}

/// Returns the times in microseconds in which some and all tasks waited (kernel:
/// Documentation/accounting/psi.rst).
fn stalls(pressure: &str) -> (Option<u64>, Option<u64>) {
    let total = |kind: &str| {
        let line = pressure.lines().find(|line| line.starts_with(kind))?;
        line.rsplit_once("total=")?.1.trim().parse().ok()
    };
    (total("some "), total("full "))
}

/// Returns the sectors read and written (kernel: Documentation/block/stat.rst).
fn sectors(stat: &str) -> Option<[u64; 2]> {
    let number = |at| stat.split_ascii_whitespace().nth(at)?.parse().ok();
    Some([number(2)?, number(6)?])
}

/// Returns the parent of a process (proc_pid_stat(5)). The process name may contain any character,
/// including spaces and parentheses.
fn parent(stat: &str) -> Option<&str> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_waiting_and_stolen_time_is_not_busy() {
        let stat = "cpu  100 10 20 4000 500 3 4 600 50 0\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 5\n";
        assert_eq!(busy_ns(stat), Some(137 * USER_HZ_TICK_NS));
        assert_eq!(busy_ns("cpu  1 2 3\n"), None);
        assert_eq!(busy_ns("cpu  1 2 x 4 5 6 7\n"), None);
        assert_eq!(busy_ns(""), None);
    }

    #[test]
    fn a_name_must_be_the_whole_first_word() {
        let text = "MemTotal:  507 kB\noom_kill_x 5\noom_kill 2\n";
        assert_eq!(number_after(text, "MemTotal:"), Some(507));
        assert_eq!(number_after(text, "oom_kill"), Some(2));
        assert_eq!(number_after(text, "MemAvailable:"), None);
    }

    #[test]
    fn pressure_is_the_total_time() {
        let text = "some avg10=0.00 avg60=0.12 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=56\n";
        assert_eq!(stalls(text), (Some(1234), Some(56)));
        assert_eq!(stalls("some avg10=0.00 total=7\n"), (Some(7), None));
    }

    #[test]
    fn disks_are_counted_in_sectors() {
        let stat = "  111 0 2048 3 7 8 4096 9 0 1 2 3 0 4 5 0 0\n";
        assert_eq!(sectors(stat), Some([2048, 4096]));
        assert_eq!(sectors("1 2 3"), None);
    }

    #[test]
    fn a_process_name_may_contain_any_characters() {
        assert_eq!(parent("77 (a) R 9 (b) S 2 0 0"), Some("2"));
        assert_eq!(parent("no stat"), None);
    }

    #[test]
    fn this_host_has_statistics() {
        let upper = open("/", OFlags::RDONLY, Mode::empty()).unwrap();
        let sample = KernelStatistics::open(&upper).unwrap().take_sample();
        assert!(sample.cpu_ns.is_some_and(|ns| ns > 0));
        assert!(sample.memory_available_bytes < sample.memory_total_bytes);
        assert!(sample.processes.is_some_and(|count| count > 0));
        assert!(sample.upper_used_bytes <= sample.upper_size_bytes);
    }
}
