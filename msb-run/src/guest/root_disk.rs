//! The disk that takes the guest's writes to its root (the upper layer).

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use libmsb::cli::args::parse_memory;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::state::guest::{DiskFormat, RootDisk};
use libmsb::state::spec::Spec;
use rustix::fs::OFlags;

use crate::engine::upper::SIZE_MIB_MIN;
use crate::host_file::{check_qcow2, lock_disk, open_no_symlinks};

/// Largest managed disk, in MiB: one tebibyte. The guest lays it out at its first start, at about
/// 100 GiB a second.
const SIZE_MIB_MAX: u64 = 1024 * 1024;
/// Default limit of an upper layer in memory, in MiB. It takes no memory by itself.
const TMPFS_MIB: u64 = 256;

/// Value of `--root-disk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RootDiskOption {
    /// Size of a managed disk, in MiB.
    Size(u64),
    /// Another place for the upper layer.
    Other(RootDisk),
}

/// Parses `SIZE`, `tmpfs`, `tmpfs:SIZE`, `PATH:raw` or `PATH:qcow2`.
pub(crate) fn parse_root_disk(text: &str) -> Result<RootDiskOption, Failure> {
    if text == "tmpfs" {
        let size_mib = TMPFS_MIB;
        return Ok(RootDiskOption::Other(RootDisk::Tmpfs { size_mib }));
    }
    if let Some(size) = text.strip_prefix("tmpfs:") {
        let size_mib = parse_mib(size)?;
        return Ok(RootDiskOption::Other(RootDisk::Tmpfs { size_mib }));
    }
    if !text.contains('/') {
        return parse_size(text).map(RootDiskOption::Size);
    }
    let format = match text.rsplit_once(':') {
        Some((path, "raw")) => Some((path, DiskFormat::Raw)),
        Some((path, "qcow2")) => Some((path, DiskFormat::Qcow2)),
        _ => None,
    };
    let (path, format) = format.ok_or_else(|| {
        Failure::usage(format!("the format of the disk '{}' is missing", escape(text)))
            .hint("add :raw or :qcow2, as in --root-disk ./disk.img:raw")
    })?;
    let path = std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("invalid path '{}': {error}", escape(path))))?;
    Ok(RootDiskOption::Other(RootDisk::Disk { path, format }))
}

/// Parses the size of a managed disk, in MiB.
pub(crate) fn parse_size(text: &str) -> Result<u64, Failure> {
    match parse_mib(text)? {
        mib if mib < SIZE_MIB_MIN => {
            Err(Failure::usage(format!("the size of the disk must be at least {SIZE_MIB_MIN} MiB")))
        }
        mib if mib > SIZE_MIB_MAX => Err(Failure::usage(format!(
            "the size of the disk must be at most {} GiB",
            SIZE_MIB_MAX / 1024
        ))),
        mib => Ok(mib),
    }
}

fn parse_mib(text: &str) -> Result<u64, Failure> {
    parse_memory(text).map(u64::from).map_err(|_| {
        Failure::usage(format!(
            "invalid size '{}': expected a value such as 512M or 8G",
            escape(text)
        ))
    })
}

/// Grows the managed disk, from the next start on. It never shrinks, as this could damage the file
/// system.
pub(crate) fn grow(spec: &mut Spec, size_mib: u64) -> Result<(), Failure> {
    if spec.upper() != Some(&RootDisk::Managed) {
        let message = "cannot grow the disk: the sandbox has no managed disk";
        return Err(Failure::usage(message));
    }
    if size_mib < spec.upper_mib {
        let message = format!("cannot shrink the disk: it has {} MiB", spec.upper_mib);
        return Err(Failure::usage(message));
    }
    spec.upper_mib = size_mib;
    Ok(())
}

impl RootDiskOption {
    /// Returns the root disk for the specification, and the size of a managed disk. Resolves
    /// symbolic links of a disk's path.
    pub(crate) fn resolve(&self) -> anyhow::Result<(RootDisk, Option<u64>)> {
        Ok(match self {
            RootDiskOption::Size(mib) => (RootDisk::Managed, Some(*mib)),
            RootDiskOption::Other(RootDisk::Disk { path, format }) => {
                let path = path
                    .canonicalize()
                    .with_context(|| format!("cannot open the disk '{}'", path.display()))?;
                let format = *format;
                (RootDisk::Disk { path, format }, None)
            }
            RootDiskOption::Other(other) => (other.clone(), None),
        })
    }
}

/// Opens a user's disk for a VM, and checks that it refers to no other file.
pub(crate) fn open(path: &Path, format: DiskFormat) -> anyhow::Result<File> {
    let shown = path.display();
    // Without O_NONBLOCK the open of a FIFO would block.
    let file = open_no_symlinks(path, OFlags::RDWR | OFlags::NONBLOCK);
    let file = File::from(file.with_context(|| format!("cannot open the disk '{shown}'"))?);
    let metadata = file.metadata().with_context(|| format!("cannot read the disk '{shown}'"))?;
    if !metadata.is_file() {
        return Err(Failure::failed(format!("the disk '{shown}' is not a regular file")).into());
    }
    lock_disk(&file, false).with_context(|| format!("cannot use the disk '{shown}'"))?;
    if format == DiskFormat::Qcow2 {
        check_qcow2(&file).with_context(|| format!("cannot use the disk '{shown}'"))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_disk_is_a_size_memory_or_a_file_of_a_format() {
        let other = |text| match parse_root_disk(text).unwrap() {
            RootDiskOption::Other(disk) => disk,
            RootDiskOption::Size(_) => panic!("{text}"),
        };
        assert_eq!(parse_root_disk("24M").unwrap(), RootDiskOption::Size(24));
        assert_eq!(other("tmpfs"), RootDisk::Tmpfs { size_mib: TMPFS_MIB });
        assert_eq!(other("tmpfs:1G"), RootDisk::Tmpfs { size_mib: 1024 });
        let path = "/a:b/disk".into();
        let format = DiskFormat::Qcow2;
        assert_eq!(other("/a:b/disk:qcow2"), RootDisk::Disk { path, format });
        for text in
            ["", "0", "23M", "2000000G", "tmpfs:0", "tmpfs:x", "./disk", "./disk:vmdk", "disk:raw"]
        {
            assert!(parse_root_disk(text).is_err(), "{text}");
        }
    }
}
