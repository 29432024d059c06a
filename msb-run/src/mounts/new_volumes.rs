//! Volumes that a new sandbox mounts: the missing ones are created with it.

use std::collections::BTreeMap;

use anyhow::Context;
use libmsb::state::Home;
use libmsb::state::lock::Lock;
use libmsb::state::mounts::{Mount, Source};
use libmsb::state::volumes::{
    VOLUME_VERSION, Volume, VolumeKind, VolumeName, VolumeRecord, Volumes,
};

use crate::engine::upper;

/// Volumes of a sandbox that is being created. They cannot be removed meanwhile. Without
/// [`SandboxVolumes::keep`], those that were created for the sandbox and are still empty are
/// removed again.
#[derive(Debug)]
#[must_use]
pub(crate) struct SandboxVolumes {
    home: Home,
    created: Vec<Volume>,
    locks: Vec<Lock>,
}

impl SandboxVolumes {
    /// Creates the volumes that do not exist yet, as directories.
    pub(crate) fn create(home: &Home, mounts: &[Mount]) -> anyhow::Result<SandboxVolumes> {
        let mut volumes =
            SandboxVolumes { home: home.clone(), created: Vec::new(), locks: Vec::new() };
        for mount in mounts {
            if let Source::Volume { name } = &mount.source {
                volumes.add(name)?;
            }
        }
        Ok(volumes)
    }

    fn add(&mut self, name: &VolumeName) -> anyhow::Result<()> {
        let volumes = self.home.volumes();
        if !volumes.named(name).dir.is_dir() {
            match create_volume(&volumes, name, (VolumeKind::Dir, None), BTreeMap::new()) {
                // Another process has created it meanwhile.
                Err(_) if volumes.named(name).dir.is_dir() => {}
                created => self.created.push(created?),
            }
        }
        // A volume that a sandbox writes to alone is locked, and not removed for that reason.
        self.locks.extend(volumes.named(name).try_lock_shared()?);
        Ok(())
    }

    /// Unlocks the volumes for the start of the sandbox, whose specification names them from now
    /// on.
    pub(crate) fn unlock(&mut self) {
        self.locks.clear();
    }

    /// Removes the volumes that were created, even if the guest has written to them, unless another
    /// sandbox uses them.
    pub(crate) fn discard(mut self) {
        self.locks.clear();
        for volume in std::mem::take(&mut self.created) {
            // It stays if a sandbox cannot be read, which may use it.
            let _ = volume.remove_if(|| Ok(users(&self.home, &volume.name)?.is_empty()));
        }
    }

    /// Keeps the volumes that were created.
    pub(crate) fn keep(mut self) {
        self.created.clear();
    }
}

impl Drop for SandboxVolumes {
    fn drop(&mut self) {
        self.locks.clear();
        for volume in &self.created {
            let is_unused = || {
                let is_empty = std::fs::read_dir(volume.data())?.next().is_none();
                Ok(is_empty && users(&self.home, &volume.name)?.is_empty())
            };
            // It stays if anything uses it, or cannot be read.
            let _ = volume.remove_if(is_unused);
        }
    }
}

/// Creates a volume. Only a disk has a size.
pub(crate) fn create_volume(
    volumes: &Volumes,
    name: &VolumeName,
    (kind, size_mib): (VolumeKind, Option<u64>),
    labels: BTreeMap<String, String>,
) -> anyhow::Result<Volume> {
    let record = VolumeRecord {
        version: VOLUME_VERSION,
        name: name.clone(),
        kind,
        size_mib,
        created_at: jiff::Timestamp::now(),
        labels,
        other: serde_json::Map::new(),
    };
    volumes.create(&record, |file| {
        let size_mib = size_mib.context("a disk needs a size")?;
        upper::format(file, size_mib)
            .with_context(|| format!("cannot create the disk of the volume '{name}'"))
    })
}

/// Returns the sandboxes whose specification names the volume. Ignores unreadable sandboxes.
pub(crate) fn users(home: &Home, name: &VolumeName) -> anyhow::Result<Vec<String>> {
    let entries = home.sandboxes().list()?;
    let mounts_it = |entry: &libmsb::state::sandboxes::SandboxEntry| {
        entry.seen.as_ref().is_ok_and(|seen| {
            let of = |source: &Source| matches!(source, Source::Volume { name: of } if of == name);
            seen.spec.mounts.iter().any(|mount| of(&mount.source))
        })
    };
    let users = entries.into_iter().filter(mounts_it);
    Ok(users.map(|entry| entry.name).collect())
}
