//! Snapshots on disk: create, find, list, remove. Each is a directory with a manifest and a disk;
//! man page msb-state(5).
//!
//! A snapshot never changes. Its directory is created under a `.new-` name and appears by a rename,
//! and is removed by a rename. A reader opens the files and needs no lock: an open file outlives the
//! removal. A snapshot in another place is indexed by a symbolic link.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, ensure};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::lock::Lock;
use super::sandboxes::{NewDirectory, delete_directory, directory_names, sweep_directory};
use super::snapshot_manifest::{MANIFEST_BYTES_MAX, SnapshotManifest};
use super::{layout, write};
use crate::cli::args::SandboxName;
use crate::cli::error::{Code, Failure};
use crate::cli::escape::escape;

/// The name of a snapshot, in the form of a sandbox's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName(String);

impl SnapshotName {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SnapshotName {
    type Err = Failure;

    fn from_str(text: &str) -> Result<SnapshotName, Failure> {
        match text.parse::<SandboxName>() {
            Ok(name) => Ok(SnapshotName(name.as_str().to_owned())),
            Err(_) => {
                let message = format!("'{}' cannot be the name of a snapshot", escape(text));
                Err(Failure::usage(message).hint(
                    "use A-Z, a-z, 0-9, '.', '_' and '-', a letter or digit first, at most 128; \
                     a path contains '/'",
                ))
            }
        }
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The directory of snapshots.
#[derive(Clone, Debug)]
pub struct Snapshots {
    root: PathBuf,
}

/// A directory of a snapshot that is not valid yet. It is deleted unless it is published.
pub struct NewSnapshot {
    directory: NewDirectory,
    lock: Lock,
}

impl fmt::Debug for NewSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NewSnapshot").field(&self.directory.path).finish()
    }
}

impl NewSnapshot {
    /// Creates the directory below the one of the snapshot. Deletes what killed programs have left
    /// there.
    pub fn create(parent: &Path) -> anyhow::Result<NewSnapshot> {
        write::create_dir(parent)?;
        Snapshots::at(parent.to_owned()).sweep_unfinished();
        let (directory, lock) = NewDirectory::create(parent)?;
        Ok(NewSnapshot { directory, lock })
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.directory.path
    }
}

/// A snapshot that was opened: its manifest is valid.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Name: of the entry in the directory of snapshots, else of its own directory.
    pub name: String,
    /// Path of its directory.
    pub dir: PathBuf,
    /// The manifest.
    pub manifest: SnapshotManifest,
}

/// An entry of a list of snapshots.
#[derive(Debug)]
pub struct SnapshotEntry {
    /// Name of its entry.
    pub name: String,
    /// The snapshot, or the error of reading it.
    pub snapshot: anyhow::Result<Snapshot>,
}

impl Snapshots {
    /// Returns the snapshots below a directory. Creates nothing.
    pub fn at(root: PathBuf) -> Snapshots {
        Snapshots { root }
    }

    /// Returns the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of a name, which may be missing.
    pub fn path(&self, name: &SnapshotName) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// Opens the snapshot of a name.
    pub fn find(&self, name: &SnapshotName) -> anyhow::Result<Snapshot> {
        let path = self.path(name);
        if !path.is_dir() {
            return Err(no_such_snapshot(name.as_str()).into());
        }
        Snapshot::open(&path)
    }

    /// Returns all snapshots, sorted by name.
    pub fn list(&self) -> anyhow::Result<Vec<SnapshotEntry>> {
        let mut names = directory_names(&self.root)?;
        names.retain(|name| !name.starts_with('.') && self.root.join(name).is_dir());
        names.sort();
        let entry = |name: String| {
            let snapshot = Snapshot::open(&self.root.join(&name));
            SnapshotEntry { name, snapshot }
        };
        Ok(names.into_iter().map(entry).collect())
    }

    /// Creates a snapshot in a directory, which must not exist unless `force` replaces a snapshot.
    /// `fill` writes the disk and returns the manifest.
    pub fn create(
        &self,
        target: &Path,
        force: bool,
        fill: impl FnOnce(&Path) -> anyhow::Result<SnapshotManifest>,
    ) -> anyhow::Result<Snapshot> {
        check_target(target, force)?;
        let parent = target.parent().context("a snapshot needs a directory above it")?;
        let new = NewSnapshot::create(parent)?;
        let manifest = fill(new.path())?;
        self.publish(new, target, force, &manifest)
    }

    /// Writes the manifest of a new snapshot and lets it appear. Indexes one in another place.
    pub fn publish(
        &self,
        new: NewSnapshot,
        target: &Path,
        force: bool,
        manifest: &SnapshotManifest,
    ) -> anyhow::Result<Snapshot> {
        let NewSnapshot { directory: new, lock } = new;
        write::replace(&new.path.join(layout::SNAPSHOT_MANIFEST), &manifest.to_bytes()?)?;
        write::sync_dir(&new.path)?;
        loop {
            match renameat_with(CWD, &new.path, CWD, target, RenameFlags::NOREPLACE) {
                Ok(()) => break new.keep(),
                Err(Errno::EXIST) if force => {
                    check_target(target, force)?;
                    remove_directory(target)?;
                }
                Err(Errno::EXIST) => return Err(already_there(target).into()),
                Err(error) => {
                    return Err(std::io::Error::from(error)).with_context(|| {
                        format!("cannot create the snapshot '{}'", target.display())
                    });
                }
            }
        }
        let parent = target.parent().unwrap_or(Path::new("/"));
        write::sync_dir(parent)?;
        drop(lock);
        if parent != self.root {
            self.index(target)?;
        }
        Snapshot::open(target)
    }

    /// Indexes a snapshot in another place by a symbolic link. Returns whether it was new.
    pub fn index(&self, directory: &Path) -> anyhow::Result<bool> {
        let target = directory
            .canonicalize()
            .with_context(|| format!("cannot open '{}'", directory.display()))?;
        let names = directory_names(&self.root)?;
        if names
            .iter()
            .any(|name| self.root.join(name).canonicalize().is_ok_and(|indexed| indexed == target))
        {
            return Ok(false);
        }
        write::create_dir(&self.root)?;
        let base = file_name(&target);
        let base = if base.parse::<SnapshotName>().is_ok() { base } else { "snapshot".to_owned() };
        for number in 1_u32.. {
            let name = if number == 1 { base.clone() } else { format!("{base}-{number}") };
            match std::os::unix::fs::symlink(&target, self.root.join(name)) {
                Ok(()) => break,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).context("cannot index the snapshot"),
            }
        }
        write::sync_dir(&self.root)?;
        Ok(true)
    }

    /// Returns the snapshots of any directory: the entries with a manifest.
    pub fn list_valid(&self) -> anyhow::Result<Vec<SnapshotEntry>> {
        let mut entries = self.list()?;
        entries
            .retain(|entry| self.root.join(&entry.name).join(layout::SNAPSHOT_MANIFEST).exists());
        Ok(entries)
    }

    /// Removes a snapshot that cannot be opened, by its name.
    pub fn remove_damaged(&self, name: &SnapshotName) -> anyhow::Result<()> {
        let path = self.path(name);
        if path.is_symlink() {
            return std::fs::remove_file(&path)
                .with_context(|| format!("cannot remove '{}'", path.display()));
        }
        remove_directory(&path)
    }

    /// Removes a snapshot, and its entry if it is in another place.
    pub fn remove(&self, snapshot: &Snapshot) -> anyhow::Result<()> {
        remove_directory(&snapshot.dir)?;
        self.sweep();
        Ok(())
    }

    /// Deletes what killed programs have left, and links that lead to no snapshot.
    pub fn sweep(&self) {
        self.sweep_unfinished();
        for name in directory_names(&self.root).unwrap_or_default() {
            let path = self.root.join(&name);
            if path.is_symlink() && !path.exists() {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Deletes directories that killed programs have left. Only directories with a lock file of
    /// this program, and empty ones, are touched, since the place may be any directory. A directory
    /// is empty before its lock file is created and after it was deleted.
    fn sweep_unfinished(&self) {
        for name in directory_names(&self.root).unwrap_or_default() {
            let path = self.root.join(&name);
            let is_left =
                name.starts_with(layout::NEW_PREFIX) || name.starts_with(layout::GONE_PREFIX);
            if !is_left || path.is_symlink() {
                continue;
            }
            let _ = if path.join(layout::LOCK).is_file() {
                sweep_directory(&self.root, &path)
            } else {
                std::fs::remove_dir(&path).map_err(Into::into)
            };
        }
    }
}

impl Snapshot {
    /// Opens a snapshot: checks its manifest, and the type and size of its disk.
    pub fn open(directory: &Path) -> anyhow::Result<Snapshot> {
        let dir = directory
            .canonicalize()
            .with_context(|| format!("cannot open '{}'", directory.display()))?;
        Snapshot::read(&dir, file_name(directory)).with_context(|| {
            let message = format!("the snapshot '{}' is damaged", escape(&file_name(directory)));
            Failure::failed(message).code(Code::SnapshotIntegrity)
        })
    }

    fn read(dir: &Path, name: String) -> anyhow::Result<Snapshot> {
        let path = dir.join(layout::SNAPSHOT_MANIFEST);
        let bytes = write::read_bounded(&path, MANIFEST_BYTES_MAX)?
            .with_context(|| format!("'{}' is missing", path.display()))?;
        let manifest = SnapshotManifest::parse(&bytes)?;
        let snapshot = Snapshot { name, dir: dir.to_owned(), manifest };
        snapshot.open_disk()?;
        Ok(snapshot)
    }

    /// Returns the path of the disk.
    pub fn disk(&self) -> PathBuf {
        self.dir.join(&self.manifest.upper.file)
    }

    /// Returns the path of the memory, if the snapshot has one. The file is missing in a snapshot
    /// that was imported without it.
    pub fn memory(&self) -> Option<PathBuf> {
        self.manifest.has_memory().then(|| self.dir.join(layout::MEMORY))
    }

    /// Opens the disk for reading and checks its size.
    pub fn open_disk(&self) -> anyhow::Result<File> {
        let path = self.disk();
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags).open(&path);
        let file = file.with_context(|| format!("cannot open the disk '{}'", path.display()))?;
        let meta = file.metadata()?;
        ensure!(meta.is_file(), "the disk '{}' is not a regular file", path.display());
        ensure!(
            meta.len() == self.manifest.upper.size_bytes,
            "the disk '{}' has {} bytes instead of {}",
            path.display(),
            meta.len(),
            self.manifest.upper.size_bytes
        );
        Ok(file)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Refuses a target that exists, unless it is a snapshot and `force` replaces it.
fn check_target(target: &Path, force: bool) -> anyhow::Result<()> {
    if target.symlink_metadata().is_err() {
        return Ok(());
    }
    if !force {
        return Err(already_there(target).into());
    }
    let is_snapshot = target.join(layout::SNAPSHOT_MANIFEST).is_file() && !target.is_symlink();
    ensure!(is_snapshot, "'{}' exists and is not a snapshot", target.display());
    Ok(())
}

/// Removes a directory by a rename beside it, then deletes it.
fn remove_directory(dir: &Path) -> anyhow::Result<()> {
    let root = dir.parent().unwrap_or(Path::new("/"));
    // A sweep deletes the rest if this process is killed. Snapshots of other programs have no lock.
    drop(Lock::try_exclusive(&dir.join(layout::LOCK))?);
    let gone = root.join(format!("{}{}", layout::GONE_PREFIX, write::random_hex()?));
    std::fs::rename(dir, &gone)
        .with_context(|| format!("cannot remove the snapshot '{}'", dir.display()))?;
    write::sync_dir(root)?;
    delete_directory(&gone)
}

fn already_there(target: &Path) -> Failure {
    Failure::wrong_state(format!("there is a snapshot '{}' already", target.display()))
        .code(Code::SnapshotAlreadyExists)
        .hint("choose another name, or replace it with --force")
}

/// Returns the error for a snapshot that does not exist.
pub fn no_such_snapshot(name: &str) -> Failure {
    Failure::not_found(format!("there is no snapshot '{}'", escape(name)))
        .code(Code::SnapshotNotFound)
        .hint("`msb snapshot list` lists them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::snapshot_manifest::{SnapshotDisk, SnapshotImage};

    fn manifest(size_bytes: u64) -> SnapshotManifest {
        SnapshotManifest {
            schema: 1,
            format: "raw".to_owned(),
            fstype: "ext4".to_owned(),
            image: SnapshotImage {
                reference: "x".to_owned(),
                manifest_digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            },
            parent: None,
            created_at: "2026-01-01T00:00:00+00:00".to_owned(),
            labels: Default::default(),
            upper: SnapshotDisk {
                file: layout::SNAPSHOT_DISK.to_owned(),
                size_bytes,
                integrity: None,
            },
            source_sandbox: None,
        }
    }

    fn fill(dir: &Path) -> anyhow::Result<SnapshotManifest> {
        write::create_file(&dir.join(layout::SNAPSHOT_DISK))?.set_len(4096)?;
        Ok(manifest(4096))
    }

    #[test]
    fn a_snapshot_is_created_once_listed_replaced_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::at(directory.path().join("snapshots"));
        assert!(snapshots.list().unwrap().is_empty());
        let name: SnapshotName = "one".parse().unwrap();
        let path = snapshots.path(&name);
        assert!(snapshots.create(&path, false, |_| anyhow::bail!("full")).is_err());
        assert!(snapshots.list().unwrap().is_empty());
        snapshots.create(&path, false, fill).unwrap();
        let again = snapshots.create(&path, false, fill).unwrap_err();
        assert!(again.to_string().contains("already"), "{again}");
        snapshots.create(&path, true, fill).unwrap();
        assert_eq!(snapshots.list().unwrap().len(), 1);
        snapshots.remove(&snapshots.find(&name).unwrap()).unwrap();
        assert_eq!(std::fs::read_dir(snapshots.root()).unwrap().count(), 0);
    }

    #[test]
    fn a_snapshot_in_another_place_is_listed_until_it_has_gone() {
        let directory = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::at(directory.path().join("snapshots"));
        let place = directory.path().join("elsewhere");
        snapshots.create(&place, false, fill).unwrap();
        assert!(!snapshots.index(&place).unwrap());
        let listed = snapshots.list().unwrap();
        assert_eq!(listed[0].name, "elsewhere");
        let found = snapshots.find(&"elsewhere".parse().unwrap()).unwrap();
        assert_eq!(found.dir, place.canonicalize().unwrap());
        snapshots.remove(&found).unwrap();
        assert!(!place.exists() && snapshots.list().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(snapshots.root()).unwrap().count(), 0);
    }

    #[test]
    fn a_kill_at_any_moment_leaves_what_the_next_command_deletes() {
        let directory = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::at(directory.path().join("snapshots"));
        let left = |name: &str, files: &[&str]| {
            let path = snapshots.root().join(name);
            std::fs::create_dir_all(&path).unwrap();
            for file in files {
                std::fs::write(path.join(file), "").unwrap();
            }
        };
        left(".new-0000000000000001", &[]);
        left(".new-0000000000000002", &[layout::LOCK]);
        left(".new-0000000000000003", &[layout::LOCK, layout::SNAPSHOT_DISK]);
        left(".gone-0000000000000004", &[layout::LOCK, layout::SNAPSHOT_DISK]);
        left(".gone-0000000000000005", &[]);
        left(".new-other", &["file"]);
        snapshots.create(&snapshots.root().join("one"), false, fill).unwrap();
        let mut names = directory_names(snapshots.root()).unwrap();
        names.sort();
        assert_eq!(names, [".new-other", "one"]);
    }

    #[test]
    fn a_snapshot_without_a_lock_file_gets_one_before_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::at(directory.path().join("snapshots"));
        let path = snapshots.root().join("foreign");
        snapshots.create(&path, false, fill).unwrap();
        std::fs::remove_file(path.join(layout::LOCK)).unwrap();
        let foreign = Snapshot::open(&path).unwrap();
        snapshots.remove(&foreign).unwrap();
        assert_eq!(std::fs::read_dir(snapshots.root()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_but_a_snapshot_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::at(directory.path().join("snapshots"));
        let place = directory.path().join("data");
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("file"), "kept").unwrap();
        assert!(snapshots.create(&place, true, fill).is_err());
        assert_eq!(std::fs::read(place.join("file")).unwrap(), b"kept");
    }

    #[test]
    fn a_disk_of_another_size_or_kind_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::at(directory.path().to_owned());
        let path = snapshots.path(&"s".parse().unwrap());
        snapshots.create(&path, false, fill).unwrap();
        let disk = path.join(layout::SNAPSHOT_DISK);
        File::options().write(true).open(&disk).unwrap().set_len(4095).unwrap();
        assert!(Snapshot::open(&path).is_err());
        std::fs::remove_file(&disk).unwrap();
        std::os::unix::fs::symlink("/dev/null", &disk).unwrap();
        assert!(Snapshot::open(&path).is_err());
    }
}
