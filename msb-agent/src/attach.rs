//! What is mounted besides the root: folders of the host, disks, memory.
//!
//! Everything that a mount point's path goes through is the guest's own, so a symbolic link of the image leads nowhere but
//! to another place in the guest. Parents are mounted before children, whatever the order in which they were asked for.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use msb_wire::mount::{GuestMount, MountSource};
use rustix::fs::{Mode, OFlags, ext4_ioc_resize_fs, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use crate::console::{log, reason};
use crate::devices;
use crate::disk::{self, Disk};
use crate::root::{BLOCK_BYTES, Share};

/// Where a share is mounted for a moment: in the file system of devices, so that nothing of it stays on a disk.
const STAGE: &str = "/dev/.msb-share";

/// File systems that are tried on a disk of which nothing is known, as far as the kernel has them.
const FSTYPES: [&CStr; 2] = [c"ext4", c"erofs"];

/// Mounts all of them; in a restricted guest without setuid programs and devices, whatever is asked for. `share`: one that
/// is mounted already. Gives the tops of the disks that are written to, which must be clean at the end.
pub(crate) fn attach(
    mounts: &[GuestMount],
    restricted: bool,
    share: Option<Share>,
) -> Result<Vec<OwnedFd>, String> {
    let mut disks = Vec::new();
    let mut stage = share.map(Stage::from);
    for mount in parents_first(mounts) {
        let mount = &GuestMount {
            nosuid: mount.nosuid || restricted,
            nodev: mount.nodev || restricted,
            ..mount.clone()
        };
        let target = Path::new(mount.target.as_os_str());
        let done = match &mount.source {
            MountSource::Share { tag, entry, file } => {
                Stage::of(&mut stage, tag).and_then(|stage| stage.bind(entry, *file, target, mount))
            }
            MountSource::Disk {
                serial,
                fstype,
                grow,
            } => disk_at(serial, fstype.as_deref(), *grow, target, mount)
                .map(|top| disks.extend(top)),
            MountSource::Tmpfs { size_bytes } => tmpfs(*size_bytes, target, mount),
        };
        done.map_err(|why| format!("cannot mount '{}': {why}", target.display()))?;
    }
    Ok(disks)
}

/// A mount hides what lies below its target: so the shorter path comes first.
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

/// A share as a whole, in sight while its entries are bound to where they belong. A second mount of the same device would
/// find a connection that is in use, so it stays until the last is done.
struct Stage {
    tag: String,
    /// Where it is mounted.
    at: PathBuf,
    /// Its top, if it was mounted for the root, where no path leads any more.
    _top: Option<OwnedFd>,
}

impl From<Share> for Stage {
    fn from(share: Share) -> Stage {
        Stage {
            at: format!("/proc/self/fd/{}", share.top.as_raw_fd()).into(),
            tag: share.tag,
            _top: Some(share.top),
        }
    }
}

impl Stage {
    /// The stage of a share, which is `there` already or appears.
    fn of<'a>(there: &'a mut Option<Stage>, tag: &str) -> Result<&'a Stage, String> {
        let stage = match there.take() {
            Some(stage) if stage.tag == tag => stage,
            other => {
                drop(other);
                Stage::mount(tag)?
            }
        };
        Ok(there.insert(stage))
    }

    fn mount(tag: &str) -> Result<Stage, String> {
        fs::create_dir(STAGE)
            .map_err(|error| format!("cannot create '{STAGE}': {}", reason(error)))?;
        let stage = Stage {
            tag: tag.to_owned(),
            at: STAGE.into(),
            _top: None,
        };
        devices::wait_for_share().map_err(|error| format!("the share '{tag}': {error}"))?;
        mount(tag, STAGE, c"virtiofs", MountFlags::empty(), c"")
            .map_err(|error| format!("the share '{tag}': {}", reason(error)))?;
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

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
        let _ = fs::remove_dir(STAGE);
    }
}

/// The host sends plain names; what is not one would lead out of the share.
pub(crate) fn check_entry(entry: &str) -> Result<(), String> {
    if entry.is_empty() || entry.contains('/') || entry == ".." {
        return Err(format!("'{entry}' is no entry of a share"));
    }
    Ok(())
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
    let top = open(
        target,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let top = top.map_err(reason)?;
    if grow && let Err(error) = ext4_ioc_resize_fs(&top, disk.bytes / BLOCK_BYTES) {
        let (at, error) = (target.display(), reason(error));
        log(&format!(
            "cannot grow the file system at '{at}' to its disk: {error}"
        ));
    }
    Ok(Some(top))
}

/// Mounts a disk as the file system that it is said to be, or else as the first that it can be.
pub(crate) fn mount_disk(
    disk: &Disk,
    fstype: Option<&str>,
    target: &Path,
    flags: MountFlags,
) -> Result<(), String> {
    let named = fstype.map(CString::new).transpose();
    let named = named.map_err(|_| "the name of its file system holds a NUL byte".to_owned())?;
    match &named {
        Some(kind) => mount_disk_as(disk, kind, target, flags),
        None => FSTYPES
            .iter()
            .map(|kind| mount_disk_as(disk, kind, target, flags))
            .reduce(|done, next| done.or(next))
            .unwrap_or_else(|| Err("no file system is known".to_owned())),
    }
}

/// Freed blocks of a disk that is written to go back to the host. A journal that a crash has left cannot be replayed on
/// a disk that is only read: then the file system is taken as it is.
fn mount_disk_as(disk: &Disk, kind: &CStr, target: &Path, flags: MountFlags) -> Result<(), String> {
    let read_only = flags.contains(MountFlags::RDONLY);
    let options: &[&CStr] = match (kind == c"ext4", read_only) {
        (true, false) => &[c"discard"],
        (true, true) => &[c"", c"noload"],
        (false, _) => &[c""],
    };
    let mut result = Err(Errno::INVAL);
    for options in options {
        result = mount(&disk.node, target, kind, flags, *options);
        if result.is_ok() {
            return Ok(());
        }
    }
    result.map_err(|error| format!("the disk as {}: {}", kind.to_string_lossy(), reason(error)))
}

fn tmpfs(size_bytes: Option<u64>, target: &Path, wanted: &GuestMount) -> Result<(), String> {
    make_target(target, false)?;
    let size = size_bytes.map(|bytes| format!("size={bytes}"));
    // As /tmp is anywhere else: who mounts memory wants everybody to write to it.
    let options = [Some("mode=1777".to_owned()), size];
    let options: Vec<String> = options.into_iter().flatten().collect();
    let options = CString::new(options.join(",")).unwrap_or_default();
    mount(
        c"tmpfs",
        target,
        c"tmpfs",
        flags(wanted),
        options.as_c_str(),
    )
    .map_err(reason)
}

/// Makes what is missing of a mount point: folders, and for a file an empty file.
fn make_target(target: &Path, file: bool) -> Result<(), String> {
    let missing =
        |path: &Path, error| format!("cannot create '{}': {}", path.display(), reason(error));
    let folder: PathBuf = if file {
        target.parent().unwrap_or(Path::new("/")).to_owned()
    } else {
        target.to_owned()
    };
    fs::create_dir_all(&folder).map_err(|error| missing(&folder, error))?;
    if file && !target.exists() {
        File::create_new(target).map_err(|error| missing(target, error))?;
    }
    match (file, target.is_dir()) {
        (true, true) => Err("a file cannot be mounted on a folder".to_owned()),
        (false, false) => Err("it is there and no folder".to_owned()),
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
        let order: Vec<String> = parents_first(&mounts)
            .iter()
            .map(|mount| mount.target.to_lossy())
            .collect();
        assert_eq!(order, ["/z", "/a", "/a/b", "/a/b/c"]);
    }

    #[test]
    fn each_option_is_its_flag() {
        let mut mount = at("/x");
        assert_eq!(flags(&mount), MountFlags::empty());
        mount.read_only = true;
        mount.nodev = true;
        assert_eq!(flags(&mount), MountFlags::RDONLY | MountFlags::NODEV);
    }

    #[test]
    fn an_entry_that_leads_out_of_the_share_is_refused() {
        for entry in ["", "..", "a/b", "/etc"] {
            let stage = std::mem::ManuallyDrop::new(Stage {
                tag: "t".into(),
                at: STAGE.into(),
                _top: None,
            });
            assert!(
                stage
                    .bind(entry, false, Path::new("/x"), &at("/x"))
                    .is_err()
            );
        }
    }
}
