//! Mounts besides the root: shares of the host, disks, tmpfs.
//!
//! A mount point's path is resolved inside the guest's root, so a symbolic link of the image leads
//! only to another place in the guest. Parents are mounted before children, independent of the
//! order in the request.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use msb_wire::mount::{GuestMount, MountSource};
use rustix::fs::{Mode, OFlags, ext4_ioc_resize_fs, open};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use crate::console::{log, reason};
use crate::devices;
use crate::disk;
use crate::filesystem::{BLOCK_BYTES, MountedShare, check_entry, mount_disk};

/// Temporary mount point of a share: in devtmpfs, so that no trace of it remains on a disk.
const STAGING: &str = "/dev/.msb-share";

/// Mounts all entries; in a restricted guest always with nosuid and nodev. `share` is a share that
/// is mounted already. Returns the top directories of writable disks, which must be clean at the
/// end.
pub(crate) fn mount_all(
    mounts: &[GuestMount],
    restricted: bool,
    share: Option<MountedShare>,
) -> Result<Vec<OwnedFd>, String> {
    let mut disks = Vec::new();
    let mut stage = share.map(StagedShare::from);
    for mount in parents_first(mounts) {
        let mount = &GuestMount {
            nosuid: mount.nosuid || restricted,
            nodev: mount.nodev || restricted,
            ..mount.clone()
        };
        let target = Path::new(mount.target.as_os_str());
        let done = match &mount.source {
            MountSource::Share { tag, entry, file } => StagedShare::of(&mut stage, tag)
                .and_then(|stage| stage.bind(entry, *file, target, mount)),
            MountSource::Disk { serial, fstype, grow } => {
                disk_at(serial, fstype.as_deref(), *grow, target, mount)
                    .map(|top| disks.extend(top))
            }
            MountSource::Tmpfs { size_bytes } => tmpfs(*size_bytes, target, mount),
        };
        done.map_err(|why| format!("cannot mount '{}': {why}", target.display()))?;
    }
    Ok(disks)
}

/// Sorts mounts by depth. A mount hides everything below its target, so the shorter path comes
/// first.
fn parents_first(mounts: &[GuestMount]) -> Vec<&GuestMount> {
    let depth = |mount: &&GuestMount| Path::new(mount.target.as_os_str()).components().count();
    let mut sorted: Vec<&GuestMount> = mounts.iter().collect();
    sorted.sort_by_key(depth);
    sorted
}

fn flags(mount: &GuestMount) -> MountFlags {
    let flags = [
        (mount.read_only, MountFlags::RDONLY),
        (mount.noexec, MountFlags::NOEXEC),
        (mount.nosuid, MountFlags::NOSUID),
        (mount.nodev, MountFlags::NODEV),
    ];
    let on = flags.iter().filter(|(on, _)| *on).map(|(_, flag)| *flag);
    on.fold(MountFlags::empty(), MountFlags::union)
}

/// A share that is mounted while its entries are bound to their targets. It stays mounted until the
/// last entry is done, because a second mount of the same device would find its connection in use.
struct StagedShare {
    tag: String,
    /// Mount point.
    at: PathBuf,
    /// Top directory, if the share was mounted for the root and has no path any more.
    _top: Option<OwnedFd>,
}

impl From<MountedShare> for StagedShare {
    fn from(share: MountedShare) -> StagedShare {
        StagedShare {
            at: format!("/proc/self/fd/{}", share.top.as_raw_fd()).into(),
            tag: share.tag,
            _top: Some(share.top),
        }
    }
}

impl StagedShare {
    /// Returns the stage of a share: `there` if it is that share, else a new one.
    fn of<'a>(there: &'a mut Option<StagedShare>, tag: &str) -> Result<&'a StagedShare, String> {
        let stage = match there.take() {
            Some(stage) if stage.tag == tag => stage,
            other => {
                drop(other);
                StagedShare::mount(tag)?
            }
        };
        Ok(there.insert(stage))
    }

    fn mount(tag: &str) -> Result<StagedShare, String> {
        fs::create_dir(STAGING)
            .map_err(|error| format!("cannot create '{STAGING}': {}", reason(error)))?;
        let stage = StagedShare { tag: tag.to_owned(), at: STAGING.into(), _top: None };
        devices::mount_share(tag, STAGING).map_err(|why| format!("the share '{tag}': {why}"))?;
        Ok(stage)
    }

    fn bind(
        &self,
        entry: &str,
        file: bool,
        target: &Path,
        wanted: &GuestMount,
    ) -> Result<(), String> {
        check_entry(entry)?;
        make_target(target, file)?;
        mount_bind(self.at.join(entry), target)
            .and_then(|()| mount_remount(target, MountFlags::BIND | flags(wanted), c""))
            .map_err(reason)
    }
}

impl Drop for StagedShare {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
        let _ = fs::remove_dir(STAGING);
    }
}

fn disk_at(
    serial: &str,
    fstype: Option<&str>,
    grow: bool,
    target: &Path,
    wanted: &GuestMount,
) -> Result<Option<OwnedFd>, String> {
    let [disk] = disk::find([serial])?;
    make_target(target, false)?;
    mount_disk(&disk, fstype, target, flags(wanted))?;
    if wanted.read_only {
        return Ok(None);
    }
    let top = open(target, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let top = top.map_err(reason)?;
    if grow && let Err(error) = ext4_ioc_resize_fs(&top, disk.bytes / BLOCK_BYTES) {
        let (at, error) = (target.display(), reason(error));
        log(&format!("cannot grow the file system at '{at}' to its disk: {error}"));
    }
    Ok(Some(top))
}

fn tmpfs(size_bytes: Option<u64>, target: &Path, wanted: &GuestMount) -> Result<(), String> {
    make_target(target, false)?;
    let size = size_bytes.map(|bytes| format!("size={bytes}"));
    // Same mode as /tmp: a tmpfs mount is meant to be writable for all users.
    let options = [Some("mode=1777".to_owned()), size];
    let options: Vec<String> = options.into_iter().flatten().collect();
    let options = CString::new(options.join(",")).unwrap_or_default();
    mount(c"tmpfs", target, c"tmpfs", flags(wanted), options.as_c_str()).map_err(reason)
}

/// Creates a missing mount point: directories, or an empty file with its parents.
fn make_target(target: &Path, file: bool) -> Result<(), String> {
    let missing =
        |path: &Path, error| format!("cannot create '{}': {}", path.display(), reason(error));
    let directory: PathBuf =
        if file { target.parent().unwrap_or(Path::new("/")).to_owned() } else { target.to_owned() };
    fs::create_dir_all(&directory).map_err(|error| missing(&directory, error))?;
    if file && !target.exists() {
        File::create_new(target).map_err(|error| missing(target, error))?;
    }
    match (file, target.is_dir()) {
        (true, true) => Err("cannot mount a file on a directory".to_owned()),
        (false, false) => Err("the mount point is not a directory".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(target: &str) -> GuestMount {
        GuestMount {
            target: target.into(),
            source: MountSource::Tmpfs { size_bytes: None },
            read_only: false,
            noexec: false,
            nosuid: false,
            nodev: false,
        }
    }

    #[test]
    fn parents_come_before_children_and_equals_stay_in_order() {
        let mounts = ["/a/b/c", "/z", "/a/b", "/a"].map(at);
        let order: Vec<String> =
            parents_first(&mounts).iter().map(|mount| mount.target.to_lossy()).collect();
        assert_eq!(order, ["/z", "/a", "/a/b", "/a/b/c"]);
    }

    #[test]
    fn options_become_mount_flags() {
        let mut mount = at("/x");
        assert_eq!(flags(&mount), MountFlags::empty());
        mount.read_only = true;
        mount.nodev = true;
        assert_eq!(flags(&mount), MountFlags::RDONLY | MountFlags::NODEV);
    }

    #[test]
    fn an_entry_that_leads_out_of_the_share_is_refused() {
        for entry in ["", "..", "a/b", "/etc"] {
            let stage = std::mem::ManuallyDrop::new(StagedShare {
                tag: "t".into(),
                at: STAGING.into(),
                _top: None,
            });
            assert!(stage.bind(entry, false, Path::new("/x"), &at("/x")).is_err());
        }
    }
}
