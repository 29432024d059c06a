//! Named volumes on disk: create, find, list, remove. Each is a folder; man page msb-state(5).
//!
//! A volume of the kind `disk` is a sparse image with an ext4 file system. Its size is its quota: nothing that a guest
//! does takes more of the host, and users and permissions in it are the guest's own. One sandbox at a time may write to
//! it. A volume of the kind `dir` is a folder of the host, shared as any other; several sandboxes may use it at a time.
//!
//! Who uses a volume holds its lock: alone, or together with others where that does no harm.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::lock::{self, Lock};
use super::sandboxes::{NewFolder, delete_folder, folder_names, sweep_folder};
use super::{layout, write};
use crate::cli::args::SandboxName;
use crate::cli::error::Failure;
use crate::cli::escape::escape;

/// The version of the file's form.
pub const VOLUME_VERSION: u32 = 1;
/// Longest file, in bytes.
const VOLUME_BYTES_MAX: u64 = 1024 * 1024;

/// The name of a volume, of the same form as that of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// The name.
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
            .hint("A-Z, a-z, 0-9, '.', '_' and '-', a letter or digit first, at most 128; a folder begins with '/' or './'")),
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

/// How a volume is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// A disk image: bounded, and for one sandbox at a time.
    Disk,
    /// A folder of the host: unbounded, and for many.
    Dir,
}

impl VolumeKind {
    /// The word for it, as it is typed.
    pub fn word(self) -> &'static str {
        match self {
            VolumeKind::Disk => "disk",
            VolumeKind::Dir => "dir",
        }
    }
}

/// What a volume is: `volume.json`, written when it is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// [`VOLUME_VERSION`].
    pub version: u32,
    /// The volume's name, which is that of its folder too.
    pub name: VolumeName,
    /// How it is kept.
    pub kind: VolumeKind,
    /// Its size, in MiB, and with that its quota; a folder has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u64>,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// Fields of later versions, kept.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// The folder of volumes.
#[derive(Clone, Debug)]
pub struct Volumes {
    root: PathBuf,
}

/// The folder of one volume, which may be gone by now.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// Its folder.
    pub dir: PathBuf,
}

/// One volume as a list shows it: what it is, or why that cannot be said.
#[derive(Debug)]
pub struct Entry {
    /// The name of its folder.
    pub name: String,
    /// What it is.
    pub record: anyhow::Result<VolumeRecord>,
}

impl Volumes {
    /// The volumes below a folder. Creates nothing.
    pub fn at(root: PathBuf) -> Volumes {
        Volumes { root }
    }

    /// The volume of a name, whether it is there or not.
    pub fn named(&self, name: &VolumeName) -> Volume {
        Volume {
            name: name.clone(),
            dir: self.root.join(name.as_str()),
        }
    }

    /// The volume of a name, which must be there.
    pub fn find(&self, name: &VolumeName) -> anyhow::Result<Volume> {
        let volume = self.named(name);
        if volume.dir.is_dir() {
            return Ok(volume);
        }
        Err(no_such_volume(name).into())
    }

    /// Makes a volume. `format` writes the empty file system of a disk. One of that name must not be there.
    pub fn create(
        &self,
        record: &VolumeRecord,
        format: impl FnOnce(&File) -> anyhow::Result<()>,
    ) -> anyhow::Result<Volume> {
        write::create_dir(&self.root)?;
        self.sweep();
        let volume = self.named(&record.name);
        let (new, lock) = NewFolder::create(&self.root)?;
        let cannot = || format!("cannot make the volume '{}'", record.name);
        match record.kind {
            VolumeKind::Disk => {
                let file =
                    File::create_new(new.path.join(layout::VOLUME_DISK)).with_context(cannot)?;
                format(&file)?;
                file.sync_all().with_context(cannot)?;
            }
            VolumeKind::Dir => write::create_dir(&new.path.join(layout::VOLUME_DATA))?,
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

    /// Every volume, sorted by name.
    pub fn list(&self) -> anyhow::Result<Vec<Entry>> {
        let mut names = folder_names(&self.root)?;
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        let entry = |name: String| {
            let record = match name.parse::<VolumeName>() {
                Ok(valid) => self.named(&valid).record(),
                Err(error) => Err(error.into()),
            };
            Entry { name, record }
        };
        Ok(names.into_iter().map(entry).collect())
    }

    /// Deletes what killed programs have left.
    fn sweep(&self) {
        for name in folder_names(&self.root).unwrap_or_default() {
            if name.starts_with(layout::NEW_PREFIX) || name.starts_with(layout::GONE_PREFIX) {
                let _ = sweep_folder(&self.root, &self.root.join(name));
            }
        }
    }
}

impl Volume {
    /// What it is.
    pub fn record(&self) -> anyhow::Result<VolumeRecord> {
        let path = self.dir.join(layout::VOLUME);
        let record: VolumeRecord = write::read_json(&path, VOLUME_BYTES_MAX)?
            .with_context(|| format!("'{}' is missing", path.display()))?;
        anyhow::ensure!(
            record.version == VOLUME_VERSION,
            "'{}' has version {}, and this program knows version {VOLUME_VERSION}",
            path.display(),
            record.version
        );
        Ok(record)
    }

    /// The image of a volume of the kind `disk`.
    pub fn disk(&self) -> PathBuf {
        self.dir.join(layout::VOLUME_DISK)
    }

    /// The folder of a volume of the kind `dir`.
    pub fn data(&self) -> PathBuf {
        self.dir.join(layout::VOLUME_DATA)
    }

    fn lock_path(&self) -> PathBuf {
        self.dir.join(layout::LOCK)
    }

    /// Whether a sandbox uses it.
    pub fn is_in_use(&self) -> anyhow::Result<bool> {
        lock::is_held(&self.lock_path())
    }

    /// Takes the lock for using the volume: `alone`, or together with others who do not.
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

    /// Removes the volume, which nobody may use.
    pub fn remove(&self) -> anyhow::Result<()> {
        let lock = self.lock(true)?;
        let root = self.dir.parent().unwrap_or(Path::new("."));
        let gone = root.join(format!("{}{}", layout::GONE_PREFIX, write::random_hex()?));
        std::fs::rename(&self.dir, &gone)
            .with_context(|| format!("cannot remove the volume '{}'", self.name))?;
        write::sync_dir(root)?;
        drop(lock);
        delete_folder(&gone)
    }

    fn in_use(&self) -> Failure {
        Failure::wrong_state(format!(
            "the volume '{}' is in use by a sandbox that runs",
            self.name
        ))
        .hint("a volume of the kind disk serves one sandbox at a time, or many that only read; one of the kind dir serves many")
    }
}

fn already_there(name: &VolumeName) -> Failure {
    Failure::wrong_state(format!("there is a volume '{name}' already")).hint(format!(
        "choose another name, or remove it: msb volume remove {name}"
    ))
}

fn no_such_volume(name: &VolumeName) -> Failure {
    Failure::not_found(format!("there is no volume '{name}'")).hint("`msb volume list` lists them")
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
            other: serde_json::Map::new(),
        }
    }

    #[test]
    fn a_volume_is_made_once_listed_and_removed_when_nobody_uses_it() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = Volumes::at(folder.path().join("volumes"));
        assert!(volumes.list().unwrap().is_empty());
        let volume = volumes
            .create(&record("data", VolumeKind::Disk), |_| Ok(()))
            .unwrap();
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
        assert_eq!(
            std::fs::read_dir(folder.path().join("volumes"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn a_disk_that_cannot_be_formatted_leaves_no_volume() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = Volumes::at(folder.path().to_owned());
        let failed = volumes.create(&record("v", VolumeKind::Disk), |_| anyhow::bail!("full"));
        assert_eq!(failed.unwrap_err().to_string(), "full");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_is_one_plain_name() {
        for wrong in ["", "..", "a/b", "-x", ".hidden", "a b"] {
            assert!(wrong.parse::<VolumeName>().is_err(), "{wrong}");
        }
        assert_eq!(
            "pg-data.1".parse::<VolumeName>().unwrap().as_str(),
            "pg-data.1"
        );
    }
}
