//! Creating a snapshot from a sandbox.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::Context;
use libmsb::digest::Digest;
use libmsb::events::{Event, EventKind};
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::snapshot_manifest::{
    DISK_FORMAT, DISK_FSTYPE, LABEL_DATA, LABEL_MEMORY, MANIFEST_VERSION, SnapshotDisk,
    SnapshotImage, SnapshotManifest,
};
use libmsb::state::snapshots::Snapshot;
use libmsb::state::spec::Spec;
use libmsb::state::{Home, layout, write};

use super::data_digest::data_digest;
use super::digest_of;
use super::saved_memory::seal;
use super::still_disk::{copy_still, copy_with_memory};

/// The request for a new snapshot.
#[derive(Debug)]
pub(crate) struct SnapshotRequest<'a> {
    /// Directory of the snapshot.
    pub(crate) target: &'a Path,
    /// Labels of the user.
    pub(crate) labels: BTreeMap<String, String>,
    /// Replaces an existing snapshot.
    pub(crate) force: bool,
    /// Records the digest of the disk's data.
    pub(crate) integrity: bool,
    /// Saves the memory of the running sandbox with its disk.
    pub(crate) memory: bool,
}

/// Creates a snapshot of a sandbox.
pub(crate) fn create_snapshot(
    home: &Home,
    sandbox: &Sandbox,
    request: SnapshotRequest<'_>,
) -> anyhow::Result<Snapshot> {
    let mut lock = None;
    let snapshot = home.snapshots().create(request.target, request.force, |directory| {
        let file = write::create_file(&directory.join(layout::SNAPSHOT_DISK))?;
        if request.memory {
            let memory = directory.join(layout::MEMORY);
            let spec = copy_with_memory(home, sandbox, &file, &memory)?;
            return manifest(&spec, &file, Some(seal(&memory)?), &request);
        }
        let still = copy_still(home, sandbox, &file)?;
        lock = still.lock;
        manifest(&still.spec, &file, None, &request)
    })?;
    let digest = digest_of(&snapshot.manifest)?;
    set_base(sandbox, digest)?;
    sandbox.record(&Event {
        snapshot: Some(digest.to_string()),
        ..Event::now(EventKind::Snapshotted, sandbox.name.as_str())
    });
    drop(lock);
    Ok(snapshot)
}

fn manifest(
    spec: &Spec,
    disk: &File,
    memory: Option<Digest>,
    request: &SnapshotRequest<'_>,
) -> anyhow::Result<SnapshotManifest> {
    let image = spec.root.image().context("the root is not an image")?;
    let mut labels = request.labels.clone();
    if request.integrity {
        labels.insert(LABEL_DATA.to_owned(), data_digest(disk)?.to_string());
    }
    labels.extend(memory.map(|digest| (LABEL_MEMORY.to_owned(), digest.to_string())));
    Ok(SnapshotManifest {
        schema: MANIFEST_VERSION,
        format: DISK_FORMAT.to_owned(),
        fstype: DISK_FSTYPE.to_owned(),
        image: SnapshotImage {
            reference: image.reference.clone(),
            manifest_digest: image.manifest_digest,
        },
        parent: spec.snapshot,
        created_at: now(),
        labels,
        upper: SnapshotDisk {
            file: layout::SNAPSHOT_DISK.to_owned(),
            size_bytes: disk.metadata()?.len(),
            integrity: None,
        },
        source_sandbox: Some(spec.name.clone()),
    })
}

/// Returns the current time in the form of a manifest, which microsandbox writes too.
fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.9f+00:00").to_string()
}

/// Records the snapshot that a sandbox is at: the parent of its next one.
pub(crate) fn set_base(sandbox: &Sandbox, snapshot: Digest) -> anyhow::Result<()> {
    sandbox.modify(|spec| {
        spec.snapshot = Some(snapshot);
        Ok(())
    })?;
    Ok(())
}
