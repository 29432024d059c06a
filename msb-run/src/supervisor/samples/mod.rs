//! What the sandbox costs, written to its sample file ([`libmsb::samples`]).
//!
//! The guest's agent says what it sees at an interval, and each time the host's side is looked at too: so a sandbox that
//! nobody watches has one timer, in the guest, and this process sleeps until it speaks. While the guest is silent, the
//! host's side is looked at alone. Whoever watches opens a stream, and the shortest interval of all who watch counts; a
//! sandbox that was given an interval of its own keeps it.

/// The host's side.
mod host;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::cli::error::{message, print_warning};
use libmsb::samples::{self, Field, INTERVAL_MS, Values, Writer, boot_ns, unix_ns};
use libmsb::state::spec::Spec;
use msb_wire::samples::{GuestSample, SamplesEvent, interval};
use rustix::process::Pid;

use self::host::{Host, HostSample};
use super::relay::ClientId;
use super::{Setup, TOOL};

/// Times the interval that the guest may be silent before the host's side is looked at alone.
const PATIENCE: u32 = 2;

/// The samples of one life.
#[derive(Debug)]
pub(crate) struct Samples {
    /// None when there are no samples of this sandbox.
    taking: Option<Taking>,
}

#[derive(Debug)]
struct Taking {
    writer: Writer,
    host: Host,
    /// The sandbox's own interval.
    own: Option<u64>,
    /// Who watches, and how often.
    watchers: Vec<(ClientId, u64)>,
    /// When the host's side was looked at last, and what its virtual processors had used.
    looked: Instant,
    vcpu_ns: u64,
    /// When it is looked at without the guest. None before the guest is up.
    due: Option<Instant>,
}

impl Samples {
    /// Makes the sample file, unless the sandbox is to have none. One that cannot be made is no reason not to live. What
    /// there is to say of a machine follows with [`Samples::restart`].
    pub(crate) fn begin(setup: &Setup) -> Samples {
        let own = setup.spec.metrics.sample_interval_ms;
        if own == Some(0) {
            return Samples { taking: None };
        }
        let path = setup.home.samples(&setup.sandbox.name);
        let writer = Writer::create(&path, |values| introduce(values, &setup.spec, None, own));
        if let Err(error) = &writer {
            print_warning(TOOL, &message(error));
        }
        let taking = writer.ok().map(|writer| Taking {
            writer,
            host: Host::new(),
            own,
            watchers: Vec::new(),
            looked: Instant::now(),
            vcpu_ns: 0,
            due: None,
        });
        Samples { taking }
    }

    /// For msb-net, which counts in a page of its own, also where nobody but the supervisor looks.
    pub(crate) fn net_descriptor(&self) -> anyhow::Result<OwnedFd> {
        let file = match &self.taking {
            Some(taking) => taking.writer.net_descriptor(),
            None => samples::nameless_net_file(),
        };
        file.context("cannot make a file for the counters of the network")
    }

    /// The machine was started, perhaps again: what there is began with it.
    pub(crate) fn restart(&mut self, spec: &Spec, machine: Option<Pid>) {
        if let Some(taking) = &mut self.taking {
            taking.host = Host::new();
            taking.vcpu_ns = 0;
            taking.looked = Instant::now();
            let own = taking.own;
            taking
                .writer
                .update(|values| introduce(values, spec, machine, own));
        }
    }

    /// The guest is up: the interval to ask of it, in milliseconds. None when there is nothing to ask.
    pub(crate) fn start(&mut self) -> Option<u64> {
        let taking = self.taking.as_mut()?;
        taking.expect_the_guest();
        Some(taking.interval_ms())
    }

    /// When the host's side is to be looked at.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.taking.as_ref()?.due
    }

    /// What the agent said. `upper_bytes`: what the writable disk takes on the host.
    pub(crate) fn take(&mut self, message: &[u8], upper_bytes: Option<u64>) {
        let Some(taking) = &mut self.taking else {
            return;
        };
        // A refusal, or what a later version says: then the host's side is all there is.
        let Ok(SamplesEvent::Sample(guest)) = serde_json::from_slice(message) else {
            return;
        };
        taking.write(Some(&guest), upper_bytes);
    }

    /// Looks at the host's side, if it is time.
    pub(crate) fn look_if_due(&mut self, upper_bytes: impl FnOnce() -> Option<u64>) {
        if let Some(taking) = &mut self.taking
            && taking.due.is_some_and(|due| due <= Instant::now())
        {
            taking.write(None, upper_bytes());
        }
    }

    /// Somebody watches: the interval to ask of the guest, if it is another one now.
    pub(crate) fn watch(&mut self, client: ClientId, interval_ms: u64) -> Option<u64> {
        self.change(|watchers| watchers.push((client, interval_ms)))
    }

    /// A client is gone: the interval to ask of the guest, if it is another one now.
    pub(crate) fn gone(&mut self, client: ClientId) -> Option<u64> {
        self.change(|watchers| watchers.retain(|(id, _)| *id != client))
    }

    fn change(&mut self, change: impl FnOnce(&mut Vec<(ClientId, u64)>)) -> Option<u64> {
        let taking = self.taking.as_mut()?;
        let before = taking.interval_ms();
        change(&mut taking.watchers);
        let now = taking.interval_ms();
        if now == before {
            return None;
        }
        taking
            .writer
            .update(|values| values.set(Field::IntervalMs, now));
        taking.due?;
        taking.expect_the_guest();
        Some(now)
    }
}

impl Taking {
    fn interval_ms(&self) -> u64 {
        interval_ms(self.own, self.watchers.iter().map(|(_, ms)| *ms))
    }

    fn expect_the_guest(&mut self) {
        let interval = Duration::from_millis(self.interval_ms());
        self.due = Instant::now().checked_add(interval * PATIENCE);
    }

    fn write(&mut self, guest: Option<&GuestSample>, upper_bytes: Option<u64>) {
        self.expect_the_guest();
        let interval = Duration::from_millis(self.interval_ms());
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(self.looked);
        // A guest that speaks more often than it was asked to gets no more attention than that.
        let host = (guest.is_none() || elapsed >= interval / 2).then(|| self.host.look());
        let ppm = host
            .and_then(|host| host.vcpu_ns)
            .map(|vcpu_ns| share_ppm(vcpu_ns.saturating_sub(self.vcpu_ns), elapsed));
        if let Some(host) = host {
            self.looked = now;
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

/// The sandbox's own interval; else the shortest of those who watch; else that for nobody.
fn interval_ms(own: Option<u64>, watchers: impl Iterator<Item = u64>) -> u64 {
    let ms = own.unwrap_or_else(|| watchers.chain([INTERVAL_MS]).min().unwrap_or(INTERVAL_MS));
    u64::try_from(interval(ms).as_millis()).unwrap_or(INTERVAL_MS)
}

/// CPU time over a time, in millionths of one processor.
fn share_ppm(used_ns: u64, elapsed: Duration) -> u64 {
    let share = u128::from(used_ns) * 1_000_000 / elapsed.as_nanos().max(1);
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// Who it is, and nothing that an earlier machine has done.
fn introduce(values: &mut Values<Field>, spec: &Spec, machine: Option<Pid>, own: Option<u64>) {
    for field in <Field as samples::Slot>::ALL {
        if !matches!(field, Field::BootIdHigh | Field::BootIdLow) {
            values.set(*field, None);
        }
    }
    let id = u64::try_from(spec.created_at.as_microsecond()).unwrap_or(0);
    let machine = machine.map(|pid| u64::from(pid.as_raw_pid().unsigned_abs()));
    values.set(Field::VmmPid, machine);
    for (field, value) in [
        (Field::StartedUnixNs, unix_ns()),
        (Field::StartedBootNs, boot_ns()),
        (Field::SandboxId, id),
        (Field::SupervisorPid, u64::from(std::process::id())),
        (Field::Cpus, u64::from(spec.cpus)),
        (
            Field::MemoryLimitBytes,
            u64::from(spec.memory_mib) * 1024 * 1024,
        ),
        (Field::IntervalMs, interval_ms(own, std::iter::empty())),
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
    fn a_share_is_of_one_processor() {
        let second = Duration::from_secs(1);
        assert_eq!(share_ppm(1_500_000_000, second), 1_500_000);
        assert_eq!(share_ppm(u64::MAX, Duration::ZERO), u64::MAX);
    }

    #[test]
    fn what_a_guest_says_later_makes_no_counter_fall() {
        let mut values = Values::new();
        let mut guest = GuestSample {
            cpu_ns: Some(50),
            processes: Some(3),
            ..GuestSample::default()
        };
        put_guest(&mut values, &guest);
        guest.cpu_ns = Some(40);
        guest.processes = None;
        put_guest(&mut values, &guest);
        assert_eq!(values.get(Field::GuestCpuNs), Some(50));
        assert_eq!(values.get(Field::Processes), None);
    }
}
