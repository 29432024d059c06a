//! `msb image df`: what images take on the disk, each alone and together.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use libmsb::cli::{output, style};
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::images::Store;
use libmsb::state::lock::Lock;
use serde::Serialize;

use crate::arguments::{Df, Format};
use crate::garbage::{bytes_on_disk, names};
use crate::load::note;
use crate::prune::preview;
use crate::uses::{Needs, Users};

/// The store, as programs see it. Sizes are room on the disk.
#[derive(Debug, Serialize)]
struct Usage {
    images: Vec<ImageUsage>,
    total_bytes: u64,
    /// What `msb image prune` would free.
    reclaimable_bytes: u64,
    downloads_bytes: u64,
    /// States of guests that later guests start from, and initial RAM disks. Not among `total_bytes`.
    boot_bytes: u64,
}

/// An image under all its names.
#[derive(Debug, Serialize)]
struct ImageUsage {
    references: Vec<String>,
    digest: Digest,
    /// Sandboxes that were made from it.
    sandboxes: Vec<String>,
    size_bytes: u64,
    /// Of that, what other images have too.
    shared_bytes: u64,
    /// What it alone holds.
    unique_bytes: u64,
}

pub(crate) fn run(home: &Home, args: Df) -> Result<()> {
    let store = home.images();
    let usage = usage(home, &store)?;
    if args.format == Some(Format::Json) {
        return Ok(output::print_json(&usage)?);
    }
    if usage.images.is_empty() && usage.total_bytes + usage.boot_bytes == 0 {
        note("No images.");
        return Ok(());
    }
    print_table(&usage)
}

fn usage(home: &Home, store: &Store) -> Result<Usage> {
    // A reader makes nothing: without a store there is nothing to guard.
    let _lock = store
        .root()
        .is_dir()
        .then(|| Lock::shared(&store.lock()))
        .transpose()?;
    let users = Users::read(home, false)?;
    let mut images: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for digest in users.manifests() {
        if store.manifest_path(&digest).exists() {
            images.entry(digest).or_default();
        }
    }
    for record in store.records()? {
        images
            .entry(record.manifest_digest)
            .or_default()
            .push(record.reference);
    }
    let mut files: Vec<(Digest, Vec<PathBuf>)> = Vec::new();
    for digest in images.keys() {
        let needs =
            Needs::of(store, digest).with_context(|| format!("image {digest} is broken"))?;
        files.push((*digest, files_of(store, digest, &needs)));
    }
    let mut owners: HashMap<&Path, u32> = HashMap::new();
    for path in files.iter().flat_map(|(_, paths)| paths) {
        *owners.entry(path).or_default() += 1;
    }
    let mut rows: Vec<ImageUsage> = files
        .iter()
        .map(|(digest, paths)| {
            let (mut shared, mut unique) = (0, 0);
            for path in paths {
                match owners.get(path.as_path()) {
                    Some(1) => unique += bytes_on_disk(path),
                    _ => shared += bytes_on_disk(path),
                }
            }
            ImageUsage {
                references: images.get(digest).cloned().unwrap_or_default(),
                digest: *digest,
                sandboxes: users.of(digest).into_iter().map(str::to_owned).collect(),
                size_bytes: shared + unique,
                shared_bytes: shared,
                unique_bytes: unique,
            }
        })
        .collect();
    rows.sort_by(|a, b| a.references.cmp(&b.references));
    Ok(Usage {
        images: rows,
        total_bytes: total(store)?,
        reclaimable_bytes: preview(home, store)?.bytes,
        downloads_bytes: folder_bytes(&store.downloads())?,
        boot_bytes: folder_bytes(&home.boot_dir())?,
    })
}

/// Every file of an image, each once.
fn files_of(store: &Store, manifest: &Digest, needs: &Needs) -> Vec<PathBuf> {
    let mut paths = vec![
        store.manifest_path(manifest),
        store.config_path(&needs.config),
        store.disk_erofs_path(manifest),
        store.disk_vmdk_path(manifest),
    ];
    for diff_id in &needs.diff_ids {
        paths.push(store.layer_index_path(diff_id));
        paths.push(store.layer_data_path(diff_id));
    }
    paths.extend(needs.blobs.iter().map(|blob| store.blob_path(blob)));
    paths.sort();
    paths.dedup();
    paths
}

fn total(store: &Store) -> Result<u64> {
    let mut bytes = 0;
    for folder in [
        store.refs(),
        store.manifests(),
        store.configs(),
        store.layers(),
        store.blobs(),
        store.disks(),
        store.downloads(),
    ] {
        bytes += folder_bytes(&folder)?;
    }
    Ok(bytes)
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let names = names(folder)?;
    let sizes = names.iter().map(|name| bytes_on_disk(&folder.join(name)));
    Ok(sizes.sum())
}

fn print_table(usage: &Usage) -> Result<()> {
    let mut table = style::Table::new(&[
        "IMAGE",
        "DIGEST",
        ">SIZE",
        ">SHARED",
        ">UNIQUE",
        ">SANDBOXES",
    ]);
    for image in &usage.images {
        let short = |name: &String| {
            name.parse::<Reference>()
                .map_or(name.clone(), |reference| reference.familiar())
        };
        let names: Vec<String> = image.references.iter().map(short).collect();
        table.row([
            if names.is_empty() {
                "-".to_owned()
            } else {
                names.join(", ")
            },
            image.digest.short(),
            style::bytes(image.size_bytes),
            style::bytes(image.shared_bytes),
            style::bytes(image.unique_bytes),
            image.sandboxes.len().to_string(),
        ]);
    }
    table.print()?;
    Ok(output::print(&format!(
        "\n{} on the disk, and {} for starts; `msb image prune` would free {}",
        style::bytes(usage.total_bytes),
        style::bytes(usage.boot_bytes),
        style::bytes(usage.reclaimable_bytes)
    ))?)
}
