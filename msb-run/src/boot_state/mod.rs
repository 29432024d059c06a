//! Start from memory: a saved VM state (boot state) from which later guests of the same kind start
//! instead of a cold boot.
//!
//! The first start of a kind ([`crate::engine::kind`]) boots a VM with placeholders in place of
//! disks and network. When the agent sends its hello, the guest has loaded its kernel modules, and
//! no driver has bound a disk, a network or a share. QEMU then writes the state of the devices into
//! a pipe, the supervisor copies the guest's memory, and the VM is killed ([`take_state`]). The
//! file is flushed and renamed while the VM of the sandbox runs ([`store`]).
//!
//! Each later start of the kind fills the private memory of a new VM from that file and passes the
//! state of the devices through a pipe ([`restore`]). The VM process never has the file open, so no
//! guest can change what another guest starts from. The boot request carries what must differ
//! between guests: random numbers, host name, machine-id, clock, hardware address. msb-run(1) lists
//! what does not differ.
//!
//! A damaged file is ignored: the guest boots as if there were none, and a new file is made.

/// The setting that allows or forbids starts from memory.
mod mode;
/// The client of QEMU's monitor (QMP).
mod qmp;
/// Recording the state of a VM that has booted.
mod record;
/// Restoring a VM from a boot state.
mod restore;
/// The memory of running guests.
mod saved;
/// The boot state files.
mod store;

pub(crate) use mode::{BootArgs, may_start_from_memory};
pub(crate) use qmp::QmpMonitor;
pub(crate) use record::{StateMetadata, continue_saved, save_state, take_state};
pub(crate) use restore::{StateRestore, plug_share};
pub(crate) use saved::{SavedCommand, SavedGuest, SavedJob};
pub(crate) use store::{BootState, BootStateStore, StateRecording};
