//! `msb image remove`: removes references, and the files that only they need.

use std::collections::HashSet;

use anyhow::Result;
use libmsb::cli::error::{self as cli_error, Code, Failure, ReportedExit};
use libmsb::cli::{exit, output};
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::image_name::ImageName;
use libmsb::state::images::Store;

use crate::args::Remove;
use crate::document::image_names;
use crate::store::find::named;
use crate::store::garbage::{CollectMode, GarbageCollector};
use crate::store::live::{ImageUsers, LiveSet, UserKind};
use crate::store::open::lock_exclusively;

/// Removes each image that can be removed, in the order of the names, and reports the others. The
/// exit code is 1 if any failed; a single name keeps the code of its error.
pub(crate) fn run(home: &Home, args: Remove) -> Result<()> {
    let names = image_names(&args.references)?;
    let store = home.images();
    // Nothing is created for names that cannot be there.
    let _lock = store.refs().exists().then(|| lock_exclusively(&store)).transpose()?;
    let mut removal = ImageRemoval {
        store: &store,
        users: ImageUsers::read(home, args.force)?,
        garbage: GarbageCollector::new(&store, CollectMode::Remove),
        force: args.force,
        manifests: HashSet::new(),
    };
    let mut any_failed = false;
    for name in &names {
        match removal.remove(name) {
            Ok(references) if !args.quiet => {
                references.iter().try_for_each(output::print)?;
            }
            Ok(_) => {}
            Err(error) if names.len() == 1 => return Err(error),
            Err(error) => {
                cli_error::print_failure(cli_error::program(), &error);
                any_failed = true;
            }
        }
    }
    removal.finish()?;
    if any_failed { Err(ReportedExit(exit::FAILED).into()) } else { Ok(()) }
}

/// A removal of images under the store's exclusive lock.
struct ImageRemoval<'a> {
    store: &'a Store,
    users: ImageUsers,
    garbage: GarbageCollector<'a>,
    force: bool,
    /// Manifests of removed references.
    manifests: HashSet<Digest>,
}

impl ImageRemoval<'_> {
    /// Removes the references of a name: one, or with `force` all of an ID. Returns them.
    fn remove(&mut self, name: &ImageName) -> Result<Vec<Reference>> {
        let records = self.store.named(name)?;
        let Some(manifest) = records.first().map(|record| record.manifest_digest) else {
            return Err(name.not_found().into());
        };
        let references: Vec<Reference> =
            records.iter().map(|record| record.reference.parse()).collect::<Result<_, _>>()?;
        if !self.force {
            if references.len() > 1 {
                return Err(several_names(name, &references).into());
            }
            check_unused(&self.users, self.store, name, &manifest, &references)?;
        }
        let paths = references.iter().map(|reference| self.store.ref_path(reference));
        self.garbage.collect_references(paths)?;
        self.manifests.insert(manifest);
        Ok(references)
    }

    /// Removes the files that only removed images need.
    fn finish(mut self) -> Result<()> {
        if self.manifests.is_empty() {
            return Ok(());
        }
        // `--force` removes an image that a sandbox pins.
        let pinned = self.users.manifests().filter(|digest| !self.manifests.contains(digest));
        let live = LiveSet::of(self.store, &named(self.store)?, pinned)?;
        self.garbage.collect_orphans(&live)
    }
}

fn several_names(name: &ImageName, references: &[Reference]) -> Failure {
    let shown: Vec<String> = references.iter().map(Reference::familiar).collect();
    Failure::wrong_state(format!("the image '{name}' has several names: {}", shown.join(", ")))
        .hint("remove it by name, or use --force to remove all of them")
}

/// Checks that no sandbox or snapshot needs the image, unless another reference keeps it.
fn check_unused(
    users: &ImageUsers,
    store: &Store,
    name: &ImageName,
    manifest: &Digest,
    removed: &[Reference],
) -> Result<()> {
    let goes = |name: &str| removed.iter().any(|reference| reference.to_string() == name);
    let kept = store
        .records()?
        .iter()
        .any(|other| other.manifest_digest == *manifest && !goes(&other.reference));
    let sandboxes = users.of(UserKind::Sandbox, manifest);
    let snapshots = users.of(UserKind::Snapshot, manifest);
    let image = name.familiar();
    let (text, hint) = match (kept, sandboxes.is_empty(), snapshots.is_empty()) {
        (true, _, _) | (_, true, true) => return Ok(()),
        (_, false, _) => (
            format!("image '{image}' is used by: {}", sandboxes.join(", ")),
            "remove these sandboxes first (`msb rm`), or use --force",
        ),
        (_, true, false) => (
            format!("image '{image}' is used by the snapshots: {}", snapshots.join(", ")),
            "remove these snapshots first (`msb snapshot remove`), or use --force",
        ),
    };
    Err(Failure::wrong_state(text).code(Code::ImageInUse).hint(hint).into())
}
