//! `msb image remove`: references go, and with them what nobody needs any more.

use std::collections::HashSet;
use std::io::IsTerminal;

use anyhow::Result;
use libmsb::cli::error::{Code, Failure};
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::images::Store;
use libmsb::state::lock::Lock;

use crate::arguments::Remove;
use crate::document::references;
use crate::garbage::{Garbage, Mode};
use crate::load::note;
use crate::uses::{Live, Users};

pub(crate) fn no_such_image(reference: &Reference) -> anyhow::Error {
    Failure::not_found(format!("there is no image '{}'", reference.familiar()))
        .code(Code::ImageNotFound)
        .hint("`msb images` lists what is there")
        .into()
}

pub(crate) fn run(home: &Home, args: Remove) -> Result<()> {
    let references = references(&args.references)?;
    let store = home.images();
    if !store.refs().exists() {
        return references
            .first()
            .map_or(Ok(()), |reference| Err(no_such_image(reference)));
    }
    let _lock = lock_alone(&store)?;
    let users = Users::read(home, args.force)?;
    // Nothing goes unless all of them may go.
    let mut manifests = HashSet::new();
    for reference in &references {
        let record = store
            .record(reference)?
            .ok_or_else(|| no_such_image(reference))?;
        if !args.force {
            check_unused(
                &users,
                &store,
                reference,
                &record.manifest_digest,
                &references,
            )?;
        }
        manifests.insert(record.manifest_digest);
    }
    let mut garbage = Garbage::new(&store, Mode::Remove);
    garbage.references(references.iter().map(|reference| store.ref_path(reference)))?;
    if !args.quiet {
        for reference in &references {
            note(&format!("Removed {reference}"));
        }
    }
    // By force an image goes although it is pinned.
    let pinned = users
        .manifests()
        .filter(|digest| !manifests.contains(digest));
    let live = Live::of(&store, &named(&store)?, pinned)?;
    garbage.orphans(&live)
}

/// The manifests that references name.
pub(crate) fn named(store: &Store) -> Result<HashSet<Digest>> {
    let records = store.records()?;
    Ok(records
        .iter()
        .map(|record| record.manifest_digest)
        .collect())
}

/// Takes the store's lock alone, and waits for loads, pulls and starts that go on.
pub(crate) fn lock_alone(store: &Store) -> Result<Lock> {
    if let Some(lock) = Lock::try_exclusive(&store.lock())? {
        return Ok(lock);
    }
    if std::io::stderr().is_terminal() {
        note("Waiting for others who use the image store");
    }
    Lock::exclusive(&store.lock())
}

/// An image that another name keeps may lose this one.
fn check_unused(
    users: &Users,
    store: &Store,
    reference: &Reference,
    manifest: &Digest,
    going: &[Reference],
) -> Result<()> {
    let goes = |name: &str| going.iter().any(|reference| reference.to_string() == name);
    let kept = store
        .records()?
        .iter()
        .any(|other| other.manifest_digest == *manifest && !goes(&other.reference));
    let names = users.of(manifest);
    if kept || names.is_empty() {
        return Ok(());
    }
    let text = format!(
        "image '{}' is used by: {}",
        reference.familiar(),
        names.join(", ")
    );
    Err(Failure::wrong_state(text)
        .code(Code::ImageInUse)
        .hint("remove these sandboxes first (`msb rm`), or use --force")
        .into())
}
