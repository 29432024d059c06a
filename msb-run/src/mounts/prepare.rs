//! Host resources of a sandbox's mounts, opened before its VM starts.
//!
//! Every path is opened without following symbolic links. The path had none when it was recorded,
//! so a link that is there now was added since, perhaps by a user who wants to expose another
//! user's directory in a guest.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::machine::{DiskDevice, DiskImageFormat, ShareEntry};
use libmsb::state::Home;
use libmsb::state::mounts::{Mount, Source};
use libmsb::state::spec::{RootSource, Spec};
use libmsb::state::volumes::{VolumeKind, VolumeName};
use msb_wire::boot::Root;
use msb_wire::mount::{GuestMount, MountSource};
use rustix::fs::{FileType, OFlags, fstat};

use crate::host_file::{check_qcow2, lock_disk, open_no_symlinks};

/// Tag of the one share that holds all directories and files.
const SHARE_TAG: &str = "msb-mounts";

/// Opened mounts: the resources of the VM and the mount list of the guest.
#[derive(Debug, Default)]
pub(crate) struct PreparedMounts {
    /// Disks, by descriptor.
    pub(crate) disks: Vec<DiskDevice>,
    /// Entries of the share; without any there is no share.
    pub(crate) entries: Vec<ShareEntry>,
    /// Locks of the share are those of the host: it has a volume, which other guests may mount.
    pub(crate) host_locks: bool,
    /// Root of the guest, if it is not an image.
    pub(crate) root: Option<Root>,
    /// Other mounts of the guest.
    pub(crate) guest: Vec<GuestMount>,
    /// Images and locks that the VMM process must hold as long as it runs.
    held: Vec<OwnedFd>,
}

impl PreparedMounts {
    /// Returns the tag by which the guest mounts the share.
    pub(crate) fn tag() -> &'static str {
        SHARE_TAG
    }

    /// Returns the descriptors that the VMM process must hold.
    pub(crate) fn held(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.held.iter().map(OwnedFd::as_fd)
    }

    /// Returns whether the guest writes to persistent storage. If so, its file systems must be
    /// flushed at the end.
    pub(crate) fn has_persistent_writes(&self) -> bool {
        let is_persistent = |mount: &GuestMount| {
            !mount.read_only && !matches!(mount.source, MountSource::Tmpfs { .. })
        };
        self.root.is_some() || self.guest.iter().any(is_persistent)
    }

    fn add_root(&mut self, root: &RootSource) -> anyhow::Result<()> {
        self.root = match root {
            RootSource::Image(_) => None,
            RootSource::RootDirectory { path } => {
                let (entry, file) = self.share(Path::new(path.as_os_str()), false)?;
                if file {
                    return Err(Failure::usage("is a file, not a directory").into());
                }
                let tag = SHARE_TAG.to_owned();
                Some(Root::Share { tag, entry })
            }
            RootSource::RootImage { path, format, fstype } => {
                let serial = self.disk(Path::new(path.as_os_str()), *format, false)?;
                let fstype = fstype.clone();
                Some(Root::Disk { serial, fstype })
            }
        };
        Ok(())
    }

    fn add(&mut self, home: &Home, mount: &Mount) -> anyhow::Result<()> {
        let source = match &mount.source {
            Source::Bind { source } => self.bind(Path::new(source.as_os_str()), mount.read_only)?,
            Source::Disk { source, format, fstype } => {
                let path = Path::new(source.as_os_str());
                let serial = self.disk(path, *format, mount.read_only)?;
                MountSource::Disk { serial, fstype: fstype.clone(), grow: false }
            }
            Source::Volume { name } => self.volume(home, name, mount)?,
            Source::Tmpfs { size_mib } => {
                MountSource::Tmpfs { size_bytes: size_mib.map(|mib| mib << 20) }
            }
        };
        self.guest.push(GuestMount {
            target: mount.target.clone(),
            source,
            read_only: mount.read_only,
            noexec: mount.noexec,
            nosuid: mount.nosuid,
            nodev: mount.nodev,
        });
        Ok(())
    }

    fn bind(&mut self, path: &Path, read_only: bool) -> anyhow::Result<MountSource> {
        let (entry, file) = self.share(path, read_only)?;
        Ok(MountSource::Share { tag: SHARE_TAG.to_owned(), entry, file })
    }

    /// Adds a directory or file to the share. Returns the entry's name, and whether it is a file.
    fn share(&mut self, path: &Path, read_only: bool) -> anyhow::Result<(String, bool)> {
        let opened = open_no_symlinks(path, OFlags::PATH)?;
        let stat = fstat(&opened).context("cannot get its metadata")?;
        let file = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => false,
            FileType::RegularFile => true,
            _ => return Err(Failure::usage("not a directory or regular file").into()),
        };
        let name = self.entries.len().to_string();
        self.entries.push(ShareEntry {
            name: name.clone(),
            path: path.to_owned(),
            file,
            read_only,
            device: stat.st_dev,
            inode: stat.st_ino,
        });
        Ok((name, file))
    }

    fn volume(
        &mut self,
        home: &Home,
        name: &VolumeName,
        mount: &Mount,
    ) -> anyhow::Result<MountSource> {
        let volume = home.volumes().find(name)?;
        let record = volume.record()?;
        let exclusive = record.kind == VolumeKind::Disk && !mount.read_only;
        self.held.push(volume.lock(exclusive)?.into());
        match record.kind {
            VolumeKind::Dir => {
                self.host_locks = true;
                self.bind(&resolved(&volume.data())?, mount.read_only)
            }
            VolumeKind::Disk => Ok(MountSource::Disk {
                serial: self.disk(
                    &resolved(&volume.disk())?,
                    DiskImageFormat::Raw,
                    mount.read_only,
                )?,
                fstype: Some("ext4".to_owned()),
                grow: !mount.read_only,
            }),
        }
    }

    /// Adds a disk and returns its serial number.
    fn disk(
        &mut self,
        path: &Path,
        format: DiskImageFormat,
        read_only: bool,
    ) -> anyhow::Result<String> {
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        // Without O_NONBLOCK the open of a FIFO would block.
        let file = File::from(open_no_symlinks(path, access | OFlags::NONBLOCK)?);
        if !file.metadata().context("cannot get its metadata")?.is_file() {
            return Err(Failure::usage("not a regular file").into());
        }
        lock_disk(&file, read_only)?;
        if format == DiskImageFormat::Qcow2 {
            check_qcow2(&file)?;
        }
        let serial = format!("msb-mount-{}", self.disks.len());
        self.disks.push(DiskDevice {
            serial: serial.clone(),
            // By descriptor: the VM uses the file that was checked, even if its name has changed.
            path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            format,
            read_only,
            volatile: false,
        });
        self.held.push(file.into());
        Ok(serial)
    }
}

/// Opens the host resources of the root and the mounts. Returns the first error.
pub(crate) fn prepare(home: &Home, spec: &Spec) -> anyhow::Result<PreparedMounts> {
    let mut prepared = PreparedMounts::default();
    prepared.add_root(&spec.root).with_context(|| {
        let name = spec.root.name();
        format!("cannot use '{}' as the root file system", escape(name.as_bytes()))
    })?;
    for mount in &spec.mounts {
        prepared.add(home, mount).with_context(|| {
            format!("cannot mount {} at '{}'", source_name(&mount.source), mount.target.to_lossy())
        })?;
    }
    Ok(prepared)
}

fn source_name(source: &Source) -> String {
    match source {
        Source::Bind { source } | Source::Disk { source, .. } => {
            format!("'{}'", escape(source.as_bytes()))
        }
        Source::Volume { name } => format!("the volume '{name}'"),
        Source::Tmpfs { .. } => "memory".to_owned(),
    }
}

/// Resolves symbolic links of the state directory, whose owner may have placed it behind one.
fn resolved(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize().with_context(|| format!("cannot open '{}'", path.display()))
}
