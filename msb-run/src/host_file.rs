//! Files of the host that a guest uses: opened without following symbolic links, locked, and
//! checked for references to other files.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;
use libmsb::cli::error::Failure;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, ResolveFlags, flock, openat2};
use rustix::io::Errno;

/// Opens a path that had no symbolic links when the sandbox was created, and must have none now.
pub(crate) fn open_no_symlinks(path: &Path, flags: OFlags) -> anyhow::Result<OwnedFd> {
    let opened = openat2(
        CWD,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    );
    opened.map_err(|error| match error {
        Errno::NOENT | Errno::NOTDIR => Failure::not_found("it no longer exists")
            .hint("restore it, or create the sandbox again with another mount")
            .into(),
        Errno::LOOP => Failure::failed(
            "the path now contains a symbolic link that was not there when the sandbox was created",
        )
        .into(),
        error => anyhow::Error::new(io::Error::from(error)).context("cannot open"),
    })
}

/// Locks a disk image while the file is open, here or in the VMM process: exclusively, or shared
/// with other readers. Two guests would overwrite each other's blocks. Uses flock(2), which does
/// not conflict with the locks of QEMU.
pub(crate) fn lock_disk(file: &File, read_only: bool) -> anyhow::Result<()> {
    let operation = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match flock(file, operation) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(Failure::wrong_state("in use by another sandbox").into()),
        Err(error) => Err(io::Error::from(error)).context("cannot lock"),
    }
}

/// External data file bit of `incompatible_features` in the qcow2 header.
const EXTERNAL_DATA: u64 = 1 << 2;

/// Refuses a qcow2 image that names other files. QEMU would open them with the rights of this user
/// (qemu: docs/interop/qcow2.txt).
pub(crate) fn check_qcow2(file: &File) -> anyhow::Result<()> {
    let refuse = |why: &str| Err(Failure::failed(why.to_owned()).into());
    let mut header = [0; 80];
    match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return refuse("not a qcow2 image: too short");
        }
        read => read.context("cannot read the header")?,
    }
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[at..at + 8]);
        u64::from_be_bytes(bytes)
    };
    let version = match &header[..8] {
        b"QFI\xfb\0\0\0\x02" => 2,
        b"QFI\xfb\0\0\0\x03" => 3,
        _ => return refuse("not a qcow2 image of version 2 or 3"),
    };
    if number(8) != 0 {
        return refuse("it has a backing file");
    }
    if version == 3 && number(72) & EXTERNAL_DATA != 0 {
        return refuse("it has an external data file");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2(version: u8, backing: u8, features: u8) -> File {
        let file = tempfile::tempfile().unwrap();
        let mut header = [0; 80];
        header[..8].copy_from_slice(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, version]);
        (header[15], header[79]) = (backing, features);
        file.write_all_at(&header, 0).unwrap();
        file
    }

    #[test]
    fn a_qcow2_with_another_file_is_refused() {
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
