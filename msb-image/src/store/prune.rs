//! Removal of unused images: those that no sandbox was created from, garbage, and boot states that
//! no guest has started from for a day.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Context, Result};
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::images::{RefRecord, Store};

use crate::filter::ImageFilter;
use crate::store::find::ImageDocuments;
use crate::store::garbage::{CollectMode, GarbageCollector, GarbageCounts};
use crate::store::live::{ImageUsers, LiveSet};

/// References to remove, and the files to keep.
pub(crate) struct PrunePlan {
    pub(crate) removed: Vec<RefRecord>,
    live: LiveSet,
    /// Directory of the boot states, if unused ones are removed.
    boot: Option<PathBuf>,
}

impl PrunePlan {
    /// Plans the removal of images that no sandbox needs and all filters match; with `dangling` only
    /// of files that no reference leads to.
    pub(crate) fn new(
        home: &Home,
        store: &Store,
        dangling: bool,
        filters: &[ImageFilter],
    ) -> Result<PrunePlan> {
        let users = ImageUsers::read(home, false)?;
        let mut removed = Vec::new();
        let mut named = HashSet::new();
        for record in store.records()? {
            let in_use = users.manifests().any(|manifest| manifest == record.manifest_digest);
            if dangling || in_use || !matches(store, &record, filters)? {
                named.insert(record.manifest_digest);
            } else {
                removed.push(record);
            }
        }
        let live = LiveSet::of(store, &named, users.manifests())?;
        // Boot states serve all images.
        let boot = (!dangling && filters.is_empty()).then(|| home.boot_dir());
        Ok(PrunePlan { removed, live, boot })
    }

    /// Limits the plan to the references that the user confirmed, with the manifests that they
    /// named then.
    pub(crate) fn limited_to(
        self,
        home: &Home,
        store: &Store,
        confirmed: &[RefRecord],
    ) -> Result<PrunePlan> {
        let removed: Vec<RefRecord> =
            self.removed.into_iter().filter(|record| confirmed.contains(record)).collect();
        let stays = |record: &RefRecord| !removed.contains(record);
        let records = store.records()?;
        let named = records.iter().filter(|record| stays(record));
        let named = named.map(|record| record.manifest_digest).collect();
        let live = LiveSet::of(store, &named, ImageUsers::read(home, false)?.manifests())?;
        Ok(PrunePlan { removed, live, boot: self.boot })
    }

    /// Removes, or only counts.
    pub(crate) fn execute(&self, store: &Store, mode: CollectMode) -> Result<GarbageCounts> {
        let mut garbage = GarbageCollector::new(store, mode);
        let references: Vec<Reference> =
            self.removed.iter().map(|record| record.reference.parse()).collect::<Result<_, _>>()?;
        garbage.collect_references(references.iter().map(|reference| store.ref_path(reference)))?;
        garbage.collect_orphans(&self.live)?;
        garbage.collect_downloads()?;
        if let Some(boot) = &self.boot {
            garbage.collect_boot_states(boot)?;
        }
        Ok(garbage.counts)
    }
}

/// Counts what `msb image prune` would remove now.
pub(crate) fn preview(home: &Home, store: &Store) -> Result<GarbageCounts> {
    PrunePlan::new(home, store, false, &[])?.execute(store, CollectMode::Count)
}

fn matches(store: &Store, record: &RefRecord, filters: &[ImageFilter]) -> Result<bool> {
    if filters.is_empty() {
        return Ok(true);
    }
    let documents = ImageDocuments::read(store, &record.manifest_digest)
        .with_context(|| format!("image '{}' is broken", record.reference))?;
    let process = documents.config.config.unwrap_or_default();
    let labels = process.labels.unwrap_or_default();
    Ok(filters.iter().all(|filter| filter.matches(record.created_at, &labels)))
}
