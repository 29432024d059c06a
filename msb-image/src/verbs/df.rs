//! `msb image df`: disk space of images, alone and shared.

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

use crate::args::{Df, OutputFormat};
use crate::report::print_note;
use crate::store::garbage::{bytes_on_disk, names};
use crate::store::live::{ImageContents, ImageUsers, UserKind};
use crate::store::prune::preview;

/// Disk space of the store, as JSON.
#[derive(Debug, Serialize)]
struct StoreUsage {
    images: Vec<ImageUsage>,
    total_bytes: u64,
    /// Bytes that `msb image prune` would free.
    reclaimable_bytes: u64,
    downloads_bytes: u64,
    /// Boot states and initramfs files. Not part of `total_bytes`.
    boot_bytes: u64,
}

/// Disk space of an image under all its names.
#[derive(Debug, Serialize)]
struct ImageUsage {
    references: Vec<String>,
    digest: Digest,
    /// Sandboxes created from it.
    sandboxes: Vec<String>,
    /// Snapshots of such sandboxes.
    snapshots: Vec<String>,
    size_bytes: u64,
    /// Bytes shared with other images.
    shared_bytes: u64,
    /// Bytes of this image only.
    unique_bytes: u64,
}

pub(crate) fn run(home: &Home, args: Df) -> Result<()> {
    let store = home.images();
    let usage = usage(home, &store)?;
    if args.format == Some(OutputFormat::Json) {
        return Ok(output::print_json(&usage)?);
    }
    if usage.images.is_empty() && usage.total_bytes + usage.boot_bytes == 0 {
        print_note("No images.");
        return Ok(());
    }
    print_table(&usage)
}

fn usage(home: &Home, store: &Store) -> Result<StoreUsage> {
    // A reader creates nothing: without a store there is nothing to lock.
    let _lock = store.root().is_dir().then(|| Lock::shared(&store.lock())).transpose()?;
    let users = ImageUsers::read(home, false)?;
    let mut images: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for digest in users.manifests() {
        if store.manifest_path(&digest).exists() {
            images.entry(digest).or_default();
        }
    }
    for record in store.records()? {
        images.entry(record.manifest_digest).or_default().push(record.reference);
    }
    let mut files: Vec<(Digest, Vec<PathBuf>)> = Vec::new();
    for digest in images.keys() {
        let needs = ImageContents::of(store, digest)
            .with_context(|| format!("image {digest} is broken"))?;
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
                sandboxes: owned(users.of(UserKind::Sandbox, digest)),
                snapshots: owned(users.of(UserKind::Snapshot, digest)),
                size_bytes: shared + unique,
                shared_bytes: shared,
                unique_bytes: unique,
            }
        })
        .collect();
    rows.sort_by(|a, b| a.references.cmp(&b.references));
    Ok(StoreUsage {
        images: rows,
        total_bytes: total(store)?,
        reclaimable_bytes: preview(home, store)?.bytes,
        downloads_bytes: directory_bytes(&store.downloads())?,
        boot_bytes: directory_bytes(&home.boot_dir())?,
    })
}

fn owned(names: Vec<&str>) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}

/// Returns the path of every file of an image, each once.
fn files_of(store: &Store, manifest: &Digest, needs: &ImageContents) -> Vec<PathBuf> {
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
    for directory in [
        store.refs(),
        store.manifests(),
        store.configs(),
        store.layers(),
        store.blobs(),
        store.disks(),
        store.downloads(),
    ] {
        bytes += directory_bytes(&directory)?;
    }
    Ok(bytes)
}

fn directory_bytes(directory: &Path) -> Result<u64> {
    let names = names(directory)?;
    let sizes = names.iter().map(|name| bytes_on_disk(&directory.join(name)));
    Ok(sizes.sum())
}

fn print_table(usage: &StoreUsage) -> Result<()> {
    let mut table =
        style::Table::new(&["IMAGE", "DIGEST", ">SIZE", ">SHARED", ">UNIQUE", ">SANDBOXES"]);
    for image in &usage.images {
        let short = |name: &String| {
            name.parse::<Reference>().map_or(name.clone(), |reference| reference.familiar())
        };
        let names: Vec<String> = image.references.iter().map(short).collect();
        table.row([
            if names.is_empty() { "-".to_owned() } else { names.join(", ") },
            image.digest.short(),
            style::bytes(image.size_bytes),
            style::bytes(image.shared_bytes),
            style::bytes(image.unique_bytes),
            image.sandboxes.len().to_string(),
        ]);
    }
    table.print()?;
    Ok(output::print(&format!(
        "\n{} on disk, and {} of boot files; `msb image prune` would free {}",
        style::bytes(usage.total_bytes),
        style::bytes(usage.boot_bytes),
        style::bytes(usage.reclaimable_bytes)
    ))?)
}
