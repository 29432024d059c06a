//! Snapshots: a sandbox's disk, and on request its memory, at a point in time, from which sandboxes
//! start.
//!
//! The format is in [`libmsb::state::snapshot_manifest`], the directory in
//! [`libmsb::state::snapshots`]; man page msb-state(5).

/// Export and import of snapshots as one stream.
pub(crate) mod archive;
/// Creating a snapshot from a sandbox.
pub(crate) mod create;
/// Digests of disks.
pub(crate) mod data_digest;
/// Copies of disks that keep holes.
pub(crate) mod disk_copy;
/// Copies of a sandbox.
pub(crate) mod fork;
/// Freezing a running guest for a copy of its disk.
mod freeze;
/// Fuzz targets of archives and manifests.
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, reason = "a test fails by a panic")]
pub(crate) mod fuzz;
/// Keeping the blocks that a running guest overwrites.
mod kept_blocks;
/// The command-line option to start from a snapshot.
pub(crate) mod option;
/// Names, paths and digests of snapshots on the command line.
pub(crate) mod reference;
/// Setting a sandbox back to a snapshot.
pub(crate) mod restore;

/// The memory of a running sandbox, and of snapshots.
pub(crate) mod saved_memory;

/// The disk of a sandbox that a snapshot is taken of.
mod sandbox_disk;
/// Copies of the disk of a sandbox in any state.
mod still_disk;

/// Identity of a snapshot: the digest of its manifest.
mod identity;

pub(crate) use identity::digest_of;
