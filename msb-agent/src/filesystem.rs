//! Parts that the root and the other mounts share: mounted shares, and mounting of disks.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::console::reason;
use crate::disk::Disk;

/// Block size of the ext4 file system in bytes.
pub(crate) const BLOCK_BYTES: u64 = 4096;

/// File systems that are tried on a disk without a given type, if the kernel supports them.
const FSTYPES: [&CStr; 2] = [c"ext4", c"erofs"];

/// A mounted share.
pub(crate) struct MountedShare {
    /// Tag of the virtiofs device.
    pub(crate) tag: String,
    /// Top directory.
    pub(crate) top: OwnedFd,
}

/// Checks that an entry is a plain name. Anything else would lead out of the share.
pub(crate) fn check_entry(entry: &str) -> Result<(), String> {
    if entry.is_empty() || entry.contains('/') || entry == ".." {
        return Err(format!("invalid share entry '{entry}'"));
    }
    Ok(())
}

/// Mounts a disk with the given file system, or else with the first one that works.
pub(crate) fn mount_disk(
    disk: &Disk,
    fstype: Option<&str>,
    target: &Path,
    flags: MountFlags,
) -> Result<(), String> {
    let named = fstype.map(CString::new).transpose();
    let named = named.map_err(|_| "the file system type contains a NUL byte".to_owned())?;
    match &named {
        Some(kind) => mount_disk_as(disk, kind, target, flags),
        None => FSTYPES
            .iter()
            .map(|kind| mount_disk_as(disk, kind, target, flags))
            .reduce(|done, next| done.or(next))
            .unwrap_or_else(|| Err("no supported file system".to_owned())),
    }
}

/// Mounts a disk as one file system. On a writable disk, freed blocks are returned to the host. A
/// journal that was left by a crash cannot be replayed on a read-only disk; then the file system is
/// mounted without it.
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
