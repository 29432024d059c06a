//! Setting a stopped sandbox back to a snapshot.

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::events::{Event, EventKind};
use libmsb::state::guest::RootDisk;
use libmsb::state::layout;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::snapshots::Snapshot;
use libmsb::state::write::NewFile;

use super::digest_of;
use super::disk_copy::copy_disk;

/// Replaces the disk of a stopped sandbox by a copy of a snapshot's.
pub(crate) fn restore(sandbox: &Sandbox, snapshot: &Snapshot) -> anyhow::Result<()> {
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
    new.commit()?;
    sandbox.record(&Event {
        snapshot: Some(digest.to_string()),
        ..Event::now(EventKind::Restored, name.as_str())
    });
    drop(lock);
    Ok(())
}

/// Returns the size of a snapshot's disk, in MiB, rounded up.
pub(crate) fn size_mib(snapshot: &Snapshot) -> u64 {
    snapshot.manifest.upper.size_bytes.div_ceil(1 << 20)
}
