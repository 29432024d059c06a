//! Images.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::tool;
use crate::cli::error::Code;
use crate::state::Home;

/// An image, as in the list. Fields that this release does not know are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Canonical reference.
    pub reference: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Size of the layers on disk, in bytes.
    pub size_bytes: u64,
    /// Processor architecture of its programs.
    pub architecture: String,
    /// Operating system of its programs.
    pub os: String,
    /// Number of layers.
    pub layer_count: u64,
}

/// An image with its configuration and layers, as `msb image inspect --format json` prints them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDetail {
    /// The fields of the list.
    #[serde(flatten)]
    pub image: Image,
    /// The configuration.
    #[serde(default)]
    pub config: serde_json::Value,
    /// The layers, lowest first.
    #[serde(default)]
    pub layers: Vec<serde_json::Value>,
}

/// The result of a prune.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    /// Removed references.
    pub image_refs_removed: u64,
    /// Removed manifests.
    pub manifests_removed: u64,
    /// Removed layers.
    pub layers_removed: u64,
    /// Freed bytes on disk.
    #[serde(default)]
    pub bytes_reclaimed: Option<u64>,
}

impl Image {
    /// Returns the image of a reference.
    pub fn get(reference: &str) -> Result<Image, Error> {
        Image::inspect(reference).map(|detail| detail.image)
    }

    /// Returns the details of an image.
    pub fn inspect(reference: &str) -> Result<ImageDetail, Error> {
        ask(&["inspect", "--format", "json", "--", reference])
    }

    /// Returns all images.
    pub fn list() -> Result<Vec<Image>, Error> {
        ask(&["list", "--format", "json"])
    }

    /// Removes a reference, and the data that only it uses. An image that sandboxes use is kept,
    /// unless `force` is set.
    pub fn remove(reference: &str, force: bool) -> Result<(), Error> {
        let mut args = vec!["remove"];
        args.extend(force.then_some("--force"));
        args.extend(["--", reference]);
        tool::run(&Home::from_env()?, "msb-image", args).map(drop)
    }

    /// Removes images that no sandbox uses.
    pub fn prune() -> Result<PruneReport, Error> {
        ask(&["prune", "--yes", "--format", "json"])
    }
}

fn ask<T: DeserializeOwned>(args: &[&str]) -> Result<T, Error> {
    let answer = tool::run(&Home::from_env()?, "msb-image", args)?;
    serde_json::from_slice(&answer)
        .map_err(|error| Error::new(Code::Failed, format!("invalid output of msb-image: {error}")))
}
