//! What is known of one sandbox at one moment, and of all: the form that every stage of the program speaks.
//!
//! As JSON a sample is one flat object, whose first fields are those of the reference's `msb metrics --format json`. What is
//! not known is `null`.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use libmsb::samples::{Field, NetField, Snapshot};
use serde::{Deserialize, Serialize};

use crate::exits::Exit;

/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;
/// Intervals for which the guest may be silent before what it said is not true any more.
const SILENCE_INTERVALS: u64 = 3;
/// And the least time for that.
const SILENCE_NS_MIN: u64 = 5 * SECOND_NS;

/// Labels of a sandbox.
pub(crate) type Labels = BTreeMap<String, String>;

/// Which sandbox it is, and which life of it. Shared by all its samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Identity {
    /// Its name.
    #[serde(skip)]
    pub(crate) name: String,
    /// Its number: microseconds since 1970 of its creation.
    pub(crate) id: u64,
    /// The number of this life: microseconds since 1970 of its start.
    pub(crate) run_id: u64,
    /// Process of the virtual machine.
    pub(crate) pid: u64,
    /// When it was started; counters count from then.
    pub(crate) started_at: Timestamp,
    /// Its labels.
    pub(crate) labels: Labels,
}

/// Declares the figures of a sample: a field each, in the order of the JSON.
macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)*) => {
        /// The figures of one sandbox at one moment. What is not known is missing.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub(crate) struct Figures { $($(#[$doc])* pub(crate) $name: Option<$kind>,)* }
    };
}

figures! {
    /// CPU time of the virtual processors over the last interval, in percent of one processor.
    cpu_percent: f64,
    /// Memory in use in the guest.
    memory_bytes: u64,
    /// Memory that the guest was given.
    memory_limit_bytes: u64,
    /// Counter: bytes read from disks.
    disk_read_bytes: u64,
    /// Counter: bytes written to disks.
    disk_write_bytes: u64,
    /// Counter: bytes that the guest received.
    net_rx_bytes: u64,
    /// Counter: bytes that it sent.
    net_tx_bytes: u64,
    /// Time since it was started.
    uptime_secs: f64,
    /// Virtual processors.
    cpus: u64,
    /// Time between two samples now, in milliseconds.
    sample_interval_ms: u64,
    /// Counter: CPU time of the virtual processors.
    cpu_secs: f64,
    /// Counter: CPU time as the guest counts it.
    guest_cpu_secs: f64,
    /// Counter: CPU time of all processes of the sandbox on the host.
    host_cpu_secs: f64,
    /// Memory that the guest could still give to programs.
    memory_available_bytes: u64,
    /// Memory of the sandbox's processes that is resident on the host.
    memory_resident_bytes: u64,
    /// Counter: times that a thread of the sandbox woke up on the host.
    wakeups: u64,
    /// Size of the file system on the writable disk.
    disk_size_bytes: u64,
    /// What is used of it.
    disk_used_bytes: u64,
    /// What the writable disk takes on the host.
    disk_allocated_bytes: u64,
    /// Counter: packets that the guest received.
    net_rx_packets: u64,
    /// Counter: packets that it sent.
    net_tx_packets: u64,
    /// Counter: connections that were opened.
    net_connections: u64,
    /// Counter: connections that the policy refused.
    net_denied: u64,
    /// Connections that are open.
    net_open: u64,
    /// Counter: time in which some task of the guest waited for a processor.
    pressure_cpu_some_secs: f64,
    /// Counter: the same for memory.
    pressure_memory_some_secs: f64,
    /// Counter: time in which all tasks waited for memory.
    pressure_memory_full_secs: f64,
    /// Counter: time in which some task waited for a disk.
    pressure_io_some_secs: f64,
    /// Counter: time in which all tasks waited for a disk.
    pressure_io_full_secs: f64,
    /// Processes in the guest.
    processes: u64,
    /// Counter: processes that the guest's kernel killed for lack of memory.
    oom_kills: u64,
}

/// One sandbox at one moment.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(from = "Flat")]
pub(crate) struct Sample {
    /// When.
    pub(crate) timestamp: Timestamp,
    /// What it costs.
    pub(crate) figures: Figures,
    /// Who it is.
    pub(crate) identity: Arc<Identity>,
}

/// A sample as it is read.
#[derive(Deserialize)]
struct Flat {
    name: String,
    timestamp: Timestamp,
    #[serde(flatten)]
    figures: Figures,
    #[serde(flatten)]
    identity: Identity,
}

/// A sample as it is written.
#[derive(Serialize)]
struct FlatRef<'a> {
    name: &'a str,
    timestamp: Timestamp,
    #[serde(flatten)]
    figures: &'a Figures,
    #[serde(flatten)]
    identity: &'a Identity,
}

impl From<Flat> for Sample {
    fn from(flat: Flat) -> Sample {
        let Flat {
            name,
            timestamp,
            figures,
            identity,
        } = flat;
        Sample {
            timestamp,
            figures,
            identity: Arc::new(Identity { name, ..identity }),
        }
    }
}

impl Serialize for Sample {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let flat = FlatRef {
            name: &self.identity.name,
            timestamp: self.timestamp,
            figures: &self.figures,
            identity: &self.identity,
        };
        flat.serialize(serializer)
    }
}

/// All sandboxes at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Collection {
    /// When.
    pub(crate) at: Timestamp,
    /// By name.
    pub(crate) samples: Vec<Sample>,
    /// What ended since the collection before.
    pub(crate) exits: Vec<Exit>,
}

/// Now, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// The host's clock.
    pub(crate) time: Timestamp,
    /// Nanoseconds since the host's boot.
    pub(crate) boot_ns: u64,
}

impl Now {
    /// This moment.
    pub(crate) fn get() -> Now {
        Now {
            time: Timestamp::now(),
            boot_ns: libmsb::samples::boot_ns(),
        }
    }
}

/// The numbers of a sandbox and of its life. `None` when a snapshot does not say them.
pub(crate) fn numbers(snapshot: &Snapshot) -> Option<(u64, u64)> {
    let get = |field| snapshot.sandbox.get(field);
    Some((get(Field::SandboxId)?, get(Field::StartedUnixNs)? / 1000))
}

/// Who a snapshot is of, but for its labels. `None` when it does not say so.
pub(crate) fn identity(name: &str, snapshot: &Snapshot) -> Option<Identity> {
    let get = |field| snapshot.sandbox.get(field);
    let started_ns = get(Field::StartedUnixNs)?;
    let (id, run_id) = numbers(snapshot)?;
    Some(Identity {
        name: name.to_owned(),
        id,
        run_id,
        pid: get(Field::VmmPid).unwrap_or(0),
        started_at: Timestamp::from_nanosecond(i128::from(started_ns)).ok()?,
        labels: Labels::new(),
    })
}

/// The figures of a snapshot. What the guest said counts only while it speaks.
pub(crate) fn figures(snapshot: &Snapshot, now: Now) -> Figures {
    let host = |field| snapshot.sandbox.get(field);
    let speaks = speaks(snapshot, now);
    let guest = |field| host(field).filter(|_| speaks);
    let net = |field| snapshot.net.as_ref()?.get(field);
    let total = guest(Field::MemoryTotalBytes);
    let available = guest(Field::MemoryAvailableBytes);
    let started = host(Field::StartedBootNs);
    Figures {
        cpu_percent: host(Field::VcpuPpm).map(|ppm| ppm as f64 / 10_000.0),
        memory_bytes: total
            .zip(available)
            .map(|(total, available)| total.saturating_sub(available)),
        memory_limit_bytes: host(Field::MemoryLimitBytes),
        disk_read_bytes: guest(Field::DiskReadBytes),
        disk_write_bytes: guest(Field::DiskWrittenBytes),
        // From who moves the frames, and from nobody else: the guest counts otherwise, and a counter whose source is another
        // one for a while goes back.
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

fn speaks(snapshot: &Snapshot, now: Now) -> bool {
    let interval_ms = snapshot.sandbox.get(Field::IntervalMs).unwrap_or(0);
    let patience = interval_ms
        .saturating_mul(1_000_000 * SILENCE_INTERVALS)
        .max(SILENCE_NS_MIN);
    snapshot
        .sandbox
        .get(Field::GuestAtNs)
        .is_some_and(|at| now.boot_ns.saturating_sub(at) <= patience)
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

    fn now(boot_ns: u64) -> Now {
        Now {
            time: Timestamp::UNIX_EPOCH,
            boot_ns,
        }
    }

    #[test]
    fn what_is_missing_is_missing_and_what_is_zero_is_zero() {
        let figures = figures(&snapshot(&[(Field::VcpuPpm, 0)]), now(0));
        assert_eq!(figures.cpu_percent, Some(0.0));
        let none = Figures {
            cpu_percent: Some(0.0),
            ..Figures::default()
        };
        assert_eq!(figures, none);
    }

    #[test]
    fn what_a_silent_guest_said_does_not_count_and_the_hosts_side_does() {
        let snapshot = snapshot(&[
            (Field::IntervalMs, 10_000),
            (Field::GuestAtNs, 5 * SECOND_NS),
            (Field::Processes, 7),
            (Field::ResidentBytes, 9),
        ]);
        let early = figures(&snapshot, now(30 * SECOND_NS));
        assert_eq!(
            (early.processes, early.memory_resident_bytes),
            (Some(7), Some(9))
        );
        let late = figures(&snapshot, now(36 * SECOND_NS));
        assert_eq!(
            (late.processes, late.memory_resident_bytes),
            (None, Some(9))
        );
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
            let found = figures(snapshot, now(0));
            [
                found.net_rx_bytes,
                found.net_tx_bytes,
                found.net_rx_packets,
                found.net_tx_packets,
            ]
        };
        let mut net = Values::new();
        for field in <NetField as libmsb::samples::Slot>::ALL {
            net.set(*field, 1000);
        }
        snapshot.net = Some(net);
        assert_eq!(network(&snapshot), [Some(1000); 4]);
        // Its page could not be read this time.
        snapshot.net = None;
        assert_eq!(network(&snapshot), [None; 4]);
    }

    #[test]
    fn hostile_numbers_do_no_harm() {
        let all: Vec<(Field, u64)> = <Field as libmsb::samples::Slot>::ALL
            .iter()
            .map(|field| (*field, u64::MAX))
            .collect();
        let snapshot = snapshot(&all);
        assert!(identity("web", &snapshot).is_none_or(|identity| identity.pid == u64::MAX));
        let figures = figures(&snapshot, now(0));
        assert_eq!(figures.memory_bytes, Some(0));
        assert_eq!(figures.uptime_secs, Some(0.0));
    }

    #[test]
    fn a_sample_is_the_same_after_json() {
        let sample = Sample {
            timestamp: Timestamp::UNIX_EPOCH,
            figures: Figures {
                cpu_percent: Some(12.5),
                ..Figures::default()
            },
            identity: Arc::new(Identity {
                name: "web".into(),
                id: 5,
                labels: Labels::from([("team".into(), "ml".into())]),
                ..Identity::default()
            }),
        };
        let json = serde_json::to_string(&sample).unwrap();
        assert!(json.starts_with(
            r#"{"name":"web","timestamp":"1970-01-01T00:00:00Z","cpu_percent":12.5,"memory_bytes":null,"#
        ));
        assert_eq!(serde_json::from_str::<Sample>(&json).unwrap(), sample);
    }
}
