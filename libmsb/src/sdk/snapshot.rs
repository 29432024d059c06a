//! Snapshots.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::tool;
use crate::cli::error::Code;
use crate::state::Home;

const TOOL: &str = "msb-snapshot";

/// A snapshot, as in the list. Fields that this release does not know are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Name of the snapshot.
    pub name: String,
    /// Digest of its manifest, which identifies it.
    pub digest: String,
    /// Reference of its image.
    pub image_ref: String,
    /// Digest of its parent.
    pub parent_digest: Option<String>,
    /// Size of its disk, in bytes.
    pub size_bytes: u64,
    /// Bytes of its memory on the host, if it was created with memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Labels of the user.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Time of the snapshot, RFC 3339.
    pub created_at: String,
    /// Path of its directory.
    pub artifact_path: String,
}

/// Options of a new snapshot.
#[derive(Clone, Debug, Default)]
pub struct SnapshotOptions {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// True to replace an existing snapshot.
    pub force: bool,
    /// True to record the digest of the disk's data.
    pub integrity: bool,
    /// True to save the memory of the running sandbox too.
    pub memory: bool,
}

impl Snapshot {
    /// Creates a snapshot of a sandbox, under a name or at a path.
    pub fn create(
        sandbox: &str,
        destination: &str,
        options: &SnapshotOptions,
    ) -> Result<Snapshot, Error> {
        let mut args = tool::words(&["create", "--quiet", "--from", sandbox]);
        args.extend(
            options.labels.iter().map(|(key, value)| format!("--label={key}={value}").into()),
        );
        args.extend(options.force.then(|| OsString::from("--force")));
        args.extend(options.integrity.then(|| OsString::from("--integrity")));
        args.extend(options.memory.then(|| OsString::from("--memory")));
        args.extend(tool::words(&["--", destination]));
        run(args)?;
        Snapshot::get(destination)
    }

    /// Returns the snapshot of a name, a path or a digest.
    pub fn get(snapshot: &str) -> Result<Snapshot, Error> {
        let answer = run(tool::words(&["inspect", "--format", "json", "--", snapshot]))?;
        parse(&answer)
    }

    /// Returns all snapshots, the newest first.
    pub fn list() -> Result<Vec<Snapshot>, Error> {
        parse(&run(tool::words(&["list", "--format", "json"]))?)
    }

    /// Indexes the snapshots of the directory of snapshots again. Returns the number of snapshots
    /// that are listed then.
    pub fn reindex() -> Result<usize, Error> {
        run(tool::words(&["reindex"]))?;
        Ok(Snapshot::list()?.len())
    }

    /// Compares the disk with its recorded digest.
    pub fn verify(&self) -> Result<(), Error> {
        run(tool::words(&["verify", "--", &self.artifact_path])).map(drop)
    }

    /// Removes the snapshot. One that is the parent of others is kept, unless `force` is set.
    pub fn remove(&self, force: bool) -> Result<(), Error> {
        let mut args = tool::words(&["remove", "--quiet"]);
        args.extend(force.then(|| OsString::from("--force")));
        args.extend(tool::words(&["--", &self.artifact_path]));
        run(args).map(drop)
    }

    /// Writes the snapshot to an archive.
    pub fn export(&self, archive: &Path) -> Result<(), Error> {
        let mut args = tool::words(&["export", "--", &self.artifact_path]);
        args.push(archive.into());
        run(args).map(drop)
    }

    /// Reads the snapshots of an archive. Returns the last one.
    pub fn import(archive: &Path) -> Result<Snapshot, Error> {
        let mut args = tool::words(&["import", "--"]);
        args.push(archive.into());
        let printed = String::from_utf8_lossy(&run(args)?).into_owned();
        let path = printed.lines().last();
        let path = path.ok_or_else(|| Error::new(Code::Failed, "nothing was imported"))?;
        Snapshot::get(path)
    }
}

fn run(args: Vec<OsString>) -> Result<Vec<u8>, Error> {
    tool::run(&Home::from_env()?, TOOL, args)
}

fn parse<T: serde::de::DeserializeOwned>(answer: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(answer)
        .map_err(|error| Error::new(Code::Failed, format!("invalid output of {TOOL}: {error}")))
}
