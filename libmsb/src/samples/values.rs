//! What a page holds: values by name, each there or missing.

use std::fmt;
use std::marker::PhantomData;

use super::VALUES_MAX;

/// The name of a value: its place in a page.
pub trait Slot: Copy + fmt::Debug + 'static {
    /// Every name, in the order of the places.
    const ALL: &'static [Self];
    /// The place, below [`VALUES_MAX`].
    fn place(self) -> usize;
}

/// Declares the names of a page's values. Places are part of the format: new ones go to the end.
macro_rules! slots {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $slot:ident,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $slot,)* }

        impl Slot for $name {
            const ALL: &'static [$name] = &[$($name::$slot,)*];

            fn place(self) -> usize {
                self as usize
            }
        }

        const _: () = assert!($name::ALL.len() <= VALUES_MAX);
    };
}

slots! {
    /// The values of the supervisor's page. A counter begins at zero with the machine's start and never goes back.
    Field {
        /// When the machine was started: nanoseconds since 1970.
        StartedUnixNs,
        /// The same, in nanoseconds since the host's boot.
        StartedBootNs,
        /// The host's boot: upper half of the kernel's boot id.
        BootIdHigh,
        /// Lower half.
        BootIdLow,
        /// The sandbox: microseconds since 1970 of its creation, which no other sandbox of the name has.
        SandboxId,
        /// Process of the supervisor.
        SupervisorPid,
        /// Process of the virtual machine.
        VmmPid,
        /// Virtual processors.
        Cpus,
        /// Memory that the guest was given, in bytes.
        MemoryLimitBytes,
        /// Time between two samples now, in milliseconds.
        IntervalMs,
        /// When the host's side was looked at: nanoseconds since the host's boot.
        HostAtNs,
        /// Counter: CPU time of the threads that are virtual processors, in nanoseconds.
        VcpuNs,
        /// CPU time of those threads over the last interval, in millionths of one processor.
        VcpuPpm,
        /// Counter: CPU time of the supervisor and all below it, in nanoseconds.
        HostCpuNs,
        /// Resident memory of the machine's process and its helpers, in bytes.
        ResidentBytes,
        /// Counter: voluntary switches of all their threads.
        Wakeups,
        /// What the writable disk takes on the host, in bytes.
        UpperAllocatedBytes,
        /// When the guest's side arrived: nanoseconds since the host's boot.
        GuestAtNs,
        /// Counter: CPU time as the guest counts it, in nanoseconds; neither idle, nor waiting, nor stolen.
        GuestCpuNs,
        /// Memory that the guest's kernel manages, in bytes.
        MemoryTotalBytes,
        /// Memory that the guest could still give to programs, in bytes.
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
        /// Counter: bytes that it wrote to them.
        DiskWrittenBytes,
        /// Counter: bytes that the guest's network interface received.
        GuestRxBytes,
        /// Counter: bytes that it sent.
        GuestTxBytes,
        /// Counter: packets that it received.
        GuestRxPackets,
        /// Counter: packets that it sent.
        GuestTxPackets,
        /// Processes in the guest, its kernel's own not counted.
        Processes,
        /// Counter: processes that the guest's kernel killed for lack of memory.
        OomKills,
        /// Size of the file system on the writable disk, in bytes.
        UpperSizeBytes,
        /// What is used of it, in bytes.
        UpperUsedBytes,
    }
}

slots! {
    /// The values of msb-net's page: what went through it. All are counters but what is open, and the time.
    NetField {
        /// Bytes of frames to the guest.
        RxBytes,
        /// Bytes of frames from the guest.
        TxBytes,
        /// Frames to the guest.
        RxPackets,
        /// Frames from the guest.
        TxPackets,
        /// Connections and flows that were opened, by either side.
        Connections,
        /// Connections and flows that the policy refused.
        Denied,
        /// Connections and flows that are open now.
        Open,
        /// Connections through published ports that are open now.
        PublishedOpen,
        /// When a published port was used last, by a connection that came or went or by a datagram: nanoseconds since the
        /// host's boot, and 0 when it never was.
        PublishedAtNs,
    }
}

/// The values of a page.
#[derive(Clone)]
pub struct Values<S: Slot> {
    pub(super) present: u64,
    pub(super) values: [u64; VALUES_MAX],
    names: PhantomData<S>,
}

impl<S: Slot> Values<S> {
    /// Nothing is known.
    pub fn new() -> Values<S> {
        Values::from_parts(0, [0; VALUES_MAX])
    }

    pub(super) fn from_parts(present: u64, values: [u64; VALUES_MAX]) -> Values<S> {
        Values {
            present,
            values,
            names: PhantomData,
        }
    }

    /// A value, if it is known.
    pub fn get(&self, slot: S) -> Option<u64> {
        let at = slot.place();
        (self.present & 1 << at != 0).then(|| self.values[at])
    }

    /// Sets a value, or says that it is not known.
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

    /// Sets a counter, which never goes back: not when it is said to, and not when it is not known for a while.
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

impl<S: Slot> Default for Values<S> {
    fn default() -> Values<S> {
        Values::new()
    }
}

impl<S: Slot> fmt::Debug for Values<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = S::ALL
            .iter()
            .filter_map(|slot| Some((slot, self.get(*slot)?)));
        f.debug_map().entries(known).finish()
    }
}
