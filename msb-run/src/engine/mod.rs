//! Engines: what runs a virtual machine.
//!
//! An engine turns what a sandbox wants ([`Wanted`]) into a [`Plan`] that `msb-vmm` becomes. It finds what it needs on
//! the host and says what is missing; it starts nothing itself.

use std::os::fd::RawFd;
use std::path::PathBuf;

use libmsb::machine::{Disk, Plan};

/// The initial RAM disk: the agent, and the modules that the kernel needs.
mod initramfs;
/// The guest's kernel.
mod kernel;
/// Kernel modules, without what only costs time.
mod module;
/// The qemu engine.
mod qemu;
/// The empty writable disk.
pub(crate) mod upper;

pub(crate) use qemu::Qemu;

/// What a sandbox wants of its machine. An engine that cannot give all of it refuses.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Virtual processors.
    pub(crate) cpus: u32,
    /// Memory, in MiB.
    pub(crate) memory_mib: u32,
    /// Disks, by serial number.
    pub(crate) disks: Vec<Disk>,
    /// Descriptors that the machine inherits.
    pub(crate) descriptors: Descriptors,
}

/// Descriptors that the machine inherits; see [`Plan`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptors {
    /// The agent's port.
    pub(crate) agent: RawFd,
    /// The console.
    pub(crate) console: RawFd,
    /// The life pipe.
    pub(crate) life: RawFd,
}

/// What runs a virtual machine.
pub(crate) trait Engine {
    /// The word for it, in status files and on the command line.
    fn name(&self) -> &'static str;

    /// The plan of a machine. `attempt` counts from 0; after a boot that hung, an engine may offer another way. `None`:
    /// there is no further way.
    fn plan(&self, wanted: &Wanted, attempt: u32) -> anyhow::Result<Option<Plan>>;
}

/// The engine for this host.
pub(crate) fn choose(boot_dir: PathBuf) -> anyhow::Result<Box<dyn Engine>> {
    Ok(Box::new(Qemu::find(boot_dir)?))
}
