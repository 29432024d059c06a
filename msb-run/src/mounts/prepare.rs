//! What a sandbox's mounts need of the host, opened before its machine starts.
//!
//! Every path is walked without following a symbolic link: it was free of them when it was written down, so one that is
//! there now was put there since, perhaps by who wants a folder of somebody else's in a guest.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::machine::{Disk, Format, ShareEntry};
use libmsb::state::Home;
use libmsb::state::mounts::{Mount, Source};
use libmsb::state::spec::{RootSource, Spec};
use libmsb::state::volumes::{VolumeKind, VolumeName};
use msb_wire::boot::Root;
use msb_wire::mount::{GuestMount, MountSource};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use crate::guest::root_disk::{check_qcow2, hold};

/// The tag of the one share that holds all folders and files.
const SHARE_TAG: &str = "msb-mounts";

/// Mounts that are ready: what the machine gets, and what the guest is told.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// Disks, by descriptor.
    pub(crate) disks: Vec<Disk>,
    /// Entries of the share; none, and there is no share.
    pub(crate) entries: Vec<ShareEntry>,
    /// The guest's root, if it is no image.
    pub(crate) root: Option<Root>,
    /// What the guest is to mount besides.
    pub(crate) guest: Vec<GuestMount>,
    /// Images and locks, which the machine must hold as long as it lives.
    held: Vec<OwnedFd>,
}

impl Prepared {
    /// The tag of the share, by which the guest mounts it.
    pub(crate) fn tag() -> &'static str {
        SHARE_TAG
    }

    /// What the machine must hold.
    pub(crate) fn held(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.held.iter().map(OwnedFd::as_fd)
    }

    /// Whether something that the guest writes is there after it: then its file systems must be flushed at the end.
    pub(crate) fn outlive(&self) -> bool {
        let lasting = |mount: &GuestMount| {
            !mount.read_only && !matches!(mount.source, MountSource::Tmpfs { .. })
        };
        self.root.is_some() || self.guest.iter().any(lasting)
    }

    fn add_root(&mut self, root: &RootSource) -> anyhow::Result<()> {
        self.root = match root {
            RootSource::Image(_) => None,
            RootSource::RootFolder { path } => {
                let (entry, file) = self.share(Path::new(path.as_os_str()), false)?;
                if file {
                    return Err(Failure::usage("it is a file").into());
                }
                let tag = SHARE_TAG.to_owned();
                Some(Root::Share { tag, entry })
            }
            RootSource::RootImage {
                path,
                format,
                fstype,
            } => {
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
            Source::Disk {
                source,
                format,
                fstype,
            } => {
                let path = Path::new(source.as_os_str());
                let serial = self.disk(path, *format, mount.read_only)?;
                MountSource::Disk {
                    serial,
                    fstype: fstype.clone(),
                    grow: false,
                }
            }
            Source::Volume { name } => self.volume(home, name, mount)?,
            Source::Tmpfs { size_mib } => MountSource::Tmpfs {
                size_bytes: size_mib.map(|mib| mib << 20),
            },
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
        Ok(MountSource::Share {
            tag: SHARE_TAG.to_owned(),
            entry,
            file,
        })
    }

    /// Adds a folder or file to the share. Gives its name there, and whether it is a file.
    fn share(&mut self, path: &Path, read_only: bool) -> anyhow::Result<(String, bool)> {
        let opened = open_plainly(path, OFlags::PATH)?;
        let stat = fstat(&opened).context("cannot look at it")?;
        let file = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => false,
            FileType::RegularFile => true,
            _ => return Err(Failure::usage("it is neither a folder nor a file").into()),
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
        let alone = record.kind == VolumeKind::Disk && !mount.read_only;
        self.held.push(volume.lock(alone)?.into());
        match record.kind {
            VolumeKind::Dir => self.bind(&resolved(&volume.data())?, mount.read_only),
            VolumeKind::Disk => Ok(MountSource::Disk {
                serial: self.disk(&resolved(&volume.disk())?, Format::Raw, mount.read_only)?,
                fstype: Some("ext4".to_owned()),
                grow: !mount.read_only,
            }),
        }
    }

    /// Gives the disk's serial number.
    fn disk(&mut self, path: &Path, format: Format, read_only: bool) -> anyhow::Result<String> {
        let access = if read_only {
            OFlags::RDONLY
        } else {
            OFlags::RDWR
        };
        // A FIFO in its place must not keep us waiting.
        let file = File::from(open_plainly(path, access | OFlags::NONBLOCK)?);
        if !file.metadata().context("cannot look at it")?.is_file() {
            return Err(Failure::usage("it is not a file").into());
        }
        hold(&file, read_only)?;
        if format == Format::Qcow2 {
            check_qcow2(&file)?;
        }
        let serial = format!("msb-mount-{}", self.disks.len());
        self.disks.push(Disk {
            serial: serial.clone(),
            // By descriptor: the file that was checked is the one that is used, whatever its name is by now.
            path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            format,
            read_only,
            volatile: false,
        });
        self.held.push(file.into());
        Ok(serial)
    }
}

/// Opens all that the root and the mounts need. The first that cannot be had is the error.
pub(crate) fn prepare(home: &Home, spec: &Spec) -> anyhow::Result<Prepared> {
    let mut prepared = Prepared::default();
    prepared.add_root(&spec.root).with_context(|| {
        let name = spec.root.name();
        format!("cannot use '{}' as the root", escape(name.as_bytes()))
    })?;
    for mount in &spec.mounts {
        prepared.add(home, mount).with_context(|| {
            format!(
                "cannot mount {} at '{}'",
                described(&mount.source),
                mount.target.to_lossy()
            )
        })?;
    }
    Ok(prepared)
}

fn described(source: &Source) -> String {
    match source {
        Source::Bind { source } | Source::Disk { source, .. } => {
            format!("'{}'", escape(source.as_bytes()))
        }
        Source::Volume { name } => format!("the volume '{name}'"),
        Source::Tmpfs { .. } => "memory".to_owned(),
    }
}

/// The state directory itself may lie behind a symbolic link: that is its owner's.
fn resolved(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize()
        .with_context(|| format!("cannot open '{}'", path.display()))
}

/// Opens what was a path without symbolic links when the sandbox was made, and must be one still.
pub(crate) fn open_plainly(path: &Path, flags: OFlags) -> anyhow::Result<OwnedFd> {
    let opened = openat2(
        CWD,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    );
    opened.map_err(|error| match error {
        Errno::NOENT | Errno::NOTDIR => Failure::not_found("it is not there any more")
            .hint("put it back, or make the sandbox anew with another mount")
            .into(),
        Errno::LOOP => Failure::failed(
            "a symbolic link is on its way, which was none when the sandbox was made",
        )
        .into(),
        error => anyhow::Error::new(io::Error::from(error)).context("cannot open it"),
    })
}
