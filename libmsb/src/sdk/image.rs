//! Images.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::tool;
use crate::cli::error::Code;
use crate::state::Home;

/// An image as the list has it. Fields that this release does not know are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its full reference.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: String,
    /// What its layers take on the disk.
    pub size_bytes: u64,
    /// Processor that its programs are for.
    pub architecture: String,
    /// Operating system that its programs are for.
    pub os: String,
    /// Number of its layers.
    pub layer_count: u64,
}

/// An image, with its configuration and layers as `msb image inspect --format json` has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDetail {
    /// As in the list.
    #[serde(flatten)]
    pub image: Image,
    /// Its configuration.
    #[serde(default)]
    pub config: serde_json::Value,
    /// Its layers, the lowest first.
    #[serde(default)]
    pub layers: Vec<serde_json::Value>,
}

/// What a prune has removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    /// References.
    pub image_refs_removed: u64,
    /// Manifests.
    pub manifests_removed: u64,
    /// Layers.
    pub layers_removed: u64,
    /// Bytes that the disk has got back.
    #[serde(default)]
    pub bytes_reclaimed: Option<u64>,
}

impl Image {
    /// The image of a reference.
    pub fn get(reference: &str) -> Result<Image, Error> {
        Image::inspect(reference).map(|detail| detail.image)
    }

    /// All that is known of an image.
    pub fn inspect(reference: &str) -> Result<ImageDetail, Error> {
        ask(&["inspect", "--format", "json", "--", reference])
    }

    /// Every image.
    pub fn list() -> Result<Vec<Image>, Error> {
        ask(&["list", "--format", "json"])
    }

    /// Removes a reference, and what only it needs. An image that sandboxes use stays, unless it is forced.
    pub fn remove(reference: &str, force: bool) -> Result<(), Error> {
        let mut args = vec!["remove"];
        args.extend(force.then_some("--force"));
        args.extend(["--", reference]);
        tool::run(&Home::from_env()?, "msb-image", args).map(drop)
    }

    /// Removes what no sandbox uses.
    pub fn prune() -> Result<PruneReport, Error> {
        ask(&["prune", "--yes", "--format", "json"])
    }
}

fn ask<T: DeserializeOwned>(args: &[&str]) -> Result<T, Error> {
    let answer = tool::run(&Home::from_env()?, "msb-image", args)?;
    serde_json::from_slice(&answer)
        .map_err(|error| Error::new(Code::Failed, format!("msb-image's answer: {error}")))
}
