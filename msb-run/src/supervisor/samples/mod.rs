//! Samples of a sandbox's resource usage, written to its sample file ([`libmsb::samples`]).
//!
//! The guest's agent sends its sample at an interval, and at each of them the host's side is
//! sampled too. So a sandbox without watchers has one timer, in the guest, and this process sleeps
//! in between. While the guest is silent, the host's side is sampled alone. A watcher opens a
//! stream, and the shortest interval of all watchers applies, unless the sandbox has a configured
//! interval.

/// Samples of the host's side.
mod host;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::cli::error::{message, warn};
use libmsb::samples::{self, Field, INTERVAL_MS, SampleWriter, Values, boot_ns, unix_ns};
use libmsb::state::spec::Spec;
use msb_wire::samples::{GuestSample, SamplesEvent, interval};
use rustix::process::Pid;

use self::host::{HostProcesses, HostSample};
use super::relay::ClientId;
use super::setup::SandboxSetup;
use crate::process::cgroup::Cgroup;

/// Intervals of a silent guest after which the host's side is sampled alone.
const SILENT_INTERVALS_MAX: u32 = 2;

/// The sampler of one run of a sandbox.
#[derive(Debug)]
pub(crate) struct Sampler {
    /// None when the sandbox has no samples.
    target: Option<SampleTarget>,
}

#[derive(Debug)]
struct SampleTarget {
    writer: SampleWriter,
    host: HostProcesses,
    /// The sandbox's configured interval.
    configured_ms: Option<u64>,
    /// Watching clients and their intervals.
    watchers: Vec<(ClientId, u64)>,
    /// Time of the last sample of the host's side, and the CPU time of the vCPUs then.
    host_read_at: Instant,
    vcpu_ns: u64,
    /// Time at which the host's side is sampled without the guest. None before the guest is up.
    due: Option<Instant>,
}

impl Sampler {
    /// Creates the sample file, unless samples are disabled. Failure to create it does not prevent
    /// the start. The values of a VM follow with [`Sampler::start_vm`].
    pub(crate) fn create(setup: &SandboxSetup) -> Sampler {
        let configured_ms = setup.spec.metrics.sample_interval_ms;
        if configured_ms == Some(0) {
            return Sampler { target: None };
        }
        let path = setup.home.samples(&setup.sandbox.name);
        let writer = SampleWriter::create(&path, |values| {
            put_identity(values, &setup.spec, None, configured_ms)
        });
        if let Err(error) = &writer {
            warn(&message(error));
        }
        let target = writer.ok().map(|writer| SampleTarget {
            writer,
            host: HostProcesses::new(setup.cgroup.as_ref().ok().and_then(Cgroup::cpu_time)),
            configured_ms,
            watchers: Vec::new(),
            host_read_at: Instant::now(),
            vcpu_ns: 0,
            due: None,
        });
        Sampler { target }
    }

    /// Returns the descriptor of the counters of `msb-net`, which has a page of its own. It exists
    /// also for a sandbox without samples, for the supervisor.
    pub(crate) fn net_descriptor(&self) -> anyhow::Result<OwnedFd> {
        let file = match &self.target {
            Some(target) => target.writer.net_descriptor(),
            None => samples::anonymous_net_file(),
        };
        file.context("cannot create the file of the network's counters")
    }

    /// Resets the values for a VM that was started: they count from its start.
    pub(crate) fn start_vm(&mut self, spec: &Spec, vm_pid: Option<Pid>) {
        if let Some(target) = &mut self.target {
            target.host.restart();
            target.vcpu_ns = 0;
            target.host_read_at = Instant::now();
            let configured_ms = target.configured_ms;
            target.writer.update(|values| put_identity(values, spec, vm_pid, configured_ms));
        }
    }

    /// Starts samples of the guest. Returns the interval to request from it, in milliseconds, or
    /// `None` if there are no samples.
    pub(crate) fn start_guest(&mut self) -> Option<u64> {
        let target = self.target.as_mut()?;
        target.reset_due();
        Some(target.interval_ms())
    }

    /// Returns the time of the next sample of the host's side.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.target.as_ref()?.due
    }

    /// Takes a message of the agent. `upper_bytes` is the size of the writable disk on the host.
    pub(crate) fn take(&mut self, message: &[u8], upper_bytes: Option<u64>) {
        let Some(target) = &mut self.target else {
            return;
        };
        // A refusal, or an event of a later version: then only the host's side is sampled.
        let Ok(SamplesEvent::Sample(guest)) = serde_json::from_slice(message) else {
            return;
        };
        target.write(Some(&guest), upper_bytes);
    }

    /// Samples the host's side if it is due.
    pub(crate) fn sample_host_if_due(&mut self, upper_bytes: impl FnOnce() -> Option<u64>) {
        if let Some(target) = &mut self.target
            && target.due.is_some_and(|due| due <= Instant::now())
        {
            target.write(None, upper_bytes());
        }
    }

    /// Adds a watcher. Returns the interval to request from the guest if it has changed.
    pub(crate) fn watch(&mut self, client: ClientId, interval_ms: u64) -> Option<u64> {
        self.change(|watchers| watchers.push((client, interval_ms)))
    }

    /// Removes a watcher. Returns the interval to request from the guest if it has changed.
    pub(crate) fn remove_watcher(&mut self, client: ClientId) -> Option<u64> {
        self.change(|watchers| watchers.retain(|(id, _)| *id != client))
    }

    fn change(&mut self, change: impl FnOnce(&mut Vec<(ClientId, u64)>)) -> Option<u64> {
        let target = self.target.as_mut()?;
        let before = target.interval_ms();
        change(&mut target.watchers);
        let now = target.interval_ms();
        if now == before {
            return None;
        }
        target.writer.update(|values| values.set(Field::IntervalMs, now));
        target.due?;
        target.reset_due();
        Some(now)
    }
}

impl SampleTarget {
    fn interval_ms(&self) -> u64 {
        interval_ms(self.configured_ms, self.watchers.iter().map(|(_, ms)| *ms))
    }

    fn reset_due(&mut self) {
        let interval = Duration::from_millis(self.interval_ms());
        self.due = Instant::now().checked_add(interval * SILENT_INTERVALS_MAX);
    }

    fn write(&mut self, guest: Option<&GuestSample>, upper_bytes: Option<u64>) {
        self.reset_due();
        let interval = Duration::from_millis(self.interval_ms());
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(self.host_read_at);
        // A guest that sends more often than requested does not cause more samples of the host's
        // side.
        let host = (guest.is_none() || elapsed >= interval / 2).then(|| self.host.sample());
        let ppm = host
            .and_then(|host| host.vcpu_ns)
            .map(|vcpu_ns| share_ppm(vcpu_ns.saturating_sub(self.vcpu_ns), elapsed));
        if let Some(host) = host {
            self.host_read_at = now;
            self.vcpu_ns = host.vcpu_ns.unwrap_or(self.vcpu_ns);
        }
        self.writer.update(|values| {
            if let Some(host) = host {
                put_host(values, &host, ppm, upper_bytes);
            }
            if let Some(guest) = guest {
                put_guest(values, guest);
            }
        });
    }
}

/// Returns the configured interval; else the shortest of the watchers; else the default.
fn interval_ms(configured_ms: Option<u64>, watchers: impl Iterator<Item = u64>) -> u64 {
    let ms =
        configured_ms.unwrap_or_else(|| watchers.chain([INTERVAL_MS]).min().unwrap_or(INTERVAL_MS));
    u64::try_from(interval(ms).as_millis()).unwrap_or(INTERVAL_MS)
}

/// Returns CPU time over elapsed time, in millionths of one CPU.
fn share_ppm(used_ns: u64, elapsed: Duration) -> u64 {
    let share = u128::from(used_ns) * 1_000_000 / elapsed.as_nanos().max(1);
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// Writes the identity of the sandbox and clears the values of an earlier VM.
fn put_identity(
    values: &mut Values<Field>,
    spec: &Spec,
    vm_pid: Option<Pid>,
    configured_ms: Option<u64>,
) {
    for field in <Field as samples::FieldSlot>::ALL {
        if !matches!(field, Field::BootIdHigh | Field::BootIdLow) {
            values.set(*field, None);
        }
    }
    let id = u64::try_from(spec.created_at.as_microsecond()).unwrap_or(0);
    let vm_pid = vm_pid.map(|pid| u64::from(pid.as_raw_pid().unsigned_abs()));
    values.set(Field::VmmPid, vm_pid);
    for (field, value) in [
        (Field::StartedUnixNs, unix_ns()),
        (Field::StartedBootNs, boot_ns()),
        (Field::SandboxId, id),
        (Field::SupervisorPid, u64::from(std::process::id())),
        (Field::Cpus, u64::from(spec.cpus)),
        (Field::MemoryLimitBytes, u64::from(spec.memory_mib) * 1024 * 1024),
        (Field::IntervalMs, interval_ms(configured_ms, std::iter::empty())),
    ] {
        values.set(field, value);
    }
}

fn put_host(
    values: &mut Values<Field>,
    host: &HostSample,
    ppm: Option<u64>,
    upper_bytes: Option<u64>,
) {
    values.set(Field::HostAtNs, boot_ns());
    values.raise(Field::VcpuNs, host.vcpu_ns);
    values.set(Field::VcpuPpm, ppm);
    values.raise(Field::HostCpuNs, host.cpu_ns);
    values.set(Field::ResidentBytes, host.resident_bytes);
    values.raise(Field::Wakeups, host.wakeups);
    values.set(Field::UpperAllocatedBytes, upper_bytes);
}

fn put_guest(values: &mut Values<Field>, guest: &GuestSample) {
    values.set(Field::GuestAtNs, boot_ns());
    for (field, value) in [
        (Field::MemoryTotalBytes, guest.memory_total_bytes),
        (Field::MemoryAvailableBytes, guest.memory_available_bytes),
        (Field::Processes, guest.processes),
        (Field::UpperSizeBytes, guest.upper_size_bytes),
        (Field::UpperUsedBytes, guest.upper_used_bytes),
    ] {
        values.set(field, value);
    }
    for (counter, value) in [
        (Field::GuestCpuNs, guest.cpu_ns),
        (Field::CpuSomeUs, guest.cpu_some_us),
        (Field::MemorySomeUs, guest.memory_some_us),
        (Field::MemoryFullUs, guest.memory_full_us),
        (Field::IoSomeUs, guest.io_some_us),
        (Field::IoFullUs, guest.io_full_us),
        (Field::DiskReadBytes, guest.disk_read_bytes),
        (Field::DiskWrittenBytes, guest.disk_written_bytes),
        (Field::GuestRxBytes, guest.rx_bytes),
        (Field::GuestTxBytes, guest.tx_bytes),
        (Field::GuestRxPackets, guest.rx_packets),
        (Field::GuestTxPackets, guest.tx_packets),
        (Field::OomKills, guest.oom_kills),
    ] {
        values.raise(counter, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_interval_of_all_who_watch_counts() {
        assert_eq!(interval_ms(None, [].into_iter()), INTERVAL_MS);
        assert_eq!(interval_ms(None, [3000, 1000, 60_000].into_iter()), 1000);
        assert_eq!(interval_ms(None, [60_000].into_iter()), INTERVAL_MS);
        assert_eq!(interval_ms(None, [0].into_iter()), 100);
    }

    #[test]
    fn a_sandbox_with_an_interval_of_its_own_keeps_it() {
        assert_eq!(interval_ms(Some(60_000), [1000].into_iter()), 60_000);
    }

    #[test]
    fn a_cpu_share_is_relative_to_one_cpu() {
        let second = Duration::from_secs(1);
        assert_eq!(share_ppm(1_500_000_000, second), 1_500_000);
        assert_eq!(share_ppm(u64::MAX, Duration::ZERO), u64::MAX);
    }

    #[test]
    fn what_a_guest_says_later_makes_no_counter_fall() {
        let mut values = Values::new();
        let mut guest =
            GuestSample { cpu_ns: Some(50), processes: Some(3), ..GuestSample::default() };
        put_guest(&mut values, &guest);
        guest.cpu_ns = Some(40);
        guest.processes = None;
        put_guest(&mut values, &guest);
        assert_eq!(values.get(Field::GuestCpuNs), Some(50));
        assert_eq!(values.get(Field::Processes), None);
    }
}
