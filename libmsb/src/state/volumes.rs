//! Named volumes on disk: create, find, list, remove. Each is a directory; man page msb-state(5).
//!
//! A volume of the kind `dir` is a directory of the host, shared like any other; several sandboxes
//! may use it at the same time, and file locks hold among them. A volume of the kind `disk` is a
//! sparse image with an ext4 file system. Its size is its quota: a guest cannot use more space of
//! the host, and users and permissions in it are the guest's own. One sandbox at a time may write
//! to it.
//!
//! A user of a volume holds its lock: exclusive, or shared where that is safe.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::lock::{self, Lock};
use super::sandboxes::{NewDirectory, delete_directory, directory_names, sweep_directory};
use super::{layout, write};
use crate::cli::args::SandboxName;
use crate::cli::error::{Code, Failure};
use crate::cli::escape::escape;

/// Version of the file's format.
pub const VOLUME_VERSION: u32 = 1;
/// Longest file, in bytes.
const VOLUME_BYTES_MAX: u64 = 1024 * 1024;

/// The name of a volume, in the form of a sandbox's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = Failure;

    fn from_str(text: &str) -> Result<VolumeName, Failure> {
        match text.parse::<SandboxName>() {
            Ok(name) => Ok(VolumeName(name.as_str().to_owned())),
            Err(_) => Err(Failure::usage(format!(
                "'{}' cannot be the name of a volume",
                escape(text)
            ))
            .hint(
                "use A-Z, a-z, 0-9, '.', '_' and '-', a letter or digit first, at most 128; \
                     the path of a directory starts with '/' or './'",
            )),
        }
    }
}

impl TryFrom<String> for VolumeName {
    type Error = Failure;

    fn try_from(text: String) -> Result<VolumeName, Failure> {
        text.parse()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> String {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Kind of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// A disk image with a size limit, for one sandbox at a time.
    Disk,
    /// A directory of the host without a limit, for several sandboxes.
    Dir,
}

impl VolumeKind {
    /// Returns the name of the kind, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            VolumeKind::Disk => "disk",
            VolumeKind::Dir => "dir",
        }
    }
}

/// A record of a volume: `volume.json`, written at its creation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// [`VOLUME_VERSION`].
    pub version: u32,
    /// Name of the volume, and of its directory.
    pub name: VolumeName,
    /// Kind of the volume.
    pub kind: VolumeKind,
    /// Size in MiB, which is also its quota; a directory has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u64>,
    /// Time of the creation.
    #[serde(with = "crate::time")]
    pub created_at: jiff::Timestamp,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Fields of later versions, which are preserved.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// The directory of volumes.
#[derive(Clone, Debug)]
pub struct Volumes {
    root: PathBuf,
}

/// The directory of one volume, which may have been removed.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Name of the volume.
    pub name: VolumeName,
    /// Path of its directory.
    pub dir: PathBuf,
}

/// An entry of a list of volumes.
#[derive(Debug)]
pub struct VolumeEntry {
    /// Name of its directory.
    pub name: String,
    /// Its record, or the error of reading it.
    pub record: anyhow::Result<VolumeRecord>,
}

impl Volumes {
    /// Returns the volumes below a directory. Creates nothing.
    pub fn at(root: PathBuf) -> Volumes {
        Volumes { root }
    }

    /// Returns the volume of a name, which may be missing.
    pub fn named(&self, name: &VolumeName) -> Volume {
        Volume { name: name.clone(), dir: self.root.join(name.as_str()) }
    }

    /// Returns the volume of a name, which must exist.
    pub fn find(&self, name: &VolumeName) -> anyhow::Result<Volume> {
        let volume = self.named(name);
        if volume.dir.is_dir() {
            return Ok(volume);
        }
        Err(no_such_volume(name).into())
    }

    /// Creates a volume, whose name must be unused. `format` writes the empty file system of a
    /// disk.
    pub fn create(
        &self,
        record: &VolumeRecord,
        format: impl FnOnce(&File) -> anyhow::Result<()>,
    ) -> anyhow::Result<Volume> {
        write::create_dir(&self.root)?;
        self.sweep();
        let volume = self.named(&record.name);
        let (new, lock) = NewDirectory::create(&self.root)?;
        let cannot = || format!("cannot create the volume '{}'", record.name);
        match record.kind {
            VolumeKind::Disk => {
                let file = write::create_file(&new.path.join(layout::VOLUME_DISK));
                let file = file.with_context(cannot)?;
                format(&file)?;
                file.sync_all().with_context(cannot)?;
            }
            VolumeKind::Dir => {
                create_data(&new.path.join(layout::VOLUME_DATA)).with_context(cannot)?
            }
        }
        write::replace_json(&new.path.join(layout::VOLUME), record)?;
        write::sync_dir(&new.path)?;
        match renameat_with(CWD, &new.path, CWD, &volume.dir, RenameFlags::NOREPLACE) {
            Ok(()) => new.keep(),
            Err(Errno::EXIST) => return Err(already_there(&record.name).into()),
            Err(error) => return Err(std::io::Error::from(error)).with_context(cannot),
        }
        write::sync_dir(&self.root)?;
        drop(lock);
        Ok(volume)
    }

    /// Returns all volumes, sorted by name.
    pub fn list(&self) -> anyhow::Result<Vec<VolumeEntry>> {
        let mut names = directory_names(&self.root)?;
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        let entry = |name: String| {
            let record = match name.parse::<VolumeName>() {
                Ok(valid) => self.named(&valid).record(),
                Err(error) => Err(error.into()),
            };
            VolumeEntry { name, record }
        };
        Ok(names.into_iter().map(entry).collect())
    }

    /// Deletes what killed programs have left.
    fn sweep(&self) {
        for name in directory_names(&self.root).unwrap_or_default() {
            if name.starts_with(layout::NEW_PREFIX) || name.starts_with(layout::GONE_PREFIX) {
                let _ = sweep_directory(&self.root, &self.root.join(name));
            }
        }
    }
}

impl Volume {
    /// Reads the record.
    pub fn record(&self) -> anyhow::Result<VolumeRecord> {
        let path = self.dir.join(layout::VOLUME);
        let record: VolumeRecord = write::read_json(&path, VOLUME_BYTES_MAX)?
            .with_context(|| format!("'{}' is missing", path.display()))?;
        anyhow::ensure!(
            record.version == VOLUME_VERSION,
            "'{}' has version {}, but this program supports version {VOLUME_VERSION}",
            path.display(),
            record.version
        );
        Ok(record)
    }

    /// Returns the path of the disk image.
    pub fn disk(&self) -> PathBuf {
        self.dir.join(layout::VOLUME_DISK)
    }

    /// Returns the path of the directory with the contents.
    pub fn data(&self) -> PathBuf {
        self.dir.join(layout::VOLUME_DATA)
    }

    fn lock_path(&self) -> PathBuf {
        self.dir.join(layout::LOCK)
    }

    /// Returns whether a sandbox uses the volume.
    pub fn is_in_use(&self) -> anyhow::Result<bool> {
        lock::is_held(&self.lock_path())
    }

    /// Takes the lock for using the volume: exclusive if `alone`, else shared.
    pub fn lock(&self, alone: bool) -> anyhow::Result<Lock> {
        if !self.dir.is_dir() {
            return Err(no_such_volume(&self.name).into());
        }
        let lock = if alone {
            Lock::try_exclusive(&self.lock_path())?
        } else {
            Lock::try_shared(&self.lock_path())?
        };
        lock.with_context(|| self.in_use())
    }

    /// Takes the shared lock of a volume that exists, if no sandbox has the exclusive one.
    pub fn try_lock_shared(&self) -> anyhow::Result<Option<Lock>> {
        if !self.dir.is_dir() {
            return Err(no_such_volume(&self.name).into());
        }
        Lock::try_shared(&self.lock_path())
    }

    /// Removes the volume, which must not be in use.
    pub fn remove(&self) -> anyhow::Result<()> {
        let removed = self.remove_if(|| Ok(true))?;
        if removed { Ok(()) } else { Err(self.in_use().into()) }
    }

    /// Removes the volume, if it is not in use, and `check` agrees while no sandbox can start to
    /// use it. Returns whether it was removed.
    pub fn remove_if(&self, check: impl FnOnce() -> anyhow::Result<bool>) -> anyhow::Result<bool> {
        if !self.dir.is_dir() {
            return Err(no_such_volume(&self.name).into());
        }
        let Some(lock) = Lock::try_exclusive(&self.lock_path())? else {
            return Ok(false);
        };
        if !check()? {
            return Ok(false);
        }
        let root = self.dir.parent().unwrap_or(Path::new("."));
        let gone = root.join(format!("{}{}", layout::GONE_PREFIX, write::random_hex()?));
        std::fs::rename(&self.dir, &gone)
            .with_context(|| format!("cannot remove the volume '{}'", self.name))?;
        write::sync_dir(root)?;
        drop(lock);
        delete_directory(&gone)?;
        Ok(true)
    }

    fn in_use(&self) -> Failure {
        Failure::wrong_state(format!("the volume '{}' is in use by a running sandbox", self.name))
            .code(Code::VolumeInUse)
            .hint(
                "a disk volume is for one sandbox at a time, or several that only read; \
               a dir volume is for several",
            )
    }
}

/// Creates the directory of the contents. All users of a guest can enter it, as with the root of a
/// disk; on the host, the directory of the volume is closed to others.
fn create_data(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir(path)?;
    // Whatever the umask is.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

fn already_there(name: &VolumeName) -> Failure {
    Failure::wrong_state(format!("there is a volume '{name}' already"))
        .code(Code::VolumeAlreadyExists)
        .hint(format!("choose another name, or remove it: msb volume remove {name}"))
}

fn no_such_volume(name: &VolumeName) -> Failure {
    Failure::not_found(format!("there is no volume '{name}'"))
        .code(Code::VolumeNotFound)
        .hint("`msb volume list` lists them")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, kind: VolumeKind) -> VolumeRecord {
        VolumeRecord {
            version: VOLUME_VERSION,
            name: name.parse().unwrap(),
            kind,
            size_mib: Some(24),
            created_at: jiff::Timestamp::now(),
            labels: BTreeMap::new(),
            other: serde_json::Map::new(),
        }
    }

    #[test]
    fn a_volume_is_made_once_listed_and_removed_when_nobody_uses_it() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = Volumes::at(directory.path().join("volumes"));
        assert!(volumes.list().unwrap().is_empty());
        let volume = volumes.create(&record("data", VolumeKind::Disk), |_| Ok(())).unwrap();
        let again = volumes.create(&record("data", VolumeKind::Dir), |_| Ok(()));
        assert!(again.unwrap_err().to_string().contains("already"));
        let user = volume.lock(true).unwrap();
        assert!(volume.is_in_use().unwrap());
        assert!(volume.remove().is_err());
        assert!(volume.lock(false).is_err());
        drop(user);
        let readers = [volume.lock(false).unwrap(), volume.lock(false).unwrap()];
        assert!(volume.lock(true).is_err());
        drop(readers);
        volume.remove().unwrap();
        assert!(volumes.list().unwrap().is_empty());
        assert!(volumes.find(&volume.name).is_err());
        let shared = volumes.create(&record("shared", VolumeKind::Dir), |_| Ok(())).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&shared.data()), mode(&shared.dir)), (0o755, 0o700));
        assert!(!shared.remove_if(|| Ok(false)).unwrap() && shared.dir.is_dir());
        let user = shared.lock(false).unwrap();
        assert!(!shared.remove_if(|| Ok(true)).unwrap());
        drop(user);
        shared.remove().unwrap();
        assert_eq!(std::fs::read_dir(directory.path().join("volumes")).unwrap().count(), 0);
    }

    #[test]
    fn a_disk_that_cannot_be_formatted_leaves_no_volume() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = Volumes::at(directory.path().to_owned());
        let failed = volumes.create(&record("v", VolumeKind::Disk), |_| anyhow::bail!("full"));
        assert_eq!(failed.unwrap_err().to_string(), "full");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_is_one_plain_name() {
        for wrong in ["", "..", "a/b", "-x", ".hidden", "a b"] {
            assert!(wrong.parse::<VolumeName>().is_err(), "{wrong}");
        }
        assert_eq!("pg-data.1".parse::<VolumeName>().unwrap().as_str(), "pg-data.1");
    }
}
