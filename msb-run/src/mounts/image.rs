//! Disk images: what may be attached.
//!
//! Of a qcow2 nothing is taken but the declared fact that it is one. Its header may name other files of the host, to be
//! read below it or in place of it: an image from elsewhere would so show the guest any file of its user. Such images are
//! refused. The guest writes below the header and cannot change it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use libmsb::cli::error::Failure;
use libmsb::machine::Format;

/// `QFI\xfb` (QEMU: docs/interop/qcow2.rst).
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// The part of the header that is looked at: up to the incompatible features of version 3.
const HEADER_BYTES: usize = 80;
/// Incompatible feature: the data is in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// Checks that an image is what it was declared to be and stands for itself.
pub(super) fn check(file: &File, format: Format) -> Result<(), Failure> {
    match format {
        Format::Raw => Ok(()),
        Format::Qcow2 => {
            let mut header = [0; HEADER_BYTES];
            let read = read_up_to(file, &mut header)
                .map_err(|error| Failure::failed(format!("cannot read it: {error}")))?;
            check_qcow2(&header[..read])
        }
        Format::Vmdk => Err(Failure::usage("a vmdk may name other files of the host")),
    }
}

fn read_up_to(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

fn check_qcow2(header: &[u8]) -> Result<(), Failure> {
    let field =
        |at: usize| -> Option<u64> { Some(u64::from_be_bytes(*header.get(at..)?.first_chunk()?)) };
    let version = header.get(4..8).map(|bytes| bytes[3]);
    let (Some(version), Some(backing), true) = (version, field(8), header.starts_with(&MAGIC))
    else {
        return Err(Failure::usage("it is no qcow2"));
    };
    if backing != 0 {
        return Err(Failure::usage("it names another file that lies below it")
            .hint("make it stand alone: qemu-img convert -O qcow2 IMAGE NEW"));
    }
    // Version 2 has no features, and ends before them.
    if version >= 3 && field(72).is_none_or(|features| features & EXTERNAL_DATA != 0) {
        return Err(Failure::usage("its data is in another file")
            .hint("make it stand alone: qemu-img convert -O qcow2 IMAGE NEW"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: u8, backing: u64, features: u64) -> Vec<u8> {
        let mut header = vec![0; 104];
        header[..4].copy_from_slice(&MAGIC);
        header[7] = version;
        header[8..16].copy_from_slice(&backing.to_be_bytes());
        header[72..80].copy_from_slice(&features.to_be_bytes());
        header
    }

    #[test]
    fn an_image_that_names_other_files_is_refused() {
        assert!(check_qcow2(&header(3, 0, 1)).is_ok());
        assert!(check_qcow2(&header(2, 0, 4)).is_ok());
        assert!(check_qcow2(&header(3, 200, 0)).is_err());
        assert!(check_qcow2(&header(2, 200, 0)).is_err());
        assert!(check_qcow2(&header(3, 0, EXTERNAL_DATA)).is_err());
    }

    #[test]
    fn an_image_that_is_cut_off_or_another_is_refused() {
        let whole = header(3, 0, 0);
        for length in 0..HEADER_BYTES {
            assert!(check_qcow2(&whole[..length]).is_err(), "{length}");
        }
        assert!(check_qcow2(&[0; 104]).is_err());
    }
}
