//! Copies of the disk of a sandbox in any state, each at one moment.
//!
//! A stopped sandbox is locked during the copy. A running guest is frozen for the moment of a
//! reflink. On a file system without them, the engine qemu keeps the blocks that the guest
//! overwrites from a moment on, and the data is copied while the guest runs. With another engine
//! the guest is frozen for the copy, which is bounded: nothing is frozen if the data exceeds the
//! bound.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, ensure};
use libmsb::cli::error::{Code, Failure};
use libmsb::cli::style::bytes;
use libmsb::state::Home;
use libmsb::state::lock::Lock;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::spec::Spec;
use msb_wire::handshake::operation;

use super::disk_copy::{DataRanges, copy_data, copy_disk, copy_ranges, share_blocks};
use super::freeze::FrozenGuest;
use super::kept_blocks::KeptBlocks;
use super::sandbox_disk::open_disk;
use super::saved_memory::SavedMemory;
use crate::verbs::connect;

/// The engine that keeps overwritten blocks.
const ENGINE_WITH_BACKUP: &str = "qemu";
/// Bytes of a MiB.
const MIB: u64 = 1 << 20;
/// Longest time that a guest is frozen, in milliseconds.
const FREEZE_MS: u32 = 10_000;
/// Most data that is copied while a guest is frozen. A slow disk writes 50 MB/s.
const FROZEN_BYTES_MAX: u64 = 256 << 20;

/// A copy of a sandbox's disk.
pub(super) struct StillDisk {
    /// The specification of the sandbox.
    pub(super) spec: Spec,
    /// The lock of a stopped sandbox.
    pub(super) lock: Option<Lock>,
}

/// Copies the disk of a sandbox into an empty file and flushes it.
pub(super) fn copy_still(home: &Home, sandbox: &Sandbox, to: &File) -> anyhow::Result<StillDisk> {
    if let Some(lock) = sandbox.try_lock()? {
        let spec = sandbox.spec()?;
        copy_disk(&open_disk(sandbox, &spec)?, to)?;
        return Ok(StillDisk { spec, lock: Some(lock) });
    }
    let spec = sandbox.spec()?;
    let disk = open_disk(sandbox, &spec)?;
    if can_share(&disk, to)? {
        let is_shared = frozen(home, sandbox, || share_blocks(&disk, to))?;
        ensure!(is_shared, "the file system made no reflink");
    } else if keeps_blocks(home, sandbox)? {
        copy_beside(home, sandbox, &disk, to)?;
    } else {
        check_bound(sandbox, &disk)?;
        frozen(home, sandbox, || copy_data(&disk, to))?;
    }
    to.sync_all().context("cannot flush the copy of the disk")?;
    Ok(StillDisk { spec, lock: None })
}

/// Copies the disk of a running sandbox into an empty file, and puts its memory at a path. Both are
/// of one moment, and the guest stands meanwhile.
pub(super) fn copy_with_memory(
    home: &Home,
    sandbox: &Sandbox,
    to: &File,
    memory: &Path,
) -> anyhow::Result<Spec> {
    let name = &sandbox.name;
    if let Some(lock) = sandbox.try_lock()? {
        drop(lock);
        let message = format!("the sandbox '{name}' is not running, and has no memory");
        return Err(Failure::wrong_state(message)
            .code(Code::SandboxNotRunning)
            .hint(format!("start it: msb start {name}; or omit --memory"))
            .into());
    }
    let spec = sandbox.spec()?;
    let disk = open_disk(sandbox, &spec)?;
    connect(home, name)?.peer().require(operation::MEMORY).map_err(|error| {
        Failure::failed(error.to_string())
            .code(Code::UnsupportedOperation)
            .hint(format!("restart it: msb restart {name}"))
    })?;
    check_space_for(sandbox, &disk, data_bytes(&disk)? + u64::from(spec.memory_mib) * MIB)?;
    let saved = SavedMemory::save(home, sandbox)?;
    saved.link(memory)?;
    if !share_blocks(&disk, to)? {
        copy_data(&disk, to)?;
    }
    saved.end(home, sandbox)?;
    to.sync_all().context("cannot flush the copy of the disk")?;
    Ok(spec)
}

/// Does something while the guest of a running sandbox is frozen.
fn frozen<T>(
    home: &Home,
    sandbox: &Sandbox,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let guest = FrozenGuest::freeze(home, &sandbox.name, FREEZE_MS)
        .with_context(|| format!("cannot freeze the guest of '{}'", sandbox.name))?;
    let result = work()?;
    guest.thaw()?;
    Ok(result)
}

/// Returns whether the engine of a running sandbox keeps blocks that the guest overwrites. A
/// supervisor of an older version cannot ask it to.
fn keeps_blocks(home: &Home, sandbox: &Sandbox) -> anyhow::Result<bool> {
    let is_able = sandbox.status()?.engine.as_deref() == Some(ENGINE_WITH_BACKUP);
    Ok(is_able && connect(home, &sandbox.name)?.peer().require(operation::BACKUP).is_ok())
}

/// Copies the disk of one moment while the guest runs: what was on it at that moment, then over it
/// the old contents of the blocks that were overwritten meanwhile.
fn copy_beside(home: &Home, sandbox: &Sandbox, disk: &File, to: &File) -> anyhow::Result<()> {
    check_space(sandbox, disk)?;
    let (kept, ranges) = frozen(home, sandbox, || {
        let kept = KeptBlocks::start(home, sandbox)?;
        let ranges: Vec<_> = DataRanges::of(disk).collect::<anyhow::Result<_>>()?;
        Ok((kept, ranges))
    })?;
    copy_ranges(disk, to, ranges.into_iter().map(Ok))?;
    let kept = kept.end(home, sandbox)?;
    copy_data(&kept, to)
}

/// Refuses a copy that could fill the disk of the host: the guest could not write then.
fn check_space(sandbox: &Sandbox, disk: &File) -> anyhow::Result<()> {
    check_space_for(sandbox, disk, 2 * data_bytes(disk)?)
}

fn check_space_for(sandbox: &Sandbox, disk: &File, needed: u64) -> anyhow::Result<()> {
    let space = rustix::fs::fstatvfs(disk).context("cannot read the free space of the disk")?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if needed <= free {
        return Ok(());
    }
    let (name, needed, free) = (&sandbox.name, bytes(needed), bytes(free));
    Err(Failure::failed(format!(
        "a copy of the running sandbox '{name}' takes up to {needed}, and {free} are free"
    ))
    .hint(format!("stop it first: msb stop {name}"))
    .into())
}

/// Returns the number of bytes of a sparse file that are not in holes.
fn data_bytes(disk: &File) -> anyhow::Result<u64> {
    DataRanges::of(disk).map(|range| range.map(|(start, end)| end - start)).sum()
}

/// Returns whether the file system shares blocks between the files, by trying it.
fn can_share(from: &File, to: &File) -> anyhow::Result<bool> {
    let shares = share_blocks(from, to)?;
    to.set_len(0).context("cannot write the copy of the disk")?;
    Ok(shares)
}

fn check_bound(sandbox: &Sandbox, disk: &File) -> anyhow::Result<()> {
    let data = data_bytes(disk)?;
    if data <= FROZEN_BYTES_MAX {
        return Ok(());
    }
    let (name, data, most) = (&sandbox.name, bytes(data), bytes(FROZEN_BYTES_MAX));
    Err(Failure::wrong_state(format!(
        "the disk of the running sandbox '{name}' has {data} of data, and the file system has no \
         reflinks: at most {most} are copied while a guest waits"
    ))
    .code(Code::SnapshotSandboxRunning)
    .hint(format!("stop it first: msb stop {name}"))
    .into())
}
