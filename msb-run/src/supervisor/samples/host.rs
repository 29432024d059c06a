//! The host's side: what the kernel says of our processes.
//!
//! Ours are this process and all below it: the machine, and whoever helps it. Threads come and go, and take their figures
//! with them; so what is counted by thread is summed up by its growth, and never falls.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Processes that are looked at; a sandbox has few.
const PROCESSES_MAX: usize = 64;
/// Nanoseconds of a tick of CPU time (USER_HZ is 100 on every architecture).
const TICK_NS: u64 = 10_000_000;
/// How the engines call the threads that are virtual processors: QEMU, and libkrun.
const VCPU_NAMES: [&str; 2] = ["CPU ", "fc_vcpu "];

/// What our processes cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HostSample {
    /// CPU time of virtual processors, in nanoseconds; none if no thread is known to be one.
    pub(super) vcpu_ns: Option<u64>,
    /// CPU time of all, in nanoseconds.
    pub(super) cpu_ns: Option<u64>,
    /// Resident memory of all but this process, in bytes.
    pub(super) resident_bytes: Option<u64>,
    /// Voluntary switches of all threads.
    pub(super) wakeups: Option<u64>,
}

/// The processes of one machine, watched.
#[derive(Debug)]
pub(super) struct Host {
    proc: PathBuf,
    this: u32,
    vcpus: Growth,
    switches: Growth,
    processes: Growth,
}

impl Host {
    /// This process and those below it. What it has used so far does not count.
    pub(super) fn new() -> Host {
        Host {
            proc: PathBuf::from("/proc"),
            this: std::process::id(),
            vcpus: Growth::default(),
            switches: Growth::default(),
            processes: Growth::default(),
        }
    }

    /// How it is now. What cannot be read is missing; so is the share of a process that ends in this moment.
    pub(super) fn look(&mut self) -> HostSample {
        let mut resident = None;
        let family = self.family();
        for process in &family {
            let folder = self.proc.join(process.to_string());
            if let Some(ns) = read(&folder, "stat").and_then(|stat| cpu_ns(&stat)) {
                self.processes.saw(*process, ns);
            }
            if *process != self.this
                && let Some(bytes) = read(&folder, "status").and_then(|text| resident_bytes(&text))
            {
                resident = Some(resident.unwrap_or(0) + bytes);
            }
            for thread in numbers(&folder.join("task")) {
                self.look_at_thread(thread, &folder.join("task").join(thread.to_string()));
            }
        }
        for growth in [&mut self.vcpus, &mut self.switches, &mut self.processes] {
            growth.forget_the_dead();
        }
        HostSample {
            vcpu_ns: self.vcpus.sum,
            cpu_ns: self.processes.sum,
            resident_bytes: resident,
            wakeups: self.switches.sum,
        }
    }

    fn look_at_thread(&mut self, thread: u32, folder: &Path) {
        if let Some(count) = read(folder, "status").and_then(|status| voluntary_switches(&status)) {
            self.switches.saw(thread, count);
        }
        let is_vcpu = read(folder, "comm")
            .is_some_and(|name| VCPU_NAMES.iter().any(|begin| name.starts_with(begin)));
        if is_vcpu && let Some(ns) = read(folder, "schedstat").and_then(|text| run_ns(&text)) {
            self.vcpus.saw(thread, ns);
        }
    }

    fn family(&self) -> Vec<u32> {
        let mut family = vec![self.this];
        let mut next = 0;
        while let Some(process) = family.get(next).copied() {
            next += 1;
            let tasks = self.proc.join(process.to_string()).join("task");
            for thread in numbers(&tasks) {
                let children = read(&tasks.join(thread.to_string()), "children");
                let children = children.unwrap_or_default();
                let children = children
                    .split(' ')
                    .filter_map(|word| word.parse::<u32>().ok());
                family.extend(children.take(PROCESSES_MAX.saturating_sub(family.len())));
            }
        }
        family
    }
}

/// A sum of counters of which some vanish.
#[derive(Debug, Default)]
struct Growth {
    sum: Option<u64>,
    last: HashMap<u32, u64>,
    seen: HashMap<u32, u64>,
}

impl Growth {
    /// A counter that is less than it was belongs to a new thread of that number.
    fn saw(&mut self, number: u32, count: u64) {
        let before = self.last.get(&number).copied().unwrap_or(0);
        let more = count.checked_sub(before).unwrap_or(count);
        self.sum = Some(self.sum.unwrap_or(0).saturating_add(more));
        self.seen.insert(number, count);
    }

    fn forget_the_dead(&mut self) {
        self.last = std::mem::take(&mut self.seen);
    }
}

fn read(folder: &Path, file: &str) -> Option<String> {
    let bytes = fs::read(folder.join(file)).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn numbers(folder: &Path) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// CPU time of a process, threads that have ended included (proc_pid_stat(5)). Its name may have anything in it.
fn cpu_ns(stat: &str) -> Option<u64> {
    let fields = stat.rsplit_once(") ")?.1;
    let ticks = |at| fields.split(' ').nth(at)?.parse::<u64>().ok();
    ticks(11)?.checked_add(ticks(12)?)?.checked_mul(TICK_NS)
}

/// Resident memory (proc_pid_status(5)), which the kernel tells in units of 1024 bytes.
fn resident_bytes(status: &str) -> Option<u64> {
    number_after(status, "VmRSS:")?.checked_mul(1024)
}

/// CPU time of a thread (kernel: Documentation/scheduler/sched-stats.rst).
fn run_ns(schedstat: &str) -> Option<u64> {
    schedstat.split(' ').next()?.parse().ok()
}

fn voluntary_switches(status: &str) -> Option<u64> {
    number_after(status, "voluntary_ctxt_switches:")
}

fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_ends_takes_nothing_with_it() {
        let mut growth = Growth::default();
        growth.saw(1, 10);
        growth.saw(2, 5);
        growth.forget_the_dead();
        growth.saw(1, 12);
        growth.forget_the_dead();
        assert_eq!(growth.sum, Some(17));
        // Another one got the number.
        growth.saw(1, 3);
        growth.forget_the_dead();
        growth.saw(2, 4);
        assert_eq!(growth.sum, Some(24));
    }

    #[test]
    fn what_the_kernel_says_is_understood_whatever_the_process_is_called() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 9 9 20 0 1 0 5 0 0";
        assert_eq!(cpu_ns(stat), Some(300 * TICK_NS));
        assert_eq!(cpu_ns("nonsense"), None);
        assert_eq!(run_ns("596414605 707963765 263\n"), Some(596_414_605));
        assert_eq!(resident_bytes("VmRSS:\t  12 kB\n"), Some(12 * 1024));
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n";
        assert_eq!(voluntary_switches(status), Some(150));
    }

    #[test]
    fn children_are_of_the_family() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let mut host = Host::new();
        assert!(host.family().contains(&child.id()));
        let sample = host.look();
        assert!(sample.resident_bytes.is_some_and(|bytes| bytes > 0));
        assert_eq!(sample.vcpu_ns, None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
