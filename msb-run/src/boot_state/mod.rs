//! Start from memory: the state of a guest at its agent's hello, from which later guests of the same kind start.
//!
//! The first start of a kind ([`crate::engine::kind`]) boots a machine with placeholders in place of disks and network. At
//! the agent's hello the guest has loaded its kernel modules, and no driver has a disk, a network or a share. Then QEMU
//! writes the state of the devices into a pipe, the supervisor copies the guest's memory, and the machine is killed
//! ([`take`]). The file is flushed and renamed while the sandbox's own machine runs ([`store`]).
//!
//! Each start of the kind gives a new machine a memory of its own, filled from that file, and the state of the devices
//! by a pipe ([`restore`]). The machine never has the file open, so that no guest can change what another starts from. What
//! must differ between guests comes with the boot request: random numbers, host name, machine-id, clock, hardware
//! address. msb-run(1) lists what does not.
//!
//! Whatever is wrong with a file, the guest boots as if there were none, and a new one is made.

/// Whether a guest may start from memory.
mod mode;
/// QEMU's monitor.
mod monitor;
/// A machine that goes on from a state.
mod restore;
/// The files.
mod store;
/// The state of a machine that has booted.
mod take;

pub(crate) use mode::{BootArgs, may_start_from_memory};
pub(crate) use monitor::Monitor;
pub(crate) use restore::{Restore, plug_share};
pub(crate) use store::{BootState, Recording, Store};
pub(crate) use take::{Subject, take};
