//! Sample of one sandbox, and collection of the samples of all sandboxes.
//!
//! In JSON a sample is one flat object. Its first fields are those of `msb metrics --format json`
//! in microsandbox. Unknown values are `null`.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use libmsb::samples::{Field, NetField, Snapshot};
use serde::{Deserialize, Serialize};

use crate::exits::SandboxExit;

/// Nanoseconds per second.
const SECOND_NS: u64 = 1_000_000_000;
/// Number of intervals without a report of the guest after which its values are out of date.
const SILENCE_INTERVALS: u64 = 3;
/// Minimum time for that.
const SILENCE_NS_MIN: u64 = 5 * SECOND_NS;

/// Labels of a sandbox.
pub(crate) type Labels = BTreeMap<String, String>;

/// Identity of a sandbox and of its current run. Shared by all of its samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SandboxIdentity {
    /// Sandbox name.
    #[serde(skip)]
    pub(crate) name: String,
    /// Sandbox id: time of its creation in microseconds since 1970.
    pub(crate) id: u64,
    /// Run id: time of its start in microseconds since 1970.
    pub(crate) run_id: u64,
    /// Process id of the VMM process.
    pub(crate) pid: u64,
    /// Start time; counters start at zero then.
    #[serde(with = "libmsb::time")]
    pub(crate) started_at: Timestamp,
    /// Sandbox labels.
    pub(crate) labels: Labels,
}

/// Declares the values of a sample: one field each, in the order of the JSON.
macro_rules! sample_values {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)*) => {
        /// Values of one sandbox at one time. Unknown values are `None`.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub(crate) struct SampleValues { $($(#[$doc])* pub(crate) $name: Option<$kind>,)* }
    };
}

sample_values! {
    /// CPU time of the virtual processors over the last interval, in percent of one processor.
    cpu_percent: f64,
    /// Memory in use in the guest.
    memory_bytes: u64,
    /// Memory size of the guest.
    memory_limit_bytes: u64,
    /// Counter: bytes read from disks.
    disk_read_bytes: u64,
    /// Counter: bytes written to disks.
    disk_write_bytes: u64,
    /// Counter: bytes received by the guest.
    net_rx_bytes: u64,
    /// Counter: bytes sent by the guest.
    net_tx_bytes: u64,
    /// Time since the start.
    uptime_secs: f64,
    /// Number of virtual processors.
    cpus: u64,
    /// Current time between two samples, in milliseconds.
    sample_interval_ms: u64,
    /// Counter: CPU time of the virtual processors.
    cpu_secs: f64,
    /// Counter: CPU time as counted by the guest.
    guest_cpu_secs: f64,
    /// Counter: CPU time of all processes of the sandbox on the host.
    host_cpu_secs: f64,
    /// Memory that is available to programs in the guest.
    memory_available_bytes: u64,
    /// Resident memory of the sandbox's processes on the host.
    memory_resident_bytes: u64,
    /// Counter: wakeups of the sandbox's threads on the host.
    wakeups: u64,
    /// Size of the file system on the writable disk.
    disk_size_bytes: u64,
    /// Used bytes of that file system.
    disk_used_bytes: u64,
    /// Space that the writable disk takes on the host.
    disk_allocated_bytes: u64,
    /// Counter: packets received by the guest.
    net_rx_packets: u64,
    /// Counter: packets sent by the guest.
    net_tx_packets: u64,
    /// Counter: opened connections.
    net_connections: u64,
    /// Counter: connections that the policy denied.
    net_denied: u64,
    /// Number of open connections.
    net_open: u64,
    /// Counter: time in which some task of the guest waited for a processor.
    pressure_cpu_some_secs: f64,
    /// Counter: time in which some task waited for memory.
    pressure_memory_some_secs: f64,
    /// Counter: time in which all tasks waited for memory.
    pressure_memory_full_secs: f64,
    /// Counter: time in which some task waited for a disk.
    pressure_io_some_secs: f64,
    /// Counter: time in which all tasks waited for a disk.
    pressure_io_full_secs: f64,
    /// Number of processes in the guest.
    processes: u64,
    /// Counter: processes that the guest's kernel killed because it was out of memory.
    oom_kills: u64,
}

/// Sample of one sandbox.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(from = "FlatSample")]
pub(crate) struct Sample {
    /// Time of the collection.
    #[serde(with = "libmsb::time")]
    pub(crate) timestamp: Timestamp,
    /// Measured values.
    pub(crate) values: SampleValues,
    /// Identity of the sandbox.
    pub(crate) identity: Arc<SandboxIdentity>,
}

/// JSON form of a sample for reading.
#[derive(Deserialize)]
struct FlatSample {
    name: String,
    #[serde(with = "libmsb::time")]
    timestamp: Timestamp,
    #[serde(flatten)]
    values: SampleValues,
    #[serde(flatten)]
    identity: SandboxIdentity,
}

/// JSON form of a sample for writing.
#[derive(Serialize)]
struct FlatSampleRef<'a> {
    name: &'a str,
    #[serde(with = "libmsb::time")]
    timestamp: Timestamp,
    #[serde(flatten)]
    values: &'a SampleValues,
    #[serde(flatten)]
    identity: &'a SandboxIdentity,
}

impl From<FlatSample> for Sample {
    fn from(flat: FlatSample) -> Sample {
        let FlatSample { name, timestamp, values, identity } = flat;
        Sample { timestamp, values, identity: Arc::new(SandboxIdentity { name, ..identity }) }
    }
}

impl Serialize for Sample {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let flat = FlatSampleRef {
            name: &self.identity.name,
            timestamp: self.timestamp,
            values: &self.values,
            identity: &self.identity,
        };
        flat.serialize(serializer)
    }
}

/// Samples of all sandboxes at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Collection {
    /// Time of the collection.
    pub(crate) at: Timestamp,
    /// Samples, ordered by name.
    pub(crate) samples: Vec<Sample>,
    /// Exits since the previous collection.
    pub(crate) exits: Vec<SandboxExit>,
}

/// The current time on two clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClockReading {
    /// Wall clock of the host.
    pub(crate) time: Timestamp,
    /// Nanoseconds since the boot of the host.
    pub(crate) boot_ns: u64,
}

impl ClockReading {
    /// Reads both clocks.
    pub(crate) fn get() -> ClockReading {
        ClockReading { time: Timestamp::now(), boot_ns: libmsb::samples::boot_ns() }
    }
}

/// Returns the sandbox id and the run id, or `None` if the snapshot lacks them.
pub(crate) fn sandbox_ids(snapshot: &Snapshot) -> Option<(u64, u64)> {
    let get = |field| snapshot.sandbox.get(field);
    Some((get(Field::SandboxId)?, get(Field::StartedUnixNs)? / 1000))
}

/// Returns the identity without labels, or `None` if the snapshot lacks it.
pub(crate) fn identity(name: &str, snapshot: &Snapshot) -> Option<SandboxIdentity> {
    let get = |field| snapshot.sandbox.get(field);
    let started_ns = get(Field::StartedUnixNs)?;
    let (id, run_id) = sandbox_ids(snapshot)?;
    Some(SandboxIdentity {
        name: name.to_owned(),
        id,
        run_id,
        pid: get(Field::VmmPid).unwrap_or(0),
        started_at: Timestamp::from_nanosecond(i128::from(started_ns)).ok()?,
        labels: Labels::new(),
    })
}

/// Returns the values of a snapshot. Values from the guest count only while the guest reports.
pub(crate) fn sample_values(snapshot: &Snapshot, now: ClockReading) -> SampleValues {
    let host = |field| snapshot.sandbox.get(field);
    let guest_is_reporting = guest_is_reporting(snapshot, now);
    let guest = |field| host(field).filter(|_| guest_is_reporting);
    let net = |field| snapshot.net.as_ref()?.get(field);
    let total = guest(Field::MemoryTotalBytes);
    let available = guest(Field::MemoryAvailableBytes);
    let started = host(Field::StartedBootNs);
    SampleValues {
        cpu_percent: host(Field::VcpuPpm).map(|ppm| ppm as f64 / 10_000.0),
        memory_bytes: total
            .zip(available)
            .map(|(total, available)| total.saturating_sub(available)),
        memory_limit_bytes: host(Field::MemoryLimitBytes),
        disk_read_bytes: guest(Field::DiskReadBytes),
        disk_write_bytes: guest(Field::DiskWrittenBytes),
        // Only from msb-net, which moves the frames. The guest counts differently, and a counter
        // that switches its source for a while would go back.
        net_rx_bytes: net(NetField::RxBytes),
        net_tx_bytes: net(NetField::TxBytes),
        uptime_secs: started.map(|started| seconds(now.boot_ns.saturating_sub(started))),
        cpus: host(Field::Cpus),
        sample_interval_ms: host(Field::IntervalMs),
        cpu_secs: host(Field::VcpuNs).map(seconds),
        guest_cpu_secs: guest(Field::GuestCpuNs).map(seconds),
        host_cpu_secs: host(Field::HostCpuNs).map(seconds),
        memory_available_bytes: available,
        memory_resident_bytes: host(Field::ResidentBytes),
        wakeups: host(Field::Wakeups),
        disk_size_bytes: guest(Field::UpperSizeBytes),
        disk_used_bytes: guest(Field::UpperUsedBytes),
        disk_allocated_bytes: host(Field::UpperAllocatedBytes),
        net_rx_packets: net(NetField::RxPackets),
        net_tx_packets: net(NetField::TxPackets),
        net_connections: net(NetField::Connections),
        net_denied: net(NetField::Denied),
        net_open: net(NetField::Open),
        pressure_cpu_some_secs: guest(Field::CpuSomeUs).map(microseconds),
        pressure_memory_some_secs: guest(Field::MemorySomeUs).map(microseconds),
        pressure_memory_full_secs: guest(Field::MemoryFullUs).map(microseconds),
        pressure_io_some_secs: guest(Field::IoSomeUs).map(microseconds),
        pressure_io_full_secs: guest(Field::IoFullUs).map(microseconds),
        processes: guest(Field::Processes),
        oom_kills: guest(Field::OomKills),
    }
}

fn guest_is_reporting(snapshot: &Snapshot, now: ClockReading) -> bool {
    let interval_ms = snapshot.sandbox.get(Field::IntervalMs).unwrap_or(0);
    let timeout = interval_ms.saturating_mul(1_000_000 * SILENCE_INTERVALS).max(SILENCE_NS_MIN);
    snapshot
        .sandbox
        .get(Field::GuestAtNs)
        .is_some_and(|at| now.boot_ns.saturating_sub(at) <= timeout)
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / SECOND_NS as f64
}

fn microseconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use libmsb::samples::Values;

    fn snapshot(values: &[(Field, u64)]) -> Snapshot {
        let mut sandbox = Values::new();
        for (field, value) in values {
            sandbox.set(*field, *value);
        }
        Snapshot { sandbox, net: None }
    }

    fn now(boot_ns: u64) -> ClockReading {
        ClockReading { time: Timestamp::UNIX_EPOCH, boot_ns }
    }

    #[test]
    fn a_missing_value_is_none_and_zero_is_zero() {
        let values = sample_values(&snapshot(&[(Field::VcpuPpm, 0)]), now(0));
        assert_eq!(values.cpu_percent, Some(0.0));
        let none = SampleValues { cpu_percent: Some(0.0), ..SampleValues::default() };
        assert_eq!(values, none);
    }

    #[test]
    fn values_of_a_silent_guest_expire_and_the_hosts_remain() {
        let snapshot = snapshot(&[
            (Field::IntervalMs, 10_000),
            (Field::GuestAtNs, 5 * SECOND_NS),
            (Field::Processes, 7),
            (Field::ResidentBytes, 9),
        ]);
        let early = sample_values(&snapshot, now(30 * SECOND_NS));
        assert_eq!((early.processes, early.memory_resident_bytes), (Some(7), Some(9)));
        let late = sample_values(&snapshot, now(36 * SECOND_NS));
        assert_eq!((late.processes, late.memory_resident_bytes), (None, Some(9)));
    }

    #[test]
    fn network_counters_have_one_source_and_are_missing_without_it() {
        let counted = [
            Field::GuestRxBytes,
            Field::GuestTxBytes,
            Field::GuestRxPackets,
            Field::GuestTxPackets,
        ];
        let mut snapshot = snapshot(&[(Field::GuestAtNs, 0)]);
        for field in counted {
            snapshot.sandbox.set(field, 7);
        }
        let network = |snapshot: &Snapshot| {
            let found = sample_values(snapshot, now(0));
            [found.net_rx_bytes, found.net_tx_bytes, found.net_rx_packets, found.net_tx_packets]
        };
        let mut net = Values::new();
        for field in <NetField as libmsb::samples::FieldSlot>::ALL {
            net.set(*field, 1000);
        }
        snapshot.net = Some(net);
        assert_eq!(network(&snapshot), [Some(1000); 4]);
        // The page of msb-net could not be read this time.
        snapshot.net = None;
        assert_eq!(network(&snapshot), [None; 4]);
    }

    #[test]
    fn hostile_numbers_do_no_harm() {
        let all: Vec<(Field, u64)> = <Field as libmsb::samples::FieldSlot>::ALL
            .iter()
            .map(|field| (*field, u64::MAX))
            .collect();
        let snapshot = snapshot(&all);
        assert!(identity("web", &snapshot).is_none_or(|identity| identity.pid == u64::MAX));
        let values = sample_values(&snapshot, now(0));
        assert_eq!(values.memory_bytes, Some(0));
        assert_eq!(values.uptime_secs, Some(0.0));
    }

    #[test]
    fn a_sample_is_the_same_after_json() {
        let sample = Sample {
            timestamp: Timestamp::UNIX_EPOCH,
            values: SampleValues { cpu_percent: Some(12.5), ..SampleValues::default() },
            identity: Arc::new(SandboxIdentity {
                name: "web".into(),
                id: 5,
                labels: Labels::from([("team".into(), "ml".into())]),
                ..SandboxIdentity::default()
            }),
        };
        let json = serde_json::to_string(&sample).unwrap();
        assert!(json.starts_with(
            r#"{"name":"web","timestamp":"1970-01-01T00:00:00+00:00","cpu_percent":12.5,"memory_bytes":null,"#
        ));
        assert_eq!(serde_json::from_str::<Sample>(&json).unwrap(), sample);
    }
}
