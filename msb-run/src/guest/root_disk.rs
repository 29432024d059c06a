//! Where what a guest writes to its root goes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;
use libmsb::cli::args::parse_memory;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::state::guest::{DiskFormat, RootDisk};
use libmsb::state::spec::Spec;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::engine::upper::SIZE_MIB_MIN;
use crate::mounts::open_plainly;

/// Largest managed disk, in MiB: one tebibyte. The guest lays it out when it first starts, at about 100 GiB a second.
const SIZE_MIB_MAX: u64 = 1024 * 1024;
/// What may be written to memory when nobody says how much, in MiB. It is an upper limit, and takes no memory by itself.
const TMPFS_MIB: u64 = 256;

/// What `--root-disk` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// A managed disk of so many MiB.
    Size(u64),
    /// Another place.
    Other(RootDisk),
}

/// Reads `SIZE`, `tmpfs`, `tmpfs:SIZE`, `PATH:raw` or `PATH:qcow2`.
pub(crate) fn parse_root_disk(text: &str) -> Result<Choice, Failure> {
    if text == "tmpfs" {
        let size_mib = TMPFS_MIB;
        return Ok(Choice::Other(RootDisk::Tmpfs { size_mib }));
    }
    if let Some(size) = text.strip_prefix("tmpfs:") {
        let size_mib = parse_mib(size)?;
        return Ok(Choice::Other(RootDisk::Tmpfs { size_mib }));
    }
    if !text.contains('/') {
        return parse_size(text).map(Choice::Size);
    }
    let format = match text.rsplit_once(':') {
        Some((path, "raw")) => Some((path, DiskFormat::Raw)),
        Some((path, "qcow2")) => Some((path, DiskFormat::Qcow2)),
        _ => None,
    };
    let (path, format) = format.ok_or_else(|| {
        Failure::usage(format!(
            "the format of the disk '{}' is not said",
            escape(text)
        ))
        .hint("as in --root-disk ./disk.img:raw; the formats are raw and qcow2")
    })?;
    let path = std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("'{}' is no path: {error}", escape(path))))?;
    Ok(Choice::Other(RootDisk::Disk { path, format }))
}

/// Reads the size of a managed disk, in MiB.
pub(crate) fn parse_size(text: &str) -> Result<u64, Failure> {
    match parse_mib(text)? {
        mib if mib < SIZE_MIB_MIN => Err(Failure::usage(format!(
            "a disk has at least {SIZE_MIB_MIN} MiB"
        ))),
        mib if mib > SIZE_MIB_MAX => Err(Failure::usage(format!(
            "a disk has at most {} GiB",
            SIZE_MIB_MAX / 1024
        ))),
        mib => Ok(mib),
    }
}

fn parse_mib(text: &str) -> Result<u64, Failure> {
    parse_memory(text).map(u64::from).map_err(|_| {
        Failure::usage(format!(
            "'{}' is not a size, such as 512M or 8G",
            escape(text)
        ))
    })
}

/// Makes the managed disk larger, from the next start on. A file system shrinks only at the risk of what is in it.
pub(crate) fn grow(spec: &mut Spec, size_mib: u64) -> Result<(), Failure> {
    if spec.upper() != Some(&RootDisk::Managed) {
        let message = "the sandbox has no disk of its own, which could grow";
        return Err(Failure::usage(message));
    }
    if size_mib < spec.upper_mib {
        let message = format!("the disk has {} MiB, and cannot shrink", spec.upper_mib);
        return Err(Failure::usage(message));
    }
    spec.upper_mib = size_mib;
    Ok(())
}

impl Choice {
    /// What goes into the specification, and the size of a managed disk. The path of a disk leads through no symbolic link
    /// afterwards.
    pub(crate) fn find(&self) -> anyhow::Result<(RootDisk, Option<u64>)> {
        Ok(match self {
            Choice::Size(mib) => (RootDisk::Managed, Some(*mib)),
            Choice::Other(RootDisk::Disk { path, format }) => {
                let path = path
                    .canonicalize()
                    .with_context(|| format!("cannot open the disk '{}'", path.display()))?;
                let format = *format;
                (RootDisk::Disk { path, format }, None)
            }
            Choice::Other(other) => (other.clone(), None),
        })
    }
}

/// Opens a disk of the user for a machine, and checks that it leads to no other file.
pub(crate) fn open(path: &Path, format: DiskFormat) -> anyhow::Result<File> {
    let shown = path.display();
    // A FIFO in its place must not keep us waiting.
    let file = open_plainly(path, OFlags::RDWR | OFlags::NONBLOCK);
    let file = File::from(file.with_context(|| format!("cannot open the disk '{shown}'"))?);
    let metadata = file
        .metadata()
        .with_context(|| format!("cannot read the disk '{shown}'"))?;
    if !metadata.is_file() {
        return Err(Failure::failed(format!("the disk '{shown}' is no file")).into());
    }
    hold(&file, false).with_context(|| format!("cannot use the disk '{shown}'"))?;
    if format == DiskFormat::Qcow2 {
        check_qcow2(&file).with_context(|| format!("cannot use the disk '{shown}'"))?;
    }
    Ok(file)
}

/// Holds a disk image as long as the file is open, here or in the machine: alone, or with others that only read. Two guests
/// would write over one another's blocks. By flock(2), which does not meet the locks that QEMU takes of its own.
pub(crate) fn hold(file: &File, read_only: bool) -> anyhow::Result<()> {
    let operation = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match flock(file, operation) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(Failure::wrong_state("another sandbox uses it").into()),
        Err(error) => Err(io::Error::from(error)).context("cannot lock it"),
    }
}

/// What QEMU's specification of the format calls `incompatible_features`: the content lies in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// A qcow2 may name other files, which QEMU would open with our rights (qemu: docs/interop/qcow2.txt). Such are refused.
pub(crate) fn check_qcow2(file: &File) -> anyhow::Result<()> {
    let refuse = |why: &str| Err(Failure::failed(why.to_owned()).into());
    let mut header = [0; 80];
    match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return refuse("it is no qcow2: it is too short");
        }
        read => read.context("cannot read its header")?,
    }
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[at..at + 8]);
        u64::from_be_bytes(bytes)
    };
    let version = match &header[..8] {
        b"QFI\xfb\0\0\0\x02" => 2,
        b"QFI\xfb\0\0\0\x03" => 3,
        _ => return refuse("it is no qcow2 of version 2 or 3"),
    };
    if number(8) != 0 {
        return refuse("it has a backing file");
    }
    if version == 3 && number(72) & EXTERNAL_DATA != 0 {
        return refuse("its content lies in another file");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_disk_is_a_size_memory_or_a_file_of_a_format() {
        let other = |text| match parse_root_disk(text).unwrap() {
            Choice::Other(disk) => disk,
            Choice::Size(_) => panic!("{text}"),
        };
        assert_eq!(parse_root_disk("24M").unwrap(), Choice::Size(24));
        assert_eq!(
            other("tmpfs"),
            RootDisk::Tmpfs {
                size_mib: TMPFS_MIB
            }
        );
        assert_eq!(other("tmpfs:1G"), RootDisk::Tmpfs { size_mib: 1024 });
        let path = "/a:b/disk".into();
        let format = DiskFormat::Qcow2;
        assert_eq!(other("/a:b/disk:qcow2"), RootDisk::Disk { path, format });
        for text in [
            "",
            "0",
            "23M",
            "2000000G",
            "tmpfs:0",
            "tmpfs:x",
            "./disk",
            "./disk:vmdk",
            "disk:raw",
        ] {
            assert!(parse_root_disk(text).is_err(), "{text}");
        }
    }

    fn qcow2(version: u8, backing: u8, features: u8) -> File {
        let file = tempfile::tempfile().unwrap();
        let mut header = [0; 80];
        header[..8].copy_from_slice(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, version]);
        (header[15], header[79]) = (backing, features);
        file.write_all_at(&header, 0).unwrap();
        file
    }

    #[test]
    fn a_qcow2_that_leads_to_another_file_is_refused() {
        check_qcow2(&qcow2(2, 0, 4)).unwrap();
        check_qcow2(&qcow2(3, 0, 3)).unwrap();
        for (version, backing, features) in [(2, 1, 0), (3, 1, 0), (3, 0, 4), (1, 0, 0), (4, 0, 0)]
        {
            let checked = check_qcow2(&qcow2(version, backing, features));
            assert!(checked.is_err(), "{version} {backing} {features}");
        }
        assert!(check_qcow2(&tempfile::tempfile().unwrap()).is_err());
    }
}
