//! Values of a page: each has a name, and is known or missing.

use std::fmt;
use std::marker::PhantomData;

use super::VALUES_MAX;

/// The name of a value, which defines its place in a page.
pub trait FieldSlot: Copy + fmt::Debug + 'static {
    /// All names, in the order of their places.
    const ALL: &'static [Self];
    /// Returns the place, below [`VALUES_MAX`].
    fn place(self) -> usize;
}

/// Declares the names of a page's values. Places are part of the format: append new ones at the
/// end.
macro_rules! slots {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $slot:ident,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $slot,)* }

        impl FieldSlot for $name {
            const ALL: &'static [$name] = &[$($name::$slot,)*];

            fn place(self) -> usize {
                self as usize
            }
        }

        const _: () = assert!($name::ALL.len() <= VALUES_MAX);
    };
}

slots! {
    /// Values of the supervisor's page. A counter starts at zero with the virtual machine and never
    /// decreases.
    Field {
        /// Start of the virtual machine, in nanoseconds since 1970.
        StartedUnixNs,
        /// Start of the virtual machine, in nanoseconds since the host's boot.
        StartedBootNs,
        /// The host's boot ID, upper half.
        BootIdHigh,
        /// The host's boot ID, lower half.
        BootIdLow,
        /// Identity of the sandbox: its creation time in microseconds since 1970, which no other
        /// sandbox of the name has.
        SandboxId,
        /// Process ID of the supervisor.
        SupervisorPid,
        /// Process ID of the virtual machine.
        VmmPid,
        /// Virtual processors.
        Cpus,
        /// Memory of the guest, in bytes.
        MemoryLimitBytes,
        /// Current interval of samples, in milliseconds.
        IntervalMs,
        /// Time of the host's sample, in nanoseconds since the host's boot.
        HostAtNs,
        /// Counter: CPU time of the vCPU threads, in nanoseconds.
        VcpuNs,
        /// CPU use of the vCPU threads over the last interval, in millionths of one processor.
        VcpuPpm,
        /// Counter: CPU time of the supervisor and its descendants, in nanoseconds.
        HostCpuNs,
        /// Resident memory of the VMM process and its helpers, in bytes.
        ResidentBytes,
        /// Counter: voluntary context switches of all their threads.
        Wakeups,
        /// Allocated size of the upper on the host, in bytes.
        UpperAllocatedBytes,
        /// Arrival of the guest's sample, in nanoseconds since the host's boot.
        GuestAtNs,
        /// Counter: CPU time as the guest counts it, in nanoseconds; without idle time, I/O wait
        /// and steal time.
        GuestCpuNs,
        /// Memory that the guest's kernel manages, in bytes.
        MemoryTotalBytes,
        /// Memory that is available to programs in the guest, in bytes.
        MemoryAvailableBytes,
        /// Counter: time in which some task waited for a processor, in microseconds.
        CpuSomeUs,
        /// Counter: time in which some task waited for memory.
        MemorySomeUs,
        /// Counter: time in which all tasks waited for memory.
        MemoryFullUs,
        /// Counter: time in which some task waited for a disk.
        IoSomeUs,
        /// Counter: time in which all tasks waited for a disk.
        IoFullUs,
        /// Counter: bytes that the guest read from its disks.
        DiskReadBytes,
        /// Counter: bytes that the guest wrote to its disks.
        DiskWrittenBytes,
        /// Counter: bytes that the guest's network interface received.
        GuestRxBytes,
        /// Counter: bytes that the guest's network interface sent.
        GuestTxBytes,
        /// Counter: packets that the guest's network interface received.
        GuestRxPackets,
        /// Counter: packets that the guest's network interface sent.
        GuestTxPackets,
        /// Processes in the guest, without kernel threads.
        Processes,
        /// Counter: processes killed by the guest's kernel because it was out of memory.
        OomKills,
        /// Size of the file system on the upper, in bytes.
        UpperSizeBytes,
        /// Used space of the file system on the upper, in bytes.
        UpperUsedBytes,
    }
}

slots! {
    /// Values of msb-net's page. All are counters, except the open connections and the time.
    NetField {
        /// Bytes of frames to the guest.
        RxBytes,
        /// Bytes of frames from the guest.
        TxBytes,
        /// Frames to the guest.
        RxPackets,
        /// Frames from the guest.
        TxPackets,
        /// Connections and flows that either side opened.
        Connections,
        /// Connections and flows that the policy denied.
        Denied,
        /// Connections and flows that are open now.
        Open,
        /// Connections through published ports that are open now.
        PublishedOpen,
        /// Last use of a published port, by the start or end of a connection or by a datagram:
        /// nanoseconds since the host's boot, or 0 for never.
        PublishedAtNs,
    }
}

/// The values of a page.
#[derive(Clone)]
pub struct Values<S: FieldSlot> {
    pub(super) present: u64,
    pub(super) values: [u64; VALUES_MAX],
    names: PhantomData<S>,
}

impl<S: FieldSlot> Values<S> {
    /// Returns values that are all missing.
    pub fn new() -> Values<S> {
        Values::from_parts(0, [0; VALUES_MAX])
    }

    pub(super) fn from_parts(present: u64, values: [u64; VALUES_MAX]) -> Values<S> {
        Values { present, values, names: PhantomData }
    }

    /// Returns a value, if it is known.
    pub fn get(&self, slot: S) -> Option<u64> {
        let at = slot.place();
        (self.present & 1 << at != 0).then(|| self.values[at])
    }

    /// Sets a value, or marks it as missing.
    pub fn set(&mut self, slot: S, value: impl Into<Option<u64>>) {
        let at = slot.place();
        match value.into() {
            Some(value) => {
                self.present |= 1 << at;
                self.values[at] = value;
            }
            None => self.present &= !(1 << at),
        }
    }

    /// Sets a counter, which never decreases and never becomes missing again.
    pub fn raise(&mut self, slot: S, value: impl Into<Option<u64>>) {
        if let Some(value) = value.into() {
            let before = self.get(slot).unwrap_or(0);
            self.set(slot, before.max(value));
        }
    }

    /// Adds to a counter.
    pub fn add(&mut self, slot: S, more: u64) {
        let before = self.get(slot).unwrap_or(0);
        self.set(slot, before.saturating_add(more));
    }
}

impl<S: FieldSlot> Default for Values<S> {
    fn default() -> Values<S> {
        Values::new()
    }
}

impl<S: FieldSlot> fmt::Debug for Values<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = S::ALL.iter().filter_map(|slot| Some((slot, self.get(*slot)?)));
        f.debug_map().entries(known).finish()
    }
}
