//! Samples of the supervisor's process tree from procfs.
//!
//! The tree is this process and all its descendants: the VMM process and its helpers. Threads come
//! and go, and their counters vanish with them. Counters of threads are therefore added up by their
//! growth, so the sum never decreases.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::process::cgroup::CgroupCpuTime;

/// Maximum number of processes that are read; a sandbox has few.
const PROCESSES_MAX: usize = 64;
/// Nanoseconds of a tick of CPU time (USER_HZ is 100 on every architecture).
const TICK_NS: u64 = 10_000_000;
/// Prefixes of the names of vCPU threads in QEMU and libkrun.
const VCPU_NAMES: [&str; 2] = ["CPU ", "fc_vcpu "];

/// Resource usage of the process tree so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HostSample {
    /// CPU time of the vCPUs, in nanoseconds; none if no thread is known to be one.
    pub(super) vcpu_ns: Option<u64>,
    /// CPU time of all processes, in nanoseconds.
    pub(super) cpu_ns: Option<u64>,
    /// Resident memory of all processes but this one, in bytes.
    pub(super) resident_bytes: Option<u64>,
    /// Voluntary context switches of all threads.
    pub(super) wakeups: Option<u64>,
}

/// The process tree of one VM.
#[derive(Debug)]
pub(super) struct HostProcesses {
    proc: PathBuf,
    this: u32,
    vcpus: CounterSum,
    switches: CounterSum,
    processes: CounterSum,
    /// The sandbox's control group, which counts all of its processes.
    cgroup: Option<CgroupCpuTime>,
    /// Processor time of the control group at the start, in nanoseconds.
    cgroup_start_ns: u64,
}

impl HostProcesses {
    /// Starts with this process and its descendants. Earlier usage does not count.
    pub(super) fn new(cgroup: Option<CgroupCpuTime>) -> HostProcesses {
        HostProcesses {
            proc: PathBuf::from("/proc"),
            this: std::process::id(),
            vcpus: CounterSum::default(),
            switches: CounterSum::default(),
            processes: CounterSum::default(),
            cgroup_start_ns: cgroup.as_ref().and_then(CgroupCpuTime::ns).unwrap_or(0),
            cgroup,
        }
    }

    /// Starts again, for another VM.
    pub(super) fn restart(&mut self) {
        *self = HostProcesses::new(self.cgroup.take());
    }

    fn cgroup_ns(&self) -> Option<u64> {
        self.cgroup.as_ref()?.ns()?.checked_sub(self.cgroup_start_ns)
    }

    /// Reads the current usage. Values that cannot be read are missing, as is the share of a
    /// process that ends at this moment.
    pub(super) fn sample(&mut self) -> HostSample {
        let mut resident = None;
        let process_tree = self.process_tree();
        for process in &process_tree {
            let directory = self.proc.join(process.to_string());
            if let Some(ns) = read(&directory, "stat").and_then(|stat| cpu_ns(&stat)) {
                self.processes.add(*process, ns);
            }
            if *process != self.this
                && let Some(bytes) =
                    read(&directory, "status").and_then(|text| resident_bytes(&text))
            {
                resident = Some(resident.unwrap_or(0) + bytes);
            }
            for thread in numbers(&directory.join("task")) {
                self.read_thread(thread, &directory.join("task").join(thread.to_string()));
            }
        }
        for growth in [&mut self.vcpus, &mut self.switches, &mut self.processes] {
            growth.drop_ended();
        }
        HostSample {
            vcpu_ns: self.vcpus.sum,
            cpu_ns: self.cgroup_ns().or(self.processes.sum),
            resident_bytes: resident,
            wakeups: self.switches.sum,
        }
    }

    fn read_thread(&mut self, thread: u32, directory: &Path) {
        if let Some(count) =
            read(directory, "status").and_then(|status| voluntary_switches(&status))
        {
            self.switches.add(thread, count);
        }
        let is_vcpu = read(directory, "comm")
            .is_some_and(|name| VCPU_NAMES.iter().any(|prefix| name.starts_with(prefix)));
        if is_vcpu && let Some(ns) = read(directory, "schedstat").and_then(|text| run_ns(&text)) {
            self.vcpus.add(thread, ns);
        }
    }

    fn process_tree(&self) -> Vec<u32> {
        let mut process_tree = vec![self.this];
        let mut next = 0;
        while let Some(process) = process_tree.get(next).copied() {
            next += 1;
            let tasks = self.proc.join(process.to_string()).join("task");
            for thread in numbers(&tasks) {
                let children = read(&tasks.join(thread.to_string()), "children");
                let children = children.unwrap_or_default();
                let children = children.split(' ').filter_map(|word| word.parse::<u32>().ok());
                process_tree
                    .extend(children.take(PROCESSES_MAX.saturating_sub(process_tree.len())));
            }
        }
        process_tree
    }
}

/// A sum of counters some of which vanish.
#[derive(Debug, Default)]
struct CounterSum {
    sum: Option<u64>,
    last: HashMap<u32, u64>,
    seen: HashMap<u32, u64>,
}

impl CounterSum {
    /// Adds a counter's growth. A counter that decreased belongs to a new thread of the same
    /// number.
    fn add(&mut self, number: u32, count: u64) {
        let before = self.last.get(&number).copied().unwrap_or(0);
        let more = count.checked_sub(before).unwrap_or(count);
        self.sum = Some(self.sum.unwrap_or(0).saturating_add(more));
        self.seen.insert(number, count);
    }

    fn drop_ended(&mut self) {
        self.last = std::mem::take(&mut self.seen);
    }
}

fn read(directory: &Path, file: &str) -> Option<String> {
    let bytes = fs::read(directory.join(file)).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn numbers(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Returns the CPU time of a process, ended threads included (proc_pid_stat(5)). Its name may
/// contain any byte.
fn cpu_ns(stat: &str) -> Option<u64> {
    let fields = stat.rsplit_once(") ")?.1;
    let ticks = |at| fields.split(' ').nth(at)?.parse::<u64>().ok();
    ticks(11)?.checked_add(ticks(12)?)?.checked_mul(TICK_NS)
}

/// Returns the resident memory (proc_pid_status(5)), which the kernel prints in units of 1024
/// bytes.
fn resident_bytes(status: &str) -> Option<u64> {
    number_after(status, "VmRSS:")?.checked_mul(1024)
}

/// Returns the CPU time of a thread (kernel: Documentation/scheduler/sched-stats.rst).
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
    fn a_thread_that_ends_does_not_decrease_the_sum() {
        let mut growth = CounterSum::default();
        growth.add(1, 10);
        growth.add(2, 5);
        growth.drop_ended();
        growth.add(1, 12);
        growth.drop_ended();
        assert_eq!(growth.sum, Some(17));
        // Another one got the number.
        growth.add(1, 3);
        growth.drop_ended();
        growth.add(2, 4);
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
    fn children_are_part_of_the_process_tree() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let mut host = HostProcesses::new(None);
        assert!(host.process_tree().contains(&child.id()));
        let sample = host.sample();
        assert!(sample.resident_bytes.is_some_and(|bytes| bytes > 0));
        assert_eq!(sample.vcpu_ns, None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
