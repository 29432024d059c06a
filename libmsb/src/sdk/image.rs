//! Images.

use std::ffi::OsString;
use std::path::Path;

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
    pub config: ImageConfig,
    /// The layers, lowest first.
    #[serde(default)]
    pub layers: Vec<ImageLayer>,
}

/// The configuration of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Digest of the configuration, which is the image ID.
    pub digest: Option<String>,
    /// Environment variables, `NAME=value`.
    pub env: Option<Vec<String>>,
    /// Arguments of the main command.
    pub cmd: Option<Vec<String>>,
    /// Main command.
    pub entrypoint: Option<Vec<String>>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// User.
    pub user: Option<String>,
    /// Labels, which can be any JSON.
    pub labels: serde_json::Value,
    /// Signal that stops the main command.
    pub stop_signal: Option<String>,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// Digest of the layer's contents.
    pub diff_id: String,
    /// Digest of the layer as the registry has it.
    #[serde(default)]
    pub blob_digest: Option<String>,
    /// Media type.
    #[serde(default)]
    pub media_type: Option<String>,
    /// Size in the registry.
    #[serde(default)]
    pub compressed_size_bytes: Option<u64>,
    /// Size on disk.
    #[serde(default)]
    pub erofs_size_bytes: Option<u64>,
    /// Position, 0 for the lowest.
    #[serde(default)]
    pub position: u64,
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

    /// Loads the images of an archive of docker, podman, skopeo or buildah.
    ///
    /// ```no_run
    /// # use libmsb::sdk::Image;
    /// # fn main() -> Result<(), libmsb::sdk::Error> {
    /// Image::load("images.tar".as_ref())?;
    /// Image::save("copy.tar".as_ref(), &["python:3.12-slim"])?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn load(archive: &Path) -> Result<(), Error> {
        let args = ["load".into(), "--quiet".into(), "--input".into(), OsString::from(archive)];
        tool::run(&Home::from_env()?, "msb-image", args).map(drop)
    }

    /// Saves images as an archive that docker and [`Image::load`] read.
    pub fn save(archive: &Path, references: &[&str]) -> Result<(), Error> {
        let mut args = tool::words(&["save", "--quiet", "--output"]);
        args.extend([OsString::from(archive), "--".into()]);
        args.extend(tool::words(references));
        tool::run(&Home::from_env()?, "msb-image", args).map(drop)
    }

    /// Pulls an image from its registry.
    pub fn pull(reference: &str) -> Result<(), Error> {
        let args = ["pull", "--quiet", "--", reference];
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
