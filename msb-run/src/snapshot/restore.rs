//! Setting a stopped sandbox back to a snapshot.

use anyhow::Context;
use libmsb::cli::error::{Code, Failure, message};
use libmsb::events::{Event, EventKind};
use libmsb::state::guest::RootDisk;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::snapshots::Snapshot;
use libmsb::state::spec::Spec;
use libmsb::state::write::NewFile;
use libmsb::state::{Home, layout, write};

use super::digest_of;
use super::disk_copy::copy_disk;
use super::saved_memory::{link_or_copy, open_memory, verify_memory};
use crate::boot_state::BootState;
use crate::engine;

/// Replaces the disk of a stopped sandbox by a copy of a snapshot's. With the memory of the
/// snapshot, the sandbox continues from it at its next start.
pub(crate) fn restore(
    home: &Home,
    sandbox: &Sandbox,
    snapshot: &Snapshot,
    with_memory: bool,
) -> anyhow::Result<()> {
    let lock = sandbox.lock()?;
    let spec = sandbox.spec()?;
    let name = &sandbox.name;
    if spec.upper() != Some(&RootDisk::Managed) {
        let message = format!("the sandbox '{name}' has no managed disk");
        return Err(Failure::usage(message).into());
    }
    let image = &snapshot.manifest.image;
    if spec.root.image().map(|image| image.manifest_digest) != Some(image.manifest_digest) {
        return Err(Failure::wrong_state(format!(
            "the snapshot '{}' is of another image than the sandbox '{name}'",
            snapshot.name
        ))
        .hint(format!("create a sandbox from it: msb run --snapshot {}", snapshot.name))
        .into());
    }
    let digest = digest_of(&snapshot.manifest)?;
    let memory = with_memory.then(|| open_memory(snapshot)).transpose()?.flatten();
    if let Some(state) = &memory {
        check_machine(home, &spec, state)
            .map_err(|failure| failure.hint("restore its disk alone: --cold"))?;
        verify_memory(snapshot, state)?;
    }
    let path = sandbox.path(layout::UPPER);
    let new = NewFile::create(&path)?;
    copy_disk(&snapshot.open_disk()?, &new.file)
        .with_context(|| format!("cannot copy the disk of the snapshot '{}'", snapshot.name))?;
    // A disk that is larger than its specification is valid at every moment, the reverse is not.
    sandbox.modify(|spec| {
        spec.upper_mib = spec.upper_mib.max(size_mib(snapshot));
        spec.snapshot = Some(digest);
        Ok(())
    })?;
    // Memory never stays beside a disk of another moment.
    discard_memory(sandbox)?;
    new.commit()?;
    if let Some(path) = memory.and_then(|_| snapshot.memory()) {
        link_or_copy(&path, &sandbox.path(layout::MEMORY))?;
        write::sync_dir(&sandbox.dir)?;
    }
    sandbox.record(&Event {
        snapshot: Some(digest.to_string()),
        ..Event::now(EventKind::Restored, name.as_str())
    });
    drop(lock);
    Ok(())
}

/// Removes the memory from which a stopped sandbox would go on. Returns whether there was one.
pub(crate) fn discard_memory(sandbox: &Sandbox) -> anyhow::Result<bool> {
    let path = sandbox.path(layout::MEMORY);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        removed => {
            removed.with_context(|| format!("cannot remove '{}'", path.display()))?;
            write::sync_dir(&sandbox.dir)?;
            Ok(true)
        }
    }
}

/// Refuses memory from which a sandbox of this specification cannot go on.
pub(crate) fn check_machine(home: &Home, spec: &Spec, state: &BootState) -> Result<(), Failure> {
    let unsupported = |why: &str| {
        let message = format!("cannot go on from the saved memory: {why}");
        Failure::failed(message).code(Code::UnsupportedOperation)
    };
    if !spec.mounts.is_empty() {
        return Err(unsupported("the sandbox has mounts"));
    }
    if spec.net.tls.is_active() {
        return Err(unsupported("TLS is intercepted, and the guest does not trust the authority"));
    }
    let kind = engine::kind_of(home, spec).map_err(|error| unsupported(&message(&error)))?;
    if kind.is_none() {
        return Err(unsupported("the engine of the sandbox cannot"));
    }
    state.check_machine((spec.cpus, spec.memory_mib, spec.net.enabled), kind.as_ref())
}

/// Returns the size of a snapshot's disk, in MiB, rounded up.
pub(crate) fn size_mib(snapshot: &Snapshot) -> u64 {
    snapshot.manifest.upper.size_bytes.div_ceil(1 << 20)
}
