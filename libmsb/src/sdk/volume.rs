//! Named volumes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::tool;
use crate::state::Home;

const TOOL: &str = "msb-volume";

/// A named volume. Fields that this release does not know are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Name.
    pub name: String,
    /// Kind: `dir` or `disk`.
    pub kind: String,
    /// Path of the contents on the host.
    pub path: PathBuf,
    /// Size of the disk in MiB; `None` for a directory.
    #[serde(default)]
    pub quota_mib: Option<u64>,
    /// Size of the contents.
    #[serde(default)]
    pub used_bytes: Option<u64>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Time of the creation, RFC 3339.
    pub created_at: String,
}

/// Options of a new volume.
#[derive(Clone, Debug, Default)]
pub struct VolumeOptions {
    /// Size of a disk in MiB; without it, the volume is a directory.
    pub quota_mib: Option<u64>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Volume {
    /// Creates a volume.
    ///
    /// ```no_run
    /// # use libmsb::sdk::{Access, Sandbox, Volume, VolumeOptions};
    /// # fn main() -> Result<(), libmsb::sdk::Error> {
    /// Volume::create("cache", &VolumeOptions::default())?;
    /// let sandbox = Sandbox::builder("worker")
    ///     .image("python")
    ///     .mount_volume("cache", "/cache", Access::ReadWrite)
    ///     .create()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn create(name: &str, options: &VolumeOptions) -> Result<Volume, Error> {
        let mut args = tool::words(&["create", "--quiet"]);
        match options.quota_mib {
            Some(mib) => args.extend(["--kind=disk".into(), format!("--size={mib}").into()]),
            None => args.push("--kind=dir".into()),
        }
        args.extend(
            options.labels.iter().map(|(key, value)| format!("--label={key}={value}").into()),
        );
        args.extend(tool::words(&["--", name]));
        tool::run(&Home::from_env()?, TOOL, args)?;
        Volume::get(name)
    }

    /// Returns the volume of a name.
    pub fn get(name: &str) -> Result<Volume, Error> {
        let args = ["inspect", "--format=json", "--", name];
        tool::parse(TOOL, &tool::run(&Home::from_env()?, TOOL, args)?)
    }

    /// Returns all volumes, sorted by name.
    pub fn list() -> Result<Vec<Volume>, Error> {
        tool::parse(TOOL, &tool::run(&Home::from_env()?, TOOL, ["list", "--format=json"])?)
    }

    /// Returns the names of all volumes, sorted.
    pub fn names() -> Result<Vec<String>, Error> {
        let list = Home::from_env()?.volumes().list()?;
        Ok(list.into_iter().map(|entry| entry.name).collect())
    }

    /// Removes a volume and its contents. One that a sandbox uses is kept.
    pub fn remove(name: &str) -> Result<(), Error> {
        let args = ["remove", "--quiet", "--", name];
        tool::run(&Home::from_env()?, TOOL, args).map(drop)
    }
}
