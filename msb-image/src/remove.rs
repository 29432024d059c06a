//! `msb image remove`: references go, and with them what nobody needs any more.

use std::collections::HashSet;
use std::io::IsTerminal;
use std::path::Path;

use anyhow::{Context, Result};
use libmsb::cli::error::Failure;
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use libmsb::state::images::Store;
use libmsb::state::lock::Lock;
use libmsb::state::{Home, layout, write};

use crate::arguments::Remove;
use crate::document::{Config, Document};
use crate::load::note;
use crate::store::{read_document, sweep};

pub(crate) fn no_such_image(reference: &Reference) -> anyhow::Error {
    Failure::not_found(format!("there is no image '{}'", reference.familiar()))
        .hint("`msb images` lists what is there")
        .into()
}

pub(crate) fn run(home: &Home, args: Remove) -> Result<()> {
    let references: Vec<Reference> = args
        .references
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let store = home.images();
    if !store.refs().exists() {
        return references
            .first()
            .map_or(Ok(()), |reference| Err(no_such_image(reference)));
    }
    let _lock = lock_alone(&store)?;
    let users = Users::read(home, args.force)?;
    // Nothing goes unless all of them may go.
    for reference in &references {
        let record = store
            .record(reference)?
            .ok_or_else(|| no_such_image(reference))?;
        if !args.force {
            users.check_unused(&store, reference, &record.manifest_digest, &references)?;
        }
    }
    let mut forced = HashSet::new();
    for reference in &references {
        // The same name may have been given twice.
        let Some(record) = store.record(reference)? else {
            continue;
        };
        forced.insert(record.manifest_digest);
        remove_file(&store.ref_path(reference))?;
        if !args.quiet {
            note(&format!("Removed {reference}"));
        }
    }
    write::sync_dir(&store.refs())?;
    remove_orphans(&store, &users, &forced)
}

fn lock_alone(store: &Store) -> Result<Lock> {
    if let Some(lock) = Lock::try_exclusive(&store.lock())? {
        return Ok(lock);
    }
    if std::io::stderr().is_terminal() {
        note("Waiting for others who use the image store");
    }
    Lock::exclusive(&store.lock())
}

/// Which sandboxes were made from which manifests.
struct Users(Vec<(String, Digest)>);

impl Users {
    /// A sandbox that cannot be read may need anything: then nothing is removed, unless by force.
    fn read(home: &Home, force: bool) -> Result<Users> {
        let mut users = Vec::new();
        for sandbox in home.sandboxes().list()? {
            match sandbox.seen {
                Ok(seen) => users.push((sandbox.name, seen.spec.image.manifest_digest)),
                Err(_) if force => {}
                Err(error) => {
                    let failure = Failure::wrong_state(format!(
                        "sandbox '{}' is broken, and may need any image",
                        sandbox.name
                    ))
                    .hint("remove the sandbox first, or use --force");
                    return Err(error.context(failure));
                }
            }
        }
        Ok(Users(users))
    }

    /// An image that another name keeps may lose this one.
    fn check_unused(
        &self,
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
        let names: Vec<&str> = self
            .0
            .iter()
            .filter(|(_, used)| used == manifest)
            .map(|(name, _)| name.as_str())
            .collect();
        if kept || names.is_empty() {
            return Ok(());
        }
        let text = format!(
            "image '{}' is used by: {}",
            reference.familiar(),
            names.join(", ")
        );
        Err(Failure::wrong_state(text)
            .hint("remove these sandboxes first (`msb rm`), or use --force")
            .into())
    }
}

/// Removes what no reference and no sandbox leads to. What cannot be read stops it: nothing is guessed.
fn remove_orphans(store: &Store, users: &Users, forced: &HashSet<Digest>) -> Result<()> {
    let named: HashSet<Digest> = store
        .records()?
        .iter()
        .map(|record| record.manifest_digest)
        .collect();
    let pinned = users
        .0
        .iter()
        .map(|(_, digest)| *digest)
        .filter(|digest| !forced.contains(digest));
    let manifests: HashSet<Digest> = named.iter().copied().chain(pinned).collect();
    let (mut configs, mut layers) = (HashSet::new(), HashSet::new());
    for manifest in &manifests {
        // A sandbox may pin what was removed by force before.
        if !store.manifest_path(manifest).exists() && !named.contains(manifest) {
            continue;
        }
        let (config, diff_ids) = needs(store, manifest)?;
        configs.insert(config);
        layers.extend(diff_ids);
    }
    // Top down: what is left after a kill is an orphan and goes next time.
    keep(
        &store.disks(),
        &manifests,
        &[layout::DISK_VMDK, layout::DISK_EROFS],
    )?;
    keep(&store.manifests(), &manifests, &[""])?;
    keep(&store.configs(), &configs, &[""])?;
    keep(
        &store.layers(),
        &layers,
        &[layout::LAYER_INDEX, layout::LAYER_DATA],
    )?;
    sweep(store);
    Ok(())
}

fn needs(store: &Store, manifest: &Digest) -> Result<(Digest, Vec<Digest>)> {
    let document = Document::parse(&read_document(&store.manifest_path(manifest), manifest)?)?;
    let config = document
        .config
        .context("a manifest without configuration")?
        .digest;
    let parsed = Config::parse(&read_document(&store.config_path(&config), &config)?)?;
    Ok((config, parsed.rootfs.diff_ids))
}

/// Removes the files of a folder that are named by a digest that is not to be kept. Foreign names are left alone.
fn keep(folder: &Path, digests: &HashSet<Digest>, suffixes: &[&str]) -> Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot list '{}'", folder.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    for suffix in suffixes {
        for name in &names {
            let digest = name
                .strip_suffix(suffix)
                .and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
            if digest.is_some_and(|digest| !digests.contains(&digest)) {
                remove_file(&folder.join(name))?;
            }
        }
    }
    write::sync_dir(folder)
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove '{}'", path.display()))
        }
        _ => Ok(()),
    }
}
