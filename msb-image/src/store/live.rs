//! The live set of the garbage collection: references and sandboxes need manifests; manifests need
//! configurations and layers.

use std::collections::HashSet;

use anyhow::{Context, Result};
use libmsb::cli::error::Failure;
use libmsb::digest::Digest;
use libmsb::state::Home;
use libmsb::state::images::Store;

use crate::document::{ImageConfig, ManifestDocument};
use crate::store::find::read_document;

/// The manifest of each sandbox's and each snapshot's image.
#[derive(Debug)]
pub(crate) struct ImageUsers(Vec<ImageUser>);

#[derive(Debug)]
struct ImageUser {
    kind: UserKind,
    name: String,
    manifest: Digest,
}

/// Kind of an object that needs an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UserKind {
    Sandbox,
    Snapshot,
}

impl ImageUsers {
    /// Reads the manifests that sandboxes and snapshots need. One that cannot be read may need any
    /// image, so it is an error without `force`.
    pub(crate) fn read(home: &Home, force: bool) -> Result<ImageUsers> {
        let mut users = Vec::new();
        for sandbox in home.sandboxes().list()? {
            match sandbox.seen {
                Ok(seen) => {
                    users.extend(seen.spec.root.image().map(|image| ImageUser {
                        kind: UserKind::Sandbox,
                        name: sandbox.name,
                        manifest: image.manifest_digest,
                    }));
                }
                Err(_) if force => {}
                Err(error) => {
                    let failure = Failure::wrong_state(format!(
                        "sandbox '{}' is broken and may need any image",
                        sandbox.name
                    ))
                    .hint("remove the sandbox first: msb rm");
                    return Err(error.context(failure));
                }
            }
        }
        for entry in home.snapshots().list()? {
            match entry.snapshot {
                Ok(snapshot) => users.push(ImageUser {
                    kind: UserKind::Snapshot,
                    name: entry.name,
                    manifest: snapshot.manifest.image.manifest_digest,
                }),
                Err(_) if force => {}
                Err(error) => {
                    let failure = Failure::wrong_state(format!(
                        "snapshot '{}' is damaged and may need any image",
                        entry.name
                    ))
                    .hint(format!("remove it first: msb snapshot remove --force {}", entry.name));
                    return Err(error.context(failure));
                }
            }
        }
        Ok(ImageUsers(users))
    }

    /// Returns the names of the sandboxes or snapshots that need a manifest.
    pub(crate) fn of(&self, kind: UserKind, manifest: &Digest) -> Vec<&str> {
        let using = self.0.iter().filter(|user| user.kind == kind && user.manifest == *manifest);
        using.map(|user| user.name.as_str()).collect()
    }

    /// Returns every manifest that a sandbox or a snapshot needs.
    pub(crate) fn manifests(&self) -> impl Iterator<Item = Digest> {
        self.0.iter().map(|user| user.manifest)
    }
}

/// Digests of all that a manifest needs.
#[derive(Clone, Debug)]
pub(crate) struct ImageContents {
    pub(crate) config: Digest,
    pub(crate) diff_ids: Vec<Digest>,
    /// Compressed layers; the store has them only if they were kept.
    pub(crate) blobs: Vec<Digest>,
}

impl ImageContents {
    pub(crate) fn of(store: &Store, manifest: &Digest) -> Result<ImageContents> {
        let document =
            ManifestDocument::parse(&read_document(&store.manifest_path(manifest), manifest)?)?;
        let config = document.config.context("the manifest has no configuration")?.digest;
        let parsed = ImageConfig::parse(&read_document(&store.config_path(&config), &config)?)?;
        let blobs = document.layers.iter().flatten();
        Ok(ImageContents {
            config,
            diff_ids: parsed.rootfs.diff_ids,
            blobs: blobs.map(|blob| blob.digest).collect(),
        })
    }
}

/// Digests of the files that the garbage collection must keep.
#[derive(Debug, Default)]
pub(crate) struct LiveSet {
    pub(crate) manifests: HashSet<Digest>,
    pub(crate) configs: HashSet<Digest>,
    pub(crate) layers: HashSet<Digest>,
    pub(crate) blobs: HashSet<Digest>,
}

impl LiveSet {
    /// Computes what the manifests need that references name or sandboxes pin. A document that
    /// cannot be read is an error: its contents are never guessed.
    pub(crate) fn of(
        store: &Store,
        named: &HashSet<Digest>,
        pinned: impl IntoIterator<Item = Digest>,
    ) -> Result<LiveSet> {
        let mut live = LiveSet {
            manifests: named.iter().copied().chain(pinned).collect(),
            ..LiveSet::default()
        };
        for manifest in &live.manifests {
            // `--force` may have removed an image that a sandbox pins.
            if !store.manifest_path(manifest).exists() && !named.contains(manifest) {
                continue;
            }
            let needs = ImageContents::of(store, manifest)?;
            live.configs.insert(needs.config);
            live.layers.extend(needs.diff_ids);
            live.blobs.extend(needs.blobs);
        }
        Ok(live)
    }
}
