//! Who needs what: sandboxes and references need manifests, manifests need configurations and layers.

use std::collections::HashSet;

use anyhow::{Context, Result};
use libmsb::cli::error::Failure;
use libmsb::digest::Digest;
use libmsb::state::Home;
use libmsb::state::images::Store;

use crate::document::{Config, Document};
use crate::store::read_document;

/// Which sandboxes were made from which manifests.
#[derive(Debug)]
pub(crate) struct Users(Vec<(String, Digest)>);

impl Users {
    /// A sandbox that cannot be read may need anything: then nothing is said, unless by force.
    pub(crate) fn read(home: &Home, force: bool) -> Result<Users> {
        let mut users = Vec::new();
        for sandbox in home.sandboxes().list()? {
            match sandbox.seen {
                Ok(seen) => {
                    let image = seen.spec.root.image();
                    users.extend(image.map(|image| (sandbox.name, image.manifest_digest)));
                }
                Err(_) if force => {}
                Err(error) => {
                    let failure = Failure::wrong_state(format!(
                        "sandbox '{}' is broken, and may need any image",
                        sandbox.name
                    ))
                    .hint("remove the sandbox first: msb rm");
                    return Err(error.context(failure));
                }
            }
        }
        Ok(Users(users))
    }

    /// Names of those that need a manifest.
    pub(crate) fn of(&self, manifest: &Digest) -> Vec<&str> {
        let using = self.0.iter().filter(|(_, used)| used == manifest);
        using.map(|(name, _)| name.as_str()).collect()
    }

    /// Every manifest that somebody needs.
    pub(crate) fn manifests(&self) -> impl Iterator<Item = Digest> {
        self.0.iter().map(|(_, digest)| *digest)
    }
}

/// What a manifest needs.
#[derive(Clone, Debug)]
pub(crate) struct Needs {
    pub(crate) config: Digest,
    pub(crate) diff_ids: Vec<Digest>,
    /// The layers as they came; they are there only if they were kept.
    pub(crate) blobs: Vec<Digest>,
}

impl Needs {
    pub(crate) fn of(store: &Store, manifest: &Digest) -> Result<Needs> {
        let document = Document::parse(&read_document(&store.manifest_path(manifest), manifest)?)?;
        let config = document
            .config
            .context("a manifest without configuration")?
            .digest;
        let parsed = Config::parse(&read_document(&store.config_path(&config), &config)?)?;
        let blobs = document.layers.iter().flatten();
        Ok(Needs {
            config,
            diff_ids: parsed.rootfs.diff_ids,
            blobs: blobs.map(|blob| blob.digest).collect(),
        })
    }
}

/// Everything that may not go.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) manifests: HashSet<Digest>,
    pub(crate) configs: HashSet<Digest>,
    pub(crate) layers: HashSet<Digest>,
    pub(crate) blobs: HashSet<Digest>,
}

impl Live {
    /// What manifests need that are named by references, or pinned by sandboxes. What cannot be read is an error: nothing
    /// is guessed.
    pub(crate) fn of(
        store: &Store,
        named: &HashSet<Digest>,
        pinned: impl IntoIterator<Item = Digest>,
    ) -> Result<Live> {
        let mut live = Live {
            manifests: named.iter().copied().chain(pinned).collect(),
            ..Live::default()
        };
        for manifest in &live.manifests {
            // A sandbox may pin what was removed by force before.
            if !store.manifest_path(manifest).exists() && !named.contains(manifest) {
                continue;
            }
            let needs = Needs::of(store, manifest)?;
            live.configs.insert(needs.config);
            live.layers.extend(needs.diff_ids);
            live.blobs.extend(needs.blobs);
        }
        Ok(live)
    }
}
